package statedir

import (
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// bootID names the machine's life since its last start.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Uptime is how long ago the machine was started, with the time in which it slept;
// 0 where that is not known. Nobody can set this clock, and reading it does not block:
// /proc/uptime is a file of a FUSE server in some containers.
func Uptime() time.Duration {
	const boottime = 7 // CLOCK_BOOTTIME
	var t syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, boottime, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		return 0
	}
	return time.Duration(t.Nano())
}
