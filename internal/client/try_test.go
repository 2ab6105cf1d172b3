package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// When a node tells a try of a change unasked, it repeats the same beat. Later messages
// may overtake it: the next of that kind, or the answer to a refresh, which says that the
// try waits but not for which claim. What the node said last about that counts.
func TestToldAgain(t *testing.T) {
	tests := []struct {
		name  string
		order []string // of n1's answers
		fails bool     // after n2 has said that another claim goes first
	}{
		{"in order", []string{"younger", "ahead"}, true},
		{"the other way round", []string{"ahead", "younger"}, true},
		{"twice", []string{"ahead", "ahead", "younger"}, true},
		{"only the first", []string{"younger"}, false},
		{"overtaken by refreshed", []string{"refreshed", "ahead"}, true},
		{"all overtaken by refreshed", []string{"refreshed", "ahead", "younger"}, true},
		{"a vote after it", []string{"ahead", "vote"}, false},
		{"a vote before it", []string{"vote", "ahead"}, false},
		{"a vote that is over, then overtaken by refreshed", []string{"vote", "refreshed", "ahead"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := wire.Now{Mono: time.Second, Wall: 1_000_000}
			c := New(Config{Name: "a", Instance: uuid.UUID{1}, TTL: 5 * time.Second, MaxRuns: 4, Cluster: oneConfig}, now)
			var out Out
			cl := c.Claim(now, Request{Resource: "r", Mode: quorum.Exclusive, Try: true}, &out)
			asked := out.Requests[0].SentAt
			now.Mono += time.Millisecond
			c.step(now, &out)
			c.refresh(&out)
			refreshed := out.Requests[len(out.Requests)-1].SentAt
			blocker := wire.Blocker{Claim: wire.ClaimID{Instance: uuid.UUID{2}, Seq: 1}, Client: "b", Voted: true}
			say := func(node, what string) {
				a := answerOf(node, oneConfig, wire.Queued, asked)
				b := blocker
				switch what {
				case "younger":
					a.Blocker = &b
				case "ahead":
					b.Ahead = true
					a.Blocker, a.Again = &b, 1
				case "vote":
					a.Kind = wire.Granted
				case "refreshed":
					a.Kind, a.Claim.Seq, a.SentAt = wire.Refreshed, 0, refreshed
					a.Lo, a.Hi, a.Waiting = 1, 1, wire.Runs{{Lo: 1, Hi: 1}}
				}
				c.Handle(now, a, &out)
			}
			for _, what := range tt.order {
				say("n1", what)
			}
			if cl.State() != Waiting {
				t.Fatal("it is over before a quorum is against it")
			}
			if say("n2", "ahead"); (cl.State() == Over) != tt.fails {
				t.Errorf("it fails: %v, want %v", cl.State() == Over, tt.fails)
			}
		})
	}
}

// The client's own claim that is over is in nobody's way, even if a node still has it.
// The node is told once more that it is over, since its release may have been lost (C9).
func TestTryBehindOwnReleasedClaim(t *testing.T) {
	c, cl, now, _ := waitingClient()
	var out Out
	c.Release(now, cl, &out)
	try := c.Claim(now, Request{Resource: "r", Mode: quorum.Exclusive, Try: true}, &out)
	for _, node := range oneConfig.Nodes {
		a := answerOf(node, oneConfig, wire.Queued, try.sentAt)
		a.Claim.Seq = 2
		a.Blocker = &wire.Blocker{Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, Client: "a", Voted: true, Ahead: true}
		c.Handle(now, a, &out)
	}
	if try.State() != Waiting {
		t.Error("the try failed")
	}
	out.Reset()
	now.Mono += 5 * time.Millisecond
	c.Tick(now, &out)
	if len(out.Requests) != 1 || out.Requests[0].Verb != wire.Refresh || out.Requests[0].Lo != 1 || out.Requests[0].Hi != 1 || out.Requests[0].Live.Len() > 0 {
		t.Errorf("sent %+v, want a refresh that says that claim 1 is over", out.Requests)
	}
}
