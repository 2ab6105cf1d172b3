package qlock

import (
	"context"
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/quorum"
)

const (
	exclusive = quorum.Exclusive
	shared    = quorum.Shared
)

// Lock is a lock that is, or was, held. Its methods may be called from several
// goroutines.
type Lock struct{ hold driver.Hold }

// Name is the name of the resource.
func (l *Lock) Name() string { return l.hold.Name() }

// Shared reports whether other readers may hold the lock together with this one.
func (l *Lock) Shared() bool { return l.hold.Mode() == shared }

// Token is the fencing token (Kleppmann, "How to do distributed locking", 2016):
// greater than that of every exclusive holder of this resource before. Send it
// with every write to the resource that the lock protects, and let that resource
// refuse writes with a token lower than the highest it has seen: a holder that
// was stopped and does not know yet that its time is over is kept out by that,
// and by nothing else. A shared lock's token lies between those of the exclusive
// holders before and after it. Below 2^53.
func (l *Lock) Token() uint64 { return l.hold.Token() }

// Unlock ends the lock's context and gives the lock back. It returns ErrLost if the lock
// was lost before, ErrHoldExpired if HoldAtMost has ended it, and nil otherwise, also when called again. It does not wait for the nodes (Locker.Flush
// does): should the message be lost, the next refresh tells them, within a third of the
// lease.
//
// A program that ends right after Unlock, by os.Exit or by the end of main, or that
// closes or drains its NATS connection, may take the message with it, and the lock stays
// held for its lease: call Locker.Close before, or Locker.Flush, which both wait until
// it has left.
//
// An ended ctx does not keep the lock from being given back.
func (l *Lock) Unlock(context.Context) error {
	return l.hold.Unlock()
}

// Wanted is closed when somebody else waits for the lock: another client, or another
// goroutine of this Locker. It lets a holder finish early. It stays open when the lock ends,
// so wait for the end of Context as well. Every call returns the same channel.
//
// The nodes tell only holders that ask: the first call sends them one message, and a lock for
// which nobody calls Wanted costs what it always did. A channel that is asked for after
// somebody began to wait is closed within a round trip.
func (l *Lock) Wanted() <-chan struct{} { return l.hold.Wanted() }

// Stands is how long the lock stays held, from now on, without another message from the
// nodes: after that a quorum of votes may have run out. It is 0 if the lock is not held. While
// the nodes answer it lies between about two thirds of the lease and all of it, less the margin
// for the drift of this clock (C1 in docs/protocol.md). Take another two per cent off before you
// promise it to somebody who counts by a clock of their own.
func (l *Lock) Stands() time.Duration { return l.hold.Stands() }

// AwaitRefresh waits for the answers to the refresh that is under way, if there is one, so
// that Stands tells what it brought. It sends nothing. It returns nil at once if there is
// none, the cause of the end of Context if the lock ends meanwhile, and ctx's error if ctx
// ends before.
func (l *Lock) AwaitRefresh(ctx context.Context) error { return l.hold.AwaitRefresh(ctx) }

// Token returns the fencing token of the innermost lock whose context ctx is or
// descends from, or 0 if there is none.
func Token(ctx context.Context) uint64 {
	if h := driver.FromContext(ctx); h != nil {
		return h.Token()
	}
	return 0
}

// Held returns nil while the innermost lock whose context ctx is or descends from is held.
// Otherwise its error is ErrNotHeld: wrapped with why the lock's context ended, ErrLost or
// ErrUnlocked, or alone if there is no lock. Code that must run under a lock can assert
// it:
//
//	if err := qlock.Held(ctx); err != nil {
//		return err
//	}
//
// It asks nobody. A lock that is held now may be lost the next moment: what must not be
// overtaken needs the token (Lock.Token). Safe to call from several goroutines.
func Held(ctx context.Context) error {
	h := driver.FromContext(ctx)
	if h == nil {
		return fmt.Errorf("%w: the context comes from no lock", ErrNotHeld)
	}
	if held := h.Context(); held.Err() != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotHeld, quote(h.Name()), context.Cause(held))
	}
	return nil
}
