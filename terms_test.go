package qlock_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A function of WithWaitFunc that panics, or ends its goroutine, leaves no request behind that is
// granted to nobody.
func TestWaitFuncThatDoesNotReturn(t *testing.T) {
	for how, end := range map[string]func(){"panic": func() { panic("oh") }, "Goexit": runtime.Goexit} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b := w.client("a"), w.client("b")
			k := mustLock(t, a, "x")
			panicked := make(chan any, 1)
			go func() {
				defer func() { panicked <- recover() }()
				_, err := b.Lock(t.Context(), "x", qlock.WithWaitFunc(func(qlock.Waiting) { end() }))
				t.Errorf("%s: Lock returned: %v", how, err)
			}()
			if p := <-panicked; (p != nil) != (how == "panic") {
				t.Errorf("%s: %v went on", how, p)
			}
			mustUnlock(t, k)
			settle()
			if s := b.Stats(); s.Held != 0 || s.Waiting != 0 {
				t.Errorf("%s: %d held, %d waiting", how, s.Held, s.Waiting)
			}
			w.noClaims()
		})
	}
}

// The place of a request is that of its age also if a younger request of the same Locker waits
// already, for which the Locker has a place of its own.
func TestAgeBehindAYoungerRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		k := mustLock(t, a, "x")
		before := time.Now()
		time.Sleep(time.Second)
		other := b.Start(t.Context(), "x")
		time.Sleep(time.Second)
		young := c.Start(t.Context(), "x")
		settle()
		old := c.Start(t.Context(), "x", qlock.WithAge(before))
		settle()
		mustUnlock(t, k)
		settle()
		for i, p := range []*qlock.Pending{old, other, young} {
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

// Any time can be an age. One in the future gives no place before others, and one before 1970 is
// the oldest.
func TestAgeOfAnyTime(t *testing.T) {
	for name, age := range map[string]time.Time{
		"largest":   time.Unix(math.MaxInt64, 0),
		"overflow":  time.Unix(math.MaxInt64/1_000_000+1, 0),
		"year 9999": time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
		"1970":      time.Unix(0, 0),
		"1969":      time.Unix(-1, 0),
		"year 1":    time.Time{}.Add(1),
		"underflow": time.Unix(math.MinInt64/1_000_000-1, 0),
		"smallest":  time.Unix(math.MinInt64, 0),
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b, c := w.client("a"), w.client("b"), w.client("c")
			k := mustLock(t, a, "x")
			first := b.Start(t.Context(), "x")
			time.Sleep(time.Second)
			second := c.Start(t.Context(), "x", qlock.WithAge(age))
			if age.Before(time.Now()) {
				first, second = second, first
			}
			settle()
			mustUnlock(t, k)
			for _, p := range []*qlock.Pending{first, second} {
				settle()
				k, err := p.Lock()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				mustUnlock(t, k)
			}
			w.noClaims()
		})
	}
}

// HoldAtLeast does not keep a lock that is evicted, also if its owner would have released it by
// hand and has done so.
func TestHoldAtLeastAndManualRelease(t *testing.T) {
	for how, give := range map[string]func(t *testing.T, k *qlock.Lock){
		"unlocked": func(t *testing.T, k *qlock.Lock) { mustUnlock(t, k) },
		"expired":  func(t *testing.T, k *qlock.Lock) { <-k.Context().Done() },
	} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a, b, ops := w.client("a"), w.client("b"), w.client("ops")
			opts := []qlock.LockOption{qlock.HoldAtLeast(time.Hour), qlock.WithManualRelease()}
			if how == "expired" {
				opts = append(opts, qlock.HoldAtMost(time.Minute))
			}
			k := mustLockWith(t, a, "x", opts...)
			give(t, k)
			cause := context.Cause(k.Context())
			waiting := waitFor(t.Context(), b.Lock, "x")
			start := time.Now()
			if err := ops.Evict(timeout(t, time.Minute), "x", inspect(t, ops, "x").Holders[0], ""); err != nil {
				t.Errorf("%s: %v", how, err)
			}
			mustUnlock(t, waiting.held(t))
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: another has it %v after it was evicted", how, d)
			}
			if err := k.Unlock(t.Context()); (err == nil) != (how == "unlocked") || err != nil && err != cause {
				t.Errorf("%s: Unlock: %v", how, err)
			}
			w.noClaims()
		})
	}
}

