package voter

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// peers is two voting nodes of three.
type peers struct {
	t     *testing.T
	cfg   wire.Config
	now   wire.Now
	nodes map[string]*Node
	out   Out
	beat  uint64
}

func newPeers(t *testing.T) *peers {
	p := &peers{
		t: t, cfg: wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		now: wire.Now{Wall: 1_000_000_000}, nodes: map[string]*Node{},
	}
	for i, name := range p.cfg.Nodes[:2] {
		cfg := Config{Name: name, Config: p.cfg, Incarnation: uuid.UUID{9, byte(i)}, MaxClaims: 10_000, MaxQueue: 10_000}
		p.nodes[name] = voter(t, cfg, &p.now)
	}
	return p
}

func (p *peers) wait(d time.Duration) {
	p.now.Mono += d
	p.now.Wall += d.Microseconds()
}

func idOf(client string, seq uint64) wire.ClaimOf {
	return wire.ClaimOf{Client: client, Claim: wire.ClaimID{Instance: uuid.UUID{client[0]}, Seq: seq}}
}

// say lets a node hear a request, and returns its question to other nodes.
func (p *peers) say(node, client string, r wire.Request) *wire.Request {
	p.t.Helper()
	p.beat++
	r.Client, r.SentAt = client, p.beat
	if r.Verb != wire.Info {
		r.Claim.Instance = uuid.UUID{client[0]}
		r.Resource, r.TTL, r.Digest = "r", 10*time.Second, p.cfg.Digest()
		if r.At == 0 {
			r.At = p.now.Wall + int64(r.Claim.Seq)
		}
	}
	p.out.Reset()
	p.nodes[node].Handle(p.now, &r, "inbox", &p.out)
	return p.out.Ask
}

func (p *peers) acquire(node, client string, seq uint64, check bool) *wire.Request {
	p.t.Helper()
	return p.say(node, client, wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: seq}, Check: check})
}

func (p *peers) release(node, client string, seq uint64) {
	p.t.Helper()
	p.say(node, client, wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Seq: seq}})
}

// ask lets n2 hear a question, and returns its answer.
func (p *peers) ask(as string, q *wire.Request) *wire.Answer {
	p.t.Helper()
	p.say("n2", as, *q)
	if len(p.out.Answers) == 0 {
		return nil
	}
	a := p.out.Answers[0]
	if len(p.out.Answers) > 1 || a.To != "inbox" || a.Answer.Kind != wire.Over {
		p.t.Fatalf("it answers %+v", p.out.Answers)
	}
	return &a.Answer
}

// tell lets n1 hear another node's answer.
func (p *peers) tell(a wire.Answer) {
	p.out.Reset()
	p.nodes["n1"].HandleAnswer(p.now, &a, &p.out)
}

func (p *peers) has(node, client string, seq uint64) *claim {
	c := idOf(client, seq)
	return p.nodes[node].find(client, c.Claim)
}

// stuck makes n1 keep a vote that its client released, while b waits behind it with n2's
// vote. It returns n1's question.
func (p *peers) stuck() *wire.Request {
	p.t.Helper()
	p.acquire("n1", "a", 1, false)
	p.acquire("n2", "a", 1, false)
	p.release("n2", "a", 1)
	p.acquire("n2", "b", 1, false)
	if q := p.acquire("n1", "b", 1, false); q != nil {
		p.t.Fatalf("it asks %+v though nobody wants that", q)
	}
	q := p.acquire("n1", "b", 1, true)
	if q == nil || q.Verb != wire.Info || q.Client != "n1" || !slices.Equal(q.Over, []wire.ClaimOf{idOf("a", 1)}) {
		p.t.Fatalf("it asks %+v, want whether a's claim is over", q)
	}
	return q
}

