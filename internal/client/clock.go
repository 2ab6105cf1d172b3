package client

import (
	"time"

	"github.com/qlock/qlock/internal/proto"
)

// leaseClock is the clock that leases run on at a client (C8). Between two
// readings it goes on by the larger of what the monotonic and the wall clock
// went on: a sleeping machine's monotonic clock stands still while its votes run
// out, and a wall clock may be set back. It errs towards losing a lock early.
type leaseClock struct {
	last proto.Now
	now  time.Duration
}

// startAt keeps the first beats, which are readings of this clock, above zero.
const startAt = time.Second

func newLeaseClock(now proto.Now) leaseClock { return leaseClock{last: now, now: startAt} }

func (c *leaseClock) read(now proto.Now) time.Duration {
	mono := now.Mono - c.last.Mono
	wall := time.Duration(now.Wall-c.last.Wall) * time.Microsecond
	c.now += max(mono, wall, 0)
	c.last = now
	return c.now
}
