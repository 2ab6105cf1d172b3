package driver

import (
	"time"

	"github.com/qlock/qlock/internal/client"
)

// Stats holds the current state and the counters of a client, at one moment.
type Stats struct {
	Counts
	Claims  int // claims at the nodes
	Machine client.Counts
	Trips   []client.NodeTrip
	At      time.Time // the moment of all these numbers
}

// WaitBounds are the upper bounds of the buckets of Counts.Waits.
var WaitBounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// Failures counts requests that failed, by reason.
type Failures struct{ Held, NoQuorum, Refused, Evicted, Closed uint64 }

// Counts holds the counters that the driver keeps. It has no mutex of its own: the machine's mutex
// guards it, so that its numbers add up.
type Counts struct {
	Held, Waiting                     int
	Granted, PassedOn, Lost, Unlocked uint64
	Failed                            Failures
	Waited                            time.Duration
	Waits                             [len(WaitBounds) + 1]uint64 // not cumulative
}

// setState changes the state of a hold. Nothing else may change it, because the counters depend on
// the state before.
func (c *Counts) setState(h *Hold, to holdState) {
	from := h.state
	h.state = to
	switch from {
	case waiting:
		c.Waiting--
	case held:
		c.Held--
	default:
		return // it was given up, and lost in the same step
	}
	switch {
	case to == held:
		c.Held++
		c.Granted++
	case to == lost, to == left:
		c.Lost++
	case from == held: // unlocked, or released because its caller had gone
		c.Unlocked++
	}
}

// hold records that h is held from h.since on. first reports whether h is the first holder of its
// claim.
func (c *Counts) hold(h *Hold, first bool) {
	c.setState(h, held)
	if !first {
		c.PassedOn++
	}
	d, i := h.since.Sub(h.asked), 0
	for i < len(WaitBounds) && d > WaitBounds[i] { // linear, because most waits are short
		i++
	}
	c.Waited += d
	c.Waits[i]++
}

// fail records that h will not be held, and why.
func (c *Counts) fail(h *Hold, f *Failure) {
	if h.state == waiting {
		switch f.Reason {
		case ErrHeld:
			c.Failed.Held++
		case ErrNoQuorum:
			c.Failed.NoQuorum++
		case ErrRefused:
			c.Failed.Refused++
		case ErrEvicted:
			c.Failed.Evicted++
		case ErrClosed:
			c.Failed.Closed++
		}
	}
	c.setState(h, failed)
}
