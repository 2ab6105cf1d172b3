package client

import (
	"slices"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A process or a virtual machine can be copied while it runs: a snapshot is started
// again, once or many times, with or without the one that it was taken of. The copies
// have one instance, one inbox, and the same claims; what one of them gives back, all
// lose. Two things show it: an answer to a message that this client did not send, and a
// clock that leapt, which is how a snapshot comes to life (C15).

// noteCopy notes that a node answered a message that this instance sent and this client
// did not. Nodes repeat beats and make none, and a beat is above all that were sent
// before: so it is neither late nor of an earlier connection.
func (c *Client) noteCopy(out *Out) {
	if out.Renew {
		return
	}
	out.Renew, c.parting = true, true
	c.counts.Copies++
	out.Notes = append(out.Notes,
		"another process uses the same client instance: one is a copy of the other (perhaps a restored snapshot); locks held here are lost, and waiting claims are requested again")
}

// Renew gives the client another instance, which nobody else has or had. What it holds
// is lost. What waits asks anew, with its age. Under the instance before it gives nothing
// back, and what this step was about to say is not said: the claims may be those of
// another, who lives. If they are nobody's, their leases end.
func (c *Client) Renew(now wire.Now, instance uuid.UUID, out *Out) {
	c.step(now, out)
	old := c.cfg.Instance
	c.cfg.Instance = instance
	c.refreshAt, c.sweepAt = 0, 0
	c.sentAt = 0 // beats are of an instance; what this step had sent was not
	for cl := c.first; cl != nil; {
		next := cl.next
		if cl.state == Holding {
			c.forget(cl)
			out.Events = append(out.Events, Event{Lost, cl})
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
		return r.Claim.Instance == old && r.Verb != wire.Evict // that is to end another's claim, or one of its own
	})
	if c.parting { //plant:parting
		// The last word under the old instance. It drops nothing, and its answers repeat a
		// beat that nobody sent, for all copies to see: one that went on with a claim that is
		// kept would give out tokens that another has given out.
		c.parting = false
		out.Requests = append(out.Requests, wire.Request{
			Verb: wire.Refresh, Client: c.cfg.Name, Claim: wire.ClaimID{Instance: old}, SentAt: wire.MaxInt, Lo: 1,
		})
	}
	out.Renew = false
}
