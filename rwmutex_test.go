package qlock_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// What follows takes the ideas of Go's own tests of sync.RWMutex
// (src/sync/rwmutex_test.go) to a mutex of three nodes and several Lockers, each
// of which could be a process of its own.

var (
	_ sync.Locker = (*qlock.RWMutex)(nil)
	_ interface {
		TryLock() bool
		TryRLock() bool
		RLock()
		RUnlock()
		RLocker() sync.Locker
	} = (*qlock.RWMutex)(nil)
)

func parallelReader(m *qlock.RWMutex, locked, unlock, done chan bool) {
	m.RLock()
	locked <- true
	<-unlock
	m.RUnlock()
	done <- true
}

// Readers hold the mutex all at the same time.
func TestRWMutexParallelReaders(t *testing.T) {
	for _, readers := range []int{1, 3, 10} {
		t.Run(fmt.Sprintf("%d readers", readers), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				a, b := w.client("a").RWMutex("x"), w.client("b").RWMutex("x")
				locked, unlock, done := make(chan bool), make(chan bool), make(chan bool)
				for i := range readers {
					m := a
					if i%2 == 1 {
						m = b
					}
					go parallelReader(m, locked, unlock, done)
				}
				for range readers {
					<-locked
				}
				if a.TryLock() || b.TryLock() {
					t.Error("a writer beside readers")
				}
				for range readers {
					unlock <- true
				}
				for range readers {
					<-done
				}
				w.noClaims()
			})
		})
	}
}

// hammer lets two writers and some readers at the mutex, iterations times each.
func hammer(t *testing.T, w *world, readers, iterations int) {
	var activity atomic.Int32 // readers, and 10,000 for each writer
	var wg sync.WaitGroup
	clients := []*qlock.Locker{w.client("a"), w.client("b"), w.client("c")}
	next := 0
	start := func(f func(m *qlock.RWMutex)) {
		m := clients[next%len(clients)].RWMutex("x")
		next++
		wg.Go(func() {
			for range iterations {
				f(m)
			}
		})
	}
	reader := func(m *qlock.RWMutex) {
		m.RLock()
		if n := activity.Add(1); n < 1 || n >= 10000 {
			t.Errorf("a reader beside a writer: %d", n)
		}
		runtime.Gosched()
		activity.Add(-1)
		m.RUnlock()
	}
	writer := func(m *qlock.RWMutex) {
		m.Lock()
		if n := activity.Add(10000); n != 10000 {
			t.Errorf("a writer is not alone: %d", n)
		}
		runtime.Gosched()
		activity.Add(-10000)
		m.Unlock()
	}
	start(writer)
	for range readers / 2 {
		start(reader)
	}
	start(writer)
	for range readers - readers/2 {
		start(reader)
	}
	wg.Wait()
	w.noClaims()
}

func TestRWMutexHammer(t *testing.T) {
	for _, tt := range []struct{ nodes, readers, iterations int }{{1, 3, 60}, {3, 1, 60}, {3, 3, 60}, {3, 10, 25}, {4, 5, 25}} {
		t.Run(fmt.Sprintf("%d nodes, %d readers", tt.nodes, tt.readers), func(t *testing.T) {
			bubble(t, func(t *testing.T) { hammer(t, newWorld(t, tt.nodes), tt.readers, tt.iterations) })
		})
	}
}

func TestRWMutexRLocker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		wl := w.client("a").RWMutex("x")
		rl := wl.RLocker()
		wlocked, rlocked := make(chan bool, 1), make(chan bool, 1)
		const n = 10
		go func() {
			for range n {
				rl.Lock()
				rl.Lock()
				rlocked <- true
				wl.Lock()
				wlocked <- true
			}
		}()
		for range n {
			<-rlocked
			rl.Unlock()
			settle()
			select {
			case <-wlocked:
				t.Fatal("RLocker didn't read-lock it")
			default:
			}
			rl.Unlock()
			<-wlocked
			settle()
			select {
			case <-rlocked:
				t.Fatal("RLocker didn't respect the write lock")
			default:
			}
			wl.Unlock()
		}
		w.noClaims()
	})
}

func TestRWMutexTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		m, other := w.client("a").RWMutex("x"), w.client("b").RWMutex("x")
		check := func(when string, lock, rlock bool) {
			t.Helper()
			for _, m := range []*qlock.RWMutex{m, other} {
				settle()
				if got := m.TryLock(); got != lock {
					t.Errorf("%s TryLock is %v", when, got)
				} else if got {
					m.Unlock()
				}
				settle()
				if got := m.TryRLock(); got != rlock {
					t.Errorf("%s TryRLock is %v", when, got)
				} else if got {
					m.RUnlock()
				}
			}
		}
		check("on a free mutex", true, true)
		m.Lock()
		check("beside a writer", false, false)
		m.Unlock()
		m.RLock()
		check("beside a reader", false, true)
		time.Sleep(time.Millisecond)
		waiting := make(chan struct{})
		go func() {
			other.Lock()
			close(waiting)
		}()
		settle()
		time.Sleep(time.Millisecond) // who comes now is younger
		check("beside a reader, behind a waiting writer", false, false)
		m.RUnlock()
		<-waiting
		other.Unlock()
		check("on a mutex that is free again", true, true)
		w.noClaims()
	})
}

// Misuse is told in sync's words.
func TestRWMutexMisuse(t *testing.T) {
	const unlock, runlock = "sync: Unlock of unlocked RWMutex", "sync: RUnlock of unlocked RWMutex"
	type m = *qlock.RWMutex
	for _, tt := range []struct {
		name  string
		calls []func(m)
		want  string
	}{
		{"Unlock", []func(m){m.Unlock}, unlock},
		{"RUnlock", []func(m){m.RUnlock}, runlock},
		{"RLocker's Unlock", []func(m){func(mu m) { mu.RLocker().Unlock() }}, runlock},
		{"Unlock of a reader", []func(m){m.RLock, m.Unlock}, unlock},
		{"RUnlock of a writer", []func(m){m.Lock, m.RUnlock}, runlock},
		{"second Unlock", []func(m){m.Lock, m.Unlock, m.Unlock}, unlock},
		{"second RUnlock", []func(m){m.RLock, m.RUnlock, m.RUnlock}, runlock},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 1)
				defer func() {
					if got := recover(); got != tt.want {
						t.Errorf("panic with %v, want %q", got, tt.want)
					}
				}()
				mu := w.client("a").RWMutex("x")
				for _, call := range tt.calls {
					call(mu)
				}
			})
		})
	}
}

// As with sync's, another goroutine than the one that locked may unlock, and the
// mutex is usable after a misuse was recovered from.
func TestRWMutexUnlockedByAnother(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		m := w.client("a").RWMutex("x")
		for range 3 {
			m.Lock()
			done := make(chan struct{})
			go func() {
				defer close(done)
				m.Unlock()
				defer func() { _ = recover() }()
				m.Unlock()
			}()
			<-done
		}
		if !m.TryLock() {
			t.Error("the mutex is not free")
		}
		m.Unlock()
		w.noClaims()
	})
}

func TestRWMutexLockContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		m, other := w.client("a").RWMutex("x"), w.client("b").RWMutex("x")
		ctx, cancel := context.WithCancel(t.Context())
		if err := m.LockContext(ctx); err != nil {
			t.Fatal(err)
		}
		cancel() // has no part in the lock any more
		settle()
		if other.TryRLock() {
			t.Error("a lock ended with the context that it was asked for with")
		}
		start := time.Now()
		wantIs(t, other.LockContext(timeout(t, time.Second)), qlock.ErrHeld, context.DeadlineExceeded)
		wantIs(t, other.RLockContext(timeout(t, time.Second)), qlock.ErrHeld, context.DeadlineExceeded)
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("two waits of a second took %v", d)
		}
		m.Unlock()
		if err := other.RLockContext(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.RLockContext(t.Context()); err != nil {
			t.Error(err)
		}
		other.RUnlock()
		m.RUnlock()
		w.noClaims()
	})
}

// Lock waits for a quorum as long as it takes.
func TestRWMutexWaitsForNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		m := w.client("a").RWMutex("x")
		w.nodes[0].crash()
		w.nodes[1].crash()
		locked := make(chan struct{})
		go func() {
			m.Lock()
			close(locked)
		}()
		time.Sleep(20 * testLease)
		select {
		case <-locked:
			t.Fatal("locked without a quorum")
		default:
		}
		start := time.Now()
		if m.TryLock() {
			t.Error("locked without a quorum")
		}
		if d := time.Since(start); d != testLease {
			t.Errorf("TryLock without a quorum took %v, want the lease", d)
		}
		w.nodes[0].start()
		start = time.Now()
		<-locked
		if d := time.Since(start); d > quarantine {
			t.Errorf("locked %v after the node came back, want when it votes", d)
		}
		m.Unlock()
		w.noClaims()
	})
}

