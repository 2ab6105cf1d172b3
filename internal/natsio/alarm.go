package natsio

import "time"

// Alarm is the timer of a loop that runs a machine and does what is due. Only the loop's
// goroutine may use it.
type Alarm struct{ timer *time.Timer }

// Idle is how long a loop sleeps when nothing is due.
const Idle = time.Hour

// NewAlarm returns an Alarm. Its owner must call Stop when it is done.
func NewAlarm() Alarm { return Alarm{time.NewTimer(Idle)} }

// In returns a channel that can be received from after wait has passed. If wait is not
// positive, it uses no timer: a timer would cost time for nothing. In a test's virtual time
// with the race detector, two such timers at a time also crash Go 1.26.
func (a Alarm) In(wait time.Duration) <-chan time.Time {
	if wait <= 0 {
		return always
	}
	a.timer.Reset(wait)
	return a.timer.C
}

// Stop stops the timer.
func (a Alarm) Stop() { a.timer.Stop() }

// always is closed, so it can be received from at any time.
var always = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()
