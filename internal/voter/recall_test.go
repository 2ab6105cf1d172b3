package voter

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// The number of recalls of a vote does not depend on how many claims wait or how often
// they ask (N4). Two thousand readers keep their claims and do not hear that writers
// wait, and the writers' refreshes keep coming.
func TestRecallsAreBounded(t *testing.T) {
	const (
		readers, writers = 2000, 20
		ttl              = 10 * time.Second
		span             = 3 * ttl
	)
	cfg := Config{
		Name: "n1", Config: wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 10_000, MaxQueue: 10_000,
	}
	now := wire.Now{Wall: 1_000_000_000}
	n := voter(t, cfg, &now)
	var out Out
	sentAt, recalls := uint64(0), map[uint64][]time.Duration{}
	say := func(client byte, r wire.Request) {
		sentAt++
		r.Client, r.Claim.Instance, r.SentAt = string('a'+rune(client)), uuid.UUID{client}, sentAt
		r.Resource, r.TTL, r.Digest, r.At = "r", ttl, cfg.Digest(), now.Wall
		n.Handle(now, &r, "inbox", &out)
		for _, s := range out.Answers {
			if s.Answer.Kind == wire.Recall {
				recalls[s.Answer.Claim.Seq] = append(recalls[s.Answer.Claim.Seq], now.Mono)
			}
		}
		out.Reset()
	}
	acquire := func(client byte, seq uint64, mode quorum.Mode) {
		say(client, wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: seq}, Mode: mode, Keep: mode == quorum.Shared})
	}
	for seq := range uint64(readers) {
		acquire(0, seq+1, quorum.Shared)
	}
	if n.votes != readers || len(recalls) > 0 {
		t.Fatalf("%d votes, %d are recalled and nobody waits", n.votes, len(recalls))
	}
	began := now.Mono
	for w := range byte(writers) {
		acquire(w+1, 1, quorum.Exclusive)
	}
	if len(recalls) != readers {
		t.Fatalf("%d of %d readers are told at once that a writer waits", len(recalls), readers)
	}
	const ask = 20 * time.Millisecond
	for now.Mono < began+span {
		now.Mono += ask
		now.Wall += ask.Microseconds()
		for w := range byte(writers) {
			say(w+1, wire.Request{Verb: wire.Refresh, Lo: 1, Hi: 1, Live: wire.Runs{{Lo: 1, Hi: 1}}})
		}
		if (now.Mono-began)%(3*time.Second) == 0 {
			say(0, wire.Request{Verb: wire.Refresh, Lo: 1, Hi: readers, Live: wire.Runs{{Lo: 1, Hi: readers}}})
		}
	}
	// Eight in the first third of a lease, and two in each after that.
	const most = 8 + 2*(3*span/ttl-1)
	for seq, at := range recalls {
		if len(at) > int(most) {
			t.Fatalf("claim %d is recalled %d times in %v, at most %d are allowed", seq, len(at), span, most)
		}
		// Lost recalls are repeated: soon at first, and then at intervals as long as the waiting
		// lasts.
		if again := at[1] - began; again > ttl/100 {
			t.Fatalf("claim %d is recalled again after %v", seq, again)
		}
		for i, next := range append(at[1:], now.Mono) {
			if pause := next - at[i]; pause > ttl/3+ask {
				t.Fatalf("claim %d is not recalled for %v", seq, pause)
			}
		}
	}
}

// A new vote is recalled anew, since its client has yielded the one before.
func TestNewVoteIsRecalledAtOnce(t *testing.T) {
	cfg := Config{
		Name: "n1", Config: wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 100,
	}
	now := wire.Now{Wall: 1_000_000_000}
	n := voter(t, cfg, &now)
	var out Out
	sentAt := uint64(0)
	say := func(verb wire.Verb, seq uint64, age int64) (recalled bool) {
		sentAt++
		n.Handle(now, &wire.Request{
			Verb: verb, Client: "a", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, SentAt: sentAt, Node: "n1",
			At: age, TTL: 10 * time.Second, Digest: cfg.Digest(),
		}, "inbox", &out)
		for _, s := range out.Answers {
			recalled = recalled || s.Answer.Kind == wire.Recall && s.Answer.Claim.Seq == 1
		}
		out.Reset()
		return recalled
	}
	say(wire.Acquire, 1, now.Wall)
	for round := range int64(5) {
		if !say(wire.Acquire, uint64(round)+2, now.Wall-1-round) {
			t.Fatalf("round %d: the younger claim's vote is not recalled", round)
		}
		say(wire.Yield, 1, 0)                 // the older claim has the vote
		say(wire.Release, uint64(round)+2, 0) // and now the younger one has it again
	}
}

// readers is a node with one name on which many readers keep claims.
type readers struct {
	*crowd
	recalls map[uint64]int // by claim
}

