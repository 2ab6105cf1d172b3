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

// Conn is what is used of a connection while a client runs. *nats.Conn is one. Each
// of its methods may block for as long as the connection stands still.
type Conn interface {
	Publish(subject string, data []byte) error
	PublishRequest(subject, reply string, data []byte) error
	MaxPayload() int64
	LastError() error
	IsClosed() bool
}

// A NATS connection may stand still: while it flushes into a black hole, every call on
// it waits for its mutex, for up to a minute. What has a context must come back
// meanwhile, so calls on the connection are made by a goroutine that can be left behind.

// ErrStandsStill: a context ended while a call on the connection did not come back.
var ErrStandsStill = errors.New("the NATS connection is blocked: a call on it has not returned")

// standsStill is how long a call may take to come back when its context has ended,
// before the connection is said to stand still. What it says itself tells more.
const standsStill = 100 * time.Millisecond

// closePatience is how long Close waits for a connection that stands still.
const closePatience = time.Second

// Leave calls do, by which a client or a node that is closed leaves its connection, and
// waits for it and for the log, but not for longer than a Close may take: then it logs
// what comes of a connection that stands still, and returns nil.
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

// NobodyHears reports whether a message is the server's word, in place of an answer, that
// nobody subscribes to what was asked on.
func NobodyHears(m *nats.Msg) bool { return len(m.Data) == 0 && m.Header.Get("Status") == "503" }

// Call calls do, which ends with ctx unless the connection stands still. If
// it does, Call returns ErrStandsStill with the context's error, and undo is
// called should do come back without an error.
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

// CloseCause is what is known of why a connection is closed for ever.
func CloseCause(nc Conn) error {
	if last := nc.LastError(); last != nil && !errors.Is(last, nats.ErrConnectionClosed) {
		return fmt.Errorf("%w, its last error was: %w", nats.ErrConnectionClosed, last)
	}
	return nats.ErrConnectionClosed
}

// ContextError is why ctx ended, nil if it has not: its error, and its cause where that
// says something else.
func ContextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// enoughPayload is a max_payload with which nothing has to be left out.
const enoughPayload = 8 << 10

// Advise warns of what will cost locks some day: a connection that is closed for ever by
// what passes, or that finds a silent server too late for another. lease is how long
// one may be silent.
func Advise(nc *nats.Conn, lease time.Duration, log *Log, about string) {
	o := &nc.Opts // of how the connection was made: these never change
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

// silenceTime is how long a connection may take until it is one to another server: the
// client library gives up when so many pings and one more were not answered.
func silenceTime(o *nats.Options, alone bool) time.Duration {
	if o.PingInterval <= 0 {
		return 1 << 62
	}
	d := o.PingInterval * time.Duration(o.MaxPingsOut+1)
	if alone && o.CustomReconnectDelayCB == nil {
		d += o.ReconnectWait // else another server is tried at once
	}
	return d
}

// silenceLeft is what is left of a lease, in the worst case, when nothing is answered
// any more: the last refresh that was is a third of it ago (C1, C6).
func silenceLeft(lease time.Duration) time.Duration {
	return lease - lease/50 - lease/3
}
