package qlock

import (
	"context"
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// A Locker keeps its locks by refreshing them. Every third of the lease it sends the nodes one
// message that lists all its live claims. For each claim it tracks how long the votes that
// confirmed it are valid. When fewer than a quorum of votes are valid, the lock is lost and its
// context ends. This file has the part of this that programs configure and see. The rules are C6
// and C7 of docs/protocol.md. The machine in internal/client follows them, and the loop in
// internal/driver calls that machine in time.

// WithLease sets the lease: how long a lock outlives a holder that falls silent. A crashed holder
// blocks others for that long at most. A holder that is cut off from the nodes learns of its loss
// after a little less. The Locker refreshes its locks every third of the lease. The lease must be
// at least 10 ms, at most the longest that the cluster allows, and in whole milliseconds; otherwise
// New fails with ErrInvalidLease. With a lease below 1 s, ordinary pauses of a busy machine begin
// to cost locks.
func WithLease(d time.Duration) Option {
	return func(o *options) error {
		if d < wire.MinLease || d > wire.MaxLease {
			return fmt.Errorf("%w: %v: it must be within %v and %v", ErrInvalidLease, d, wire.MinLease, wire.MaxLease)
		}
		if d%time.Millisecond != 0 {
			return fmt.Errorf("%w: %v is not in whole milliseconds", ErrInvalidLease, d)
		}
		o.lease = d
		return nil
	}
}

// Lease returns the lease of the Locker's locks: the one that WithLease set, or else DefaultLease
// or the longest that the cluster allows, whichever is shorter. When an operator lowers the longest
// lease of the running cluster below it (package nodes), the Locker lowers its lease to that. It
// does not raise it again: that needs a new Locker.
func (l *Locker) Lease() time.Duration { return l.client.Lease() }

// MaxLease returns the longest lease that the cluster allows, as far as the Locker knows. While the
// nodes are changing it, that is the shorter one of before and after. The Locker learns of a change
// from the answers to its requests, so one that requests nothing still returns the former value.
// Members asks the nodes.
func (l *Locker) MaxLease() time.Duration { return l.client.Cluster().MaxTTL }

// WithRetention makes the Locker retain a lock after its last local holder has unlocked it, for up
// to d or until another client waits for it. Until then, a goroutine of this Locker that locks the
// name again gets the lock in about a microsecond, without asking the nodes. Another client gets
// the lock at most two message delays later than without retention. To other clients, a retained
// lock looks held: their TryLock may fail, and if this program crashes, the lock stays held for the
// lease. d must not be negative. Default: 0, which retains nothing.
//
// With or without retention, goroutines of one Locker that wait for a lock that the Locker holds
// get it from one another.
func WithRetention(d time.Duration) Option {
	return func(o *options) error {
		if d < 0 {
			return fmt.Errorf("qlock: retention %v is negative", d)
		}
		o.retention = d
		return nil
	}
}

// WithPassOn lets the Locker go on passing a lock among its own goroutines while other clients wait
// for it. It passes the lock to at most holders more goroutines, and to none that would begin to
// hold it later than within after the Locker heard that others wait. Zero means no bound of that
// kind. Neither value may be negative, and at least one must be greater than zero. After that, as
// without the option, the lock goes to the oldest request of any client. The bounds begin anew at
// this Locker's next turn.
//
// A lock passes between goroutines of one Locker in about a microsecond, and between clients in two
// message delays. If many goroutines in several clients want the same name for a short time each, a
// bound of some tens of holders serves them many times faster. The price is the order: a goroutine
// of this Locker may overtake waiters of other clients that have waited longer. No waiter starves,
// but each claim ahead of it may take longer by the time of so many holders, or by within and the
// time of one holder. Readers that join other readers count as holders. Default: off, which keeps
// the order of age among all clients.
func WithPassOn(holders int, within time.Duration) Option {
	return func(o *options) error {
		if holders < 0 || within < 0 || holders == 0 && within == 0 {
			return fmt.Errorf("qlock: WithPassOn(%d, %v): neither may be negative, and one must be above zero", holders, within)
		}
		o.passMost, o.passWithin = holders, within
		return nil
	}
}

// Context returns a context that ends at the moment the lock is no longer held. Do the work that
// the lock protects under it. Its cause (context.Cause) is ErrLost if the lock was lost,
// ErrHoldExpired if HoldAtMost ended it, and ErrUnlocked after Unlock or Locker.Close; compare with
// errors.Is. The context has the values, but not the deadline, of the context that the lock was
// requested with.
//
// The context, and all contexts derived from it, end before anybody else can hold the lock. Ending
// the derived ones takes about a third of a microsecond each. If there are more than thousands of
// them, a loss may come late by that time.
func (l *Lock) Context() context.Context { return l.hold.Context() }
