package client

import (
	"testing"
	"time"

	"github.com/qlock/qlock/internal/proto"
)

// Whose word counts for the end of a claim (N10).
func TestDeparture(t *testing.T) {
	cluster := proto.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: time.Minute, Skew: time.Second}
	answer := func(node string, change ...func(*proto.Answer)) *proto.Answer {
		a := &proto.Answer{Kind: proto.Evicting, Node: node, Digest: cluster.Digest(), Nonce: "now"}
		for _, c := range change {
			c(a)
		}
		return a
	}
	known := func(a *proto.Answer) { a.Known = true }
	waits := func(a *proto.Answer) { a.Recovering = time.Millisecond }
	for _, tt := range []struct {
		what          string
		answers       []*proto.Answer
		over, decided bool
	}{
		{"nobody has said anything", nil, false, false},
		{"one", []*proto.Answer{answer("n1")}, false, false},
		{"a quorum", []*proto.Answer{answer("n1"), answer("n3")}, true, true},
		{"one twice", []*proto.Answer{answer("n1"), answer("n1")}, false, false},
		{"one changes its mind", []*proto.Answer{answer("n1", known), answer("n1"), answer("n2")}, false, false},
		{"two that wait", []*proto.Answer{answer("n1", waits), answer("n2", waits)}, false, false},
		{"one that waits", []*proto.Answer{answer("n1", waits), answer("n2")}, false, false},
		{"one that waits, and a quorum", []*proto.Answer{answer("n1", waits), answer("n2"), answer("n3")}, true, true},
		{"two that have it", []*proto.Answer{answer("n1", known), answer("n2", known, waits)}, false, true},
		{"one that has it, one that waits", []*proto.Answer{answer("n1", known), answer("n2", waits)}, false, false},
		{"another question", []*proto.Answer{answer("n1"), answer("n2", func(a *proto.Answer) { a.Nonce = "before" })}, false, false},
		{"another configuration", []*proto.Answer{answer("n1"), answer("n2", func(a *proto.Answer) { a.Digest = "0123456789abcdef" })}, false, false},
		{"a stranger", []*proto.Answer{answer("n1"), answer("n4")}, false, false},
		{"another answer", []*proto.Answer{answer("n1"), answer("n2", func(a *proto.Answer) { a.Kind = proto.Informed })}, false, false},
	} {
		d := NewDeparture(cluster, "now")
		for _, a := range tt.answers {
			d.Hear(a)
		}
		if d.Over() != tt.over || d.Decided() != tt.decided {
			t.Errorf("%s: over %v, decided %v, want %v, %v", tt.what, d.Over(), d.Decided(), tt.over, tt.decided)
		}
	}
}
