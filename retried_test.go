package qlock_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A request that comes when another one of its Locker was given up learns who is in its way, also
// if the Locker's refresh comes before the nodes were asked why it waits. When that is, differs
// between Lockers.
func TestRetriedWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		var others []*qlock.Locker
		for i := range 30 {
			others = append(others, w.client(fmt.Sprint("b", i)))
		}
		start := func() (all []*qlock.Pending) {
			for _, l := range others {
				all = append(all, l.Start(t.Context(), "x"))
			}
			return all
		}
		for range 10 {
			first := start()
			time.Sleep(testLease/3 - testLease/60)
			for _, p := range first {
				p.Cancel()
			}
			again := start()
			time.Sleep(testLease)
			for _, p := range again {
				p.Cancel()
				_, err := p.Lock()
				wantIs(t, err, qlock.ErrHeld)
			}
			time.Sleep(testLease)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}
