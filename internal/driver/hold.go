package driver

import (
	"context"
	"time"

	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
)

// Patience is what a request does when somebody else is in the way.
type Patience uint8

const (
	Wait Patience = iota // wait in the nodes' queues
	Try                  // fail
)

// Lifetime is which context the lock's context ends with.
type Lifetime uint8

const (
	Detached Lifetime = iota // none: it has only the values of the context that it was asked for with
	Attached                 // the context that it was asked for with
)

// Request is what somebody wants.
type Request struct {
	Name     string
	Resource string // the name, encoded for subjects
	Mode     quorum.Mode
	Patience Patience
	Lifetime Lifetime
	Note     string // for people
	Terms    *Terms // what few ask for; nil: nothing of it
}

// Terms is what few requests ask for.
type Terms struct {
	Age     time.Time     // since when it waits, if that is before the request; zero: it is not
	AtLeast time.Duration // its claim stays so long after the grant, also if it is unlocked before
	AtMost  time.Duration // it ends so long after the grant; 0: it does not
	Watch   bool          // Hold.Changed tells when what it waits for changes
	Manual  bool          // if it is evicted, its context ends, and Unlock gives the claim back
}

// Hold is one call's wish for a lock, and then the lock: Client.Start makes it, and it is
// over when it has failed, was unlocked, or is lost. Any goroutine may call its methods.
type Hold struct {
	// Owner is the caller's own value, set before Client.Start and not changed after it.
	Owner any

	client  *Client
	request Request
	asked   time.Time
	parent  holdContext
	ctx     context.Context
	cancel  context.CancelCauseFunc

	// ready is closed when the claim is held or has failed; before that nobody reads
	// the rest without the machine's lock.
	ready chan struct{}

	// Guarded by machine.mu until ready is closed, and not written after that.
	use     *hold.Hold
	token   uint64
	votes   int
	nodes   int
	failure *Failure
	since   time.Time

	// Guarded by machine.mu.
	state holdState
	lost  error // why; not written once the state is lost, evicted or expired
	watch *watch
	timer *timer // nil: it is not among the machine's
}

// watch is for those who want to be told. The machine's lock guards it.
type watch struct {
	wanted  chan struct{} // closed when somebody else waits; nil: nobody asked
	told    bool          // wanted is closed, or about to be
	changed chan struct{} // closed when what it waits for may have changed; nil: nobody waits
	watched bool          // somebody asked
	dirty   bool          // it has changed since
}

func (h *Hold) watching() *watch {
	if h.watch == nil {
		h.watch = new(watch)
	}
	return h.watch
}

// noTerms are those of a request without any. Nobody writes it.
var noTerms Terms

func (r *Request) terms() *Terms {
	if r.Terms == nil {
		return &noTerms
	}
	return r.Terms
}

// at is the age of the request, a wall clock in microseconds; 0: that of the call.
func (t *Terms) at() int64 {
	if t.Age.IsZero() {
		return 0
	}
	return max(t.Age.UnixMicro(), 1)
}

type holdState uint8

const (
	waiting holdState = iota
	held
	unlocked
	lost
	failed
	evicted // its context has ended, and its claim is held until Unlock
	expired // as Request.AtMost says
)

// Name is the name of the resource.
func (h *Hold) Name() string { return h.request.Name }

// Mode is how it is, or was to be, held.
func (h *Hold) Mode() quorum.Mode { return h.request.Mode }

// Token is the fencing token. Call it when the lock was held.
func (h *Hold) Token() uint64 { return h.token }

// Context ends when the lock is no longer held.
func (h *Hold) Context() context.Context { return h.ctx }

// Ready is closed when the lock is held, or will not be: Failure tells which.
func (h *Hold) Ready() <-chan struct{} { return h.ready }

// Failure is why the lock will not be held, nil if it was. Call it after Ready is closed.
func (h *Hold) Failure() *Failure { return h.failure }

// Wait waits until the lock is held, and returns nil. If ctx ends before, it gives the
// wish up. It calls watch, on this goroutine, whenever what the request waits for may have
// changed; nil: it does not.
func (h *Hold) Wait(ctx context.Context, watch func()) *Failure {
	for {
		var changed <-chan struct{}
		if watch != nil {
			changed = h.Changed()
		}
		select {
		case <-h.ready:
			return h.failure
		case <-ctx.Done():
			return h.client.machine.giveUp(h, natsio.ContextError(ctx))
		case <-changed:
			watch()
		}
	}
}

// Request is what was asked for.
func (h *Hold) Request() *Request { return &h.request }

// GiveUpWaiting ends the wish if it is not held yet.
func (h *Hold) GiveUpWaiting(cause error) { h.client.machine.giveUpWaiting(h, cause) }

// GiveUp ends the wish if it is not held yet, and gives the lock back if it is.
func (h *Hold) GiveUp(cause error) { h.client.machine.cancel(h, cause) }

// Changed is closed when what the request waits for may have changed since the last call of
// Changed. Request.Watch must be set.
func (h *Hold) Changed() <-chan struct{} { return h.client.machine.changed(h) }

// Waiting tells how the request stands that waits.
func (h *Hold) Waiting() Waiting { return h.client.machine.waiting(h) }

// Wanted is closed when somebody else waits for the lock, or at once if it is not held.
func (h *Hold) Wanted() <-chan struct{} { return h.client.machine.wanted(h) }

// Stands is how long the lock stays held without another message; 0 if it is not held.
func (h *Hold) Stands() time.Duration { return h.client.machine.stands(h) }

// AwaitRefresh waits for the answers to the refresh that is under way, if there is one.
func (h *Hold) AwaitRefresh(ctx context.Context) error {
	done := h.client.machine.refreshed(h)
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-h.ctx.Done():
		return context.Cause(h.ctx)
	case <-ctx.Done():
		return natsio.ContextError(ctx)
	}
}

// Unlock gives the lock back. It returns why the lock was lost, if it was.
func (h *Hold) Unlock() error { return h.client.unlock(h) }

// holdContext is the parent of a lock's context: it has the values of the context
// that the lock was asked for with, and the lock. It is context.WithValue and
// context.WithoutCancel in one, without their memory.
type holdContext struct {
	context.Context
	hold *Hold
}

func (c *holdContext) detached() bool { return c.hold.request.Lifetime == Detached }

func (c *holdContext) Deadline() (time.Time, bool) {
	if c.detached() {
		return time.Time{}, false
	}
	return c.Context.Deadline()
}

func (c *holdContext) Done() <-chan struct{} {
	if c.detached() {
		return nil
	}
	return c.Context.Done()
}

func (c *holdContext) Err() error {
	if c.detached() {
		return nil
	}
	return c.Context.Err()
}

func (c *holdContext) Value(key any) any {
	if key == (holdKey{}) {
		return c.hold
	}
	return c.Context.Value(key)
}

// holdKey is the key of the *Hold in the contexts that locks make.
type holdKey struct{}

// FromContext returns the innermost lock whose context ctx is or descends from, or nil.
func FromContext(ctx context.Context) *Hold {
	h, _ := ctx.Value(holdKey{}).(*Hold)
	return h
}
