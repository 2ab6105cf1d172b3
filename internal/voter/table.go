package voter

import (
	"cmp"
	"container/heap"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/shrink"
	"github.com/qlock/qlock/internal/wire"
)

type sessionKey struct {
	client   string
	instance uuid.UUID
}

// session is what one client instance has here.
type session struct {
	key    sessionKey
	reply  string // its inbox
	claims map[uint64]*claim
	peak   int // of claims, for shrink.Map
}

type claim struct {
	session        *session
	seq            uint64
	res            *resource
	mode           quorum.Mode
	at             int64
	ttl            time.Duration
	sentAt         uint64 // highest seen for this claim (N1)
	minFence       uint64
	short          uint64      // it wanted more than the node gives, which was so much (N3); 0: it did not
	held           bool        // says its client
	try            bool        // it is told at once when what is in its way changes
	said           *said       // of a try that waits: what it was told last
	suppressQueued bool        // it waits, was not told so, and need not be
	keep           bool        // its client keeps it between holders, and is told when others wait
	lastRecall     recallState // by a recall, or when it was granted
	rangeSize      uint64      // fences that it wants at a time
	note           string      // for people
	evicted        *Eviction   // it is to end
	askers         []asker     // nodes that want their votes for it back, and do not reach its client

	voted        bool
	fence        uint64
	reserved     uint64        // fences from that on
	since        time.Duration // of the vote, or of its place in the queue
	grantPending bool          // it asked for the vote that it has while the node did not vote

	deadline time.Duration // end of its lease
	key      time.Duration // deadline when it was last placed in the heap; deadlines only grow, so the heap may lag behind them
	index    int           // in the heap
}

// recallState is what a claim with the vote was told last of those who wait (N4).
type recallState struct {
	serial uint64 // the step in which its granted said so
	behind bool
	next   time.Duration // it is not told the same again before that
	pause  time.Duration // zero: it was told nothing
}

// due reports whether a recall is due, and notes that it is sent. The first repetition
// comes soon, since what was lost keeps others waiting. The next ones come ever later:
// what does not answer by then is cut off, or was told and need not answer.
func (t *recallState) due(now, ttl time.Duration, behind bool) bool {
	switch {
	case t.pause == 0 || t.behind != behind:
		t.pause = max(ttl/500, time.Microsecond)
	case now < t.next:
		return false //plant:recall-paced
	default:
		t.pause = min(2*t.pause, max(ttl/3, time.Microsecond))
	}
	t.behind, t.next = behind, now+t.pause
	return true
}

func (c *claim) id() wire.ClaimID {
	return wire.ClaimID{Instance: c.session.key.instance, Seq: c.seq}
}

// resource is the record of a name with votes or a queue. votes holds either one
// exclusive claim or any number of shared ones; both lists are in order of age.
type resource struct {
	name   string
	born   uint64 // its place in the roll
	votes  []*claim
	queue  []*claim
	tries  []*claim // those of the queue that are tries, in the same order
	floor  uint64   // the highest fence given, as far as the node remembers
	places places   // in the table of floors, where that lives on (N3)
	serial uint64   // last step at whose end its head recalls
	moved  uint64   // last step in which what is before its tries may have changed

	keepers int // votes of claims that are kept

	// Votes are looked at whether they are to be recalled, the youngest first (N4).
	unseen    int           // so many are left
	lookTwice bool          // and then all again: something changed meanwhile
	next      time.Duration // when the first of those that were looked at is to be recalled again
	due       time.Duration // the same, of all: before that there is nothing to be found, if nothing changes
	crowded   bool          // it is in the node's list of those that are looked at later
}

// order is the order of queues: what is held elsewhere first, then by age, then
// by id. No two claims of one client share an id; what another client calls by the
// same one is told apart by the name.
func order(a, b *claim) int {
	if a.held != b.held {
		if a.held {
			return -1
		}
		return 1
	}
	if a.at != b.at {
		if a.at < b.at {
			return -1
		}
		return 1
	}
	if c := a.id().Compare(b.id()); c != 0 {
		return c
	}
	return cmp.Compare(a.session.key.client, b.session.key.client)
}

