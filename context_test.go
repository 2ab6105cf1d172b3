package qlock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// died returns when and why the context ended.
func died(t *testing.T, ctx context.Context) (time.Time, error) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Minute):
		t.Fatal("the context did not end within five minutes")
	}
	settle() // what is logged and published of it comes after
	return time.Now(), context.Cause(ctx)
}

// While a majority answers, a lock is held for ever. When it falls silent the
// lock is lost no later than a lease after it was last confirmed, less the margin
// for drift, and so before any node may grant it anew (C1, C7).
func TestContextEndsWithTheMajority(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared %v", shared), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				a, b := w.client("a"), w.client("b")
				k := mustLock(t, a, "x")
				if shared {
					mustUnlock(t, k)
					k = mustRLock(t, a, "x")
				}
				time.Sleep(10 * testLease)
				w.nodes[0].crash()
				time.Sleep(10 * testLease)
				if err := context.Cause(k.Context()); err != nil {
					t.Fatalf("lost while two of three nodes answer: %v", err)
				}
				time.Sleep(time.Second) // to be somewhere between two refreshes
				w.nodes[1].crash()
				silent := time.Now()
				at, cause := died(t, k.Context())
				if cause != qlock.ErrLost || k.Context().Err() != context.Canceled {
					t.Errorf("the context ended with %v, cause %v", k.Context().Err(), cause)
				}
				after := at.Sub(silent)
				if after > stands(testLease) || after < stands(testLease)-testLease/3-testLease/20 {
					t.Errorf("lost %v after the majority fell silent, want within a refresh of %v", after, stands(testLease))
				}
				if err := k.Unlock(t.Context()); err != qlock.ErrLost {
					t.Errorf("Unlock of a lost lock: %v, want ErrLost", err)
				}
				if err := k.Unlock(t.Context()); err != qlock.ErrLost {
					t.Errorf("second Unlock of a lost lock: %v, want ErrLost", err)
				}
				if len(w.log.find("ERROR", "lock lost", "name=x", fmt.Sprintf("token=%d", k.Token()))) != 1 {
					t.Errorf("the loss is not in the log: %q", w.log.find("lost"))
				}

				// With the nodes back the Locker works as before.
				w.nodes[0].start()
				w.nodes[1].start()
				k2 := mustLock(t, b, "x")
				if k2.Token() <= k.Token() {
					t.Errorf("token %d after %d", k2.Token(), k.Token())
				}
				mustUnlock(t, k2)
				mustUnlock(t, mustLock(t, a, "x"))
				w.noClaims()
			})
		})
	}
}

// A lock is lost once at most, and with it all that were confirmed by the same
// refresh: each is told.
func TestManyLocksAreLostTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		o := w.observe()
		var held []*qlock.Lock
		for i := range 100 {
			held = append(held, mustLock(t, a, fmt.Sprintf("x.%d", i)))
		}
		time.Sleep(testLease)
		for _, tn := range w.nodes {
			tn.crash()
		}
		for _, k := range held {
			if _, cause := died(t, k.Context()); cause != qlock.ErrLost {
				t.Errorf("cause %v", cause)
			}
		}
		time.Sleep(testLease)
		if got := o.take()["lost"]; got != len(held) {
			t.Errorf("%d events of loss for %d locks", got, len(held))
		}
	})
}

func TestContextAfterUnlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLock(t, a, "x")
		if err := k.Context().Err(); err != nil {
			t.Fatalf("the context of a held lock has ended: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 3 { // an ended context does not keep a lock from being given back
			if err := k.Unlock(ended); err != nil {
				t.Errorf("Unlock: %v", err)
			}
		}
		if cause := context.Cause(k.Context()); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v, want ErrUnlocked", cause)
		}
		w.noClaims()
	})
}

// Many goroutines that unlock one lock unlock it once.
func TestConcurrentUnlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		o := w.observe()
		k := mustLock(t, a, "x")
		o.take()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := k.Unlock(t.Context()); err != nil {
					t.Errorf("Unlock: %v", err)
				}
			})
		}
		wg.Wait()
		if got := o.take(); got["release"] != 1 || got["released"] != 1 {
			t.Errorf("eight calls of Unlock published %v", got)
		}
		w.noClaims()
	})
}

// A lock's context has the values of its caller's, but neither its deadline nor
// its end: the caller may have given up waiting for something else by then.
func TestContextCarriesValuesButNoDeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type key struct{}
		w := newWorld(t, 3)
		a := w.client("a")
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "carried"), time.Second)
		defer cancel()
		type lock = func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error)
		for i, f := range []lock{a.Lock, a.RLock, a.TryLock, a.TryRLock} {
			k, err := f(ctx, fmt.Sprintf("x.%d", i))
			if err != nil {
				t.Fatal(err)
			}
			if got := k.Context().Value(key{}); got != "carried" {
				t.Errorf("value %v, want that of the caller's context", got)
			}
			if d, ok := k.Context().Deadline(); ok {
				t.Errorf("the lock's context has the deadline %v", d)
			}
			defer mustUnlock(t, k)
			defer func() {
				if err := context.Cause(k.Context()); err != nil {
					t.Errorf("the lock's context ended with its caller's: %v", err)
				}
			}()
		}
		time.Sleep(2 * time.Second)
		if ctx.Err() == nil {
			t.Error("the caller's context has not ended")
		}
	})
}

