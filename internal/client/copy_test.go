package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// copied returns a client that holds r and waits for s.
func copied(t *testing.T) (*Client, *Claim, *Claim, wire.Now) {
	t.Helper()
	now := wire.Now{Mono: time.Second, Wall: 1_750_000_000_000_000}
	c := New(Config{
		Name: "a", Instance: uuid.UUID{1}, TTL: 10 * time.Second, MaxRuns: 9,
		Cluster: wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
	}, now)
	var out Out
	held := c.Claim(now, Request{Resource: "r", Mode: quorum.Exclusive}, &out)
	waits := c.Claim(now, Request{Resource: "s", Mode: quorum.Exclusive}, &out)
	c.Handle(now, answerTo(c, held, wire.Granted, held.sentAt), &out)
	if held.State() != Holding || out.Renew {
		t.Fatalf("%+v", out)
	}
	return c, held, waits, now
}

func answerTo(c *Client, cl *Claim, kind wire.Kind, sentAt uint64) *wire.Answer {
	return &wire.Answer{
		Kind: kind, Node: "n1", Incarnation: uuid.UUID{9}, Digest: c.digest, Client: "a", Claim: c.id(cl), SentAt: sentAt, Fence: 7,
	}
}

// renewed checks the state of such a client after it took a new instance.
func renewed(t *testing.T, c *Client, held, waits *Claim, now wire.Now, out *Out, lastWord bool) {
	t.Helper()
	if !out.Renew {
		t.Fatal("it does not want another instance")
	}
	old, other := uuid.UUID{1}, uuid.UUID{2}
	c.Renew(now, other, out)
	lost, asked, word := 0, 0, 0
	for _, e := range out.Events {
		if e.Kind == Lost && e.Claim == held {
			lost++
		}
	}
	for _, r := range out.Requests {
		switch {
		case r.Verb == wire.Acquire && r.Claim == wire.ClaimID{Instance: other, Seq: waits.seq} && r.At == waits.at:
			asked++
		case r.Verb == wire.Refresh && r.Claim.Instance == old && r.SentAt == wire.MaxInt && r.Hi == 0 && r.Live == nil:
			word++
		default:
			t.Errorf("it sends %+v", r)
		}
	}
	if lost != 1 || asked != 1 || (word == 1) != lastWord || held.State() != Over || waits.State() != Waiting || out.Renew {
		t.Errorf("lost %d times, asked anew %d times, said so %d times: %+v", lost, asked, word, out)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
}

// An answer repeats a beat that this client did not send (C15).
func TestBeatOfACopy(t *testing.T) {
	c, held, waits, now := copied(t)
	var out Out
	c.Handle(now, answerTo(c, waits, wire.Queued, c.sentAt), &out)
	c.Handle(now, answerTo(c, held, wire.Recall, c.sentAt), &out)
	if out.Renew {
		t.Fatal("its own beats are taken for another's")
	}
	out.Reset()
	c.Handle(now, answerTo(c, waits, wire.Queued, c.sentAt+1), &out)
	renewed(t, c, held, waits, now, &out, true)
	if c.Counts().Copies != 1 || len(out.Notes) != 1 {
		t.Errorf("%+v, %q", c.Counts(), out.Notes)
	}
	// Late messages for the old instance have no effect.
	out.Reset()
	late := answerTo(c, waits, wire.Granted, wire.MaxInt)
	late.Claim.Instance = uuid.UUID{1}
	c.Handle(now, late, &out)
	if out.Renew || len(out.Events) > 0 || len(out.Requests) > 0 {
		t.Errorf("%+v", out)
	}
}

// A node has the number for another claim (N2).
func TestNumberOfACopy(t *testing.T) {
	c, held, waits, now := copied(t)
	var out Out
	a := answerTo(c, waits, wire.Refused, c.sentAt)
	a.Reason = wire.ReasonCopy
	c.Handle(now, a, &out)
	renewed(t, c, held, waits, now, &out, true)
}

// A client that was away for a lease may be a snapshot, and releases nothing. It need not
// tell others, which may rightly go on.
func TestLeapOfAClock(t *testing.T) {
	for _, leap := range []struct{ mono, wall time.Duration }{{11 * time.Second, 11 * time.Second}, {0, 11 * time.Second}} {
		for name, step := range map[string]func(c *Client, held *Claim, now wire.Now, out *Out){
			"tick":    func(c *Client, _ *Claim, now wire.Now, out *Out) { c.Tick(now, out) },
			"release": func(c *Client, held *Claim, now wire.Now, out *Out) { c.Release(now, held, out) },
			"report and tick": func(c *Client, held *Claim, now wire.Now, out *Out) {
				c.Report(now, held)
				c.Tick(now, out)
			},
		} {
			c, held, waits, now := copied(t)
			now.Mono += leap.mono
			now.Wall += leap.wall.Microseconds()
			var out Out
			step(c, held, now, &out)
			t.Run(name, func(t *testing.T) { renewed(t, c, held, waits, now, &out, false) })
		}
	}
	c, _, _, now := copied(t)
	var out Out
	for range 9 { // no leap, but more than a lease in all
		now.Mono += 9 * time.Second
		now.Wall += (9 * time.Second).Microseconds()
		c.Tick(now, &out)
	}
	if out.Renew {
		t.Error("a client that looks at its clocks takes another instance")
	}
}
