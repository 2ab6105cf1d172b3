package qlock

import (
	"context"
	"time"

	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/quorum"
)

const (
	exclusive = quorum.Exclusive
	shared    = quorum.Shared
)

// Lock is a lock that is, or was, held. Its methods may be called from several
// goroutines.
type Lock struct {
	locker   *Locker
	name     string
	resource string // encoded for subjects
	mode     quorum.Mode
	note     string
	asked    time.Time
	parent   lockContext
	ctx      context.Context
	cancel   context.CancelCauseFunc

	// ready is closed when the claim is held or has failed; before that its waiter
	// reads none of the rest.
	ready chan struct{}

	// Guarded by locker.mu until ready is closed, and not written after that but
	// for the state.
	use   *local.Use
	token uint64
	votes int
	nodes int
	err   *LockError // why it failed, all but the operation
	since time.Time

	state lockState // guarded by locker.mu
	lost  error     // why; set with the state
}

type lockState uint8

const (
	lockWaiting lockState = iota
	lockHeld
	lockUnlocked
	lockLost
	lockFailed
)

// Name is the name of the resource.
func (l *Lock) Name() string { return l.name }

// Shared reports whether other readers may hold the lock together with this one.
func (l *Lock) Shared() bool { return l.mode == shared }

// Token is the fencing token (Kleppmann, "How to do distributed locking", 2016):
// greater than that of every exclusive holder of this resource before. Send it
// with every write to the resource that the lock protects, and let that resource
// refuse writes with a token lower than the highest it has seen: a holder that
// was stopped and does not know yet that its time is over is kept out by that,
// and by nothing else. A shared lock's token lies between those of the exclusive
// holders before and after it. Below 2^53.
func (l *Lock) Token() uint64 { return l.token }

// Context ends at the moment the lock is no longer held: with cause ErrLost when
// it was lost (context.Cause tells), with ErrUnlocked after Unlock or the
// Locker's Close. It carries the values, but not the deadline, of the context
// that the lock was asked for with. Do the work that the lock protects under it.
//
// It ends before anybody else can have the lock, and so do the contexts derived from
// it. To end those takes about a third of a microsecond each: for so long a loss may
// come late, if there are more than thousands.
func (l *Lock) Context() context.Context { return l.ctx }

// Unlock ends the lock's context and gives the lock back. It returns ErrLost if the lock was lost before, and
// nil otherwise, also when called again. It does not wait for the nodes (Locker.Flush
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
	return l.locker.unlock(l)
}

// lockContext is the parent of a lock's context: it has the values of the context
// that the lock was asked for with, and the lock. It is context.WithValue and
// context.WithoutCancel in one, without their memory.
type lockContext struct {
	context.Context
	lock     *Lock
	detached bool
}

func (c *lockContext) Deadline() (time.Time, bool) {
	if c.detached {
		return time.Time{}, false
	}
	return c.Context.Deadline()
}

func (c *lockContext) Done() <-chan struct{} {
	if c.detached {
		return nil
	}
	return c.Context.Done()
}

func (c *lockContext) Err() error {
	if c.detached {
		return nil
	}
	return c.Context.Err()
}

func (c *lockContext) Value(key any) any {
	if key == (tokenKey{}) {
		return c.lock
	}
	return c.Context.Value(key)
}

// tokenKey is the key of the *Lock in the contexts that locks make.
type tokenKey struct{}

// Token returns the fencing token of the innermost lock whose context ctx is or
// descends from, or 0 if there is none.
func Token(ctx context.Context) uint64 {
	if l, ok := ctx.Value(tokenKey{}).(*Lock); ok {
		return l.token
	}
	return 0
}
