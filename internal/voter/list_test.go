package voter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// pages requests one page after the other, and calls between after each.
func (c *crowd) pages(t *testing.T, r wire.Request, between func()) (records []wire.Record, pages int) {
	t.Helper()
	r.Client, r.Nonce = "ops", "nonce"
	for {
		c.node.Handle(c.now, &r, "_INBOX.ops", &c.out)
		if len(c.out.Answers) != 1 || c.out.Answers[0].To != "_INBOX.ops" {
			t.Fatalf("answers: %+v", c.out.Answers)
		}
		a := c.out.Answers[0].Answer
		if body := wire.AppendAnswer(nil, &a); len(body) > 2*wire.PageBytes {
			t.Errorf("a page of %d bytes", len(body))
		} else if _, err := wire.DecodeAnswer(body); err != nil {
			t.Errorf("page: %v", err)
		}
		c.reset()
		pages++
		records = append(records, a.List.Locks...)
		if a.List.Next == 0 {
			return records, pages
		}
		if a.List.Next <= r.After {
			t.Fatalf("page after %d: go on after %d", r.After, a.List.Next)
		}
		r.After = a.List.Next
		between()
	}
}

// A resource that exists from the first page to the last is listed once, whatever else
// comes and goes meanwhile.
func TestListWhileLocksComeAndGo(t *testing.T) {
	const many = 30_000
	c := newCrowd(4 * many)
	for i := range many {
		c.acquire(i)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	gone := map[string]bool{}
	next := many
	got, pages := c.pages(t, wire.Request{Verb: wire.List}, func() {
		for range 500 {
			i := rng.IntN(many)
			if name := fmt.Sprintf("orders.%d", i); !gone[name] {
				c.release(i)
				gone[name] = true
			}
			c.acquire(next)
			c.release(next)
			next++
		}
	})
	seen := map[string]int{}
	for _, r := range got {
		seen[r.Name]++
	}
	for i := range many {
		name := fmt.Sprintf("orders.%d", i)
		if n := seen[name]; n > 1 || n == 0 && !gone[name] {
			t.Errorf("%s is listed %d times", name, n)
		}
	}
	if pages < 10 {
		t.Errorf("%d names in %d pages", len(got), pages)
	}
	for i := range many {
		if !gone[fmt.Sprintf("orders.%d", i)] {
			c.release(i)
		}
	}
	if len(c.node.roll.slots) != 0 || c.node.roll.gone != 0 {
		t.Errorf("the roll keeps %d slots, %d of them empty", len(c.node.roll.slots), c.node.roll.gone)
	}
}

// A page that finds nothing ends as well, and says where to go on.
func TestListOfFewAmongMany(t *testing.T) {
	c := newCrowd(50_000)
	for i := range 50_000 {
		c.acquire(i)
	}
	got, pages := c.pages(t, wire.Request{Verb: wire.List, Query: "orders.49999"}, func() {})
	if len(got) != 1 || got[0].Votes != 1 || len(got[0].Claims) != 1 || pages != 5 {
		t.Errorf("%d pages with %+v", pages, got)
	}
}

// Holders come first, then the queue in its order, over as many pages as needed. A list
// shows a few readers and counts all of them.
func TestInspectALongQueue(t *testing.T) {
	c := newCrowd(10_000)
	ask := func(seq uint64, mode quorum.Mode) {
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Acquire, Client: "orders", Resource: "x", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, Note: fmt.Sprint("note ", seq),
			SentAt: seq, Mode: mode, At: c.now.Wall + int64(seq), TTL: 30 * time.Second, Digest: c.node.digest,
		}, "_INBOX.orders", &c.out)
		c.reset()
	}
	for i := range uint64(100) {
		ask(1+i, quorum.Shared)
	}
	for i := range uint64(900) {
		ask(101+i, quorum.Exclusive)
	}
	got, pages := c.pages(t, wire.Request{Verb: wire.Inspect, Resource: "x"}, func() {})
	var seqs []uint64
	for _, r := range got {
		if r.Name != "x" || r.Votes != 100 || r.Waiting != 900 {
			t.Errorf("%s: %d votes, %d wait", r.Name, r.Votes, r.Waiting)
		}
		for _, cl := range r.Claims {
			seqs = append(seqs, cl.Claim.Seq)
			if cl.Note != fmt.Sprint("note ", cl.Claim.Seq) || cl.Voted != (cl.Claim.Seq <= 100) || cl.Lease != 30*time.Second {
				t.Errorf("%+v", cl)
			}
		}
	}
	if len(seqs) != 1000 || !slices.IsSorted(seqs) || pages < 3 {
		t.Errorf("%d claims in %d pages", len(seqs), pages)
	}
	all, _ := c.pages(t, wire.Request{Verb: wire.List}, func() {})
	if len(all) != 1 || all[0].Votes != 100 || len(all[0].Claims) != mostShown {
		t.Errorf("list: %+v", all)
	}
	for _, r := range []wire.Request{
		{Verb: wire.Inspect, Resource: "x", After: 1 << 50},
		{Verb: wire.Inspect, Resource: "nobody's"},
		{Verb: wire.List, After: wire.MaxInt},
	} {
		if got, pages := c.pages(t, r, func() {}); pages != 1 || len(got) > 0 && len(got[0].Claims) > 0 {
			t.Errorf("%+v: %+v in %d pages", r, got, pages)
		}
	}
	c.node.Handle(c.now, &wire.Request{Verb: wire.List, Client: "ops", Node: "n2"}, "_INBOX.ops", &c.out)
	c.node.Handle(c.now, &wire.Request{Verb: wire.Inspect, Client: "ops", Resource: "x", Node: "n2"}, "_INBOX.ops", &c.out)
	if len(c.out.Answers) > 0 {
		t.Errorf("answers for another node: %+v", c.out.Answers)
	}
}

