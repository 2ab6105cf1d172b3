package hold

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/dice"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// check compares the table's different records of the same facts.
func (t *Table) check(all []*Hold) error {
	living := map[*Hold]int{}
	for _, u := range t.All() {
		living[u]++
	}
	for _, u := range all {
		s, want := u.shared, 1
		switch {
		case u.state == Over, u.state == Left && (s.claim == nil || s.claim.State() == client.Over):
			want = 0
		case u.state == Waiting && !slices.Contains(s.queue, u), (u.state == Holding || u.state == Kept || u.state == Left) && !slices.Contains(s.holders, u):
			return fmt.Errorf("%v is where its share does not have it", u.User)
		case (u.state == Holding || u.state == Kept) && (!s.isHeld() || s.ended && u.state == Kept), u.state == Left && !s.ended:
			return fmt.Errorf("%v holds what its client does not", u.User)
		case s.claim == nil || s.claim.User != s || s.claim.State() == client.Over:
			return fmt.Errorf("%v waits for no claim", u.User)
		case !s.try && !s.givenUp && t.claims[s.resource] != s:
			return fmt.Errorf("%v has a part in what nobody else can have a part in", u.User)
		}
		if living[u] != want {
			return fmt.Errorf("%v is %d times among those that are not over, want %d", u.User, living[u], want)
		}
		if want == 1 && len(s.holders) > 1 && slices.ContainsFunc(s.holders, func(u *Hold) bool { return u.mode == quorum.Exclusive }) {
			return fmt.Errorf("%v holds beside %d others", u.User, len(s.holders)-1)
		}
	}
	idle := 0
	for s := t.idle.first; s != nil; s = s.next {
		if idle++; s.idle == 0 || len(s.holders)+len(s.queue) > 0 || !s.isHeld() || s.next == nil && t.idle.last != s {
			return fmt.Errorf("%q is among the idle, and is not", s.resource)
		}
	}
	for s := t.passing.first; s != nil; s = s.next {
		if !s.timed || s.passUntil == 0 || s.idle > 0 || !s.isHeld() || s.next == nil && t.passing.last != s {
			return fmt.Errorf("%q is among those that are passed on, and is not", s.resource)
		}
	}
	claims := 0
	for _, cl := range t.core.All() {
		claims++
		if s := cl.User.(*sharedClaim); s.claim != cl || len(s.holders)+len(s.queue) == 0 && s.idle == 0 {
			return fmt.Errorf("claim %d is nobody's", cl.Seq())
		}
	}
	if claims != t.core.Claims() {
		return fmt.Errorf("%d claims, counted as %d", claims, t.core.Claims())
	}
	return nil
}

