package semaphore_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/semaphore"
)

// span is a time in which a client held a permit for certain: after the last of these moments it
// saw that the lock stood by the lease clock.
type span struct {
	permit   int
	token    uint64
	from, to time.Duration
}

// A real cluster whose nodes crash, stop and are isolated, and whose clients are cut off for
// longer than the lease, from one seed: at no time do more than the limit hold a permit, no
// permit has two holders, and tokens rise.
func TestFaults(t *testing.T) {
	t.Parallel()
	const clients, limit = 4, 2
	c := testworld.StartFaults(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began := time.Now()
	var mu sync.Mutex // guards spans
	var spans []span
	var all sync.WaitGroup
	for i := range clients {
		s, err := semaphore.New(c.LockerOn(t, c.Client(t)), "renders", limit)
		if err != nil {
			t.Fatal(err)
		}
		r := testworld.Rand(uint64(1 + i))
		all.Go(func() {
			for ctx.Err() == nil {
				p, err := s.Acquire(ctx, 1+r.IntN(limit))
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("acquire: %v", err)
					}
					return
				}
				from, to, ok := testworld.Hold(p.Context(), began, r)
				numbers, now := p.Numbers(), time.Since(began)
				switch err := p.Release(ctx); {
				case err == nil: // all were held until now
					to = now
				case errors.Is(err, qlock.ErrLost): // what was seen is the clock of the first
					numbers = numbers[:1]
				default:
					t.Errorf("release: %v", err)
				}
				if !ok {
					continue
				}
				mu.Lock()
				for _, n := range numbers {
					spans = append(spans, span{n, p.Token(n), from, to})
				}
				mu.Unlock()
			}
		})
	}
	c.RoundsFor(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(spans) >= 10
	})
	stop()
	all.Wait()
	t.Logf("%d permits were held", len(spans))
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
