package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

var soak = flag.Duration("soak.for", 2*time.Second, "how long TestSoak takes and gives back locks")

// inUse is the heap that is left when all garbage is gone.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A cluster and its clients in one process take and give back locks on names that
// are never used again, some shared, some in vain, some given up while they wait.
// What is in use at the end is what was in use when all was warm.
func TestSoak(t *testing.T) {
	const (
		clients, workers = 4, 8
		warm             = 40_000    // NATS keeps caches of some thousand subjects for each connection and route
		growth           = 4_000_000 // bytes, however long it goes on
	)
	c := startCluster(t, 3, maxLease(time.Hour)) // on a machine with much else to do, no lock is to be lost
	var lockers, plain []*qlock.Locker
	for i := range clients {
		lockers = append(lockers, client(t, fmt.Sprintf("c%d", i), urls(c.Servers()...), qlock.WithLease(time.Hour)))
		plain = append(plain, client(t, fmt.Sprintf("p%d", i), urls(c.Servers()...), qlock.WithLease(time.Hour), qlock.WithoutBatches()))
	}
	var names, locks, shared, refused, gaveUp atomic.Int64
	one := func(ctx context.Context, l *qlock.Locker) error {
		i := names.Add(1)
		name := fmt.Sprintf("soak.%d", i)
		take := l.Lock
		if i%4 == 0 {
			take = l.RLock
			shared.Add(1)
		}
		k, err := take(ctx, name)
		if err != nil {
			return err
		}
		locks.Add(1)
		if i%8 == 1 {
			if _, err := l.TryLock(ctx, name); !errors.Is(err, qlock.ErrHeld) {
				return fmt.Errorf("a try on a lock that is held: %w", err)
			}
			refused.Add(1)
		}
		if i%64 == 2 {
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			_, err := l.Lock(short, name)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("a wait of a millisecond for a lock that is held: %w", err)
			}
			gaveUp.Add(1)
		}
		return k.Unlock(ctx)
	}
	// run works until more says that it is enough, and comes back when all is quiet.
	run := func(all []*qlock.Locker, more func() bool) {
		var wg sync.WaitGroup
		for _, l := range all {
			for range workers {
				wg.Go(func() {
					for more() && !t.Failed() {
						if err := one(t.Context(), l); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		empty(t, c.Servers()...)
	}
	// Batches have no names in their subjects, and would fill the caches of NATS slowly.
	run(plain, func() bool { return names.Load() < warm })
	run(lockers, func() bool { return names.Load() < warm+warm/2 })
	before, from, begin := inUse(), locks.Load(), time.Now()
	end, least := begin.Add(*soak), from+100 // fewer locks prove nothing
	run(lockers, func() bool { return time.Now().Before(end) || locks.Load() < least })
	took, done := time.Since(begin), locks.Load()-from
	after := inUse()
	t.Logf("%d locks in %v, %.0f a second; in all %d names, %d shared, %d refused, %d given up; %.2f MB in use before, %.2f MB after",
		done, took.Round(time.Millisecond), float64(done)/took.Seconds(), names.Load(), shared.Load(), refused.Load(), gaveUp.Load(),
		float64(before)/1e6, float64(after)/1e6)
	if after > before+growth {
		t.Errorf("%d bytes more are in use after %d locks on fresh names", after-before, done)
	}
}

// What docs/reliability.md says that a held lock costs, at its client and at three
// nodes together.
func TestBytesOfAHeldLock(t *testing.T) {
	const locks, most = 10_000, 4000
	c := startCluster(t, 3, maxLease(time.Hour), qlocktest.WithConfig(func(_ int, c *embedded.Config) { c.Node.MaxClaims = 2 * locks }))
	l := client(t, "c", urls(c.Servers()...), qlock.WithLease(time.Hour)) // it takes a slow machine longer than a common lease
	held := make([]*qlock.Lock, 2*locks)
	take := func(from, to int) {
		var next atomic.Int64
		next.Store(int64(from))
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < to; i = int(next.Add(1)) - 1 {
					k, err := l.Lock(t.Context(), fmt.Sprintf("held.%d", i))
					if err != nil {
						t.Error(err)
						return
					}
					held[i] = k
				}
			})
		}
		wg.Wait()
	}
	take(0, locks) // what does not grow with the locks is there by now
	before := inUse()
	take(locks, 2*locks)
	got := (inUse() - before) / locks
	t.Logf("%d bytes for a held lock at its client and three nodes", got)
	if got > most {
		t.Errorf("a held lock costs %d bytes, want at most %d", got, most)
	}
	for _, k := range held {
		if k != nil {
			unlock(t, k)
		}
	}
	empty(t, c.Servers()...)
}
