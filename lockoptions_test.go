package qlock_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

func mustLockWith(t *testing.T, l *qlock.Locker, name string, opts ...qlock.LockOption) *qlock.Lock {
	t.Helper()
	k, err := l.Lock(timeout(t, time.Minute), name, opts...)
	if err != nil {
		t.Fatalf("Lock(%q): %v", name, err)
	}
	return k
}

// A lock that is to be held for a time at least is not had by anybody before that, here or
// elsewhere, though its owner has unlocked it.
func TestHoldAtLeast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		start := time.Now()
		k := mustLockWith(t, a, "x", qlock.HoldAtLeast(25*time.Second))
		time.Sleep(time.Second)
		mustUnlock(t, k)
		wantIs(t, context.Cause(k.Context()), qlock.ErrUnlocked)
		mustUnlock(t, k)
		if s := a.Stats(); s.Held != 0 {
			t.Errorf("%d held", s.Held)
		}
		if _, err := b.TryLock(t.Context(), "x"); !errors.Is(err, qlock.ErrHeld) {
			t.Errorf("another client: %v", err)
		}
		if _, err := a.TryLock(t.Context(), "x"); !errors.Is(err, qlock.ErrHeld) {
			t.Errorf("the same client: %v", err)
		}
		waiting := waitFor(t.Context(), b.Lock, "x")
		waiting.held(t)
		if d := time.Since(start); d != 25*time.Second {
			t.Errorf("another has it after %v", d)
		}
		mustUnlock(t, waiting.lock)

		// Who unlocks late gives it back at once.
		k = mustLockWith(t, a, "x", qlock.HoldAtLeast(time.Second))
		time.Sleep(2 * time.Second)
		mustUnlock(t, k)
		settle()
		if k, err := b.TryLock(t.Context(), "x"); err != nil {
			t.Error(err)
		} else {
			mustUnlock(t, k)
		}
		w.noClaims()
	})
}

// A Locker that is closed cannot hold on for longer than its lease.
func TestHoldAtLeastAndClose(t *testing.T) {
	for _, unlocked := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b := w.client("a"), w.client("b")
			k := mustLockWith(t, a, "x", qlock.HoldAtLeast(time.Hour))
			mustLockWith(t, a, "y")
			time.Sleep(5 * time.Second)
			if unlocked {
				mustUnlock(t, k)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			wantIs(t, context.Cause(k.Context()), qlock.ErrUnlocked)
			start := time.Now()
			mustUnlock(t, mustLock(t, b, "y"))
			if d := time.Since(start); d != 0 {
				t.Errorf("a lock that need not be held on is free after %v", d)
			}
			mustUnlock(t, mustLock(t, b, "x"))
			if d := time.Since(start); d < testLease || d > testLease+testLease/10 {
				t.Errorf("it was held for %v after Close", d)
			}
			w.noClaims()
		})
	}
}

// A lock that is to be held for a time at most ends then, and its owner is told why.
func TestHoldAtMost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLockWith(t, a, "x", qlock.HoldAtMost(15*time.Second), qlock.HoldAtLeast(20*time.Second))
		start := time.Now()
		waiting := waitFor(t.Context(), b.Lock, "x")
		<-k.Context().Done()
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("its context ended after %v", d)
		}
		wantIs(t, context.Cause(k.Context()), qlock.ErrHoldExpired)
		wantIs(t, k.Unlock(t.Context()), qlock.ErrHoldExpired)
		wantIs(t, qlock.Held(k.Context()), qlock.ErrNotHeld, qlock.ErrHoldExpired)
		waiting.held(t)
		if d := time.Since(start); d != 20*time.Second {
			t.Errorf("another has it after %v", d)
		}
		mustUnlock(t, waiting.lock)

		err := a.Do(t.Context(), "x", func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}, qlock.HoldAtMost(time.Second))
		wantIs(t, err, qlock.ErrHoldExpired)

		// One that ends before leaves nothing behind.
		k = mustLockWith(t, a, "x", qlock.HoldAtMost(time.Second))
		mustUnlock(t, k)
		time.Sleep(2 * time.Second)
		wantIs(t, context.Cause(k.Context()), qlock.ErrUnlocked)
		mustUnlock(t, k)
		if s := a.Stats(); s.Lost != 0 || s.Held != 0 {
			t.Errorf("%d lost, %d held", s.Lost, s.Held)
		}
		w.noClaims()
	})
}

