package qlock_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// derive makes what a program may derive from a lock's context: many, that take their
// time to end.
func derive(ctx context.Context) []context.Context {
	all := make([]context.Context, 3000)
	for i := range all {
		derived, cancel := context.WithCancel(ctx)
		_ = cancel // they end with ctx
		all[i] = derived
	}
	return append(all, ctx)
}

// Whichever way a lock is given up, all contexts under it have ended when somebody else
// has it: in another Locker, and in the same.
func TestContextsEndBeforeAnotherHolds(t *testing.T) {
	const locks = 20
	for how, giveUp := range map[string]func(a, ops *qlock.Locker, k *qlock.Lock) error{
		"unlock": func(_, _ *qlock.Locker, k *qlock.Lock) error { return k.Unlock(context.Background()) },
		"close":  func(a, _ *qlock.Locker, _ *qlock.Lock) error { return a.Close() },
		"evict": func(_, ops *qlock.Locker, k *qlock.Lock) error {
			info, err := ops.Inspect(context.Background(), k.Name())
			if err != nil {
				return err
			}
			return ops.Evict(context.Background(), k.Name(), info.Holders[0], "")
		},
	} {
		for _, nextIs := range []string{"elsewhere", "here"} {
			if how == "close" && nextIs == "here" {
				continue // it gives nothing on
			}
			t.Run(how+", next "+nextIs, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t, 3)
					a, b, ops := w.client("a"), w.client("b"), w.client("ops")
					next := b
					if nextIs == "here" {
						next = a
					}
					var all sync.WaitGroup
					var held []*qlock.Lock
					for i := range locks {
						name := fmt.Sprintf("x.%d", i)
						k := mustLock(t, a, name)
						held = append(held, k)
						contexts := derive(k.Context())
						all.Go(func() {
							k2, err := next.Lock(t.Context(), name)
							if err != nil {
								t.Error(err)
								return
							}
							alive := 0
							for _, ctx := range contexts {
								if ctx.Err() == nil {
									alive++
								}
							}
							if alive > 0 {
								t.Errorf("%s: held by the next, with %d contexts of the holder before alive", name, alive)
							}
							mustUnlock(t, k2)
						})
					}
					settle()
					for _, k := range held {
						all.Go(func() {
							if err := giveUp(a, ops, k); err != nil {
								t.Error(err)
							}
						})
					}
					all.Wait()
					w.noClaims()
				})
			})
		}
	}
}

// blockedContext is a caller's context of its own make whose Value blocks when it is
// told to.
type blockedContext struct {
	context.Context
	blocked, free chan struct{}
}

func (c *blockedContext) Value(key any) any {
	select {
	case <-c.blocked:
		<-c.free
	default:
	}
	return c.Context.Value(key)
}

// The end of a lock's context calls none of the caller's code, so a caller whose context
// blocks is the only one to wait for it.
func TestLossIsToldThoughACallersContextBlocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		base, cancel := context.WithCancel(t.Context()) // or there would be nothing to take the lock's context from
		defer cancel()
		ctx := &blockedContext{base, make(chan struct{}), make(chan struct{})}
		inside, done := make(chan context.Context), make(chan error, 1)
		go func() {
			done <- a.Do(ctx, "x", func(ctx context.Context) error {
				inside <- ctx
				<-ctx.Done()
				return nil
			})
		}()
		x := <-inside
		close(ctx.blocked)
		time.Sleep(testLease / 10)
		y := mustLock(t, a, "y") // is lost after x
		w.nodes[0].crash()
		time.Sleep(2 * testLease)
		if context.Cause(x) != qlock.ErrLost || context.Cause(y.Context()) != qlock.ErrLost {
			t.Errorf("x: %v, y: %v, want both lost", context.Cause(x), context.Cause(y.Context()))
		}
		close(ctx.free)
		wantIs(t, <-done, qlock.ErrLost)
		w.nodes[0].start()
		time.Sleep(quarantine)
		w.noClaims()
	})
}

// Close gives up any number of locks in all their states.
func TestCloseOfMany(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithRetention(time.Hour)), w.client("b")
		const many = 600
		var held []*qlock.Lock
		for i := range many {
			held = append(held, mustLock(t, a, fmt.Sprintf("held.%d", i)))
			mustUnlock(t, mustLock(t, a, fmt.Sprintf("kept.%d", i)))
		}
		mustLock(t, b, "waited for")
		errs := make(chan error, 2*many)
		for i := range many {
			go func() {
				_, err := a.Lock(t.Context(), fmt.Sprintf("held.%d", i))
				errs <- err
			}()
			go func() {
				_, err := a.Lock(t.Context(), "waited for")
				errs <- err
			}()
		}
		settle()
		if s := a.Stats(); s.Held != many || s.Waiting != 2*many {
			t.Fatalf("%+v", s)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 * many {
			wantIs(t, <-errs, qlock.ErrClosed)
		}
		for _, k := range held {
			if cause := context.Cause(k.Context()); cause != qlock.ErrUnlocked {
				t.Errorf("%s: %v", k.Name(), cause)
			}
		}
		if s := a.Stats(); s.Held != 0 || s.Waiting != 0 || s.Claims != 0 || s.Unlocked != 2*many || s.Failed.Closed != 2*many {
			t.Errorf("%+v", s)
		}
		settle()
		if n := w.claims(0); n != 1 {
			t.Errorf("%d claims left, want that of b", n)
		}
	})
}
