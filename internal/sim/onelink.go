package sim

import (
	"fmt"
	"time"

	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// newOneLink returns a world in which only one link fails. Each client and each node is
// connected to a server, and the link between two of the servers fails again and again
// for longer than a lease. Every client reaches a quorum all the time. So nobody may have
// to wait for a lease to end (N11, N12, C14).
func newOneLink(opt Options) *Sim {
	s := emptySim(opt)
	s.world, s.patience = rough, 2*time.Second
	r := s.rng
	n := 3 + r.IntN(3)
	s.cluster = wire.Config{MaxTTL: maxTTL, Skew: skew}
	for i := range n {
		s.cluster.Nodes = append(s.cluster.Nodes, fmt.Sprintf("n%d", i+1))
	}
	if s.shared = r.IntN(2) > 0; s.shared && r.IntN(2) == 0 {
		s.retention = s.between(0, time.Second)
		if k := opt.Seed / 20 % 4; k == 1 || k == 2 {
			s.retention *= 40 // longer than any claim may wait
		}
	}
	for _, name := range s.cluster.Nodes {
		nd := &simNode{sim: s, name: name, cfg: s.cluster, clock: s.newClock(time.Millisecond), inbox: "node." + name, claims: 1000, queue: 1000}
		nd.dir = s.newDir()
		nd.dir.save(nd, &voter.Saved{})
		s.nodes = append(s.nodes, nd)
		s.at(0, nd.start)
	}
	resources := 4 + r.IntN(12)
	if s.retention > time.Second {
		resources /= 3 // otherwise others would hardly ever want what is kept
	}
	for i := range 2 * n {
		c := &simClient{sim: s, id: i, name: fmt.Sprintf("c%d", i), user: fmt.Sprintf("c%d", i), clock: s.newClock(time.Millisecond)}
		s.clients = append(s.clients, c)
		c.start(s.cluster)
		for range 3 {
			s.at(s.between(time.Second, 2*time.Second), func() { c.want(resources) })
		}
	}
	s.res.Nodes, s.res.Clients, s.res.Resources = n, len(s.clients), resources
	for at := 4 * time.Second; at < faulty-2*ttl; at += 2*ttl + s.between(0, ttl) {
		s.at(at, s.cutLink)
	}
	s.at(faulty, s.calmDown)
	return s
}

// cutLink cuts the link between the first two servers, in both directions, for all that
// are connected to them.
func (s *Sim) cutLink() {
	s.res.Cuts++
	until := s.now + ttl + s.between(ttl/5, ttl/2)
	s.tracef("cut n1 and n2 until %v", until)
	at := [2][]string{}
	for k := range at {
		at[k] = append(at[k], s.nodes[k].host(), s.nodes[k].inbox)
		for i, c := range s.clients {
			if i%len(s.nodes) == k {
				at[k] = append(at[k], c.name, c.inbox)
			}
		}
	}
	for _, a := range at[0] {
		for _, b := range at[1] {
			s.cuts[[2]string{a, b}] = until
			s.cuts[[2]string{b, a}] = until
		}
	}
}
