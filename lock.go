package qlock

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/quorum"
)

const (
	exclusive = quorum.Exclusive
	shared    = quorum.Shared
)

// Lock is a lock that is, or was, held. Its methods are safe for concurrent use.
type Lock struct{ hold driver.Hold }

func newLock() *Lock {
	l := new(Lock)
	l.hold.Owner = l
	return l
}

// FromContext returns the innermost lock whose context is ctx or an ancestor of it, and whether
// there is one. The lock need not be held any more: see Held. Its holder is another function,
// which will unlock it: do not call Unlock. FromContext is safe for concurrent use.
func FromContext(ctx context.Context) (l *Lock, ok bool) {
	h := driver.FromContext(ctx)
	if h == nil {
		return nil, false
	}
	l, ok = h.Owner.(*Lock)
	return l, ok
}

// Name returns the name of the resource.
func (l *Lock) Name() string { return l.hold.Name() }

// Cluster returns the name of the cluster that granted the lock.
func (l *Lock) Cluster() string { return l.hold.Cluster() }

// Shared reports whether other readers may hold the lock together with this one.
func (l *Lock) Shared() bool { return l.hold.Mode() == shared }

// Token returns the fencing token (Kleppmann, "How to do distributed locking", 2016). It is
// greater than the token of every earlier exclusive holder of this resource, and less than 2^53.
// The token of a shared lock lies between those of the exclusive holders before and after it.
//
// Send the token with every write to the resource that the lock protects, and let the resource
// reject writes with a token lower than the highest that it has seen. Nothing else keeps out a
// holder that was paused and does not know yet that it has lost the lock.
func (l *Lock) Token() uint64 { return l.hold.Token() }

// String returns a description in one line, for logs: the name, the mode, the token, and whether the
// lock is held or how it ended.
func (l *Lock) String() string {
	mode := "exclusive"
	if l.Shared() {
		mode = "shared"
	}
	text := fmt.Sprintf("lock %s (%s, token %d): ", quote(l.Name()), mode, l.Token())
	if err := l.hold.Ended(); err != nil {
		return text + strings.TrimPrefix(err.Error(), "qlock: ")
	}
	return text + "held"
}

// LogValue returns the text of String, for package slog.
func (l *Lock) LogValue() slog.Value { return slog.StringValue(l.String()) }

// Unlock ends the lock's context and gives the lock back. It returns ErrLost if the lock was lost
// before, ErrHoldExpired if HoldAtMost has ended it, and nil otherwise, also when called again. It
// does not wait for the nodes; Locker.Flush does. If the message is lost, the nodes learn it from
// the next refresh, within a third of the lease.
//
// A program that ends right after Unlock, or that closes or drains its NATS connection, may do
// so before the message has left, and the lock then stays held for its lease. Call Locker.Close
// or Locker.Flush before: both wait until the message has left.
//
// Unlock releases the lock even if ctx has ended.
func (l *Lock) Unlock(context.Context) error {
	return l.hold.Unlock()
}

// Wanted is closed when somebody else waits for the lock: another client, or another
// goroutine of this Locker. It lets a holder finish early. It stays open when the lock ends,
// so wait for the end of Context as well. Every call returns the same channel.
//
// The nodes tell only holders that ask: the first call sends them one message, and a lock for
// which nobody calls Wanted costs what it always did. A channel that is asked for after
// somebody began to wait is closed within a round trip. A TryLock elsewhere, which does not wait,
// may close it as well, and so may a client that has stopped waiting.
func (l *Lock) Wanted() <-chan struct{} { return l.hold.Wanted() }

// Stands is how long the lock stays held, from now on, without another message from the
// nodes: after that a quorum of votes may have run out. It is 0 if the lock is not held, and never
// longer than HoldAtMost still allows. While
// the nodes answer it lies between about two thirds of the lease and all of it, less the margin
// for the drift of this clock (C1 in docs/protocol.md). Take another two per cent off before you
// promise it to somebody who counts by a clock of their own.
func (l *Lock) Stands() time.Duration { return l.hold.Stands() }

// AwaitRefresh waits for the answers to the refresh that is under way, if there is one, so
// that Stands tells what it brought. It sends nothing. It returns nil at once if there is
// none, the cause of the end of Context if the lock has ended or ends meanwhile, and ctx's error
// if ctx ends before.
func (l *Lock) AwaitRefresh(ctx context.Context) error { return l.hold.AwaitRefresh(ctx) }

// Token returns the fencing token of the innermost lock whose context is ctx or an ancestor of
// it, or 0 if there is none.
func Token(ctx context.Context) uint64 {
	if h := driver.FromContext(ctx); h != nil {
		return h.Token()
	}
	return 0
}

// Held returns nil while the innermost lock whose context is ctx or an ancestor of it is held, and
// its context has not ended. Otherwise it returns ErrNotHeld, wrapped together with the reason why
// the lock's context ended, such as ErrLost or ErrUnlocked, or alone if there is no lock. In a
// function of Do that reason can be the end of Do's context: the lock is held until the function
// returns. Code that must run under a lock can assert it:
//
//	if err := qlock.Held(ctx); err != nil {
//		return err
//	}
//
// Held reads the clock: it finds a loss that the Locker has not noticed yet, for example right after
// the machine slept. It sends no message. A lock that is held now can be lost the next moment: writes
// that must not come from a former holder need the token (Lock.Token). Held is safe for concurrent
// use.
func Held(ctx context.Context) error {
	h := driver.FromContext(ctx)
	if h == nil {
		return fmt.Errorf("%w: the context comes from no lock", ErrNotHeld)
	}
	err := context.Cause(h.Context())
	if err == nil {
		err = h.Ended()
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotHeld, quote(h.Name()), err)
	}
	return nil
}
