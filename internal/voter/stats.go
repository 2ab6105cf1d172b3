package voter

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Counts are of what happened since the node's start.
type Counts struct {
	Granted uint64 // votes given; to say it again is none
	Expired uint64 // claims, held or waiting, whose lease ran out
	Evicted uint64 // claims that somebody wanted to end
	Recalls uint64 // sent
	Refused Refusals
}

// Refusals are of claims, by proto.Reason.
type Refusals struct{ Config, Lease, Age, Fence, Claims, Queue, Copy uint64 }

func (r *Refusals) count(why wire.Reason) {
	switch why {
	case wire.ReasonConfig:
		r.Config++
	case wire.ReasonLease:
		r.Lease++
	case wire.ReasonAge:
		r.Age++
	case wire.ReasonFence:
		r.Fence++
	case wire.ReasonClaims:
		r.Claims++
	case wire.ReasonQueue:
		r.Queue++
	case wire.ReasonCopy:
		r.Copy++
	}
}

// Counts tells what the node counted.
func (n *Node) Counts() Counts { return n.counts }

// Ahead is how far the highest fence that the node gave, as far as it remembers, lies
// ahead of its clock. By more than MaxTTL it does so only if that clock was set back.
func (n *Node) Ahead(now wire.Now) time.Duration {
	return min(time.Duration(n.floors.ahead(now))*time.Microsecond, mostAhead)
}

// mostAhead is as much as a message says.
const mostAhead = 1 << 40 * time.Millisecond

// checkAhead notes it when the node's fences come to lie further ahead than other
// nodes may follow (N3).
func (n *Node) checkAhead(now wire.Now, out *Out) {
	ahead := n.Ahead(now)
	if far := ahead > n.cfg.MaxTTL; far != n.farAhead {
		n.farAhead = far
		if far {
			out.Notes = append(out.Notes, fmt.Sprintf(
				"this node gave tokens up to %v ahead of its clock, which was set back since: for that long it cannot agree on tokens for the same names with nodes that gave lower ones, so keep the other nodes running", ahead.Round(time.Second)))
		} else {
			out.Notes = append(out.Notes, "the tokens that this node gave are no longer too far ahead of its clock")
		}
	}
}

// Waiting is the number of claims without this node's vote.
func (n *Node) Waiting() int { return len(n.leases) - n.votes }

// Clients is the number of client names with claims.
func (n *Node) Clients() int { return len(n.perClient) }

// Recovering is how long the node will give no votes yet, as far as it knows; zero
// when it votes or stopped.
func (n *Node) Recovering(now wire.Now) time.Duration {
	if n.stopped {
		return 0
	}
	return n.recovering(now)
}
