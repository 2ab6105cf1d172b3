package voter

import (
	"math"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// The contents of a mark and the readings of clocks may be arbitrary. A sum that is out
// of range must not make a mark look recent.
func TestMarksAtTheEndOfTheNumbers(t *testing.T) {
	const wall = 1_750_000_000_000_000
	now := wire.Now{Wall: wall, Boot: time.Hour}
	for name, c := range map[string]struct {
		saved Saved
		now   wire.Now
	}{
		"away for ever":                 {Saved{Wall: wall - 1000, Boot: time.Hour - time.Millisecond, Away: math.MaxInt64}, now},
		"away for less than no time":    {Saved{Wall: wall - 3600_000_000, Boot: 1, Away: -time.Hour}, now},
		"a clock at its least":          {Saved{Wall: math.MinInt64}, now},
		"a clock at its greatest":       {Saved{Wall: 1}, wire.Now{Wall: math.MaxInt64}},
		"so far that it comes round":    {Saved{Wall: 1}, wire.Now{Wall: 1 + 1<<61}},
		"started for less than no time": {Saved{Wall: wall, Boot: math.MinInt64}, now},
	} {
		if c.saved.age(c.now) < time.Hour || !c.saved.Stale(c.now, time.Minute) {
			t.Errorf("%s: the mark is %v old, and is believed", name, c.saved.age(c.now))
		}
	}
}

// A wall clock that advances so far that the sum overflows shows an absence as well.
func TestAbsenceAtTheEndOfTheNumbers(t *testing.T) {
	now := wire.Now{Wall: 1_000_000}
	n := voter(t, Config{Name: "n1", Config: wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second}, Incarnation: uuid.UUID{1}}, &now)
	var out Out
	// Modulo 1<<64, this is no time at all in nanoseconds.
	now.Wall += 1 << 61
	n.Tick(now, &out)
	if n.voting() {
		t.Error("it votes as if it had not been away")
	}
}

// No lease is longer than messages can express, whatever a state directory says.
func TestForgottenLeaseAtTheEndOfTheNumbers(t *testing.T) {
	n := New(Config{Name: "n1", Config: wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second}, Incarnation: uuid.UUID{1}}, wire.Now{}, nil, math.MaxInt64)
	if n.quarantine < wire.MaxLease || n.quarantine > 2*wire.MaxLease {
		t.Errorf("it waits for %v", n.quarantine)
	}
}

// A second wait is as long as the first one for the longer lease that the node hears of
// meanwhile (N8).
func TestLongerLeaseInALaterWait(t *testing.T) {
	now := wire.Now{Wall: 1_000_000}
	n := voter(t, Config{Name: "n1", Config: wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second}, Incarnation: uuid.UUID{1}, ProbeWait: 300 * time.Millisecond}, &now)
	var out Out
	pass := func(d time.Duration) {
		now.Mono += d
		now.Wall += d.Microseconds()
		out.Reset()
		n.Tick(now, &out)
	}
	pass(time.Hour)
	began := now.Mono
	if !n.inQuarant {
		t.Fatal("it does not wait, though it was not heard for an hour")
	}
	longer := func(ttl time.Duration) {
		a := wire.Answer{
			Kind: wire.Informed, Node: "n2", Incarnation: uuid.UUID{2}, Digest: n.digest,
			Info: &wire.NodeInfo{Nonce: n.nonce(), MaxTTL: ttl, State: wire.Voting},
		}
		n.HandleAnswer(now, &a, &out)
	}
	longer(time.Minute)
	if want := began + n.listen() + time.Minute; n.quarantine < want {
		t.Errorf("it waits until %v, want at least %v", n.quarantine, want)
	}
	// It hears itself late, and after that hears of an even longer lease.
	pass(30 * time.Second)
	for n.asks > 0 {
		pass(n.Deadline() - now.Mono)
		if out.Probe == nil {
			continue
		}
		a := n.answer(wire.Informed)
		a.Info = &wire.NodeInfo{Nonce: out.Probe.Nonce, MaxTTL: 12 * time.Second, State: n.State()}
		n.HandleAnswer(now, &a, &out)
	}
	heard := n.probeAt
	longer(2 * time.Minute)
	if want := heard + 2*time.Minute; n.quarantine < want {
		t.Errorf("it waits until %v, want at least %v", n.quarantine, want)
	}
}
