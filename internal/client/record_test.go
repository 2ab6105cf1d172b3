package client

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

const recordLease = 12 * time.Second

func recordMembers(names string) (list []wire.Member) {
	for _, n := range strings.Fields(names) {
		list = append(list, wire.Member{Name: n, ID: uuid.NewSHA1(uuid.Nil, []byte(n))})
	}
	return list
}

// chain makes records of one cluster, one after the other. The argument of next is the list,
// or two with a slash between.
type chain struct {
	last wire.Config
	cid  uuid.UUID
}

func newChain(nodes string) *chain {
	return &chain{last: wire.Config{Nodes: strings.Fields(nodes), MaxTTL: recordLease, Skew: time.Second}, cid: uuid.UUID{9}}
}

func (c *chain) next(lists string, change ...func(*wire.EpochRecord)) wire.Config {
	nodes, next, _ := strings.Cut(lists, "/")
	r := &wire.EpochRecord{
		Cluster: "test", CID: c.cid, Epoch: c.last.Epoch() + 1, Prev: c.last.Digest(),
		Nodes: recordMembers(nodes), MaxTTL: recordLease, Skew: time.Second, Next: recordMembers(next),
	}
	if r.Joint() {
		r.NextMaxTTL, r.NextSkew = r.MaxTTL, r.Skew
	}
	for _, f := range change {
		f(r)
	}
	links := c.last.Links
	if len(links) == 0 {
		links = []wire.Link{{Epoch: 0, Digest: c.last.Digest()}}
	}
	links = append(slices.Clone(links), wire.Link{Epoch: r.Epoch, Digest: r.Digest()})
	c.last = wire.RecordConfig(r, links)
	return c.last
}

// mover is a client whose nodes answer as they are told.
type mover struct {
	t    *testing.T
	c    *Client
	now  wire.Now
	out  Out
	all  []wire.Request // sent since the last look
	told []Event
}

func newMover(t *testing.T, cluster wire.Config) *mover {
	m := &mover{t: t, now: wire.Now{Mono: time.Second, Wall: 1_000_000}}
	m.c = New(Config{Name: "a", Instance: uuid.UUID{1}, TTL: recordLease - 2*time.Second, MaxRuns: 4, Cluster: cluster}, m.now)
	return m
}

// drain notes what the client did.
func (m *mover) drain() {
	m.t.Helper()
	if err := m.c.check(); err != nil {
		m.t.Fatal(err)
	}
	m.all = append(m.all, m.out.Requests...)
	m.told = append(m.told, m.out.Events...)
	m.out.Reset()
}

func (m *mover) claim(r Request) *Claim {
	cl := m.c.Claim(m.now, r, &m.out)
	m.drain()
	return cl
}

// pass lets time pass, and does what is due meanwhile.
func (m *mover) pass(d time.Duration) {
	for end := m.now.Mono + d; m.now.Mono < end; {
		step := min(end-m.now.Mono, 500*time.Millisecond)
		if wait, ok := m.c.Wait(m.now); ok {
			step = min(step, max(wait, time.Millisecond))
		}
		m.now.Mono += step
		m.now.Wall += step.Microseconds()
		m.c.Tick(m.now, &m.out)
		m.drain()
	}
}

func (m *mover) move(cluster wire.Config) {
	m.c.SetCluster(m.now, cluster, &m.out)
	m.drain()
}

// answer has nodes answer the last message about the claim, by the client's record.
func (m *mover) answer(cl *Claim, k wire.Kind, nodes string, fence uint64) {
	for _, n := range strings.Fields(nodes) {
		m.say(wire.Answer{Kind: k, Node: n, Fence: fence, SentAt: cl.sentAt, Claim: m.c.id(cl)})
	}
}

func (m *mover) say(a wire.Answer) {
	if a.Digest == "" {
		a.Digest = m.c.Digest()
	}
	a.Client, a.Incarnation = "a", uuid.NewSHA1(uuid.UUID{3}, []byte(a.Node))
	m.c.Handle(m.now, &a, &m.out)
	m.drain()
}

