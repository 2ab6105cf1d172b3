//go:build unix

package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stayAwake prevents the terminal from stopping this program when it reads or writes there
// from the background: it would lose the lock that it holds.
func stayAwake() { signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU) }

// inBackground reports whether f is the terminal of this program and other jobs use it at
// present.
func inBackground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group != unix.Getpgrp()
}

// withParent returns a context that ends when the parent of this process has ended.
func withParent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	parent := os.Getppid()
	go func() {
		tick := time.NewTicker(lookAgain)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if os.Getppid() != parent {
				cancel(errors.New("--until parent: the process that started this one has ended"))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }, nil
}
