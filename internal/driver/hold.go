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
}

// Hold is one call's wish for a lock, and then the lock: Client.Start makes it, and it is
// over when it has failed, was unlocked, or is lost. Any goroutine may call its methods.
type Hold struct {
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
	lost  error // why; not written once the state is lost
}

type holdState uint8

const (
	waiting holdState = iota
	held
	unlocked
	lost
	failed
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
// wish up.
func (h *Hold) Wait(ctx context.Context) *Failure {
	select {
	case <-h.ready:
		return h.failure
	case <-ctx.Done():
		return h.client.machine.giveUp(h, natsio.ContextError(ctx))
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
