package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/subject"
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
	writers unlockers  // one; more only where a lost one was not unlocked yet
	readers unlockers
}

// unlockers is what is to be unlocked yet. Which of the locks an Unlock means does not
// matter as long as all of them are held. When one is lost, it does: its Unlock, which comes
// late, must not end a lock that another goroutine has since, and that goroutine's Unlock
// must end it. What is locked from then on is known by its goroutine.
type unlockers struct {
	list   []unlocker // oldest first
	losses uint64     // of the Locker before the first of the list was locked; or unclear
}

// unclear is a number of losses that no Locker has.
const unclear = math.MaxUint64

type unlocker struct {
	lock      *Lock
	goroutine uint64 // that locked it; 0: not known, and not that of any other in the list
}

// add takes in a lock; losses is the number of the Locker's before it was asked for, and
// now that after it was held.
func (u *unlockers) add(k *Lock, losses, now uint64) {
	if len(u.list) == 0 {
		u.losses = losses
	}
	if now != losses {
		u.losses = unclear // it may be lost already
	}
	e := unlocker{lock: k}
	if now != u.losses {
		e.goroutine = goroutineID()
	}
	u.list = append(u.list, e)
}

// take takes out the lock that the calling goroutine unlocks, nil if there is none.
func (u *unlockers) take(l *Locker) *Lock {
	if len(u.list) == 0 {
		return nil
	}
	i := 0
	if len(u.list) > 1 && u.losses != l.client.Losses() {
		i = u.find()
	}
	k := u.list[i].lock
	u.list[i] = unlocker{}
	if i == 0 { // the common case: no move of all behind
		u.list = u.list[1:]
	} else {
		u.list = slices.Delete(u.list, i, i+1)
	}
	return k
}

// find is the index of the lock that the calling goroutine locked last. If it locked none of
// those that are known by their goroutines, it is one that is not; and of several, one that is
// lost: it may be that its goroutine unlocks late, and to end a lost lock does no harm.
func (u *unlockers) find() int {
	id, best, rank := goroutineID(), 0, -1
	for i := range u.list {
		e, r := &u.list[i], 0
		if e.lock.hold.Context().Err() != nil {
			r++
		}
		switch {
		case e.goroutine == 0:
			r += 2
		case e.goroutine == id:
			r = 4
		}
		if r > rank || r == 4 { // the last of its own
			best, rank = i, r
		}
	}
	return best
}

// goroutineID is the number of the calling goroutine, as tracebacks have it; 0 if it cannot
// be told. It takes microseconds.
func goroutineID() uint64 {
	var buf [64]byte
	text := strings.TrimPrefix(string(buf[:runtime.Stack(buf[:], false)]), "goroutine ")
	digits, _, _ := strings.Cut(text, " ")
	id, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// RWMutex returns a mutex on the named lock. Two mutexes of one name exclude each
// other, be it in one process or in two. It panics with an error that is
// ErrInvalidName if name cannot be one.
func (l *Locker) RWMutex(name string) *RWMutex {
	if _, err := subject.EncodeName(name); err != nil {
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
		m.locker.log.Line(slog.LevelWarn, "RWMutex cannot be locked, will go on trying", "name", m.name, "error", err)
		select {
		case <-time.After(m.locker.client.Lease() / 10):
		case <-m.locker.client.Closed():
		}
	}
}

// LockContext is like Lock but gives up when ctx ends, and returns errors as
// Locker.Lock does. Once it has returned nil, ctx has no part in the lock.
func (m *RWMutex) LockContext(ctx context.Context) error {
	return m.take(ctx, m.locker.Lock, &m.writers)
}

// RLockContext is like LockContext for a shared lock.
func (m *RWMutex) RLockContext(ctx context.Context) error {
	return m.take(ctx, m.locker.RLock, &m.readers)
}

// TryLock takes the exclusive lock and reports whether it could: it fails when
// another holds it, and when no quorum could be had within a lease.
func (m *RWMutex) TryLock() bool {
	return m.take(context.Background(), m.locker.TryLock, &m.writers) == nil
}

// TryRLock is TryLock for a shared lock.
func (m *RWMutex) TryRLock() bool {
	return m.take(context.Background(), m.locker.TryRLock, &m.readers) == nil
}

func (m *RWMutex) take(ctx context.Context, lock func(context.Context, string, ...LockOption) (*Lock, error), list *unlockers) error {
	losses := m.locker.client.Losses()
	k, err := lock(ctx, m.name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	list.add(k, losses, m.locker.client.Losses())
	return nil
}

// Unlock gives the exclusive lock back. It panics if this RWMutex is not locked
// for writing. A lock that was lost is unlocked like any other. While one has not been yet,
// and another was locked since, an Unlock ends the one that its own goroutine locked; from a
// goroutine that locked none, it ends the lost one. It does not wait until the nodes know:
// call Locker.Close before the program ends, or the lock may stay held for its lease.
func (m *RWMutex) Unlock() { m.unlock(&m.writers, "sync: Unlock of unlocked RWMutex") }

// RUnlock gives one shared lock back. It panics if this RWMutex is not locked for
// reading.
func (m *RWMutex) RUnlock() { m.unlock(&m.readers, "sync: RUnlock of unlocked RWMutex") }

func (m *RWMutex) unlock(list *unlockers, misuse string) {
	m.mu.Lock()
	k := list.take(m.locker)
	m.mu.Unlock()
	if k == nil {
		panic(misuse)
	}
	_ = k.Unlock(context.Background())
}

// RLocker returns a sync.Locker whose Lock and Unlock are RLock and RUnlock.
func (m *RWMutex) RLocker() sync.Locker { return (*rlocker)(m) }

type rlocker RWMutex

func (r *rlocker) Lock()   { (*RWMutex)(r).RLock() }
func (r *rlocker) Unlock() { (*RWMutex)(r).RUnlock() }