func (n *Node) find(client string, id wire.ClaimID) *claim { //plant:find
	if s := n.sessions[sessionKey{client, id.Instance}]; s != nil {
		return s.claims[id.Seq]
	}
	return nil
}

func (n *Node) enqueue(now wire.Now, c *claim) {
	i, _ := slices.BinarySearchFunc(c.res.queue, c, order)
	c.res.queue = slices.Insert(c.res.queue, i, c)
	if i == 0 {
		c.res.changed()
	}
	c.since = now.Mono
	if c.try {
		i, _ := slices.BinarySearchFunc(c.res.tries, c, order)
		c.res.tries = slices.Insert(c.res.tries, i, c)
	}
	n.change(c.res)
}

func (n *Node) dequeue(c *claim) {
	if c.try {
		if i, ok := slices.BinarySearchFunc(c.res.tries, c, order); ok {
			c.res.tries = slices.Delete(c.res.tries, i, i+1)
		}
	}
	n.change(c.res)
	if i, ok := slices.BinarySearchFunc(c.res.queue, c, order); ok {
		if i == 0 { // the common case: no move of all that wait behind
			c.res.changed()
			c.res.queue[0] = nil
			c.res.queue = c.res.queue[1:]
			return
		}
		c.res.queue = slices.Delete(c.res.queue, i, i+1)
	}
}

// lookAgain begins to look at all votes.
func (r *resource) lookAgain() { r.unseen, r.lookTwice, r.next = len(r.votes), false, math.MaxInt64 }

// changed notes that what was found before, looking at the votes, may be so no more.
func (r *resource) changed() { r.due, r.lookTwice = 0, r.unseen > 0 }

func (r *resource) addVote(c *claim) {
	i, _ := slices.BinarySearchFunc(r.votes, c, order)
	r.votes = slices.Insert(r.votes, i, c)
	if i < r.unseen {
		r.unseen++
	}
	r.changed()
}

func (r *resource) removeVote(c *claim) bool {
	i, ok := slices.BinarySearchFunc(r.votes, c, order)
	if ok {
		r.votes = slices.Delete(r.votes, i, i+1)
		if i < r.unseen {
			r.unseen--
		}
	}
	return ok
}

func (n *Node) unvote(c *claim) {
	if c.res.removeVote(c) {
		c.res.keepers -= keeper(c)
		n.change(c.res)
	}
	c.voted, c.fence, c.reserved, c.grantPending, c.lastRecall = false, 0, 0, false, recallState{}
	n.votes--
}

func (n *Node) add(now wire.Now, c *claim) {
	s := c.session
	if len(s.claims) == 0 {
		n.sessions[s.key] = s
	}
	s.claims[c.seq] = c
	n.perClient[s.key.client]++
	c.deadline = now.Mono + c.ttl
	heap.Push(&n.leases, c)
}

func (n *Node) remove(c *claim) {
	s := c.session
	heap.Remove(&n.leases, c.index)
	delete(s.claims, c.seq)
	s.claims = shrink.Map(s.claims, &s.peak)
	if len(s.claims) == 0 {
		delete(n.sessions, s.key)
		n.sessions = shrink.Map(n.sessions, &n.peaks.sessions)
		n.old.sessions.put(s)
	}
	if n.perClient[s.key.client]--; n.perClient[s.key.client] == 0 {
		delete(n.perClient, s.key.client)
		n.perClient = shrink.Map(n.perClient, &n.peaks.clients)
	}
}

// old is records that are over and serve the next ones: a lock that is taken and
// given back makes and drops one of each.
type old struct {
	sessions  pool[session]
	resources pool[resource]
	claims    pool[claim]
}

type pool[T any] []*T

func (p *pool[T]) get() *T {
	last := len(*p) - 1
	if last < 0 {
		return new(T)
	}
	x := (*p)[last]
	*p = (*p)[:last]
	return x
}

func (p *pool[T]) put(x *T) {
	if len(*p) < few {
		*p = append(*p, x)
	}
}

func (n *Node) newSession(key sessionKey) *session {
	s := n.old.sessions.get()
	if s.claims == nil {
		s.claims = map[uint64]*claim{}
	}
	s.key, s.reply = key, ""
	return s
}

