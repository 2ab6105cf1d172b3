package client

import "time"

// How long to wait before something is said again goes by how long the nodes take to
// answer (C4, C6, C9). All of it is bounded by the lease too: a node that was away for
// minutes has a long round trip, and a lease may be hardly longer than one.

// Who is not granted within leastDelay, or within some round trips to enough nodes for a
// quorum, asks again. A quiet claim is told its place then: a lock that goes from hand to
// hand among those who wait for moments only is spared half of the nodes' answers. It is
// only for nodes that answer so fast that who gives up hardly ever does so before.
const (
	leastDelay = 20 * time.Millisecond
	mostDelay  = 250 * time.Millisecond // where no round trip was measured, or a short one
	mostQuiet  = 100 * time.Millisecond
	quietTrips = 4
)

// trip is how long so many nodes take to answer, or false if fewer are known.
func (c *Client) trip(nodes int) (time.Duration, bool) {
	c.trips = c.trips[:0]
	for i := range c.nodes {
		t := &c.nodes[i].trip
		if t.beat == 0 && t.mean == 0 {
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

// near reports whether so many nodes answered fast, and not only when they were asked
// who they are.
func (c *Client) near(nodes int) bool {
	near := 0
	for i := range c.nodes {
		if t := &c.nodes[i].trip; t.beat > 0 && t.mean <= float64(mostQuiet/quietTrips) {
			near++
		}
	}
	return near >= nodes
}

// quietTime is how long a quiet claim is content with silence.
func (c *Client) quietTime(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return min(max(leastDelay, quietTrips*trip), mostQuiet)
}

// firstDelay is how long the first acquire is waited for: long enough for all answers
// that count, and so short that a lost message is hardly noticed.
func (c *Client) firstDelay(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return max(min(max(c.cfg.TTL/50, leastDelay), mostDelay), min(3*trip /*plant:round-trips*/, c.cfg.TTL/3))
}

// earlyPause is how long after a refresh another is sent before it is due, because a
// held claim's votes run low: when the answers should have come, and in time for those
// of the next one.
func (c *Client) earlyPause(cl *Claim) time.Duration {
	trip, _ := c.trip(c.need(cl))
	return max(c.cfg.TTL/12, min(trip+trip/4, mostEarlyPause(c.cfg.TTL)))
}

func mostEarlyPause(ttl time.Duration) time.Duration { return ttl / 4 }

// moment is how long what several nodes answer to one message is waited for, to answer
// it once.
func (c *Client) moment() time.Duration {
	far := time.Duration(0)
	for i := range c.nodes {
		far = max(far, time.Duration(c.nodes[i].trip.mean))
	}
	return max(c.cfg.TTL/1000, min(far, c.cfg.TTL/10))
}
