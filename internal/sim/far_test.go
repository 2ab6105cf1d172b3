package sim

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// far is one client and its nodes, half a round trip apart.
type far struct {
	t       *testing.T
	now     time.Duration
	half    time.Duration
	nodes   []*voter.Node
	core    *client.Client
	due     []func() // by the half round trips, in order
	dueAt   []time.Duration
	out, in int // messages, as the client counts them
	lost    bool
	cout    client.Out
	nout    voter.Out
	drop    func(*wire.Request) bool
}

func newFar(t *testing.T, trip, ttl time.Duration, known bool) *far {
	f := &far{t: t, half: trip / 2, now: time.Second}
	// No node asks for its name meanwhile.
	cfg := wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: time.Hour, Skew: 5 * time.Second}
	trips := map[string]time.Duration{}
	for i, name := range cfg.Nodes {
		n := voter.New(voter.Config{Name: name, Config: cfg, Incarnation: uuid.UUID{9, byte(i)}, MaxClaims: 1000, MaxQueue: 1000}, f.clock(), &voter.Saved{}, 0)
		for range 3 {
			n.Tick(f.clock(), &f.nout)
			if f.nout.Probe != nil {
				n.HandleAnswer(f.clock(), &wire.Answer{Kind: wire.Informed, Node: name, Incarnation: uuid.UUID{9, byte(i)}, Info: &wire.NodeInfo{Nonce: f.nout.Probe.Nonce}}, &f.nout)
			}
			f.nout.Reset()
		}
		if n.State() != wire.Voting {
			t.Fatal("a node does not vote")
		}
		f.nodes = append(f.nodes, n)
		if known {
			trips[name] = trip
		}
	}
	f.core = client.New(client.Config{Name: "a", Instance: uuid.UUID{1}, TTL: ttl, MaxRuns: 100, Cluster: cfg, Trips: trips}, f.clock())
	return f
}

func (f *far) clock() wire.Now {
	return wire.Now{Mono: f.now, Wall: baseWall + f.now.Microseconds()}
}

func (f *far) later(do func()) {
	f.due = append(f.due, do)
	f.dueAt = append(f.dueAt, f.now+f.half)
}

// flush sends the messages of the client.
func (f *far) flush() {
	for _, r := range f.cout.Requests {
		f.out++
		if f.drop != nil && f.drop(&r) {
			continue
		}
		f.later(func() {
			for _, n := range f.nodes {
				copied := r
				n.Handle(f.clock(), &copied, "inbox", &f.nout)
				for _, s := range f.nout.Answers {
					f.later(func() {
						f.in++
						f.core.Handle(f.clock(), &s.Answer, &f.cout)
						f.flush()
					})
				}
				f.nout.Reset()
			}
		})
	}
	for _, e := range f.cout.Events {
		f.lost = f.lost || e.Kind == client.Lost
	}
	f.cout.Reset()
}

// run lets time pass until done returns true, or for d.
func (f *far) run(d time.Duration, done func() bool) {
	for end := f.now + d; !done(); {
		next := end
		if len(f.dueAt) > 0 {
			next = min(next, f.dueAt[0])
		}
		wait, ok := f.core.Wait(f.clock())
		if ok {
			next = min(next, f.now+wait)
		}
		f.now = max(f.now, next)
		if len(f.dueAt) > 0 && f.dueAt[0] <= f.now {
			do := f.due[0]
			f.due, f.dueAt = f.due[1:], f.dueAt[1:]
			do()
			continue
		}
		f.core.Tick(f.clock(), &f.cout)
		f.flush()
		if f.now >= end {
			return
		}
	}
}

// lock acquires and releases a lock, and returns how many messages that took.
func (f *far) lock(hold time.Duration) (out, in int, took time.Duration) {
	f.t.Helper()
	f.out, f.in = 0, 0
	began := f.now
	cl := f.core.Claim(f.clock(), client.Request{Resource: "r", Mode: quorum.Exclusive}, &f.cout)
	f.flush()
	f.run(time.Minute, func() bool { return cl.State() == client.Holding })
	if cl.State() != client.Holding {
		f.t.Fatal("the lock is not held")
	}
	took = f.now - began
	f.run(hold, func() bool { return cl.State() == client.Over })
	if f.lost {
		f.t.Fatalf("the lock is lost after %v", f.now-began-took)
	}
	f.core.Release(f.clock(), cl, &f.cout)
	f.flush()
	f.run(time.Minute, func() bool { return false })
	for _, n := range f.nodes {
		if n.Claims() > 0 {
			f.t.Fatal("a node still has the claim")
		}
	}
	return f.out, f.in, took
}

// A lock on the other side of the world takes as many messages as one nearby: the client
// waits for an answer before it asks again (C4).
func TestMessagesOfALockFarAway(t *testing.T) {
	never := time.Duration(0)
	for _, c := range []struct {
		trip, ttl, hold time.Duration
		out, in         int // at most
	}{
		// Acquire, release, and the empty refresh after the last claim is over (C6).
		{200 * time.Microsecond, 10 * time.Second, never, 3, 6},
		{20 * time.Millisecond, 10 * time.Second, never, 3, 6},
		{300 * time.Millisecond, 10 * time.Second, never, 3, 6},
		{300 * time.Millisecond, 2 * time.Second, never, 3, 6},
		{time.Second, 10 * time.Second, never, 3, 6},
		{300 * time.Millisecond, 10 * time.Second, 30 * time.Second, 12, 33},
		{300 * time.Millisecond, time.Second, 30 * time.Second, 123, 366},
		// A lease that is hardly longer than the round trip keeps no lock for long, but must not
		// take more messages either.
		{300 * time.Millisecond, 400 * time.Millisecond, never, 9, 24},
	} {
		f := newFar(t, c.trip, c.ttl, true)
		for _, which := range []string{"first", "second"} {
			out, in, took := f.lock(c.hold)
			t.Logf("round trip %v, lease %v, held for %v, %s lock: %d messages out, %d in, %v", c.trip, c.ttl, c.hold, which, out, in, took)
			if out > c.out || in > c.in {
				t.Errorf("round trip %v, lease %v, held for %v, %s lock: %d messages out and %d in, want at most %d and %d",
					c.trip, c.ttl, c.hold, which, out, in, c.out, c.in)
			}
			if took > c.trip+time.Millisecond {
				t.Errorf("round trip %v: the lock took %v", c.trip, took)
			}
		}
	}
}
