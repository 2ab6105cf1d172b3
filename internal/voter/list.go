package voter

import (
	"cmp"
	"slices"
	"time"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// byArrival keeps the resources in order of arrival, for paged lists. A page starts after
// an arrival number, so resources that come and go between two pages do not shift it. A
// map has no such order, and sorting one for each page would delay lock requests.
type byArrival struct {
	slots []slot
	born  uint64 // number given out last
	gone  int    // empty slots
}

type slot struct {
	born uint64
	res  *resource // nil if the resource is gone
}

func (r *byArrival) add(res *resource) {
	r.born++
	res.born = r.born
	r.slots = append(r.slots, slot{r.born, res})
}

func (r *byArrival) remove(res *resource) {
	i := r.after(res.born - 1)
	r.slots[i].res = nil
	r.gone++
	// The resource that came last usually goes first.
	for n := len(r.slots); n > 0 && r.slots[n-1].res == nil; n-- {
		r.slots = r.slots[:n-1]
		r.gone--
	}
	if r.gone > 64 && 2*r.gone > len(r.slots) {
		live := make([]slot, 0, len(r.slots)-r.gone+64)
		for _, s := range r.slots {
			if s.res != nil {
				live = append(live, s)
			}
		}
		r.slots, r.gone = live, 0
	}
}

// after returns the index of the first slot whose number is above born.
func (r *byArrival) after(born uint64) int {
	i, _ := slices.BinarySearchFunc(r.slots, born+1, func(s slot, born uint64) int { return cmp.Compare(s.born, born) })
	return i
}

// Bounds of the work for one page, whatever the request asks for.
const (
	mostLooked = 10_000 // resources examined
	mostShown  = 8      // claims shown of each resource in a list
)

// list answers with a page of the resources that are locked or waited for at this node.
func (n *Node) list(now wire.Now, r *wire.Request, reply string, out *Out) {
	if !n.isAsked(r, reply) {
		return
	}
	page := &wire.Page{After: r.After}
	room, i := n.room(now, r), n.roll.after(r.After)
	most := min(i+mostLooked, len(n.roll.slots))
	waits := n.recovering(now) > 0
	for ; i < most; i++ {
		s := n.roll.slots[i]
		if s.res == nil || r.Query != "" && !subject.Matches(r.Query, s.res.name) {
			page.Next = s.born
			continue
		}
		rec := s.res.record()
		for _, c := range s.res.votes[:min(len(s.res.votes), mostShown)] {
			rec.Claims = append(rec.Claims, c.record(now))
		}
		// A recovering node may have forgotten votes that still stand. It lists the claims whose
		// clients say that they hold the lock, so that the reader can count them. They are at the
		// head of the queue.
		for i := 0; waits && i < len(s.res.queue) && s.res.queue[i].held && len(rec.Claims) < mostShown; i++ {
			rec.Claims = append(rec.Claims, s.res.queue[i].record(now))
		}
		if len(page.Locks) > 0 && rec.PageSize() > room {
			break // the next page begins with this one
		}
		page.Next = s.born
		if !rec.Shrink(room) {
			out.Notes = append(out.Notes, "a lock is not listed: its name alone is longer than what the NATS server takes (max_payload)")
			continue
		}
		room -= rec.PageSize()
		page.Locks = append(page.Locks, rec)
	}
	if i == len(n.roll.slots) {
		page.Next = 0
	}
	n.listed(now, r, reply, page, out)
}

// inspect answers with a page of the claims on one resource: the votes, then the queue.
func (n *Node) inspect(now wire.Now, r *wire.Request, reply string, out *Out) {
	if !n.isAsked(r, reply) {
		return
	}
	page := &wire.Page{After: r.After}
	if res := n.resources[r.Resource]; res != nil {
		rec := res.record()
		room := n.room(now, r) - rec.PageSize()
		all := uint64(len(res.votes) + len(res.queue))
		i := min(r.After, all)
		for ; i < all; i++ {
			var c wire.ClaimRecord
			if votes := uint64(len(res.votes)); i < votes {
				c = res.votes[i].record(now)
			} else {
				c = res.queue[i-votes].record(now)
			}
			if c.PageSize() > room {
				if len(rec.Claims) > 0 {
					break // the next page begins with this one
				}
				c.Note = "" // with its note, the claim would fit into no page
			}
			room -= c.PageSize()
			rec.Claims = append(rec.Claims, c)
		}
		if i < all {
			page.Next = i
		}
		page.Locks = []wire.Record{rec}
	}
	n.listed(now, r, reply, page, out)
}

func (n *Node) isAsked(r *wire.Request, reply string) bool {
	return reply != "" && (r.Node == "" || r.Node == n.cfg.Name)
}

// room returns how many bytes the records of a page may take.
func (n *Node) room(now wire.Now, r *wire.Request) int {
	a := n.listing(now, r, &wire.Page{After: r.After, Next: wire.MaxInt})
	return min(n.cfg.MaxBody, wire.PageBytes) - len(wire.AppendAnswer(nil, &a))
}

func (n *Node) listed(now wire.Now, r *wire.Request, reply string, page *wire.Page, out *Out) {
	out.Answers = append(out.Answers, Send{reply, n.listing(now, r, page)})
}

// listing includes how long the node gives no votes yet, because the list lacks what the
// node may have forgotten.
func (n *Node) listing(now wire.Now, r *wire.Request, page *wire.Page) wire.Answer {
	a := n.answer(wire.Listed)
	a.Client, a.Nonce, a.List, a.Recovering = r.Client, r.Nonce, page, n.recovering(now)
	return a
}

func (r *resource) record() wire.Record {
	return wire.Record{Name: r.name, Votes: len(r.votes), Waiting: len(r.queue)}
}

func (c *claim) record(now wire.Now) wire.ClaimRecord {
	return wire.ClaimRecord{
		Claim: c.id(), Client: c.session.key.client, Mode: c.mode, At: c.at, Note: c.note,
		Voted: c.voted, Fence: c.fence, Token: c.token, Kept: c.keep, Evicted: c.evicted != nil,
		For: wholeMS(now.Mono - c.since), Lease: wholeMS(c.deadline - now.Mono),
	}
}

func wholeMS(d time.Duration) time.Duration { return max(d, 0).Truncate(time.Millisecond) }

// evict asks a claim's client to give the claim up, and stops extending its lease. The
// vote stays until the client gives it back or the lease ends. Taking it away at once
// would give the lock to a second holder while the first still believes that it holds.
func (n *Node) evict(now wire.Now, r *wire.Request, reply string, out *Out) {
	c := n.find(r.Holder, r.Claim)
	if c != nil && c.res.name != r.Resource {
		c = nil
	}
	if c != nil {
		if c.evicted == nil {
			n.counts.Evicted++
			c.evicted = &Eviction{r.Client, r.Query}
		}
		n.send(c, n.isEvicted(c), out) //plant:evict
	}
	if reply == "" {
		return
	}
	a := n.answer(wire.Evicting)
	// A node that does not know the claim counts towards the end of the eviction only if it
	// votes: a node that recovers may have forgotten the claim (N10).
	a.Client, a.Nonce, a.Known, a.Recovering = r.Client, r.Nonce, c != nil, n.recovering(now)
	out.Answers = append(out.Answers, Send{reply, a})
}

// isEvicted is the only answer that the client of an evicted claim gets about it.
func (n *Node) isEvicted(c *claim) wire.Answer {
	a := n.about(c, wire.Evicted)
	a.By, a.Text = c.evicted.By, c.evicted.Why
	return a
}
