package qlock_test

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// Goroutines of one client get a lock from one another: first come, first served,
// each with a higher token, and with a handful of messages for all of them.
func TestHandoversWithinAClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		o := w.observe()
		a := w.client("a")
		const many = 500
		k := mustLock(t, a, "x")
		var waiters []*waiter
		for range many {
			waiters = append(waiters, waitFor(t.Context(), a.Lock, "x"))
		}
		settle()
		o.take()
		last := k.Token()
		for i, next := range waiters {
			mustUnlock(t, k)
			if i+1 < many && waiters[i+1].over() {
				t.Fatalf("waiter %d has the lock before waiter %d", i+1, i)
			}
			if k = next.held(t); k.Token() <= last {
				t.Fatalf("token %d after %d", k.Token(), last)
			}
			last = k.Token()
		}
		got := o.take()
		if got["acquire"] > 10 || got["release"]+got["acquired"]+got["released"] > 0 {
			t.Errorf("%d handovers published %v, want a few requests for tokens", many, got)
		}
		mustUnlock(t, k)
		if got := o.take(); got["release"] != 1 || got["released"] != 1 {
			t.Errorf("the end of it published %v, want a release and an event", got)
		}
		w.noClaims()
	})
}

// Readers of one client share its claim.
func TestReadersShareAClaim(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		first := mustRLock(t, a, "x")
		o := w.observe()
		var readers []*qlock.Lock
		for range 100 {
			readers = append(readers, mustRLock(t, a, "x"))
		}
		if got := o.take(); got["acquire"] > 1 {
			t.Errorf("100 more readers published %v, want one message for all", got)
		}
		for _, r := range readers {
			if r.Token() != first.Token() {
				t.Errorf("a reader's token is %d, the first one's %d", r.Token(), first.Token())
			}
		}
		// A writer elsewhere ends that: who reads from now on waits behind it.
		writer := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Millisecond)
		late := waitFor(t.Context(), a.RLock, "x")
		for _, r := range append(readers, first) {
			if writer.over() || late.over() {
				t.Fatal("somebody got the lock beside the readers")
			}
			mustUnlock(t, r)
		}
		k := writer.held(t)
		if late.over() {
			t.Fatal("a reader beside the writer")
		}
		mustUnlock(t, k)
		if r := late.held(t); r.Token() < k.Token() {
			t.Errorf("the reader's token is %d, the writer's before it %d", r.Token(), k.Token())
		} else {
			mustUnlock(t, r)
		}
		w.noClaims()
	})
}

// A claim that is kept serves its client without a message, and goes back at once
// when another waits, when its time is over, and at Close.
func TestRetention(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const d = 5 * time.Second
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithRetention(d)), w.client("b")
		last := uint64(0)
		o := w.observe()
		for range 50 {
			k := mustLock(t, a, "x")
			if k.Token() <= last {
				t.Fatalf("token %d after %d", k.Token(), last)
			}
			last = k.Token()
			mustUnlock(t, k)
		}
		if got := o.take(); got["acquire"] > 3 || got["release"] > 0 || got["acquired"] != 1 || got["released"] != 0 {
			t.Errorf("50 locks published %v, want those of one and some tokens", got)
		}
		start := time.Now()
		k := mustLock(t, b, "x")
		if time.Since(start) > 0 || k.Token() <= last {
			t.Errorf("another had it after %v with token %d, the last before was %d", time.Since(start), k.Token(), last)
		}
		if got := o.take(); got["released"] != 1 {
			t.Errorf("published %v, want that the kept lock was released", got)
		}
		mustUnlock(t, k)

		mustUnlock(t, mustLock(t, a, "x"))
		if w.claims(0) != 1 {
			t.Errorf("%d claims, want the kept one", w.claims(0))
		}
		time.Sleep(d + time.Second)
		w.noClaims()

		// A try elsewhere does not wait, so it may come too early; but it is heard.
		mustUnlock(t, mustLock(t, a, "x"))
		k, err := b.TryLock(t.Context(), "x")
		if err != nil {
			wantIs(t, err, qlock.ErrHeld)
			settle()
			k, err = b.TryLock(t.Context(), "x")
		}
		if err != nil {
			t.Errorf("a second try: %v", err)
		} else {
			mustUnlock(t, k)
		}

		mustUnlock(t, mustLock(t, a, "x"))
		mustUnlock(t, mustLock(t, a, "y"))
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		w.noClaims()
	})
}

