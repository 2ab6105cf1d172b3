package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// transfer needs both accounts. A transfer in the other direction at the same time asks for
// the same two locks, and acquires them in the same order.
func transfer(ctx context.Context, locker *qlock.Locker, from, to string, move func(ctx context.Context, from, to uint64) error) error {
	locks, err := locker.LockAll(ctx, from, to)
	if err != nil {
		return err // neither is held, and the error says which was in the way
	}
	err = move(locks.Context(), locks.Token(from), locks.Token(to))
	return errors.Join(err, locks.Unlock(ctx)) // an error if one of them was lost meanwhile
}

func ExampleLocker_LockAll() {
	ctx := context.Background()
	locker, stop := newLocker("bank")
	defer stop()

	err := transfer(ctx, locker, "account.savings", "account.checking", func(ctx context.Context, from, to uint64) error {
		fmt.Println("both are held:", qlock.Held(ctx) == nil)
		fmt.Println("each has a token:", from > 0, to > 0)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// both are held: true
	// each has a token: true true
}

// If one of the names is held by another client, none is acquired.
func ExampleLocker_TryLockAll() {
	ctx := context.Background()
	locker, stop := newLocker("bank")
	defer stop()
	if _, err := locker.Lock(ctx, "account.savings"); err != nil {
		log.Fatal(err)
	}

	_, err := locker.TryLockAll(ctx, "account.savings", "account.checking")
	var e *qlock.LockError
	if errors.As(err, &e) {
		fmt.Println("in the way:", e.Name, "is held:", errors.Is(err, qlock.ErrHeld))
	}
	// Output: in the way: account.savings is held: true
}

func TestLockAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		s, err := a.LockAll(ctx, "z", "x", "y", "x")
		if err != nil {
			t.Fatal(err)
		}
		cancel() // the wait is over: the locks do not end with it
		if got := s.Names(); !slices.Equal(got, []string{"x", "y", "z"}) {
			t.Errorf("names %v", got)
		}
		for _, name := range s.Names() {
			info, err := b.Inspect(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if len(info.Holders) != 1 || info.Holders[0].Client != "a" || info.Holders[0].Token != s.Token(name) {
				t.Errorf("%s: %+v, token %d", name, info.Holders, s.Token(name))
			}
		}
		if s.Token("w") != 0 {
			t.Error("a name that is not in the set has a token")
		}
		held := s.Context()
		if err := qlock.Held(held); err != nil || held.Err() != nil || held.Value(key{}) != "value" || qlock.Token(held) != s.Token("z") {
			t.Errorf("held: %v, context: %v, value %v", err, held.Err(), held.Value(key{}))
		}
		if _, ok := held.Deadline(); ok {
			t.Error("the context has a deadline")
		}
		waits := waitFor(t.Context(), b.Lock, "y")
		if waits.over() {
			t.Fatalf("y was granted: %v", waits.err)
		}
		if err := s.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(held); cause != qlock.ErrUnlocked {
			t.Errorf("cause %v", cause)
		}
		mustUnlock(t, waits.held(t))
		if err := s.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		w.noClaims()
	})
}

// Of what cannot be had nothing is kept, and the error names what was in the way.
func TestLockAllOrNone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		held := mustLock(t, a, "y")
		for _, c := range []struct {
			name string
			call func() (*qlock.LockSet, error)
			is   []error
			op   string
			took time.Duration
		}{
			{"try", func() (*qlock.LockSet, error) { return b.TryLockAll(t.Context(), "x", "y", "z") }, []error{qlock.ErrHeld}, "try-lock", 0},
			{"lock", func() (*qlock.LockSet, error) { return b.LockAll(timeout(t, 5*time.Second), "z", "y", "x") }, []error{qlock.ErrHeld, context.DeadlineExceeded}, "lock", 5 * time.Second},
		} {
			start := time.Now()
			s, err := c.call()
			if s != nil || time.Since(start) != c.took {
				t.Errorf("%s: %v after %v", c.name, s, time.Since(start))
			}
			wantIs(t, err, c.is...)
			wantText(t, err, "none of 3 locks is held", `"y"`, "held by a")
			var e *qlock.LockError
			if !errors.As(err, &e) || e.Name != "y" || e.Op != c.op {
				t.Errorf("%s: %+v", c.name, e)
			}
			for i := range 3 {
				settle()
				if n := w.claims(i); n != 1 {
					t.Errorf("%s: a node has %d claims, and not only that on y", c.name, n)
				}
			}
		}
		ended, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("no more"))
		_, err := b.LockAll(ended, "x", "y")
		wantIs(t, err, qlock.ErrNoQuorum, context.Canceled)
		wantText(t, err, "not asked", "no more")
		mustUnlock(t, held)
		w.noClaims()
	})
}

