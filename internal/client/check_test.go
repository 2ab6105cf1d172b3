package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A claim that has one node's vote while other nodes have another claim before it asks
// again and says so, as often as any claim that asks at most (C14). One that merely waits
// does not.
func TestNodesThatContradictAreToldToCheck(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	cl := k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer := func(node string, kind wire.Kind) {
		a := answerOf(node, oneConfig, kind, cl.sentAt)
		if kind == wire.Queued {
			a.Blocker = &wire.Blocker{Claim: wire.ClaimID{Instance: uuid.UUID{2}, Seq: 1}, Client: "b", Voted: true}
		}
		k.Handle(k.now, a, &k.out)
	}
	if k.out.Requests[0].Check {
		t.Error("the first acquire says check")
	}
	answer("n1", wire.Queued)
	answer("n2", wire.Queued)
	answer("n3", wire.Granted)
	checks := 0
	for _, r := range k.wait(k.standsFrom(cl.sentAt) - k.Client.now - time.Millisecond) {
		if r.Verb == wire.Acquire && !r.Check {
			t.Errorf("an acquire in that state does not say check")
		}
		if r.Check {
			checks++
		}
	}
	// With pauses of 0.2, 0.4, 0.8, 1.6 and 3.2 s, and then of a third of the lease, while
	// the vote stands.
	if checks != 6 {
		t.Errorf("%d acquires say check within a lease, want 6", checks)
	}

	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer("n1", wire.Queued)
	answer("n2", wire.Queued)
	answer("n3", wire.Queued)
	if n := count(k.wait(30*time.Second), wire.Acquire); n > 1 {
		t.Errorf("a claim that waits everywhere sends %d acquires", n)
	}

	// A node that does not vote has nothing to check, so a claim that waits for it does not
	// ask.
	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	for _, node := range []string{"n1", "n2"} {
		a := answerOf(node, oneConfig, wire.Queued, cl.sentAt)
		a.Recovering = time.Minute
		k.Handle(k.now, a, &k.out)
	}
	answer("n3", wire.Granted)
	if n := count(k.wait(5*time.Second), wire.Acquire); n > 1 {
		t.Errorf("a claim that waits for nodes that do not vote sends %d acquires", n)
	}

	// What refreshed says is no reason to be content: for whom the claim waits is not known.
	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	for _, node := range []string{"n1", "n2"} {
		a := answerOf(node, oneConfig, wire.Refreshed, cl.sentAt)
		a.Claim.Seq, a.Lo, a.Hi = 0, 1, cl.seq
		a.Waiting = a.Waiting.Add(cl.seq)
		k.Handle(k.now, a, &k.out)
	}
	answer("n3", wire.Granted)
	checks = 0
	for _, r := range k.wait(5 * time.Second) {
		if r.Check {
			checks++
		}
	}
	if checks == 0 {
		t.Error("a claim that does not know for whom it waits does not say check")
	}

	// A holder has nothing to check, though a node has it queued.
	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer("n1", wire.Queued)
	answer("n2", wire.Granted)
	answer("n3", wire.Granted)
	answer("n2", wire.Recall)
	for _, r := range k.out.Requests {
		if r.Check {
			t.Error("a holder says check")
		}
	}
}

// A quorum voted with different fences, and the node whose fence must rise is cut off: it is
// asked to raise it, and does not. Then the vote of the node that has the claim queued is needed,
// so the claim says check (C14). It does not before that node was asked.
func TestFenceThatDoesNotRiseIsToldToCheck(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	cl := k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer := func(node string, kind wire.Kind, fence uint64) {
		a := answerOf(node, oneConfig, kind, cl.sentAt)
		if a.Fence = fence; kind == wire.Queued {
			a.Blocker = &wire.Blocker{Claim: wire.ClaimID{Instance: uuid.UUID{2}, Seq: 1}, Client: "b", Voted: true}
		}
		k.Handle(k.now, a, &k.out)
	}
	answer("n3", wire.Queued, 0)
	k.out.Reset()
	answer("n1", wire.Granted, 7)
	answer("n2", wire.Granted, 9)
	raises := 0
	for _, r := range k.out.Requests {
		if r.Verb == wire.Acquire {
			raises++
			if r.MinFence != 9 || r.Check {
				t.Errorf("the acquire that raises the fence has the fence %d, check %v", r.MinFence, r.Check)
			}
		}
	}
	if raises != 1 {
		t.Fatalf("%d acquires raise the fence", raises)
	}
	checks := 0
	for _, r := range k.wait(5 * time.Second) {
		if r.Check {
			checks++
		}
	}
	if checks == 0 {
		t.Error("a claim whose fence a node does not raise does not say check")
	}
}
