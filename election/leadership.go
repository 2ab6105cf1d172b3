package election

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/qlock/qlock"
)

// Leadership is the time in which a candidate is, or was, the leader: Campaign makes it. Its
// methods may be called from several goroutines.
type Leadership struct {
	election *Election
	lock     *qlock.Lock
	prefers  *qlock.Lock // nil: no candidate is preferred
	over     sync.Once   // the Election may campaign again

	// turn guards what follows. It is a channel, since a proclamation may have to wait, and
	// its caller's context may end.
	turn      chan struct{}
	number    uint64         // of the last proclamation
	proclaims [2]*qlock.Lock // by number modulo 2; nil: none

	mu    sync.Mutex // guards what follows
	value string
}

func newLeadership(e *Election, lock, preferred *qlock.Lock, value string) *Leadership {
	l := &Leadership{election: e, lock: lock, prefers: preferred, turn: make(chan struct{}, 1), value: value}
	// What was proclaimed ends with the leadership, by whatever that ends.
	context.AfterFunc(lock.Context(), func() {
		l.end()
		if preferred != nil {
			_ = preferred.Unlock(context.Background())
		}
		l.turn <- struct{}{}
		for i, k := range l.proclaims {
			if k != nil {
				_ = k.Unlock(context.Background())
				l.proclaims[i] = nil
			}
		}
		<-l.turn
	})
	return l
}

func (l *Leadership) end() { l.over.Do(func() { l.election.running.Store(false) }) }

// Name is the name of the election.
func (l *Leadership) Name() string { return l.election.name }

// Context ends when the leadership does: with cause qlock.ErrLost when it was lost
// (context.Cause tells), and with qlock.ErrUnlocked after Resign. It ends before another
// candidate leads. It carries the values, but not the deadline, of the context that
// Campaign was called with.
func (l *Leadership) Context() context.Context { return l.lock.Context() }

// Token is the term: a fencing token that is greater than the term of every leader before.
// Send it with each write, and let the store reject a write with a lower one than the
// highest it has seen. qlock.Token of the context is the same.
func (l *Leadership) Token() uint64 { return l.lock.Token() }

// Value is what was given to Campaign, or proclaimed last.
func (l *Leadership) Value() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

// HandOver is closed when a preferred candidate campaigns, for a leader whose Election has the
// option YieldsToPreferred: finish, and Resign. For others it is nil, and never ready. It may
// stay open when the leadership ends, so wait for the end of Context as well.
func (l *Leadership) HandOver() <-chan struct{} {
	if l.prefers == nil || l.election.preference != prefers {
		return nil
	}
	return l.prefers.Wanted()
}

// Proclaim replaces the value that others see of the leader. When it returns nil, whoever
// asks sees the new one, as long as this leadership lasts. It costs one round trip, and one
// lock more that is held while the leadership lasts. It is for what changes now and then: if
// several are proclaimed within a moment, Leader may return an earlier one.
//
// Errors: ErrInvalidValue; qlock.ErrNotHeld with the cause if the leadership is over; those
// of qlock.Locker.Lock if ctx ends. The value is unchanged then, though others may have seen
// the new one for a moment.
func (l *Leadership) Proclaim(ctx context.Context, value string) error {
	text, err := encode(value)
	if err != nil {
		return err
	}
	over := func() error {
		return fmt.Errorf("election %q: %w: the leadership is over: %w", l.election.name, qlock.ErrNotHeld, context.Cause(l.Context()))
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("election %q: not proclaimed, as another value still is being: %w", l.election.name, context.Cause(ctx))
	}
	defer func() { <-l.turn }()
	if l.Context().Err() != nil {
		return over()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.Context(), func() { cancel(context.Cause(l.Context())) })()
	if err := l.proclaim(ctx, text); err != nil {
		if l.Context().Err() != nil {
			return over()
		}
		return fmt.Errorf("election %q: not proclaimed: %w", l.election.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
	return nil
}

// proclaim publishes a value: as the note of a lock. There are two such locks, for the
// numbers that are even and odd. The one before stays until it is replaced, so that at no
// moment there is none. Call it in turn.
func (l *Leadership) proclaim(ctx context.Context, text string) error {
	number := l.number + 1
	i := number % 2
	if old := l.proclaims[i]; old != nil {
		_ = old.Unlock(ctx) // of no use, as a later one is there
		l.proclaims[i] = nil
	}
	part := partValue0
	if i == 1 {
		part = partValue1
	}
	k, err := l.election.locker.Lock(qlock.ContextWithNote(ctx, fmt.Sprintf("%d.%d %s", l.Token(), number, text)), l.election.lock(part))
	if err != nil {
		return err
	}
	if l.Context().Err() != nil {
		_ = k.Unlock(ctx)
		return context.Cause(l.Context())
	}
	l.number, l.proclaims[i] = number, k
	context.AfterFunc(k.Context(), func() { l.repeat(k) })
	return nil
}

// repeat publishes the value anew if the lock that has it was lost, and the leadership was
// not: somebody evicted it, perhaps.
func (l *Leadership) repeat(k *qlock.Lock) {
	if !errors.Is(context.Cause(k.Context()), qlock.ErrLost) {
		return
	}
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.proclaims[l.number%2] != k || l.Context().Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(l.Context(), cancel)()
	text, _ := encode(l.Value()) // it was proclaimed before
	_ = l.proclaim(ctx, text)    // it fails if the leadership ends, or the Locker is closed
}

// Resign ends the leadership, and its context; the next candidate leads. It returns
// qlock.ErrLost if the leadership was lost before, and nil otherwise, also when it is called
// again. It does not wait for the nodes: as after qlock.Lock.Unlock, close the Locker before
// the program ends, or the others wait for the lease. An ended ctx does not keep it from
// its work.
func (l *Leadership) Resign(ctx context.Context) error {
	if l.prefers != nil {
		_ = l.prefers.Unlock(ctx) // first, or the next candidate might find it held
	}
	err := l.lock.Unlock(ctx)
	l.end()
	if err != nil {
		return fmt.Errorf("election %q: %w", l.election.name, err)
	}
	return nil
}
