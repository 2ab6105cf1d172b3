package client

import (
	"fmt"
	"slices"
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
// told once, and the claim is lost when its votes have run out.
func TestLeaveRelease(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	k.hold(1)
	cl := k.first
	cl.LeaveRelease()
	stands := k.Stands(k.now, cl)
	k.evict(cl)
	if len(k.out.Events) != 1 || k.out.Events[0].Kind != Evicted || cl.State() != Holding || cl.Eviction().By != "ops" || len(k.out.Requests) != 1 || !k.out.Requests[0].Held {
		t.Fatalf("%+v, %v", k.out, cl.State())
	}
	if d := k.Stands(k.now, cl); d != stands {
		t.Errorf("it stood for %v and stands for %v", stands, d)
	}
	k.wait(stands)
	if cl.State() != Unreleased || k.Stands(k.now, cl) != 0 {
		t.Errorf("its votes are over, and it is %v", cl.State())
	}
}

// evict makes all nodes say, twice, that the claim is evicted.
func (k *talk) evict(cl *Claim) {
	for range 2 {
		for _, node := range oneConfig.Nodes {
			a := answerOf(node, oneConfig, wire.Evicted, cl.sentAt)
			a.Claim.Seq, a.Incarnation, a.By, a.Text = cl.seq, uuid.UUID{'n'}, "ops", "why"
			k.Handle(k.now, a, &k.out)
		}
	}
}

// However a claim is lost that its owner releases, the client says nothing that lets a node
// give it to another: neither a release, nor a yield, nor a refresh that does not list it.
// Nor does it ask for the claim again. It releases the claim when its owner does, or when a
// lease has passed that no clock made shorter.
func TestLostAndNotReleased(t *testing.T) {
	const ttl = 10 * time.Second
	for how, lose := range map[string]func(k *talk){
		"votes ran out": func(k *talk) { k.wait(k.Stands(k.now, k.first)) },
		"evicted, and votes ran out": func(k *talk) {
			k.evict(k.first)
			k.wait(k.Stands(k.now, k.first))
		},
		"wall clock set": func(k *talk) {
			k.now.Wall += (ttl - time.Millisecond).Microseconds()
			k.Tick(k.now, &k.out)
		},
		"other nodes": func(k *talk) { k.SetCluster(k.now, anotherConfig, &k.out) },
		"nodes of one name": func(k *talk) {
			k.now.Mono += time.Second
			k.now.Wall += 1_000_000
			k.Tick(k.now, &k.out)
			for range 2 {
				for _, node := range oneConfig.Nodes {
					for _, run := range []string{"n", "m"} {
						k.ask(k.first, "", &k.out)
						a := answerOf(node, oneConfig, wire.Granted, k.first.sentAt)
						a.Claim.Seq, a.Incarnation = k.first.seq, uuid.UUID{run[0]}
						k.Handle(k.now, a, &k.out)
						k.now.Mono += time.Millisecond
					}
				}
			}
		},
	} {
		for _, released := range []bool{false, true} {
			k := newTalk(t, ttl, nil)
			k.hold(2)
			cl, other := k.first, k.last
			cl.LeaveRelease()
			k.Release(k.now, other, &k.out)
			k.out.Reset()
			lose(k)
			if cl.State() != Unreleased || k.Stands(k.now, cl) != 0 || k.HeldAt(k.now, cl) {
				t.Fatalf("%s: it is %v", how, cl.State())
			}
			k.silent(how, cl, k.out.Requests)
			begin := k.now.Mono
			for k.now.Mono < begin+ttl-time.Second {
				if released && k.now.Mono > begin+ttl/2 {
					break
				}
				k.silent(how, cl, k.wait(time.Second/2))
				k.out.Reset()
				a := answerOf("n1", k.cfg.Cluster, wire.Refreshed, cl.sentAt)
				a.Incarnation, a.Lo, a.Hi, a.Unknown = uuid.UUID{'n'}, 1, cl.seq, wire.Runs{}.Add(cl.seq)
				k.Handle(k.now, a, &k.out)
				for _, kind := range []wire.Kind{wire.Granted, wire.Queued, wire.Refused, wire.Recall} {
					a := answerOf("n1", k.cfg.Cluster, kind, cl.sentAt)
					a.Claim.Seq, a.Incarnation = cl.seq, uuid.UUID{'n'}
					k.Handle(k.now, a, &k.out)
				}
				k.silent(how, cl, k.out.Requests)
			}
			k.evict(cl)
			if len(k.out.Events) > 0 || cl.State() != Unreleased {
				t.Errorf("%s: %v, %v", how, k.out.Events, cl.State())
			}
			k.out.Reset()
			if released {
				k.Release(k.now, cl, &k.out)
			} else {
				k.out.Requests = k.wait(2 * time.Second)
			}
			if !slices.ContainsFunc(k.out.Requests, func(r wire.Request) bool { return r.Verb == wire.Release && r.Claim.Seq == cl.seq }) || cl.State() != Over {
				t.Errorf("%s: it is not released: %v, %+v", how, cl.State(), k.out.Requests)
			}
		}
	}
}

// silent checks that the requests neither end the claim at a node nor ask for it, except to
// say that it is held.
func (k *talk) silent(how string, cl *Claim, requests []wire.Request) {
	k.t.Helper()
	for _, r := range requests {
		switch r.Verb {
		case wire.Release, wire.Yield:
			if r.Claim.Seq == cl.seq {
				k.t.Errorf("%s: %+v", how, r)
			}
		case wire.Acquire:
			if r.Claim.Seq == cl.seq && !r.Held {
				k.t.Errorf("%s: %+v", how, r)
			}
		case wire.Refresh:
			if r.Lo <= cl.seq && cl.seq <= r.Hi && !r.Live.Has(cl.seq) {
				k.t.Errorf("%s: %+v", how, r)
			}
		}
	}
}
