package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// Goroutines of three clients use all options and all ways to end a lock at random. No two hold a
// lock that excludes them, what is counted adds up, and nothing is left.
func TestTermsAtRandom(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { termsAtRandom(t, seed) })
		})
	}
}

func termsAtRandom(t *testing.T, seed uint64) {
	w := newWorld(t, 3)
	var lockers []*qlock.Locker
	var links []*link
	for i, opts := range [][]qlock.Option{nil, {qlock.WithRetention(time.Second)}, {qlock.WithPassOn(3, time.Second), qlock.WithRetention(time.Millisecond)}} {
		l, nc := w.clientOn(fmt.Sprint("c", i), opts...)
		lockers, links = append(lockers, l), append(links, nc)
	}
	names := []string{"x", "y"}
	var held [2]holders
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for g := range 24 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			upTo := func(d time.Duration) time.Duration { return 1 + time.Duration(rng.Int64N(int64(d))) }
			l := lockers[g%len(lockers)]
			for ctx.Err() == nil {
				n := rng.IntN(len(names))
				isShared := rng.IntN(2) == 0
				var opts []qlock.LockOption
				for _, o := range []qlock.LockOption{
					qlock.HoldAtLeast(upTo(time.Second)), qlock.HoldAtMost(upTo(2 * time.Second)), qlock.WithManualRelease(),
					qlock.WithAge(time.Now().Add(time.Second - upTo(10*time.Second))), qlock.Try(), qlock.Note("a note"),
				} {
					if rng.IntN(3) == 0 {
						opts = append(opts, o)
					}
				}
				if isShared {
					opts = append(opts, qlock.Shared())
				}
				wait, cancel := context.WithTimeout(ctx, upTo(20*time.Second))
				p := l.Start(wait, names[n], opts...)
				if rng.IntN(3) == 0 {
					select {
					case <-p.Changed():
					case <-p.Done():
					}
					_ = p.Status().String()
				}
				if rng.IntN(4) == 0 {
					time.Sleep(upTo(time.Second))
					go p.Cancel()
				}
				k, err := p.Wait(t.Context())
				cancel()
				if err != nil {
					time.Sleep(upTo(100 * time.Millisecond))
					continue
				}
				use(t, k, &held[n], rng.IntN(6), upTo(time.Second))
			}
		})
	}
	all.Go(func() { // what happens to them
		rng := rand.New(rand.NewPCG(seed, 1000))
		for ctx.Err() == nil {
			time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
			n := rng.IntN(len(names))
			switch info, err := lockers[0].Inspect(ctx, names[n]); {
			case err != nil:
			case rng.IntN(2) == 0 && len(info.Holders) > 0:
				_ = lockers[1].Evict(timeout(t, time.Second), names[n], info.Holders[0], "at random")
			case len(info.Queue) > 0:
				_ = lockers[1].Evict(timeout(t, time.Second), names[n], info.Queue[0], "at random")
			}
			if rng.IntN(10) == 0 {
				links[2].cut()
				time.Sleep(time.Duration(rng.Int64N(int64(2 * testLease))))
				links[2].mend()
			}
		}
	})
	all.Wait()
	for i, l := range lockers {
		s := l.Stats()
		if s.Held != 0 || s.Waiting != 0 || s.Granted == 0 || s.Granted != s.Lost+s.Unlocked {
			t.Errorf("%s: %+v", l.Name(), s)
		}
		if i == 0 {
			t.Logf("%d granted, %d lost, %d unlocked, %+v", s.Granted, s.Lost, s.Unlocked, s.Failed)
		}
	}
	time.Sleep(2 * testLease)
	w.noClaims()
}

// holders are those who hold a lock as far as they know.
type holders struct {
	mu   sync.Mutex // guards list
	list []*qlock.Lock
}

// add takes in a lock that was granted. The contexts of all that exclude it must have ended.
func (h *holders) add(t *testing.T, k *qlock.Lock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.list {
		if (!o.Shared() || !k.Shared()) && o.Context().Err() == nil && k.Context().Err() == nil {
			t.Errorf("%s is held with token %d (shared: %v) and with %d (shared: %v)", k.Name(), o.Token(), o.Shared(), k.Token(), k.Shared())
		}
	}
	h.list = append(h.list, k)
}

func (h *holders) remove(k *qlock.Lock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = slices.DeleteFunc(h.list, func(o *qlock.Lock) bool { return o == k })
}

// use works under a lock for a while, and unlocks it.
func use(t *testing.T, k *qlock.Lock, held *holders, how int, d time.Duration) {
	held.add(t, k)
	defer held.remove(k)
	end := time.NewTimer(d)
	defer end.Stop()
	switch how {
	case 0:
		_ = k.AwaitRefresh(k.Context())
	case 1:
		select {
		case <-k.Wanted():
		case <-k.Context().Done():
		case <-end.C:
		}
	default:
		select {
		case <-k.Context().Done():
		case <-end.C:
		}
	}
	_ = k.Stands()
	ended := k.Context().Err() != nil
	if err := qlock.Held(k.Context()); err == nil && ended {
		t.Errorf("%s: its context has ended, and it is held", k.Name())
	}
	for range 2 {
		if err := k.Unlock(context.Background()); err != nil && !errors.Is(err, qlock.ErrLost) && !errors.Is(err, qlock.ErrHoldExpired) {
			t.Error(err)
		}
	}
}
