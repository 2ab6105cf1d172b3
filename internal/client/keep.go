package client

import (
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A claim can be kept while one holder of its client follows another, each with a token
// of its own (package internal/hold decides who). The nodes know that it is kept. They
// set tokens aside for it, and report when others wait (N3, N4).

// A range starts small, and doubles as tokens are used up. Each token that is set aside
// and not used lets the tokens run ahead of the clock by a microsecond.
const (
	firstRange   = 64
	largestRange = 4096
)

// Keep tells the nodes that the claim is kept, and has tokens set aside. A TokensReserved
// event follows when they are. It does nothing if the claim is kept already or over.
func (c *Client) Keep(now wire.Now, cl *Claim, out *Out) {
	c.step(now, out)
	if cl.keep || cl.state > Holding {
		return
	}
	cl.keep, cl.rangeSize = true, firstRange
	if cl.state == Holding && cl.mode == quorum.Exclusive {
		cl.requestedFrom = cl.tokenEnd
	}
	c.ask(cl, "", out)
	cl.keptAt = cl.sentAt
}

// Kept reports whether a quorum of nodes knows that the claim is kept, so that the client
// learns when others wait for it.
func (cl *Claim) Kept() bool { return cl.known }

// Wanted reports whether others wait for a kept claim.
func (cl *Claim) Wanted() bool { return cl.wanted }

// Next gives out a token of a kept exclusive claim that is held, greater than all before
// it. It returns false if there is none; a TokensReserved event follows when there are
// more.
func (c *Client) Next(now wire.Now, cl *Claim, out *Out) (uint64, bool) {
	c.step(now, out)
	if cl.state != Holding || !cl.keep || cl.mode != quorum.Exclusive {
		return 0, false
	}
	token, ok := cl.tokenNext, cl.tokenNext < cl.tokenEnd
	if ok {
		cl.given = token
		cl.tokenNext++ //plant:next-token
	}
	if cl.requestedFrom == 0 && cl.tokenEnd-cl.tokenNext < cl.rangeSize/2 { //plant:span-next
		if ok && cl.tokenEnd > cl.token+1 { // a whole range was used up
			cl.rangeSize = min(2*cl.rangeSize, largestRange)
		}
		cl.requestedFrom = cl.tokenEnd
		c.ask(cl, "", out)
	}
	return token, ok
}

// stocked takes the tokens that a quorum has set aside. Usually they follow the ones
// before.
func (c *Client) stocked(cl *Claim, out *Out) {
	need := c.need(cl)
	known := cl.keep && !cl.known && need.Met(c.keepers(cl))
	more := cl.requestedFrom > 0 && need.Met(c.carried(cl, cl.requestedFrom))
	if !known && !more {
		// A restarted node has another fence. All nodes must set tokens aside from the highest
		// on, as they must agree on the highest fence (C3).
		if cl.requestedFrom > 0 { //plant:span-highest
			highest, _ := c.attainable(cl, c.highest(cl))
			if cl.wants(&cl.requestedFrom, max(highest, cl.tokenEnd)) {
				c.ask(cl, "", out)
			}
		}
		return
	}
	cl.known = cl.known || known
	if more {
		if cl.requestedFrom > cl.tokenEnd {
			cl.tokenNext = cl.requestedFrom // the tokens between were never set aside
		}
		cl.tokenEnd = cl.requestedFrom + c.reserved(cl, cl.requestedFrom)
		cl.requestedFrom = 0
	}
	out.Events = append(out.Events, Event{TokensReserved, cl})
}

// highest returns the highest fence of a standing vote.
func (c *Client) highest(cl *Claim) uint64 {
	most := uint64(0)
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now {
			most = max(most, v.fence)
		}
	}
	return most
}

// carried returns how many standing votes carry a fence.
func (c *Client) carried(cl *Claim, fence uint64) (n quorum.Count) {
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now && v.fence == fence {
			n.Add(c.nodes[i].in)
		}
	}
	return n
}

// reserved returns how many tokens, from fence on, all standing votes with that fence set
// aside.
func (c *Client) reserved(cl *Claim, fence uint64) uint64 {
	least := uint64(0)
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now && v.fence == fence && (least == 0 || v.rangeSize < least) {
			least = v.rangeSize
		}
	}
	return max(least, 1)
}

// keepers returns how many nodes know that the claim is kept.
func (c *Client) keepers(cl *Claim) (n quorum.Count) {
	for i := range cl.votes {
		if cl.votes[i].keeps {
			n.Add(c.nodes[i].in)
		}
	}
	return n
}

// behind notes that others wait.
func (c *Client) behind(cl *Claim, out *Out) {
	if cl.wanted { //plant:heed
		return
	}
	cl.wanted = true
	if cl.state == Holding {
		out.Events = append(out.Events, Event{Wanted, cl})
	}
}
