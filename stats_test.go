package qlock_test

import (
	"context"
	"encoding/json"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// balance checks what must be true of the numbers at any moment; asked is how many
// calls asked for a lock.
func balance(t *testing.T, s qlock.LockerStats, asked int) {
	t.Helper()
	f := s.Failed
	if got := s.Granted + f.Held + f.NoQuorum + f.Refused + f.Closed + f.Evicted + uint64(s.Waiting); got != uint64(asked) {
		t.Errorf("%d calls are accounted for, %d asked: %+v", got, asked, s)
	}
	if got := uint64(s.Held) + s.Lost + s.Unlocked; got != s.Granted {
		t.Errorf("%d locks are accounted for, %d were granted: %+v", got, s.Granted, s)
	}
	last := uint64(0)
	for _, b := range s.Wait.Buckets {
		if b.Count < last || b.Count > s.Wait.Count {
			t.Errorf("the histogram falls: %+v", s.Wait)
		}
		last = b.Count
	}
	if s.Wait.Count != s.Granted {
		t.Errorf("%d waits of %d locks", s.Wait.Count, s.Granted)
	}
}

// waits is how many waits were longer than one bound, and not longer than the next.
func waits(s qlock.LockerStats, upTo time.Duration) uint64 {
	last := uint64(0)
	for _, b := range s.Wait.Buckets {
		if b.UpTo == upTo {
			return b.Count - last
		}
		last = b.Count
	}
	return s.Wait.Count - last
}

// One of everything that a Locker counts.
func TestLockerStats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, nc := w.clientOn("a")
		b := w.client("b")
		asked := 0
		want := qlock.LockerStats{}
		check := func(what string) {
			t.Helper()
			settle()
			s := a.Stats()
			balance(t, s, asked)
			s.Wait, s.Nodes, s.Recalls, s.Yields = qlock.WaitTimes{}, nil, 0, 0
			if !reflect.DeepEqual(s, want) {
				t.Errorf("%s: %+v, want %+v", what, s, want)
			}
		}
		check("a new one")
		for _, n := range a.Stats().Nodes {
			if !n.LastHeard.IsZero() {
				t.Errorf("%s was heard without a request", n.Node)
			}
		}

		x := mustLock(t, a, "x")
		asked++
		want.Held, want.Claims, want.Granted = 1, 1, 1
		check("a lock")

		// Of two who wait here, one is given it, and the other gives up.
		next := waitFor(t.Context(), a.Lock, "x")
		tired := waitFor(timeout(t, 2*time.Second), a.Lock, "x")
		asked += 2
		want.Waiting = 2
		check("two wait")
		time.Sleep(3 * time.Second)
		mustUnlock(t, x)
		next.held(t)
		<-tired.done
		wantIs(t, tired.err, qlock.ErrHeld, context.DeadlineExceeded)
		want.Waiting, want.Granted, want.PassedOn, want.Unlocked, want.Failed.Held = 0, 2, 1, 1, 1
		check("one was given it")
		if s := a.Stats(); waits(s, 100*time.Microsecond) != 1 || waits(s, 5*time.Second) != 1 || s.Wait.Sum != 3*time.Second {
			t.Errorf("waits of 0 and 3s: %+v", s.Wait)
		}

		if _, err := a.TryLock(t.Context(), "x"); err == nil {
			t.Fatal("the lock is held")
		}
		asked++
		want.Failed.Held++
		check("a try in vain")

		// What asks for nothing is not counted.
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.Lock(ended, "x"); err == nil {
			t.Fatal("an ended context")
		}
		if _, err := a.Lock(t.Context(), ""); err == nil {
			t.Fatal("an empty name")
		}
		check("calls that asked for nothing")

		// Cut off, it cannot have a lock, and loses what it has.
		nc.cut()
		before := time.Now()
		if _, err := a.Lock(timeout(t, time.Second), "y"); err == nil {
			t.Fatal("a lock without nodes")
		}
		asked++
		want.Failed.NoQuorum++
		check("no quorum")
		time.Sleep(testLease)
		want.Held, want.Claims, want.Lost = 0, 0, 1
		check("a lost lock")
		for _, n := range a.Stats().Nodes {
			if n.LastHeard.IsZero() || n.LastHeard.After(before) {
				t.Errorf("%s was heard %v, the connection was cut %v", n.Node, n.LastHeard, before)
			}
		}
		nc.mend()
		time.Sleep(2 * reconnectWait)

		// Close ends both, what is held and what waits.
		mustLock(t, a, "x")
		z := mustLock(t, b, "z")
		waitFor(t.Context(), a.Lock, "z")
		asked += 2
		want.Held, want.Waiting, want.Claims, want.Granted = 1, 1, 2, 3
		check("before the end")
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		want.Held, want.Waiting, want.Claims, want.Unlocked, want.Failed.Closed = 0, 0, 0, 2, 1
		check("after the end")
		if _, err := a.Lock(t.Context(), "x"); err == nil {
			t.Fatal("a lock after Close")
		}
		check("long after the end")
		mustUnlock(t, z)
	})
}

