package natsio

import "time"

// Alarm is the timer of a loop that does what a machine says is due. Only the loop's
// goroutine uses it.
type Alarm struct{ timer *time.Timer }

// Idle is how long a loop sleeps when there is nothing to wait for.
const Idle = time.Hour

func NewAlarm() Alarm { return Alarm{time.NewTimer(Idle)} }

// In returns a channel to receive from when wait has passed. If wait is not positive,
// it sets no timer: that would be a detour, and in a test's virtual time, with the race
// detector, two such timers at a time crash Go 1.26.
func (a Alarm) In(wait time.Duration) <-chan time.Time {
	if wait <= 0 {
		return always
	}
	a.timer.Reset(wait)
	return a.timer.C
}

func (a Alarm) Stop() { a.timer.Stop() }

// always can be received from at any time.
var always = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()
