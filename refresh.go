package qlock

import (
	"context"
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// What is held is kept by refreshing it: a Locker tells the nodes every third of its lease
// which claims still live, in one message for all of them, and counts for each how long
// the votes that confirmed it stand. When those of a quorum no longer do, the lock is
// lost, and its context ends. This file has what a program can say and see of that. The
// rules are C6 and C7 of docs/protocol.md, internal/client is the machine that follows
// them, and the loop in internal/driver calls it in time.

// WithLease sets how long locks outlive a holder that falls silent: a crashed
// holder blocks others for that long at most, and a holder that is cut off from
// the nodes learns of its loss after a little less. It is refreshed every third
// of it. At least 10 ms, at most the cluster's longest lease; whole milliseconds.
// Below a second, ordinary pauses of a busy machine begin to cost locks.
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

// Lease is the lease of the Locker's locks: what WithLease set; otherwise DefaultLease, or
// the cluster's longest if that is shorter. It does not change while the Locker lives.
func (l *Locker) Lease() time.Duration { return l.client.Lease() }

// WithRetention lets the Locker keep a lock for up to d after its last holder here
// has unlocked it, or until another client waits for it: who locks it again
// meanwhile has it without asking the nodes, in about a microsecond. Others get it
// within the time of two more messages than without. From the outside the lock
// looks held meanwhile: TryLock elsewhere may fail, and a crash leaves it held for
// the lease. Default: 0, nothing is kept.
//
// With or without it, goroutines that wait here for a lock that is held here get it
// from one another.
func WithRetention(d time.Duration) Option {
	return func(o *options) error {
		if d < 0 {
			return fmt.Errorf("qlock: retention %v is negative", d)
		}
		o.retention = d
		return nil
	}
}

// WithPassOn lets the Locker go on passing a lock among its own goroutines when other
// clients wait for it: to at most holders more of them, and to none that would begin
// later than within after the Locker heard that others wait. Zero sets no bound of that
// kind; one of the two must be above zero. Then, as without the option, the lock goes to
// whoever has waited longest anywhere. The next time that this Locker's turn comes, the
// bounds begin anew.
//
// Between goroutines of one Locker a lock passes in about a microsecond, between clients
// in the time of two messages. A crowd of goroutines in several clients that want the
// same name for moments is served many times faster with a bound of some tens of holders.
// The price is the order: a goroutine here may go before others elsewhere that have waited
// longer. Nobody starves, but each claim before a waiter may take the time of so many
// holders more, or so much time and one holder. Readers that join others count as
// holders. Default: off, which keeps the order of age among all clients.
func WithPassOn(holders int, within time.Duration) Option {
	return func(o *options) error {
		if holders < 0 || within < 0 || holders == 0 && within == 0 {
			return fmt.Errorf("qlock: WithPassOn(%d, %v): neither may be negative, and one must be above zero", holders, within)
		}
		o.passMost, o.passWithin = holders, within
		return nil
	}
}

// Context ends at the moment the lock is no longer held: with cause ErrLost when
// it was lost (context.Cause tells), with ErrUnlocked after Unlock or the
// Locker's Close. It carries the values, but not the deadline, of the context
// that the lock was asked for with. Do the work that the lock protects under it.
//
// It ends before anybody else can have the lock, and so do the contexts derived from
// it. To end those takes about a third of a microsecond each: for so long a loss may
// come late, if there are more than thousands.
func (l *Lock) Context() context.Context { return l.hold.Context() }
