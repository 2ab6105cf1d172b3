//go:build unix

package main

import (
	"syscall"
	"time"
)

// processCPU returns the processor time that this process has used.
func processCPU() (time.Duration, bool) { return cpuOf(syscall.RUSAGE_SELF) }

// familyCPU returns the processor time of this process and of its child processes that have
// ended.
func familyCPU() (time.Duration, bool) {
	self, ok := processCPU()
	children, ok2 := cpuOf(syscall.RUSAGE_CHILDREN)
	return self + children, ok && ok2
}

func cpuOf(who int) (time.Duration, bool) {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
