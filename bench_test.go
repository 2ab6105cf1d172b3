package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// onClusters runs a benchmark on clusters of several sizes, each of embedded
// servers joined by routes over loopback. There is one Locker for each node, on a
// connection inside the process.
func onClusters(b *testing.B, f func(b *testing.B, lockers []*qlock.Locker)) {
	for _, n := range []int{1, 3, 5} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			defer cancel()
			cluster, err := embedded.StartCluster(ctx, n)
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := cluster.Close(); err != nil {
					b.Error(err)
				}
			}()
			var lockers []*qlock.Locker
			for i, s := range cluster.Servers() {
				l, err := qlock.New(ctx, s.Conn(), qlock.WithName(fmt.Sprintf("bench-%d", i)))
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				lockers = append(lockers, l)
			}
			b.ReportAllocs()
			b.ResetTimer()
			f(b, lockers)
			b.StopTimer()
		})
	}
}

type lockFunc func(*qlock.Locker, context.Context, string, ...qlock.LockOption) (*qlock.Lock, error)

// lockUnlock takes a lock that is free, or becomes so, and gives it back.
func lockUnlock(b *testing.B, l *qlock.Locker, lock lockFunc, name string) {
	k, err := lock(l, context.Background(), name)
	if err != nil {
		b.Error(err)
		return
	}
	if err := k.Unlock(context.Background()); err != nil {
		b.Error(err)
	}
}

// BenchmarkLock is one goroutine that locks and unlocks one name that nobody else
// wants.
func BenchmarkLock(b *testing.B) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		for b.Loop() {
			lockUnlock(b, lockers[0], (*qlock.Locker).Lock, "x")
		}
	})
}

// BenchmarkRLock is BenchmarkLock for a shared lock that somebody else holds, too.
func BenchmarkRLock(b *testing.B) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		k, err := lockers[len(lockers)-1].RLock(context.Background(), "x")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			lockUnlock(b, lockers[0], (*qlock.Locker).RLock, "x")
		}
		if err := k.Unlock(context.Background()); err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkLockSpread is many goroutines on 1,000 names: how much the nodes can do
// where hardly anybody waits for anybody.
func BenchmarkLockSpread(b *testing.B) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		var names [1000]string
		for i := range names {
			names[i] = fmt.Sprintf("orders.%d", i)
		}
		var goroutine atomic.Int64
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			g := int(goroutine.Add(1))
			for i := g * 7919; pb.Next(); i++ {
				lockUnlock(b, lockers[g%len(lockers)], (*qlock.Locker).Lock, names[i%len(names)])
			}
		})
	})
}

// BenchmarkLockHandover is four goroutines for each processor that all want one name: the time from
// one holder to the next.
func BenchmarkLockHandover(b *testing.B) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		var goroutine atomic.Int64
		b.SetParallelism(4) // times GOMAXPROCS
		b.RunParallel(func(pb *testing.PB) {
			l := lockers[int(goroutine.Add(1))%len(lockers)]
			for pb.Next() {
				lockUnlock(b, l, (*qlock.Locker).Lock, "hot")
			}
		})
	})
}

// BenchmarkTryLockHeld is how long it takes to learn that another has the lock.
func BenchmarkTryLockHeld(b *testing.B) {
	onClusters(b, func(b *testing.B, lockers []*qlock.Locker) {
		k, err := lockers[len(lockers)-1].Lock(context.Background(), "x")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := lockers[0].TryLock(context.Background(), "x"); !errors.Is(err, qlock.ErrHeld) {
				b.Fatal(err)
			}
		}
		if err := k.Unlock(context.Background()); err != nil {
			b.Error(err)
		}
	})
}
