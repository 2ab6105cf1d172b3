package voter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// attacked returns a voting node of three.
func attacked(t *testing.T) (*Node, *wire.Now) {
	t.Helper()
	cfg := Config{
		Name: "n1", Config: wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 30 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.New(), FloorKey: uuid.New(), ProbeWait: 300 * time.Millisecond, MaxClaims: 250_000, MaxQueue: 65_536,
	}
	now := &wire.Now{Mono: time.Second, Wall: 1_700_000_000_000_000}
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

func pass(now *wire.Now, d time.Duration) {
	now.Mono, now.Wall = now.Mono+d, now.Wall+d.Microseconds()
}

// hear makes the node handle a question, and its own answer to it.
func hear(n *Node, now wire.Now, q *wire.Request, client string, out *Out) {
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

// An attacker who may ask info under a name of its own, and knows the node's inbox,
// directs the node's answer there. Nobody has heard the node's own question, and the node
// must not take the answer for proof that somebody did (N9).
func TestHearsItselfByAnothersQuestion(t *testing.T) {
	n, now := attacked(t)
	for range 1000 {
		var out Out
		pass(now, 100*time.Millisecond)
		n.Tick(*now, &out) // its question is lost
		// Incarnations are in every answer, and questions are numbered.
		for i := max(n.probe-1, 1); i <= n.probe+1; i++ {
			nonce := fmt.Sprintf("%s/%d", n.cfg.Incarnation, i)
			hear(n, *now, &wire.Request{Verb: wire.Info, Nonce: nonce}, "monitor", &out)
		}
	}
	if n.voting() {
		t.Errorf("nobody heard the node for %v, and it votes", 100*time.Second)
	}
}

// A node slept for an hour and may have been replaced. The first message that it reads is
// another node's word, from before the sleep, that a claim is over. It gives that vote to
// nobody (N9).
func TestVotesAfterASleep(t *testing.T) {
	n, now := attacked(t)
	var out Out
	claim := func(seq uint64) wire.ClaimID { return wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq} }
	for seq := range uint64(2) {
		n.Handle(*now, &wire.Request{
			Verb: wire.Acquire, Client: "a", Resource: "x", Claim: claim(seq + 1), SentAt: 1, Mode: quorum.Exclusive,
			At: now.Wall, TTL: 30 * time.Second, Digest: n.digest,
		}, "a's inbox", &out)
	}
	now.Wall += time.Hour.Microseconds() // its monotonic clock stood still
	out.Reset()
	n.HandleAnswer(*now, &wire.Answer{
		Kind: wire.Over, Node: "n2", Digest: n.digest, Client: "n1", Incarnation: uuid.New(),
		Over: []wire.ClaimOf{{Client: "a", Claim: claim(1)}},
	}, &out)
	for _, s := range out.Answers {
		if s.Answer.Kind == wire.Granted {
			t.Errorf("a vote is given: %+v", s.Answer)
		}
	}
}
