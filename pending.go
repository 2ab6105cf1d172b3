package qlock

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
)

// Waiting is what a call that waits for a lock waits for, as far as it is known.
type Waiting struct {
	Name   string        // of the resource
	For    time.Duration // since the call
	Holder *Holder       // who is in the way; nil: not known, or nobody

	// Ahead is how many claims stand before this one in the queue, where it is longest, the
	// holder not among them. It is meaningful if Queued is set.
	Ahead  int
	Queued bool

	Need  int          // votes needed
	Nodes []NodeAnswer // what each node has said, by name; none while another goroutine of this Locker is in the way

	repeated bool // the nodes had the time to answer
}

// Votes is the number of nodes that have given their vote.
func (w *Waiting) Votes() int { return votesOf(w.Nodes) }

// String says it in a line.
func (w Waiting) String() string {
	text := fmt.Sprintf("waiting for %s for %v", quote(w.Name), w.For.Round(time.Millisecond))
	switch {
	case w.Holder != nil:
		text += ": " + w.Holder.String()
		if w.Queued {
			text += fmt.Sprintf(", %d ahead in the queue", w.Ahead)
		}
	case len(w.Nodes) > 0:
		text += fmt.Sprintf(": %d of %d nodes voted, %d are needed", w.Votes(), len(w.Nodes), w.Need)
	}
	return text
}

// telling reports whether there is a reason to wait, and not only that the first answers are
// still on their way.
func (w *Waiting) telling() bool {
	return w.Holder != nil || w.repeated || slices.ContainsFunc(w.Nodes, func(a NodeAnswer) bool { return a.Answer != AnswerVoted && a.Answer != AnswerSilent })
}

// same reports whether two say the same but for times that pass by themselves.
func (w *Waiting) same(o *Waiting) bool {
	if w.Ahead != o.Ahead || w.Queued != o.Queued || w.Need != o.Need || len(w.Nodes) != len(o.Nodes) || (w.Holder == nil) != (o.Holder == nil) {
		return false
	}
	if a, b := w.Holder, o.Holder; a != nil && (a.Client != b.Client || a.Shared != b.Shared || a.Held != b.Held || a.Own != b.Own) {
		return false
	}
	for i := range w.Nodes {
		if w.Nodes[i].Node != o.Nodes[i].Node || w.Nodes[i].Answer != o.Nodes[i].Answer {
			return false
		}
	}
	return true
}

// Pending is a request for a lock that was started and not waited for. Its methods may be
// called from several goroutines.
type Pending struct {
	locker *Locker
	lock   *Lock
	name   string
	err    error         // of a request that could not be made
	done   chan struct{} // of such
	stop   func() bool   // no longer looks at the context that it was started with
}

// Start asks for the lock on name, exclusive unless the option Shared is given, and returns
// at once. It has neither a goroutine nor a timer of its own: ten thousand that wait cost
// memory and one refresh together.
//
// If ctx ends while the request waits, the request fails with the errors of Lock. It has no
// part in a lock that is held. Every error, also ErrInvalidName, comes from Pending.Lock.
// Whoever starts a request must look at Done, or call Cancel: a lock that is granted is held
// until it is unlocked.
func (l *Locker) Start(ctx context.Context, name string, opts ...LockOption) *Pending {
	p := &Pending{locker: l, name: name, lock: newLock(), stop: func() bool { return false }}
	r := driver.Request{Name: name}
	o, err := l.prepare(ctx, &r, opts)
	if err != nil {
		p.err, p.done = err, make(chan struct{})
		close(p.done)
		return p
	}
	if o != nil && o.shared {
		r.Mode = shared
	}
	if o != nil && o.try {
		r.Patience = driver.Try
	}
	l.client.Start(ctx, &p.lock.hold, r)
	if ctx.Done() != nil {
		p.stop = context.AfterFunc(ctx, func() { p.lock.hold.GiveUpWaiting(natsio.ContextError(ctx)) })
	}
	return p
}

// Name is the name of the resource.
func (p *Pending) Name() string { return p.name }

// Done is closed when the lock is held, or will not be. Lock tells which.
func (p *Pending) Done() <-chan struct{} {
	if p.done != nil {
		return p.done
	}
	return p.lock.hold.Ready()
}

// Lock is the lock that was granted, or why it was not: a *LockError, or ErrInvalidName. Before
// Done is closed it is neither: nil and an error that is ErrPending.
func (p *Pending) Lock() (*Lock, error) {
	if p.err != nil {
		return nil, p.err
	}
	select {
	case <-p.lock.hold.Ready():
	default:
		return nil, fmt.Errorf("%w: %s", ErrPending, quote(p.name))
	}
	p.stop()
	if f := p.lock.hold.Failure(); f != nil {
		return nil, p.locker.lockError(p.lock.hold.Request(), f)
	}
	return p.lock, nil
}

// Wait waits until the lock is held or will not be, and returns what Lock does. If ctx ends
// before that, it returns ctx's error, and the request goes on.
func (p *Pending) Wait(ctx context.Context) (*Lock, error) {
	select {
	case <-p.Done():
		return p.Lock()
	case <-ctx.Done():
		return nil, natsio.ContextError(ctx)
	}
}

// Status tells what the request waits for, as far as it is known: the nodes are asked to say
// so from the first call of Changed on. Status is the zero Waiting but for the name once the
// request does not wait any more.
func (p *Pending) Status() Waiting {
	if p.err != nil {
		return Waiting{Name: p.name}
	}
	return p.locker.waiting(p.lock)
}

// Changed is closed when Status may have changed since the last call of Changed: call Changed,
// then Status, then wait. Only one goroutine should wait in this way. From the first call on
// the nodes are asked again every third of a lease, as with WithWaitFunc.
func (p *Pending) Changed() <-chan struct{} {
	if p.err != nil {
		return p.done
	}
	return p.lock.hold.Changed()
}

// Cancel gives the request up. If it was granted already, or in the same moment, the lock is
// unlocked. Calling it again does nothing.
func (p *Pending) Cancel() {
	if p.err == nil {
		p.stop()
		p.lock.hold.GiveUp(context.Canceled)
	}
}

// waiting is how a lock stands that is waited for.
func (l *Locker) waiting(k *Lock) Waiting {
	w := k.hold.Waiting()
	e := newLockError("", k.Name(), &driver.Failure{Report: w.Report, IsOwn: w.IsOwn, Own: w.Own})
	if e.Holder != nil && w.IsOwn {
		e.Holder.Client = l.opt.name
	}
	return Waiting{Name: k.Name(), For: w.For, Holder: e.Holder, Ahead: w.Ahead, Queued: w.Known, Need: e.Need, Nodes: e.Nodes, repeated: w.Report.Repeated}
}