// A writer that lost the lock and unlocks late does not unlock the next one, in
// the same process or in another.
func TestRWMutexLateUnlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		m, other := a.RWMutex("x"), w.client("b").RWMutex("x")
		goOn, unlocked := make(chan struct{}), make(chan struct{})
		go func() {
			m.Lock()
			<-goOn
			m.Unlock()
			close(unlocked)
		}()
		settle()
		nc.cut()
		time.Sleep(2 * testLease)
		nc.mend()
		time.Sleep(2 * reconnectWait)
		m.Lock() // the first is lost, the second holds
		close(goOn)
		<-unlocked
		settle()
		if other.TryLock() || other.TryRLock() {
			t.Error("the late Unlock of a lost writer unlocked the next one")
		}
		m.Unlock()
		settle()
		if !other.TryLock() {
			t.Error("still locked")
		}

		// The next holder is in another process.
		w.nodes[0].crash() // of two nodes left each is needed
		other.Unlock()
		other.RLock()
		m.RLock()
		nc.cut()
		time.Sleep(2 * testLease)
		nc.mend()
		time.Sleep(2 * reconnectWait)
		m.RUnlock()
		settle()
		if m.TryLock() {
			t.Error("the late RUnlock of a lost reader unlocked another")
		}
		other.RUnlock()
		w.noClaims()
	})
}

// While one who lost the lock has not unlocked it yet, the Unlock of each other gives back
// what that one locked: it is not held until the first one is done.
func TestRWMutexUnlockAfterAnothersLoss(t *testing.T) {
	for _, mode := range []string{"write", "read"} {
		t.Run(mode, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				a, nc := w.clientOn("a")
				m, other := a.RWMutex("x"), w.client("b").RWMutex("x")
				lock, unlock := m.Lock, m.Unlock
				if mode == "read" {
					lock, unlock = m.RLock, m.RUnlock
				}
				type goroutine chan func()
				start := func() goroutine {
					g := make(goroutine)
					go func() {
						for f := range g {
							f()
						}
					}()
					return g
				}
				do := func(g goroutine, f func()) {
					t.Helper()
					g <- f
					settle()
				}
				free := func(want bool, when string) {
					t.Helper()
					settle()
					if got := other.TryLock(); got != want {
						t.Errorf("%s: free is %v", when, got)
					} else if got {
						other.Unlock()
						settle()
					}
				}
				first, second, third := start(), start(), start()
				defer func() { close(first); close(second); close(third) }()
				for range 2 { // the second time nothing is left of the first
					do(first, lock)
					nc.cut()
					time.Sleep(2 * testLease)
					nc.mend()
					time.Sleep(2 * reconnectWait)
					free(true, "lost")
					for range 2 {
						do(second, lock)
						free(false, "held by the second")
						do(second, unlock)
						free(true, "unlocked by the second, the first is not done")
					}
					// One locks, another unlocks, as sync's allows.
					do(second, lock)
					do(first, unlock)
					free(false, "the first is done, the second holds")
					do(third, unlock)
					free(true, "unlocked by another than locked it")
				}
				w.noClaims()
			})
		})
	}
}

func TestRWMutexOfClosedLocker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		b := w.client("b")
		wantPanic := func(f func()) {
			t.Helper()
			defer func() {
				err, ok := recover().(error)
				if !ok {
					t.Error("no panic with an error")
					return
				}
				wantIs(t, err, qlock.ErrClosed)
				wantText(t, err, `qlock: RWMutex "x"`, "closed")
			}()
			f()
		}
		k := mustLock(t, b, "x")
		m, m2 := a.RWMutex("x"), b.RWMutex("x")
		done := make(chan struct{})
		go func() {
			wantPanic(m.Lock)
			close(done)
		}()
		settle()
		nc.Close() // nobody could ever be granted the lock again
		<-done
		wantPanic(m.RLock)
		if m.TryLock() || m.TryRLock() {
			t.Error("locked without a connection")
		}
		mustUnlock(t, k)
		m2.Lock()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		m2.Unlock()
		wantPanic(m2.Lock)
		wantPanic(m2.RLock)
		if m2.TryLock() {
			t.Error("locked by a closed Locker")
		}
		wantIs(t, m2.LockContext(t.Context()), qlock.ErrClosed)
		w.noClaims()
	})
}
