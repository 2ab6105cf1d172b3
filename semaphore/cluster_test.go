package semaphore_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/semaphore"
)

// A longer run: go test -run TestFaults -faults.rounds=20 -faults.seed=7
var (
	rounds = flag.Int("faults.rounds", 1, "how often TestFaults does to the cluster all that it can")
	seed   = flag.Uint64("faults.seed", 14, "of what TestFaults does")
)

// span is a time in which a client held a permit for certain: it saw that its context had
// not ended after the last of these moments.
type span struct {
	permit   int
	token    uint64
	from, to time.Duration
}

// A real cluster whose nodes crash and stop, and whose clients are cut off for longer than
// the lease, from one seed: at no time do more than the limit hold a permit, no permit has
// two holders, and tokens rise.
func TestFaults(t *testing.T) {
	t.Parallel()
	const clients, limit = 4, 2
	c := qlocktest.StartCluster(t, 3)
	r := rand.New(rand.NewPCG(*seed, 3))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began := time.Now()
	var mu sync.Mutex // guards spans
	var spans []span
	var conns []*nats.Conn
	var all sync.WaitGroup
	for range clients {
		nc := c.Connect(t)
		conns = append(conns, nc)
		s, err := semaphore.New(c.LockerOn(t, nc), "renders", limit)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() {
			for ctx.Err() == nil {
				p, err := s.Acquire(ctx, 1+r.IntN(limit))
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("acquire: %v", err)
					}
					return
				}
				from := time.Since(began)
				to := from
				end := time.After(time.Duration(r.IntN(20)) * time.Millisecond)
				if r.IntN(30) == 0 {
					end = time.After(1500 * time.Millisecond) // until it is lost, perhaps
				}
				look := time.NewTicker(time.Millisecond)
				for held := true; held; {
					now := time.Since(began)
					if held = p.Context().Err() == nil; held {
						to = now
					}
					select {
					case <-p.Context().Done():
						held = false
					case <-end:
						held = false
					case <-look.C:
					}
				}
				look.Stop()
				if err := p.Release(ctx); err != nil && !errors.Is(err, qlock.ErrLost) {
					t.Errorf("release: %v", err)
				}
				mu.Lock()
				for _, n := range p.Numbers() {
					spans = append(spans, span{n, p.Token(n), from, to})
				}
				mu.Unlock()
			}
		})
	}
	names := c.Names()
	for range *rounds {
		name := names[r.IntN(len(names))]
		c.Crash(t, name)
		time.Sleep(200 * time.Millisecond)
		c.Restart(t, name)
		nc := conns[r.IntN(len(conns))]
		c.Disconnect(t, nc)
		c.WaitVotes(t) // longer than the lease
		c.Reconnect(t, nc)
		name = names[r.IntN(len(names))]
		c.Stop(t, name)
		time.Sleep(100 * time.Millisecond)
		c.Restart(t, name)
		time.Sleep(200 * time.Millisecond)
	}
	stop()
	all.Wait()
	t.Logf("%d permits were held", len(spans))
	if len(spans) < 10 {
		t.Error("too few permits were held for a test")
	}
	check(t, spans, limit)
}

func check(t *testing.T, spans []span, limit int) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var held []span
	tokens := map[int]uint64{}
	for _, s := range spans {
		held = slices.DeleteFunc(held, func(o span) bool { return o.to < s.from })
		if i := slices.IndexFunc(held, func(o span) bool { return o.permit == s.permit }); i >= 0 {
			t.Errorf("permit %d has two holders: %+v and %+v", s.permit, held[i], s)
		}
		held = append(held, s)
		if len(held) > limit || s.permit > limit {
			t.Errorf("%d permits of %d are held: %+v", len(held), limit, held)
		}
		if s.token <= tokens[s.permit] {
			t.Errorf("%+v has a token that is not above %d", s, tokens[s.permit])
		}
		tokens[s.permit] = s.token
	}
}

// The check finds what it is for.
func TestCheckFails(t *testing.T) {
	for _, spans := range [][]span{
		{{1, 1, 0, 10}, {1, 2, 10, 20}},
		{{1, 1, 0, 10}, {2, 1, 0, 10}, {3, 1, 5, 6}},
		{{1, 2, 0, 10}, {1, 2, 11, 20}},
	} {
		var found testing.T
		check(&found, spans, 2)
		if !found.Failed() {
			t.Errorf("nothing is found in %+v", spans)
		}
	}
}
