package voter

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A client that need not be told that it waits is not told, as long as it does not ask
// again, the node votes, and there is no other reason.
func TestQuietWait(t *testing.T) {
	cfg := Config{
		Name: "n1", Config: wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 3,
	}
	now := wire.Now{Wall: 1_000_000_000}
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
				n.HandleAnswer(now, &wire.Answer{Kind: wire.Informed, Node: "n1", Incarnation: cfg.Incarnation, Info: &wire.NodeInfo{Nonce: out.Probe.Nonce}}, &out)
			}
			now.Mono += time.Second
			out.Reset()
		}
	}
	sentAt := uint64(0)
	say := func(verb wire.Verb, seq uint64, change func(*wire.Request), want ...wire.Kind) []Send {
		t.Helper()
		out.Reset()
		sentAt++
		r := &wire.Request{
			Verb: verb, Client: "a", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, SentAt: sentAt, Node: "n1",
			At: now.Wall + int64(seq), TTL: 10 * time.Second, Digest: cfg.Digest(), SuppressQueued: verb == wire.Acquire, Now: now.Wall,
		}
		if change != nil {
			change(r)
		}
		n.Handle(now, r, "inbox", &out)
		var got []wire.Kind
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
	loud := func(r *wire.Request) { r.SuppressQueued = false }

	start(&Saved{})
	if a := say(wire.Acquire, 1, nil, wire.Granted); a[0].Answer.Late {
		t.Error("a vote at once is called late")
	}
	say(wire.Acquire, 2, nil)
	say(wire.Acquire, 3, nil)
	say(wire.Acquire, 3, loud, wire.Queued)
	say(wire.Acquire, 4, func(r *wire.Request) { r.Try = true }, wire.Queued)
	say(wire.Acquire, 5, nil, wire.Refused)
	// The try learns of each change of the vote.
	if a := say(wire.Release, 1, nil, wire.Granted, wire.Queued); !a[0].Answer.Late {
		t.Error("a vote after a wait is not called late")
	}
	if a := say(wire.Acquire, 2, nil, wire.Granted); a[0].Answer.Late {
		t.Error("a vote that is confirmed is called late")
	}
	if a := say(wire.Release, 2, nil, wire.Granted, wire.Queued); a[0].Answer.Late {
		t.Error("a vote is called late though it was told that it waits")
	}

	// A clean restart keeps that.
	say(wire.Acquire, 6, nil)
	saved, ok := n.Save(now)
	if !ok {
		t.Fatal("no clean mark")
	}
	start(saved)
	say(wire.Release, 4, nil)
	if a := say(wire.Release, 3, nil, wire.Granted); !a[0].Answer.Late {
		t.Error("after a restart a vote after a wait is not called late")
	}

	// A node that does not vote says so, because that may take long.
	start(nil)
	say(wire.Acquire, 7, nil, wire.Queued)
}
