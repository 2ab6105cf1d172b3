package voter

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

func (n *Node) answer(k wire.Kind) wire.Answer {
	return wire.Answer{Kind: k, Node: n.cfg.Name, Incarnation: n.cfg.Incarnation, Digest: n.digest}
}

func (n *Node) about(c *claim, k wire.Kind) wire.Answer {
	a := n.answer(k)
	a.Client, a.Claim, a.SentAt = c.session.key.client, c.id(), c.sentAt
	return a
}

func (n *Node) send(c *claim, a wire.Answer, out *Out) {
	if c.evicted != nil {
		a = n.isEvicted(c)
	}
	if c.session.reply != "" {
		out.Answers = append(out.Answers, Send{c.session.reply, a})
	}
}

func (n *Node) acquire(now wire.Now, r *wire.Request, reply string, out *Out) {
	if r.Node != "" && r.Node != n.cfg.Name {
		return
	}
	c := n.find(r.Client, r.Claim)
	if c == nil {
		n.acquireUnknown(now, r, reply, out)
		return
	}
	// A claim is for one resource in one mode. If a message says otherwise, another client
	// uses the same number, no matter how late the message is (N2).
	if c.res.name != r.Resource || c.mode != r.Mode { //plant:number-twice
		out.Notes = append(out.Notes, fmt.Sprintf(
			"two clients use the same instance: one is a copy of the other (client %s, claim %s), and neither keeps the claims that both have", r.Client, r.Claim.Text()))
		n.refuse(r, reply, wire.ReasonCopy, true, out, "another client has claim %d of this instance, on %q: one client is a copy of the other", r.Claim.Seq, c.res.name)
		return
	}
	if r.SentAt <= c.sentAt { // a late message (N1) //plant:acquire-beat
		return
	}
	c.session.hear(reply)
	if r.Digest != n.digest { // the client may have moved to a record that the node missed (E9)
		n.wantRecord(now) //plant:voter-asks-for-known
	}
	// The client may yield now what it did not yield before.
	if c.lastRecall.pause = 0; c.voted {
		c.res.changed()
	}
	c.sentAt = r.SentAt
	n.extend(now, c) // N2 //plant:acquire-extends
	n.wants(now, c, r.MinFence)
	if r.Held {
		c.token = min(cmp.Or(r.Token, r.MinFence), c.minFence) //plant:said-token
	}
	if r.Keep {
		if c.voted && !c.keep {
			c.res.keepers++
		}
		c.keep, c.rangeSize = true, r.RangeSize
	}
	if c.voted {
		if c.minFence > c.fence { // N3
			c.fence = c.minFence
			n.reserve(now, c) //plant:wanted-fence-kept
		}
		n.grantedOrNot(now, c, out)
		if r.Held && !c.held {
			n.nowHeld(c)
		}
		return
	}
	if r.Held && !c.held {
		n.dequeue(c)
		c.held = true
		n.enqueue(now, c)
	}
	n.queued(now, c, out)
	n.recall(c.res) //plant:recall-at-acquire
	if r.Check {
		n.doubt(c)
	}
}

// nowHeld notes that a claim with this node's vote is held. A holder says so in answer to
// a recall. It is not recalled again. Tries that the claim would have yielded to learn
// that it will not (C10).
func (n *Node) nowHeld(c *claim) {
	c.res.removeVote(c)
	c.held = true
	c.res.addVote(c)
	n.change(c.res)
}

