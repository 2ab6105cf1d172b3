package qlock_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/wire"
)

// A waiter whose context ends leaves the queue at once, and the next in line gets
// the lock at the release.
func TestGivingUpLeavesTheQueue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		k := mustLock(t, w.client("svc-a"), "orders.42")
		time.Sleep(1500 * time.Millisecond)
		gone := waitFor(timeout(t, 2*time.Second), w.client("svc-b").Lock, "orders.42")
		time.Sleep(time.Millisecond)
		next := waitFor(t.Context(), w.client("svc-c").Lock, "orders.42")
		for i := range w.nodes {
			if got := w.claims(i); got != 3 {
				t.Errorf("%s has %d claims, want 3", w.nodes[i].Name(), got)
			}
		}
		<-gone.done
		if gone.waited != 2*time.Second {
			t.Errorf("gave up after %v", gone.waited)
		}
		settle()
		for i := range w.nodes {
			if got := w.claims(i); got != 2 {
				t.Errorf("%s has %d claims after one gave up, want 2", w.nodes[i].Name(), got)
			}
		}
		wantIs(t, gone.err, qlock.ErrHeld, context.DeadlineExceeded)
		if want := `qlock: lock "orders.42": held by svc-a (exclusively) for 3.5s: context deadline exceeded`; gone.err.Error() != want {
			t.Errorf("error\n%v, want\n%s", gone.err, want)
		}
		var e *qlock.LockError
		if !errors.As(gone.err, &e) || e.Holder == nil || e.Holder.Client != "svc-a" || e.Holder.For != 3500*time.Millisecond || e.Cause == nil {
			t.Errorf("LockError %+v", e)
		}
		for _, n := range e.Nodes {
			if n.Answer != "queued" {
				t.Errorf("node %+v, want queued", n)
			}
		}
		mustUnlock(t, k)
		if !next.over() {
			t.Error("the next waiter does not have the lock")
		}
		mustUnlock(t, next.held(t))
		w.noClaims()
	})
}

// When the one who gives up was first in line, those behind it that could have
// been together with the holder do not wait for the holder.
func TestGivingUpLetsReadersPass(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustRLock(t, a, "x")
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		writer := waitFor(ctx, b.Lock, "x")
		time.Sleep(time.Millisecond)
		reader := waitFor(t.Context(), b.RLock, "x")
		if reader.over() {
			t.Fatal("a reader passed a waiting writer")
		}
		cancel()
		if !reader.over() {
			t.Error("the reader still waits for a writer that gave up")
		}
		<-writer.done
		wantIs(t, writer.err, qlock.ErrHeld, context.Canceled)
		wantText(t, writer.err, "held by a (shared)")
		mustUnlock(t, reader.held(t))
		mustUnlock(t, k)
		w.noClaims()
	})
}

// The context's own error and its cause are both found.
func TestGivingUpWithCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, w.client("b"), "x")
		cause := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		waiting := waitFor(ctx, a.Lock, "x")
		cancel(cause)
		<-waiting.done
		wantIs(t, waiting.err, qlock.ErrHeld, context.Canceled, cause)
		wantText(t, waiting.err, "held by b", "shutting down")

		// And so before anything was asked.
		_, err := a.Lock(ctx, "x")
		wantIs(t, err, context.Canceled, cause)
		wantText(t, err, "not asked", "shutting down")
		mustUnlock(t, k)
		w.noClaims()
	})
}

func TestErrNoQuorumTellsOfEachNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 5)
		a := w.client("a")
		w.nodes[1].crash()
		w.nodes[2].crash()
		w.nodes[3].crash()
		w.nodes[3].start() // in quarantine, for 34.6 s (N8)
		_, err := a.Lock(timeout(t, 3*time.Second), "orders.42")
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		const want = `qlock: lock "orders.42": no quorum: 2 of 5 nodes voted, 3 are needed: ` +
			`n1 voted, n2 silent, n3 silent, n4 recovering (votes again in 31.3s), n5 voted: context deadline exceeded`
		if err.Error() != want {
			t.Errorf("error\n%v, want\n%s", err, want)
		}
		var e *qlock.LockError
		if !errors.As(err, &e) {
			t.Fatalf("a %T", err)
		}
		if e.Op != "lock" || e.Name != "orders.42" || e.Need != 3 || e.Votes() != 2 || len(e.Nodes) != 5 || e.Holder != nil {
			t.Errorf("LockError %+v", e)
		}
		if got := e.Silent(); len(got) != 2 || got[0] != "n2" || got[1] != "n3" {
			t.Errorf("silent: %v", got)
		}
		if n := e.Nodes[3]; n.Answer != "recovering" || n.Waiting != quarantine-300*time.Millisecond-3*time.Second {
			t.Errorf("node %+v, want recovering for %v", n, quarantine-300*time.Millisecond-3*time.Second)
		}
		w.noClaims()

		// With one node more there is a quorum, and the same call succeeds.
		waiting := waitFor(t.Context(), a.Lock, "orders.42")
		if waiting.over() {
			t.Fatalf("two of five votes are a lock: %v", waiting.err)
		}
		mustUnlock(t, waiting.held(t))
		if waiting.waited > quarantine {
			t.Errorf("waited %v, though a node came back after %v", waiting.waited, quarantine)
		}
	})
}

// endedAtOnce is a context that has ended when somebody waits for it, but not
// before.
type endedAtOnce struct {
	context.Context
	done chan struct{}
}

func (c *endedAtOnce) Done() <-chan struct{} {
	select {
	case <-c.done:
	default:
		close(c.done)
	}
	return c.done
}

