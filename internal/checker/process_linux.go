package checker

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithParent has the process killed when the thread that starts it ends. It
// gets a group of its own: a Ctrl-C is for the parent, which stops its processes
// in their order.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

func lockThread() func() {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
