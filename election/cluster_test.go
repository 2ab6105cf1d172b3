package election_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/qlocktest"
)

// A longer run: go test -run TestFaults -faults.rounds=20 -faults.seed=7
var (
	rounds = flag.Int("faults.rounds", 1, "how often TestFaults does to the cluster all that it can")
	seed   = flag.Uint64("faults.seed", 14, "of what TestFaults does")
)

// reign is a time in which a candidate led for certain: it saw that its context had not
// ended after the last of these moments.
type reign struct {
	term     uint64
	from, to time.Duration
}

// A real cluster whose nodes crash, stop and are isolated, and whose candidates are cut off
// for longer than the lease, from one seed: at no time are there two leaders, and terms
// rise.
func TestFaults(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 3, qlocktest.WithLinks())
	r := rand.New(rand.NewPCG(*seed, 4))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began := time.Now()
	var mu sync.Mutex // guards reigns
	var reigns []reign
	var conns []*nats.Conn
	var all sync.WaitGroup
	for i := range 3 {
		nc := c.Connect(t)
		conns = append(conns, nc)
		e, err := election.New(c.LockerOn(t, nc), "scheduler")
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() {
			lead := func(leading context.Context) error {
				now := reign{term: qlock.Token(leading), from: time.Since(began)}
				now.to = now.from
				end := time.After(time.Duration(r.IntN(20)) * time.Millisecond)
				if r.IntN(30) == 0 {
					end = time.After(1500 * time.Millisecond) // until it is lost, perhaps
				}
				look := time.NewTicker(time.Millisecond)
				defer look.Stop()
				for held := true; held; {
					at := time.Since(began)
					if held = leading.Err() == nil; held {
						now.to = at
					}
					select {
					case <-leading.Done():
						held = false
					case <-end:
						held = false
					case <-look.C:
					}
				}
				mu.Lock()
				reigns = append(reigns, now)
				mu.Unlock()
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
		c.Isolate(t, name)
		time.Sleep(300 * time.Millisecond)
		c.Mend(t)
		c.Stop(t, name)
		c.Restart(t, name)
		time.Sleep(200 * time.Millisecond)
	}
	stop()
	all.Wait()
	t.Logf("%d leaderships", len(reigns))
	if len(reigns) < 10 {
		t.Error("too few leaderships for a test")
	}
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
