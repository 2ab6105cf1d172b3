package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
)

// A connection breaks, the claim asks again into its buffer, and the connection is led to
// another cluster of the same names. The answer from there is read before the driver's
// loop says that the connection is another: a vote of the one and a vote of the other make
// a lock that nobody takes back (C13).
func TestVotesOfTwoClustersBeforeReconnected(t *testing.T) {
	c, cl, now, asked := waitingClient()
	var out Out
	c.Handle(now, answerOf("n1", oneConfig, proto.Granted, asked), &out)
	c.Disconnected(now, &out)
	now.Mono, now.Wall = now.Mono+time.Second, now.Wall+1_000_000
	c.Tick(now, &out) // asks again: in the buffer of the connection
	if cl.beat == asked {
		t.Fatal("the claim has not asked again")
	}
	other := answerOf("n2", oneConfig, proto.Granted, cl.beat)
	other.Incarnation = uuid.UUID{99} // of the other cluster
	c.Handle(now, other, &out)
	if cl.State() == Holding {
		t.Error("held by a vote of each of two clusters")
	}
	c.Reconnected(now, &out)
	if cl.State() == Holding {
		t.Error("held by a vote of each of two clusters")
	}
}
