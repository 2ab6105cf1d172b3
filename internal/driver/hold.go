package driver

import (
	"context"
	"math"
	"time"

	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
)

// Patience tells what a request does when another claim is in the way.
type Patience uint8

const (
	Wait Patience = iota // it waits in the nodes' queues
	Try                  // it fails
)

// Lifetime tells with which context the lock's context ends.
type Lifetime uint8

const (
	Detached Lifetime = iota // none: it has only the values of the context of the request
	Attached                 // the context of the request
)

// Request describes a requested lock.
type Request struct {
	Name     string
	Resource string // the name as encoded in subjects
	Mode     quorum.Mode
	Patience Patience
	Lifetime Lifetime
	Note     string // description for people
	Terms    *Terms // rare options; nil: none
}

// Terms holds the options that few requests have.
type Terms struct {
	Age     time.Time     // start of the wait, if before the request; zero: the request
	AtLeast time.Duration // how long after the grant the claim stays, even if unlocked earlier
	AtMost  time.Duration // how long after the grant the lock ends; 0: never
	Watch   bool          // Hold.Changed reports changes of what the request waits for
	Manual  bool          // a loss ends only the context, and Unlock releases the claim
}

// Hold is the request of one call, and then its lock. Client.Start initializes it. It ends when the
// request fails, or when the lock is unlocked, expires or is lost. Its methods are safe for
// concurrent use.
type Hold struct {
	// Owner is the caller's own value, set before Client.Start and not changed after it.
	Owner any

	client  *Client
	request Request
	asked   time.Time
	parent  holdContext
	ctx     context.Context
	cancel  context.CancelCauseFunc

	// ready is closed when the lock is held or the request has failed. Before that, the other
	// fields may be read only under the machine's mutex.
	ready chan struct{}

	// machine.mu guards these until ready is closed. They are not written after that.
	use     *hold.Hold
	token   uint64
	votes   int
	nodes   int
	failure *Failure
	since   time.Time

	// machine.mu guards these.
	state holdState
	lost  error // why it was lost; not written once the state is lost, left or expired
	watch *watch
}

// watch is for callers that want to hear of changes. The machine's mutex guards it.
type watch struct {
	wanted  chan struct{} // closed when somebody else waits; nil: nobody asked
	told    bool          // wanted is closed, or is about to be
	changed chan struct{} // closed at a change of what the request waits for; nil: nobody waits
	watched bool          // somebody asked
	dirty   bool          // a change happened since then
}

func (h *Hold) watching() *watch {
	if h.watch == nil {
		h.watch = new(watch)
	}
	return h.watch
}

// noTerms are the Terms of requests that have none. It is never written.
var noTerms Terms

func (r *Request) terms() *Terms {
	if r.Terms == nil {
		return &noTerms
	}
	return r.Terms
}

// at returns the age of the request as a wall clock in microseconds, or 0 for that of the call.
func (t *Terms) at() int64 {
	if t.Age.IsZero() {
		return 0
	}
	switch { // UnixMicro is defined for no other times
	case t.Age.Before(time.UnixMicro(1)):
		return 1
	case t.Age.After(time.UnixMicro(math.MaxInt64)):
		return math.MaxInt64
	}
	return t.Age.UnixMicro()
}

type holdState uint8

const (
	waiting holdState = iota
	held
	unlocked
	lost
	failed
	left    // lost, and its claim remains until Unlock
	expired // by Terms.AtMost
)

// Name returns the name of the resource.
func (h *Hold) Name() string { return h.request.Name }

// Cluster returns the name of the cluster whose nodes are asked.
func (h *Hold) Cluster() string { return h.client.cfg.Cluster }

// Mode returns the requested mode.
func (h *Hold) Mode() quorum.Mode { return h.request.Mode }

// Token returns the fencing token. It is valid if the lock was granted.
func (h *Hold) Token() uint64 { return h.token }

// Context returns the context that ends when the lock is no longer held.
func (h *Hold) Context() context.Context { return h.ctx }

// Ready returns a channel that is closed when the request is decided. Failure then tells the
// outcome.
func (h *Hold) Ready() <-chan struct{} { return h.ready }

// Failure returns why the request failed, or nil if the lock was granted. Call it after Ready is
// closed.
func (h *Hold) Failure() *Failure { return h.failure }

// Wait waits until the lock is held, and returns nil. If ctx ends first, it gives up the request.
// If watch is not nil, Wait calls it on this goroutine whenever what the request waits for may have
// changed.
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
			h.call(watch)
		}
	}
}

// call calls watch, which is the program's. If it does not return, because it panics or ends the
// goroutine, nobody waits for h any more, and nobody would unlock it.
func (h *Hold) call(watch func()) {
	returned := false
	defer func() {
		if !returned {
			h.client.machine.giveUp(h, context.Canceled)
		}
	}()
	watch()
	returned = true
}

// Request returns the request.
func (h *Hold) Request() *Request { return &h.request }

// GiveUpWaiting fails the request if it still waits.
func (h *Hold) GiveUpWaiting(cause error) { h.client.machine.giveUpWaiting(h, cause) }

// GiveUp fails the request if it still waits, and releases the lock if it is held.
func (h *Hold) GiveUp(cause error) { h.client.machine.cancel(h, cause) }

// Changed returns a channel that is closed when what the request waits for may have changed since
// the last call of Changed. The first call makes the client ask the nodes again from time to time,
// unless Terms.Watch has done so.
func (h *Hold) Changed() <-chan struct{} { return h.client.machine.changed(h) }

// Waiting returns the status of the request, or the zero Waiting if it does not wait.
func (h *Hold) Waiting() Waiting { return h.client.machine.waiting(h) }

// Wanted returns a channel that is closed when somebody else waits for the lock. The end of the
// lock does not close it.
func (h *Hold) Wanted() <-chan struct{} { return h.client.machine.wanted(h) }

// Stands returns how long the lock stays held without another message, or 0 if it is not held.
func (h *Hold) Stands() time.Duration { return h.client.machine.stands(h) }

// AwaitRefresh waits for the answers to a refresh that is in progress, if there is one. It returns
// nil if the lock is held then, and why it is not held otherwise. If ctx ends first, it returns
// ctx's error.
func (h *Hold) AwaitRefresh(ctx context.Context) error {
	if r := h.client.machine.refreshed(h); r != nil {
		defer h.client.machine.leaveRefresh(h, r)
		select {
		case <-r.done:
		case <-h.ctx.Done():
		case <-ctx.Done():
			return natsio.ContextError(ctx)
		}
	}
	return h.Ended()
}

// Ended returns why h, which was granted, is not held, or nil if it is held. It finds a loss that
// the loop has not noticed yet. The context of h may end a little later.
func (h *Hold) Ended() error {
	m := h.client.machine
	for {
		err, noticed := m.ended(h)
		if noticed {
			return err
		}
		m.tick()
	}
}

// Unlock releases the lock. It returns the reason if the lock was lost or has expired.
func (h *Hold) Unlock() error { return h.client.unlock(h) }

// holdContext is the parent of a lock's context. It has the values of the context of the request,
// and the Hold. It combines context.WithValue and context.WithoutCancel to save their memory.
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

// holdKey is the key of the *Hold in the contexts of locks.
type holdKey struct{}

// FromContext returns the innermost Hold whose context is ctx or an ancestor of it, or nil.
func FromContext(ctx context.Context) *Hold {
	h, _ := ctx.Value(holdKey{}).(*Hold)
	return h
}
