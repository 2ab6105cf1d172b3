package client

import (
	"testing"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// after returns the clocks d later.
func after(now wire.Now, d time.Duration) wire.Now {
	return wire.Now{Mono: now.Mono + d, Wall: now.Wall + d.Microseconds()}
}

func tripOf(t *testing.T, c *Client, now wire.Now, node string) NodeTrip {
	t.Helper()
	for _, n := range c.Trips(now) {
		if n.Name == node {
			return n
		}
	}
	t.Fatalf("no %s", node)
	return NodeTrip{}
}

// Answers repeat beats, and only the first one at a beat shows how long a node takes.
func TestRoundTrips(t *testing.T) {
	c, _, now, asked := waitingClient()
	var out Out
	if got := tripOf(t, c, now, "n1"); got != (NodeTrip{Name: "n1"}) {
		t.Errorf("before any answer: %+v", got)
	}
	check := func(what string, now wire.Now, node string, trip, since time.Duration) {
		t.Helper()
		got := tripOf(t, c, now, node)
		// Beats may be slightly ahead of the clock.
		got.RoundTrip = got.RoundTrip.Round(10 * time.Microsecond)
		if got != (NodeTrip{Name: node, Heard: true, Since: since, Measured: true, RoundTrip: trip}) {
			t.Errorf("%s: %+v, want a round trip of %v, %v ago", what, got, trip, since)
		}
	}
	now = after(now, 10*time.Millisecond)
	c.Handle(now, answerOf("n1", oneConfig, wire.Queued, asked), &out)
	check("the answer to an acquire", now, "n1", 10*time.Millisecond, 0)
	c.Handle(now, answerOf("n2", oneConfig, wire.Refused, asked), &out)
	check("a refusal", now, "n2", 10*time.Millisecond, 0)

	now = after(now, 3*time.Second)
	c.Handle(now, answerOf("n1", oneConfig, wire.Granted, asked), &out)
	check("a vote after a wait", after(now, time.Second), "n1", 10*time.Millisecond, time.Second)

	tardy := answerOf("n3", oneConfig, wire.Granted, asked)
	// For a claim that does not exist: votes are for other tests.
	tardy.Late, tardy.Claim.Seq = true, 1000
	c.Handle(now, tardy, &out)
	if got := tripOf(t, c, now, "n3"); !got.Heard || got.Measured {
		t.Errorf("a first answer that is late: %+v, want that it was heard and tells no round trip", got)
	}
	c.Handle(now, answerOf("n3", oneConfig, wire.Recall, asked), &out)
	if got := tripOf(t, c, now, "n3"); !got.Heard || got.Measured {
		t.Errorf("a recall: %+v, want that it was heard and tells no round trip", got)
	}
	if got := c.Counts(); got != (Counts{Recalls: 1, Yields: 1}) {
		t.Errorf("counts %+v", got)
	}

	// A claim is over before the slowest node has answered. Its answer still counts here.
	out.Reset()
	other := c.Claim(now, Request{Resource: "s", Mode: quorum.Exclusive}, &out)
	sentAt := other.sentAt
	c.Release(now, other, &out)
	late := answerOf("n3", oneConfig, wire.Granted, sentAt)
	late.Claim.Seq = other.seq
	now = after(now, 40*time.Millisecond)
	c.Handle(now, late, &out)
	check("after the end", now, "n3", 40*time.Millisecond, 0)
	c.Handle(after(now, time.Second), late, &out)
	check("repeated", after(now, time.Second), "n3", 40*time.Millisecond, 0)

	// n1's answer was lost. Its answer to the next message counts, and late ones to the old
	// beat do not.
	out.Reset()
	now = after(now, time.Second)
	c.Reconnected(now, &out)
	refresh := out.Requests[len(out.Requests)-1]
	refreshed := answerOf("n1", oneConfig, wire.Refreshed, refresh.SentAt)
	refreshed.Lo, refreshed.Hi = refresh.Lo, refresh.Hi
	now = after(now, 10*time.Millisecond)
	c.Handle(now, refreshed, &out)
	late.Node, late.Incarnation = "n1", refreshed.Incarnation
	c.Handle(now, late, &out)
	check("an old beat", now, "n1", 10*time.Millisecond, 0)

	// Another configuration is another cluster.
	c.SetCluster(now, anotherConfig, &out)
	if got := tripOf(t, c, now, "n1"); got != (NodeTrip{Name: "n1"}) {
		t.Errorf("after a change of configuration: %+v", got)
	}
}

// The mean is over time. It follows within seconds, whether there are ten thousand
// answers a second or one in three seconds, and one slow answer does not dominate it.
func TestRoundTripsAreSmoothed(t *testing.T) {
	const fast, slow = 100 * time.Microsecond, time.Second
	for _, every := range []time.Duration{100 * time.Microsecond, 10 * time.Millisecond, 3 * time.Second} {
		now := time.Second
		var n trip
		answer := func(took time.Duration) {
			now += every
			n.hear(now, &wire.Answer{Kind: wire.Granted, SentAt: uint64((now - took) / time.Microsecond)})
		}
		settles := func(took time.Duration) {
			t.Helper()
			for end := now + 10*tripMemory; now < end; {
				answer(took)
			}
			if got := time.Duration(n.mean); got < took*9/10 || got > took*11/10 {
				t.Errorf("an answer each %v: %v after ten times the memory, want %v", every, got, took)
			}
		}
		answer(time.Millisecond)
		settles(fast)
		// What is sent from now on takes as long, and overtakes nothing.
		now += slow
		answer(slow)
		if got := time.Duration(n.mean); got < slow/10 || got > slow/2 {
			t.Errorf("an answer each %v: %v after one that took %v", every, got, slow)
		}
		settles(slow)
	}
}
