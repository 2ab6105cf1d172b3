package voter

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/dice"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// check compares the node's different records of the same facts.
func (n *Node) check() error {
	votes, perClient, keepers := 0, map[string]int{}, map[*resource]int{}
	for i, c := range n.leases {
		if c.index != i || c.key > c.deadline || i > 0 && n.leases[(i-1)/2].key > c.key {
			return fmt.Errorf("%v is at %d of the leases, and says %d", c.id(), i, c.index)
		}
		if n.sessions[c.session.key] != c.session || c.session.claims[c.seq] != c {
			return fmt.Errorf("%v is not among the claims of its client", c.id())
		}
		if n.resources[c.res.name] != c.res {
			return fmt.Errorf("%v is on a record of %q that is not the node's", c.id(), c.res.name)
		}
		inVotes, inQueue := 0, 0
		for _, v := range c.res.votes {
			if v == c {
				inVotes++
			}
		}
		for _, v := range c.res.queue {
			if v == c {
				inQueue++
			}
		}
		if inVotes+inQueue != 1 || c.voted != (inVotes == 1) {
			return fmt.Errorf("%v (vote: %v) is %d times among the votes and %d times in the queue", c.id(), c.voted, inVotes, inQueue)
		}
		if c.voted {
			votes++
			keepers[c.res] += keeper(c)
			if c.fence == 0 || c.reserved == 0 || c.fence+c.reserved-1 > c.res.floor {
				return fmt.Errorf("%v has fence %d and %d more, the floor is %d", c.id(), c.fence, c.reserved, c.res.floor)
			}
		} else if c.fence != 0 || c.reserved != 0 || c.grantPending {
			return fmt.Errorf("%v has fence %d and %d more, and no vote", c.id(), c.fence, c.reserved)
		}
		perClient[c.session.key.client]++
	}
	if votes != n.votes || !reflect.DeepEqual(perClient, n.perClient) {
		return fmt.Errorf("%d votes and claims by client %v, counted as %d and %v", votes, perClient, n.votes, n.perClient)
	}
	claims := 0
	for _, s := range n.sessions {
		if claims += len(s.claims); len(s.claims) == 0 {
			return fmt.Errorf("%v has a record and no claims", s.key)
		}
	}
	if claims != len(n.leases) {
		return fmt.Errorf("%d claims of clients, %d leases", claims, len(n.leases))
	}
	claims = 0
	for name, res := range n.resources {
		claims += len(res.votes) + len(res.queue)
		if res.name != name || len(res.votes)+len(res.queue) == 0 || keepers[res] != res.keepers {
			return fmt.Errorf("%q: %d votes, %d waiting, %d keepers, counted as %d", name, len(res.votes), len(res.queue), keepers[res], res.keepers)
		}
		for i, v := range res.votes {
			if i > 0 && order(res.votes[i-1], v) >= 0 {
				return fmt.Errorf("%q: votes in disorder", name)
			}
			if len(res.votes) > 1 && v.mode != quorum.Shared {
				return fmt.Errorf("%q: %d votes, one of them exclusive", name, len(res.votes))
			}
		}
		for i, v := range res.queue {
			if i > 0 && order(res.queue[i-1], v) >= 0 {
				return fmt.Errorf("%q: queue in disorder", name)
			}
		}
		if n.voting() && len(res.queue) > 0 && (len(res.votes) == 0 || !quorum.Conflicts(res.votes[0].mode, res.queue[0].mode)) {
			return fmt.Errorf("%q: %v waits for nobody", name, res.queue[0].id())
		}
		i, ok := slices.BinarySearchFunc(n.roll.slots, res.born, func(s slot, born uint64) int { return int(s.born) - int(born) })
		if !ok || n.roll.slots[i].res != res {
			return fmt.Errorf("%q is not in the roll", name)
		}
	}
	if claims != len(n.leases) {
		return fmt.Errorf("%d claims on names, %d leases", claims, len(n.leases))
	}
	if got := len(n.roll.slots) - n.roll.gone; got != len(n.resources) {
		return fmt.Errorf("%d names, %d in the roll", len(n.resources), got)
	}
	return nil
}

