package security

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// soleNode is a node without a network, for what can be counted in it alone: a
// message goes in, and how much comes out does not depend on the machine.
type soleNode struct {
	*voter.Node
	cfg voter.Config
	now wire.Now
	out voter.Out
}

func newVoter(t *testing.T, maxClaims, maxQueue int) *soleNode {
	t.Helper()
	v := &soleNode{
		cfg: voter.Config{
			Name: "n1", Incarnation: uuid.New(), ProbeWait: time.Millisecond, MaxClaims: maxClaims, MaxQueue: maxQueue,
			Config: wire.Config{Nodes: nodeNames, MaxTTL: 30 * time.Second, Skew: 5 * time.Second},
		},
		now: wire.Now{Wall: 1_800_000_000_000_000},
	}
	v.Node = voter.New(v.cfg, v.now, &voter.Saved{}, 0)
	v.wait(0)
	v.wait(time.Millisecond)
	if v.State() != wire.Voting {
		t.Fatalf("the node is %s", v.State())
	}
	return v
}

// wait lets time go on, in which the node hears each of its probes: it was never away.
func (v *soleNode) wait(d time.Duration) {
	v.out.Reset()
	for first := true; first || d > 0; first = false {
		step := min(d, 500*time.Millisecond)
		d -= step
		v.now.Mono += step
		v.now.Wall += step.Microseconds()
		v.out.Probe = nil
		v.Tick(v.now, &v.out)
		if v.out.Probe != nil {
			v.echo()
		}
	}
}

// echo lets the node hear its last probe.
func (v *soleNode) echo() {
	v.HandleAnswer(v.now, &wire.Answer{
		Kind: wire.Informed, Node: v.cfg.Name, Incarnation: v.cfg.Incarnation,
		Info: &wire.NodeInfo{Nonce: v.out.Probe.Nonce},
	}, &v.out)
}

// take handles a request, and returns the answers.
func (v *soleNode) take(r wire.Request) []voter.Send {
	v.out.Reset()
	r.Digest = v.cfg.Digest()
	v.Handle(v.now, &r, "_INBOX."+r.Client+".x", &v.out)
	return v.out.Answers
}

func request(verb wire.Verb, client string, instance uuid.UUID, seq uint64, resource string) wire.Request {
	return wire.Request{
		Verb: verb, Client: client, Resource: resource, Claim: wire.ClaimID{Instance: instance, Seq: seq},
		SentAt: 1, At: 1_800_000_000_000_000, TTL: 10 * time.Second, Mode: quorum.Exclusive,
	}
}

// One message makes answers for each claim that it is about, and recalls for each
// vote in the way: not for each pair of them.
func TestAnswersToOneMessageAreBounded(t *testing.T) {
	const n = 300
	v := newVoter(t, 10*n, 10*n)
	readers, old := uuid.New(), uuid.New()
	for seq := range uint64(n) {
		r := request(wire.Acquire, "svc-a", readers, seq+1, "x")
		r.Mode = quorum.Shared
		v.take(r)
	}
	writer := func(seq uint64) int {
		r := request(wire.Acquire, "svc-a", old, seq, "x")
		r.At = int64(seq)
		return len(v.take(r))
	}
	for seq := range uint64(n) {
		if got := writer(seq + 1); got > n+1 {
			t.Fatalf("one acquire makes %d answers, there are %d votes", got, n)
		}
	}
	refresh := func(instance uuid.UUID) wire.Request {
		return wire.Request{Verb: wire.Refresh, Client: "svc-a", Claim: wire.ClaimID{Instance: instance}, SentAt: 9, Lo: 1, Hi: n}
	}
	keep := refresh(old)
	keep.Live = wire.Runs{{Lo: 1, Hi: n}}
	for what, r := range map[string]wire.Request{"keeps the writers": keep, "ends half of the writers": {
		Verb: wire.Refresh, Client: "svc-a", Claim: wire.ClaimID{Instance: old}, SentAt: 9, Lo: 1, Hi: n / 2,
	}} {
		if got := len(v.take(r)); got > 2*n {
			t.Errorf("a refresh that %s makes %d answers, there are %d votes", what, got, n)
		}
	}
	if got := len(v.take(refresh(readers))); got > 2*n {
		t.Errorf("a refresh that ends the readers makes %d answers, there are %d votes and %d writers", got, n, n)
	}
}

// One name's claims are few enough that to end them all, which one message can, is
// no long work.
func TestVotesOnOneResourceAreBounded(t *testing.T) {
	v := newVoter(t, 10_000, 100)
	instance := uuid.New()
	for seq := range uint64(1000) {
		r := request(wire.Acquire, "svc-a", instance, seq+1, "x")
		r.Mode = quorum.Shared
		r.Held = seq%2 == 0
		v.take(r)
	}
	if v.Claims() > 2*100+1 { // twice for what says it is held, and one that holds
		t.Errorf("%d claims on one resource, with MaxQueue 100", v.Claims())
	}
	answers := v.take(request(wire.Acquire, "svc-b", uuid.New(), 1, "y"))
	if len(answers) != 1 || answers[0].Answer.Kind != wire.Granted {
		t.Errorf("another resource: %+v", answers)
	}
}

