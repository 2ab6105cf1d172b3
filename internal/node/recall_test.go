package node

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
)

// What a vote costs by recalls does not go by how many wait or how often they ask (N4):
// two thousand readers keep their claims, do not hear that writers wait, and the
// writers' refreshes come all the time.
func TestRecallsAreBounded(t *testing.T) {
	const (
		readers, writers = 2000, 20
		ttl              = 10 * time.Second
		span             = 3 * ttl
	)
	cfg := Config{
		Name: "n1", Config: proto.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 10_000, MaxQueue: 10_000,
	}
	now := proto.Now{Wall: 1_000_000_000}
	n := voter(t, cfg, &now)
	var out Out
	beat, recalls := uint64(0), map[uint64][]time.Duration{}
	say := func(client byte, r proto.Request) {
		beat++
		r.Client, r.Claim.Instance, r.Beat = string('a'+rune(client)), uuid.UUID{client}, beat
		r.Resource, r.TTL, r.Digest, r.At = "r", ttl, cfg.Digest(), now.Wall
		n.Handle(now, &r, "inbox", &out)
		for _, s := range out.Answers {
			if s.Answer.Kind == proto.Recall {
				recalls[s.Answer.Claim.Seq] = append(recalls[s.Answer.Claim.Seq], now.Mono)
			}
		}
		out.Reset()
	}
	acquire := func(client byte, seq uint64, mode quorum.Mode) {
		say(client, proto.Request{Verb: proto.Acquire, Claim: proto.ClaimID{Seq: seq}, Mode: mode, Keep: mode == quorum.Shared})
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
			say(w+1, proto.Request{Verb: proto.Refresh, Lo: 1, Hi: 1, Live: proto.Runs{{Lo: 1, Hi: 1}}})
		}
		if (now.Mono-began)%(3*time.Second) == 0 {
			say(0, proto.Request{Verb: proto.Refresh, Lo: 1, Hi: readers, Live: proto.Runs{{Lo: 1, Hi: readers}}})
		}
	}
	// Eight in the first third of a lease, and two in each after that.
	const most = 8 + 2*(3*span/ttl-1)
	for seq, at := range recalls {
		if len(at) > int(most) {
			t.Fatalf("claim %d is recalled %d times in %v, at most %d are allowed", seq, len(at), span, most)
		}
		// And what is lost is made good: soon at first, and then as long as it lasts.
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

// A vote that comes anew is recalled anew: its client has given the one before back.
func TestNewVoteIsRecalledAtOnce(t *testing.T) {
	cfg := Config{
		Name: "n1", Config: proto.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 100,
	}
	now := proto.Now{Wall: 1_000_000_000}
	n := voter(t, cfg, &now)
	var out Out
	beat := uint64(0)
	say := func(verb proto.Verb, seq uint64, age int64) (recalled bool) {
		beat++
		n.Handle(now, &proto.Request{
			Verb: verb, Client: "a", Resource: "r", Claim: proto.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, Beat: beat, Node: "n1",
			At: age, TTL: 10 * time.Second, Digest: cfg.Digest(),
		}, "inbox", &out)
		for _, s := range out.Answers {
			recalled = recalled || s.Answer.Kind == proto.Recall && s.Answer.Claim.Seq == 1
		}
		out.Reset()
		return recalled
	}
	say(proto.Acquire, 1, now.Wall)
	for round := range int64(5) {
		if !say(proto.Acquire, uint64(round)+2, now.Wall-1-round) {
			t.Fatalf("round %d: the younger claim's vote is not recalled", round)
		}
		say(proto.Yield, 1, 0)                 // the older one has the vote
		say(proto.Release, uint64(round)+2, 0) // and the younger one again
	}
}

// voter starts a node that votes.
func voter(t *testing.T, cfg Config, now *proto.Now) *Node {
	t.Helper()
	n := New(cfg, *now, &Saved{}, 0)
	var out Out
	for range 5 {
		n.Tick(*now, &out)
		if out.Probe != nil {
			n.HandleAnswer(*now, &proto.Answer{Kind: proto.Informed, Node: cfg.Name, Incarnation: cfg.Incarnation, Info: &proto.NodeInfo{Nonce: out.Probe.Nonce}}, &out)
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