func TestToken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		if got := qlock.Token(t.Context()); got != 0 {
			t.Errorf("token %d without a lock", got)
		}
		outer := mustLock(t, a, "outer")
		defer mustUnlock(t, outer)
		time.Sleep(time.Millisecond)
		inner, err := a.RLock(outer.Context(), "inner")
		if err != nil {
			t.Fatal(err)
		}
		if qlock.Token(outer.Context()) != outer.Token() || outer.Token() == 0 {
			t.Errorf("token %d from the context of the lock with %d", qlock.Token(outer.Context()), outer.Token())
		}
		below, cancel := context.WithCancel(inner.Context())
		defer cancel()
		if qlock.Token(below) != inner.Token() || inner.Token() == outer.Token() {
			t.Errorf("token %d below the contexts of locks with %d and %d, want the innermost's", qlock.Token(below), outer.Token(), inner.Token())
		}
		mustUnlock(t, inner)
		if outer.Context().Err() != nil {
			t.Error("unlocking the inner lock ended the outer one's context")
		}
	})
}

func TestHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		wantIs(t, qlock.Held(t.Context()), qlock.ErrNotHeld)
		unlocked, lost := mustLock(t, a, "x"), mustLock(t, a, "y")
		for _, k := range []*qlock.Lock{unlocked, lost} {
			below, cancel := context.WithCancel(k.Context())
			cancel() // that what is below ends says nothing of the lock
			if err := qlock.Held(below); err != nil {
				t.Errorf("under a lock that is held: %v", err)
			}
		}
		mustUnlock(t, unlocked)
		err := qlock.Held(unlocked.Context())
		wantIs(t, err, qlock.ErrNotHeld)
		wantIs(t, err, qlock.ErrUnlocked)
		for _, tn := range w.nodes {
			tn.crash()
		}
		<-lost.Context().Done()
		err = qlock.Held(lost.Context())
		wantIs(t, err, qlock.ErrNotHeld)
		wantIs(t, err, qlock.ErrLost)
		wantText(t, err, `"y"`)
	})
}

func TestDo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		free := func() {
			t.Helper()
			settle() // Unlock does not wait for the nodes
			k, err := b.TryLock(t.Context(), "x")
			if err != nil {
				t.Fatalf("not free after Do: %v", err)
			}
			mustUnlock(t, k)
		}
		err := a.Do(t.Context(), "x", func(ctx context.Context) error {
			if qlock.Token(ctx) == 0 {
				t.Error("no token inside Do")
			}
			_, err := b.TryLock(t.Context(), "x")
			wantIs(t, err, qlock.ErrHeld)
			return nil
		})
		if err != nil {
			t.Errorf("Do: %v", err)
		}
		free()

		mine := errors.New("mine")
		if err := a.Do(t.Context(), "x", func(context.Context) error { return mine }); err != mine {
			t.Errorf("Do gave %v, want the function's own error", err)
		}
		free()

		// The function's context ends with the caller's, and only the function
		// decides what that means.
		ctx, cancel := context.WithCancelCause(t.Context())
		err = a.Do(ctx, "x", func(inner context.Context) error {
			cancel(mine)
			<-inner.Done()
			return context.Cause(inner)
		})
		if err != mine {
			t.Errorf("Do with a context that ended gave %v", err)
		}
		free()

		func() {
			defer func() {
				if p := recover(); p != "mine" {
					t.Errorf("recovered %v", p)
				}
			}()
			_ = a.Do(t.Context(), "x", func(context.Context) error { panic("mine") })
		}()
		free()

		// Not had: the function is not called.
		k := mustLock(t, b, "x")
		err = a.Do(timeout(t, time.Second), "x", func(context.Context) error {
			t.Error("the function is called without the lock")
			return nil
		})
		wantIs(t, err, qlock.ErrHeld, context.DeadlineExceeded)
		mustUnlock(t, k)
		w.noClaims()
	})
}

func TestDoJoinsErrLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		mine := errors.New("mine")
		for _, tt := range []struct {
			result error
			want   []error
		}{{mine, []error{mine, qlock.ErrLost}}, {nil, []error{qlock.ErrLost}}} {
			err := a.Do(t.Context(), "orders.42", func(ctx context.Context) error {
				for _, tn := range w.nodes {
					tn.crash()
				}
				if _, cause := died(t, ctx); cause != qlock.ErrLost {
					t.Errorf("cause %v", cause)
				}
				return tt.result
			})
			wantIs(t, err, tt.want...)
			wantText(t, err, `lock "orders.42"`, "lost")
			w.each(func(tn *testNode) { tn.start() })
		}
	})
}

