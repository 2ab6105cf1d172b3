//go:build unix && !linux

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// dieWithParent does nothing: this system has only the guard.
func dieWithParent(*syscall.SysProcAttr) {}

// stopSelf stops this program, and returns when it continues.
func stopSelf() {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGCONT)
	defer signal.Stop(again)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	<-again
}
