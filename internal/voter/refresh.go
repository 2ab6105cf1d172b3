package voter

import (
	"slices"

	"github.com/qlock/qlock/internal/wire"
)

// refresh extends the leases of the claims that are listed, drops the sender's other
// claims in the range, and answers which of the listed claims do not have this node's
// vote (N6). It creates no claims: the subject of a refresh names no resource, so NATS
// permissions could not restrict them. The client acquires again what the answer calls
// unknown.
func (n *Node) refresh(now wire.Now, r *wire.Request, reply string, out *Out) {
	a := n.answer(wire.Refreshed)
	a.Client, a.Continues = r.Client, n.continued(now)
	a.Claim.Instance, a.SentAt, a.Lo, a.Hi = r.Claim.Instance, r.SentAt, r.Lo, r.Hi
	known := uint64(0)
	voting := n.voting() // a node that does not vote confirms no votes //plant:refresh-voting
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
		slices.Sort(waiting) // map order is random, and the machine must be deterministic
		slices.Sort(gone)
		for _, seq := range waiting {
			a.Waiting = a.Waiting.Add(seq)
			c := s.claims[seq]
			n.recall(c.res) //plant:recall-at-refresh
			if c.evicted != nil {
				n.send(c, n.isEvicted(c), out) // in case the client missed the first answer
			}
		}
		for _, seq := range gone {
			if c := s.claims[seq]; c != nil {
				n.ended.add(s.key.client, c.id())
				n.drop(now, c, 0, out)
			}
		}
		if len(gone) > 0 && len(waiting) > 0 {
			// A dropped claim may have made room for another claim of the same client. The vote for
			// that one was sent in a message of its own, with the same beat.
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
	// An answer is complete for its range. Lists that are too long for one message are split,
	// and each part states its own range.
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

// confirmed reports whether the answer to a refresh says that the claim has this node's
// vote.
func (c *claim) confirmed(voting bool) bool {
	return c.voted && voting && c.evicted == nil /*plant:confirm-evicted*/
}
