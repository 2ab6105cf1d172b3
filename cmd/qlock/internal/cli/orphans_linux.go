package cli

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapOrphans asks for the status of processes whose parents are dead, where that is
// this program's business: it is the first process of a container, or somebody made
// it a subreaper before it was this program. Else the dead would fill the table of
// processes.
func reapOrphans() {
	var subreaper int32
	_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreaper)), 0)
	if os.Getpid() != 1 && (errno != 0 || subreaper == 0) {
		return
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() { // it ends with the process
		for {
			reap()
			<-died
		}
	}()
}

// reap takes dead children that are not our own. Those are waited for by who started
// them.
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
