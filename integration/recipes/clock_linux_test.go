package recipes

import (
	"syscall"
	"unsafe"
)

// now is a reading of CLOCK_MONOTONIC in nanoseconds: the same clock for all processes
// of a machine. What package time gives of it counts from the start of the process.
func now() int64 {
	const monotonic = 1
	var t syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		panic("clock_gettime: " + errno.Error())
	}
	return t.Nano()
}

// attributes of a child: it dies with the judge, also if it is stopped.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
