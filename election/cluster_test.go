package election_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/internal/testworld"
)

// reign is a time in which a candidate led for certain: after the last of these moments it saw
// that the lock stood by the lease clock.
type reign struct {
	term     uint64
	from, to time.Duration
}

// A real cluster whose nodes crash, stop and are isolated, and whose candidates are cut off
// for longer than the lease, from one seed: at no time are there two leaders, and terms
// rise.
func TestFaults(t *testing.T) {
	t.Parallel()
	c := testworld.StartFaults(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began := time.Now()
	var mu sync.Mutex // guards reigns
	var reigns []reign
	var all sync.WaitGroup
	for i := range 3 {
		e, err := election.New(c.LockerOn(t, c.Client(t)), "scheduler")
		if err != nil {
			t.Fatal(err)
		}
		r := testworld.Rand(uint64(1 + i))
		all.Go(func() {
			lead := func(leading context.Context) error {
				if from, to, ok := testworld.Hold(leading, began, r); ok {
					mu.Lock()
					reigns = append(reigns, reign{qlock.Token(leading), from, to})
					mu.Unlock()
				}
				return errNext
			}
			err := errNext
			for errors.Is(err, errNext) && ctx.Err() == nil {
				err = e.Run(ctx, fmt.Sprint(i), lead)
			}
			if ctx.Err() == nil {
				t.Errorf("candidate %d: %v", i, err)
			}
		})
	}
	c.RoundsFor(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(reigns) >= 10
	})
	stop()
	all.Wait()
	t.Logf("%d leaderships", len(reigns))
	check(t, reigns)
}

var errNext = errors.New("let the next one lead")

func check(t *testing.T, reigns []reign) {
	slices.SortFunc(reigns, func(a, b reign) int { return cmp.Compare(a.from, b.from) })
	var last reign
	for i, r := range reigns {
		if i > 0 && r.from <= last.to {
			t.Errorf("two leaders: %+v and %+v", last, r)
		}
		if r.term <= last.term {
			t.Errorf("%+v after %+v", r, last)
		}
		last = r
	}
}

// The check finds what it is for.
func TestCheckFails(t *testing.T) {
	for _, reigns := range [][]reign{
		{{1, 0, 10}, {2, 10, 20}},
		{{2, 0, 10}, {1, 11, 20}},
		{{1, 0, 10}, {1, 11, 20}},
	} {
		var found testing.T
		check(&found, reigns)
		if !found.Failed() {
			t.Errorf("nothing is found in %+v", reigns)
		}
	}
}
