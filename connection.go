package qlock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// A NATS connection may stand still: while it flushes into a black hole, every call on
// it waits for its mutex, for up to a minute. What has a context must come back
// meanwhile, so calls on the connection are made by a goroutine that can be left behind.

// errStandsStill: a context ended while a call on the connection did not come back.
var errStandsStill = errors.New("the NATS connection stands still: a call on it has not come back")

// standsStill is how long a call may take to come back when its context has ended,
// before the connection is said to stand still. What it says itself tells more.
const standsStill = 100 * time.Millisecond

// closePatience is how long Close waits for a connection that stands still.
const closePatience = time.Second

// onConnection calls do, which ends with ctx unless the connection stands still. If
// it does, onConnection returns errStandsStill with the context's error, and undo is
// called should do come back without an error.
func onConnection(ctx context.Context, do func() error, undo func()) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	patience := time.NewTimer(standsStill)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
	}
	go func() {
		if <-done == nil {
			undo()
		}
	}()
	return fmt.Errorf("%w: %w", errStandsStill, contextError(ctx))
}

// closeCause is what is known of why a connection is closed for ever.
func closeCause(nc *nats.Conn) error {
	if last := nc.LastError(); last != nil && !errors.Is(last, nats.ErrConnectionClosed) {
		return fmt.Errorf("%w, its last error was: %w", nats.ErrConnectionClosed, last)
	}
	return nats.ErrConnectionClosed
}

func closedError(nc *nats.Conn) error { return fmt.Errorf("%w: %w", ErrClosed, closeCause(nc)) }
