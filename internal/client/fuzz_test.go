package client

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/dice"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// check compares the client's different records of the same facts.
func (c *Client) check() error {
	n, last := 0, (*Claim)(nil)
	for cl := c.first; cl != nil; cl = cl.next {
		due := c.deadline(cl)
		// An early refresh depends on the round trips, and may come a little late.
		if cl.state == Holding {
			due = c.lostAt(cl)
		}
		switch {
		case cl.prev != last || last != nil && last.seq >= cl.seq:
			return fmt.Errorf("claim %d is out of order", cl.seq)
		case c.claims[cl.seq] != cl:
			return fmt.Errorf("claim %d is in the list and not in the map", cl.seq)
		case cl.state == Over:
			return fmt.Errorf("claim %d is over and in the list", cl.seq)
		case len(cl.votes) != len(c.nodes):
			return fmt.Errorf("claim %d has %d votes of %d nodes", cl.seq, len(cl.votes), len(c.nodes))
		case cl.index < 0 || c.due[cl.index] != cl || cl.key > due && due > c.now:
			return fmt.Errorf("claim %d is not due when it should be", cl.seq)
		case cl.sentAt > c.sentAt || cl.seq > c.seq:
			return fmt.Errorf("claim %d has beat %d, the highest is %d", cl.seq, cl.sentAt, c.sentAt)
		case cl.state == Holding && (cl.tokenNext > cl.tokenEnd || cl.token == 0 || cl.tokenNext <= cl.token):
			return fmt.Errorf("claim %d has token %d and of the next %d to %d", cl.seq, cl.token, cl.tokenNext, cl.tokenEnd)
		}
		n++
		last = cl
	}
	if c.last != last || len(c.claims) != n || len(c.due) != n {
		return fmt.Errorf("%d claims in the list, %d in the map, %d due", n, len(c.claims), len(c.due))
	}
	if n > 0 && c.refreshAt == 0 {
		return fmt.Errorf("%d claims and no refresh", n)
	}
	return nil
}

// Whatever a client receives, in any order: it does not panic, its state is consistent,
// nodes can decode its messages, and a claim's states follow in order.
func FuzzClient(f *testing.F) {
	for seed := range uint64(64) {
		rng, script := rand.New(rand.NewPCG(seed, 2)), make([]byte, 1500)
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		d := dice.New(script)
		clusters := []wire.Config{
			{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
			{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second},
		}
		ch := &chain{last: clusters[0], cid: uuid.UUID{9}}
		clusters = append(clusters, ch.next("n1 n2 n3"), ch.next("n1 n2 n3/n3 n4"), ch.next("n3 n4"))
		w := &dice.World{
			Cluster: clusters[0], Nodes: []string{"n1", "n2", "n3", "n1", "n2", "n3", "n4"}, Clients: []string{"a", "a", "a", "a", "b"},
			Resources: []string{"r", "s"}, Lease: 10 * time.Second, Wall: 1_750_000_000_000_000,
		}
		now := wire.Now{Mono: time.Second, Wall: w.Wall}
		id := uuid.UUID{1}
		c := New(Config{Name: "a", Instance: id, TTL: w.Lease, MaxRuns: 2, Cluster: w.Cluster}, now)
		lives := map[*Claim]State{}
		tokens := map[*Claim]uint64{}
		var all []*Claim
		var out Out
		for d.Left() {
			pass := d.Pass(w.Lease)
			now.Mono += dice.Of(d, pass, pass, pass, 0)
			now.Wall += dice.Of(d, pass, pass, pass, -pass).Microseconds()
			w.Wall, w.Beat, w.Seq, w.Instances = now.Wall, c.sentAt, c.seq, []uuid.UUID{id, id, id, {2}}
			var cl *Claim
			if len(all) > 0 {
				cl = all[d.N(min(len(all), 200))]
			}
			did := "tick"
			switch what := d.N(16); {
			case what == 0:
				c.Tick(now, &out)
			case what <= 2 || cl == nil:
				did = "claim"
				cl = c.Claim(now, Request{
					Resource: dice.Of(d, w.Resources...), Mode: dice.Of(d, quorum.Exclusive, quorum.Shared), Try: d.Odds(3), Keep: d.Odds(3), ShortDeadline: d.Odds(2),
				}, &out)
				all = append(all, cl)
			case what == 3:
				did = "release"
				c.Release(now, cl, &out)
			case what == 4 && d.Odds(2):
				did = "leave release"
				cl.LeaveRelease()
			case what == 4:
				did = "keep"
				c.Keep(now, cl, &out)
			case what == 5:
				did = "next"
				if token, ok := c.Next(now, cl, &out); ok {
					if token <= max(tokens[cl], cl.token) {
						t.Fatalf("token %d after %d", token, tokens[cl])
					}
					tokens[cl] = token
				}
			case what == 6:
				did = "reconnected"
				c.Reconnected(now, &out)
			case what == 7 && d.Odds(4):
				did, w.Cluster = "set cluster", dice.Of(d, clusters...)
				c.SetCluster(now, w.Cluster, &out)
			case what <= 10:
				did = fmt.Sprintf("grants of %d", cl.seq)
				for _, a := range d.Grants(w, "a", c.id(cl), cl.sentAt) {
					c.Handle(now, &a, &out)
				}
			default:
				a := d.Answer(w)
				did = fmt.Sprintf("answer %+v", a)
				c.Handle(now, &a, &out)
			}
			if err := c.check(); err != nil {
				t.Fatalf("%v after %s", err, did)
			}
			if wait, ok := c.Wait(now); ok != (c.Claims() > 0 || c.refreshAt > 0 || c.sweepAt > 0 || c.againAt > 0) || wait < 0 {
				t.Fatalf("wait %v %v after %s", wait, ok, did)
			}
			for _, cl := range all {
				c.Report(now, cl)
				c.HeldAt(now, cl)
			}
			if d.N(3) == 0 {
				// Events of several steps come together, as with answers in one message.
				continue
			}
			for _, e := range out.Events {
				before := lives[e.Claim]
				switch e.Kind {
				case Held:
					lives[e.Claim] = Holding
					if before != Waiting {
						t.Fatalf("claim %d is held, and was %d, after %s", e.Claim.seq, before, did)
					}
				case Lost, Failed:
					lives[e.Claim] = Over
					if want := map[EventKind]State{Lost: Holding, Failed: Waiting}[e.Kind]; before != want {
						t.Fatalf("event %d of claim %d, that was %d, after %s", e.Kind, e.Claim.seq, before, did)
					}
				case Wanted, TokensReserved:
					if before != Holding {
						t.Fatalf("event %d of claim %d, that was %d, after %s", e.Kind, e.Claim.seq, before, did)
					}
				}
			}
			for i := range out.Requests {
				r := &out.Requests[i]
				if _, err := wire.DecodeRequest(r.Verb, r.Client, r.Resource, wire.AppendRequest(nil, r)); err != nil {
					t.Fatalf("%+v cannot be read after %s: %v", r, did, err)
				}
				if r.SentAt > c.sentAt {
					t.Fatalf("%+v has a beat above %d after %s", r, c.sentAt, did)
				}
			}
			out.Reset()
		}
	})
}