// A lock whose holder releases it by hand is not released when it is lost because the nodes
// changed. What it was to stand for without a message, others keep away.
func TestManualReleaseWhenTheNodesChange(t *testing.T) {
	for _, manual := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 3)
			a := w.client("a")
			releases, err := w.connect().SubscribeSync("lock.default.node.release.a.>")
			if err != nil {
				t.Fatal(err)
			}
			released := func() int {
				settle()
				n, _, err := releases.Pending()
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			var opts []qlock.LockOption
			if manual {
				opts = append(opts, qlock.WithManualRelease())
			}
			k := mustLockWith(t, a, "x", opts...)
			time.Sleep(time.Second)
			w.each((*testNode).stop)
			w.each(func(tn *testNode) {
				tn.cfg.MaxLease = maxLease + time.Second
				tn.start()
			})
			_, cause := died(t, k.Context())
			wantIs(t, cause, qlock.ErrLost)
			time.Sleep(testLease / 2)
			if n := released(); (n == 0) != manual {
				t.Errorf("by hand: %v, and released %d times", manual, n)
			}
			other := a.Start(t.Context(), "x")
			settle()
			wantIs(t, k.Unlock(t.Context()), qlock.ErrLost)
			if n := released(); n == 0 {
				t.Errorf("by hand: %v, and not released", manual)
			}
			next, err := other.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			mustUnlock(t, next)
			w.noClaims()
		})
	}
}

// Close releases a lock that is evicted and that its owner has not released yet.
func TestCloseOfAnEvictedLock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, ops := w.client("a"), w.client("b"), w.client("ops")
		k := mustLockWith(t, a, "x", qlock.HoldAtLeast(time.Hour), qlock.WithManualRelease())
		waiting := waitFor(t.Context(), b.Lock, "x")
		if err := ops.Evict(timeout(t, time.Millisecond), "x", inspect(t, ops, "x").Holders[0], ""); err == nil {
			t.Error("it is evicted while its owner has it yet")
		}
		wantIs(t, context.Cause(k.Context()), qlock.ErrEvicted)
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		mustUnlock(t, waiting.held(t))
		if d := time.Since(start); d > time.Second {
			t.Errorf("another has it %v after Close", d)
		}
		wantIs(t, k.Unlock(t.Context()), qlock.ErrEvicted)
		w.noClaims()
	})
}

// A wait for a refresh of a lock that has ended, however it ended, says so, as it does if the lock
// ends during the wait.
func TestAwaitRefreshOfALockThatEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, link := w.clientOn("a")
		ops := w.client("ops")
		ended := func(k *qlock.Lock, want error) {
			t.Helper()
			wantIs(t, k.AwaitRefresh(t.Context()), want)
			wantIs(t, context.Cause(k.Context()), want)
			if d := k.Stands(); d != 0 {
				t.Errorf("%v: it stands for %v", want, d)
			}
		}
		k := mustLock(t, a, "x")
		mustUnlock(t, k)
		ended(k, qlock.ErrUnlocked)

		for _, opt := range []qlock.LockOption{nil, qlock.WithManualRelease()} {
			k = mustLockWith(t, a, "x", opt)
			err := ops.Evict(timeout(t, 100*time.Millisecond), "x", inspect(t, ops, "x").Holders[0], "")
			if (err == nil) != (opt == nil) {
				t.Error(err)
			}
			ended(k, qlock.ErrEvicted)
			_ = k.Unlock(t.Context())
		}

		k = mustLockWith(t, a, "x", qlock.HoldAtMost(time.Second))
		time.Sleep(2 * time.Second)
		ended(k, qlock.ErrHoldExpired)

		k = mustLock(t, a, "x")
		link.cut()
		time.Sleep(2 * testLease)
		ended(k, qlock.ErrLost)
		link.mend()

		k = mustLock(t, a, "x")
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		ended(k, qlock.ErrUnlocked)
	})
}

