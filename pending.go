package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
)

// Waiting describes what a call waits for, as far as it is known.
type Waiting struct {
	Name   string        // name of the resource
	For    time.Duration // time since the call
	Holder *Holder       // who is in the way; nil if nobody is, or if that is not known

	// Ahead is the number of claims ahead of this one in the queue, without the holder, at the node
	// where that is highest. It is meaningful only if Queued is set.
	Ahead  int
	Queued bool

	Need int // number of votes needed
	// Nodes are the last answers of the nodes, sorted by name. There are none while another
	// goroutine of this Locker is in the way.
	Nodes []NodeAnswer
	Lists []ListVotes // while the list of nodes changes: see LockError

	repeated bool // the nodes have had time to answer
}

// Votes returns the number of nodes that have voted for the claim.
func (w Waiting) Votes() int { return votesOf(w.Nodes) }

// String returns a description in one line.
func (w Waiting) String() string {
	text := fmt.Sprintf("waiting for %s for %v", quote(w.Name), w.For.Round(time.Millisecond))
	switch {
	case w.Holder != nil:
		text += ": " + w.Holder.String()
		if w.Queued {
			text += fmt.Sprintf(", %d ahead in the queue", w.Ahead)
		}
	case len(w.Nodes) > 0:
		text += ": " + votesText(w.Nodes, w.Need, w.Lists)
		var others []string
		for _, a := range w.Nodes {
			if a.Answer != AnswerVoted {
				others = append(others, fmt.Sprintf("%s %s", a.Node, a.Answer))
			}
		}
		if len(others) > 0 {
			text += ": " + strings.Join(others, ", ")
		}
	}
	return text
}

// telling reports whether there is a reason to wait other than that the first answers are still on
// their way.
func (w *Waiting) telling() bool {
	return w.Holder != nil || w.repeated || slices.ContainsFunc(w.Nodes, func(a NodeAnswer) bool { return a.Answer != AnswerVoted && a.Answer != AnswerSilent })
}

// same reports whether w and o describe the same, except for times, which change all the while. What
// single nodes answer matters only if it is not known who is in the way.
func (w *Waiting) same(o *Waiting) bool {
	if w.Ahead != o.Ahead || w.Queued != o.Queued || (w.Holder == nil) != (o.Holder == nil) {
		return false
	}
	if a, b := w.Holder, o.Holder; a != nil {
		return a.Client == b.Client && a.Shared == b.Shared && a.Held == b.Held && a.Own == b.Own && a.left == b.left && (a.Kept > 0) == (b.Kept > 0)
	}
	return w.Need == o.Need && slices.EqualFunc(w.Nodes, o.Nodes, func(a, b NodeAnswer) bool { return a.Node == b.Node && a.Answer == b.Answer })
}

// Pending is a request for a lock that Start made. Its methods are safe for concurrent use, but
// only one goroutine should wait with Changed.
type Pending struct {
	locker *Locker
	lock   *Lock
	name   string
	err    error         // of a request that could not be made
	done   chan struct{} // closed, of a request that could not be made; otherwise nil
	stop   func() bool   // stops watching the context of Start
}

// Start requests the lock on name and returns at once. The lock is exclusive unless the option
// Shared is given. A request has no goroutine and no timer of its own: ten thousand waiting
// requests cost memory, and one refresh for all together.
//
// If ctx ends while the request waits, the request fails with the errors of Lock. Once the lock is
// held, the end of ctx does not affect it. Start itself returns no error: Pending.Lock returns all
// errors, including ErrInvalidName. The caller must wait for Done or call Cancel, because a lock
// that is granted stays held until it is unlocked. ctx remembers the request, which costs memory
// for as long as ctx lives, until Pending.Lock has returned the outcome, or Cancel was called. If
// ctx is not one of package context, the request has a goroutine until then.
func (l *Locker) Start(ctx context.Context, name string, opts ...LockOption) *Pending {
	p := &Pending{locker: l, name: name, lock: newLock(), stop: func() bool { return false }}
	r := driver.Request{Name: name}
	o, err := l.prepare(ctx, &r, opts)
	if err != nil {
		p.err, p.done = err, make(chan struct{})
		close(p.done)
		return p
	}
	if o != nil {
		o.terms.Watch = false // nobody waits here for whom the nodes would be asked
		if o.shared {
			r.Mode = shared
		}
		if o.try {
			r.Patience = driver.Try
		}
	}
	l.client.Start(ctx, &p.lock.hold, r)
	if ctx.Done() != nil {
		p.stop = context.AfterFunc(ctx, func() { p.lock.hold.GiveUpWaiting(natsio.ContextError(ctx)) })
	}
	return p
}