// A node, two clients, and a network in which messages wait, arrive in any order,
// repeatedly, or several in one step, among them messages that nobody sent. Nothing
// panics, the state of each table is consistent, and the states of a hold follow in
// order.
func FuzzTables(f *testing.F) {
	for seed := range uint64(64) {
		rng, script := rand.New(rand.NewPCG(seed, 3)), make([]byte, 1500)
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		d := dice.New(script)
		cfg := wire.Config{Nodes: []string{"n1"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
		if d.Odds(2) {
			cfg.Nodes = []string{"n1", "n2", "n3"}
		}
		w := &dice.World{
			Cluster: cfg, Nodes: cfg.Nodes, Clients: []string{"a", "b"}, Instances: []uuid.UUID{{2, 0}, {2, 1}},
			Resources: []string{"r", "s"}, Lease: lease, Seq: 6, Wall: 1_800_000_000_000_000,
		}
		now := wire.Now{Mono: time.Second, Wall: w.Wall}
		type party struct {
			name     string
			id       uuid.UUID
			core     *client.Client
			table    *Table
			uses     []*Hold
			out      Out
			requests []wire.Request // under way
			answers  []wire.Answer
		}
		retention := dice.Of(d, 0, time.Second, 20*time.Second)
		var parties []*party
		for i, name := range w.Clients {
			p := &party{name: name, id: w.Instances[i]}
			p.core = client.New(client.Config{Name: name, Instance: p.id, TTL: lease, MaxRuns: 4, Cluster: cfg}, now)
			p.table = New(p.core, retention)
			p.table.PassOn(dice.Of(d, 0, 3), dice.Of(d, 0, time.Second))
			parties = append(parties, p)
		}
		var nodes []*voter.Node
		for i, name := range cfg.Nodes {
			n := voter.New(voter.Config{
				Name: name, Config: cfg, Incarnation: uuid.UUID{1, byte(i)}, ProbeWait: time.Millisecond, MaxClaims: 20, MaxQueue: 10,
			}, now, &voter.Saved{}, 0)
			nodes = append(nodes, n)
		}
		send := func(out *voter.Out, n *voter.Node) {
			if out.Probe != nil { // it hears itself
				n.Handle(now, out.Probe, "", out)
				n.HandleAnswer(now, &wire.Answer{
					Kind: wire.Informed, Node: out.Probe.Node, Incarnation: out.Probe.Incarnation, Info: &wire.NodeInfo{Nonce: out.Probe.Nonce},
				}, out)
			}
			for _, s := range out.Answers {
				for _, p := range parties {
					if s.To == p.name && len(p.answers) < 200 {
						p.answers = append(p.answers, s.Answer)
					}
				}
			}
		}
		lives := map[*Hold][]EventKind{}
		number := 0
		for d.Left() {
			pass := d.Pass(lease)
			now.Mono += pass
			now.Wall += pass.Microseconds()
			w.Wall = now.Wall
			w.Beat = uint64(now.Mono / time.Microsecond)
			for _, n := range nodes {
				var out voter.Out
				n.Tick(now, &out)
				send(&out, n)
			}
			p := parties[d.N(2)]
			did := "tick"
			switch d.N(8) {
			case 0:
				p.table.Tick(now, &p.out)
			case 1, 2:
				number++
				did = "lock"
				p.uses = append(p.uses, p.table.Lock(now, Request{
					Resource: dice.Of(d, w.Resources...), Mode: dice.Of(d, writer, reader), Try: d.Odds(4), ShortDeadline: d.Odds(2),
					At: dice.Of(d, 0, 0, 1, w.Wall-int64(d.N(10_000_000))), User: fmt.Sprint(p.name, number),
					Manual: d.Odds(3), AtLeast: dice.Of(d, 0, 0, time.Second, 2*lease), AtMost: dice.Of(d, 0, 0, time.Millisecond, lease),
				}, &p.out))
			case 3:
				if did = "unlock"; len(p.uses) > 0 {
					u := p.uses[d.N(min(len(p.uses), 200))]
					if u.state != Over {
						lives[u] = append(lives[u], Returned)
					}
					if d.Odds(4) {
						p.table.Drop(now, u, &p.out)
					} else {
						p.table.Unlock(now, u, &p.out)
					}
				}
			case 4: // nodes receive what is under way
				did = "delivery to nodes"
				for i := range p.requests {
					for _, n := range nodes {
						if !d.Odds(8) {
							var out voter.Out
							r := p.requests[i]
							n.Handle(now, &r, p.name, &out)
							send(&out, n)
						}
					}
				}
				p.requests = nil
			case 5: // several answers in one step
				did = "delivery to clients"
				for i := d.N(8); i > 0 && len(p.answers) > 0; i-- {
					k := d.N(min(len(p.answers), 200))
					a := p.answers[k]
					if d.N(4) > 0 {
						p.answers = slices.Delete(p.answers, k, k+1)
					}
					p.table.Handle(now, &a, &p.out)
				}
			case 6: // and some that nobody sent
				did = "answers from nowhere"
				for _, cl := range p.core.All() {
					if d.Odds(2) {
						for _, a := range d.Grants(w, p.name, wire.ClaimID{Instance: p.id, Seq: cl.Seq()}, w.Beat) {
							p.table.Handle(now, &a, &p.out)
						}
					}
				}
				for range d.N(6) {
					a := d.Answer(w)
					p.table.Handle(now, &a, &p.out)
				}
			case 7:
				did = "reconnected"
				p.table.Reconnected(now, &p.out)
				if d.Odds(4) {
					p.table.ReleaseIdle(now, 3, &p.out)
				}
				if d.Odds(4) {
					did = "another instance"
					p.id[2]++
					p.table.Renew(now, p.id, &p.out)
				}
			}
			if err := p.table.check(p.uses); err != nil {
				t.Fatalf("%v after %s", err, did)
			}
			for _, u := range p.uses {
				p.table.Report(now, u)
				p.table.Ours(now, u)
				p.table.HeldAt(now, u)
				if p.table.Keeps(now, u) < 0 || p.table.Stands(now, u) < 0 {
					t.Fatalf("%v: a time below 0", u.User)
				}
			}
			if d.N(4) == 0 {
				continue // the driver sees several steps at once
			}
			for _, e := range p.out.Holds {
				if e.Kind == Held && e.Votes == 0 {
					t.Fatalf("%v holds with no vote after %s", e.Hold.User, did)
				}
				if e.Kind == Returned || e.Kind == Expired {
					continue
				}
				for _, before := range lives[e.Hold] {
					if before != Held && before != Returned || e.Kind != Lost && before == Held {
						t.Fatalf("%v: event %d after %v, after %s", e.Hold.User, e.Kind, lives[e.Hold], did)
					}
				}
				lives[e.Hold] = append(lives[e.Hold], e.Kind)
			}
			if len(p.requests) < 200 {
				p.requests = append(p.requests, slices.Clone(p.out.Requests)...)
			}
			p.out.Reset()
		}
	})
}