// Whoever waits for changes of a request is told when it is decided, whatever the outcome is.
func TestChangedWhenDecided(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, ops := w.client("a"), w.client("b"), w.client("ops")
		for how, end := range map[string]func(k *qlock.Lock, cancel func(), p *qlock.Pending){
			"granted":    func(k *qlock.Lock, _ func(), _ *qlock.Pending) { mustUnlock(t, k) },
			"canceled":   func(_ *qlock.Lock, _ func(), p *qlock.Pending) { p.Cancel() },
			"ctx ended":  func(_ *qlock.Lock, cancel func(), _ *qlock.Pending) { cancel() },
			"evicted":    func(*qlock.Lock, func(), *qlock.Pending) { evictWaiting(t, ops, "x") },
			"own, freed": func(k *qlock.Lock, _ func(), _ *qlock.Pending) { mustUnlock(t, k) },
		} {
			holder := a
			if how == "own, freed" {
				holder = b
			}
			k := mustLock(t, holder, "x")
			ctx, cancel := context.WithCancel(t.Context())
			p := b.Start(ctx, "x")
			changed := p.Changed()
			for isClosed(changed) {
				changed = p.Changed()
			}
			end(k, cancel, p)
			<-p.Done()
			if !isClosed(changed) {
				t.Errorf("%s: not told", how)
			}
			if s := p.Status(); s.Holder != nil || s.Votes() != 0 {
				t.Errorf("%s: it waits for %v", how, s)
			}
			cancel()
			p.Cancel()
			mustUnlock(t, k)
			w.noClaims()
		}
	})
}

// evictWaiting evicts the first waiter for a name.
func evictWaiting(t *testing.T, l *qlock.Locker, name string) {
	t.Helper()
	if err := l.Evict(timeout(t, time.Minute), name, inspect(t, l, name).Queue[0], ""); err != nil {
		t.Error(err)
	}
}

// Who comes while HoldAtLeast keeps a lock that another goroutine of its Locker has unlocked is told
// so, and for how long, and not that locks are not reentrant.
func TestKeptByTheSameLocker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		k := mustLockWith(t, a, "x", qlock.HoldAtLeast(20*time.Second))
		time.Sleep(time.Second)
		mustUnlock(t, k)
		var e *qlock.LockError
		if _, err := a.TryLock(t.Context(), "x"); !errors.As(err, &e) || e.Reason != qlock.ErrHeld || e.Holder == nil || !e.Holder.Own || e.Holder.Kept != 19*time.Second {
			t.Errorf("%v", err)
		}
		wantText(t, e, "held by a (exclusively) for 1s, by this same Locker, and unlocked since: HoldAtLeast keeps it for another 19s")
		p := a.Start(t.Context(), "x")
		time.Sleep(time.Second)
		if s := p.Status(); s.Holder == nil || s.Holder.Kept != 18*time.Second {
			t.Errorf("%v", s)
		}
		p.Cancel()

		// In a lock that was lost and not unlocked, the same Locker is in its own way.
		k = mustLockWith(t, a, "y", qlock.WithManualRelease())
		if err := w.client("ops").Evict(timeout(t, time.Millisecond), "y", inspect(t, a, "y").Holders[0], ""); err == nil {
			t.Error("it is evicted while its owner has it yet")
		}
		if _, err := a.TryLock(t.Context(), "y"); !errors.As(err, &e) {
			t.Error(err)
		}
		wantText(t, e, "by this same Locker, and lost since: WithManualRelease keeps it until Unlock")
		wantIs(t, k.Unlock(t.Context()), qlock.ErrEvicted)
	})
}

