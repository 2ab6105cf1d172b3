package cli

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapOrphans reaps processes whose parents are dead, if that is the task of this program.
// It is if the program is the first process of a container, or was made a subreaper before
// it started. Otherwise dead processes would fill the process table.
func reapOrphans() {
	var subreaper int32
	_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreaper)), 0)
	if os.Getpid() != 1 && (errno != 0 || subreaper == 0) {
		return
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() { // ends with the process
		for {
			reap()
			<-died
		}
	}()
}

// reap reaps dead children that are not in ours: the code that starts one of those waits
// for it.
func reap() {
	self := os.Getpid()
	ours.mu.Lock()
	defer ours.mu.Unlock()
	all, _ := procs()
	for _, p := range all {
		if _, own := ours.pids[p.pid]; p.parent == self && p.dead() && !own {
			_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		}
	}
}
