package voter

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A refusal can be decoded whatever names it contains. Otherwise its client would take it
// for silence and never learn the reason.
func TestRefusalsCanBeRead(t *testing.T) {
	var many []string
	for i := range wire.MaxNodes {
		many = append(many, fmt.Sprintf("%0*d", wire.MaxToken, i))
	}
	for _, c := range []struct {
		why      wire.Reason
		nodes    []string
		resource string
		config   bool
	}{
		{wire.ReasonConfig, many, "r", true},
		{wire.ReasonQueue, []string{"n1"}, strings.Repeat("\xff", 1024), false},
		{wire.ReasonQueue, []string{"n1"}, strings.Repeat("ü", 512), false},
	} {
		cfg := wire.Config{Nodes: c.nodes, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
		n := New(Config{Name: c.nodes[0], Config: cfg, Incarnation: uuid.New(), MaxClaims: 100, MaxQueue: 1}, wire.Now{}, nil, 0)
		digest := cfg.Digest()
		if c.config {
			digest = "other"
		}
		var out Out
		for seq := range uint64(5) { // a node that does not vote queues claims up to its limit
			n.Handle(wire.Now{}, &wire.Request{
				Verb: wire.Acquire, Client: "a", Resource: c.resource, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq + 1},
				SentAt: 1, TTL: time.Second, Digest: digest,
			}, "inbox", &out)
		}
		a := out.Answers[len(out.Answers)-1].Answer
		back, err := wire.DecodeAnswer(wire.AppendAnswer(nil, &a))
		if err != nil || back.Reason != c.why || !utf8.ValidString(back.Text) || len(back.Text) < wire.MaxText-8 {
			t.Errorf("%s: %+v, %v", c.why, back, err)
		}
	}
}

// Extreme limits, and clocks from before 1970, work like others: a claim held elsewhere
// finds its place, and an age in the future is refused.
func TestLimitsAtTheirEnds(t *testing.T) {
	cfg := wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	for _, c := range []struct {
		name string
		wall int64
		at   int64
		held bool
		want wire.Kind
	}{
		{"held, without a limit", 0, 0, true, wire.Queued},
		{"waiting, without a limit", 0, 0, false, wire.Queued},
		{"the latest age, a clock before 1970", -2_000_000_000_000_000, wire.MaxInt, false, wire.Refused},
		{"the latest age", 0, wire.MaxInt, false, wire.Refused},
	} {
		n := New(Config{Name: "n1", Config: cfg, Incarnation: uuid.New(), MaxClaims: math.MaxInt, MaxQueue: math.MaxInt}, wire.Now{Wall: c.wall}, nil, 0)
		var out Out
		n.Handle(wire.Now{Wall: c.wall}, &wire.Request{
			Verb: wire.Acquire, Client: "a", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1},
			SentAt: 1, TTL: time.Second, Digest: cfg.Digest(), At: c.at, Held: c.held,
		}, "inbox", &out)
		if got := out.Answers[0].Answer; got.Kind != c.want {
			t.Errorf("%s: %s %s %s, want %s", c.name, got.Kind, got.Reason, got.Text, c.want)
		}
	}
}
