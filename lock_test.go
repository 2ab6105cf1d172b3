package qlock_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

func TestLockTokensRise(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		lockers := []*qlock.Locker{w.client("a"), w.client("b")}
		last := uint64(0)
		for i := range 20 {
			k := mustLock(t, lockers[i%2], "x")
			if k.Name() != "x" || k.Shared() {
				t.Errorf("the lock is on %q, shared %v", k.Name(), k.Shared())
			}
			if k.Token() <= last || k.Token() >= 1<<53 {
				t.Errorf("token %d after %d", k.Token(), last)
			}
			last = k.Token()
			mustUnlock(t, k)
		}
		w.noClaims()
	})
}

// A reader's token is not below the writer's before it, and the next writer's is
// above both, at clusters of every size and with a minority of nodes dead.
func TestEverySizeOfCluster(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 8, 16} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, n)
				a, b := w.client("a"), w.client("b")
				if got := len(a.Nodes()); got != n {
					t.Errorf("the Locker knows %d nodes, want %d", got, n)
				}
				round := func(before uint64) uint64 {
					t.Helper()
					k := mustLock(t, a, "x")
					next := waitFor(t.Context(), b.RLock, "x")
					if next.over() {
						t.Errorf("a reader beside the writer: %v", next.err)
					}
					mustUnlock(t, k)
					r := next.held(t)
					r2 := mustRLock(t, a, "x")
					if k.Token() <= before || r.Token() < k.Token() || r2.Token() < k.Token() {
						t.Errorf("tokens %d, then readers' %d and %d after %d", k.Token(), r.Token(), r2.Token(), before)
					}
					mustUnlock(t, r)
					mustUnlock(t, r2)
					return max(r.Token(), r2.Token())
				}
				token := round(0)
				for _, tn := range w.nodes[:(n-1)/2] {
					tn.crash()
				}
				round(token)
				w.noClaims()
			})
		})
	}
}

// An uncontended lock is one request out and the nodes' answers back. What follows
// is one refresh that names no claim, should the release have been lost (C6), and
// silence.
func TestUncontendedLockIsOneAcquireAndOneRelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithoutEvents())
		o := w.observe()
		o.take()
		start := time.Now()
		k := mustLock(t, a, "x")
		if d := time.Since(start); d != 0 {
			t.Errorf("the lock took %v beyond the round trip", d)
		}
		settle() // the third node's answer comes before the release
		mustUnlock(t, k)
		if got := o.take(); len(got) != 2 || got["acquire"] != 1 || got["release"] != 1 {
			t.Errorf("a lock and its unlock published %v, want one acquire and one release", got)
		}
		w.noClaims()

		time.Sleep(10 * time.Minute)
		got := o.take()
		delete(got, "info") // the nodes' probes (N9)
		if len(got) != 1 || got["refresh"] != 1 {
			t.Errorf("an idle Locker published %v in ten minutes, want one refresh", got)
		}
	})
}

// An answer that comes after the release is not answered one by one: the nodes are
// told in one refresh for many (C9).
func TestLateAnswersAreSweptTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithoutEvents())
		o := w.observe()
		o.take()
		for range 50 {
			mustUnlock(t, mustLock(t, a, "x"))
		}
		time.Sleep(testLease / 10)
		got := o.take()
		delete(got, "info")
		if got["acquire"] != 50 || got["release"] != 50 || got["refresh"] > 1 || len(got) > 3 {
			t.Errorf("50 locks and unlocks published %v", got)
		}
		w.noClaims()
	})
}

// A waiter does not poll: while it waits it publishes nothing but what it would
// for a lock that it holds, and it has the lock at the moment of the release.
func TestWaiterDoesNotPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithoutEvents()), w.client("b", qlock.WithoutEvents())
		o := w.observe()
		k := mustLock(t, a, "x")
		time.Sleep(time.Millisecond) // or the waiter might be the older one
		next := waitFor(t.Context(), b.Lock, "x")
		if got := o.take(); got["acquire"] != 2 {
			t.Errorf("the holder and the waiter published %v", got)
		}
		const leases = 5
		time.Sleep(leases * testLease)
		if next.over() {
			t.Fatalf("two holders: %v", next.err)
		}
		got := o.take()
		delete(got, "info")
		if len(got) != 1 || got["refresh"] > 2*(leases*10/3+1) {
			t.Errorf("in %d leases a holder and a waiter published %v, want no more than 10 refreshes each in three leases", leases, got)
		}
		mustUnlock(t, k)
		released := time.Now()
		next.held(t)
		if d := time.Since(released); d != 0 {
			t.Errorf("the waiter had the lock %v after the release, want one message delay, which is nothing here", d)
		}
		if next.waited != leases*testLease {
			t.Errorf("waited %v, want %v", next.waited, leases*testLease)
		}
		if got := o.take(); len(got) != 1 || got["release"] != 1 {
			t.Errorf("the handover published %v, want a release", got)
		}
		mustUnlock(t, next.lock)
		w.noClaims()
	})
}

