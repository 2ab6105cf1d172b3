package semaphore_test

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/semaphore"
)

// Ten programs render pictures, and two of them at a time.
func Example() {
	ctx := context.Background()
	locker, stop := newLocker("renderer") // each program has its own
	defer stop()

	sem, err := semaphore.New(locker, "renders", 2)
	if err != nil {
		log.Fatal(err)
	}
	var now, most atomic.Int64
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			permits, err := sem.Acquire(ctx, 1)
			if err != nil {
				log.Fatal(err)
			}
			defer permits.Release(ctx)
			// Work under permits.Context(). The number tells which of two cards to use.
			_ = permits.Numbers()[0]
			n := now.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(10 * time.Millisecond)
			now.Add(-1)
		})
	}
	all.Wait()
	fmt.Println("rendering at once:", most.Load())
	// Output: rendering at once: 2
}

// newLocker makes a Locker on NATS with one node.
func newLocker(name string) (*qlock.Locker, func()) {
	cluster, err := embedded.StartCluster(context.Background(), 1)
	if err != nil {
		log.Fatal(err)
	}
	locker, err := qlock.New(context.Background(), cluster.Servers()[0].Conn(), qlock.WithName(name))
	if err != nil {
		log.Fatal(err)
	}
	return locker, func() {
		_ = locker.Close()
		_ = cluster.Close()
	}
}
