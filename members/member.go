package members

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/qlock/qlock"
)

// ErrLeft is the cause with which a member's context ends after Leave.
var ErrLeft = errors.New("members: the member left the group")

// Member is a membership that this process has, or had. Its methods may be called from
// several goroutines.
type Member struct {
	group *Group
	id    string
	lock  *qlock.Lock
	ctx   context.Context
	end   context.CancelCauseFunc

	turn chan struct{} // whose SetMeta it is

	mu    sync.Mutex // guards what follows
	left  bool
	meta  string
	n     uint64      // of the metadata
	extra *qlock.Lock // for the metadata; nil until it changes
	stop  func() bool // keeps the end of extra from being the end of the member
}

// Join makes this process a member of the group under an id, with metadata that List and
// Watch show to others: at most 256 bytes of printable text. ctx ends the wait, not the
// membership.
//
// If another process has the id, Join waits until it leaves, or until its lease has ended.
// So a process that was killed and is started again under the same id joins after the lease
// of its former life. Give ctx a deadline to bound this.
//
// Errors are ErrInvalid and those of qlock.Locker.Lock: ErrHeld if another member had the
// id until ctx ended, ErrNoQuorum, ErrRefused, ErrClosed.
func (g *Group) Join(ctx context.Context, id, meta string) (*Member, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := checkMeta(meta); err != nil {
		return nil, err
	}
	lock, err := g.locker.Lock(qlock.ContextWithNote(ctx, meta), memberLock(g.name, id))
	if err != nil {
		return nil, fmt.Errorf("members: join group %s as %q: %w", g.name, id, err)
	}
	m := &Member{group: g, id: id, lock: lock, meta: meta, turn: make(chan struct{}, 1)}
	m.ctx, m.end = context.WithCancelCause(lock.Context())
	context.AfterFunc(lock.Context(), func() { _ = m.leave(context.Cause(lock.Context())) })
	return m, nil
}

// ID is the member's id.
func (m *Member) ID() string { return m.id }

// Token is the fencing token of the membership.
func (m *Member) Token() uint64 { return m.lock.Token() }

// Meta is the metadata that others see.
func (m *Member) Meta() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.meta
}

// Context ends with the membership. Its cause is ErrLeft after Leave. It is qlock.ErrLost if
// too few nodes confirmed the membership within the lease, with qlock.ErrEvicted if an
// operator ended it, and qlock.ErrUnlocked if the Locker was closed. qlock.Token gives the
// member's token from it.
func (m *Member) Context() context.Context { return m.ctx }

// SetMeta changes the metadata. Others see the former or the new metadata at any moment, and
// never none. It takes about as long as acquiring a lock. If it fails, the metadata is
// unchanged.
//
// Errors are ErrInvalid, the cause of the membership's end if it has ended, and those of
// qlock.Locker.Lock.
func (m *Member) SetMeta(ctx context.Context, meta string) error {
	if err := checkMeta(meta); err != nil {
		return err
	}
	// One after the other, or the older could win.
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return m.metaError(context.Cause(ctx))
	case <-m.ctx.Done():
		return m.metaError(context.Cause(m.ctx))
	}
	m.mu.Lock()
	n, left := m.n+1, m.left
	m.n = n // also if it fails: the number may be taken
	m.mu.Unlock()
	if left {
		return m.metaError(context.Cause(m.ctx))
	}

	ask, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.ctx, func() { cancel(context.Cause(m.ctx)) })()
	lock, err := m.group.locker.Lock(qlock.ContextWithNote(ask, meta), metaLock(m.group.name, m.id, m.Token(), n))
	if err != nil {
		if m.ctx.Err() != nil {
			err = context.Cause(m.ctx)
		}
		return m.metaError(err)
	}
	m.mu.Lock()
	if m.left {
		m.mu.Unlock()
		_ = lock.Unlock(ctx)
		return m.metaError(context.Cause(m.ctx))
	}
	old, stop := m.extra, m.stop
	m.extra, m.meta = lock, meta
	// A member whose metadata is lost would be seen with metadata of long ago. Both locks
	// are of one Locker and refreshed by one message, so one is seldom lost alone.
	m.stop = context.AfterFunc(lock.Context(), func() { _ = m.leave(context.Cause(lock.Context())) })
	m.mu.Unlock()
	if old != nil {
		stop()
		_ = old.Unlock(ctx) // if it is lost it is released as well
	}
	return nil
}

func (m *Member) metaError(err error) error {
	return fmt.Errorf("members: set metadata of %q in group %s: %w", m.id, m.group.name, err)
}

// Leave ends the membership. Others learn of it at once. It returns the cause if the
// membership had ended before by itself, and nil otherwise, also when called again. It does
// not wait for the nodes: call qlock.Locker.Close before the program ends, or the member may
// be listed for its lease. An ended ctx does not keep the member from leaving.
func (m *Member) Leave(context.Context) error {
	if cause := m.leave(ErrLeft); !errors.Is(cause, ErrLeft) {
		return fmt.Errorf("members: leave group %s: %q was a member no more: %w", m.group.name, m.id, cause)
	}
	return nil
}

// leave ends all that the member has, once, and returns why that was.
func (m *Member) leave(cause error) error {
	if m.lock.Context().Err() != nil {
		cause = context.Cause(m.lock.Context())
	}
	m.end(cause) // the first counts; and before the lock can be another's
	m.mu.Lock()
	was, extra, stop := m.left, m.extra, m.stop
	m.left, m.extra = true, nil
	m.mu.Unlock()
	if !was {
		if extra != nil {
			stop()
			_ = extra.Unlock(context.Background())
		}
		_ = m.lock.Unlock(context.Background())
	}
	return context.Cause(m.ctx)
}