// Waiters are served by age (N5), whoever they are, and each with a higher token.
func TestWaitersAreServedInOrderOfAge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		k := mustLock(t, w.client("holder"), "x")
		lockers := []*qlock.Locker{w.client("a"), w.client("b"), w.client("c")}
		var waiters []*waiter
		for i := range 9 {
			time.Sleep(time.Millisecond)
			waiters = append(waiters, waitFor(t.Context(), lockers[i%3].Lock, "x"))
		}
		last := k.Token()
		mustUnlock(t, k)
		for i, next := range waiters {
			for j, later := range waiters[i+1:] {
				if later.over() {
					t.Fatalf("waiter %d has the lock before waiter %d: %v", i+1+j, i, later.err)
				}
			}
			if !next.over() {
				t.Fatalf("waiter %d does not have the lock", i)
			}
			if next.held(t).Token() <= last {
				t.Errorf("token %d after %d", next.lock.Token(), last)
			}
			last = next.lock.Token()
			mustUnlock(t, next.lock)
		}
		w.noClaims()
	})
}

func TestReadersTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		var readers []*waiter
		for range 5 {
			readers = append(readers, waitFor(t.Context(), a.RLock, "x"), waitFor(t.Context(), b.RLock, "x"))
		}
		for _, r := range readers {
			if r.over() {
				t.Fatalf("a reader beside the writer: %v", r.err)
			}
		}
		mustUnlock(t, k)
		for _, r := range readers {
			if !r.over() {
				t.Fatal("a reader waits though only readers have the lock")
			}
			if !r.held(t).Shared() || r.lock.Token() < k.Token() {
				t.Errorf("reader's token %d after the writer's %d, shared %v", r.lock.Token(), k.Token(), r.lock.Shared())
			}
		}
		writer := waitFor(t.Context(), b.Lock, "x")
		for i, r := range readers {
			if writer.over() {
				t.Fatalf("a writer beside %d readers: %v", len(readers)-i, writer.err)
			}
			mustUnlock(t, r.lock)
		}
		if token := writer.held(t).Token(); token <= readers[0].lock.Token() {
			t.Errorf("writer's token %d after the readers' %d", token, readers[0].lock.Token())
		}
		mustUnlock(t, writer.lock)
		w.noClaims()
	})
}

// Readers that come after a waiting writer wait behind it, so that readers without
// end cannot keep it out.
func TestWriterIsNotStarved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		early := mustRLock(t, a, "x")
		time.Sleep(time.Millisecond)
		writer := waitFor(t.Context(), b.Lock, "x")
		var late []*waiter
		for range 5 {
			time.Sleep(time.Millisecond)
			late = append(late, waitFor(t.Context(), a.RLock, "x"))
		}
		if writer.over() || slices.ContainsFunc(late, (*waiter).over) {
			t.Fatal("the lock was given to somebody beside or before the waiting writer")
		}
		mustUnlock(t, early)
		k := writer.held(t)
		if slices.ContainsFunc(late, (*waiter).over) {
			t.Fatal("a reader beside the writer")
		}
		mustUnlock(t, k)
		for _, r := range late {
			mustUnlock(t, r.held(t))
		}
		w.noClaims()
	})
}

// However many locks are held, there is one subscription and one goroutine, and
// they are kept by one refresh for all (C6).
func TestHeldLocksCostNeitherGoroutineNorSubscription(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a", qlock.WithoutEvents())
		o := w.observe()
		mustUnlock(t, mustLock(t, a, "first"))
		settle()
		goroutines, subs := runtime.NumGoroutine(), nc.NumSubscriptions()
		var held []*qlock.Lock
		for i := range 1000 {
			held = append(held, mustLock(t, a, fmt.Sprintf("x.%d", i)))
		}
		time.Sleep(testLease / 30)
		// A few are the runtime's own, and come and go.
		if got := runtime.NumGoroutine(); got > goroutines+10 {
			t.Errorf("%d goroutines with 1,000 locks held, %d before", got, goroutines)
		}
		if got := nc.NumSubscriptions(); got != subs {
			t.Errorf("%d subscriptions with 1,000 locks held, %d before", got, subs)
		}
		if got := w.nodes[0].link.NumSubscriptions(); got != 3 {
			t.Errorf("a node has %d subscriptions, want 3", got)
		}
		o.take()
		time.Sleep(10 * testLease)
		got := o.take()
		delete(got, "info")
		if len(got) != 1 || got["refresh"] > 34 {
			t.Errorf("holding 1,000 locks for 10 leases published %v, want no more than 34 refreshes", got)
		}
		for _, k := range held {
			if k.Context().Err() != nil {
				t.Fatalf("%s is not held any more: %v", k.Name(), context.Cause(k.Context()))
			}
			mustUnlock(t, k)
		}
		w.noClaims()
	})
}

type keyOfTest struct{}

// A function that is given a context finds the innermost lock that it comes from.
func TestFromContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		if l, ok := qlock.FromContext(t.Context()); ok || l != nil {
			t.Errorf("%v from no lock", l)
		}
		err := a.Do(t.Context(), "x", func(outer context.Context) error {
			k, err := a.RLock(outer, "y")
			if err != nil {
				return err
			}
			l, ok := qlock.FromContext(context.WithValue(k.Context(), keyOfTest{}, 1))
			if !ok || l != k || l.Name() != "y" || !l.Shared() {
				t.Errorf("%v, %v", l, ok)
			}
			if l, ok := qlock.FromContext(outer); !ok || l.Name() != "x" || l.Token() != qlock.Token(outer) {
				t.Errorf("%v, %v", l, ok)
			}
			return k.Unlock(outer)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