func (n *Node) newResource(name string) *resource {
	res := n.old.resources.get()
	res.name, res.places = name, n.floors.of(name)
	res.floor = n.floors.get(res.places)
	return res
}

func (n *Node) newClaim(c claim) *claim {
	made := n.old.claims.get()
	*made = c
	return made
}

// forget is for a resource that nobody wants; its floor lives on in the table. Its
// record keeps its serial, and whether it is crowded: it may be among those of this step,
// or of a later one.
func (n *Node) forget(res *resource) {
	n.floors.raise(res.places, res.floor) //plant:floor-kept
	delete(n.resources, res.name)
	n.roll.remove(res)
	n.resources = shrink.Map(n.resources, &n.peaks.resources)
	if res.queue = nil; cap(res.votes) > few {
		res.votes = nil
	}
	res.tries, res.unseen, res.lookTwice, res.due = nil, 0, false, 0
	n.old.resources.put(res)
}

// extend begins the claim's lease anew, by this node's clock, from now (N7); not that
// of a claim that is evicted (N10).
func (n *Node) extend(now wire.Now, c *claim) {
	if c.evicted == nil { //plant:extend-evicted
		c.deadline = now.Mono + c.ttl
	}
}

// few is what is not worth more care: leases to be looked at one by one, records to
// be kept.
const few = 64

// moveAll does for all claims what is else done for each whose old end is reached: a
// refresh has given one end to all that it lists, and in this way the heap has it in a
// fraction of the time.
func (n *Node) moveAll() {
	n.moved = 0
	for _, c := range n.leases {
		c.key = c.deadline
	}
	heap.Init(&n.leases)
}

func (n *Node) expire(now wire.Now, out *Out) {
	for len(n.leases) > 0 && n.leases[0].key <= now.Mono {
		c := n.leases[0]
		if c.deadline > now.Mono {
			c.key = c.deadline
			heap.Fix(&n.leases, 0)
			if n.moved++; n.moved > few+len(n.leases)/16 {
				n.moveAll()
			}
			continue
		}
		n.drop(now, c, 0, out) //plant:expired
		n.counts.Expired++
	}
}

// within yields the claims from lo to hi, by whichever way is shorter.
func (s *session) within(lo, hi uint64) iter.Seq2[uint64, *claim] {
	return func(yield func(uint64, *claim) bool) {
		if hi < lo {
			return
		}
		if hi-lo < uint64(len(s.claims)) {
			for seq := lo; seq <= hi; seq++ {
				if c := s.claims[seq]; c != nil && !yield(seq, c) {
					return
				}
			}
			return
		}
		for seq, c := range s.claims {
			if seq >= lo && seq <= hi && !yield(seq, c) {
				return
			}
		}
	}
}

// unknown returns what of the listed claims s does not have. A list may name far
// more claims than there are, so the work goes by what is known, not by what is
// named.
func (s *session) unknown(live wire.Runs) wire.Runs {
	if s == nil {
		return live
	}
	known := slices.Sorted(maps.Keys(s.claims))
	var out wire.Runs
	for _, run := range live {
		lo := run.Lo
		i, _ := slices.BinarySearch(known, lo)
		for ; i < len(known) && known[i] <= run.Hi; i++ {
			if known[i] > lo {
				out = append(out, wire.Run{Lo: lo, Hi: known[i] - 1})
			}
			lo = known[i] + 1
		}
		if lo <= run.Hi {
			out = append(out, wire.Run{Lo: lo, Hi: run.Hi})
		}
	}
	return out
}

func (s *session) hear(reply string) {
	if reply != "" {
		s.reply = reply
	}
}

// leaseHeap orders claims by the end of their leases.
type leaseHeap []*claim

func (h leaseHeap) Len() int { return len(h) }

func (h leaseHeap) Less(i, j int) bool {
	if h[i].key != h[j].key {
		return h[i].key < h[j].key
	}
	return h[i].id().Compare(h[j].id()) < 0 // the machine must not depend on map order
}

func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *leaseHeap) Push(x any) {
	c := x.(*claim)
	c.index, c.key = len(*h), c.deadline
	*h = append(*h, c)
}

func (h *leaseHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = shrink.Slice(old[:len(old)-1])
	return c
}