// N10: the lease of an evicted claim ends as it was, the vote is not confirmed, and every
// answer about the claim says that it is evicted.
func TestEviction(t *testing.T) {
	c := newCrowd(100)
	c.acquire(0)
	id := wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}
	evict := func(holder, resource string, id wire.ClaimID) (known bool) {
		t.Helper()
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Evict, Client: "ops", Resource: resource, Nonce: "nonce", Holder: holder, Claim: id, Query: "why",
		}, "_INBOX.ops", &c.out)
		told := 0
		for _, s := range c.out.Answers {
			switch a := s.Answer; {
			case s.To == "_INBOX.ops" && a.Kind == wire.Evicting && a.Nonce == "nonce" && a.Client == "ops":
				known = a.Known
			case s.To == "_INBOX.orders" && a.Kind == wire.Evicted && a.Client == "orders" && a.Claim == id && a.By == "ops" && a.Text == "why":
				told++
			default:
				t.Errorf("to %s: %+v", s.To, a)
			}
		}
		if known != (told == 1) {
			t.Errorf("known %v, the holder was told %d times", known, told)
		}
		c.reset()
		return known
	}
	if evict("others", "orders.0", id) || evict("orders", "orders.1", id) || evict("orders", "orders.0", wire.ClaimID{Instance: uuid.UUID{1}, Seq: 2}) {
		t.Fatal("what is not there was evicted")
	}
	if !evict("orders", "orders.0", id) {
		t.Fatal("the claim is not known")
	}
	start := c.now
	for sentAt := uint64(10); ; sentAt++ {
		c.now.Mono += time.Second
		c.now.Wall += 1_000_000
		c.node.heardAt, c.node.heardWall = c.now.Mono, c.now.Wall
		if c.node.Tick(c.now, &c.out); c.node.Claims() == 0 {
			break
		}
		c.reset()
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Refresh, Client: "orders", Claim: wire.ClaimID{Instance: uuid.UUID{1}}, SentAt: sentAt, Lo: 1, Hi: 1, Live: wire.Runs{{Lo: 1, Hi: 1}},
		}, "_INBOX.orders", &c.out)
		refreshed, evicted := 0, 0
		for _, s := range c.out.Answers {
			switch s.Answer.Kind {
			case wire.Evicted:
				evicted++
			case wire.Refreshed:
				refreshed++
				if !s.Answer.Waiting.Has(1) {
					t.Fatalf("the vote is confirmed: %+v", s.Answer)
				}
			default:
				t.Errorf("%+v", s.Answer)
			}
		}
		if refreshed != 1 || evicted != 1 {
			t.Errorf("%d refreshed, %d evicted", refreshed, evicted)
		}
		c.reset()
	}
	if d := c.now.Mono - start.Mono; d != 30*time.Second {
		t.Errorf("the claim went after %v, its lease is 30 s", d)
	}
}

