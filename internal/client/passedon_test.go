package client

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// recallFor lets the client hear from by that node wants its vote back, and returns its
// answer.
func (k *talk) recallFor(by, wants string, cl *Claim) []wire.Request {
	k.out.Reset()
	a := answerOf(by, oneConfig, wire.Recall, cl.sentAt)
	a.Claim.Seq, a.Incarnation, a.For = cl.seq, uuid.UUID{'n'}, wants
	k.Handle(k.now, a, &k.out)
	return k.out.Requests
}

// A recall that nodes pass on for another is answered to that other node, once for all
// that pass it on (N12). What that node said before no longer counts.
func TestRecallForAnotherNode(t *testing.T) {
	k := newTalk(t, 12*time.Second, nil)
	cl := k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
	before := *answerOf("n2", oneConfig, wire.Granted, cl.sentAt)
	got := k.recallFor("n1", "n2", cl)
	if len(got) != 1 || got[0].Verb != wire.Yield || got[0].Node != "n2" {
		t.Fatalf("it says %+v, want that it yields to n2", got)
	}
	if got := k.recallFor("n3", "n2", cl); len(got) > 0 {
		t.Errorf("it says so again at once: %+v", got)
	}
	before.Claim.Seq, before.Incarnation = cl.seq, uuid.UUID{'n'}
	k.Handle(k.now, &before, &k.out)
	k.grant("n1", cl)
	if cl.State() == Holding {
		t.Fatal("it counts the vote that it gave back")
	}
	if got := k.recallFor("n1", "n9", cl); len(got) > 0 {
		t.Errorf("it answers %+v to a node that is none", got)
	}
	k.now.Mono += leastDelay + time.Millisecond
	if got := k.recallFor("n3", "n2", cl); len(got) != 1 || got[0].Node != "n2" {
		t.Errorf("it says %+v, but its yield may have been lost", got)
	}
}

// A held claim tells the node that wants the vote back that it is held.
func TestRecallOfAHeldClaimForAnotherNode(t *testing.T) {
	k := newTalk(t, 12*time.Second, nil)
	k.hold(1)
	cl := k.claims[1]
	k.wait(100 * time.Millisecond)
	got := k.recallFor("n1", "n2", cl)
	if i := slices.IndexFunc(got, func(r wire.Request) bool { return r.Verb == wire.Acquire && r.Held && r.Node == "n2" }); i < 0 || cl.State() != Holding {
		t.Errorf("it says %+v, want that it is held", got)
	}
}
