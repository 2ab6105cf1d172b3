package voter

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// NATS guards the client's name in the subject, and nothing guards the ids in the body.
// Under another client name the same ids are other claims.
func TestIDsOfOthersAreOthers(t *testing.T) {
	cfg := wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	now := wire.Now{Mono: time.Second, Wall: 1_000_000}
	n := New(Config{Name: "n1", Config: cfg, Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 100}, now, &Saved{}, 0)
	id := wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}
	var out Out
	acquire := &wire.Request{
		Verb: wire.Acquire, Client: "a", Resource: "r", Claim: id, SentAt: 1, Mode: quorum.Exclusive,
		At: now.Wall, TTL: time.Second * 10, Digest: cfg.Digest(),
	}
	n.Handle(now, acquire, "inbox.a", &out)
	for _, r := range []*wire.Request{
		{Verb: wire.Release, Client: "b", Resource: "r", Claim: id},
		{Verb: wire.Yield, Client: "b", Resource: "r", Claim: id, SentAt: 2, Node: "n1"},
		{Verb: wire.Refresh, Client: "b", Claim: wire.ClaimID{Instance: id.Instance}, SentAt: 3, Lo: 1, Hi: 9},
	} {
		n.Handle(now, r, "inbox.b", &out)
		if got := n.Claims(); got != 1 {
			t.Fatalf("%s of b: %d claims are left of a's one", r.Verb, got)
		}
		if c := n.find("a", id); c == nil || c.sentAt != 1 || c.session.reply != "inbox.a" {
			t.Fatalf("%s of b touches what a has: %+v", r.Verb, c)
		}
	}
	other := *acquire
	other.Client, other.SentAt = "b", 4
	n.Handle(now, &other, "inbox.b", &out)
	if n.Claims() != 2 || n.find("b", id) == n.find("a", id) {
		t.Fatalf("two clients with one id have %d claims, not two", n.Claims())
	}
	n.Handle(now, &wire.Request{Verb: wire.Release, Client: "a", Resource: "r", Claim: id}, "inbox.a", &out)
	if n.find("a", id) != nil || n.find("b", id) == nil {
		t.Fatal("a's release ended b's claim, not its own")
	}
}

// A number identifies one claim. Its use for two claims shows two clients with one
// instance, and the second one is told (N2).
func TestNumberOfTwoClaims(t *testing.T) {
	cfg := wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	now := wire.Now{Mono: time.Second, Wall: 1_000_000}
	n := New(Config{Name: "n1", Config: cfg, Incarnation: uuid.UUID{9}, MaxClaims: 100, MaxQueue: 100}, now, &Saved{}, 0)
	var out Out
	first := wire.Request{
		Verb: wire.Acquire, Client: "a", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, SentAt: 5, Mode: quorum.Exclusive,
		At: now.Wall, TTL: time.Second * 10, Digest: cfg.Digest(),
	}
	n.Handle(now, &first, "inbox.a", &out)
	for what, change := range map[string]func(r *wire.Request){
		"another name": func(r *wire.Request) { r.Resource = "s" },
		"another mode": func(r *wire.Request) { r.Mode = quorum.Shared },
		"nothing":      func(*wire.Request) {},
	} {
		for _, sentAt := range []uint64{4, 6} {
			out.Reset()
			r := first
			r.SentAt = sentAt
			change(&r)
			n.Handle(now, &r, "inbox.a", &out)
			refused := len(out.Answers) == 1 && out.Answers[0].Answer.Kind == wire.Refused && out.Answers[0].Answer.Reason == wire.ReasonCopy
			if want := what != "nothing"; refused != want || len(out.Notes) == 1 != want {
				t.Errorf("%s, beat %d: %+v", what, sentAt, out)
			}
		}
	}
	if n.Claims() != 1 || n.Counts().Refused.Copy != 4 {
		t.Errorf("%d claims, %+v", n.Claims(), n.Counts())
	}
}
