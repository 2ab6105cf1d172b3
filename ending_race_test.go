package qlock_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A lock is being unlocked, which takes the time of its many contexts, when it is
// evicted. Those contexts have ended all the same when somebody else has it (C7).
func TestEvictedWhileBeingUnlocked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, ops := w.client("a"), w.client("b"), w.client("ops")
		k := mustLock(t, a, "x")
		all := make([]context.Context, 500_000)
		for i := range all {
			derived, cancel := context.WithCancel(k.Context())
			_ = cancel // they end with the lock's
			all[i] = derived
		}
		info, err := ops.Inspect(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		next := waitFor(t.Context(), b.Lock, "x")
		unlocked := make(chan struct{})
		go func() {
			defer close(unlocked)
			_ = k.Unlock(context.Background())
		}()
		for k.Context().Err() == nil {
			runtime.Gosched()
		}
		evicted := make(chan error, 1)
		go func() { evicted <- ops.Evict(t.Context(), "x", info.Holders[0], "") }()
		<-next.done
		alive := 0
		for _, ctx := range all {
			if ctx.Err() == nil {
				alive++
			}
		}
		if alive > 0 {
			t.Errorf("held by the next, with %d contexts of the holder before alive", alive)
		}
		<-unlocked
		if err := <-evicted; err != nil {
			t.Error(err)
		}
		if next.err != nil {
			t.Fatal(next.err)
		}
		mustUnlock(t, next.lock)
		w.noClaims()
	})
}

// The contexts of a lock that HoldAtMost ends are still ending when the lock is evicted. They have
// ended all the same when another client has it (C7).
func TestEvictedWhileItExpires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b, ops := w.client("a"), w.client("b"), w.client("ops")
		k := mustLockWith(t, a, "x", qlock.HoldAtMost(time.Second))
		all := make([]context.Context, 500_000)
		for i := range all {
			derived, cancel := context.WithCancel(k.Context())
			_ = cancel // they end with the lock's
			all[i] = derived
		}
		holder := inspect(t, ops, "x").Holders[0]
		next := waitFor(t.Context(), b.Lock, "x")
		time.Sleep(time.Second)
		for k.Context().Err() == nil {
			runtime.Gosched()
		}
		evicted := make(chan error, 1)
		go func() { evicted <- ops.Evict(t.Context(), "x", holder, "") }()
		<-next.done
		alive := 0
		for _, ctx := range all {
			if ctx.Err() == nil {
				alive++
			}
		}
		if alive > 0 {
			t.Errorf("held by the next, with %d contexts of the holder before alive", alive)
		}
		if err := <-evicted; err != nil {
			t.Error(err)
		}
		mustUnlock(t, next.held(t))
		wantIs(t, context.Cause(k.Context()), qlock.ErrHoldExpired)
		wantIs(t, k.Unlock(t.Context()), qlock.ErrHoldExpired)
		w.noClaims()
	})
}