// isClosed reports whether a channel is closed once all messages are delivered.
func isClosed(c <-chan struct{}) bool {
	settle()
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A holder that asks learns that somebody waits, whether or not it retains locks. One that
// does not ask costs no message.
func TestWanted(t *testing.T) {
	for _, retention := range []time.Duration{0, time.Minute} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b := w.client("a", qlock.WithRetention(retention)), w.client("b")
			k := mustLock(t, a, "x")
			wanted := k.Wanted()
			time.Sleep(time.Minute)
			if isClosed(wanted) || k.Wanted() != wanted {
				t.Fatal("nobody waits")
			}
			waiting := waitFor(t.Context(), b.Lock, "x")
			if !isClosed(wanted) {
				t.Fatal("it is not told of a client that waits")
			}
			mustUnlock(t, k)
			late := waiting.held(t)
			if isClosed(late.Wanted()) {
				t.Error("nobody waits any more")
			}

			// Asked for when somebody waits already.
			waiting = waitFor(t.Context(), a.Lock, "x")
			settle()
			if !isClosed(late.Wanted()) {
				t.Error("it is not told of who waited before it asked")
			}
			mustUnlock(t, late)
			k = waiting.held(t)

			// Another goroutine of the same Locker.
			waiting = waitFor(t.Context(), a.Lock, "x")
			if !isClosed(k.Wanted()) {
				t.Error("it is not told of a goroutine that waits")
			}
			mustUnlock(t, k)
			mustUnlock(t, waiting.held(t))
		})
	}
}

// A reader is told of a writer, and not of other readers.
func TestWantedByWriter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustRLock(t, a, "x")
		wanted := k.Wanted()
		settle()
		other := mustRLock(t, b, "x")
		another := mustRLock(t, a, "x")
		if isClosed(wanted) {
			t.Fatal("it is told of readers, which it is in nobody's way of")
		}
		mustUnlock(t, another)
		waiting := waitFor(t.Context(), b.Lock, "x")
		if !isClosed(wanted) {
			t.Error("it is not told of a writer")
		}
		mustUnlock(t, k)
		mustUnlock(t, other)
		mustUnlock(t, waiting.held(t))
		w.noClaims()
	})
}

// Who waits is told for whom, in which place, and again when that changes.
func TestWaitFunc(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		free := 0
		mustUnlock(t, mustLockWith(t, c, "x", qlock.WithWaitFunc(func(qlock.Waiting) { free++ })))
		if free != 0 {
			t.Errorf("it was told %d times that it waits for a free lock", free)
		}

		k := mustLock(t, a, "x")
		time.Sleep(time.Second)
		second := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Second)
		var mu sync.Mutex
		var said []qlock.Waiting
		heard := func() []qlock.Waiting {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(said)
		}
		third := waitFor(t.Context(), func(ctx context.Context, name string, _ ...qlock.LockOption) (*qlock.Lock, error) {
			return c.Lock(ctx, name, qlock.WithWaitFunc(func(w qlock.Waiting) {
				mu.Lock()
				defer mu.Unlock()
				said = append(said, w)
			}))
		}, "x")
		settle()
		told := heard()
		if len(told) == 0 {
			t.Fatal("it was told nothing")
		}
		first := told[len(told)-1]
		if h := first.Holder; h == nil || h.Client != "a" || !h.Held || h.For != 2*time.Second || first.Ahead != 1 || !first.Queued || first.Need != 2 || len(first.Nodes) != 3 {
			t.Errorf("it waits behind a and b, and was told %+v, %v", first, first.Holder)
		}
		if text := first.String(); !strings.Contains(text, `held by a (exclusively) for 2s, 1 ahead in the queue`) {
			t.Errorf("it says %q", text)
		}
		before := len(told)
		time.Sleep(testLease)
		if told = heard(); len(told) != before {
			t.Errorf("it was told %d times though nothing changed: %+v", len(told)-before, told[before:])
		}
		mustUnlock(t, k)
		k = second.held(t)
		time.Sleep(testLease / 2) // the nodes are asked again within a third of a lease
		told = heard()
		last := told[len(told)-1]
		if h := last.Holder; h == nil || h.Client != "b" || last.Ahead != 0 || !last.Queued {
			t.Errorf("b holds it now, and it was told %+v, %v", last, last.Holder)
		}
		mustUnlock(t, k)
		mustUnlock(t, third.held(t))
		w.noClaims()
	})
}

