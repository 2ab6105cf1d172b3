package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A connection breaks, the claim asks again into its buffer, and the connection is
// restored to another cluster of the same names. The answer from there arrives before the
// driver notices the reconnect. A vote of one cluster and a vote of the other must not
// make a lock (C13).
func TestVotesOfTwoClustersBeforeReconnected(t *testing.T) {
	c, cl, now, asked := waitingClient()
	var out Out
	c.Handle(now, answerOf("n1", oneConfig, wire.Granted, asked), &out)
	c.Disconnected(now, &out)
	now.Mono, now.Wall = now.Mono+time.Second, now.Wall+1_000_000
	c.Tick(now, &out) // asks again: into the buffer of the connection
	if cl.sentAt == asked {
		t.Fatal("the claim has not asked again")
	}
	other := answerOf("n2", oneConfig, wire.Granted, cl.sentAt)
	other.Incarnation = uuid.UUID{99} // in the other cluster
	c.Handle(now, other, &out)
	if cl.State() == Holding {
		t.Error("held by a vote of each of two clusters")
	}
	c.Reconnected(now, &out)
	if cl.State() == Holding {
		t.Error("held by a vote of each of two clusters")
	}
}

// A new vote for a held claim counts when a node that knew the claim confirms it, but not
// across a reconnect: the node that confirms may be in the first cluster again, and the
// vote from the second (C13).
func TestNewVoteEndsWithItsConnection(t *testing.T) {
	for _, again := range []bool{false, true} {
		c, cl, now, asked := waitingClient()
		var out Out
		for _, node := range oneConfig.Nodes[:2] {
			c.Handle(now, answerOf(node, oneConfig, wire.Granted, asked), &out)
		}
		if cl.State() != Holding {
			t.Fatal("not held")
		}
		later := func(d time.Duration) { now.Mono, now.Wall = now.Mono+d, now.Wall+d.Microseconds() }
		later(time.Second)
		c.ask(cl, "", &out)
		other := answerOf("n3", oneConfig, wire.Granted, cl.sentAt)
		other.Incarnation = uuid.UUID{99}
		c.Handle(now, other, &out)
		if n := c.Votes(cl); n != 2 {
			t.Fatalf("%d votes count, want the first two", n)
		}
		later(time.Second)
		if again {
			c.Disconnected(now, &out)
			c.Reconnected(now, &out)
		}
		c.ask(cl, "", &out)
		c.Handle(now, answerOf("n1", oneConfig, wire.Granted, cl.sentAt), &out)
		want := 3
		if again {
			want = 2
		}
		if n := c.Votes(cl); n != want {
			t.Errorf("reconnected %v: %d votes count, want %d", again, n, want)
		}
	}
}
