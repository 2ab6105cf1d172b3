package node

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
)

// Who need not be told that it waits is told nothing, for as long as it asks no more,
// the node votes, and there is no other reason to tell it.
func TestQuietWait(t *testing.T) {
	cfg := Config{
		Name: "n1", Config: proto.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 3,
	}
	now := proto.Now{Wall: 1_000_000_000}
	var n *Node
	var out Out
	start := func(saved *Saved) {
		t.Helper()
		n = New(cfg, now, saved, 0)
		for probe := 0; saved != nil && !n.voting(); probe++ {
			if probe == 5 {
				t.Fatal("it does not vote")
			}
			n.Tick(now, &out)
			if out.Probe != nil {
				n.HandleAnswer(now, &proto.Answer{Kind: proto.Informed, Node: "n1", Incarnation: cfg.Incarnation, Info: &proto.NodeInfo{Nonce: out.Probe.Nonce}}, &out)
			}
			now.Mono += time.Second
			out.Reset()
		}
	}
	beat := uint64(0)
	say := func(verb proto.Verb, seq uint64, change func(*proto.Request), want ...proto.Kind) []Send {
		t.Helper()
		out.Reset()
		beat++
		r := &proto.Request{
			Verb: verb, Client: "a", Resource: "r", Claim: proto.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, Beat: beat, Node: "n1",
			At: now.Wall + int64(seq), TTL: 10 * time.Second, Digest: cfg.Digest(), Quiet: verb == proto.Acquire, Now: now.Wall,
		}
		if change != nil {
			change(r)
		}
		n.Handle(now, r, "inbox", &out)
		var got []proto.Kind
		for _, s := range out.Answers {
			got = append(got, s.Answer.Kind)
		}
		if len(got) != len(want) {
			t.Fatalf("%s of %d is answered %v, want %v", verb, seq, got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s of %d is answered %v, want %v", verb, seq, got, want)
			}
		}
		return out.Answers
	}
	loud := func(r *proto.Request) { r.Quiet = false }

	start(&Saved{})
	if a := say(proto.Acquire, 1, nil, proto.Granted); a[0].Answer.Late {
		t.Error("a vote at once is called late")
	}
	say(proto.Acquire, 2, nil)
	say(proto.Acquire, 3, nil)
	say(proto.Acquire, 3, loud, proto.Queued)
	say(proto.Acquire, 4, func(r *proto.Request) { r.Try = true }, proto.Queued)
	say(proto.Acquire, 5, nil, proto.Refused)
	// The try learns each time who has the vote now.
	if a := say(proto.Release, 1, nil, proto.Granted, proto.Queued); !a[0].Answer.Late {
		t.Error("a vote after a wait is not called late")
	}
	if a := say(proto.Acquire, 2, nil, proto.Granted); a[0].Answer.Late {
		t.Error("a vote that is confirmed is called late")
	}
	if a := say(proto.Release, 2, nil, proto.Granted, proto.Queued); a[0].Answer.Late {
		t.Error("a vote is called late though it was told that it waits")
	}

	// A clean restart forgets nothing of that.
	say(proto.Acquire, 6, nil)
	saved, ok := n.Save(now)
	if !ok {
		t.Fatal("no clean mark")
	}
	start(saved)
	say(proto.Release, 4, nil)
	if a := say(proto.Release, 3, nil, proto.Granted); !a[0].Answer.Late {
		t.Error("after a restart a vote after a wait is not called late")
	}

	// A node that does not vote says so: that may take long.
	start(nil)
	say(proto.Acquire, 7, nil, proto.Queued)
}
