package voter

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A release is final, whoever hears it. So a node that did not hear one, because a link
// is cut that others do without, may take it from a node that did (N11). For what is not
// over, such a node passes on a recall, and the yield that answers it (N12).

// overPause is the least time between two questions.
const overPause = 10 * time.Millisecond

// ended is the last claims that are known to be over for good. Each has a row, and the
// oldest of those in a row makes room for the next. Claims of one client have rows that
// follow each other, so that of one client the latest are known, and of many the latest
// of most.
type ended struct {
	pages [endedPages]*[endedPage]endedRow // made when they are needed
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
	// The name is a part of a message, which is not to be kept for it. Mostly the claim
	// of the same client that ended before is in the row before.
	if before := e.pages[page][(at+endedPage-1)%endedPage][0].Client; before == client {
		client = before
	} else {
		client = strings.Clone(client)
	}
	row := &e.pages[page][at]
	if row[0].Claim == id && row[0].Client == client {
		return // it is said again
	}
	copy(row[1:], row[:])
	row[0] = wire.ClaimOf{Client: client, Claim: id}
}

func (e *ended) has(c wire.ClaimOf) bool {
	page, at := e.place(c.Claim)
	return e.pages[page] != nil && slices.Contains(e.pages[page][at][:], c)
}

// doubt is a claim of which other nodes may know that it is over, or may reach its
// client, which has not answered this node's recall.
type doubt struct {
	of       wire.ClaimOf
	recalled bool
}

// doubt notes what is in the way of a claim that other nodes would have served: they
// are asked about it, all that such claims noted in one question.
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

// askOthers asks the other nodes about what is in doubt and is here yet.
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

// isPeer reports whether a name is another node's of this configuration.
func (n *Node) isPeer(name, digest string) bool {
	return name != n.cfg.Name /*plant:peer*/ && digest == n.digest && slices.Contains(n.cfg.Nodes, name)
}

// vouch tells another node which of the claims that it asks about are over, and the
// clients of those that are not that it recalls them.
func (n *Node) vouch(r *wire.Request, reply string, out *Out) {
	if reply == "" || !n.isPeer(r.Client, r.Digest) {
		return // NATS lets nobody else ask under a node's name
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

// asker is a node for which a claim was recalled, and where it hears of the yield.
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

// passOn tells a node for which a claim was recalled that it yields: no more than the
// client's own message says, which that node may not hear (N12).
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

// over takes another node's word that claims are over: they are dropped as by release.
// Yields that it passes on are as good as if they had come from the client.
func (n *Node) over(now wire.Now, a *wire.Answer, out *Out) {
	if a.Client != n.cfg.Name || !n.isPeer(a.Node, a.Digest) {
		return
	}
	n.serial++
	n.expire(now, out)
	// Who waits goes first, or it would be given the votes of those who go after it.
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