// What is kept can be lost like what is held: the next holder asks anew.
func TestKeptLockIsLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a", qlock.WithRetention(time.Hour))
		b := w.client("b")
		mustUnlock(t, mustLock(t, a, "x"))
		nc.cut()
		time.Sleep(testLease / 2)
		near := mustLock(t, a, "x") // its votes stand yet
		mustUnlock(t, near)
		time.Sleep(testLease)
		k := mustLock(t, b, "x")
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Lock(short, "x"); err == nil {
			t.Fatal("two hold the lock")
		}
		mustUnlock(t, k)
		nc.mend()
		time.Sleep(2 * reconnectWait)
		again := mustLock(t, a, "x")
		if !(near.Token() < k.Token() && k.Token() < again.Token()) {
			t.Errorf("tokens %d, %d, %d", near.Token(), k.Token(), again.Token())
		}
		mustUnlock(t, again)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		w.noClaims()
	})
}

// What a Locker keeps and does not use is in the way of none of its own tries, of
// neither kind.
func TestTryBesideRetained(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithRetention(5*time.Second))
		takes := map[string]func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){"Lock": a.Lock, "RLock": a.RLock}
		tries := map[string]func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){"TryLock": a.TryLock, "TryRLock": a.TryRLock}
		for took, take := range takes {
			for tried, try := range tries {
				name := took + tried
				k, err := take(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				mustUnlock(t, k)
				if k, err = try(t.Context(), name); err != nil {
					t.Errorf("%s after %s and Unlock: %v", tried, took, err)
					continue
				}
				mustUnlock(t, k)
			}
		}
		m := a.RWMutex("m")
		m.RLock()
		//lint:ignore SA2001 it is about what is kept afterwards
		m.RUnlock()
		if !m.TryLock() {
			t.Fatal("RWMutex.TryLock fails on a mutex that nobody has")
		}
		m.Unlock()
		if !m.TryRLock() {
			t.Fatal("RWMutex.TryRLock fails on a mutex that nobody has")
		}
		m.RUnlock()
		time.Sleep(6 * time.Second)
		w.noClaims()
	})
}

// A retention without end is one that lasts until somebody else wants the lock.
func TestRetentionWithoutEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithRetention(math.MaxInt64)), w.client("b")
		time.Sleep(time.Millisecond)
		mustUnlock(t, mustLock(t, a, "x"))
		time.Sleep(time.Hour)
		settle()
		if n := w.claims(0); n != 1 {
			t.Errorf("%d claims after an hour, want the one that is kept", n)
		}
		mustUnlock(t, mustLock(t, b, "x"))
		w.noClaims()
	})
}

// A lock goes on among the goroutines of one Locker though others wait, within the
// bounds that were asked for.
func TestPassOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithPassOn(3, time.Minute)), w.client("b")
		var order string
		var waiters []*waiter
		later := func(l *qlock.Locker) *waiter {
			time.Sleep(time.Millisecond) // each is younger than those before
			return waitFor(t.Context(), l.Lock, "x")
		}
		k := mustLock(t, a, "x")
		b1 := later(b)
		for range 8 {
			waiters = append(waiters, later(a))
		}
		b2 := later(b)
		last := k.Token()
		for mustUnlock(t, k); len(order) < 10; mustUnlock(t, k) {
			switch {
			case b1 != nil && b1.over():
				k, b1, order = b1.held(t), nil, order+"b"
			case b2 != nil && b2.over():
				k, b2, order = b2.held(t), nil, order+"b"
			default:
				k, waiters, order = waiters[0].held(t), waiters[1:], order+"a"
			}
			if k.Token() <= last {
				t.Errorf("token %d after %d", k.Token(), last)
			}
			last = k.Token()
		}
		// Three more than the first at each turn; then whoever is the oldest.
		if order != "aaabaaaaab" {
			t.Errorf("order %s", order)
		}
		w.noClaims()
	})
}

// Who cannot have a lock because of his own process is told so.
func TestHeldByOneself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		time.Sleep(1500 * time.Millisecond)
		_, err := a.TryLock(t.Context(), "x")
		wantIs(t, err, qlock.ErrHeld)
		wantText(t, err, "held by a (exclusively) for 1.5s, by this same Locker: locks are not reentrant")
		_, err = a.Lock(timeout(t, time.Second), "x")
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		wantText(t, err, "held by a (exclusively) for 2.5s, by this same Locker: locks are not reentrant")
		_, err = w.client("a").TryLock(t.Context(), "x") // of the same name
		if err == nil || strings.Contains(err.Error(), "reentrant") {
			t.Errorf("another Locker of the same name: %v", err)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}
