package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/proto"
)

// RWMutex is a lock on one name with the methods of sync.RWMutex, for programs
// that have one and become several. Make it with Locker.RWMutex. Like sync's it
// may be locked by one goroutine and unlocked by another; a blocked Lock keeps
// later readers out, in the whole cluster; it must not be copied after first use.
//
// What sync's mutex cannot do, this one can: be lost, when too few nodes confirm
// it within the lease. Lock has no error to say so with, and Unlock says nothing
// either. The name may then be locked by somebody else while the code between Lock
// and Unlock still runs. Code that must know uses Locker.Lock, whose Lock has a
// context that ends with it, and a token.
type RWMutex struct {
	locker *Locker
	name   string

	mu      sync.Mutex // guards what follows
	writers []*Lock    // one; more only where a lost one was not unlocked yet
	readers []*Lock
}

// RWMutex returns a mutex on the named lock. Two mutexes of one name exclude each
// other, be it in one process or in two. It panics with an error that is
// ErrInvalidName if name cannot be one.
func (l *Locker) RWMutex(name string) *RWMutex {
	if _, err := proto.EncodeName(name); err != nil {
		panic(err)
	}
	return &RWMutex{locker: l, name: name}
}

// Lock waits for the exclusive lock, for ever if need be: it goes on asking while
// there is no quorum and while nodes refuse. It panics if the Locker or
// its connection is closed, since nobody could ever be granted the lock again.
func (m *RWMutex) Lock() { m.wait(m.LockContext) }

// RLock waits for a shared lock as Lock does for an exclusive one.
func (m *RWMutex) RLock() { m.wait(m.RLockContext) }

func (m *RWMutex) wait(lock func(context.Context) error) {
	for {
		err := lock(context.Background())
		if err == nil {
			return
		}
		if errors.Is(err, ErrClosed) {
			panic(fmt.Errorf("qlock: RWMutex %s: %w", quote(m.name), err))
		}
		m.locker.log.line(slog.LevelWarn, "RWMutex cannot be locked, will go on trying", "name", m.name, "error", err)
		select {
		case <-time.After(m.locker.opt.lease / 10):
		case <-m.locker.stop:
		}
	}
}

// LockContext is like Lock but gives up when ctx ends, and returns errors as
// Locker.Lock does. Once it has returned nil, ctx has no part in the lock.
func (m *RWMutex) LockContext(ctx context.Context) error {
	k, err := m.locker.Lock(ctx, m.name)
	return m.keep(&m.writers, k, err)
}

// RLockContext is like LockContext for a shared lock.
func (m *RWMutex) RLockContext(ctx context.Context) error {
	k, err := m.locker.RLock(ctx, m.name)
	return m.keep(&m.readers, k, err)
}

// TryLock takes the exclusive lock and reports whether it could: it fails when
// another holds it, and when no quorum could be had within a lease.
func (m *RWMutex) TryLock() bool {
	k, err := m.locker.TryLock(context.Background(), m.name)
	return m.keep(&m.writers, k, err) == nil
}

// TryRLock is TryLock for a shared lock.
func (m *RWMutex) TryRLock() bool {
	k, err := m.locker.TryRLock(context.Background(), m.name)
	return m.keep(&m.readers, k, err) == nil
}

func (m *RWMutex) keep(list *[]*Lock, k *Lock, err error) error {
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	*list = append(*list, k)
	return nil
}

// Unlock gives the exclusive lock back. It panics if this RWMutex is not locked
// for writing. A lock that was lost is unlocked like any other.
func (m *RWMutex) Unlock() { m.unlock(&m.writers, "sync: Unlock of unlocked RWMutex") }

// RUnlock gives one shared lock back. It panics if this RWMutex is not locked for
// reading.
func (m *RWMutex) RUnlock() { m.unlock(&m.readers, "sync: RUnlock of unlocked RWMutex") }

// unlock gives the oldest lock back: a writer that was lost and unlocks late must
// not unlock the one after it.
func (m *RWMutex) unlock(list *[]*Lock, misuse string) {
	m.mu.Lock()
	if len(*list) == 0 {
		m.mu.Unlock()
		panic(misuse)
	}
	k := (*list)[0]
	(*list)[0] = nil
	*list = (*list)[1:]
	m.mu.Unlock()
	_ = k.Unlock(context.Background())
}

// RLocker returns a sync.Locker whose Lock and Unlock are RLock and RUnlock.
func (m *RWMutex) RLocker() sync.Locker { return (*rlocker)(m) }

type rlocker RWMutex

func (r *rlocker) Lock()   { (*RWMutex)(r).RLock() }
func (r *rlocker) Unlock() { (*RWMutex)(r).RUnlock() }