func (m *mover) wantState(when string, cl *Claim, want State) {
	m.t.Helper()
	if cl.State() != want {
		m.t.Errorf("%s: the claim is in state %d, want %d", when, cl.State(), want)
	}
}

// met is the dumb way to see whether the nodes contain a quorum of each list.
func met(r *wire.EpochRecord, mode quorum.Mode, has func(name string) bool) bool {
	for _, list := range [][]wire.Member{r.Nodes, r.Next} {
		n := 0
		for _, m := range list {
			if has(m.Name) {
				n++
			}
		}
		if len(list) > 0 && n < quorum.Size(len(list), mode) {
			return false
		}
	}
	return true
}

// What a client makes of any votes under a record is what the dumb way makes of them: held by
// equal fences in both lists, lost when either list has no quorum left, failed when one list
// cannot have any (E15).
func TestVotesByTwoLists(t *testing.T) {
	for _, lists := range []string{"a b c", "a b c/c d", "a/b", "a b/a b c", "a b/c d", "a b c/a b c"} {
		ch := newChain("x")
		ch.next("x")
		if strings.Contains(lists, "/") {
			ch.next("x/y")
			ch.next("y")
		}
		cluster := ch.next(lists)
		names := cluster.Nodes
		ways := 1
		for range names {
			ways *= 3
		}
		for _, mode := range []quorum.Mode{quorum.Exclusive, quorum.Shared} {
			for way := range ways {
				of := func(name string) int {
					w := way
					for range slices.Index(names, name) {
						w /= 3
					}
					return w % 3
				}
				what := fmt.Sprintf("%s, %v, way %d", lists, mode, way)

				m := newMover(t, cluster)
				cl := m.claim(Request{Resource: "r", Mode: mode})
				sent := cl.sentAt
				for _, n := range names {
					if v := of(n); v > 0 {
						m.say(wire.Answer{Kind: wire.Granted, Node: n, Fence: uint64(v), SentAt: sent, Claim: m.c.id(cl)})
					}
				}
				one := met(cluster.Record, mode, func(n string) bool { return of(n) == 1 })
				two := met(cluster.Record, mode, func(n string) bool { return of(n) == 2 })
				if held := cl.State() == Holding; held != (one || two) || held && (cl.Token() == 1) != one && !two {
					t.Fatalf("%s: held %v with token %d", what, held, cl.Token())
				}

				// The same as times: those of a held claim's votes.
				m = newMover(t, cluster)
				cl = m.claim(Request{Resource: "r", Mode: mode})
				m.answer(cl, wire.Granted, strings.Join(names, " "), 7)
				m.wantState(what, cl, Holding)
				for i := range names {
					cl.votes[i].until = m.c.now + time.Duration(1+of(names[i]))*time.Second
				}
				want := time.Duration(0)
				for s := range 4 {
					if met(cluster.Record, mode, func(n string) bool { return 1+of(n) > s }) {
						want = m.c.now + time.Duration(s+1)*time.Second
					}
				}
				if got := m.c.lostAt(cl); got != want {
					t.Fatalf("%s: lost at %v, want %v", what, got, want)
				}

				// The same as refusals.
				m = newMover(t, cluster)
				cl = m.claim(Request{Resource: "r", Mode: mode})
				for _, n := range names {
					if of(n) == 1 && cl.State() == Waiting {
						m.answer(cl, wire.Refused, n, 0)
					}
				}
				possible := met(cluster.Record, mode, func(n string) bool { return of(n) != 1 })
				if (cl.State() == Waiting) != possible {
					t.Fatalf("%s: after refusals state %d, a quorum is possible: %v", what, cl.State(), possible)
				}

				// The same as places in queues: enough of them, and it need not ask again.
				m = newMover(t, cluster)
				cl = m.claim(Request{Resource: "r", Mode: mode})
				all := true
				for _, n := range names {
					if all = all && of(n) == 1; of(n) == 1 {
						m.say(wire.Answer{Kind: wire.Queued, Node: n, SentAt: cl.sentAt, Claim: m.c.id(cl), Blocker: &wire.Blocker{Client: "b"}})
					}
				}
				if settled := m.c.settled(cl); settled != (!possible || all) {
					t.Fatalf("%s: has its place %v, a quorum is possible: %v", what, settled, possible)
				}
			}
		}
	}
}

