package voter

import (
	"slices"

	"github.com/qlock/qlock/internal/wire"
)

// refresh extends what its sender lists, drops what it does not, and answers
// which of the listed claims have no vote of this node (N6). It creates no
// claims: a refresh's subject names no resource, so that NATS permissions could
// not say on which; the client acquires again what it is told is unknown.
func (n *Node) refresh(now wire.Now, r *wire.Request, reply string, out *Out) {
	a := n.answer(wire.Refreshed)
	a.Client, a.Continues = r.Client, n.continued(now)
	a.Claim.Instance, a.SentAt, a.Lo, a.Hi = r.Claim.Instance, r.SentAt, r.Lo, r.Hi
	known := uint64(0)
	voting := n.voting() // else what has the vote must wait for it to be confirmed //plant:refresh-voting
	s := n.sessions[sessionKey{r.Client, r.Claim.Instance}]
	if s != nil {
		s.hear(reply)
		var waiting, gone []uint64
		for seq, c := range s.within(r.Lo, r.Hi) {
			switch {
			case !r.Live.Has(seq):
				gone = append(gone, seq)
			default:
				known++
				if r.SentAt > c.sentAt { // N1 //plant:refresh-beat
					c.sentAt = r.SentAt
					n.extend(now, c)
				}
				if !c.confirmed(voting) {
					c.grantPending = c.voted
					waiting = append(waiting, seq)
				}
			}
		}
		slices.Sort(waiting) // maps have no order, the machine must have one
		slices.Sort(gone)
		for _, seq := range waiting {
			a.Waiting = a.Waiting.Add(seq)
			c := s.claims[seq]
			n.recall(c.res) //plant:recall-at-refresh
			if c.evicted != nil {
				n.send(c, n.isEvicted(c), out) // should it not have heard
			}
		}
		for _, seq := range gone {
			if c := s.claims[seq]; c != nil {
				n.ended.add(s.key.client, c.id())
				n.drop(now, c, 0, out)
			}
		}
		if len(gone) > 0 && len(waiting) > 0 {
			// A claim just dropped may have made room for another of the same
			// client: it is granted by a message of its own, with this beat.
			a.Waiting = nil
			for _, seq := range waiting {
				if c := s.claims[seq]; c != nil && !c.confirmed(voting) {
					a.Waiting = a.Waiting.Add(seq)
				}
			}
		}
	}
	if known < r.Live.Len() {
		a.Unknown = s.unknown(r.Live)
	}
	if reply == "" {
		return
	}
	// An answer says all about its range. A list that is too long for one message
	// goes in several, each with a range of its own.
	for {
		part := a
		for _, list := range []wire.Runs{a.Waiting, a.Unknown} {
			if most := n.cfg.MaxRuns / 2; len(list) > most {
				part.Hi = min(part.Hi, list[most-1].Hi)
			}
		}
		part.Waiting, a.Waiting = a.Waiting.Cut(part.Hi)
		part.Unknown, a.Unknown = a.Unknown.Cut(part.Hi)
		out.Answers = append(out.Answers, Send{reply, part})
		if part.Hi >= r.Hi {
			return
		}
		a.Lo = part.Hi + 1
	}
}

// confirmed reports whether refreshed says that the claim has the node's vote.
func (c *claim) confirmed(voting bool) bool {
	return c.voted && voting && c.evicted == nil /*plant:confirm-evicted*/
}