// Unlock reads the clock itself (C8): at the very moment of loss the lock is lost,
// whoever notices first.
func TestUnlockAtTheMomentOfLoss(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		for range 20 {
			k := mustLock(t, a, "x")
			settle()
			w.nodes[0].crash()
			var unlocks sync.WaitGroup
			for range 8 {
				unlocks.Add(1)
				time.AfterFunc(stands(testLease), func() {
					defer unlocks.Done()
					if err := k.Unlock(t.Context()); err != qlock.ErrLost {
						t.Errorf("Unlock: %v, want ErrLost", err)
					}
				})
			}
			unlocks.Wait()
			settle()
			if cause := context.Cause(k.Context()); cause != qlock.ErrLost {
				t.Errorf("cause %v, want ErrLost", cause)
			}
			w.nodes[0].start()
			time.Sleep(quarantine)
		}
	})
}

// stalling is a logger that takes its time over the first line.
type stalling struct {
	slog.Handler
	stalled atomic.Bool
}

func (s *stalling) Enabled(context.Context, slog.Level) bool { return true }

func (s *stalling) Handle(context.Context, slog.Record) error {
	if s.stalled.CompareAndSwap(false, true) {
		time.Sleep(time.Minute)
	}
	return nil
}

// What publishes may be held up, here by the logger that is told that it could not:
// the loss is told in time.
func TestLossIsToldWhilePublishingStands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		nc := w.connect(nats.ReconnectBufSize(-1)) // publishing fails while there is no connection
		stall := &stalling{Handler: slog.DiscardHandler}
		a := w.locker(nc.Conn, "a", qlock.WithLogger(slog.New(stall)))
		k := mustLock(t, a, "x")
		nc.cut()
		time.Sleep(testLease)
		if cause := context.Cause(k.Context()); cause != qlock.ErrLost || !stall.stalled.Load() {
			t.Errorf("cause %v, want ErrLost; publishing stands: %v", cause, stall.stalled.Load())
		}
		start := time.Now()
		if err := k.Unlock(t.Context()); err != qlock.ErrLost || time.Since(start) > 0 {
			t.Errorf("Unlock: %v after %v, want ErrLost at once", err, time.Since(start))
		}
		_, err := a.Lock(timeout(t, testLease), "y")
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		if d := time.Since(start); d > testLease {
			t.Errorf("Lock gave up after %v, its context had %v", d, testLease)
		}
		start = time.Now()
		if err := a.Close(); err != nil || time.Since(start) > time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		nc.mend()
		time.Sleep(2 * time.Minute)
		w.noClaims()
	})
}

// foreign is a context of somebody else's make. Package context watches it with a
// goroutine for as long as a context that was derived from it has not ended.
type foreign struct{ context.Context }

// Value keeps package context from looking through to the context inside.
func (foreign) Value(any) any { return nil }

// However Do ends, nothing of it stays with the caller's context, which may be the
// program's and never end.
func TestDoLeavesNothingInItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		ctx := foreign{t.Context()}
		nothing := func(context.Context) error { return nil }
		watched := func() bool {
			settle()
			stacks := make([]byte, 4<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			return bytes.Contains(stacks, []byte("created by context.(*cancelCtx).propagateCancel"))
		}
		check := func(after string) {
			t.Helper()
			if watched() {
				t.Errorf("after %s a goroutine still waits for the end of the caller's context", after)
			}
		}
		if err := a.Do(ctx, "x", nothing); err != nil {
			t.Fatal(err)
		}
		check("a call")

		k := mustLock(t, b, "x")
		end := make(chan struct{})
		failed := waitFor(foreign{endedBy{t.Context(), end}}, func(ctx context.Context, name string, _ ...qlock.LockOption) (*qlock.Lock, error) {
			return nil, a.Do(ctx, name, nothing)
		}, "x")
		time.Sleep(time.Second) // by then it knows why it waits
		close(end)
		<-failed.done
		wantIs(t, failed.err, qlock.ErrHeld, context.Canceled)
		check("giving up")

		done := make(chan error, 1)
		go func() { done <- a.Do(ctx, "x", nothing) }()
		if !watched() {
			t.Error("nobody waits for the end of the caller's context: this tests nothing")
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		wantIs(t, <-done, qlock.ErrClosed)
		check("Close")
		wantIs(t, a.Do(ctx, "x", nothing), qlock.ErrClosed)
		check("a call on a closed Locker")
		mustUnlock(t, k)
	})
}

// endedBy is a context that ends when a channel is closed.
type endedBy struct {
	context.Context
	end chan struct{}
}

func (c endedBy) Done() <-chan struct{} { return c.end }

func (c endedBy) Err() error {
	select {
	case <-c.end:
		return context.Canceled
	default:
		return nil
	}
}
