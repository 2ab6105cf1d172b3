package node

import (
	"time"

	"github.com/qlock/qlock/internal/proto"
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
type Refusals struct{ Config, Lease, Age, Fence, Claims, Queue uint64 }

func (r *Refusals) count(why proto.Reason) {
	switch why {
	case proto.ReasonConfig:
		r.Config++
	case proto.ReasonLease:
		r.Lease++
	case proto.ReasonAge:
		r.Age++
	case proto.ReasonFence:
		r.Fence++
	case proto.ReasonClaims:
		r.Claims++
	case proto.ReasonQueue:
		r.Queue++
	}
}

// Counts tells what the node counted.
func (n *Node) Counts() Counts { return n.counts }

// Waiting is the number of claims without this node's vote.
func (n *Node) Waiting() int { return len(n.leases) - n.votes }

// Clients is the number of client names with claims.
func (n *Node) Clients() int { return len(n.perClient) }

// Recovering is how long the node will give no votes yet, as far as it knows; zero
// when it votes or stopped.
func (n *Node) Recovering(now proto.Now) time.Duration {
	if n.stopped {
		return 0
	}
	return n.recovering(now)
}
