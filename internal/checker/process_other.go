//go:build !linux

package checker

import "os/exec"

func dieWithParent(*exec.Cmd) {}

func lockThread() func() { return func() {} }
