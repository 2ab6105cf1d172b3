package client

import (
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Report is how a claim stands with the nodes: what errors are written from.
type Report struct {
	Mode       quorum.Mode
	Need       int  // votes
	Repeated   bool // the nodes were asked again, and had the time to answer the first request
	Suppressed bool // the nodes were not asked yet to say that the claim waits
	Nodes      []NodeReport
	Blocker    *wire.Blocker // who is in the way at most nodes, as far as known
	BlockerFor time.Duration // since when, now
	Place      int           // claims before this one, in the longest queue of a node that knows who is in the way
	Queued     bool          // Place is known
}

// NodeReport is what one node had to say.
type NodeReport struct {
	Name        string
	Voted       bool // and the vote stands
	Queued      bool
	Refused     bool
	Recovering  time.Duration // it will not vote for so long
	Reason      wire.Reason   // refused
	Text        string
	Short       time.Duration // its vote's fence cannot yet follow that of Highest: so long, by its clock
	Highest     string
	OtherConfig bool // it showed another configuration
	Clash       bool // two nodes answer under its name
}

// Silent reports that nothing was heard from the node about the claim.
func (n NodeReport) Silent() bool { return !n.Voted && !n.Queued && !n.Refused }

// Votes is the number of votes of a claim that stand now.
func (c *Client) Votes(cl *Claim) int {
	n := 0
	for i := range cl.votes {
		if cl.votes[i].until > c.now {
			n++
		}
	}
	return n
}

// Report tells how the claim stands, or stood when it ended.
func (c *Client) Report(now wire.Now, cl *Claim) Report {
	c.read(now)
	r := Report{Mode: cl.mode, Need: c.need(cl), Repeated: cl.repeated, Suppressed: cl.suppressedQueued}
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
			Name: c.nodes[i].name, OtherConfig: c.nodes[i].otherDigest != "", Clash: c.nodes[i].clashUntil > c.now,
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
					same += len(cl.votes) // a holder rather than one who waits ahead
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
		// A node that gives no votes has the holder in its queue, and counts it as one that
		// waits: those that know better come first.
		if b := v.detail.blocker; r.Blocker == nil || b != nil && b.Voted == r.Blocker.Voted {
			r.Place, r.Queued = max(r.Place, v.detail.place), true
		}
	}
	return r
}

// HeldAt reports whether the claim is held at a reading of the clocks that the
// client has not taken yet: what a holder that looked at its clock would find.
func (c *Client) HeldAt(now wire.Now, cl *Claim) bool {
	clock := c.clock
	return cl.state == Holding && c.lostAt(cl) > clock.read(now)
}