func (n *Node) acquireUnknown(now wire.Now, r *wire.Request, reply string, out *Out) {
	res := n.resources[r.Resource]
	fresh := res == nil
	if fresh {
		res = n.newResource(r.Resource)
	}
	refuse := func(why wire.Reason, retryable bool, text string, args ...any) {
		n.refuse(r, reply, why, retryable, out, text, args...)
	}
	ahead := sat.Micros(r.At - now.Wall)
	switch {
	case r.Digest != n.digest: //plant:acquire-digest
		n.wantRecord(now)
		if r.Held {
			n.longerLease(r.TTL, "client "+r.Client, out)
		}
		refuse(wire.ReasonConfig, true, "this node has configuration %s (nodes %v, longest lease %v); the client has another one", n.digest, n.cfg.Nodes, n.cfg.MaxTTL)
		return
	case r.TTL > n.cfg.MaxTTL:
		if r.Held {
			n.longerLease(r.TTL, "client "+r.Client, out)
		}
		refuse(wire.ReasonLease, false, "lease %v is longer than the %v that this cluster allows", r.TTL, n.cfg.MaxTTL)
		return
	case ahead > n.cfg.Skew: // N7
		refuse(wire.ReasonAge, true, "the claim's age is %v ahead of this node's clock, and at most %v is allowed: synchronize the clocks", ahead.Round(time.Millisecond), n.cfg.Skew)
		return
	case r.Held && r.MinFence > n.reach(now, res): // a vote below the token would not count
		refuse(wire.ReasonFence, true, "the lock's token is %v ahead of this node's clock, and at most %v is allowed: synchronize the clocks",
			time.Duration(int64(r.MinFence)-max(now.Wall, 0))*time.Microsecond, n.cfg.MaxTTL)
		return
	case n.perClient[r.Client] >= n.cfg.MaxClaims:
		refuse(wire.ReasonClaims, true, "client %s has %d claims here, as many as this node allows", r.Client, n.perClient[r.Client])
		return
	}
	s := n.sessions[sessionKey{r.Client, r.Claim.Instance}]
	if s == nil {
		s = n.newSession(sessionKey{r.Client, r.Claim.Instance})
	}
	c := n.newClaim(claim{
		session: s, seq: r.Claim.Seq, res: res, mode: r.Mode, at: r.At /*plant:claim-age*/, ttl: r.TTL,
		sentAt: r.SentAt, held: r.Held, try: r.Try, keep: r.Keep, rangeSize: r.RangeSize, note: r.Note,
	})
	free := n.voting() && n.free(c) //plant:free
	// All votes but one count as well, since claims of one name cost time for which all
	// others wait. A claim that is held elsewhere has twice the room, so that it finds its
	// place in a full queue.
	most := n.cfg.MaxQueue
	if c.held {
		most = sat.Mul(most, 2)
	}
	if have := len(res.votes) + len(res.queue); have > most {
		refuse(wire.ReasonQueue, true, "%d claims hold or wait for %q, as many as this node allows", have, r.Resource)
		return
	}
	n.wants(now, c, r.MinFence)
	if r.Held {
		c.token = min(cmp.Or(r.Token, r.MinFence), c.minFence)
	}
	s.hear(reply)
	if fresh {
		n.resources[res.name] = res
		n.roll.add(res)
	}
	if c.held {
		n.raise(res, c.minFence) // its token was given out: N6
	}
	n.add(now, c) //plant:new-claim
	if free {
		n.vote(now, c, 0)
		n.granted(now, c, out)
		return
	}
	n.enqueue(now, c)
	if r.SuppressQueued && !c.try && n.voting() {
		c.suppressQueued = true
	} else {
		n.queued(now, c, out)
	}
	n.recall(res)
	if r.Check {
		n.doubt(c)
	}
}

func (n *Node) refuse(r *wire.Request, reply string, why wire.Reason, retryable bool, out *Out, text string, args ...any) {
	n.counts.Refused.count(why)
	if reply == "" {
		return
	}
	a := n.answer(wire.Refused)
	a.Client = r.Client
	a.Claim, a.SentAt, a.Reason, a.Retryable = r.Claim, r.SentAt, why, retryable
	a.Text = clip(fmt.Sprintf(text, args...))
	out.Answers = append(out.Answers, Send{reply, a})
}

// clip shortens a text to the length that receivers accept. Otherwise a long name in it,
// or many, would make the whole answer invalid.
func clip(text string) string {
	if len(text) > wire.MaxText {
		text = strings.ToValidUTF8(text[:wire.MaxText], "")
	}
	return text
}

// reach returns the highest fence that a client may ask for (N3), so that nobody can use
// up a resource's number range. Fences come from wall clocks. A client's may be ahead of
// a node's by the skew. Other nodes' clocks agree with this one's within what the skew
// leaves of the longest lease.
func (n *Node) reach(now wire.Now, res *resource) uint64 {
	return max(res.floor, n.ceiling(now))
}