// Who waits for another goroutine of its own Locker is told so.
func TestWaitFuncOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		next := waitFor(t.Context(), a.Lock, "x")
		p := a.Start(t.Context(), "x")
		settle()
		if s := p.Status(); s.Holder == nil || !s.Holder.Own || s.Holder.Client != "a" || s.Ahead != 1 || !s.Queued {
			t.Errorf("%+v, %v", s, s.Holder)
		}
		changed := p.Changed()
		for isClosed(changed) {
			changed = p.Changed()
		}
		mustUnlock(t, k)
		if !isClosed(changed) {
			t.Error("it is not told that it is next")
		}
		if s := p.Status(); s.Ahead != 0 {
			t.Errorf("%+v", s)
		}
		mustUnlock(t, next.held(t))
		k, err := p.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}

func TestStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		p := a.Start(t.Context(), "x")
		if _, err := p.Lock(); !errors.Is(err, qlock.ErrPending) {
			t.Errorf("before anybody can have answered: %v", err)
		}
		settle()
		k, err := p.Lock()
		if err != nil || k.Token() == 0 || p.Name() != "x" {
			t.Fatal(k, err)
		}
		if s := p.Status(); s.Name != "x" || s.Holder != nil {
			t.Errorf("it is held, and waits: %+v", s)
		}

		// One that waits, is looked at, and given up.
		waits := b.Start(t.Context(), "x")
		time.Sleep(100 * time.Millisecond) // the nodes are asked again why it waits
		if s := waits.Status(); s.Holder == nil || s.Holder.Client != "a" || !s.Queued {
			t.Errorf("%+v", s)
		}
		waits.Cancel()
		waits.Cancel()
		<-waits.Done()
		_, err = waits.Lock()
		wantIs(t, err, qlock.ErrHeld, context.Canceled)

		// One whose context ends.
		ctx, cancel := context.WithCancel(t.Context())
		waits = b.Start(ctx, "x")
		time.Sleep(100 * time.Millisecond)
		cancel()
		<-waits.Done()
		_, err = waits.Lock()
		wantIs(t, err, qlock.ErrHeld, context.Canceled)

		// Its context has no part in a lock that is held.
		ctx, cancel = context.WithCancel(t.Context())
		reads := b.Start(ctx, "y", qlock.Shared())
		settle()
		cancel()
		settle()
		r, err := reads.Lock()
		if err != nil || !r.Shared() || r.Context().Err() != nil {
			t.Fatal(r, err)
		}
		reads.Cancel() // gives it back
		wantIs(t, context.Cause(r.Context()), qlock.ErrUnlocked)

		// Tries, and what cannot be.
		try := b.Start(t.Context(), "x", qlock.Try())
		<-try.Done()
		_, err = try.Lock()
		wantIs(t, err, qlock.ErrHeld)
		var e *qlock.LockError
		if !errors.As(err, &e) || e.Op != "try-lock" {
			t.Errorf("%v", err)
		}
		bad := b.Start(t.Context(), "")
		<-bad.Done()
		_, err = bad.Lock()
		wantIs(t, err, qlock.ErrInvalidName)
		bad.Cancel()
		mustUnlock(t, k)
		w.noClaims()

		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		closed := b.Start(t.Context(), "x")
		<-closed.Done()
		_, err = closed.Lock()
		wantIs(t, err, qlock.ErrClosed)
	})
}

// Who says that it has waited for long goes before who came meanwhile, at the nodes and among
// the goroutines of its own Locker.
func TestAge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		k := mustLock(t, a, "x")
		before := time.Now()
		time.Sleep(time.Second)
		other := b.Start(t.Context(), "x")
		time.Sleep(time.Second)
		own := c.Start(t.Context(), "x", qlock.WithAge(before.Add(500*time.Millisecond)))
		older := c.Start(t.Context(), "x", qlock.WithAge(before))
		future := a.Start(t.Context(), "z", qlock.WithAge(before.Add(time.Hour)))
		settle()
		mustUnlock(t, k)
		settle()
		for i, p := range []*qlock.Pending{older, own, other, future} {
			k, err := p.Lock()
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			mustUnlock(t, k)
			settle()
		}
		w.noClaims()
	})
}

func TestLockOptionsThatCannotBe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		for text, opt := range map[string]qlock.LockOption{
			"HoldAtLeast: 0s is not positive":  qlock.HoldAtLeast(0),
			"HoldAtMost: -1s is not positive":  qlock.HoldAtMost(-time.Second),
			"the options Shared and Try are f": qlock.Shared(),
			"use RLock or TryLock":             qlock.Try(),
		} {
			if _, err := a.Lock(t.Context(), "x", opt); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%q: %v", text, err)
			}
		}
		mustUnlock(t, mustLockWith(t, a, "x", nil, qlock.WithWaitFunc(nil), qlock.Note("what for")))
		w.noClaims()
	})
}

