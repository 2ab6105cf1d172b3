package partition_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/partition"
)

// In virtual time, what a loaded machine adds is gone: partitions have no two owners for
// any time at all, and after all faults they are balanced within a known time.
func TestVirtualFaults(t *testing.T) {
	const lease = testworld.Lease
	var most time.Duration
	for seed := range uint64(testworld.Worlds(3)) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			testworld.Run(t, func(t *testing.T, w *testworld.World) {
				const partitions = 64
				r := testworld.Rand(100 + seed)
				h := newHistory(nil)
				links, workers := map[string]*testworld.Link{}, map[string]*partition.Worker{}
				start := func() {
					id := string(rune('a' + len(links)))
					l, nc := w.Client(id)
					g, err := partition.New(l, "orders", partitions, partition.WithEvents(nc.Conn))
					if err != nil {
						t.Fatal(err)
					}
					links[id], workers[id] = nc, join(t, g, id, h.handler(id, time.Duration(r.IntN(2000))*time.Millisecond))
				}
				pick := func() string { return slices.Sorted(maps.Keys(workers))[r.IntN(len(workers))] }
				start()
				start()
				for range 12 {
					switch what := r.IntN(6); {
					case what == 0 && len(workers) < 6:
						start()
					case what == 1 && len(workers) > 2:
						id := pick()
						links[id].Mend()
						time.Sleep(time.Second)
						if err := workers[id].Leave(within(t, time.Minute)); err != nil {
							t.Error(err)
						}
						delete(workers, id)
					case what <= 3:
						links[pick()].Cut()
					case what == 4:
						links[pick()].Hush()
					default:
						links[pick()].Mend()
					}
					time.Sleep(upTo(r, 3*lease))
				}
				for _, l := range links {
					l.Mend()
				}
				took := h.balanced(t, 2*lease, partitions, slices.Sorted(maps.Keys(workers))...)
				most = max(most, took)
				for _, id := range slices.Sorted(maps.Keys(workers)) {
					if err := workers[id].Leave(within(t, time.Minute)); err != nil {
						t.Error(err)
					}
				}
				h.check(t)
			})
		})
	}
	t.Logf("balanced within %v after the last fault, with a lease of %v", most, lease)
}

// A partition whose lock is lost is not owned any more, though its handler takes its time.
func TestOwnedAfterLoss(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		l, nc := w.Client("a")
		g, err := partition.New(l, "orders", 1)
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		worker := join(t, g, "a", func(ctx context.Context, _ partition.Assignment) {
			<-ctx.Done()
			<-release
		})
		time.Sleep(time.Second)
		if got := worker.Owned(); !slices.Equal(got, []int{0}) {
			t.Fatalf("owned: %v", got)
		}
		nc.Cut()
		time.Sleep(2 * testworld.Lease)
		if got := worker.Owned(); len(got) > 0 {
			t.Errorf("owned after the loss: %v", got)
		}
		nc.Mend()
		testworld.WantText(t, worker.Leave(within(t, time.Second)), "still hands over 1 partitions")
		close(release)
		if err := worker.Leave(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

// A handler that ends its goroutine has returned: it is called again.
func TestHandlerExits(t *testing.T) {
	testworld.Run(t, func(t *testing.T, w *testworld.World) {
		l, _ := w.Client("a")
		g, err := partition.New(l, "orders", 1)
		if err != nil {
			t.Fatal(err)
		}
		calls := make(chan bool, 10)
		worker := join(t, g, "a", func(_ context.Context, a partition.Assignment) {
			calls <- true
			if len(calls) == 1 {
				runtime.Goexit()
			}
			<-a.Moving
		})
		time.Sleep(time.Second)
		if len(calls) != 2 {
			t.Errorf("called %d times, want 2", len(calls))
		}
		if err := worker.Leave(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