// ceiling is how far fences may lie ahead of the clock. If the clock is behind the lowest
// floor, as after a change of the list among nodes whose clocks differ, it is taken to show
// that.
func (n *Node) ceiling(now wire.Now) uint64 {
	return uint64(max(now.Wall, int64(n.floors.least) /*plant:voter-reach*/, 0) + n.cfg.MaxTTL.Microseconds())
}

// wants notes the fence that a claim asks for. If the node cannot give it, the claim is
// told how far the node goes, since asking for it again would be futile (C3).
func (n *Node) wants(now wire.Now, c *claim, want uint64) {
	if most := n.reach(now, c.res); want > most {
		if c.short == 0 {
			n.counts.Refused.count(wire.ReasonFence)
		}
		c.short = most
		return
	}
	c.minFence, c.short = max(c.minFence, want), 0
}

// free reports whether c can have the node's vote: no vote conflicts, and no conflicting
// claim waits before it (N2).
func (n *Node) free(c *claim) bool { return n.blocker(c) == nil }

// blocker returns the oldest conflicting vote, else the first conflicting claim before c
// in the queue, else nil. Votes never conflict with each other, so the first one
// represents all.
func (n *Node) blocker(c *claim) *claim {
	if v := c.res.votes; len(v) > 0 && quorum.Conflicts(v[0].mode, c.mode) {
		return v[0]
	}
	for _, w := range c.res.queue {
		if order(w, c) >= 0 {
			break
		}
		if quorum.Conflicts(w.mode, c.mode) { //plant:queue-conflict
			return w
		}
	}
	return nil
}

// vote gives c the node's vote, with a fence above (shared: not below) all earlier fences
// of this resource (N3). hint is the clock of the release that made room, or 0. It is the
// same at every node, which makes the fences of different nodes equal.
//
// A shared fence also starts from the claim's age, and becomes the floor. Otherwise nodes
// that started at different times would give each reader different fences, and every
// shared lock would take two round trips.
func (n *Node) vote(now wire.Now, c *claim, hint int64) {
	least := n.floorOf(now, c.res)
	if c.mode == quorum.Exclusive {
		least++
	}
	c.fence = max(least, uint64(c.at), uint64(hint), c.minFence, 1) // 0 means none //plant:fence
	n.reserve(now, c)
	c.voted, c.since = true, now.Mono
	n.votes++
	n.counts.Granted++
	c.res.keepers += keeper(c)
	n.voted = true
	c.res.addVote(c)
	n.change(c.res)
}

// reserve sets aside the fences that the claim asks for, and raises the floor to the last
// of them. It reserves none that lies further ahead than a fence may be asked for (N3).
func (n *Node) reserve(now wire.Now, c *claim) {
	c.reserved = 1
	if reach := n.ceiling(now); c.rangeSize > 1 && c.mode == quorum.Exclusive && reach > c.fence {
		c.reserved = min(c.rangeSize, reach-c.fence /*plant:span-reach*/)
	}
	n.raise(c.res, c.fence+c.reserved-1) //plant:span-kept
}

// keeper returns 1 if the claim is kept, else 0.
func keeper(c *claim) int {
	if c.keep {
		return 1
	}
	return 0
}

// isWaitedFor reports whether a conflicting claim, younger or older, waits for a claim
// that is kept. Its client must then no longer pass it on among its holders (N4).
func (c *claim) isWaitedFor() bool {
	return c.keep && len(c.res.queue) > 0 && quorum.Conflicts(c.res.queue[0].mode, c.mode)
}

// grantedOrNot answers a claim that has the vote. A node that does not vote does not
// confirm votes either, because another node of its name may have given the vote to
// somebody else since. It grants the claim again when it votes.
func (n *Node) grantedOrNot(now wire.Now, c *claim, out *Out) {
	if n.voting() { //plant:confirm-voting
		n.granted(now, c, out)
		return
	}
	c.grantPending = true
	a := n.about(c, wire.Queued)
	a.Recovering = n.recovering(now)
	n.send(c, a, out)
}

func (n *Node) granted(now wire.Now, c *claim, out *Out) {
	a := n.about(c, wire.Granted) //plant:granted
	a.Fence, a.Behind, a.Late = c.fence, c.isWaitedFor(), c.suppressQueued
	if c.held {
		a.Continues = n.continued(now)
	}
	c.suppressQueued = false
	if a.Behind {
		c.lastRecall.serial = n.serial
	}
	if c.reserved > 1 {
		a.RangeSize = c.reserved
	}
	if c.short > c.fence { //plant:fence-short
		a.Most = c.short
	}
	n.send(c, a, out)
}

