package rounds

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// crowd has ten clients with four workers each, on names that nobody else uses, with
// clocks that differ from true time by up to apart.
func (w *world) crowd(apart time.Duration, s *stats) {
	for range 10 {
		a := w.client(time.Duration(w.rng.Int64N(int64(2*apart)+1)) - apart)
		for k := range 4 {
			a.work(own(a, k), 2*time.Millisecond, s)
		}
	}
}

func (s *stats) want(t *testing.T, locks int, rounds float64, longest time.Duration) {
	t.Helper()
	t.Log(s)
	if len(s.waits) < locks || s.mean() > rounds || s.longest() > longest {
		t.Errorf("%v: want %d locks, at most %v rounds each, and no wait above %v", s, locks, rounds, longest)
	}
}

// A client that is alone on a name asks once for it, whatever others do on theirs, and
// however their clocks differ from its own (N3).
func TestStrangersDoNotMeet(t *testing.T) {
	for _, nodes := range []int{3, 5} {
		for _, apart := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 100 * time.Millisecond} {
			t.Run(fmt.Sprintf("%d nodes, %v", nodes, apart), func(t *testing.T) {
				w := begun(t, nodes)
				var s stats
				w.crowd(apart, &s)
				w.run(250 * time.Millisecond)
				s.want(t, 3500, 1.005, 2*time.Millisecond)
			})
		}
	}
}

// Many clients lock one name in turn, with time between. Its floor is ahead of the ages
// of clients whose clocks are behind, and the same at all nodes.
func TestOneNameInTurn(t *testing.T) {
	w := begun(t, 3)
	w.crowd(0, new(stats)) // other clients, so that floors move
	var s stats
	var clients []*asker
	for i := range 4 {
		clients = append(clients, w.client(time.Duration(i)*20*time.Millisecond))
	}
	for i := range 200 {
		w.after(time.Duration(i)*5*time.Millisecond, (&worker{
			client: clients[i%4], name: func(int) string { return "shared" }, think: time.Hour, stats: &s,
		}).lock)
	}
	w.run(1200 * time.Millisecond)
	s.want(t, 200, 1.02, 2*time.Millisecond)
}

// A client that may lock one name makes its floors differ between nodes, as far as they
// allow (N3). Others, on other names, are unaffected.
func TestOneHostileName(t *testing.T) {
	for _, up := range []int{3, 2} {
		t.Run(fmt.Sprintf("%d of 3 nodes", up), func(t *testing.T) {
			w := begun(t, 3)
			for _, n := range w.nodes[up:] {
				n.stop()
			}
			for i, n := range w.nodes {
				// So one goes further than the other.
				n.wrong = time.Duration(i) * 3 * time.Millisecond
			}
			seq := uint64(0)
			var push func()
			push = func() {
				for i, n := range w.nodes[:up] {
					seq++
					id := wire.ClaimID{Instance: uuid.UUID{6, 6, 6}, Seq: seq}
					n.handle(wire.Request{
						Verb: wire.Acquire, Client: "hostile", Resource: "hostile", Claim: id, SentAt: seq, Mode: quorum.Exclusive, TTL: ttl,
						At: n.clock().Wall, MinFence: uint64(n.clock().Wall + maxTTL.Microseconds() - int64(i)), Digest: w.cluster.Digest(),
					}, "hostile")
					n.handle(wire.Request{Verb: wire.Release, Client: "hostile", Resource: "hostile", Claim: id}, "hostile")
				}
				w.after(300*time.Microsecond, push)
			}
			push()
			var s stats
			w.crowd(5*time.Millisecond, &s)
			w.run(250 * time.Millisecond)
			s.want(t, 3500, 1.005, 2*time.Millisecond)
		})
	}
}

// Nodes start while their clocks are ahead, and the clocks are corrected some time later
// (N8). When all clocks are right and all nodes that are up vote, locks take no longer
// than ever.
func TestStartedAhead(t *testing.T) {
	const (
		clean  = iota // with a clean mark
		forgot        // without one
	)
	for _, tt := range []struct {
		wrong []time.Duration // error of each node's clock at its start
		how   int
		right time.Duration // time after the start when their clocks are corrected
		down  int           // how many of the last nodes are down then
	}{
		{[]time.Duration{0, 0, 0}, forgot, 0, 0},
		{[]time.Duration{2 * time.Hour, 0, 0}, clean, time.Second, 0},
		{[]time.Duration{2 * time.Hour, 0, 0}, clean, time.Second, 1},
		{[]time.Duration{2 * time.Hour, 2*time.Hour + 3*time.Second, 0}, clean, time.Second, 0},
		{[]time.Duration{2 * time.Hour, 2*time.Hour + 3*time.Second, 0}, clean, time.Second, 1},
		{[]time.Duration{2 * time.Hour, 0, 0}, forgot, time.Second, 1},
		{[]time.Duration{2 * time.Hour, 2*time.Hour + 3*time.Second, 0}, forgot, time.Second, 0},
		// Corrected only when they vote already, so what they forgot is as wrong until then.
		{[]time.Duration{2 * time.Hour, 0, 0}, forgot, time.Minute, 0},
		{[]time.Duration{2 * time.Hour, 0, 0}, forgot, time.Minute, 1},
		{[]time.Duration{2 * time.Hour, 2*time.Hour + 3*time.Second, 0}, forgot, time.Minute, 0},
		{[]time.Duration{2 * time.Hour, 2*time.Hour + 3*time.Second, 0, 0, 0}, forgot, time.Minute, 2},
	} {
		t.Run(fmt.Sprintf("%v, mark %v, right after %v, %d down", tt.wrong, tt.how == clean, tt.right, tt.down), func(t *testing.T) {
			w := newWorld(t, len(tt.wrong))
			for i, n := range w.nodes {
				n.wrong = tt.wrong[i]
				if tt.how == clean {
					n.start(&voter.Saved{})
				} else {
					n.start(nil)
				}
			}
			w.run(tt.right)
			for _, n := range w.nodes {
				n.wrong = 0
			}
			w.run(max(time.Second, maxTTL+6*time.Second-tt.right))
			w.mustVote()
			for _, n := range w.nodes[len(w.nodes)-tt.down:] {
				n.stop()
			}
			var s stats
			w.crowd(5*time.Millisecond, &s)
			w.run(250 * time.Millisecond)
			s.want(t, 3500, 1.005, 2*time.Millisecond)
			for _, n := range w.nodes {
				if n.core != nil && n.core.Ahead(n.clock()) > time.Second {
					t.Errorf("%s gave tokens %v ahead", n.name, n.core.Ahead(n.clock()))
				}
			}
		})
	}
}