// A held claim outlives a move by the number that its votes had left, no more and no less,
// and goes on if a quorum of each list votes for it meanwhile (E17).
func TestGrace(t *testing.T) {
	for _, tt := range []struct {
		votes string // under the new record
		lives bool
	}{
		{"", false},
		{"a b", false}, // a quorum of the old list only
		{"d e", false}, // and of the new one
		{"a b d", false},
		{"a b d e", true},
		{"b c d", true}, // c is in both
	} {
		ch := newChain("a b c")
		m := newMover(t, ch.next("a b c"))
		cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
		m.answer(cl, wire.Granted, "a b", 7)
		m.wantState(tt.votes, cl, Holding)
		m.pass(3 * time.Second) // nobody confirms
		end := m.c.lostAt(cl)
		m.move(ch.next("a b c/c d e"))
		if got := m.c.lostAt(cl); got != end {
			t.Errorf("%q: it stands until %v after the move, before until %v", tt.votes, got, end)
		}
		// With different fences: that matters only for a claim that is not held.
		for i, n := range strings.Fields(tt.votes) {
			m.answer(cl, wire.Granted, n, uint64(100+i))
		}
		m.pass(end - m.now.Mono - time.Millisecond)
		m.wantState(tt.votes+" before the end", cl, Holding)
		if !m.c.HeldAt(m.now, cl) || cl.Token() != 7 {
			t.Errorf("%q: held %v with token %d", tt.votes, m.c.HeldAt(m.now, cl), cl.Token())
		}
		m.pass(2 * time.Millisecond)
		if lives := cl.State() == Holding; lives != tt.lives {
			t.Errorf("%q: it goes on %v, want %v", tt.votes, lives, tt.lives)
		}
		if lost := len(m.told) > 0 && m.told[len(m.told)-1].Kind == Lost; lost == tt.lives {
			t.Errorf("%q: told %v", tt.votes, m.told)
		}
	}
}

// The grace of one move is part of the next: nothing is added by moving often, and nothing is
// lost by it.
func TestGraceOverSeveralMoves(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.next("a b c"))
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	m.answer(cl, wire.Granted, "a b", 7)
	end := m.c.lostAt(cl)
	for _, lists := range []string{"a b c", "a b c/d", "d", "d/a"} {
		m.pass(time.Second)
		m.move(ch.next(lists))
		if got := m.c.lostAt(cl); got != end {
			t.Errorf("after %s it stands until %v, want %v", lists, got, end)
		}
	}
	m.answer(cl, wire.Granted, "a d", 9)
	later := m.c.lostAt(cl)
	m.move(ch.next("a"))
	if got := m.c.lostAt(cl); later <= end || got != later {
		t.Errorf("it stands until %v, before the move until %v, at first until %v", got, later, end)
	}
}

// At a move a client asks for all claims at once: first for the held ones, which say so and
// with which token, then for the others with their age. It repeats that until a quorum of the
// new record holds the claim.
func TestMoveAsksAtOnce(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.last)
	w := m.claim(Request{Resource: "w", Mode: quorum.Exclusive, At: 5})
	h := m.claim(Request{Resource: "h", Mode: quorum.Exclusive})
	m.answer(h, wire.Granted, "a b", 7)
	m.all = nil
	m.pass(time.Second)
	m.all = nil
	m.move(ch.next("a b c"))
	if len(m.all) != 2 {
		t.Fatalf("at the move it sends %+v", m.all)
	}
	first, second := m.all[0], m.all[1]
	if first.Resource != "h" || !first.Held || first.MinFence != 7 || first.Node != "" || first.Digest != ch.last.Digest() {
		t.Errorf("first it asks %+v", first)
	}
	if second.Resource != "w" || second.Held || second.At != 5 || second.Digest != ch.last.Digest() {
		t.Errorf("then it asks %+v", second)
	}
	asks := func() (n int) {
		for _, r := range m.all {
			if r.Resource == "h" && r.Verb == wire.Acquire && r.Held {
				n++
			}
		}
		return n
	}
	m.answer(h, wire.Granted, "a", 8) // too few
	m.pass(2 * time.Second)
	if n := asks(); n < 3 {
		t.Errorf("it asks %d times in 2s", n)
	}
	m.answer(h, wire.Granted, "b", 8)
	m.all = nil
	m.pass(2 * time.Second)
	if n := asks(); n > 0 {
		t.Errorf("it asks %d times more when it has a quorum", n)
	}
	m.wantState("at the end", w, Waiting)
}

