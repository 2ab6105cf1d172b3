package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// queue answers the claim's latest acquire on behalf of a node: it waits for svc.
func (k *talk) queue(node string, cl *Claim, voted bool, place int, recovering time.Duration) {
	a := answerOf(node, oneConfig, wire.Queued, cl.sentAt)
	a.Claim.Seq, a.Incarnation, a.Place, a.Recovering = cl.seq, uuid.UUID{'n'}, place, recovering
	a.Blocker = &wire.Blocker{Claim: wire.ClaimID{Instance: uuid.UUID{2}, Seq: 1}, Client: "svc", Voted: voted, For: time.Minute}
	k.Handle(k.now, a, &k.out)
}

func (k *talk) changes() (n int) {
	for _, e := range k.out.Events {
		if e.Kind == Changed {
			n++
		}
	}
	return n
}

// A node that does not vote has the holder in its queue. That must not make the holder
// look like a waiting claim, whichever node is heard first.
func TestPlaceIsToldByThoseWhoKnow(t *testing.T) {
	for ill := range oneConfig.Nodes {
		k := newTalk(t, 10*time.Second, nil)
		cl := k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive}, &k.out)
		if r := k.Report(k.now, cl); r.Queued || r.Place != 0 {
			t.Errorf("nobody has answered: %+v", r)
		}
		for i, node := range oneConfig.Nodes {
			if i == ill {
				k.queue(node, cl, false, 7, time.Minute)
			} else {
				k.queue(node, cl, true, i, 0)
			}
		}
		want := len(oneConfig.Nodes) - 1
		if ill == want {
			want--
		}
		if r := k.Report(k.now, cl); !r.Queued || r.Place != want || r.Blocker == nil || !r.Blocker.Voted || r.BlockerFor != time.Minute {
			t.Errorf("%s gives no votes: %+v, want place %d", oneConfig.Nodes[ill], r, want)
		}
	}
}

// A watched claim tells of every answer, and asks again when it has its place. One that
// is not watched does neither.
func TestWatch(t *testing.T) {
	for _, watch := range []string{"", "from the start", "later"} {
		t.Run(fmt.Sprintf("%q", watch), func(t *testing.T) {
			k := newTalk(t, 10*time.Second, nil)
			cl := k.Claim(k.now, Request{Resource: "r", Mode: quorum.Exclusive, Watch: watch == "from the start"}, &k.out)
			if watch == "later" {
				k.Watch(k.now, cl, &k.out)
			}
			k.out.Reset()
			for _, node := range oneConfig.Nodes {
				k.queue(node, cl, true, 0, 0)
			}
			told, asked := k.changes(), 0
			for _, r := range k.wait(20 * time.Second) {
				if r.Verb == wire.Acquire {
					asked++
				}
			}
			if watch == "" && (told > 0 || asked > 1) || watch != "" && (told != len(oneConfig.Nodes) || asked < 20/4) {
				t.Errorf("told %d times, asked again %d times", told, asked)
			}
		})
	}
}

// A held claim that its owner releases is not released when it is evicted. The owner is
// told once, and the claim ends when its votes do.
func TestLeaveEviction(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	k.hold(1)
	cl := k.first
	cl.LeaveEviction()
	stands := k.Stands(k.now, cl)
	for range 2 {
		for _, node := range oneConfig.Nodes {
			a := answerOf(node, oneConfig, wire.Evicted, cl.sentAt)
			a.Claim.Seq, a.Incarnation, a.By, a.Text = cl.seq, uuid.UUID{'n'}, "ops", "why"
			k.Handle(k.now, a, &k.out)
		}
	}
	if len(k.out.Events) != 1 || k.out.Events[0].Kind != Evicted || cl.State() != Holding || cl.Eviction().By != "ops" || len(k.out.Requests) != 1 || !k.out.Requests[0].Held {
		t.Fatalf("%+v, %v", k.out, cl.State())
	}
	if d := k.Stands(k.now, cl); d != stands {
		t.Errorf("it stood for %v and stands for %v", stands, d)
	}
	k.wait(stands)
	if cl.State() != Over || k.Stands(k.now, cl) != 0 {
		t.Errorf("its votes are over, and it is %v", cl.State())
	}
}
