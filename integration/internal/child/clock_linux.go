package child

import (
	"syscall"
	"unsafe"
)

// Now is a reading of CLOCK_MONOTONIC in nanoseconds. It is the same clock for all processes of
// a machine; what package time gives of it counts from the start of the process.
func Now() int64 {
	const monotonic = 1
	var t syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		panic("clock_gettime: " + errno.Error())
	}
	return t.Nano()
}

// attributes of a child: it dies with its parent, however that dies and even if the child is
// stopped. (To be exact, with the thread that started it. The runtime ends only threads that a
// goroutine was locked to, and here is none.)
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