// A request that is given up for a reason says why.
func TestCancelCause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		why := errors.New("the caller has gone")
		for _, cause := range []error{nil, why, context.Canceled} {
			p := b.Start(t.Context(), "x")
			time.Sleep(time.Second)
			p.CancelCause(cause)
			p.CancelCause(errors.New("too late"))
			_, err := p.Lock()
			wantIs(t, err, qlock.ErrHeld, context.Canceled)
			if errors.Is(err, why) != (cause == why) {
				t.Errorf("%v: %v", cause, err)
			}
		}
		p := a.Start(t.Context(), "y")
		settle()
		p.CancelCause(why)
		granted, err := p.Lock()
		if err != nil {
			t.Fatal(err)
		}
		wantIs(t, context.Cause(granted.Context()), qlock.ErrUnlocked)
		bad := a.Start(t.Context(), "")
		bad.CancelCause(why)
		mustUnlock(t, k)
		w.noClaims()
	})
}

// In a log a lock and a request are one line.
func TestStrings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		var log strings.Builder
		logger := slog.New(slog.NewJSONHandler(&log, nil))
		says := func(v any, want string) {
			t.Helper()
			if got := fmt.Sprint(v); !strings.Contains(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			log.Reset()
			logger.Info("it", "value", v)
			var line struct{ Value string }
			if err := json.Unmarshal([]byte(log.String()), &line); err != nil || !strings.Contains(line.Value, want) {
				t.Errorf("%v: logged %s, want %q", err, log.String(), want)
			}
		}
		k := mustRLock(t, a, "x y")
		says(k, fmt.Sprintf(`lock "x y" (shared, token %d): held`, k.Token()))
		p := b.Start(t.Context(), "x y")
		time.Sleep(time.Second)
		says(p, `waiting for "x y" for 1s: held by a (shared)`)
		mustUnlock(t, k)
		says(k, fmt.Sprintf(`lock "x y" (shared, token %d): unlocked`, k.Token()))
		settle()
		says(p, `lock "x y" (exclusive, token `)
		q := a.Start(t.Context(), "x y")
		settle()
		q.Cancel()
		says(q, "context canceled")
		says(a.Start(t.Context(), ""), "invalid name")
		p.Cancel()
		link := w.nodes[0]
		link.stop()
		w.nodes[1].stop()
		p = a.Start(t.Context(), "z")
		time.Sleep(time.Second)
		says(p, "1 of 3 nodes voted, 2 are needed: n1 silent, n2 silent")
		p.Cancel()
		w.nodes[0].start()
		w.nodes[1].start()
	})
}

// Start asks the nodes no more often with WithWaitFunc than without, as it ignores that option.
func TestStartWithWaitFunc(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		acquires, err := w.connect().SubscribeSync("lock.default.node.acquire.b.>")
		if err != nil {
			t.Fatal(err)
		}
		k := mustLock(t, a, "x")
		asked := func(opt qlock.LockOption) int {
			before, _, _ := acquires.Pending()
			p := b.Start(t.Context(), "x", opt)
			time.Sleep(3 * testLease)
			p.Cancel()
			after, _, err := acquires.Pending()
			if err != nil {
				t.Fatal(err)
			}
			return after - before
		}
		if n := asked(qlock.WithWaitFunc(func(qlock.Waiting) { t.Error("it is called") })); n > 2 { // the second may say why it waits
			t.Errorf("it asked %d times", n)
		}
		mustUnlock(t, k)
		w.noClaims()
	})
}

// A line that says what a call waits for comes once, however many nodes answer the same.
func TestWaitFuncSaysALineOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 5)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		var mu sync.Mutex
		var said []string
		waiting := waitFor(t.Context(), func(ctx context.Context, name string, _ ...qlock.LockOption) (*qlock.Lock, error) {
			return b.Lock(ctx, name, qlock.WithWaitFunc(func(w qlock.Waiting) {
				mu.Lock()
				defer mu.Unlock()
				w.For, w.Holder.For = 0, 0
				said = append(said, w.String())
			}))
		}, "x")
		time.Sleep(testLease)
		w.nodes[0].stop()
		time.Sleep(testLease)
		w.nodes[0].start()
		time.Sleep(testLease)
		mu.Lock()
		if len(said) != 1 {
			t.Errorf("%q", said)
		}
		mu.Unlock()
		mustUnlock(t, k)
		mustUnlock(t, waiting.held(t))
	})
}