// Whatever a node receives, in any order: it does not panic, its state is consistent, and
// its messages can be decoded.
func FuzzNode(f *testing.F) {
	for seed := range uint64(64) {
		rng, script := rand.New(rand.NewPCG(seed, 1)), make([]byte, 1500)
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		d := dice.New(script)
		cfg := wire.Config{Nodes: []string{"n1", "n2"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
		w := &dice.World{
			Cluster: cfg, Nodes: []string{"n1", "n1", "n2"}, Clients: []string{"a", "b", "n1", "n2"}, Instances: []uuid.UUID{{1}, {2}},
			Resources: []string{"r", "s", "t"}, Lease: 10 * time.Second, Beat: 1_000_000, Seq: 4, Wall: 1_750_000_000_000_000,
		}
		now := wire.Now{Mono: time.Second, Wall: w.Wall}
		start := func(saved *Saved) *Node {
			return New(Config{
				Name: "n1", Config: cfg, Incarnation: uuid.UUID{1}, ProbeWait: time.Millisecond, MaxClaims: 9, MaxQueue: 3, MaxRuns: 4,
			}, now, saved, 0)
		}
		n := start(&Saved{})
		var out Out
		for d.Left() {
			pass := d.Pass(w.Lease)
			now.Mono += pass
			now.Wall += pass.Microseconds()
			w.Wall = now.Wall
			w.Beat += uint64(pass.Microseconds())
			did := "tick"
			switch d.N(8) {
			case 0:
				n.Tick(now, &out)
			case 1:
				a := d.AnswerOf(w, dice.Of(d, wire.Informed, wire.Over))
				if a.Kind == wire.Informed {
					a.Info = &wire.NodeInfo{
						Nonce: dice.Of(d, n.nonce(), "n"), Nodes: cfg.Nodes, Started: dice.Of(d, n.started, 0, wire.MaxInt), Voted: d.Odds(2),
					}
				}
				did = fmt.Sprintf("answer %+v %+v", a, a.Info)
				if a.Kind == wire.Over || a.Incarnation == n.cfg.Incarnation || d.Odds(4) {
					n.HandleAnswer(now, &a, &out)
				}
			case 2:
				did = "saved and started again"
				saved, ok := n.Save(now)
				if !ok {
					saved = nil
				}
				n = start(saved)
			default:
				r := d.Request(w)
				did = fmt.Sprintf("%+v", r)
				n.Handle(now, &r, dice.Of(d, "inbox.a", "inbox.b", ""), &out)
			}
			if out.Probe != nil && !d.Odds(3) { // it hears itself
				p := *out.Probe
				out.Probe = nil
				n.Handle(now, &p, "n1", &out)
				for _, s := range slices.Clone(out.Answers) {
					if s.Answer.Kind == wire.Informed && s.To == "n1" {
						n.HandleAnswer(now, &s.Answer, &out)
					}
				}
			}
			if err := n.check(); err != nil {
				t.Fatalf("%v after %s", err, did)
			}
			for i := range out.Answers {
				if a := &out.Answers[i].Answer; out.Answers[i].To == "" {
					t.Fatalf("%s to nobody after %s", a.Kind, did)
				} else if _, err := wire.DecodeAnswer(wire.AppendAnswer(nil, a)); err != nil {
					t.Fatalf("%+v cannot be read after %s: %v", a, did, err)
				}
			}
			if q := out.Ask; q != nil {
				if _, err := wire.DecodeRequest(q.Verb, q.Client, "", wire.AppendRequest(nil, q)); err != nil {
					t.Fatalf("%+v cannot be read after %s: %v", q, did, err)
				}
			}
			if p := out.Probe; p != nil {
				if _, err := wire.DecodeRequest(p.Verb, p.Client, "", wire.AppendRequest(nil, p)); err != nil {
					t.Fatalf("%+v cannot be read after %s: %v", p, did, err)
				}
			}
			if n.Deadline() <= now.Mono { // what is due has been done
				n.Tick(now, &out)
			}
			out.Reset()
		}
	})
}
