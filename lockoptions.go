package qlock

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/driver"
)

// LockOption changes a single call of Lock, RLock, TryLock, TryRLock, Do or Start. A nil
// LockOption is ignored.
type LockOption func(*lockOptions) error

type lockOptions struct {
	terms    driver.Terms
	shared   bool
	try      bool
	note     *string
	waitFunc func(Waiting)
}

// buildLockOptions is what opts say, nil if they say nothing.
func buildLockOptions(opts []LockOption) (*lockOptions, error) {
	if len(opts) == 0 {
		return nil, nil
	}
	o := new(lockOptions)
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(o); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// Note describes this lock for people, in place of the Locker's note; see WithNote for what
// becomes of it. Of goroutines of one Locker that share a claim, the first one's is shown.
func Note(note string) LockOption {
	return func(o *lockOptions) error {
		shown := shownNote(note)
		o.note = &shown
		return nil
	}
}

// HoldAtLeast keeps the name locked until d has passed since the lock was granted, also if it
// is unlocked before. It is for jobs that many schedulers start at nearly the same time: who
// comes a moment late finds the lock held, not free again. Unlock ends the lock's context and
// returns at once, as always, and the Locker gives the claim back later.
//
// If the program ends or the Locker is closed before, the nodes keep the claim for a lease
// (Locker.Lease) and no longer: choose a lease of d or more if it must survive that. A lock
// that is lost or evicted is not kept. d must be positive.
//
// The idea is ShedLock's lockAtLeastFor.
func HoldAtLeast(d time.Duration) LockOption {
	return func(o *lockOptions) error {
		o.terms.AtLeast = d
		return positive("HoldAtLeast", d)
	}
}

// HoldAtMost ends the lock when d has passed since it was granted: its context ends with
// cause ErrHoldExpired, it is given back when that and all contexts derived from it have
// ended, and Unlock returns ErrHoldExpired from then on. Code that ignores the end of its
// context goes on beside the next holder, which only the token keeps out (Lock.Token). d must
// be positive. The lease is another matter: it bounds how long a holder that is silent keeps
// others out.
func HoldAtMost(d time.Duration) LockOption {
	return func(o *lockOptions) error {
		o.terms.AtMost = d
		return positive("HoldAtMost", d)
	}
}

func positive(option string, d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("qlock: %s: %v is not positive", option, d)
	}
	return nil
}

// WithWaitFunc has f called while the lock is waited for, with what it waits for: once as
// soon as that is known, and again when it changes. The nodes are asked at least every third
// of a lease, so what f is told of them is at most that old. f is not called for a lock that
// is free.
//
// The goroutine that waits calls f. The call to Lock does not return before f does, so f must
// not block for long. It may call any method of the Locker. Start ignores this option:
// see Pending.Changed.
//
// A lock that is waited for in this way costs one more answer of each node, and a request
// every third of a lease while it waits. It costs no more than others if it is free.
func WithWaitFunc(f func(Waiting)) LockOption {
	return func(o *lockOptions) error {
		o.waitFunc, o.terms.Watch = f, f != nil
		return nil
	}
}

// WithAge says since when the caller has waited, if that is before the call: the lock is
// waited for in the place that a request made at t would have had. It is for programs that
// wait on behalf of others, and resume after a restart. A t in the future counts as now. Nodes
// believe it: see docs/security.md.
func WithAge(t time.Time) LockOption {
	return func(o *lockOptions) error {
		o.terms.Age = t
		return nil
	}
}

// WithManualRelease lets the holder decide when a lock that is evicted (Locker.Evict, qlock
// unlock --force) is given back. Its context ends at once with cause ErrEvicted, as without
// the option, but the nodes keep others out until the holder calls Unlock, or until the lease
// of the votes is over. It is for programs that hold locks on behalf of others, and have
// promised to hold them for a time (Lock.Stands).
func WithManualRelease() LockOption {
	return func(o *lockOptions) error {
		o.terms.Manual = true
		return nil
	}
}

// Shared makes Start ask for a shared lock, as RLock does. Other methods refuse it.
func Shared() LockOption {
	return func(o *lockOptions) error {
		o.shared = true
		return nil
	}
}

// Try makes Start ask as TryLock does: it fails as soon as it is known that somebody else is
// in the way. Other methods refuse it.
func Try() LockOption {
	return func(o *lockOptions) error {
		o.try = true
		return nil
	}
}
