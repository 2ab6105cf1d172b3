package qlock

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/driver"
)

// LockOption configures a single call of Lock, RLock, TryLock, TryRLock, Do or Start. A nil
// LockOption is ignored. The call fails with the error of an invalid one.
type LockOption func(*lockOptions) error

type lockOptions struct {
	terms    driver.Terms
	shared   bool
	try      bool
	note     *string
	waitFunc func(Waiting)
}

// buildLockOptions applies opts. It returns nil if there are none, so that the usual call allocates
// nothing.
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

// Note describes this lock for people, in place of the Locker's note; see WithNote for how it is
// shown. If goroutines of one Locker share a claim, the note of the first one is shown.
func Note(note string) LockOption {
	return func(o *lockOptions) error {
		shown := shownNote(note)
		o.note = &shown
		return nil
	}
}

// HoldAtLeast keeps the name locked until d has passed since the grant, even if the lock is
// unlocked earlier. It is for jobs that many schedulers start at nearly the same time: a scheduler
// that comes a moment late finds the lock held, and not free again. Unlock ends the lock's context
// and returns at once, as always; the Locker releases the claim later.
//
// If the program ends or the Locker is closed earlier, the nodes keep the claim for a lease
// (Locker.Lease) and no longer. If the claim must survive that, choose a lease of d or more. A lock
// that is lost or evicted is not kept. d must be positive.
//
// The idea comes from ShedLock's lockAtLeastFor.
func HoldAtLeast(d time.Duration) LockOption {
	return func(o *lockOptions) error {
		o.terms.AtLeast = d
		return positive("HoldAtLeast", d)
	}
}

// HoldAtMost ends the lock when d has passed since the grant: the lock's context ends with cause
// ErrHoldExpired, and Unlock returns ErrHoldExpired from then on. The lock is released when that
// context and all contexts derived from it have ended, or when HoldAtLeast allows it, if that is
// later. Code that ignores the end of its context
// runs on while the next holder works; only the token keeps its writes out (Lock.Token). d must
// be positive. HoldAtMost is independent of the lease, which limits how long a silent holder
// blocks others. Lock.Stands is never longer than what is left of d.
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

// WithWaitFunc makes the call run f while it waits for the lock, with a description of what it
// waits for: once as soon as that is known, and again when somebody else is in the way or the place in
// the queue changes, or, while it is not known who is in the way, when what the nodes answer changes.
// The nodes are asked at least every third of a lease, so what they report to f is at most that old. f
// is not called for a lock that is free.
//
// The goroutine that waits calls f. The call to Lock does not return before f does, so f must not
// block for long. f may call any method of the Locker. If f panics, the call gives up the request
// before the panic goes on. Start ignores this option: see Pending.Changed.
//
// Waiting with this option costs one more answer of each node, and one request every third of a
// lease. A lock that is free costs no more than without it.
func WithWaitFunc(f func(Waiting)) LockOption {
	return func(o *lockOptions) error {
		o.waitFunc, o.terms.Watch = f, f != nil
		return nil
	}
}

// WithAge sets the time since when the caller has waited, if that is before the call. The request
// gets the place in the queue that a request made at t would have. It is for programs that wait on
// behalf of others and resume after a restart. A t in the future counts as now. The nodes do not
// verify t: see docs/security.md.
func WithAge(t time.Time) LockOption {
	return func(o *lockOptions) error {
		o.terms.Age = t
		return nil
	}
}

// WithManualRelease lets the holder decide when it releases a lock that ends before the holder
// unlocks it: one that is evicted (Locker.Evict, qlock unlock --force) or lost for any reason, such
// as a wall clock that was set or a change of nodes. The lock's context ends at once with the same
// cause as without the option. But the Locker does not tell the nodes to give the lock to others
// until the holder calls Unlock, or for a lease if it does not. It is for programs that hold locks
// on behalf of others and have promised to hold them for a time (Lock.Stands): that promise can be
// kept in every case but one.
//
// The one case is a process that was copied while it ran, such as a virtual machine that was
// restored from a snapshot beside the original: the copy may release the lock. See rule C12 in
// docs/protocol.md. The option has no effect on HoldAtMost, on Locker.Close, or on a lock that is
// unlocked and stays because of HoldAtLeast.
func WithManualRelease() LockOption {
	return func(o *lockOptions) error {
		o.terms.Manual = true
		return nil
	}
}

// Shared makes Start ask for a shared lock, as RLock does. Other methods fail with this option.
func Shared() LockOption {
	return func(o *lockOptions) error {
		o.shared = true
		return nil
	}
}

// Try makes Start ask as TryLock does: the request fails as soon as it is known that another claim
// is in the way. Other methods fail with this option.
func Try() LockOption {
	return func(o *lockOptions) error {
		o.try = true
		return nil
	}
}
