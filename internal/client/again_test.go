package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// talk is a client and the answers of its nodes.
type talk struct {
	*Client
	t   *testing.T
	now wire.Now
	out Out
}

func newTalk(t *testing.T, ttl time.Duration, change func(*Config)) *talk {
	now := wire.Now{Mono: time.Second, Wall: 1_000_000}
	cfg := Config{Name: "a", Instance: uuid.UUID{1}, TTL: ttl, MaxRuns: 100, Cluster: oneConfig}
	if change != nil {
		change(&cfg)
	}
	return &talk{Client: New(cfg, now), t: t, now: now}
}

// hold makes claims that all nodes vote for.
func (k *talk) hold(claims int) {
	k.t.Helper()
	for i := range claims {
		cl := k.Claim(k.now, Request{Resource: fmt.Sprintf("r%d", i), Mode: quorum.Exclusive}, &k.out)
		for _, node := range oneConfig.Nodes {
			k.grant(node, cl)
		}
		if cl.State() != Holding {
			k.t.Fatal("a claim with all votes is not held")
		}
	}
	k.out.Reset()
}

// grant answers the claim's latest acquire on behalf of a node.
func (k *talk) grant(node string, cl *Claim) {
	a := answerOf(node, oneConfig, wire.Granted, cl.sentAt)
	a.Claim.Seq, a.Incarnation = cl.seq, uuid.UUID{'n'}
	k.Handle(k.now, a, &k.out)
}

// wait lets time pass, makes the client do what is due, and returns the requests.
func (k *talk) wait(d time.Duration) []wire.Request {
	k.out.Reset()
	end := k.now.Mono + d
	for {
		next, ok := k.Wait(k.now)
		if !ok || k.now.Mono+next > end {
			break
		}
		k.now = after(k.now, next)
		k.Tick(k.now, &k.out)
	}
	k.now = after(k.now, end-k.now.Mono)
	k.Tick(k.now, &k.out)
	return k.out.Requests
}

// refreshed answers a refresh on behalf of a node.
func (k *talk) refreshed(node string, r wire.Request, unknown wire.Runs, life byte) {
	a := answerOf(node, oneConfig, wire.Refreshed, r.SentAt)
	a.Lo, a.Hi, a.Unknown, a.Incarnation = r.Lo, r.Hi, unknown, uuid.UUID{life}
	k.Handle(k.now, a, &k.out)
}

func count(all []wire.Request, verb wire.Verb) (n int) {
	for _, r := range all {
		if r.Verb == verb {
			n++
		}
	}
	return n
}

// When all nodes have forgotten, each reports every claim, in answer to each refresh that
// is under way. Each claim is acquired again once, at all nodes, and all claims in one
// step, so that they fit into few messages (C6).
func TestForgottenByAllIsAskedForOnce(t *testing.T) {
	const claims = 5000
	k := newTalk(t, 10*time.Second, nil)
	k.hold(claims)
	sent := k.wait(10 * time.Second / 3)
	if len(sent) != 1 || sent[0].Verb != wire.Refresh {
		t.Fatalf("%d messages, want one refresh", len(sent))
	}
	refresh := sent[0]
	k.out.Reset()
	var again []wire.Request
	steps := 0
	note := func(sent []wire.Request) {
		if count(sent, wire.Acquire) > 0 {
			steps++
			again = append(again, sent...)
		}
	}
	for _, node := range oneConfig.Nodes {
		k.refreshed(node, refresh, refresh.Live, 9)
		k.refreshed(node, refresh, refresh.Live, 9) // it comes twice
		note(k.out.Requests)
		note(k.wait(time.Millisecond))
	}
	for range 500 {
		note(k.wait(time.Millisecond))
		for _, r := range k.out.Requests {
			// The nodes are new ones, so they are asked once more, and do not know the claims yet.
			if r.Verb == wire.Refresh && len(again) == 0 {
				for _, node := range oneConfig.Nodes {
					k.refreshed(node, r, r.Live, 9)
				}
			}
		}
	}
	if n := count(again, wire.Acquire); n != claims || steps != 1 {
		t.Errorf("%d claims were acquired again by %d messages in %d steps, want one each, in one step", claims, n, steps)
	}
	for _, r := range again {
		if r.Verb == wire.Acquire && (r.Node != "" || !r.Held) {
			t.Fatalf("%v is asked for at %q, held: %v; want all nodes, which are to know that it is held", r.Claim, r.Node, r.Held)
		}
	}
}

// An answer to a refresh that was sent before the acquire says nothing about the effect
// of the acquire.
func TestUnknownBeforeTheAcquireCame(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	k.hold(3)
	first := k.wait(10 * time.Second / 3)[0]
	k.Reconnected(k.now, &k.out)
	second := k.out.Requests[len(k.out.Requests)-1]
	k.out.Reset()
	k.refreshed("n1", first, first.Live, 'n')
	if n := count(k.wait(50*time.Millisecond), wire.Acquire); n != 3 {
		t.Fatalf("%d acquires, want 3", n)
	}
	k.refreshed("n1", second, second.Live, 'n')
	if n := count(k.wait(50*time.Millisecond), wire.Acquire); n != 0 {
		t.Errorf("%d acquires more, for an answer to what was sent before them", n)
	}
}

// One node that forgot is asked alone. The others would only repeat their answers.
func TestForgottenByOneIsAskedForThere(t *testing.T) {
	k := newTalk(t, 10*time.Second, nil)
	k.hold(2)
	refresh := k.wait(10 * time.Second / 3)[0]
	for _, node := range oneConfig.Nodes {
		unknown := wire.Runs(nil)
		if node == "n2" {
			unknown = refresh.Live
		}
		k.refreshed(node, refresh, unknown, 'n')
	}
	sent := k.wait(50 * time.Millisecond)
	if len(sent) != 2 || sent[0].Node != "n2" || sent[1].Node != "n2" {
		t.Errorf("sent %+v, want two acquires for n2 alone", sent)
	}
}
