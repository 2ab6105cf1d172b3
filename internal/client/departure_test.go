package client

import (
	"testing"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// Which nodes' answers count towards the end of a claim (N10).
func TestDeparture(t *testing.T) {
	cluster := wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: time.Minute, Skew: time.Second}
	answer := func(node string, change ...func(*wire.Answer)) *wire.Answer {
		a := &wire.Answer{Kind: wire.Evicting, Node: node, Digest: cluster.Digest(), Nonce: "now"}
		for _, c := range change {
			c(a)
		}
		return a
	}
	known := func(a *wire.Answer) { a.Known = true }
	waits := func(a *wire.Answer) { a.Recovering = time.Millisecond }
	for _, tt := range []struct {
		what          string
		answers       []*wire.Answer
		over, decided bool
	}{
		{"nobody has said anything", nil, false, false},
		{"one", []*wire.Answer{answer("n1")}, false, false},
		{"a quorum", []*wire.Answer{answer("n1"), answer("n3")}, true, true},
		{"one twice", []*wire.Answer{answer("n1"), answer("n1")}, false, false},
		{"one changes its mind", []*wire.Answer{answer("n1", known), answer("n1"), answer("n2")}, false, false},
		{"two that wait", []*wire.Answer{answer("n1", waits), answer("n2", waits)}, false, false},
		{"one that waits", []*wire.Answer{answer("n1", waits), answer("n2")}, false, false},
		{"one that waits, and a quorum", []*wire.Answer{answer("n1", waits), answer("n2"), answer("n3")}, true, true},
		{"two that have it", []*wire.Answer{answer("n1", known), answer("n2", known, waits)}, false, true},
		{"one that has it, one that waits", []*wire.Answer{answer("n1", known), answer("n2", waits)}, false, false},
		{"another question", []*wire.Answer{answer("n1"), answer("n2", func(a *wire.Answer) { a.Nonce = "before" })}, false, false},
		{"another configuration", []*wire.Answer{answer("n1"), answer("n2", func(a *wire.Answer) { a.Digest = "0123456789abcdef" })}, false, false},
		{"a stranger", []*wire.Answer{answer("n1"), answer("n4")}, false, false},
		{"another answer", []*wire.Answer{answer("n1"), answer("n2", func(a *wire.Answer) { a.Kind = wire.Informed })}, false, false},
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
