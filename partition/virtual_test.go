package partition_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
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
				h := newHistory(0)
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

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
