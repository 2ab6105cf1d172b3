package voter

import (
	"cmp"
	"slices"
	"time"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// byArrival has the resources in the order in which they came, for lists in pages: a page
// begins behind a number, and what comes and goes meanwhile moves nothing. A map has
// no such order, and sorting it for each page would keep the locks waiting.
type byArrival struct {
	slots []slot
	born  uint64 // number given out last
	gone  int    // slots that are empty
}

type slot struct {
	born uint64
	res  *resource // nil: it is gone
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
	for n := len(r.slots); n > 0 && r.slots[n-1].res == nil; n-- { // mostly the last comes and goes
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

// after is the index of the first slot above born.
func (r *byArrival) after(born uint64) int {
	i, _ := slices.BinarySearchFunc(r.slots, born+1, func(s slot, born uint64) int { return cmp.Compare(s.born, born) })
	return i
}

// What one page may cost, whatever is asked for.
const (
	mostLooked = 10_000 // names looked at
	mostShown  = 8      // claims that are shown of each name in a list
)

// list answers with a page of what is locked and waited for here.
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
		// Of a claim that its client holds the vote from before stands, which a node that
		// waits has forgotten: whoever reads counts it. Such claims are first in the queue.
		for i := 0; waits && i < len(s.res.queue) && s.res.queue[i].held && len(rec.Claims) < mostShown; i++ {
			rec.Claims = append(rec.Claims, s.res.queue[i].record(now))
		}
		if len(page.Locks) > 0 && rec.PageSize() > room {
			break // the next page begins with it
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

// inspect answers with a page of the claims on one name: its votes, then its queue.
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
					break // the next page begins with it
				}
				c.Note = "" // else it fits into none
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

// room is how many bytes the records of a page may have.
func (n *Node) room(now wire.Now, r *wire.Request) int {
	a := n.listing(now, r, &wire.Page{After: r.After, Next: wire.MaxInt})
	return min(n.cfg.MaxBody, wire.PageBytes) - len(wire.AppendAnswer(nil, &a))
}

func (n *Node) listed(now wire.Now, r *wire.Request, reply string, page *wire.Page, out *Out) {
	out.Answers = append(out.Answers, Send{reply, n.listing(now, r, page)})
}

// listing says as well how long the node gives no votes: what it may have forgotten, it does
// not list.
func (n *Node) listing(now wire.Now, r *wire.Request, page *wire.Page) wire.Answer {
	a := n.answer(wire.Listed)
	a.Client, a.Nonce, a.List, a.Recovering = r.Client, r.Nonce, page, n.recovering(now)
	return a
}

func (r *resource) record() wire.Record {
	return wire.Record{Name: r.name, Votes: len(r.votes), Waiting: len(r.queue)}
}

func (c *claim) record(now wire.Now) wire.ClaimRecord {
	token := uint64(0)
	if c.held {
		token = c.minFence
	}
	return wire.ClaimRecord{
		Claim: c.id(), Client: c.session.key.client, Mode: c.mode, At: c.at, Note: c.note,
		Voted: c.voted, Fence: c.fence, Token: token, Kept: c.keep, Evicted: c.evicted != nil,
		For: wholeMS(now.Mono - c.since), Lease: wholeMS(c.deadline - now.Mono),
	}
}

func wholeMS(d time.Duration) time.Duration { return max(d, 0).Truncate(time.Millisecond) }

// evict tells a claim's client to give it up, and extends its lease no more. The
// vote stays until the client has given it back or the lease is over: taking it away
// would give the lock to a second holder while the first believes that it holds.
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
	// That a node does not know the claim counts if it votes, and not if it may have
	// forgotten it (N10).
	a.Client, a.Nonce, a.Known, a.Recovering = r.Client, r.Nonce, c != nil, n.recovering(now)
	out.Answers = append(out.Answers, Send{reply, a})
}

// isEvicted is all that such a claim's client is told.
func (n *Node) isEvicted(c *claim) wire.Answer {
	a := n.about(c, wire.Evicted)
	a.By, a.Text = c.evicted.By, c.evicted.Why
	return a
}