// Name returns the name of the resource.
func (p *Pending) Name() string { return p.name }

// Done returns a channel that is closed when the request is decided: the lock is held or will not
// be. Lock returns which.
func (p *Pending) Done() <-chan struct{} {
	if p.done != nil {
		return p.done
	}
	return p.lock.hold.Ready()
}

// Lock returns the lock if it was granted, and otherwise the error: a *LockError, ErrInvalidName,
// or the error of an invalid LockOption. Before Done is closed, it returns nil and an error that
// is ErrPending.
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

// Wait waits until the request is decided, and returns what Lock returns. If ctx ends first, Wait
// returns ctx's error, and the request continues.
func (p *Pending) Wait(ctx context.Context) (*Lock, error) {
	select {
	case <-p.Done():
		return p.Lock()
	case <-ctx.Done():
		return nil, natsio.ContextError(ctx)
	}
}

// Status describes what the request waits for, as far as it is known. The nodes are asked to report
// it from the first call of Changed on. Once the request no longer waits, only Name is set.
func (p *Pending) Status() Waiting {
	if p.err != nil {
		return Waiting{Name: p.name}
	}
	return p.locker.waiting(p.lock)
}

// Changed returns a channel that is closed when Status may have changed since the last call of
// Changed. Call Changed, then Status, then wait for the channel. Only one goroutine should wait in
// this way. From the first call on, the nodes are asked again every third of a lease, as with
// WithWaitFunc. The channel is also closed when the request is decided, and nothing changes after
// that: wait for Done as well.
func (p *Pending) Changed() <-chan struct{} {
	if p.err != nil {
		return p.done
	}
	return p.lock.hold.Changed()
}

// Cancel gives up the request. If the lock has been granted already, or is granted at the same
// moment, Cancel unlocks it. Calling Cancel again does nothing.
func (p *Pending) Cancel() { p.CancelCause(nil) }

// CancelCause is like Cancel, with a reason. If the request still waits, errors.Is finds cause as
// well as context.Canceled in the error of Lock. A nil cause is the same as Cancel.
func (p *Pending) CancelCause(cause error) {
	if p.err != nil {
		return
	}
	switch {
	case cause == nil:
		cause = context.Canceled
	case !errors.Is(cause, context.Canceled):
		cause = fmt.Errorf("%w: %w", context.Canceled, cause)
	}
	p.stop()
	p.lock.hold.GiveUp(cause)
}

// String returns a description in one line, for logs: what the request waits for, or its outcome.
func (p *Pending) String() string {
	k, err := p.Lock()
	switch {
	case err == nil:
		return k.String()
	case errors.Is(err, ErrPending):
		return p.Status().String()
	}
	return err.Error()
}

// LogValue returns the text of String, for package slog.
func (p *Pending) LogValue() slog.Value { return slog.StringValue(p.String()) }

// waiting returns the status of a lock that is waited for.
func (l *Locker) waiting(k *Lock) Waiting {
	w := k.hold.Waiting()
	e := newLockError("", k.Name(), &driver.Failure{Report: w.Report, IsOwn: w.IsOwn, Own: w.Own})
	if e.Holder != nil && w.IsOwn {
		e.Holder.Client = l.opt.name
	}
	return Waiting{Name: k.Name(), For: w.For, Holder: e.Holder, Ahead: w.Ahead, Queued: w.Known, Need: e.Need, Nodes: e.Nodes, Lists: e.Lists, repeated: w.Report.Repeated}
}
