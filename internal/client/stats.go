package client

import (
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Counts are totals since the client's start.
type Counts struct {
	Recalls uint64 // recalls heard, of claims that were not over
	Yields  uint64 // votes given back to older claims
	Copies  uint64 // how often another process was found to use this instance
}

// Counts returns the totals since the client's start.
func (c *Client) Counts() Counts { return c.counts }

// NodeTrip is how one node answers.
type NodeTrip struct {
	Name      string
	Heard     bool          // it has answered
	Since     time.Duration // time since its last answer that counted
	Measured  bool          // RoundTrip is known
	RoundTrip time.Duration // smoothed
}

// Trips returns how each node answers, sorted by name.
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

// trip measures the time from sending a message to a node to its answer.
type trip struct {
	heard time.Duration // its last answer; zero: none
	beat  uint64        // highest that was measured
	at    time.Duration // when that answer came
	mean  float64       // ns; before the first measurement, of Config.Trips
}

// tripMemory is the time constant of the mean.
const tripMemory = 5 * time.Second

// hear measures an answer. Its beat is the time of sending, so the client need not
// remember what it sent. But answers repeat beats. A vote that follows a wait in the
// queue repeats the beat of an old acquire, and says so if it is the first answer to it.
// A recall repeats the last beat that the node saw. So an answer counts only if its beat
// is above all that the node answered before. Then late answers to old beats do not count
// even if the first answer was lost, as long as the node has answered anything since.
//
// The mean is weighted by the time since the last measurement, not by the number of
// measurements. Otherwise it would cover a millisecond for a client that locks all the
// time, and minutes for one that only refreshes.
func (t *trip) hear(now time.Duration, a *wire.Answer) {
	t.heard = now
	if a.Kind == wire.Recall || a.Late || a.SentAt <= t.beat {
		return
	}
	// Beats may be slightly ahead of the clock.
	took := float64(max(now-time.Duration(a.SentAt)*time.Microsecond, 0))
	if t.beat == 0 {
		t.mean = took
	} else {
		since := float64(now - t.at)
		t.mean += (took - t.mean) * since / (since + float64(tripMemory))
	}
	t.beat, t.at = a.SentAt, now
}
