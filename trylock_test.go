package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A try fails as soon as the holder's quorum of nodes has reported the holder
// (C10), which takes no time here, and says who that is and since when.
func TestTryLockSaysWhoHolds(t *testing.T) {
	type try = func(*qlock.Locker, context.Context, string, ...qlock.LockOption) (*qlock.Lock, error)
	tests := []struct {
		name       string
		hold       try
		try        try
		op, holder string
		shared     bool
	}{
		{"writer against writer", (*qlock.Locker).Lock, (*qlock.Locker).TryLock, "try-lock", "held by svc-a (exclusively) for 2.5s", false},
		{"reader against writer", (*qlock.Locker).Lock, (*qlock.Locker).TryRLock, "try-rlock", "held by svc-a (exclusively) for 2.5s", false},
		{"writer against reader", (*qlock.Locker).RLock, (*qlock.Locker).TryLock, "try-lock", "held by svc-a (shared) for 2.5s", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				a, b := w.client("svc-a"), w.client("svc-b")
				k, err := tt.hold(a, t.Context(), "orders.42")
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(2500 * time.Millisecond)
				start := time.Now()
				_, err = tt.try(b, t.Context(), "orders.42")
				if d := time.Since(start); d != 0 {
					t.Errorf("the try took %v", d)
				}
				wantIs(t, err, qlock.ErrHeld)
				if want := fmt.Sprintf(`qlock: %s "orders.42": %s`, tt.op, tt.holder); err == nil || err.Error() != want {
					t.Errorf("error text\n%v, want\n%s", err, want)
				}
				var e *qlock.LockError
				if !errors.As(err, &e) {
					t.Fatalf("error is a %T, want *LockError", err)
				}
				if e.Op != tt.op || e.Name != "orders.42" || e.Reason != qlock.ErrHeld || e.Cause != nil || e.Need != 2 || len(e.Nodes) != 3 {
					t.Errorf("LockError %+v", e)
				}
				if want := (qlock.Holder{Client: "svc-a", Shared: tt.shared, Held: true, For: 2500 * time.Millisecond}); e.Holder == nil || *e.Holder != want {
					t.Errorf("Holder %+v, want %+v", e.Holder, want)
				}
				if e.Votes() != 0 {
					t.Errorf("%d votes", e.Votes())
				}

				// The failed try left nothing behind.
				mustUnlock(t, k)
				w.noClaims()
				k, err = tt.try(b, t.Context(), "orders.42")
				if err != nil {
					t.Fatalf("a try on a free lock: %v", err)
				}
				mustUnlock(t, k)
			})
		})
	}
}

// A try does not go before those who wait, and names who waits ahead when nobody
// holds.
func TestTryRLockStaysBehindWaitingWriter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		k := mustRLock(t, w.client("reader"), "x")
		time.Sleep(time.Second)
		writer := waitFor(t.Context(), w.client("writer").Lock, "x")
		time.Sleep(time.Second)
		_, err := w.client("late").TryRLock(t.Context(), "x")
		wantIs(t, err, qlock.ErrHeld)
		wantText(t, err, "try-rlock", "awaited, ahead of this claim, by writer (exclusively) for 1s")
		mustUnlock(t, k)
		mustUnlock(t, writer.held(t))
		w.noClaims()
	})
}

func TestTryRLockJoinsReaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustRLock(t, a, "x")
		k2, err := b.TryRLock(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, k)
		mustUnlock(t, k2)
		w.noClaims()
	})
}

// Without a deadline of its caller's a try is bounded by the lease.
func TestTryLockIsBoundedByTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		for _, tn := range w.nodes[1:] {
			tn.crash()
		}
		start := time.Now()
		_, err := a.TryLock(t.Context(), "x")
		if d := time.Since(start); d != testLease {
			t.Errorf("the try took %v, want the lease of %v", d, testLease)
		}
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, `try-lock "x"`, "no quorum", "1 of 3 nodes voted, 2 are needed", "n1 voted, n2 silent, n3 silent")

		start = time.Now()
		_, err = a.TryRLock(timeout(t, time.Second), "x")
		if d := time.Since(start); d != time.Second {
			t.Errorf("the try took %v, want the second that its context had", d)
		}
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		w.noClaims()
	})
}

// Of tries at the same moment on a free lock one succeeds, for any number of
// nodes, odd or even: a split vote is settled by recalls, and is no failure (C10). All
// others learn at once that they are too late, and not when they ask again: what is in
// their way changes while the votes are settled, and they are told (N5).
func TestTriesOnFreeLockNeverAllFail(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, n)
				var lockers []*qlock.Locker
				for i := range 6 {
					lockers = append(lockers, w.client(fmt.Sprintf("c%d", i)))
				}
				for round := range 100 {
					rivals := lockers[:2+round%5]
					locks := make([]*qlock.Lock, len(rivals))
					errs := make([]error, len(rivals))
					var wg sync.WaitGroup
					begin := time.Now()
					start := make(chan struct{})
					for i, l := range rivals {
						wg.Go(func() {
							<-start
							if i == 1 && round%3 == 0 {
								locks[i], errs[i] = l.TryRLock(t.Context(), "x")
							} else {
								locks[i], errs[i] = l.TryLock(t.Context(), "x")
							}
						})
					}
					settle()
					close(start)
					wg.Wait()
					won := 0
					for i := range rivals {
						if errs[i] == nil {
							won++
							mustUnlock(t, locks[i])
						} else if !errors.Is(errs[i], qlock.ErrHeld) {
							t.Errorf("round %d: %v", round, errs[i])
						}
					}
					if won != 1 {
						t.Fatalf("round %d: %d of %d tries had the lock, want one: %v", round, won, len(rivals), errs)
					}
					if d := time.Since(begin); d > 0 { // messages take no time
						t.Errorf("round %d: the last of %d tries took %v: %v", round, len(rivals), d, errs)
					}
					// An acquire may overtake its claim's release; then it is swept (C9).
					time.Sleep(testLease / 100)
					settle()
					w.noClaims()
				}
			})
		})
	}
}
