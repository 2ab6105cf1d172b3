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

// RWMutex is a distributed lock on one name that has the methods of sync.RWMutex. It is for
// programs that use a sync.RWMutex and come to run as several processes. Create it with
// Locker.RWMutex. As with sync.RWMutex, one goroutine may lock it and another unlock it, a blocked
// Lock keeps later readers out (here in the whole cluster), and an RWMutex must not be copied after
// first use.
//
// Unlike a sync.RWMutex, it can be lost: this happens if too few nodes confirm it within the lease.
// Neither Lock nor Unlock reports the loss. Another client may then lock the name while the code
// between Lock and Unlock still runs. Code that must know of a loss uses Locker.Lock: the Lock that
// it returns has a context that ends with the lock, and a fencing token.
type RWMutex struct {
	locker *Locker
	name   string

	mu      sync.Mutex // guards the fields below
	writers unlockers  // one; more only while a lost lock is not unlocked yet
	readers unlockers
}

// unlockers lists the locks that are not unlocked yet. As long as all of them are held, it does not
// matter which one an Unlock ends. When one of them is lost, it matters: the late Unlock of the
// lost lock must not end a lock that another goroutine has acquired since, and that goroutine's own
// Unlock must end it. So a lock that is acquired after a loss records its goroutine.
type unlockers struct {
	list   []unlocker // oldest first
	losses uint64     // the Locker's losses before the first of the list was locked, or unclear
}

// unclear is a number of losses that no Locker reaches.
const unclear = math.MaxUint64

type unlocker struct {
	lock      *Lock
	goroutine uint64 // that locked it; 0: unknown, and none of those recorded in the list
}

// add appends a lock. losses is the Locker's number of losses before the lock was requested, and
// now the number after it was held.
func (u *unlockers) add(k *Lock, losses, now uint64) {
	if len(u.list) == 0 {
		u.losses = losses
	}
	if now != losses {
		u.losses = unclear // the lock may be lost already
	}
	e := unlocker{lock: k}
	if now != u.losses {
		e.goroutine = goroutineID()
	}
	u.list = append(u.list, e)
}

// take removes and returns the lock that the calling goroutine unlocks, or nil if there is none.
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
	if i == 0 { // the common case, in which no other element moves
		u.list = u.list[1:]
	} else {
		u.list = slices.Delete(u.list, i, i+1)
	}
	return k
}

// find returns the index of the lock that the calling goroutine locked last. If no lock is recorded
// for this goroutine, find chooses one without a recorded goroutine, and among several of these a
// lost one: its goroutine may be unlocking late, and ending a lost lock does no harm.
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
		if r > rank || r == 4 { // the last one of this goroutine
			best, rank = i, r
		}
	}
	return best
}

// goroutineID returns the number of the calling goroutine as tracebacks print it, or 0 if it is
// unknown. It takes microseconds.
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

// RWMutex returns a mutex on the named lock. Two mutexes on the same name exclude each other,
// within a process and between processes. RWMutex panics with an error that is ErrInvalidName if
// name is invalid.
func (l *Locker) RWMutex(name string) *RWMutex {
	if _, err := subject.EncodeName(name); err != nil {
		panic(err)
	}
	return &RWMutex{locker: l, name: name}
}

// Lock waits for the exclusive lock without limit: it goes on asking while there is no quorum and
// while nodes refuse. It panics if the Locker or its connection is closed, because the lock could
// never be granted again.
func (m *RWMutex) Lock() { m.wait(m.LockContext) }

// RLock is like Lock for a shared lock.
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

// LockContext is like Lock but stops waiting when ctx ends, and returns the errors of Locker.Lock.
// After it has returned nil, the end of ctx does not affect the lock.
func (m *RWMutex) LockContext(ctx context.Context) error {
	return m.take(ctx, m.locker.Lock, &m.writers)
}

// RLockContext is like LockContext for a shared lock.
func (m *RWMutex) RLockContext(ctx context.Context) error {
	return m.take(ctx, m.locker.RLock, &m.readers)
}

// TryLock tries to acquire the exclusive lock and reports whether it succeeded. It fails if another
// claim is in the way, and if there is no quorum within a lease.
func (m *RWMutex) TryLock() bool {
	return m.take(context.Background(), m.locker.TryLock, &m.writers) == nil
}

// TryRLock is like TryLock for a shared lock.
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

// Unlock releases the exclusive lock. It panics if this RWMutex is not locked for writing. Unlock a
// lock that was lost like any other. If a lost lock has not been unlocked yet and another has been
// locked since, Unlock ends the one that the calling goroutine locked; in a goroutine that locked
// neither, it ends the lost one. Unlock does not wait for the nodes: call Locker.Close before the
// program ends, or the lock may stay held for its lease.
func (m *RWMutex) Unlock() { m.unlock(&m.writers, "sync: Unlock of unlocked RWMutex") }

// RUnlock releases one shared lock. It panics if this RWMutex is not locked for reading.
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

// RLocker returns a sync.Locker whose Lock and Unlock call RLock and RUnlock.
func (m *RWMutex) RLocker() sync.Locker { return (*rlocker)(m) }

type rlocker RWMutex

func (r *rlocker) Lock()   { (*RWMutex)(r).RLock() }
func (r *rlocker) Unlock() { (*RWMutex)(r).RUnlock() }
