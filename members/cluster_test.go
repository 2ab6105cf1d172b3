package members_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/qlocktest"
)

// span is a time in which a membership stood for certain, by its lease clock.
type span struct {
	id, by   string
	token    uint64
	from, to time.Time
}

// Members come, go and are cut off, nodes crash and stop, and servers are isolated with those
// clients that stay with them. No id has two members at once, tokens rise, and in the end every
// watcher sees who is there.
func TestFaults(t *testing.T) {
	t.Parallel()
	const lease = 500 * time.Millisecond
	c := testworld.StartFaults(t, qlocktest.WithLease(lease))
	look := testworld.NewSampler(t, time.Millisecond)
	var mu sync.Mutex // guards history
	var history []span
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for i := range 6 {
		var nc *nats.Conn
		if i < 3 {
			nc = c.Connect(t) // cut off below
		} else {
			nc = c.Client(t)
		}
		g, err := members.New(c.LockerOn(t, nc, qlock.WithLease(lease)), "workers")
		if err != nil {
			t.Fatal(err)
		}
		dice := testworld.Rand(uint64(100 + i))
		all.Go(func() {
			for stop.Err() == nil {
				id := fmt.Sprint(dice.IntN(4))
				ask, done := context.WithTimeout(stop, 300*time.Millisecond)
				m, err := g.Join(ask, id, fmt.Sprint(i))
				done()
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
						t.Errorf("join: %v", err)
					}
					continue
				}
				s := span{id: id, by: fmt.Sprint(i), token: m.Token()}
				end := look.Begin(m.Context())
				for range dice.IntN(4) {
					sleep(m.Context(), time.Duration(dice.IntN(60))*time.Millisecond)
					ask, done := context.WithTimeout(stop, 300*time.Millisecond)
					if err := m.SetMeta(ask, fmt.Sprint(i, "-", dice.IntN(100))); err != nil && m.Context().Err() == nil && ask.Err() == nil {
						t.Errorf("set metadata: %v", err)
					}
					done()
				}
				var ok bool
				s.from, s.to, ok = end()
				_ = m.Leave(t.Context()) // it may be lost
				if ok {
					mu.Lock()
					history = append(history, s)
					mu.Unlock()
				}
			}
		})
		if i < 3 {
			// Clients that are cut off for less and more than the lease.
			dice := testworld.Rand(uint64(200 + i))
			all.Go(func() {
				for stop.Err() == nil {
					sleep(stop, time.Duration(200+dice.IntN(600))*time.Millisecond)
					c.Disconnect(t, nc)
					sleep(stop, time.Duration(dice.IntN(900))*time.Millisecond)
					c.Reconnect(t, nc)
				}
			})
		}
	}
	watchers := make([]*watcher, 2)
	for i := range watchers {
		nc := c.Connect(t)
		g, err := members.New(c.LockerOn(t, nc), "workers", members.WithEvents(nc))
		if err != nil {
			t.Fatal(err)
		}
		watchers[i] = watchFor(t, g)
	}
	c.RoundsFor(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(history) >= 20
	})
	cancel()
	all.Wait()
	checkHistory(t, history)

	// At rest: three members, of whom all know.
	nc := c.Connect(t)
	g, err := members.New(c.LockerOn(t, nc), "workers", members.WithEvents(nc))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := g.Join(within(t, 2*time.Minute), fmt.Sprint("rest", i), "here"); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range watchers {
		for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if w.ids() == "rest0 rest1 rest2" {
				break
			}
			if time.Since(start) > 2*time.Minute {
				t.Fatalf("a watcher sees %s", w.ids())
			}
		}
	}
}

func checkHistory(t *testing.T, history []span) {
	t.Helper()
	byID := map[string][]span{}
	for _, s := range history {
		byID[s.id] = append(byID[s.id], s)
	}
	for id, spans := range byID {
		slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.token, b.token) })
		for i := 1; i < len(spans); i++ {
			a, b := spans[i-1], spans[i]
			if a.token == b.token || b.from.Before(a.from) {
				t.Errorf("id %s: %+v, then %+v", id, a, b)
			}
			if !a.to.Before(b.from) {
				t.Errorf("id %s has two members for %v: %+v and %+v", id, a.to.Sub(b.from), a, b)
			}
		}
	}
	t.Logf("%d memberships of %d ids", len(history), len(byID))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func watchFor(t *testing.T, g *members.Group) *watcher {
	w := &watcher{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for u, err := range g.Watch(ctx) {
			w.mu.Lock()
			if err == nil {
				w.now = u.Members
			}
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watcher) ids() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return ids(w.now)
}
