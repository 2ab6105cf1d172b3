package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
)

// attacked is a node that votes, of three.
func attacked(t *testing.T) (*Node, *proto.Now) {
	t.Helper()
	cfg := Config{
		Name: "n1", Config: proto.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.New(), FloorKey: uuid.New(), ProbeWait: 300 * time.Millisecond, MaxClaims: 250_000, MaxQueue: 65_536,
	}
	now := &proto.Now{Mono: time.Second, Wall: 1_700_000_000_000_000}
	n := New(cfg, *now, &Saved{}, 0)
	for range 3 {
		var out Out
		n.Tick(*now, &out)
		hear(n, *now, out.Probe, "n1", &out)
		pass(now, cfg.ProbeWait)
	}
	if !n.voting() {
		t.Fatalf("the node is %s", n.State())
	}
	return n, now
}

func pass(now *proto.Now, d time.Duration) {
	now.Mono, now.Wall = now.Mono+d, now.Wall+d.Microseconds()
}

// hear has the node handle a question, and its own answer to it.
func hear(n *Node, now proto.Now, q *proto.Request, client string, out *Out) {
	if q == nil {
		return
	}
	r := *q
	r.Client = client
	var answers Out
	n.Handle(now, &r, "n1's inbox", &answers)
	for i := range answers.Answers {
		n.HandleAnswer(now, &answers.Answers[i].Answer, out)
	}
}

// Whoever may ask info under a name of its own, and knows the node's inbox, has the
// node's answer sent there. The node itself is heard by nobody all the time, and must
// not take that for its own question (N9).
func TestAttackHearsItselfByAnothersQuestion(t *testing.T) {
	n, now := attacked(t)
	for range 1000 {
		var out Out
		pass(now, 100*time.Millisecond)
		n.Tick(*now, &out) // its question is lost
		// Incarnations stand in every answer, and questions are numbered.
		for i := max(n.probe-1, 1); i <= n.probe+1; i++ {
			nonce := fmt.Sprintf("%s/%d", n.cfg.Incarnation, i)
			hear(n, *now, &proto.Request{Verb: proto.Info, Nonce: nonce}, "monitor", &out)
		}
	}
	if n.voting() {
		t.Errorf("nobody heard the node for %v, and it votes", 100*time.Second)
	}
}

// A node slept for an hour and may have been replaced. The first that it reads is
// another node's word that a claim is over, of before it slept: it gives nobody that
// vote (N9).
func TestAttackVotesAfterASleep(t *testing.T) {
	n, now := attacked(t)
	var out Out
	claim := func(seq uint64) proto.ClaimID { return proto.ClaimID{Instance: uuid.UUID{1}, Seq: seq} }
	for seq := range uint64(2) {
		n.Handle(*now, &proto.Request{
			Verb: proto.Acquire, Client: "a", Resource: "x", Claim: claim(seq + 1), Beat: 1, Mode: quorum.Exclusive,
			At: now.Wall, TTL: 30 * time.Second, Digest: n.digest,
		}, "a's inbox", &out)
	}
	now.Wall += time.Hour.Microseconds() // its monotonic clock stood still
	out.Reset()
	n.HandleAnswer(*now, &proto.Answer{
		Kind: proto.Over, Node: "n2", Digest: n.digest, Client: "n1", Incarnation: uuid.New(),
		Over: []proto.ClaimOf{{Client: "a", Claim: claim(1)}},
	}, &out)
	for _, s := range out.Answers {
		if s.Answer.Kind == proto.Granted {
			t.Errorf("a vote is given: %+v", s.Answer)
		}
	}
}

// A client that may use one name fills it with readers that keep their locks, and a
// writer that waits. What it says then of these costs the node as much as before: all
// others wait for it meanwhile.
func TestAttackCostOfOneName(t *testing.T) {
	cost := func(readers int) time.Duration {
		n, now := attacked(t)
		var out Out
		ask := func(seq, beat uint64, mode quorum.Mode, at int64) {
			n.Handle(*now, &proto.Request{
				Verb: proto.Acquire, Client: "h", Resource: "x", Claim: proto.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, Beat: beat, Mode: mode,
				At: at, TTL: 30 * time.Second, Digest: n.digest, Keep: mode == quorum.Shared,
			}, "h's inbox", &out)
			out.Reset()
		}
		for i := range readers {
			ask(uint64(i+2), 1, quorum.Shared, now.Wall+int64(i))
		}
		ask(1, 1, quorum.Exclusive, now.Wall-1)
		start := time.Now()
		for beat := range uint64(proto.MaxBatch) { // as many as go in one message
			ask(1, beat+2, quorum.Exclusive, now.Wall-1)
		}
		return time.Since(start)
	}
	few, many := cost(100), cost(60_000)
	t.Logf("%d requests about a name with 100 readers take %v, with 60,000 readers %v", proto.MaxBatch, few, many)
	if many > 20*time.Millisecond {
		t.Errorf("one message stops the node for %v", many)
	}
}
