package qlock

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/subject"
)

// LockSet is several exclusive locks that are, or were, held together. Locker.LockAll and
// Locker.TryLockAll make it. Its methods may be called from several goroutines.
type LockSet struct {
	locks []*Lock // in the order of their names, which is that in which they were acquired
}

// LockAll acquires the exclusive locks on all the names, or on none of them. It acquires
// one after the other, in the order of their names, and waits for each as Lock does. As
// long as every client acquires several locks by LockAll, no clients wait for each other
// in a circle: a client that waits for a name holds only names that come before it. A
// program that holds a lock already when it calls LockAll can still cause such a circle.
//
// It costs one round trip for each name. While it waits for one name, it holds those that
// come before it, and other clients wait for these. A name that is given twice counts
// once. Locks on different names do not exclude each other, whatever the names say: a
// lock on orders does not include orders.42.
//
// If a name cannot be locked, LockAll releases what it has acquired. Errors are those of
// Lock, and errors.As finds the *LockError, whose Name is the name that was in the way;
// ErrLost if a lock was lost while it waited for another; and ErrInvalidName also if
// there are no names.
func (l *Locker) LockAll(ctx context.Context, names ...string) (*LockSet, error) {
	return l.lockAll(ctx, driver.Wait, names)
}

// TryLockAll is like LockAll, but fails with ErrHeld as soon as it is known that another
// claim is in the way of one of the names. It is bounded by ctx, and by the lease if ctx
// has no deadline. Of several calls that are in each other's way all may fail.
func (l *Locker) TryLockAll(ctx context.Context, names ...string) (*LockSet, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.client.Lease())
		defer cancel()
	}
	return l.lockAll(ctx, driver.Try, names)
}

func (l *Locker) lockAll(ctx context.Context, patience driver.Patience, names []string) (*LockSet, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: no names are given, at least one is needed", ErrInvalidName)
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, name := range names { // before anything is acquired
		if _, err := subject.EncodeName(name); err != nil {
			return nil, err
		}
	}
	s := &LockSet{locks: make([]*Lock, 0, len(names))}
	fail := func(err error) (*LockSet, error) {
		if lost := s.Unlock(ctx); lost != nil {
			err = lost // of the one that it waited for there is nothing to say any more
		}
		if len(names) > 1 {
			err = fmt.Errorf("qlock: none of %d locks is held: %w", len(names), err)
		}
		return nil, err
	}
	// The context of each lock is attached to that of the one before. So that of the last
	// ends when any of them is lost, without a goroutine, and Held sees it.
	parent, lifetime := ctx, driver.Detached
	for _, name := range names {
		r := driver.Request{Name: name, Mode: exclusive, Patience: patience, Lifetime: lifetime}
		if _, err := l.prepare(ctx, &r, nil); err != nil {
			return fail(err)
		}
		k := newLock()
		l.client.Start(parent, &k.hold, r)
		ended := ctx
		select {
		case <-k.hold.Ready():
		case <-ctx.Done():
		case <-parent.Done(): // one that was acquired before is lost: the rest is of no use
			ended = parent
		}
		if failure := k.hold.Wait(ended, nil); failure != nil {
			return fail(l.lockError(&r, failure))
		}
		s.locks = append(s.locks, k)
		parent, lifetime = k.hold.Context(), driver.Attached
	}
	if parent.Err() != nil {
		return fail(fmt.Errorf("qlock: lock %s: %w", quote(names[len(names)-1]), context.Cause(parent)))
	}
	return s, nil
}

// Names lists the names of the locks, in their order, each once.
func (s *LockSet) Names() []string {
	names := make([]string, len(s.locks))
	for i, k := range s.locks {
		names[i] = k.Name()
	}
	return names
}

// Token is the fencing token of the lock on the name (Lock.Token), or 0 if the name is
// not among Names. Each name has a token of its own: send with a write the token of the
// name that protects what is written.
func (s *LockSet) Token(name string) uint64 {
	for _, k := range s.locks {
		if k.Name() == name {
			return k.Token()
		}
	}
	return 0
}

// Context ends when any of the locks is no longer held: with a cause that is ErrLost when
// one of them was lost, and ErrUnlocked after Unlock or the Locker's Close. The other
// locks are still held then, until Unlock. As Lock.Context, it carries the values of the
// context that the locks were asked for with, and ends before another client can hold any
// of the locks.
//
// Held asserts that all of the locks are held. Token of this context is the token of the
// last of the Names: use LockSet.Token.
func (s *LockSet) Context() context.Context { return s.locks[len(s.locks)-1].Context() }

// Unlock ends the context and releases all the locks. It returns nil if all of them were
// held until now, and otherwise an error that is ErrLost and names those that were lost. It
// does so also when called again. What Lock.Unlock says of programs that end is true here
// as well.
func (s *LockSet) Unlock(ctx context.Context) error {
	var lost []error
	for _, k := range slices.Backward(s.locks) { // the last first: its context is the set's
		if err := k.Unlock(ctx); err != nil {
			lost = append(lost, fmt.Errorf("qlock: lock %s: %w", quote(k.Name()), err))
		}
	}
	slices.Reverse(lost)
	return errors.Join(lost...)
}
