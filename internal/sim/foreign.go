package sim

import (
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/voter"
)

// Two clusters, such as blue and green, have the same names, nodes and configuration. A
// client may reach the other cluster when it reconnects. What it holds, it got from one
// of them, and in that one nobody else may have it meanwhile (C13).

// newForeign makes the second cluster.
func (s *Sim) newForeign() {
	// All others overtake a client that is connected to the other cluster.
	s.world = rough
	s.sides, s.won = map[string]int{}, map[*client.Claim]int{}
	for _, nd := range append([]*simNode(nil), s.nodes...) {
		twin := s.newTwin(nd, s.newDir())
		twin.dir.save(twin, &voter.Saved{})
		s.sides[twin.host()], s.sides[twin.inbox] = 1, 1
		s.at(s.between(0, 50*time.Millisecond), twin.start)
	}
	s.at(s.between(0, 5*time.Second), s.lead)
}

// sideOf returns the cluster that gave the job its lock. A kept claim goes from holder to
// holder, whichever cluster its client is connected to by then.
func (s *Sim) sideOf(j *job) int {
	if s.members != nil {
		return s.members.rights[j.client.core.Digest()]
	}
	if s.sides == nil {
		return 0
	}
	claim := j.claim
	if j.use != nil {
		claim = j.use.Claim()
	}
	if _, ok := s.won[claim]; !ok {
		s.won[claim] = s.sides[j.client.name]
	}
	return s.won[claim]
}

// lead makes a client reconnect, to either cluster.
func (s *Sim) lead() {
	if !s.working {
		return
	}
	c := s.clients[s.rng.IntN(len(s.clients))]
	s.reconnect(c, s.rng.IntN(2))
	s.at(s.between(0, 5*time.Second), s.lead)
}

func (s *Sim) reconnect(c *simClient, side int) {
	s.tracef("%s reconnects, to cluster %d", c.name, side)
	c.do(func() {
		now := c.clock.read(s.now)
		if c.table != nil {
			c.table.Disconnected(now, &c.out)
		} else {
			c.core.Disconnected(now, &c.out.Out)
		}
		c.flush()
	})
	s.sides[c.name], s.sides[c.inbox] = side, side
	// Its driver learns of it later.
	s.at(s.between(0, 20*time.Millisecond), func() { s.isBack(c) })
}

func (s *Sim) isBack(c *simClient) {
	c.do(func() {
		now := c.clock.read(s.now)
		if c.table != nil {
			c.table.Reconnected(now, &c.out)
		} else {
			c.core.Reconnected(now, &c.out.Out)
		}
		c.flush()
	})
}