// Answers to messages of before a move do not make a claim held, under whatever digest they
// come (E17): a fence from before the floor of the record might win.
func TestNothingOfBeforeHelps(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.last)
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	before := cl.sentAt
	m.answer(cl, wire.Granted, "a", 7)
	m.move(ch.next("a b c"))
	if n := m.c.Votes(cl); n != 0 {
		t.Errorf("%d votes of before stand", n)
	}
	for _, n := range []string{"a", "b", "c"} {
		m.say(wire.Answer{Kind: wire.Granted, Node: n, Fence: 7, SentAt: before, Claim: m.c.id(cl)})
	}
	m.wantState("late votes", cl, Waiting)
	m.answer(cl, wire.Granted, "a b", 9)
	m.wantState("votes under the record", cl, Holding)
	if cl.Token() != 9 {
		t.Errorf("token %d", cl.Token())
	}
}

// Votes under another record do not count, and neither do those of nodes in no list (E15).
func TestOtherRecordsDoNotCount(t *testing.T) {
	ch := newChain("a b c")
	simple := ch.next("a b c")
	joint := ch.next("a b c/c d e")
	m := newMover(t, joint)
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	for _, n := range joint.Nodes {
		m.say(wire.Answer{Kind: wire.Granted, Node: n, Fence: 7, SentAt: cl.sentAt, Claim: m.c.id(cl), Digest: simple.Digest()})
	}
	m.answer(cl, wire.Granted, "a b x y z", 7)
	m.wantState("votes of others", cl, Waiting)
	m.answer(cl, wire.Granted, "c d", 7)
	m.wantState("votes of members", cl, Holding)
}

// What is held by one cluster is not carried into another of the same names, nor back into an
// earlier record (E16, E17).
func TestForeignRecordCarriesNothing(t *testing.T) {
	own, other := newChain("a b c"), newChain("a b c")
	other.cid = uuid.UUID{8}
	base := own.last
	e1 := own.next("a b c")
	e2 := own.next("a b c/c d")
	other.next("a b c")
	other.next("a b c/c d")
	foreign := other.next("c d")
	forged := wire.RecordConfig(foreign.Record, append(slices.Clone(e2.Links), wire.Link{Epoch: 3, Digest: foreign.Digest()}))
	gap := wire.RecordConfig(own.next("c d").Record, own.last.Links[3:])
	for _, tt := range []struct {
		what     string
		from, to wire.Config
		carries  bool
	}{
		{"the next one", e1, e2, true},
		{"one later", e1, own.last, true},
		{"from epoch 0", base, e1, true},
		{"from epoch 0, later", base, e2, true},
		{"another cluster", e1, foreign, false},
		{"another cluster with the history of this one", e2, forged, false},
		{"a history that does not go so far", e1, gap, false},
		{"back", e2, e1, false},
		{"back to epoch 0", e1, base, false},
		{"another list at epoch 0", base, wire.Config{Nodes: []string{"a", "b"}, MaxTTL: recordLease, Skew: time.Second}, false},
		{"another first list", wire.Config{Nodes: []string{"a", "b"}, MaxTTL: recordLease, Skew: time.Second}, e1, false},
	} {
		m := newMover(t, tt.from)
		cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
		m.answer(cl, wire.Granted, strings.Join(tt.from.Nodes, " "), 7)
		m.wantState(tt.what, cl, Holding)
		w := m.claim(Request{Resource: "w", Mode: quorum.Exclusive})
		m.move(tt.to)
		if carries := cl.State() == Holding; carries != tt.carries {
			t.Errorf("%s: the claim is held on: %v", tt.what, carries)
		}
		m.wantState(tt.what, w, Waiting)
	}
}

