package client

import (
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Watch makes Changed events follow when what the nodes say of a waiting claim may have
// changed. If the nodes were not yet asked to say that it waits, they are asked at once.
// Nodes tell a claim's place only in answer to an acquire (N2). So a watched claim goes
// on asking when it has its place (C4), and what is known of it is at most a third of a
// lease old.
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

// LeaveRelease leaves it to the owner to release the claim however it ends while it is
// held (C12). If it is evicted, the nodes no longer extend its lease, and it is lost when
// its votes have run out. When it is lost, the client counts it as over and lists it in
// its refreshes until the owner releases it, for a lease at most. After Client.Renew there
// is nothing to release: the nodes keep the claim for as long as its votes last.
func (cl *Claim) LeaveRelease() { cl.manual = true }

// Stands returns for how long after now, a reading of the clocks that the client need not
// have processed, the claim stays held without another message (C7); 0 if it is not held.
func (c *Client) Stands(now wire.Now, cl *Claim) time.Duration {
	clock := c.clock
	if cl.state != Holding {
		return 0
	}
	return max(c.lostAt(cl)-clock.read(now), 0)
}

// Refreshed reports whether a quorum of nodes has answered the last refresh, or the
// acquire that came after it. Later answers to that refresh will not extend the claim by
// much.
func (c *Client) Refreshed(cl *Claim) bool {
	if cl.state != Holding {
		return true
	}
	sent := uint64(c.refreshedAt / time.Microsecond)
	return c.refreshedAt == 0 || c.lostAt(cl) >= c.standsFrom(sent)
}

// Refresh sends the next refresh now. It does nothing if there are no claims.
func (c *Client) Refresh(now wire.Now, out *Out) {
	c.step(now, out)
	if c.first != nil {
		c.refresh(out)
	}
}