// polluted returns a cluster whose first node forgot, voted while its clock was two hours
// ahead, and gave fences for the names with it.
func polluted(t *testing.T, nodes int, names ...string) *world {
	w := newWorld(t, nodes)
	for _, n := range w.nodes[1:] {
		n.start(&voter.Saved{})
	}
	first := w.nodes[0]
	first.wrong = 2 * time.Hour
	first.start(nil)
	w.run(maxTTL + 6*time.Second)
	w.mustVote()
	for i, name := range names {
		id := wire.ClaimID{Instance: uuid.UUID{7}, Seq: uint64(i + 1)}
		first.handle(wire.Request{
			Verb: wire.Acquire, Client: "other", Resource: name, Claim: id, SentAt: 1, Mode: quorum.Exclusive, TTL: ttl,
			At: first.clock().Wall, Digest: w.cluster.Digest(),
		}, "other")
		first.handle(wire.Request{Verb: wire.Release, Client: "other", Resource: name, Claim: id}, "other")
	}
	first.wrong = 0
	return w
}

// Fences that a node gave while its clock was ahead remain. Its vote is useless for those
// names until that time has come. The votes of the other nodes suffice, and nobody
// insists on fences that they cannot give (C3).
func TestGivenByAWrongClock(t *testing.T) {
	for _, nodes := range []int{3, 5} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			var names []string
			for i := range 400 {
				names = append(names, fmt.Sprint(i))
			}
			w := polluted(t, nodes, names...)
			if nodes == 5 {
				w.nodes[4].stop()
			}
			var s stats
			for c := range 10 {
				a := w.client(time.Duration(c-5) * time.Millisecond)
				for k := range 4 {
					a.work(func(i int) string { return names[40*c+10*k+i%10] }, 2*time.Millisecond, &s)
				}
			}
			w.run(250 * time.Millisecond)
			s.want(t, 3000, 2.01, 3*time.Millisecond)
		})
	}
}

// The same, where one client passes the lock on among its holds, which need tokens of a
// quorum's votes.
func TestPassedOnBesideAWrongClock(t *testing.T) {
	w := polluted(t, 3, "passed on")
	var s stats
	a := w.client(0)
	for range 4 {
		a.work(func(int) string { return "passed on" }, 10*time.Microsecond, &s)
	}
	w.run(250 * time.Millisecond)
	s.want(t, 3000, 1, 5*time.Millisecond)
}

// A node that forgot has a higher fence than the other votes of a kept claim. Where its
// vote is needed, the others set tokens aside from its fence on (C3).
func TestPassedOnAfterACrash(t *testing.T) {
	w := begun(t, 3)
	var s stats
	a := w.client(0)
	for range 4 {
		a.work(func(int) string { return "passed on" }, time.Microsecond, &s).hold = 2 * time.Millisecond
	}
	w.run(time.Second)
	w.nodes[0].stop()
	w.nodes[0].start(nil)
	w.run(maxTTL + 7*time.Second)
	w.mustVote()
	w.nodes[2].stop()
	before := len(s.waits)
	w.run(10 * time.Second)
	t.Log(&s)
	if got := len(s.waits) - before; got < 4500 || s.rounds > 8 {
		t.Errorf("%d locks in ten seconds, and %d rounds in all", got, s.rounds)
	}
}

// Where the other nodes are too few, a lock has to wait until that time has come. The
// waiting client learns which node cannot follow which, and asks no more often than
// usual.
func TestWaitingForAWrongClock(t *testing.T) {
	w := polluted(t, 3, "late")
	w.nodes[2].stop()
	var s stats
	a := w.client(0)
	use := a.table.Lock(a.clock(), hold.Request{Resource: "late", Mode: quorum.Exclusive, User: &worker{client: a, stats: &s}}, &a.out)
	a.flush()
	w.run(time.Minute)
	if len(s.waits) > 0 {
		t.Fatalf("held after %v", s.longest())
	}
	if n := a.asked[use.Claim().Seq()]; n > 40 {
		t.Errorf("it asked %d times in a minute", n)
	}
	r := a.table.Report(a.clock(), use)
	if first, second := r.Nodes[0], r.Nodes[1]; !first.Voted || !second.Voted || first.Short != 0 || second.Highest != "n1" || second.Short < time.Hour {
		t.Errorf("%+v", r.Nodes)
	}
}
