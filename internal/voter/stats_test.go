package voter

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// A sequence with one of everything that a node counts.
func TestCounts(t *testing.T) {
	c := newCrowd(2)
	n := c.node
	n.cfg.MaxQueue = 1
	sentAt := uint64(0)
	ask := func(client string, seq uint64, change func(*wire.Request)) {
		sentAt++
		r := &wire.Request{
			Verb: wire.Acquire, Client: client, Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{client[0]}, Seq: seq},
			SentAt: sentAt, Mode: quorum.Exclusive, At: c.now.Wall + int64(sentAt), TTL: 10 * time.Second, Digest: n.digest,
		}
		if change != nil {
			change(r)
		}
		n.Handle(c.now, r, "_INBOX."+client, &c.out)
		c.reset()
		voted := 0
		for _, claim := range n.leases {
			if claim.voted {
				voted++
			}
		}
		if n.Waiting() != n.Claims()-voted {
			t.Fatalf("%d claims, %d with a vote, and %d wait", n.Claims(), voted, n.Waiting())
		}
	}
	check := func(what string, counts Counts, claims, waiting, clients int) {
		t.Helper()
		if n.Counts() != counts || n.Claims() != claims || n.Waiting() != waiting || n.Clients() != clients {
			t.Errorf("%s: %+v, %d claims, %d wait, %d clients; want %+v, %d, %d, %d",
				what, n.Counts(), n.Claims(), n.Waiting(), n.Clients(), counts, claims, waiting, clients)
		}
	}
	want := Counts{}
	ask("b", 1, nil)
	ask("b", 1, nil) // it is told again
	want.Granted++
	check("a vote", want, 1, 0, 1)

	ask("a", 1, func(r *wire.Request) { r.At = c.now.Wall })
	want.Recalls++
	check("an older one waits", want, 2, 1, 2)

	ask("b", 1, func(r *wire.Request) { r.Verb, r.Node = wire.Yield, "n1" })
	want.Granted++
	check("the younger yields", want, 2, 1, 2)

	for _, change := range []func(*wire.Request){
		func(r *wire.Request) { r.Digest = "other" },
		func(r *wire.Request) { r.TTL = time.Hour },
		func(r *wire.Request) { r.At = c.now.Wall + time.Minute.Microseconds() },
		func(r *wire.Request) { r.MinFence, r.Held = 1<<52, true },
		nil, // one waits, and one holds
	} {
		ask("c", 1, change)
	}
	ask("d", 1, func(r *wire.Request) { r.Resource = "d" })
	ask("d", 2, func(r *wire.Request) { r.Resource = "e" })
	ask("d", 3, func(r *wire.Request) { r.Resource = "f" })
	want.Granted += 2
	want.Refused = Refusals{1, 1, 1, 1, 1, 1, 0}
	check("refusals", want, 4, 1, 3)

	saved, ok := n.Save(c.now)
	if !ok {
		t.Fatal("nothing is saved")
	}
	c.now.Mono += 9 * time.Second
	n.heardAt = c.now.Mono // nobody delivers its questions here
	ask("d", 1, func(r *wire.Request) { r.Verb, r.Resource = wire.Release, "d" })
	ask("d", 2, func(r *wire.Request) { r.Resource = "e" }) // extends its lease
	c.now.Mono += time.Second
	n.Tick(c.now, &c.out) // a's vote and b's place expire
	want.Expired += 2
	want.Granted++ // b had it in between
	check("leases run out", want, 1, 0, 1)

	c.node = New(n.cfg, c.now, saved, 0)
	n = c.node
	check("a new life", Counts{}, 4, 1, 3)
	if got := n.Recovering(c.now); got != n.cfg.ProbeWait {
		t.Errorf("it votes in %v, want the %v of its probe", got, n.cfg.ProbeWait)
	}
	n = New(n.cfg, c.now, nil, 0)
	c.now.Mono += 10 * time.Second
	if got, want := n.Recovering(c.now), 20*time.Second+wire.Margin(30*time.Second)+n.listen(); got != want {
		t.Errorf("one that may have forgotten votes in %v, want %v", got, want)
	}
	n.stopped = true
	if got := n.Recovering(c.now); got != 0 {
		t.Errorf("one that stopped votes in %v", got)
	}
}
