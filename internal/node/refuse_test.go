package node

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
)

// A refusal can be read whatever names it tells: its client would take it for
// silence otherwise, and never learn why.
func TestRefusalsCanBeRead(t *testing.T) {
	var many []string
	for i := range proto.MaxNodes {
		many = append(many, fmt.Sprintf("%0*d", proto.MaxToken, i))
	}
	for _, c := range []struct {
		why      proto.Reason
		nodes    []string
		resource string
		config   bool
	}{
		{proto.ReasonConfig, many, "r", true},
		{proto.ReasonQueue, []string{"n1"}, strings.Repeat("\xff", 1024), false},
		{proto.ReasonQueue, []string{"n1"}, strings.Repeat("ü", 512), false},
	} {
		cfg := proto.Config{Nodes: c.nodes, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
		n := New(Config{Name: c.nodes[0], Config: cfg, Incarnation: uuid.New(), MaxClaims: 100, MaxQueue: 1}, proto.Now{}, nil, 0)
		digest := cfg.Digest()
		if c.config {
			digest = "other"
		}
		var out Out
		for seq := range uint64(5) { // a node that does not vote queues them, as many as it may
			n.Handle(proto.Now{}, &proto.Request{
				Verb: proto.Acquire, Client: "a", Resource: c.resource, Claim: proto.ClaimID{Instance: uuid.UUID{1}, Seq: seq + 1},
				Beat: 1, TTL: time.Second, Digest: digest,
			}, "inbox", &out)
		}
		a := out.Answers[len(out.Answers)-1].Answer
		back, err := proto.DecodeAnswer(proto.AppendAnswer(nil, &a))
		if err != nil || back.Reason != c.why || !utf8.ValidString(back.Text) || len(back.Text) < proto.MaxText-8 {
			t.Errorf("%s: %+v, %v", c.why, back, err)
		}
	}
}

// A limit that is none, and a clock from before 1970, are numbers like others: what is
// held elsewhere finds its place, and an age in the future is refused.
func TestLimitsAtTheirEnds(t *testing.T) {
	cfg := proto.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	for _, c := range []struct {
		name string
		wall int64
		at   int64
		held bool
		want proto.Kind
	}{
		{"held, without a limit", 0, 0, true, proto.Queued},
		{"waiting, without a limit", 0, 0, false, proto.Queued},
		{"the latest age, a clock before 1970", -2_000_000_000_000_000, proto.MaxInt, false, proto.Refused},
		{"the latest age", 0, proto.MaxInt, false, proto.Refused},
	} {
		n := New(Config{Name: "n1", Config: cfg, Incarnation: uuid.New(), MaxClaims: math.MaxInt, MaxQueue: math.MaxInt}, proto.Now{Wall: c.wall}, nil, 0)
		var out Out
		n.Handle(proto.Now{Wall: c.wall}, &proto.Request{
			Verb: proto.Acquire, Client: "a", Resource: "r", Claim: proto.ClaimID{Instance: uuid.UUID{1}, Seq: 1},
			Beat: 1, TTL: time.Second, Digest: cfg.Digest(), At: c.at, Held: c.held,
		}, "inbox", &out)
		if got := out.Answers[0].Answer; got.Kind != c.want {
			t.Errorf("%s: %s %s %s, want %s", c.name, got.Kind, got.Reason, got.Text, c.want)
		}
	}
}
