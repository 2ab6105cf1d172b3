package qlock

import "time"

// alarm is the timer of a loop that does what a machine says is due.
type alarm struct{ timer *time.Timer }

func newAlarm() alarm { return alarm{time.NewTimer(idle)} }

// in is what to receive from when so much time has gone by. For what is due already
// it sets no timer: that is a detour, and in a test's virtual time, with the race
// detector, two such timers at a time crash Go 1.26.
func (a alarm) in(wait time.Duration) <-chan time.Time {
	if wait <= 0 {
		return always
	}
	a.timer.Reset(wait)
	return a.timer.C
}

func (a alarm) stop() { a.timer.Stop() }

// always can be received from.
var always = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()

// idle is how long a loop sleeps when there is nothing to wait for.
const idle = time.Hour
