package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Conn has the methods of a connection that a running client uses. *nats.Conn implements
// it. Each method may block for as long as the connection is blocked.
type Conn interface {
	Publish(subject string, data []byte) error
	PublishRequest(subject, reply string, data []byte) error
	MaxPayload() int64
	LastError() error
	IsClosed() bool
}

// A NATS connection may be blocked: while it flushes to a peer that accepts nothing, every
// call on it waits for its mutex, for up to a minute. A function that has a context must
// return meanwhile, so calls on the connection run in a goroutine that can be left behind.

// ErrStandsStill means that a context ended while a call on the connection had not
// returned.
var ErrStandsStill = errors.New("the NATS connection is blocked: a call on it has not returned")

// standsStill is how long a call may take to return after its context has ended, before the
// connection counts as blocked. If the call returns in that time, its own error says more.
const standsStill = 100 * time.Millisecond

// closePatience is how long Close waits for a blocked connection.
const closePatience = time.Second

// Leave calls do, with which a closing client or node leaves its connection, and waits for
// it and for the log. It waits no longer than a Close may take. If do has not returned by
// then, Leave logs the message blocked and returns nil.
func Leave(do func() error, log *Log, blocked string) error {
	patience := time.NewTimer(closePatience - LogPatience)
	defer patience.Stop()
	defer log.Flush(LogPatience)
	left := make(chan error, 1)
	go func() { left <- do() }()
	select {
	case err := <-left:
		return err
	case <-patience.C:
		log.Line(slog.LevelWarn, blocked)
		return nil
	}
}

// NobodyHears reports whether m is the server's reply that there are no subscribers to the
// subject of a request.
func NobodyHears(m *nats.Msg) bool { return len(m.Data) == 0 && m.Header.Get("Status") == "503" }

// Call calls do and returns its error. do must end with ctx, which it does unless the
// connection is blocked. If it does not return, Call returns ErrStandsStill together with
// the context's error. If do then succeeds after all, undo is called.
func Call(ctx context.Context, do func() error, undo func()) error {
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
	return fmt.Errorf("%w: %w", ErrStandsStill, ContextError(ctx))
}

// CloseCause returns an error that says, as far as known, why a connection is closed
// permanently.
func CloseCause(nc Conn) error {
	if last := nc.LastError(); last != nil && !errors.Is(last, nats.ErrConnectionClosed) {
		return fmt.Errorf("%w, its last error was: %w", nats.ErrConnectionClosed, last)
	}
	return nats.ErrConnectionClosed
}

// ContextError returns why ctx ended, or nil if it has not ended. The result wraps the
// context's error, and also its cause where that differs.
func ContextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// enoughPayload is a max_payload, in bytes, at which no message has to be shortened.
const enoughPayload = 8 << 10

// Advise logs warnings about connection options that will cost locks some day. Such a
// connection is closed permanently by a fault that passes, or detects a silent server too
// late to reach another one. lease is how long a client may go without an answer.
func Advise(nc *nats.Conn, lease time.Duration, log *Log, about string) {
	o := &nc.Opts // options of the connection's making: these never change
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if !o.AllowReconnect {
		fault("it does not reconnect when it breaks: leave out nats.NoReconnect")
	} else if o.MaxReconnect >= 0 {
		fault("it is closed for ever when a server was tried %d times: use nats.MaxReconnects(-1)", o.MaxReconnect)
	}
	if nc.AuthRequired() && !o.IgnoreAuthErrorAbort {
		fault("it is closed for ever when a server refuses its credentials twice, as may happen while they are changed: use nats.IgnoreAuthErrorAbort()")
	}
	if found, left := silenceTime(o, len(nc.Servers()) == 1), silenceLeft(lease); found > left && o.InProcessServer == nil {
		what := "it never notices a server that falls silent"
		if o.PingInterval > 0 {
			what = fmt.Sprintf("it takes up to %v to leave a server that falls silent", found)
		}
		fault("%s, and a lease of %v leaves %v: use nats.PingInterval(%v) and nats.MaxPingsOutstanding(1), and a short nats.ReconnectWait",
			what, lease, left.Truncate(time.Millisecond), lease/5)
	}
	if most := nc.MaxPayload(); most > 0 && most < enoughPayload {
		fault("its server takes %d bytes in a message: long names and notes may not fit (max_payload, %d are enough)", most, enoughPayload)
	}
	if len(faults) > 0 {
		log.Line(slog.LevelWarn, "the NATS connection is not suited for locks", "may cost", about, "because", strings.Join(faults, "; "))
	}
}

// silenceTime returns how long it may take until a silent server is replaced by another
// one. The client library gives up a server when so many pings and one more were not
// answered.
func silenceTime(o *nats.Options, alone bool) time.Duration {
	if o.PingInterval <= 0 {
		return 1 << 62
	}
	d := o.PingInterval * time.Duration(o.MaxPingsOut+1)
	if alone && o.CustomReconnectDelayCB == nil {
		d += o.ReconnectWait // otherwise another server is tried at once
	}
	return d
}

// silenceLeft returns what remains of a lease, in the worst case, when answers stop: the
// last refresh that succeeded is a third of the lease ago (C1, C6).
func silenceLeft(lease time.Duration) time.Duration {
	return lease - lease/50 - lease/3
}