// A client lowers its lease to what a record allows, and never raises it again: nodes extend a
// claim by the lease that it was made with (E18).
func TestLeaseIsLoweredAndNotRaised(t *testing.T) {
	ch := newChain("a")
	m := newMover(t, ch.next("a"))
	h := m.claim(Request{Resource: "h", Mode: quorum.Exclusive})
	m.answer(h, wire.Granted, "a", 7)
	old := m.c.lostAt(h)
	shorter := func(r *wire.EpochRecord) { r.NextMaxTTL, r.NextSkew = 3*time.Second, time.Second }
	m.all = nil
	m.move(ch.next("a/a", shorter))
	if r := m.all[0]; r.TTL != 3*time.Second {
		t.Errorf("it asks for %v", r.TTL)
	}
	m.answer(h, wire.Granted, "a", 7)
	sent := time.Duration(h.sentAt) * time.Microsecond
	if got := h.votes[0].until; got != sent+3*time.Second-wire.Margin(3*time.Second) {
		t.Errorf("a vote stands until %v, asked for at %v", got, sent)
	}
	if got := m.c.lostAt(h); got != old {
		t.Errorf("the votes of before stand until %v, want %v", got, old)
	}
	if wait, _ := m.c.Wait(m.now); wait > time.Second {
		t.Errorf("it refreshes in %v", wait)
	}
	m.all = nil
	m.move(ch.next("a")) // rolled back
	if r := m.all[0]; r.TTL != 3*time.Second {
		t.Errorf("later it asks for %v", r.TTL)
	}
}

// A held claim tells the token of its present holder, also when it wants tokens for the next ones,
// and when tokens that it wanted before have moved on.
func TestHolderTokenIsTold(t *testing.T) {
	m := newMover(t, newChain("a b c").last)
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	m.answer(cl, wire.Granted, "a b", 100)
	told := func(do func()) (token, want uint64) {
		t.Helper()
		m.all = nil
		do()
		m.drain()
		for _, r := range m.all {
			if r.Verb == wire.Acquire && r.Held {
				return cmp.Or(r.Token, r.MinFence), r.MinFence
			}
		}
		t.Fatalf("it does not say that it is held: %+v", m.all)
		return 0, 0
	}
	if token, want := told(func() { m.c.Keep(m.now, cl, &m.out) }); token != 100 || want != 101 {
		t.Errorf("kept: it tells token %d and wants %d", token, want)
	}
	granted := func(nodes string, fence uint64) {
		for _, n := range strings.Fields(nodes) {
			m.say(wire.Answer{Kind: wire.Granted, Node: n, Fence: fence, RangeSize: firstRange, SentAt: cl.sentAt, Claim: m.c.id(cl)})
		}
	}
	// The nodes disagree, so the tokens that it gets lie far above the holder's.
	if token, want := told(func() { granted("a", 101); granted("b", 5000); granted("a", 101) }); token != 100 || want != 5000 {
		t.Errorf("after answers that differ: it tells token %d and wants %d", token, want)
	}
	granted("a b", 5000)
	again := func() { m.answer(cl, wire.Recall, "c", 0) }
	if token, _ := told(again); token != 100 {
		t.Errorf("with tokens for others: it tells token %d", token)
	}
	if got, ok := m.c.Next(m.now, cl, &m.out); !ok || got != 5000 {
		t.Fatalf("token %d, %v", got, ok)
	}
	if token, _ := told(again); token != 5000 {
		t.Errorf("passed on: it tells token %d", token)
	}
}