// A lock that stays here is had without asking the nodes.
func TestLockerStatsOfKeptLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithRetention(time.Second))
		for range 10 {
			mustUnlock(t, mustLock(t, a, "x"))
		}
		s := a.Stats()
		balance(t, s, 10)
		if s.Held != 0 || s.Claims != 1 || s.PassedOn != 9 {
			t.Errorf("ten times the lock, which is kept now: %+v", s)
		}
		k := mustLock(t, w.client("b"), "x")
		settle()
		if s = a.Stats(); s.Claims != 0 || s.Recalls == 0 || s.Yields != 0 {
			t.Errorf("another has it: %+v, want that it was recalled", s)
		}
		mustUnlock(t, k)
	})
}

// What the nodes refuse is counted by both sides.
func TestLockerStatsOfRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{node: func(_ int, c *qlock.NodeConfig) { c.MaxClaims = 1 }})
		a := w.client("a")
		k := mustLock(t, a, "x")
		_, err := a.Lock(t.Context(), "y")
		wantIs(t, err, qlock.ErrRefused)
		s := a.Stats()
		balance(t, s, 2)
		if s.Failed.Refused != 1 {
			t.Errorf("a claim too many: %+v", s)
		}
		if n := w.nodes[0].Stats(); n.Refused != (qlock.NodeRefusals{Claims: 1}) || n.Granted != 1 {
			t.Errorf("the node counted %+v", n)
		}
		mustUnlock(t, k)
	})
}

// The round trip of a node is that of messages, not of waiting for a lock.
func TestRoundTripsOfNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, b, "x")
		next := waitFor(t.Context(), a.Lock, "x")
		time.Sleep(time.Second)
		mustUnlock(t, k)
		mustUnlock(t, next.held(t))
		settle() // the last node's answer comes after the lock
		w.nodes[2].crash()
		time.Sleep(time.Second)
		k = mustLock(t, a, "x")
		settle()
		for i, n := range a.Stats().Nodes {
			heard := time.Duration(0)
			if i == 2 {
				heard = time.Second
			}
			if n.Node != w.nodes[i].cfg.Name || time.Since(n.LastHeard) != heard || n.RoundTrip > 10*time.Microsecond {
				t.Errorf("%+v, want one of no time, heard %v ago", n, heard)
			}
		}
		mustUnlock(t, k)
	})
}

func TestNodeStats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		start := time.Now()
		w := newWorld(t, 1)
		a, b, c := w.client("a"), w.client("b"), w.client("c")
		n := w.nodes[0]
		mustLock(t, a, "x")
		waitFor(t.Context(), b.Lock, "x")
		waitFor(t.Context(), c.Lock, "x")
		mustLock(t, c, "y")
		s := n.Stats()
		if s.State != "voting" || !s.Started.Equal(start) || s.Recovering != 0 || s.Claims != 4 || s.Waiting != 2 || s.Resources != 2 || s.Clients != 3 || s.Granted != 2 || s.LeasesExpired != 0 {
			t.Errorf("two hold and two wait: %+v", s)
		}
		body, err := json.Marshal(s)
		var again qlock.NodeStats
		if err == nil {
			err = json.Unmarshal(body, &again)
		}
		if err != nil || !again.Started.Equal(s.Started) || again.Granted != s.Granted {
			t.Errorf("%s is %+v: %v", body, again, err)
		}

		// After a crash it waits, and tells for how long.
		n.crash()
		time.Sleep(time.Second)
		start = time.Now()
		n.start()
		time.Sleep(time.Second)
		if s = n.Stats(); s.State != "recovering" || !s.Started.Equal(start) || s.Recovering != quarantine-time.Since(start) || s.Granted != 0 {
			t.Errorf("%v after a start: %+v, want that it waits %v", time.Since(start), s, quarantine)
		}
		stopped := n.Node
		n.crash()
		if s = stopped.Stats(); s.State != "stopped" || s.Recovering != 0 {
			t.Errorf("one that stopped: %+v", s)
		}
	})
}

// A client that falls silent is seen at the nodes.
func TestExpiredLeasesAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a, nc := w.clientOn("a")
		mustLock(t, a, "x")
		nc.cut()
		time.Sleep(testLease + time.Second)
		if s := w.nodes[0].Stats(); s.LeasesExpired != 1 || s.Claims != 0 {
			t.Errorf("a silent client: %+v", s)
		}
	})
}

// Stats may be asked for at any time, by anybody.
func TestStatsWhileLocking(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 50 {
					k, err := a.Lock(t.Context(), "x")
					if err != nil {
						t.Error(err)
						return
					}
					if s := a.Stats(); s.Held != 1 || s.Granted != s.Unlocked+1 {
						t.Errorf("one holds: %+v", s)
					}
					if err := k.Unlock(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		balance(t, a.Stats(), 400)
	})
}