// A node believes another node that heard the release, and gives its vote to the claim
// that waits (N11).
func TestReleaseHeardElsewhere(t *testing.T) {
	for _, way := range []string{"release", "refresh", "release of what it does not know"} {
		p := newPeers(t)
		q := p.stuck()
		switch way {
		case "refresh":
			p.acquire("n2", "a", 2, false)
			p.say("n2", "a", wire.Request{Verb: wire.Refresh, Lo: 1, Hi: 2})
			q.Over = append(q.Over, idOf("a", 2))
		case "release of what it does not know":
			p.release("n2", "a", 7)
			q.Over = append(q.Over, idOf("a", 7))
		}
		a := p.ask("n1", q)
		if a == nil || a.Client != "n1" || a.Node != "n2" || !slices.Equal(a.Over, q.Over) {
			t.Fatalf("%s: it says %+v, want that all of %v are over", way, a, q.Over)
		}
		p.tell(*a)
		if p.has("n1", "a", 1) != nil || !p.has("n1", "b", 1).voted {
			t.Errorf("%s: n1 does not vote for who waited", way)
		}
		if len(p.out.Answers) != 1 || p.out.Answers[0].Answer.Kind != wire.Granted || p.out.Answers[0].Answer.Client != "b" {
			t.Errorf("%s: n1 says %+v, want that b has its vote", way, p.out.Answers)
		}
	}
}

// A node does not say that a claim is over unless it knows it: not of a live claim; of
// one whose lease ended, which may be held by votes of other nodes; of one that is
// evicted, which may still be held; of another client's claim with the same id; or of one
// that it never heard of.
func TestNotOverElsewhere(t *testing.T) {
	p := newPeers(t)
	q := p.stuck()
	p.acquire("n2", "d", 1, false)
	p.acquire("n2", "e", 1, false)
	p.wait(5 * time.Second)
	p.acquire("n2", "c", 1, false)
	p.say("n2", "operator", wire.Request{Verb: wire.Evict, Holder: "e", Claim: wire.ClaimID{Seq: 1}})
	p.say("n2", "x", wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Seq: 1}})
	p.wait(6 * time.Second)
	p.nodes["n2"].Tick(p.now, &p.out)
	impostor := idOf("c", 1)
	impostor.Client = "x"
	q.Over = []wire.ClaimOf{idOf("c", 1), idOf("d", 1), idOf("e", 1), idOf("f", 1), impostor}
	if a := p.ask("n1", q); a != nil {
		t.Errorf("it says that %v are over", a.Over)
	}
	if p.has("n2", "c", 1) == nil || p.has("n2", "d", 1) != nil {
		t.Fatal("the test is not what it says")
	}
}

// Only nodes of the same configuration are answered and believed.
func TestWhoMayVouch(t *testing.T) {
	p := newPeers(t)
	q := p.stuck()
	for _, as := range []string{"a", "b", "n2", "n4"} {
		if a := p.ask(as, q); a != nil {
			t.Errorf("%s asks and is told that %v are over", as, a.Over)
		}
	}
	other := *q
	other.Digest = "other"
	if a := p.ask("n1", &other); a != nil {
		t.Errorf("a node of another configuration is told that %v are over", a.Over)
	}
	a := p.ask("n1", q)
	for _, change := range []func(*wire.Answer){
		func(a *wire.Answer) { a.Node = "n4" },
		func(a *wire.Answer) { a.Node = "b" },
		func(a *wire.Answer) { a.Node = "n1" },
		func(a *wire.Answer) { a.Digest = "other" },
		func(a *wire.Answer) { a.Client = "n3" },
		func(a *wire.Answer) { a.Client = "b" },
		func(a *wire.Answer) { a.Kind = wire.Granted },
		func(a *wire.Answer) { a.Over = []wire.ClaimOf{{Client: "b", Claim: idOf("a", 1).Claim}} },
	} {
		changed := *a
		change(&changed)
		p.tell(changed)
		if c := p.has("n1", "a", 1); c == nil || !c.voted {
			t.Fatalf("n1 drops its vote on %+v", changed)
		}
	}
	p.tell(*a)
	if p.has("n1", "a", 1) != nil {
		t.Error("n1 does not take a node's word")
	}
}

