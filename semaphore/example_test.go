package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/semaphore"
)

// render draws a picture, while at most three other programs do so anywhere.
func render(ctx context.Context, locker *qlock.Locker, draw func(ctx context.Context, card int) error) error {
	sem, err := semaphore.New(locker, "renders", 4)
	if err != nil {
		return err
	}
	permits, err := sem.Acquire(ctx, 1)
	if err != nil {
		return err
	}
	defer permits.Release(ctx)
	return draw(permits.Context(), permits.Numbers()[0]) // the permit has a number from 1 to 4
}

// Ten programs render pictures, four of them at a time.
func Example() {
	ctx := context.Background()
	locker, stop := newLocker("renderer") // each program has its own
	defer stop()

	var now, most atomic.Int64
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			err := render(ctx, locker, func(context.Context, int) error {
				n := now.Add(1)
				defer now.Add(-1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(20 * time.Millisecond)
				return nil
			})
			if err != nil {
				log.Fatal(err)
			}
		})
	}
	all.Wait()
	fmt.Println("at most four at once:", most.Load() <= 4)
	// Output: at most four at once: true
}

// Two permits of three are taken at once, or none.
func ExampleSemaphore_TryAcquire() {
	ctx := context.Background()
	locker, stop := newLocker("renderer")
	defer stop()
	sem, err := semaphore.New(locker, "renders", 3)
	if err != nil {
		log.Fatal(err)
	}

	permits, err := sem.TryAcquire(ctx, 2)
	fmt.Println("permits:", len(permits.Numbers()), err)
	_, err = sem.TryAcquire(ctx, 2)
	fmt.Println("not free:", errors.Is(err, qlock.ErrHeld))
	if err := permits.Release(ctx); err != nil {
		log.Fatal(err) // a permit was lost before
	}
	// Output:
	// permits: 2 <nil>
	// not free: true
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
