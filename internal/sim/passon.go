package sim

import (
	"math/rand/v2"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/wire"
)

// passOn has the bounds within which the clients of this world pass on a claim that
// others wait for, and what they did.
type passOn struct {
	most   int
	within time.Duration
	claims map[*client.Claim]*passed
}

type passed struct {
	since time.Duration // when others were known to wait, by the client's clock
	times int
}

// newPassOn draws the bounds. Random numbers of its own leave the other worlds unchanged.
func newPassOn(seed uint64) passOn {
	p := passOn{claims: map[*client.Claim]*passed{}}
	if r := rand.New(rand.NewPCG(seed, 0x70617373)); r.IntN(2) == 0 {
		p.most = r.IntN(4)
		if r.IntN(2) == 0 {
			p.within = time.Duration(r.Int64N(int64(2 * time.Second)))
		}
	}
	return p
}

// overtaken returns by how much the bounds raise the limit for being overtaken: each
// other client may pass its claim on that often, once before the waiter's turn.
func (p *passOn) overtaken(clients int) int64 {
	if p.most == 0 && p.within > 0 {
		return 30_000 // as many as fit into that time
	}
	return int64(p.most) * int64(clients-1)
}

// check counts the holders of a claim after the first one while others wait. Their number
// and the time are bounded.
func (p *passOn) check(s *Sim, c *simClient, now wire.Now, uses []hold.Event) {
	for _, cl := range c.core.All() {
		if cl.Wanted() && cl.State() == client.Holding && p.claims[cl] == nil {
			p.claims[cl] = &passed{since: now.Mono}
		}
	}
	for _, e := range uses {
		if e.Kind != hold.Held || e.First {
			continue
		}
		if w := p.claims[e.Hold.Claim()]; w != nil {
			w.times++
			s.res.PassedOn++
			late := now.Mono - w.since
			if p.most == 0 && p.within == 0 || p.most > 0 && w.times > p.most || p.within > 0 && late >= p.within {
				s.fail("%s has passed on a claim that others wait for %d times, the last time after %v; the bounds are %d and %v",
					c.name, w.times, late, p.most, p.within)
			}
		}
	}
}