// Whatever clients ask for, questions are few and short.
func TestQuestionsAreBounded(t *testing.T) {
	p := newPeers(t)
	for seq := range uint64(100) {
		p.say("n1", "a", wire.Request{Verb: wire.Acquire, Mode: quorum.Shared, Claim: wire.ClaimID{Seq: seq + 1}})
	}
	questions := 0
	asked := func(q *wire.Request) {
		if q == nil {
			return
		}
		questions++
		if len(q.Over) > wire.MaxOver {
			t.Fatalf("a question about %d claims", len(q.Over))
		}
	}
	began := p.now.Mono
	for seq := range uint64(1000) {
		asked(p.acquire("n1", "b", seq+1, true))
		p.wait(100 * time.Microsecond)
		if p.nodes["n1"].Deadline() <= p.now.Mono {
			p.out.Reset()
			p.nodes["n1"].Tick(p.now, &p.out)
			asked(p.out.Ask)
		}
	}
	if most := int((p.now.Mono-began)/overPause) + 1; questions > most || questions < most/2 {
		t.Errorf("%d questions in %v, want about %d and no more", questions, p.now.Mono-began, most)
	}
}

// Claims that are over are dropped at once, waiting ones first, so that no vote goes from
// one to another of them.
func TestManyOverAtOnce(t *testing.T) {
	p := newPeers(t)
	for seq := range uint64(10) {
		p.acquire("n1", "a", seq+1, false)
		p.release("n2", "a", seq+1)
	}
	q := p.acquire("n1", "b", 20, true)
	if q == nil || len(q.Over) != 10 {
		t.Fatalf("it asks %+v, want about all ten that are before b", q)
	}
	p.tell(*p.ask("n1", q))
	if len(p.out.Answers) != 1 || p.out.Answers[0].Answer.Kind != wire.Granted || p.out.Answers[0].Answer.Client != "b" {
		t.Errorf("n1 says %+v, want nothing but that b has its vote", p.out.Answers)
	}
}

// The last claims of a client are remembered, however many there are, and whatever its
// instance is.
func TestLastEndingsAreKnown(t *testing.T) {
	var e ended
	const all, last = 1 << 18, mostEnded
	instance := uuid.New()
	c := func(seq uint64) wire.ClaimOf {
		return wire.ClaimOf{Client: "a", Claim: wire.ClaimID{Instance: instance, Seq: seq}}
	}
	for seq := range uint64(all) {
		e.add("a", c(seq+1).Claim)
	}
	for seq := range uint64(all) {
		if got, want := e.has(c(seq+1)), seq >= all-last; got != want {
			t.Fatalf("claim %d of %d: known %v", seq+1, all, got)
		}
	}
}

// cutOff makes n1 keep a vote for a, which waits and whose client does not hear n1. b is
// older, and waits for that vote. n2 knows both. It returns n1's question.
func (p *peers) cutOff() *wire.Request {
	p.t.Helper()
	p.say("n1", "a", wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: 1}})
	older := wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: 1}, At: p.now.Wall - 1000}
	p.say("n2", "b", older)
	p.acquire("n2", "a", 1, false)
	p.say("n1", "b", older)
	older.Check = true
	q := p.say("n1", "b", older)
	if q == nil || len(q.Over) > 0 || !slices.Equal(q.Recalled, []wire.ClaimOf{idOf("a", 1)}) {
		p.t.Fatalf("it asks %+v, want that a's vote is recalled", q)
	}
	return q
}

// yields lets n2 hear that a yields n1's vote, and returns what n2 passes on.
func (p *peers) yields(client, node string) *wire.Answer {
	p.t.Helper()
	p.say("n2", client, wire.Request{Verb: wire.Yield, Claim: wire.ClaimID{Seq: 1}, Node: node})
	for _, a := range p.out.Answers {
		if a.Answer.Kind == wire.Over {
			return &a.Answer
		}
	}
	return nil
}