func newReaders(many int) *readers {
	r := &readers{newCrowd(many + 10), map[uint64]int{}}
	r.node.cfg.MaxQueue = many + 10
	for i := range many {
		r.say("a", wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: uint64(i + 1)}, SentAt: 1, At: r.now.Wall + int64(i), Mode: quorum.Shared, Keep: true})
	}
	return r
}

func (r *readers) write(seq, sentAt uint64) {
	r.say("b", wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: seq}, SentAt: sentAt, At: r.now.Wall, Mode: quorum.Exclusive})
}

func (r *readers) say(client string, q wire.Request) {
	q.Client, q.Claim.Instance, q.Resource, q.TTL, q.Digest = client, uuid.UUID{client[0]}, "r", r.cfg.MaxTTL, r.node.digest
	r.node.Handle(r.now, &q, "inbox", &r.out)
	r.count()
}

func (r *readers) tick() {
	r.node.Tick(r.now, &r.out)
	r.count()
}

func (r *readers) count() {
	for _, s := range r.out.Answers {
		if s.Answer.Kind == wire.Recall {
			r.recalls[s.Answer.Claim.Seq]++
		}
	}
	r.reset()
}

// However many claims have votes on a name, each message examines a bounded number, and
// time brings the rest (N4). So nobody can slow others down by crowding a name.
func TestCrowdedNameIsLookedAtInParts(t *testing.T) {
	const many = 20*lookMost + 7
	c := newReaders(many)
	looked := func(step func()) {
		t.Helper()
		before := c.node.looks
		if step(); c.node.looks-before > 2*lookMost {
			t.Fatalf("one step looks at %d votes", c.node.looks-before)
		}
	}
	began := c.now.Mono
	looked(func() { c.write(1, 1) })
	if len(c.recalls) != lookMost {
		t.Fatalf("%d readers are told at once, want %d", len(c.recalls), lookMost)
	}
	for len(c.recalls) < many {
		if c.now.Mono = c.node.Deadline(); c.now.Mono > began+many/lookMost*lookPause {
			t.Fatalf("%d of %d readers are told after %v", len(c.recalls), many, c.now.Mono-began)
		}
		looked(c.tick)
	}
	// Some go and some come meanwhile, and none that stay are passed over.
	c = newReaders(many)
	looked(func() { c.write(1, 1) })
	sentAt := uint64(1)
	for seq := uint64(1); seq < many; seq += 3 {
		looked(func() {
			c.say("a", wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Seq: seq}})
			sentAt++
			c.say("a", wire.Request{Verb: wire.Acquire, Claim: wire.ClaimID{Seq: seq + 1}, SentAt: sentAt, Mode: quorum.Shared, Held: true, MinFence: 1})
		})
		if seq%100 == 1 {
			c.now.Mono += lookPause
			looked(c.tick)
		}
	}
	for range 2 * many / lookMost {
		c.now.Mono += lookPause
		looked(c.tick)
	}
	for seq := uint64(3); seq < many; seq += 3 {
		if c.recalls[seq] == 0 {
			t.Fatalf("reader %d is not told that a writer waits", seq)
		}
	}
	c.now.Mono += c.cfg.MaxTTL / 30 // all are told again
	looked(func() { c.write(1, 2) })
	for len(c.node.crowded) > 0 {
		c.now.Mono += lookPause
		looked(c.tick)
	}
	before := c.node.looks
	c.write(1, 3)
	c.now.Mono += lookPause
	c.tick()
	if c.node.looks != before || len(c.node.crowded) > 0 {
		t.Error("it goes on looking though all have been told, and it is too early to say it again")
	}
	// When nobody wants a name any more, nothing is left to be examined.
	c.now.Mono += c.cfg.MaxTTL / 30
	looked(func() { c.write(1, 4) })
	for seq := range uint64(many) {
		c.say("a", wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Seq: seq + 1}})
	}
	c.say("b", wire.Request{Verb: wire.Release, Claim: wire.ClaimID{Seq: 1}})
	c.now.Mono += lookPause
	c.tick()
	if len(c.node.crowded) > 0 || len(c.node.resources) > 0 {
		t.Errorf("%d names are left", len(c.node.resources))
	}
}

// voter starts a node that votes.
func voter(t *testing.T, cfg Config, now *wire.Now) *Node {
	t.Helper()
	n := New(cfg, *now, &Saved{}, 0)
	var out Out
	for range 5 {
		n.Tick(*now, &out)
		if out.Probe != nil {
			n.HandleAnswer(*now, &wire.Answer{Kind: wire.Informed, Node: cfg.Name, Incarnation: cfg.Incarnation, Info: &wire.NodeInfo{Nonce: out.Probe.Nonce}}, &out)
		}
		out.Reset()
		if n.voting() {
			return n
		}
		now.Mono += time.Second
		now.Wall += time.Second.Microseconds()
	}
	t.Fatal("it does not vote")
	return nil
}