// queued tells a claim that asked that it has to wait.
func (n *Node) queued(now wire.Now, c *claim, out *Out) { n.tell(now, c, 0, out) }

// tell says that the claim waits, and for which claim. again is how many times the node
// has said so since the claim last asked.
func (n *Node) tell(now wire.Now, c *claim, again int, out *Out) {
	c.suppressQueued = false //plant:told
	a := n.about(c, wire.Queued)
	a.Place, _ = slices.BinarySearchFunc(c.res.queue, c, order)
	a.Recovering = n.recovering(now)
	if b := n.blocker(c); b != nil {
		a.Blocker = &wire.Blocker{
			Claim: b.id(), Client: b.session.key.client, Mode: b.mode, Voted: b.voted, For: now.Mono - b.since,
			Ahead: order(b, c) < 0,
		}
	}
	if c.try {
		if c.said == nil {
			c.said = new(said)
		}
		*c.said = said{again: again}
		if b := a.Blocker; b != nil {
			c.said.blocker, c.said.ahead = b.Claim, b.Ahead
		}
		a.Again = again
	}
	n.send(c, a, out)
}

// said is what a waiting try was told last: which claim is in its way, and whether that
// claim goes first. The try fails by that (C10). So it is told of each change, and need
// not ask.
type said struct {
	blocker wire.ClaimID
	ahead   bool
	again   int // how many times it was told since it last asked
}

// mostAgain bounds how often a try is told of changes without being heard from. A live
// one fails or gets its lock after a few changes. Without the bound, whoever left many
// tries behind would make each handover of the lock cost as many answers.
const mostAgain = 16

// change notes that the claims before the tries of a queue may have changed. The tries
// are told once, at the end of the step.
func (n *Node) change(res *resource) {
	if len(res.tries) > 0 && res.moved != n.serial {
		res.moved = n.serial
		n.changed = append(n.changed, res)
	}
}

// tellTries tells tries what is in their way now, unless they know it (N5).
func (n *Node) tellTries(now wire.Now, out *Out) {
	for _, res := range n.changed {
		for _, c := range res.tries {
			again := 1
			if s := c.said; s != nil { // nil: it was told before the node's restart
				if again += s.again; again > mostAgain || s.holds(c, n.blocker(c)) {
					continue
				}
			}
			n.tell(now, c, again, out) //plant:tell-try
		}
	}
	clear(n.changed)
	n.changed = n.changed[:0]
}

// holds reports whether what was said is still true.
func (s *said) holds(c, blocker *claim) bool {
	if blocker == nil {
		return s.blocker == wire.ClaimID{}
	}
	return s.blocker == blocker.id() && s.ahead == (order(blocker, c) < 0)
}

// recall requests that younger votes in the way of the head of the queue be recalled
// (N4). That happens once, at the end of the step. A step may change the head of a queue
// many times, or remove many votes. Recalling all others each time would make the number
// of answers to one message quadratic.
func (n *Node) recall(res *resource) {
	if res.serial != n.serial {
		res.serial = n.serial
		n.recalls = append(n.recalls, res)
	}
}

func (n *Node) sendRecalls(now wire.Now, out *Out) {
	for _, res := range n.recalls {
		if res.unseen == 0 {
			if now.Mono < res.due { //plant:recall-due
				continue
			}
			res.lookAgain()
		}
		n.look(now, res, out)
	}
	clear(n.recalls)
	n.recalls = n.recalls[:0]
	if len(n.crowded) == 0 || now.Mono < n.lookAt {
		return
	}
	list := n.crowded
	n.crowded, n.looked = n.looked[:0], list
	for _, res := range list {
		if res.crowded = false; res.unseen > 0 || res.lookTwice { //plant:crowd-looked-at
			n.look(now, res, out)
		}
	}
	clear(list)
}

// lookMost is how many votes of one name are examined in one step, and again each
// lookPause after it. It keeps a crowd of readers from slowing every message about its
// lock (N4).
const (
	lookMost  = 512
	lookPause = time.Millisecond
)

