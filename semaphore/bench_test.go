package semaphore_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/semaphore"
)

// onCluster runs a benchmark on three embedded servers with a Locker each, on connections
// inside the process.
func onCluster(b *testing.B, f func(b *testing.B, lockers []*qlock.Locker)) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cluster.Close() }()
	var lockers []*qlock.Locker
	for i, s := range cluster.Servers() {
		l, err := qlock.New(ctx, s.Conn(), qlock.WithName(fmt.Sprintf("bench-%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		lockers = append(lockers, l)
	}
	b.ResetTimer()
	f(b, lockers)
	b.StopTimer()
}

// BenchmarkSemaphore compares a permit with a plain lock: alone, where nobody else wants
// one, and busy, where four goroutines for each processor, in three clients, want the same.
// The plain lock lets one in at a time, the semaphore as many as its limit.
func BenchmarkSemaphore(b *testing.B) {
	type user func(l *qlock.Locker) func() error
	ctx := context.Background()
	lock := func(l *qlock.Locker) func() error {
		return func() error {
			k, err := l.Lock(ctx, "renders")
			if err != nil {
				return err
			}
			return k.Unlock(ctx)
		}
	}
	permits := func(limit int) user {
		return func(l *qlock.Locker) func() error {
			s, err := semaphore.New(l, "renders", limit)
			if err != nil {
				b.Fatal(err)
			}
			return func() error {
				p, err := s.Acquire(ctx, 1)
				if err != nil {
					return err
				}
				return p.Release(ctx)
			}
		}
	}
	for _, c := range []struct {
		name string
		use  user
	}{{"lock", lock}, {"limit=1", permits(1)}, {"limit=4", permits(4)}, {"limit=64", permits(64)}} {
		b.Run("alone/"+c.name, func(b *testing.B) {
			onCluster(b, func(b *testing.B, lockers []*qlock.Locker) {
				use := c.use(lockers[0])
				for b.Loop() {
					if err := use(); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run("busy/"+c.name, func(b *testing.B) {
			onCluster(b, func(b *testing.B, lockers []*qlock.Locker) {
				var n atomic.Int64
				b.SetParallelism(4)
				b.RunParallel(func(pb *testing.PB) {
					use := c.use(lockers[int(n.Add(1))%len(lockers)])
					for pb.Next() {
						if err := use(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		})
	}
}
