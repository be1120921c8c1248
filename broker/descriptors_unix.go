//go:build unix

package broker

import "syscall"

// descriptors is how many files this process may have open, 0 if that is not
// known. Go has raised the limit as far as it may.
func descriptors() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur) // signed on some systems
}
