package client

import (
	"time"

	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// leaseClock is the clock that leases run on at a client (C8). Between two
// readings it goes on by the larger of what the monotonic and the wall clock
// went on: a sleeping machine's monotonic clock stands still while its votes run
// out, and a wall clock may be set back. It errs towards losing a lock early.
type leaseClock struct { //plant:clock-fields
	last   wire.Now
	now    time.Duration
	behind time.Duration // the wall clock, by its rounding
}

// rounding is that of proto.Now.Wall.
const rounding = time.Microsecond

// startAt keeps the first beats, which are readings of this clock, above zero.
const startAt = time.Second

func newLeaseClock(now wire.Now) leaseClock { return leaseClock{last: now, now: startAt} } //plant:clock-start

func (c *leaseClock) read(now wire.Now) time.Duration {
	mono := now.Mono - c.last.Mono
	wall := sat.Micros(now.Wall - c.last.Wall)
	c.now = sat.Add(c.now, max(mono, wall, 0)) //plant:lease-clock
	// The wall clock comes rounded. What it makes up for after a reading in which it was
	// behind is no leap, else a clock that is read often would run ahead.
	if ahead := wall - mono; ahead > rounding {
		c.behind = 0
	} else {
		c.now -= min(max(ahead, 0), c.behind)
		c.behind = min(max(c.behind-ahead, 0), rounding)
	}
	c.last = now
	return c.now
}
