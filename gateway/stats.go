package gateway

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Stats are counters of a gateway, since it started unless said otherwise.
type Stats struct {
	Held, Waiting int // leases now
	// Kept are leases now that are over, and whose locks are kept because somebody may believe
	// in them yet (rule G8).
	Kept       int
	Polls      int // requests that wait for a lease now
	Streams    int // event streams and waiting lists now
	Users      int // NATS users of requests now, with their connections
	Gateways   int // other gateways of the cluster now
	Tombstones int // leases now that are over and still known

	Granted   uint64
	Ended     map[string]uint64 // leases that are over, by the cause of the 410 or the kind of the problem
	Requests  map[Request]uint64
	Forwarded uint64 // requests to other gateways
	Answered  uint64 // requests of other gateways
	Refused   uint64 // credentials that NATS did not accept
	Panics    uint64 // requests that failed because of a fault of this package

	KeyWaits int // requests that wait for a key of the store now
	Store    map[StoreOperation]uint64
}

// Request is what Stats counts requests by.
type Request struct {
	Door      string // http or nats
	Operation string // its operationId, or the verb at the NATS door; empty: no operation
	Status    int
}

type counters struct {
	polls, granted, forwarded, answered, refused, panics atomic.Int64
	keyWaits                                             atomic.Int64

	mu       sync.Mutex // guards what follows
	ended    map[string]uint64
	requests map[Request]uint64
	storeOps map[StoreOperation]uint64
}

func (c *counters) store(o StoreOperation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storeOps[o]++
}

func (c *counters) request(door, operation string, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[Request{door, operation, status}]++
}

func (c *counters) end(why *Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := why.Cause
	if name == "" {
		name = why.Kind()
	}
	if why.owner != "" {
		name = "given-up" // another gateway has the lease
	}
	c.ended[name]++
}

// Stats returns the counters.
func (g *Gateway) Stats() Stats {
	c := &g.counters
	s := Stats{
		Polls: int(c.polls.Load()), Granted: uint64(c.granted.Load()), Forwarded: uint64(c.forwarded.Load()), Answered: uint64(c.answered.Load()),
		Refused: uint64(c.refused.Load()), Panics: uint64(c.panics.Load()), KeyWaits: int(c.keyWaits.Load()), Gateways: len(g.peers.others()),
	}
	c.mu.Lock()
	s.Ended, s.Requests = maps.Clone(c.ended), maps.Clone(c.requests)
	s.Store = maps.Clone(c.storeOps)
	c.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.leases {
		if l.isHeld.Load() {
			s.Held++
		} else {
			s.Waiting++
		}
	}
	who := []*principal{g.only}
	for _, l := range g.logins {
		select {
		case <-l.ready:
			if l.principal != nil {
				who = append(who, l.principal)
				s.Users++
			}
		default:
		}
	}
	for _, p := range g.callers {
		who = append(who, p)
	}
	for _, p := range who {
		s.Kept += p.kept
		s.Streams += p.streams
	}
	s.Tombstones = len(g.graves)
	return s
}
