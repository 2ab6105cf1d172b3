package client

import (
	"time"

	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/wire"
)

// leaseClock is the clock by which a client measures leases (C8). At each reading it
// advances by as much as the monotonic or the wall clock did, whichever is more. The
// monotonic clock may stand still while the machine sleeps, and the wall clock may be set
// back. So it can only err towards losing a lock early.
type leaseClock struct { //plant:clock-fields
	last   wire.Now
	now    time.Duration
	behind time.Duration // by how much rounding has put the wall clock behind
}

// rounding is the resolution of wire.Now.Wall.
const rounding = time.Microsecond

// startAt keeps the first beats, which are readings of this clock, above zero.
const startAt = time.Second

func newLeaseClock(now wire.Now) leaseClock { return leaseClock{last: now, now: startAt} } //plant:clock-start

func (c *leaseClock) read(now wire.Now) time.Duration {
	mono := now.Mono - c.last.Mono
	wall := sat.Micros(now.Wall - c.last.Wall)
	c.now = sat.Add(c.now, max(mono, wall, 0)) //plant:lease-clock
	// The wall clock is rounded. If it was behind in one reading, it catches up in a later
	// one. That is no real advance, and counting it would make a clock that is read often run
	// fast.
	if ahead := wall - mono; ahead > rounding {
		c.behind = 0
	} else {
		c.now -= min(max(ahead, 0), c.behind)
		c.behind = min(max(c.behind-ahead, 0), rounding)
	}
	c.last = now
	return c.now
}
