package client

import (
	"slices"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A process or virtual machine may be copied while it runs, for example by restoring a
// snapshot. The copies share one instance, one inbox and the same claims, and what one
// releases, all lose. Two things show it: an answer to a message that this client did not
// send, and a lease clock that leaps when a snapshot comes to life (C15).

// noteCopy notes that another process uses this instance, because a node answered a
// message that this client did not send. Nodes only repeat beats, and the beat is above
// all that this client sent. So the answer is neither late nor from an earlier
// connection.
func (c *Client) noteCopy(out *Out) {
	if out.Renew {
		return
	}
	out.Renew, c.parting = true, true
	c.counts.Copies++
	out.Notes = append(out.Notes,
		"another process uses the same client instance: one is a copy of the other (perhaps a restored snapshot); locks held here are lost, and waiting claims are requested again")
}

// Renew gives the client a new instance, which must be unique. Held claims are lost.
// Waiting claims are requested again, with their age. Renew releases nothing under the
// old instance, and removes the messages of this step from out, because the claims may
// belong to another process that lives. If they belong to nobody, their leases expire.
func (c *Client) Renew(now wire.Now, instance uuid.UUID, out *Out) {
	c.step(now, out)
	old := c.cfg.Instance
	c.cfg.Instance = instance
	c.refreshAt, c.sweepAt = 0, 0
	c.sentAt = 0 // beats belong to an instance, and the messages of this step are not sent
	for cl := c.first; cl != nil; {
		next := cl.next
		switch cl.state {
		case Holding:
			c.forget(cl)
			out.Events = append(out.Events, Event{Lost, cl})
		case Unreleased:
			c.forget(cl)
		}
		cl = next
	}
	for cl := c.first; cl != nil; cl = cl.next {
		clear(cl.votes)
		cl.sentAt, cl.keptAt = 0, 0
		cl.minFence, cl.askDelay, cl.suppressQueued, cl.wanted = 0, c.firstDelay(cl), cl.suppressedQueued, false
		c.ask(cl, "", out)
		c.refreshAt = c.now + c.cfg.TTL/3
	}
	out.Requests = slices.DeleteFunc(out.Requests, func(r wire.Request) bool {
		// An eviction remains. It is about another's claim, or one of this client's own.
		return r.Claim.Instance == old && r.Verb != wire.Evict
	})
	if c.parting { //plant:parting
		// The last message under the old instance. It drops nothing. Its answers repeat a beat
		// that no copy sent, which shows all of them that there are copies. A copy that kept a
		// claim unaware would give out tokens that another has given out.
		c.parting = false
		out.Requests = append(out.Requests, wire.Request{
			Verb: wire.Refresh, Client: c.cfg.Name, Claim: wire.ClaimID{Instance: old}, SentAt: wire.MaxInt, Lo: 1,
		})
	}
	out.Renew = false
}