// Two clients that call their claims by the same id have two claims: each can end
// its own, in any order, and what is left is what was not ended.
func TestEqualIDsOfTwoClients(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		v := newVoter(t, 1000, 1000)
		same, holder := uuid.New(), uuid.New()
		v.take(request(wire.Acquire, "holder", holder, 1, "x"))
		live := map[string]bool{"holder": true}
		for range 20 {
			client := []string{"svc-a", "svc-b", "svc-c", "holder"}[rng.IntN(4)]
			id := same
			if client == "holder" {
				id = holder
			}
			verb := wire.Release
			if rng.IntN(2) == 0 {
				verb = wire.Acquire
			}
			r := request(verb, client, id, 1, "x")
			r.Mode = quorum.Mode(seed % 2)
			v.take(r)
			live[client] = live[client] && verb == wire.Acquire || verb == wire.Acquire
		}
		for client := range live {
			id := same
			if client == "holder" {
				id = holder
			}
			v.take(request(wire.Release, client, id, 1, "x"))
		}
		if v.Claims() != 0 || v.Resources() != 0 {
			t.Fatalf("seed %d: %d claims, %d resources are left for ever", seed, v.Claims(), v.Resources())
		}
	}
}

// A client that asks in a node's name keeps it neither from starting nor from
// noticing that it has its name for itself.
func TestNobodyAsksInANodesName(t *testing.T) {
	v := newVoter(t, 1000, 1000)
	v.Node = voter.New(v.cfg, v.now, &voter.Saved{}, 0)
	ask := wire.Request{Verb: wire.Info, Client: "svc-a", Node: "n1", Incarnation: uuid.New(), Voted: true, Started: 1}
	v.wait(0)
	for range 100 {
		if v.out.Probe != nil {
			v.echo()
		}
		v.now.Mono += v.cfg.ProbeWait
		v.take(ask)
		if v.out.Probe != nil {
			t.Fatal("a client makes the node ask")
		}
		v.wait(0)
	}
	if v.State() != wire.Voting {
		t.Errorf("the node is %s", v.State())
	}
}

// perClaim is what a claim may cost a node, at the worst, with the longest name
// and reply subject that go through.
const perClaim = 8 << 10

// However a client names its claims and instances, a node has no more of them than
// MaxClaims, and its memory stays within a bound that follows from it.
func TestMemoryOfOneNameIsBounded(t *testing.T) {
	const most = 2000
	v := newVoter(t, most, most)
	before := heap()
	pad := strings.Repeat("x", 1000)
	for i := range uint64(5 * most) {
		r := request(wire.Acquire, "svc-a", uuid.New(), i+1, fmt.Sprint(pad, i))
		r.Held = i%2 == 0
		r.Digest = v.cfg.Digest()
		v.out.Reset()
		v.Handle(v.now, &r, fmt.Sprint("_INBOX.svc-a.", pad, pad, pad, i), &v.out)
	}
	if v.Claims() != most || v.Resources() != most {
		t.Errorf("%d claims on %d resources, allowed are %d", v.Claims(), v.Resources(), most)
	}
	v.out = voter.Out{}
	if grown := int64(heap()) - int64(before); grown > most*perClaim {
		t.Errorf("%d bytes for each of %d claims, stated are %d", grown/most, most, perClaim)
	}
	answers := v.take(request(wire.Acquire, "svc-b", uuid.New(), 1, "y"))
	if len(answers) != 1 || answers[0].Answer.Kind != wire.Granted {
		t.Errorf("another client is not served: %+v", answers)
	}
	v.take(request(wire.Release, "svc-b", answers[0].Answer.Claim.Instance, 1, "y"))
	// Silence ends it all.
	v.wait(11 * time.Second)
	if v.Claims() != 0 || v.Resources() != 0 {
		t.Errorf("%d claims, %d resources are left", v.Claims(), v.Resources())
	}
	if grown := int64(heap()) - int64(before); grown > most*perClaim/4 {
		t.Errorf("%d bytes are left of %d claims", grown, most)
	}
	runtime.KeepAlive(v)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Nothing that a client can say pushes the tokens of others further ahead than the
// longest lease, or near the end of the numbers.
func TestTokensStayNearTheClock(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		v := newVoter(t, 100, 100)
		last, seq := uint64(0), uint64(0)
		numbers := func() uint64 {
			near := uint64(v.now.Wall)
			return []uint64{
				0, 1, wire.MaxInt, wire.MaxInt - 1, near, near + 4_999_999, near + 5_000_001, near + 29_999_999, near + 30_000_001,
				near + rng.Uint64N(60_000_000), rng.Uint64N(wire.MaxInt),
			}[rng.IntN(11)]
		}
		for range 500 {
			verb := []wire.Verb{wire.Acquire, wire.Acquire, wire.Release}[rng.IntN(3)]
			r := request(verb, "svc-a", uuid.UUID{1}, 1+rng.Uint64N(20), []string{"x", "y", "z"}[rng.IntN(3)])
			r.SentAt = 1 + numbers()>>1
			r.At, r.Now, r.MinFence, r.Held = int64(numbers()), int64(numbers()), numbers(), rng.IntN(2) == 0
			v.take(r)
			v.wait(time.Duration(rng.IntN(100)) * time.Millisecond)
			if rng.IntN(10) > 0 {
				continue
			}
			seq++
			b := request(wire.Acquire, "svc-b", uuid.UUID{2}, seq, "of b alone")
			b.At = v.now.Wall
			answers := v.take(b)
			if len(answers) != 1 || answers[0].Answer.Kind != wire.Granted {
				t.Fatalf("seed %d: a free lock is not granted: %+v", seed, answers)
			}
			fence := answers[0].Answer.Fence
			if fence <= last || fence > uint64(v.now.Wall)+30_000_000+1000 {
				t.Fatalf("seed %d: fence %d after %d, %d µs ahead of the clock", seed, fence, last, int64(fence)-v.now.Wall)
			}
			last = fence
			v.take(request(wire.Release, "svc-b", uuid.UUID{2}, seq, "of b alone"))
		}
	}
}