// A node that hears a claim's client passes on another node's recall of its vote, and the
// client's yield (N12).
func TestRecallPassedOn(t *testing.T) {
	p := newPeers(t)
	q := p.cutOff()
	if a := p.yields("a", "n1"); a != nil {
		t.Errorf("n2 says %+v, and nobody wanted to know", a)
	}
	p.say("n2", "n1", *q)
	if len(p.out.Answers) != 1 {
		t.Fatalf("n2 says %+v, want a recall", p.out.Answers)
	}
	if a := p.out.Answers[0].Answer; a.Kind != wire.Recall || a.For != "n1" || a.Client != "a" || a.Claim != idOf("a", 1).Claim {
		t.Errorf("n2 says %+v, want that n1 recalls a's claim", a)
	}
	if a := p.yields("a", "n3"); a != nil {
		t.Errorf("n2 tells n1 that a yields to n3: %+v", a)
	}
	a := p.yields("a", "n1")
	if want := []wire.YieldOf{{ClaimOf: idOf("a", 1), SentAt: p.beat}}; a == nil || a.Client != "n1" || !slices.Equal(a.Yielded, want) {
		t.Fatalf("n2 says %+v, want %v", a, want)
	}
	if again := p.yields("a", "n1"); again != nil {
		t.Errorf("n2 goes on to say %+v", again)
	}
	p.tell(*a)
	if c := p.has("n1", "a", 1); c == nil || c.voted || c.sentAt != a.Yielded[0].SentAt || !p.has("n1", "b", 1).voted {
		t.Error("n1 does not take its vote back and give it to who waited")
	}
}

// A late message that is passed on has no effect on a vote that was given or confirmed
// since.
func TestLateYieldPassedOn(t *testing.T) {
	p := newPeers(t)
	p.say("n2", "n1", *p.cutOff())
	a := p.yields("a", "n1")
	p.acquire("n1", "a", 1, false)
	p.tell(*a)
	if c := p.has("n1", "a", 1); !c.voted {
		t.Error("n1 takes a vote back that its client counts")
	}
}

// Recalls are passed on only for nodes of the list, and yields are believed only from
// them.
func TestWhoMayPassOn(t *testing.T) {
	p := newPeers(t)
	q := p.cutOff()
	for _, as := range []string{"a", "b", "n2", "n4"} {
		if p.say("n2", as, *q); len(p.out.Answers) > 0 {
			t.Errorf("%s has a claim recalled: %+v", as, p.out.Answers)
		}
	}
	p.say("n2", "n1", *q)
	if a := p.yields("x", "n1"); a != nil {
		t.Errorf("n2 passes on as a's what another client says: %+v", a)
	}
	a := p.yields("a", "n1")
	for _, change := range []func(*wire.Answer){
		func(a *wire.Answer) { a.Node = "n4" },
		func(a *wire.Answer) { a.Node = "n1" },
		func(a *wire.Answer) { a.Digest = "other" },
		func(a *wire.Answer) { a.Client = "n3" },
		func(a *wire.Answer) { a.Yielded = []wire.YieldOf{{ClaimOf: idOf("c", 1), SentAt: 1 << 40}} },
	} {
		changed := *a
		change(&changed)
		p.tell(changed)
		if !p.has("n1", "a", 1).voted {
			t.Fatalf("n1 takes its vote back on %+v", changed)
		}
	}
}

// Of a claim that is over, a node says so, and passes no recall on.
func TestRecalledIsOver(t *testing.T) {
	p := newPeers(t)
	q := p.cutOff()
	p.release("n2", "a", 1)
	if a := p.ask("n1", q); a == nil || !slices.Equal(a.Over, q.Recalled) {
		t.Fatalf("n2 says %+v, want that %v are over", a, q.Recalled)
	}
}