func TestLockAllBadInput(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		_, err := a.LockAll(t.Context())
		wantIs(t, err, qlock.ErrInvalidName)
		wantText(t, err, "no names are given")
		_, err = a.TryLockAll(t.Context(), "fine", "")
		wantIs(t, err, qlock.ErrInvalidName)
		w.noClaims()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = a.LockAll(t.Context(), "x", "y")
		wantIs(t, err, qlock.ErrClosed)
	})
}

// The context ends as soon as any lock is lost, the others are held until Unlock, and that
// tells which was lost.
func TestLockAllLosesOne(t *testing.T) {
	for _, evicted := range []string{"x", "y", "z"} {
		t.Run(evicted, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				a, b := w.client("a"), w.client("b")
				s, err := a.LockAll(t.Context(), "x", "y", "z")
				if err != nil {
					t.Fatal(err)
				}
				evict(t, b, evicted)
				if cause := context.Cause(s.Context()); !errors.Is(cause, qlock.ErrLost) || !errors.Is(cause, qlock.ErrEvicted) {
					t.Errorf("cause %v", cause)
				}
				err = qlock.Held(s.Context())
				wantIs(t, err, qlock.ErrNotHeld, qlock.ErrLost)
				for _, name := range s.Names() {
					k, err := b.TryLock(t.Context(), name)
					if (err == nil) != (name == evicted) {
						t.Errorf("%s is held by another: %v", name, err)
					}
					if err == nil {
						mustUnlock(t, k)
					}
				}
				for range 2 {
					err = s.Unlock(t.Context())
					wantIs(t, err, qlock.ErrLost)
					wantText(t, err, `"`+evicted+`"`)
				}
				w.noClaims()
			})
		})
	}
}

// evict ends what somebody holds.
func evict(t *testing.T, by *qlock.Locker, name string) {
	t.Helper()
	info, err := by.Inspect(t.Context(), name)
	if err != nil || len(info.Holders) != 1 {
		t.Fatalf("%s: %+v, %v", name, info, err)
	}
	if err := by.Evict(t.Context(), name, info.Holders[0], "a test"); err != nil {
		t.Fatal(err)
	}
	settle()
}

// What is lost while another name is waited for ends the wait.
func TestLockAllLosesWhileItWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		held := mustLock(t, b, "y")
		done := make(chan error)
		go func() {
			_, err := a.LockAll(t.Context(), "x", "y")
			done <- err
		}()
		settle()
		evict(t, b, "x")
		err := <-done
		wantIs(t, err, qlock.ErrLost, qlock.ErrEvicted)
		wantText(t, err, "none of 2 locks is held", `lock "x"`)
		mustUnlock(t, held)
		w.noClaims()
	})
}

// The death of a client frees all that it held after its lease.
func TestLockAllOfTheDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, link := w.clientOn("a")
		b := w.client("b")
		s, err := a.LockAll(t.Context(), "x", "y", "z")
		if err != nil {
			t.Fatal(err)
		}
		link.cut()
		start := time.Now()
		all, err := b.LockAll(timeout(t, time.Minute), "z", "x")
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > testLease+testLease/50 {
			t.Errorf("it took %v", d)
		}
		if cause := context.Cause(s.Context()); !errors.Is(cause, qlock.ErrLost) {
			t.Errorf("the dead one's context: %v", cause)
		}
		for _, name := range all.Names() {
			if all.Token(name) <= s.Token(name) {
				t.Errorf("%s: token %d after %d", name, all.Token(name), s.Token(name))
			}
		}
		if err := all.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		err = s.Unlock(t.Context())
		wantText(t, err, `"x"`, `"y"`, `"z"`)
	})
}

// Philosophers: each wants two forks of a round table, the last ones in the other order.
// Nobody waits for ever, no fork is in two hands, and nothing is left.
func TestLockAllNoDeadlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		const seats, meals = 5, 20
		var hands [seats]sync.Mutex
		var all sync.WaitGroup
		r := rand.New(rand.NewPCG(14, 1))
		for i := range seats {
			l := w.client(fmt.Sprintf("p%d", i))
			naps := rand.New(rand.NewPCG(r.Uint64(), 0))
			all.Go(func() {
				left, right := i, (i+1)%seats
				for range meals {
					s, err := l.LockAll(timeout(t, time.Hour), fmt.Sprintf("fork.%d", left), fmt.Sprintf("fork.%d", right))
					if err != nil {
						t.Error(err)
						return
					}
					for _, f := range []int{left, right} {
						if !hands[f].TryLock() {
							t.Errorf("fork %d is in two hands", f)
							return
						}
					}
					time.Sleep(time.Duration(naps.IntN(100)) * time.Millisecond)
					hands[left].Unlock()
					hands[right].Unlock()
					if err := s.Unlock(t.Context()); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Duration(naps.IntN(20)) * time.Millisecond)
				}
			})
		}
		all.Wait()
		w.noClaims()
	})
}