// Tokens in stock outlive a move. More come from quorums of both lists only, and so does the
// knowledge that the nodes know that the claim is kept (E18).
func TestKeptClaimMoves(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.next("a b c"))
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive, Keep: true})
	spans := func(nodes string, fence uint64) {
		for _, n := range strings.Fields(nodes) {
			m.say(wire.Answer{Kind: wire.Granted, Node: n, Fence: fence, RangeSize: firstRange, SentAt: cl.sentAt, Claim: m.c.id(cl)})
		}
	}
	spans("a b", 100)
	if !cl.Kept() {
		t.Fatal("it is not kept")
	}
	m.move(ch.next("a b c/c d e"))
	if cl.Kept() {
		t.Error("after the move nobody may know that it is kept")
	}
	next := func() uint64 {
		token, ok := m.c.Next(m.now, cl, &m.out)
		m.drain()
		if !ok {
			return 0
		}
		return token
	}
	for want := uint64(101); want < 100+firstRange; want++ {
		if got := next(); got != want {
			t.Fatalf("token %d, want %d", got, want)
		}
	}
	if got := next(); got != 0 {
		t.Fatalf("token %d, and the stock is empty", got)
	}
	from := cl.requestedFrom
	spans("a b", from)
	if got := next(); got != 0 || cl.Kept() {
		t.Errorf("token %d by the old list alone, kept %v", got, cl.Kept())
	}
	spans("d e", from)
	if got := next(); got != from || !cl.Kept() {
		t.Errorf("token %d, want %d, kept %v", got, from, cl.Kept())
	}

	// Tokens that were asked for when the record came are asked for under the new one.
	for cl.requestedFrom == 0 {
		next()
	}
	m.all = nil
	m.move(ch.next("c d e"))
	if r := m.all[0]; r.RangeSize == 0 || r.MinFence != cl.requestedFrom || cl.requestedFrom == 0 {
		t.Errorf("it asks %+v", r)
	}
}

// Under a record, a node that had not voted since the move is of this cluster, and its vote
// counts, whatever message it answers. One that comes back without its memory proves nothing
// (C13).
func TestNewVotesUnderARecord(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.last)
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	m.answer(cl, wire.Granted, "a b", 7)
	m.move(ch.next("a b c"))
	m.pass(time.Second)
	m.answer(cl, wire.Granted, "a b", 8)
	if n := m.c.Votes(cl); n != 2 || cl.moved {
		t.Errorf("%d votes count, still moving %v", n, cl.moved)
	}
	m.c.Handle(m.now, &wire.Answer{
		Kind: wire.Granted, Node: "a", Incarnation: uuid.UUID{77}, Digest: m.c.Digest(), Client: "a", Claim: m.c.id(cl), Fence: 9, SentAt: cl.sentAt,
	}, &m.out)
	if v := cl.votes[0]; v.unproven == nil || v.fence != 8 {
		t.Errorf("the vote of a new life counts at once: %+v", v)
	}
}

// Epoch 0 has no cluster id, and another cluster may have begun with the same list. So what was
// held then is held under a record only with a node that voted for it then (E17).
func TestHeldAtEpochZero(t *testing.T) {
	for _, tt := range []struct {
		what   string
		voters string // that are as they were
		holds  bool
	}{
		{"the nodes of before", "a b", true},
		{"one node of before and others", "a", true},
		{"another cluster", "", false},
	} {
		ch := newChain("a b c")
		m := newMover(t, ch.last)
		cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
		m.answer(cl, wire.Granted, "a b", 7)
		m.move(ch.next("a b c"))
		for range 10 {
			m.pass(3 * time.Second)
			if cl.State() != Holding {
				break
			}
			for _, n := range []string{"a", "b", "c"} {
				life := uuid.NewSHA1(uuid.UUID{3}, []byte(n))
				if !strings.Contains(tt.voters, n) {
					life[0]++
				}
				m.c.Handle(m.now, &wire.Answer{
					Kind: wire.Granted, Node: n, Incarnation: life, Digest: m.c.Digest(), Client: "a", Claim: m.c.id(cl), Fence: 8, SentAt: cl.sentAt,
				}, &m.out)
				m.drain()
			}
		}
		if holds := cl.State() == Holding; holds != tt.holds {
			t.Errorf("%s vote under the record: held after three leases: %v", tt.what, holds)
		}
		if tt.holds && m.c.Votes(cl) != 3 {
			t.Errorf("%s: %d votes count", tt.what, m.c.Votes(cl))
		}
	}
}

