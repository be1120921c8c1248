package broker

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

// memory is how many bytes this process may use: the machine's, or less if a control
// group or GOMEMLIMIT says so; 0 if that is not known.
func memory() uint64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	most := uint64(info.Totalram) * uint64(info.Unit) // of other types on some machines
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if b, err := os.ReadFile(file); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
				most = min(most, n)
			}
		}
	}
	return min(most, uint64(debug.SetMemoryLimit(-1)))
}
