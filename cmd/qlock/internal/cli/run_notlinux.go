//go:build unix && !linux

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// dieWithParent does nothing: this system has only the guard.
func dieWithParent(*syscall.SysProcAttr) {}

// stopGroup stops this program's group, the others with the signal given. It returns when
// this program continues. A SIGCONT between the two signals is lost here.
func stopGroup(others syscall.Signal) {
	signal.Ignore(syscall.SIGTSTP)
	_ = syscall.Kill(0, others)
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGCONT)
	defer signal.Stop(again)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	<-again
}