// A digest that is new causes a query at once, any other one a query in time, and that of a
// record that the cluster has left none (E16).
func TestOtherDigests(t *testing.T) {
	ch := newChain("a b c")
	past := ch.last.Digest()
	m := newMover(t, ch.next("a b c"))
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	ask := func(node, digest string) (ask, now bool) {
		m.c.Handle(m.now, &wire.Answer{Kind: wire.Queued, Node: node, Digest: digest, Client: "a", Claim: m.c.id(cl), SentAt: cl.sentAt}, &m.out)
		ask, now = m.out.AskInfo, m.out.AskNow
		m.out.Reset()
		return ask, now
	}
	if a, n := ask("a", past); a || n {
		t.Error("it asks because a node is behind")
	}
	for _, node := range []string{"a", "x"} {
		digest := "000000000000000" + node
		if a, n := ask(node, digest); !a || !n {
			t.Errorf("a new digest of %s: asks %v, now %v", node, a, n)
		}
		if a, n := ask(node, digest); !a || n {
			t.Errorf("the same digest of %s: asks %v, now %v", node, a, n)
		}
	}
	at := 0
	for i := range 100 {
		if _, n := ask("b", fmt.Sprintf("%016x", 100+i)); n {
			at++
		}
	}
	if at != mostOthers-2 {
		t.Errorf("a node that shows another digest each time causes %d queries", at)
	}
	m.move(ch.next("a b c/d"))
	if _, n := ask("b", "00000000000000ff"); !n {
		t.Error("after a move it does not ask at once")
	}
}

// A claim that is evicted is not asked for at nodes that do not know that (N10).
func TestEvictedClaimStaysBehind(t *testing.T) {
	ch := newChain("a b c")
	m := newMover(t, ch.last)
	cl := m.claim(Request{Resource: "r", Mode: quorum.Exclusive})
	cl.LeaveRelease()
	m.answer(cl, wire.Granted, "a b c", 7)
	m.say(wire.Answer{Kind: wire.Evicted, Node: "a", SentAt: cl.sentAt, Claim: m.c.id(cl), By: "x"})
	end := m.c.lostAt(cl)
	m.all = nil
	m.move(ch.next("a b c"))
	m.pass(4 * time.Second) // and one refresh
	var unknown wire.Runs
	m.say(wire.Answer{Kind: wire.Refreshed, Node: "b", SentAt: cl.sentAt, Claim: wire.ClaimID{Instance: uuid.UUID{1}}, Lo: 1, Hi: 1, Unknown: unknown.Add(1)})
	m.pass(end - m.now.Mono + time.Second)
	for _, r := range m.all {
		if r.Verb == wire.Acquire {
			t.Fatalf("it asks %+v", r)
		}
	}
	m.wantState("at the end", cl, Unreleased)
}

// An eviction is over when quorums of both lists do not have the claim, and cannot come to
// that when one list has it (N10).
func TestDepartureByTwoLists(t *testing.T) {
	ch := newChain("a b c")
	ch.next("a b c")
	cluster := ch.next("a b c/c d e")
	for _, tt := range []struct {
		gone, having  string
		over, decided bool
	}{
		{"a b", "", false, false},
		{"d e", "", false, false},
		{"a c", "", false, false},
		{"a c d", "", true, true},
		{"a b d e", "c", true, true},
		{"a", "b", false, false},
		{"", "a b", false, true},
		{"a b", "d e", false, true},
	} {
		d := NewDeparture(cluster, "n")
		for _, n := range strings.Fields(tt.gone + " " + tt.having) {
			d.Hear(&wire.Answer{Kind: wire.Evicting, Nonce: "n", Digest: cluster.Digest(), Node: n, Known: strings.Contains(tt.having, n)})
		}
		if d.Over() != tt.over || d.Decided() != tt.decided {
			t.Errorf("gone %q, having %q: over %v, decided %v", tt.gone, tt.having, d.Over(), d.Decided())
		}
	}
}
