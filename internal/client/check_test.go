package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
)

// A claim that has one node's vote while others have somebody before it asks again, and
// says so, at most as often as any claim that asks (C14). One that just waits does not.
func TestNodesThatContradictAreToldToCheck(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	cl := k.Claim(k.now, Want{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer := func(node string, kind proto.Kind) {
		a := answerOf(node, oneConfig, kind, cl.beat)
		if kind == proto.Queued {
			a.Blocker = &proto.Blocker{Claim: proto.ClaimID{Instance: uuid.UUID{2}, Seq: 1}, Client: "b", Voted: true}
		}
		k.Handle(k.now, a, &k.out)
	}
	if k.out.Requests[0].Check {
		t.Error("the first acquire says check")
	}
	answer("n1", proto.Queued)
	answer("n2", proto.Queued)
	answer("n3", proto.Granted)
	checks := 0
	for _, r := range k.wait(k.standsFrom(cl.beat) - k.Client.now - time.Millisecond) {
		if r.Verb == proto.Acquire && !r.Check {
			t.Errorf("an acquire in that state does not say check")
		}
		if r.Check {
			checks++
		}
	}
	// With pauses of 0.2, 0.4, 0.8, 1.6, 3.2 s, and of a third of the lease, while the vote
	// stands.
	if checks != 6 {
		t.Errorf("%d acquires say check within a lease, want 6", checks)
	}

	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Want{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer("n1", proto.Queued)
	answer("n2", proto.Queued)
	answer("n3", proto.Queued)
	if n := count(k.wait(30*time.Second), proto.Acquire); n > 1 {
		t.Errorf("a claim that waits everywhere sends %d acquires", n)
	}

	// A node that does not vote has nothing to check: who waits for it does not ask.
	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Want{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	for _, node := range []string{"n1", "n2"} {
		a := answerOf(node, oneConfig, proto.Queued, cl.beat)
		a.Recovering = time.Minute
		k.Handle(k.now, a, &k.out)
	}
	answer("n3", proto.Granted)
	if n := count(k.wait(5*time.Second), proto.Acquire); n > 1 {
		t.Errorf("a claim that waits for nodes that do not vote sends %d acquires", n)
	}

	// A holder has nothing to check, though a node has it queued.
	k = newTalk(t, 10*time.Second, nil)
	cl = k.Claim(k.now, Want{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	answer("n1", proto.Queued)
	answer("n2", proto.Granted)
	answer("n3", proto.Granted)
	answer("n2", proto.Recall)
	for _, r := range k.out.Requests {
		if r.Check {
			t.Error("a holder says check")
		}
	}
}
