package client

import (
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Watch has the owner of a claim that waits told when what the nodes say of it may have
// changed. The nodes are asked at once if they were not asked yet to say that it waits. They
// tell its place only in answer to an acquire (N2), so a claim that is watched goes on asking
// when it has its place (C4), and what is known of it is a third of a lease old at most.
func (c *Client) Watch(now wire.Now, cl *Claim, out *Out) {
	c.step(now, out)
	if cl.state != Waiting || cl.watched {
		return
	}
	cl.watched = true
	if cl.suppressQueued || cl.suppressedQueued {
		cl.suppressQueued = false
		c.ask(cl, "", out)
	}
}

// changed tells the owner of a watched claim that something may have changed.
func (cl *Claim) changed(out *Out) {
	if cl.watched && cl.state == Waiting {
		out.Events = append(out.Events, Event{Changed, cl})
	}
}

// LeaveEviction lets the owner decide when the claim is given back if it is evicted while it
// is held, as N10 allows: its lease at the nodes runs to its end, and nothing extends it
// there. The owner must end what it does, and has until the claim is lost to do so.
func (cl *Claim) LeaveEviction() { cl.manual = true }

// Stands is how long from a reading of the clocks that the client has not taken yet the claim
// stays held without another message (C7); 0 if it is not held.
func (c *Client) Stands(now wire.Now, cl *Claim) time.Duration {
	clock := c.clock
	if cl.state != Holding {
		return 0
	}
	return max(c.lostAt(cl)-clock.read(now), 0)
}

// Refreshed reports that a quorum of nodes has answered the last refresh, or the acquire that
// came after it, so that no answer still to come from that one will extend the claim by much.
func (c *Client) Refreshed(cl *Claim) bool {
	if cl.state != Holding {
		return true
	}
	sent := uint64(c.refreshedAt / time.Microsecond)
	return c.refreshedAt == 0 || c.lostAt(cl) >= c.standsFrom(sent)
}

// Refresh sends the next refresh now.
func (c *Client) Refresh(now wire.Now, out *Out) {
	c.step(now, out)
	if c.first != nil {
		c.refresh(out)
	}
}