// However small messages must be, and whatever names and notes contain, each page fits,
// and the pages are complete. Notes are left out before claims.
func TestPagesFit(t *testing.T) {
	notes := []string{"", "plain", strings.Repeat("<", 256), strings.Repeat("\x01", 256), strings.Repeat("\u2028", 85), strings.Repeat("é", 128), strings.Repeat("日", 85)}
	long := strings.Repeat("*", 1000) // 3,000 bytes in a page
	for _, most := range []int{1 << 10, 2 << 10, 4 << 10, 8 << 10, 32 << 10, 64 << 10, 1 << 20} {
		c := newCrowd(10_000)
		names, bare, seq := 0, 0, uint64(0)
		ask := func(name string, mode quorum.Mode) {
			seq++
			c.node.Handle(c.now, &wire.Request{
				Verb: wire.Acquire, Client: strings.Repeat("c", 64), Resource: name, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq},
				Note: notes[seq%uint64(len(notes))], SentAt: seq, Mode: mode, At: c.now.Wall + int64(seq), TTL: 30 * time.Second, Digest: c.node.digest,
			}, "_INBOX.orders", &c.out)
			c.reset()
		}
		for i := range 100 {
			ask(fmt.Sprint("short.", i), quorum.Exclusive)
			names++
			if i%10 == 0 && most >= 4<<10 {
				ask(fmt.Sprint(long, i), quorum.Exclusive)
				names++
			}
			ask("shared", quorum.Shared)
			ask("short.0", quorum.Exclusive)
		}
		names++
		c.node.Fit(most)
		for _, r := range []wire.Request{{Verb: wire.List}, {Verb: wire.Inspect, Resource: "shared"}, {Verb: wire.Inspect, Resource: "short.0"}} {
			r.Client, r.Nonce = "ops", "nonce"
			seen, claims := map[string]bool{}, 0
			for {
				c.node.Handle(c.now, &r, "_INBOX.ops", &c.out)
				a := c.out.Answers[0].Answer
				body := wire.AppendAnswer(nil, &a)
				if len(body) > min(most, wire.PageBytes) {
					t.Errorf("%s: a page of %d bytes, %d fit", r.Verb, len(body), most)
				}
				if _, err := wire.DecodeAnswer(body); err != nil {
					t.Errorf("page: %v", err)
				}
				for _, rec := range a.List.Locks {
					seen[rec.Name] = true
					claims += len(rec.Claims)
					if r.Verb == wire.List && rec.Votes > 0 && len(rec.Claims) == 0 {
						bare++
					}
				}
				c.reset()
				if a.List.Next == 0 {
					break
				}
				r.After = a.List.Next
			}
			switch {
			case r.Verb == wire.List && len(seen) != names:
				t.Errorf("%d bytes: %d names of %d are listed", most, len(seen), names)
			case r.Verb == wire.Inspect && claims != map[string]int{"shared": 100, "short.0": 101}[r.Resource]:
				t.Errorf("%d bytes: %s has %d claims", most, r.Resource, claims)
			}
		}
		if bare > 0 {
			t.Errorf("%d bytes: %d names are listed without a holder", most, bare)
		}
	}
}

// A name that fits into no page is left out, and the rest is listed.
func TestPageWithoutTheLongestName(t *testing.T) {
	c := newCrowd(10)
	for i, name := range []string{"a", strings.Repeat("*", 1000), "b"} {
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Acquire, Client: "orders", Resource: name, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: uint64(i + 1)},
			SentAt: 1, Mode: quorum.Exclusive, At: c.now.Wall, TTL: 30 * time.Second, Digest: c.node.digest,
		}, "_INBOX.orders", &c.out)
		c.reset()
	}
	c.node.Fit(1024)
	got, _ := c.pages(t, wire.Request{Verb: wire.List}, func() {})
	if len(got) != 2 || got[0].Name != "a" || got[1].Name != "b" {
		t.Errorf("%+v", got)
	}
}

// A client that asked for a higher fence may hold by votes that agree on a lower one (C3).
// It then says so, and lists have the token that it gave out, also after a clean restart.
func TestListedTokenIsTheHolders(t *testing.T) {
	c := newCrowd(10)
	low := uint64(c.now.Wall)
	high := low + 1000
	listed := func() uint64 {
		t.Helper()
		got, _ := c.pages(t, wire.Request{Verb: wire.List}, func() {})
		if len(got) != 1 || len(got[0].Claims) != 1 {
			t.Fatalf("%+v is listed", got)
		}
		return got[0].Claims[0].Token
	}
	inUse := uint64(0)
	acquire := func(beat, want uint64, held bool) {
		c.node.Handle(c.now, &wire.Request{
			Verb: wire.Acquire, Client: "orders", Resource: "r", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, SentAt: beat,
			Mode: quorum.Exclusive, At: c.now.Wall, TTL: 30 * time.Second, Digest: c.node.digest, MinFence: want, Held: held, Token: inUse,
		}, "_INBOX.orders", &c.out)
		c.reset()
	}
	acquire(1, 0, false)
	acquire(2, high, false)
	if got := listed(); got != 0 {
		t.Errorf("token %d of a claim whose client has not said that it holds it", got)
	}
	acquire(3, low, true)
	if got := listed(); got != low {
		t.Errorf("token %d is listed, the client said %d", got, low)
	}
	// A token that no node can have given is not believed.
	acquire(4, high+uint64(time.Hour.Microseconds()), true)
	if got := listed(); got > high {
		t.Errorf("token %d is listed, %d was the highest fence", got, high)
	}
	// It wants fences for its next holder, and its present one has a lower token.
	inUse = low + 7
	acquire(5, high+1, true)
	if got := listed(); got != inUse {
		t.Errorf("token %d is listed, the client said %d and wants %d", got, inUse, high+1)
	}
	inUse = high + uint64(time.Hour.Microseconds())
	acquire(6, high+1, true)
	if got := listed(); got > high+1 {
		t.Errorf("token %d is listed, %d was the highest fence", got, high+1)
	}
	inUse = low
	acquire(7, high+2, true)

	saved, ok := c.node.Save(c.now)
	if !ok {
		t.Fatal("no clean mark")
	}
	c.node = New(c.node.cfg, c.now, saved, 0)
	if got := listed(); got != low {
		t.Errorf("token %d is listed after a restart, want %d", got, low)
	}
}
