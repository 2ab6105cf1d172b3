//go:build unix

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// hangup returns a channel that receives SIGHUP until the returned function is called.
func hangup() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}
