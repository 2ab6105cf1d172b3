package voter

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A release is final, no matter which node hears it. So a node that missed one because of
// a broken link may learn of it from a node that did not (N11). For a claim that is not
// over, that other node passes on the recall, and the yield that answers it (N12).

// overPause is the least time between two questions to other nodes.
const overPause = 10 * time.Millisecond

// ended remembers the last claims that are known to be over for good. Each claim belongs
// to one row, where it displaces the oldest entry. Claims with consecutive numbers of one
// client belong to consecutive rows. So if there is one client, its latest claims are
// remembered, and if there are many, the latest claims of most of them.
type ended struct {
	pages [endedPages]*[endedPage]endedRow // allocated on first use
}

type endedRow [endedInRow]wire.ClaimOf // the latest first

const (
	endedPages = 64
	endedPage  = 64 // rows
	endedInRow = 4
	mostEnded  = endedPages * endedPage * endedInRow
)

func (e *ended) place(id wire.ClaimID) (page, row uint64) {
	first := (binary.BigEndian.Uint64(id.Instance[:8]) ^ binary.BigEndian.Uint64(id.Instance[8:])) * 0x9e3779b97f4a7c15
	n := (first>>32 + id.Seq) % (endedPages * endedPage)
	return n / endedPage, n % endedPage
}

func (e *ended) add(client string, id wire.ClaimID) {
	page, at := e.place(id)
	if e.pages[page] == nil {
		e.pages[page] = new([endedPage]endedRow)
	}
	// The client's name is a slice of a message, which must not be kept in memory for it.
	// Usually the entry before, in the row before, is of the same client.
	if before := e.pages[page][(at+endedPage-1)%endedPage][0].Client; before == client {
		client = before
	} else {
		client = strings.Clone(client)
	}
	row := &e.pages[page][at]
	if row[0].Claim == id && row[0].Client == client {
		return // this was known
	}
	copy(row[1:], row[:])
	row[0] = wire.ClaimOf{Client: client, Claim: id}
}

func (e *ended) has(c wire.ClaimOf) bool {
	page, at := e.place(c.Claim)
	return e.pages[page] != nil && slices.Contains(e.pages[page][at][:], c)
}

// doubt is a claim in the way of others that another node may know to be over, or whose
// client another node may reach. In the second case the client has not answered this
// node's recall.
type doubt struct {
	of       wire.ClaimOf
	recalled bool
}

// doubt notes the claims in the way of c, which has the vote of another node. The other
// nodes are asked about all claims noted in a step with one question.
func (n *Node) doubt(c *claim) {
	note := func(list []*claim) {
		for _, o := range list {
			if len(n.doubts) == wire.MaxOver || o.voted == c.voted && order(o, c) >= 0 {
				return
			}
			if !quorum.Conflicts(o.mode, c.mode) {
				continue
			}
			d := doubt{wire.ClaimOf{Client: o.session.key.client, Claim: o.id()}, o.voted && !o.held && order(c, o) < 0}
			if i := slices.IndexFunc(n.doubts, func(have doubt) bool { return have.of == d.of }); i < 0 {
				n.doubts = append(n.doubts, d)
			} else if d.recalled {
				n.doubts[i].recalled = true
			}
		}
	}
	note(c.res.votes)
	note(c.res.queue)
}

// askOthers asks the other nodes about the claims in doubt that this node still has.
func (n *Node) askOthers(now wire.Now, out *Out) {
	if len(n.doubts) == 0 || now.Mono < n.overAt || out.Ask != nil {
		return
	}
	var over, recalled []wire.ClaimOf
	for _, d := range n.doubts {
		switch c := n.find(d.of.Client, d.of.Claim); {
		case c == nil:
		case d.recalled && c.voted && !c.held:
			recalled = append(recalled, d.of)
		default:
			over = append(over, d.of)
		}
	}
	n.doubts = n.doubts[:0]
	if len(over)+len(recalled) == 0 || len(n.cfg.Nodes) == 1 {
		return
	}
	n.overAt = now.Mono + overPause
	out.Ask = &wire.Request{Verb: wire.Info, Client: n.cfg.Name, Digest: n.digest, Over: over, Recalled: recalled} //plant:ask-others
}

// isPeer reports whether name is that of another node of this configuration.
func (n *Node) isPeer(name, digest string) bool {
	return name != n.cfg.Name /*plant:peer*/ && digest == n.digest && slices.Contains(n.cfg.Nodes, name)
}

// vouch tells another node which of the claims that it asks about are over. To the
// clients of the others that it wants back, it passes on the recall.
func (n *Node) vouch(r *wire.Request, reply string, out *Out) {
	if reply == "" || !n.isPeer(r.Client, r.Digest) {
		return // only nodes can ask under a node's name: NATS permissions
	}
	a := n.answer(wire.Over)
	for _, c := range r.Over {
		if n.ended.has(c) {
			a.Over = append(a.Over, c)
		}
	}
	for _, c := range r.Recalled {
		if n.ended.has(c) {
			a.Over = append(a.Over, c)
		} else if c := n.find(c.Client, c.Claim); c != nil {
			n.recallFor(c, r.Client, reply, out)
		}
	}
	if len(a.Over) > 0 {
		a.Client = r.Client
		out.Answers = append(out.Answers, Send{reply, a})
	}
}

// asker is a node that had a claim recalled through this one, and the inbox to which the
// yield is passed on.
type asker struct{ node, reply string }

// recallFor tells a claim's client that another node wants its vote back.
func (n *Node) recallFor(c *claim, node, reply string, out *Out) {
	c.askers = slices.DeleteFunc(c.askers, func(a asker) bool { return a.node == node })
	c.askers = append(c.askers, asker{strings.Clone(node), reply})
	a := n.about(c, wire.Recall)
	a.For = node
	n.counts.Recalls++
	n.send(c, a, out) //plant:recall-for
}

// passOn tells the node that had the claim recalled that its client yields (N12). It
// passes on only what the client's own message says, which that node may not have heard.
func (n *Node) passOn(c *claim, r *wire.Request, out *Out) {
	i := slices.IndexFunc(c.askers, func(a asker) bool { return a.node == r.Node })
	if i < 0 {
		return
	}
	a := n.answer(wire.Over)
	a.Client = r.Node
	a.Yielded = []wire.YieldOf{{ClaimOf: wire.ClaimOf{Client: r.Client, Claim: r.Claim}, SentAt: r.SentAt}}
	out.Answers = append(out.Answers, Send{c.askers[i].reply, a})
	c.askers = slices.Delete(c.askers, i, i+1)
}

// over acts on another node's message. Claims that it says are over are dropped as by a
// release. Yields that it passes on count as if they had come from the client.
func (n *Node) over(now wire.Now, a *wire.Answer, out *Out) {
	if a.Client != n.cfg.Name || !n.isPeer(a.Node, a.Digest) {
		return
	}
	n.serial++
	n.expire(now, out)
	// Waiting claims are dropped first. Otherwise votes that are freed in the first round
	// would go to claims that are dropped in the second.
	for _, voted := range []bool{false, true} {
		for _, o := range a.Over {
			if c := n.find(o.Client, o.Claim); c != nil && c.voted == voted {
				n.ended.add(o.Client, o.Claim)
				n.drop(now, c, 0, out)
			}
		}
	}
	for _, y := range a.Yielded {
		if c := n.find(y.Client, y.Claim); c != nil {
			n.giveBack(now, c, y.SentAt /*plant:passed-beat*/, out)
		}
	}
	n.tellTries(now, out)
	n.sendRecalls(now, out)
	n.askOthers(now, out)
}