func (c *endedAtOnce) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// The votes come when the claim is over already: they are given back (C9).
func TestGrantAfterGivingUpIsGivenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		for range 20 {
			// Nothing has been handled yet when the context ends, for want of time; or
			// all of it has, on a fast machine. Either way nothing may be left.
			k, err := a.Lock(&endedAtOnce{t.Context(), make(chan struct{})}, "x")
			if err == nil {
				mustUnlock(t, k)
			} else {
				wantIs(t, err, context.Canceled)
			}
			settle()
			k, err = b.TryLock(t.Context(), "x")
			if err != nil {
				t.Fatalf("the lock is not free: %v", err)
			}
			mustUnlock(t, k)
		}
		time.Sleep(testLease)
		w.noClaims()
	})
}

// endedWithGrant is a context that ends when all that is under way has been done:
// a call that waits for it finds its lock granted and its context ended.
type endedWithGrant struct{ endedAtOnce }

func (c *endedWithGrant) Done() <-chan struct{} {
	synctest.Wait()
	return c.endedAtOnce.Done()
}

// The grant comes in the very moment when the context ends. Whichever the call
// sees first, the caller has the lock or nobody has.
func TestGrantWhileGivingUpIsGivenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		o := w.observe()
		granted, givenUp := 0, 0
		for range 64 { // each is one or the other by the toss of a coin, select's
			o.take()
			ctx := &endedWithGrant{endedAtOnce{t.Context(), make(chan struct{})}}
			k, err := a.Lock(ctx, "x")
			if err == nil {
				granted++
				if k.Context().Err() != nil {
					t.Errorf("Lock gave a lock that has ended: %v", context.Cause(k.Context()))
				}
				mustUnlock(t, k)
			} else {
				givenUp++
				wantIs(t, err, context.Canceled)
			}
			if got := o.take(); got["acquired"] != 1 || got["released"] != 1 || got["release"] != 1 {
				t.Errorf("published %v, error %v", got, err)
			}
			k, err = b.TryLock(t.Context(), "x")
			if err != nil {
				t.Fatalf("the lock is not free: %v", err)
			}
			mustUnlock(t, k)
			w.noClaims()
		}
		if granted == 0 || givenUp == 0 {
			t.Errorf("%d granted, %d given up: one of the two was not tested", granted, givenUp)
		}
	})
}

// A try fails by itself in the very moment when the context ends: it says why it
// failed.
func TestFailureWhileGivingUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		for range 16 {
			_, err := b.TryLock(&endedWithGrant{endedAtOnce{timeout(t, time.Minute), make(chan struct{})}}, "x")
			wantIs(t, err, qlock.ErrHeld)
			wantText(t, err, `qlock: try-lock "x": held by a`)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}

// The release and the end of the next in line's wait fall on the same moment.
func TestReleaseAtTheDeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		for range 30 {
			k := mustLock(t, a, "x")
			next := waitFor(timeout(t, time.Second), b.Lock, "x")
			time.AfterFunc(time.Second, func() { mustUnlock(t, k) })
			last := waitFor(t.Context(), c.Lock, "x")
			<-next.done
			if next.err == nil {
				mustUnlock(t, next.lock)
			} else {
				wantIs(t, next.err, context.DeadlineExceeded)
			}
			if last.held(t); last.waited != time.Second {
				t.Errorf("the last in line waited %v", last.waited)
			}
			mustUnlock(t, last.lock)
			w.noClaims()
		}
	})
}

// A client whose nodes answer fast is told why it waits after some moments only (C4).
// Who gives up within a second asks aloud; who is called off within those moments is
// told that, and no more.
func TestWhyIsNotKnownAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		mustUnlock(t, mustLock(t, a, "y")) // now it knows how fast they are
		k := mustLock(t, b, "x")

		_, err := a.Lock(timeout(t, 5*time.Millisecond), "x")
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		wantText(t, err, "held by b")

		called := func(after time.Duration) error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			waiting := waitFor(ctx, a.Lock, "x")
			time.Sleep(after)
			cancel()
			<-waiting.done
			return waiting.err
		}
		err = called(19 * time.Millisecond)
		wantIs(t, err, qlock.ErrNoQuorum, context.Canceled)
		wantText(t, err, "n1 silent (at first it answers only if it votes)")
		err = called(21 * time.Millisecond)
		wantIs(t, err, qlock.ErrHeld, context.Canceled)
		wantText(t, err, "held by b")
		mustUnlock(t, k)
		w.noClaims()
	})
}

// A lock that is given on within those moments costs its next holder one message, and
// each node one.
func TestWaitOfAMoment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithoutEvents()), w.client("b", qlock.WithoutEvents())
		mustUnlock(t, mustLock(t, a, "y"))
		time.Sleep(testLease) // nothing of that is left to be said
		k := mustLock(t, b, "x")
		var answers atomic.Int32
		if _, err := w.connect().Subscribe("_INBOX.>", func(m *nats.Msg) {
			if l, err := wire.DecodeAnswer(m.Data); err == nil && l.Client == "a" {
				answers.Add(1)
			}
		}); err != nil {
			t.Fatal(err)
		}
		o := w.observe()
		time.Sleep(time.Millisecond) // the next is younger
		o.take()
		next := waitFor(t.Context(), a.Lock, "x")
		time.Sleep(10 * time.Millisecond)
		settle()
		if n := answers.Load(); n != 0 {
			t.Errorf("%d answers while it waits", n)
		}
		mustUnlock(t, k)
		last := next.held(t)
		settle()
		if n := answers.Load(); n != 3 {
			t.Errorf("%d answers until it holds, want one of each node", n)
		}
		if got := o.take(); got["acquire"] != 1 || got["release"] != 1 || got["refresh"] != 0 {
			t.Errorf("published %v", got)
		}
		mustUnlock(t, last)
		time.Sleep(testLease)
		w.noClaims()
	})
}
