//go:build unix

package recipes

import (
	"context"
	"errors"
	"fmt"
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
// nodes, and two round trips cannot take less than twice as long, however fast the machine is.
// A busy one may make a call longer, so it is made until one shows that it is one round trip.
func TestPermitInOneRoundTrip(t *testing.T) {
	t.Parallel()
	const away = 80 * time.Millisecond // one way
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
	nc, err := nats.Connect("nats://"+p.Addr(), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	l := c.LockerOn(t, nc)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	inOne := func(what string, f func() error) {
		t.Helper()
		best := time.Hour
		for best >= 4*away {
			if ctx.Err() != nil {
				t.Fatalf("%s takes %v or longer: more than one round trip of %v", what, best, 2*away)
			}
			began := time.Now()
			if err := f(); err != nil && ctx.Err() == nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(began))
			time.Sleep(2 * away) // what it gave back is free
		}
		t.Logf("%s takes %v", what, best)
	}
	inOne("a lock", func() error {
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
		inOne(fmt.Sprint("a call for permits, ", k, " of 64,"), func() error {
			p, err := s.Acquire(ctx, k)
			if err != nil {
				return err
			}
			return p.Release(ctx)
		})
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
