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

// session holds the claims of one client instance at this node.
type session struct {
	key    sessionKey
	reply  string // the client's inbox
	claims map[uint64]*claim
	peak   int // largest size of claims, for shrink.Map
}

type claim struct {
	session  *session
	seq      uint64
	res      *resource
	mode     quorum.Mode
	at       int64
	ttl      time.Duration
	sentAt   uint64 // highest seen for this claim (N1)
	minFence uint64
	// short is the highest fence that the node gives, if the claim wants a higher one (N3);
	// else 0.
	short uint64
	held  bool // as its client says
	// token is that with which its client said so. minFence may be higher: a client that has
	// asked for a higher fence may then hold by votes that agree on a lower one (C3).
	token uint64
	// A try is told at once when what is in its way changes, and said is what it was told
	// last while it waits.
	try            bool
	said           *said
	suppressQueued bool // it waits and was not told so, and need not be
	// keep is set if the client keeps the claim between holders, and so is told when others
	// wait.
	keep       bool
	lastRecall recallState // by a recall or a grant
	rangeSize  uint64      // how many fences it wants at a time
	note       string      // for people
	evicted    *Eviction   // not nil: it is to end
	askers     []asker     // nodes that want their vote back and do not reach its client

	voted        bool
	fence        uint64
	reserved     uint64        // number of fences that are its own, from fence on
	since        time.Duration // start of the vote, or of the place in the queue
	grantPending bool          // it asked for the vote that it has while the node did not vote

	deadline time.Duration // end of its lease
	// key is the deadline by which the heap is ordered. Deadlines only grow, so the heap may
	// lag behind them.
	key   time.Duration
	index int // in the heap
}

// recallState is what the client of a claim with a vote was last told of those who wait
// (N4).
type recallState struct {
	serial uint64 // the step in which a grant told it
	behind bool
	next   time.Duration // the same is not repeated before this time
	pause  time.Duration // zero: it was told nothing
}

// due reports whether a recall is due, and if so notes that it is sent. The first
// repetition comes soon, because others wait if a recall was lost. The later ones come at
// growing intervals: a client that has not answered by then is cut off, or heard it and
// need not answer.
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
// exclusive claim or any number of shared ones. Both lists are sorted by order.
type resource struct {
	name   string
	born   uint64 // its number in the roll
	votes  []*claim
	queue  []*claim
	tries  []*claim // those of the queue that are tries, in the same order
	floor  uint64   // highest fence given, as far as the node remembers
	places places   // in the table of floors, which keeps the floor when the record goes (N3)
	serial uint64   // last step at whose end its head recalls
	moved  uint64   // last step in which what is before its tries may have changed

	keepers int // votes of claims that are kept

	// The node examines votes for recall, the youngest first (N4).
	unseen    int           // how many votes are still to be examined
	lookTwice bool          // all must be examined once more, because of a change meanwhile
	next      time.Duration // earliest time for a repeated recall among those examined
	// due is the same for all votes. Before that time there is nothing to recall, unless
	// something changes.
	due     time.Duration
	crowded bool // it is in the node's list of resources to examine later
}

// order compares claims by their place in a queue: those held by votes of other nodes
// first, then by age, then by id. Ids are unique within a client. If another client uses
// the same id, the client names decide.
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
		if i == 0 { // the common case: nothing behind it has to move
			c.res.changed()
			c.res.queue[0] = nil
			c.res.queue = c.res.queue[1:]
			return
		}
		c.res.queue = slices.Delete(c.res.queue, i, i+1)
	}
}

// lookAgain restarts the examination with all votes.
func (r *resource) lookAgain() { r.unseen, r.lookTwice, r.next = len(r.votes), false, math.MaxInt64 }

// changed notes that the last examination of the votes may be out of date.
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

// old holds records for reuse, because each lock and unlock makes and drops one of each
// kind.
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

// forget removes the record of a resource without claims; the table keeps its floor. The
// record itself goes on to be reused with its serial and its crowded flag, because it may
// still be in the lists of this step or a later one.
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

// extend starts the claim's lease anew, at this node's clock (N7). The lease of an
// evicted claim is never extended (N10).
func (n *Node) extend(now wire.Now, c *claim) {
	if c.evicted == nil { //plant:extend-evicted
		c.deadline = now.Mono + c.ttl
	}
}

// few is a number of leases small enough to be moved one by one, and the number of
// records kept for reuse.
const few = 64

// moveAll updates the keys of all leases at once. A refresh gives the same end to all
// claims that it lists. Rebuilding the heap then takes a fraction of the time of moving
// each lease.
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

// within yields the claims numbered lo to hi. It loops over the range or over all claims,
// whichever is smaller.
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

// unknown returns the listed claims that s does not have. A list may name far more claims
// than there are, so the work is proportional to the known ones.
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

// leaseHeap is a min-heap of claims by the end of their leases.
type leaseHeap []*claim

func (h leaseHeap) Len() int { return len(h) }

func (h leaseHeap) Less(i, j int) bool {
	if h[i].key != h[j].key {
		return h[i].key < h[j].key
	}
	return h[i].id().Compare(h[j].id()) < 0 // makes the order deterministic
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
