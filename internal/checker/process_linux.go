package checker

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithParent has the process killed when the thread that starts it ends.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

func lockThread() func() {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
