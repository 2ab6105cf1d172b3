package client

import (
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Report is the state of a claim at the nodes, from which errors are written.
type Report struct {
	Mode quorum.Mode
	Need int // votes needed, at least
	// Needs and Lists are the votes needed and the number of nodes of each list (E15).
	Needs      quorum.Joint
	Lists      quorum.Count
	Repeated   bool // the nodes were asked again, and had time to answer the first request
	Suppressed bool // the nodes were not asked yet to say that the claim waits
	Nodes      []NodeReport
	Blocker    *wire.Blocker // the claim in the way at most nodes, as far as known
	BlockerFor time.Duration // for how long it has had its vote or place, as of now
	// Place is how many claims are before this one, in the longest queue of a node that knows
	// what is in the way.
	Place  int
	Queued bool // Place is known
}

// NodeReport is what one node said about a claim.
type NodeReport struct {
	Name       string
	In         quorum.In
	Voted      bool // it voted, and the vote stands
	Queued     bool
	Refused    bool
	Recovering time.Duration // for how long it will not vote
	Reason     wire.Reason   // why it refused
	Text       string
	// Short is how long it takes, by the node's clock, until its vote's fence can follow that
	// of the node named Highest.
	Short       time.Duration
	Highest     string
	OtherConfig bool // it showed another configuration
	Clash       bool // two nodes answer under its name
}

// Silent reports whether the node has said nothing about the claim.
func (n NodeReport) Silent() bool { return !n.Voted && !n.Queued && !n.Refused }

// Votes returns how many votes of a claim stand now.
func (c *Client) Votes(cl *Claim) int {
	n := 0
	for i := range cl.votes {
		if cl.votes[i].until > c.now {
			n++
		}
	}
	return n
}

// Report returns the state of the claim at the nodes, as it is or as it was when it
// ended.
func (c *Client) Report(now wire.Now, cl *Claim) Report {
	c.read(now)
	need := c.need(cl)
	r := Report{Mode: cl.mode, Need: c.least(need), Needs: need, Lists: c.lists, Repeated: cl.repeated, Suppressed: cl.suppressedQueued}
	if len(cl.votes) != len(c.nodes) {
		return r // it ended under another configuration
	}
	best := 0
	outcome, highest := c.tally(cl)
	first := ""
	for i := range cl.votes {
		if v := &cl.votes[i]; first == "" && v.until > c.now && v.fence == highest {
			first = c.nodes[i].name
		}
	}
	for i := range cl.votes {
		v := &cl.votes[i]
		n := NodeReport{
			Name: c.nodes[i].name, In: c.nodes[i].in, OtherConfig: c.nodes[i].otherDigest != "", Clash: c.nodes[i].clashUntil > c.now,
			Voted: v.until > c.now, Queued: v.heard == queued, Refused: v.heard == refused,
		}
		if outcome == quorum.Split && n.Voted {
			if n.Short = v.reaches(highest, c.now); n.Short > 0 {
				n.Highest = first
			}
		}
		if d := v.detail; d != nil {
			n.Reason, n.Text = d.reason, d.text
			n.Recovering = max(d.recovering-(c.now-d.at), 0)
			if b := d.blocker; b != nil {
				same := 0
				for j := range cl.votes {
					if o := cl.votes[j].blocker(); o != nil && o.Claim == b.Claim {
						same++
					}
				}
				if b.Voted {
					same += len(cl.votes) // prefer a holder to a claim that waits ahead
				}
				if same > best {
					best, r.Blocker, r.BlockerFor = same, b, b.For+c.now-d.at
				}
			}
		}
		r.Nodes = append(r.Nodes, n)
	}
	for i := range cl.votes {
		v := &cl.votes[i]
		if v.heard != queued || v.detail == nil {
			continue
		}
		// A node that does not vote has the holder in its queue, and counts it as a waiting
		// claim. Nodes that know better take precedence.
		if b := v.detail.blocker; r.Blocker == nil || b != nil && b.Voted == r.Blocker.Voted {
			r.Place, r.Queued = max(r.Place, v.detail.place), true
		}
	}
	return r
}

// least is how many votes are enough if they come from the right nodes: those that are in
// both lists count twice.
func (c *Client) least(need quorum.Joint) int {
	both := 0
	for i := range c.nodes {
		if c.nodes[i].in == quorum.InNodes|quorum.InNext {
			both++
		}
	}
	return need[0] + need[1] - min(both, need[0], need[1])
}

// HeldAt reports whether the claim is held at a reading of the clocks that the client has
// not processed: what a holder finds that looks at its clock now.
func (c *Client) HeldAt(now wire.Now, cl *Claim) bool {
	clock := c.clock
	return cl.state == Holding && c.lostAt(cl) > clock.read(now)
}