// Note stands before the notes of the context and the Locker.
func TestNote(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithNote("of all"))
		k, err := a.Lock(qlock.ContextWithNote(t.Context(), "of the context"), "x", qlock.Note("of\tthis"))
		if err != nil {
			t.Fatal(err)
		}
		if got := inspect(t, a, "x").Holders[0].Note; got != `of\tthis` {
			t.Errorf("%q", got)
		}
		mustUnlock(t, k)
	})
}

// What is promised to somebody else by Stands holds without another message.
func TestStands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, link := w.clientOn("a")
		b := w.client("b")
		k := mustLock(t, a, "x")
		if d := k.Stands(); d != stands(testLease) {
			t.Errorf("just granted, it stands for %v", d)
		}
		least := testLease
		for range 100 {
			time.Sleep(testLease / 20)
			least = min(least, k.Stands())
		}
		if least < testLease*6/10 || least > testLease*7/10 {
			t.Errorf("it stood for %v at least", least)
		}
		link.cut()
		left, cut := k.Stands(), time.Now()
		waiting := waitFor(t.Context(), b.Lock, "x")
		<-k.Context().Done()
		if d := time.Since(cut); d != left {
			t.Errorf("it was to stand for %v, and did for %v", left, d)
		}
		if d := k.Stands(); d != 0 {
			t.Errorf("it is lost, and stands for %v", d)
		}
		waiting.held(t)
		link.mend()
		mustUnlock(t, waiting.lock)
	})
}

// A wait for the answers to a refresh ends when a quorum has answered.
func TestAwaitRefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, link := w.clientOn("a")
		k := mustLock(t, a, "x")
		if err := k.AwaitRefresh(t.Context()); err != nil {
			t.Errorf("none is under way: %v", err)
		}
		link.cut()
		time.Sleep(testLease / 2) // one is sent, and is not answered
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wantIs(t, k.AwaitRefresh(ctx), context.DeadlineExceeded)
		before := k.Stands()
		done := make(chan error)
		go func() { done <- k.AwaitRefresh(t.Context()) }()
		settle()
		link.mend()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if after := k.Stands(); after <= before || after < testLease/2 {
			t.Errorf("it stood for %v, and stands for %v", before, after)
		}

		link.cut()
		time.Sleep(testLease / 2)
		wantIs(t, k.AwaitRefresh(t.Context()), qlock.ErrLost)
		link.mend()
		wantIs(t, k.Unlock(t.Context()), qlock.ErrLost)
	})
}

// An evicted lock whose owner gives it back is held until then, and its context has ended.
func TestManualRelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, ops := w.client("a"), w.client("b"), w.client("ops")
		evict := func() {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := ops.Evict(ctx, "x", inspect(t, ops, "x").Holders[0], "its disk is full"); err == nil {
				t.Error("it is evicted while its owner has it yet")
			}
		}
		k := mustLockWith(t, a, "x", qlock.WithManualRelease())
		waiting := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Millisecond)
		own := waitFor(t.Context(), a.Lock, "x")
		evict()
		wantIs(t, context.Cause(k.Context()), qlock.ErrEvicted, qlock.ErrLost)
		time.Sleep(time.Second)
		if waiting.over() || own.over() {
			t.Fatal("another has it already")
		}
		wantIs(t, k.Unlock(t.Context()), qlock.ErrEvicted)
		mustUnlock(t, waiting.held(t))
		mustUnlock(t, own.held(t))

		// One that does not care loses it when its lease is over, and not before it said.
		k = mustLockWith(t, a, "x", qlock.WithManualRelease())
		promised, since := k.Stands(), time.Now()
		waiting = waitFor(t.Context(), b.Lock, "x")
		evict()
		waiting.held(t)
		if d := time.Since(since); d < promised || d > 2*testLease {
			t.Errorf("it was to stand for %v, and another had it after %v", promised, d)
		}
		wantIs(t, k.Unlock(t.Context()), qlock.ErrEvicted)
		mustUnlock(t, waiting.lock)
		if s := a.Stats(); s.Lost != 2 {
			t.Errorf("%d lost", s.Lost)
		}
		w.noClaims()
	})
}
