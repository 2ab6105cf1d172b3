package voter

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Counts are totals since the node's start.
type Counts struct {
	Granted uint64 // votes given; a repeated grant does not count
	Expired uint64 // claims, held or waiting, whose lease expired
	Evicted uint64 // claims that were evicted
	Recalls uint64 // recalls sent
	Refused Refusals
}

// Refusals are totals of refused claims by wire.Reason.
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

// Counts returns the totals since the node's start.
func (n *Node) Counts() Counts { return n.counts }

// Ahead returns how far the highest fence that the node remembers lies ahead of its wall
// clock, at least 0. It exceeds MaxTTL only if that clock was set back.
func (n *Node) Ahead(now wire.Now) time.Duration {
	return min(time.Duration(n.floors.ahead(now))*time.Microsecond, mostAhead)
}

// mostAhead is the largest value that a message can carry.
const mostAhead = 1 << 40 * time.Millisecond

// checkAhead tells the operator when the node's fences come to lie further ahead than
// other nodes may follow (N3), and when they no longer do.
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

// Waiting returns the number of claims without this node's vote.
func (n *Node) Waiting() int { return len(n.leases) - n.votes }

// Clients returns the number of client names with claims.
func (n *Node) Clients() int { return len(n.perClient) }

// Recovering returns how long the node will give no votes yet, as far as it knows. It is
// zero when the node votes or has stopped.
func (n *Node) Recovering(now wire.Now) time.Duration {
	if n.stopped {
		return 0
	}
	return n.recovering(now)
}
