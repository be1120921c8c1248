package conformance

import (
	"os/exec"
	"syscall"
)

// A broker must not outlive a test run that panics or times out.
func init() {
	dieWithUs = func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
}
