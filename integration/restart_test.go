package integration

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
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

// crew is workers that increment counters in a store, each with a connection of
// its own.
type crew struct {
	store
	stop chan struct{}
	work sync.WaitGroup

	mu        sync.Mutex
	confirmed map[string]int
	failures  map[string]int // by what Lock said
}

func startCrew(t *testing.T, servers []*embedded.Server, workers int, names ...string) *crew {
	t.Helper()
	c := &crew{stop: make(chan struct{}), confirmed: map[string]int{}, failures: map[string]int{}}
	for i := range workers {
		// Each has another server to begin with, and then the others.
		i0 := i % len(servers)
		l := client(t, fmt.Sprintf("worker-%d", i), urls(append(servers[i0:len(servers):len(servers)], servers[:i0]...)...))
		c.work.Go(func() { c.increment(t, l, names) })
	}
	t.Cleanup(func() { c.halt() })
	return c
}

func (c *crew) increment(t *testing.T, l *qlock.Locker, names []string) {
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return
		default:
		}
		name := names[i%len(names)]
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		k, err := l.Lock(ctx, name)
		if err == nil {
			err = c.store.increment(ctx, k)
		}
		cancel()
		c.mu.Lock()
		switch {
		case err == nil:
			c.confirmed[name]++
		case errors.Is(err, errStale):
			c.failures["stale"]++
		default:
			c.failures[err.Error()]++
		}
		c.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // so that crews leave the machine to others
	}
}

// more waits until the crew has done n more increments of each name.
func (c *crew) more(t *testing.T, n int, names ...string) {
	t.Helper()
	for _, name := range names {
		c.mu.Lock()
		want := c.confirmed[name] + n
		c.mu.Unlock()
		await(t, "the crew goes on", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.confirmed[name] >= want
		})
	}
}

func (c *crew) halt() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	c.work.Wait()
}

// done stops the crew and compares what it did with what the store has.
func (c *crew) done(t *testing.T) {
	t.Helper()
	c.halt()
	c.check(t, c.confirmed)
	for why, n := range c.failures {
		if why == "stale" {
			t.Logf("%d increments were refused by the store", n)
			continue
		}
		t.Errorf("%d times: %s", n, why)
	}
}

// Nodes stop, crash and come back while clients work: a minority at any time. The
// count is exact and no lock had to be waited for in vain.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, maxLease(time.Second))
	names := []string{"count.a", "count.b", "count.c"}
	crew := startCrew(t, c.Servers(), 6, names...)
	crew.more(t, 5, names...)
	r := rand.New(rand.NewPCG(*seed, 1))
	for range *rounds {
		for k, i := range r.Perm(3) {
			s := c.Servers()[i]
			stop, how := c.Crash, "crashed"
			if k == 1 {
				stop, how = c.Stop, "was stopped"
			}
			stop(t, s.Name())
			// Down for a moment or for longer than the leases of what it voted for.
			down := time.Now().Add(time.Duration(r.IntN(1200)) * time.Millisecond)
			for more := true; more; more = time.Now().Before(down) {
				crew.more(t, 5, names...)
			}
			restart(t, s)
			c.WaitVotes(t)
			t.Logf("%s %s and is back", s.Name(), how)
			crew.more(t, 5, names...)
		}
	}
	crew.done(t)
	empty(t, c.Servers()...)
}

// Each node in turn is stopped cleanly and started again, and who holds a lock,
// or waits for one, does not notice.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	a := client(t, "a", urls(servers...))
	b := client(t, "b", urls(servers[1], servers[2], servers[0]))
	d := client(t, "d", urls(servers[2], servers[0], servers[1]))

	writer, reader := lock(t, a, "written"), rlock(t, a, "read")
	first := start(t, testContext(t), b.Lock, "written")
	await(t, "b waits", func() bool { return claims(servers) == 3*3 })
	second := start(t, testContext(t), d.Lock, "written")
	await(t, "d waits", func() bool { return claims(servers) == 4*3 })

	began := time.Now()
	for _, s := range servers {
		must(t, s.Close())
		restart(t, s)
		if !s.Node().Ready() {
			t.Errorf("%s was stopped cleanly and does not vote", s.Name())
		}
		c.WaitVotes(t)
		if got := s.Node().Stats().Claims; got != 4 {
			t.Errorf("%s came back with %d claims, not with 4", s.Name(), got)
		}
		unlock(t, lock(t, d, "other"))
		await(t, "the release arrives everywhere", func() bool { return claims(servers) == 4*3 })
	}
	stays(t, writer, max(0, time.Until(began.Add(lease+lease/2))))
	if first.isDone() || second.isDone() {
		t.Error("a writer was granted beside another")
	}
	unlock(t, reader)
	unlock(t, writer)
	k := first.wait(t)
	if k.Token() <= writer.Token() {
		t.Errorf("token %d after token %d", k.Token(), writer.Token())
	}
	if second.isDone() {
		t.Error("b and d hold together, or d before b")
	}
	unlock(t, k)
	unlock(t, second.wait(t))
	empty(t, servers...)
}

func claims(servers []*embedded.Server) int {
	n := 0
	for _, s := range servers {
		n += s.Node().Stats().Claims
	}
	return n
}

// The server that a client is connected to dies. The client goes to another,
// keeps what it holds for longer than a lease, and its place in a queue.
func TestClientFailsOver(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	nc := connect(t, urls(servers...))
	a := newLocker(t, nc, qlock.WithName("a"))
	b := client(t, "b", urls(servers[1], servers[2]))
	d := client(t, "d", urls(servers[2], servers[1]))

	held, shared, other := lock(t, a, "held"), rlock(t, a, "shared"), lock(t, b, "other")
	first := start(t, testContext(t), a.Lock, "other")
	await(t, "a waits", func() bool { return claims(servers) == 4*3 })
	second := start(t, testContext(t), d.Lock, "other")
	await(t, "d waits", func() bool { return claims(servers) == 5*3 })

	// Not always the first: the client leaves a server that is slow to answer its pings.
	before, i := "", -1
	await(t, "a is connected", func() bool {
		before = nc.ConnectedUrl()
		i = slices.IndexFunc(servers, func(s *embedded.Server) bool { return s.ClientURL() == before })
		return i >= 0
	})
	qlocktest.CrashServer(t, servers[i])
	stays(t, held, lease+lease/2)
	stays(t, shared, 0)
	if nc.ConnectedUrl() == before {
		t.Fatalf("a is still connected to %s", before)
	}
	if _, err := d.TryLock(testContext(t), "held"); !errors.Is(err, qlock.ErrHeld) {
		t.Errorf("TryLock of a held lock: %v", err)
	}
	unlock(t, other)
	k := first.wait(t)
	if second.isDone() {
		t.Error("a and d hold together, or d before a")
	}
	unlock(t, k)
	unlock(t, second.wait(t))
	unlock(t, held)
	unlock(t, shared)
	empty(t, slices.Delete(servers, i, i+1)...)
}
