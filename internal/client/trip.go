package client

import (
	"time"

	"github.com/qlock/qlock/internal/quorum"
)

// How long the client waits before it repeats a message depends on how long nodes take to
// answer (C4, C6, C9). The lease bounds all of it: a node that was away for minutes has a
// long round trip, and a lease may be hardly longer than one.

// A claim that is not granted within leastDelay, or within some round trips to a quorum
// of nodes, asks again. A claim whose first acquire is quiet (N2) learns its place only
// then. That saves half of the nodes' answers for a lock that goes from hand to hand
// among clients that wait only for moments. It applies only if nodes answer so fast that
// callers hardly ever give up earlier.
const (
	leastDelay = 20 * time.Millisecond
	mostDelay  = 250 * time.Millisecond // if no round trip was measured, or a short one
	mostQuiet  = 100 * time.Millisecond
	quietTrips = 4
)

// trip returns within what time a quorum answers, or false if fewer nodes were measured.
func (c *Client) trip(need quorum.Joint) (time.Duration, bool) {
	trip, ok := c.tripOf(quorum.InNodes, need[0])
	if need[1] > 0 && ok {
		var next time.Duration
		next, ok = c.tripOf(quorum.InNext, need[1])
		trip = max(trip, next)
	}
	return trip, ok
}

// tripOf returns within what time that many nodes of a list answer.
func (c *Client) tripOf(in quorum.In, nodes int) (time.Duration, bool) {
	c.trips = c.trips[:0]
	for i := range c.nodes {
		t := &c.nodes[i].trip
		if t.beat == 0 && t.mean == 0 || c.nodes[i].in&in == 0 {
			continue
		}
		c.trips = append(c.trips, t.mean)
		for k := len(c.trips) - 1; k > 0 && c.trips[k] < c.trips[k-1]; k-- {
			c.trips[k], c.trips[k-1] = c.trips[k-1], c.trips[k]
		}
	}
	if len(c.trips) < nodes || nodes == 0 {
		return 0, false
	}
	return time.Duration(c.trips[nodes-1]), true
}

// near reports whether a quorum answered fast, not counting Config.Trips.
func (c *Client) near(need quorum.Joint) bool {
	var near quorum.Count
	for i := range c.nodes {
		if t := &c.nodes[i].trip; t.beat > 0 && t.mean <= float64(mostQuiet/quietTrips) {
			near.Add(c.nodes[i].in)
		}
	}
	return need.Met(near)
}

// quietTime returns how long after a quiet acquire the claim asks again.
func (c *Client) quietTime(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return min(max(leastDelay, quietTrips*trip), mostQuiet)
}

// firstDelay returns how long the client waits for the answers to the first acquire: long
// enough for all that count, and so short that a lost message hardly matters.
func (c *Client) firstDelay(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return max(min(max(c.cfg.TTL/50, leastDelay), mostDelay), min(3*trip /*plant:round-trips*/, c.cfg.TTL/3))
}

// earlyPause returns the least time between a refresh and another one ahead of time,
// which is sent because a held claim's votes will expire soon. By then the answers should
// have come, and there is still time for those of the next one.
func (c *Client) earlyPause(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return max(c.cfg.TTL/12, min(trip+trip/4, mostEarlyPause(c.cfg.TTL)))
}

func mostEarlyPause(ttl time.Duration) time.Duration { return ttl / 4 }

// moment returns how long the client collects answers of several nodes in order to react
// once.
func (c *Client) moment() time.Duration {
	far := time.Duration(0)
	for i := range c.nodes {
		far = max(far, time.Duration(c.nodes[i].trip.mean))
	}
	return max(c.cfg.TTL/1000, min(far, c.cfg.TTL/10))
}
