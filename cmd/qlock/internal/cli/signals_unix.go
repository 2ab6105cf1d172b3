//go:build unix

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// hangup hears SIGHUP until the function that it returns is called.
func hangup() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}
