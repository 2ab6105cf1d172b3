package statedir

import (
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// bootID identifies the current run of the machine, from one start to the next.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Uptime returns how long ago the machine was started, including sleep, or 0 if that is not
// known. Nobody can set this clock. It is read by a system call, which does not block: in
// some containers /proc/uptime is a file of a FUSE server.
func Uptime() time.Duration {
	const boottime = 7 // CLOCK_BOOTTIME
	var t syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, boottime, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		return 0
	}
	return time.Duration(t.Nano())
}