// look recalls votes of a resource as needed. It goes on where the last examination
// stopped, from younger to older votes, and examines at most lookMost.
func (n *Node) look(now wire.Now, res *resource, out *Out) {
	for looked := 0; ; looked++ {
		if res.unseen == 0 && res.lookTwice {
			res.lookAgain()
		}
		if len(res.queue) == 0 {
			res.unseen, res.lookTwice, res.due = 0, false, 0
			return
		}
		if res.unseen == 0 {
			res.due = res.next
			return
		}
		if looked == lookMost {
			break
		}
		res.unseen--
		n.looks++
		head, v := res.queue[0], res.votes[res.unseen]
		older := order(head, v) < 0
		if !quorum.Conflicts(v.mode, head.mode) || !older && res.keepers == 0 {
			res.unseen = 0 // all older votes are in the same state
			continue
		}
		if !v.keep && (!older || v.held) {
			continue // it goes first, or has said that it will not yield
		}
		behind := v.keep && (v.held || !older)
		again := v.lastRecall.due(now.Mono, v.ttl, behind)
		res.next = min(res.next, v.lastRecall.next)
		if !again || behind && v.lastRecall.serial == n.serial {
			continue // not yet, or the grant in this step said so
		}
		n.counts.Recalls++
		a := n.about(v, wire.Recall)
		a.Behind = behind
		n.send(v, a, out)
	}
	if !res.crowded {
		if len(n.crowded) == 0 {
			n.lookAt = now.Mono + lookPause
		}
		res.crowded = true
		n.crowded = append(n.crowded, res)
	}
}

// promote gives votes from the head of the queue as long as nothing conflicts (N5), and
// forgets a resource without claims.
func (n *Node) promote(now wire.Now, res *resource, hint int64, out *Out) {
	if n.voting() {
		for len(res.queue) > 0 {
			head := res.queue[0]
			if len(res.votes) > 0 && quorum.Conflicts(res.votes[0].mode, head.mode) { //plant:next-conflict
				break
			}
			n.dequeue(head)
			n.vote(now, head, hint)
			n.granted(now, head, out)
		}
		n.recall(res) //plant:recall-at-promote
	}
	if len(res.votes) == 0 && len(res.queue) == 0 {
		n.forget(res)
	}
}

// drop removes a claim for good and serves the claims that waited for it (N5).
func (n *Node) drop(now wire.Now, c *claim, hint int64, out *Out) {
	if c.voted {
		n.unvote(c)
	} else {
		n.dequeue(c)
	}
	n.remove(c)
	n.promote(now, c.res, hint, out)
	n.old.claims.put(c)
}

func (n *Node) release(now wire.Now, r *wire.Request, out *Out) {
	c := n.find(r.Client, r.Claim)
	if c == nil {
		n.ended.add(r.Client, r.Claim) // its acquire was not heard, or its lease expired
		return
	}
	if c.res.name != r.Resource {
		return
	}
	n.ended.add(c.session.key.client, r.Claim)
	hint := r.Now
	if sat.Micros(hint-now.Wall) > n.cfg.Skew {
		// A hint as far ahead as this is ignored, as an age would be refused (N7). The hint only
		// helps nodes to give equal fences.
		hint = 0 //plant:release-hint
	}
	n.drop(now, c, hint, out)
}

func (n *Node) yield(now wire.Now, r *wire.Request, out *Out) {
	c := n.find(r.Client, r.Claim)
	if c == nil || c.res.name != r.Resource {
		return
	}
	if r.Node != n.cfg.Name {
		n.passOn(c, r, out)
		return
	}
	n.giveBack(now, c, r.SentAt, out)
}

// giveBack moves a claim that yields back into the queue.
func (n *Node) giveBack(now wire.Now, c *claim, sentAt uint64, out *Out) {
	if sentAt <= c.sentAt { //plant:yield-beat
		return
	}
	c.sentAt = sentAt
	n.extend(now, c)
	if c.voted {
		n.unvote(c)
		n.enqueue(now, c)
		n.promote(now, c.res, 0, out)
	}
	if !c.voted { //plant:yield-answer
		n.queued(now, c, out) // a try must know which claim is in its way (C10)
	}
}
