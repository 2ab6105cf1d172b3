package client

import (
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Counts are of what happened since the client's start.
type Counts struct {
	Recalls uint64 // heard, of claims that were not over
	Yields  uint64 // sent: votes given back to older claims
	Copies  uint64 // how often another was found to be the same instance
}

// Counts tells what the client counted.
func (c *Client) Counts() Counts { return c.counts }

// NodeTrip is how one node answers.
type NodeTrip struct {
	Name      string
	Heard     bool          // ever
	Since     time.Duration // its last answer that counted
	Measured  bool          // a round trip
	RoundTrip time.Duration // smoothed
}

// Trips tells how the nodes answer, in order of their names.
func (c *Client) Trips(now wire.Now) []NodeTrip {
	clock := c.clock
	t := clock.read(now)
	out := make([]NodeTrip, len(c.nodes))
	for i := range c.nodes {
		n := &c.nodes[i]
		out[i] = NodeTrip{Name: n.name}
		if n.trip.heard > 0 {
			out[i].Heard, out[i].Since = true, t-n.trip.heard
		}
		if n.trip.beat > 0 {
			out[i].Measured, out[i].RoundTrip = true, time.Duration(n.trip.mean)
		}
	}
	return out
}

// trip is how long a node takes from a message's sending to its answer.
type trip struct {
	heard time.Duration // its last answer, never when zero
	beat  uint64        // highest of an answer that was measured
	at    time.Duration // when that came
	mean  float64       // ns; before anything was measured that of what is not known here
}

// tripMemory is how much time the mean is of.
const tripMemory = 5 * time.Second

// hear measures an answer. Its beat is the moment of sending, so the time that it
// took is known without a memory of what was sent. But answers repeat beats: a vote
// that comes after a wait in the queue has that of the acquire, long ago, and says so if
// it is the first answer to it; a recall has the last that the node saw. So only the
// first answer counts at a beat above all that this node has answered. What comes later
// at an old beat is above none, also if the answer before it was lost, as long as the
// node has answered anything since.
//
// The mean is weighted by the time since the measurement before, and not by their
// number: else it would be of the last millisecond for a client that locks all the
// time, and of the last minutes for one that only refreshes.
func (t *trip) hear(now time.Duration, a *wire.Answer) {
	t.heard = now
	if a.Kind == wire.Recall || a.Late || a.SentAt <= t.beat {
		return
	}
	took := float64(max(now-time.Duration(a.SentAt)*time.Microsecond, 0)) // beats may be ahead of the clock by a little
	if t.beat == 0 {
		t.mean = took
	} else {
		since := float64(now - t.at)
		t.mean += (took - t.mean) * since / (since + float64(tripMemory))
	}
	t.beat, t.at = a.SentAt, now
}
