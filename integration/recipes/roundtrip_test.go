//go:build unix

package recipes

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testproxy"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/semaphore"
)

// A permit that is free takes one round trip, as a lock does. The client is far from the
// nodes, so that a round trip is most of the time; and the fastest of several calls counts,
// as the machine may be busy.
func TestPermitInOneRoundTrip(t *testing.T) {
	t.Parallel()
	const away = 40 * time.Millisecond // one way
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(10*time.Second))
	server, err := url.Parse(c.Servers()[0].ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	p, err := testproxy.New(server.Host, *seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	p.Delay(testproxy.Both, away, 0)
	nc, err := nats.Connect("nats://" + p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	l := c.LockerOn(t, nc)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	fastest := func(f func() error) time.Duration {
		t.Helper()
		best := time.Hour
		for range 8 {
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(began))
			time.Sleep(2 * away) // what it gave back is free
		}
		return best
	}
	lock := fastest(func() error {
		k, err := l.Lock(ctx, "renders")
		if err != nil {
			return err
		}
		return k.Unlock(ctx)
	})
	for _, k := range []int{1, 3} {
		s, err := semaphore.New(l, "renders", 64)
		if err != nil {
			t.Fatal(err)
		}
		permit := fastest(func() error {
			p, err := s.Acquire(ctx, k)
			if err != nil {
				return err
			}
			return p.Release(ctx)
		})
		if permit > lock+away {
			t.Errorf("%d permits take %v, a lock %v: more than one round trip of %v", k, permit, lock, 2*away)
		}
		t.Logf("%d permits take %v, a lock %v", k, permit, lock)
	}
}

// A call that asks for the gate and for permits in one go gets none before those that are at
// the gate, and does not keep from them what it asked for.
func TestGuessedPermitsWait(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLease(10*time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	first, second := c.Locker(t), c.Locker(t)
	gate, err := first.Lock(ctx, "qlock.semaphore.renders.gate")
	if err != nil {
		t.Fatal(err)
	}
	s, err := semaphore.New(second, "renders", 3)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		p, err := s.Acquire(ctx, 2)
		if err == nil {
			err = p.Release(ctx)
		}
		got <- err
	}()
	<-gate.Wanted()
	// It waits for the gate. All three permits are the first client's to have.
	other, err := semaphore.New(first, "renders", 3)
	if err != nil {
		t.Fatal(err)
	}
	for {
		p, err := other.TryAcquire(ctx, 3)
		if err == nil {
			err = p.Release(ctx)
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, qlock.ErrHeld) { // until they are given back
			t.Fatal(err)
		}
	}
	select {
	case err := <-got:
		t.Fatalf("it did not wait for the gate: %v", err)
	default:
	}
	if err := gate.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}
