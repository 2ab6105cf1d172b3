package qlock

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/proto"
)

// run does what time alone brings. What there is to do, and when, is the machine's
// to say (internal/client, internal/local): refresh what lives, ask again, find out
// what is lost, give back what was kept.
func (l *Locker) run(status chan nats.Status) {
	defer l.nc.RemoveStatusListener(status)
	alarm := newAlarm()
	defer alarm.stop()
	for {
		l.mu.Lock()
		t := time.Now()
		l.leaps.read(l.at(t))
		wait := l.wait(l.at(t))
		l.wakeAt = t.Add(wait)
		l.mu.Unlock()
		select {
		case <-l.stop:
			return
		case <-l.wake:
		case now, ok := <-status:
			if !ok {
				status = nil // removed by someone else: the timer does without
				break
			}
			if now == nats.CLOSED {
				l.shut()
				break
			}
			if now == nats.RECONNECTING { // perhaps to another cluster of this name (C13)
				l.step(func(now proto.Now, out *local.Out) { l.table.Disconnected(now, out) })
				break
			}
			l.out.batching.anew() // permissions may be others now
			l.step(func(now proto.Now, out *local.Out) { l.table.Reconnected(now, out) })
		case <-alarm.in(wait):
			l.out.poke() // to look at the connection, which this loop must not do
			l.step(func(now proto.Now, out *local.Out) {
				l.table.Tick(now, out)
				if l.survey != nil && time.Since(l.asked) >= surveyTime {
					l.conclude(now, out)
					l.survey = nil
				}
			})
		}
	}
}

// wait is how long the loop may sleep: until the machine's next deadline, and a
// second at most while there are claims, because the lease clock must be read
// that often to notice that the machine slept (C8). Call with l.mu held.
func (l *Locker) wait(now proto.Now) time.Duration {
	d, ok := l.table.Wait(now)
	if !ok {
		return idle
	}
	if l.core.Claims() > 0 {
		d = min(d, time.Second)
	}
	return d
}

// rearm reports whether the loop must be woken because a deadline now comes
// before the moment that it sleeps to. Mostly it need not: a lock taken and given
// back at once leaves the timer as it was. Call with l.mu held.
func (l *Locker) rearm(t time.Time, now proto.Now) bool {
	if l.core == nil || l.closed {
		return false
	}
	at := t.Add(l.wait(now))
	if !at.Before(l.wakeAt) {
		return false
	}
	l.wakeAt = at
	return true
}

// shut ends what waits for a connection that is closed for good.
func (l *Locker) shut() {
	cause := closeCause(l.nc)
	l.failWaiting(ErrClosed, cause, func(*Lock) bool { return true })
	l.mu.Lock()
	told, held := l.gone || l.closed, l.counts.held
	l.gone = true
	for _, q := range l.inquiries {
		q.fail(fmt.Errorf("%w: %w", ErrClosed, cause))
	}
	l.mu.Unlock()
	if !told {
		l.log.line(slog.LevelError, "the NATS connection is closed permanently: this Locker gets no more locks, and locks that it holds are lost when their leases end",
			"held", held, "error", cause)
	}
}

// failWaiting ends what waits and is concerned.
func (l *Locker) failWaiting(reason, cause error, concerned func(*Lock) bool) {
	l.mu.Lock()
	all := l.table.All()
	l.mu.Unlock()
	var failed []*Lock
	l.inSteps(len(all), func(i int, now proto.Now, out *local.Out) {
		k := all[i].User.(*Lock)
		if all[i].State() != local.Waiting || !concerned(k) { // one that failed may have made room for another
			return
		}
		k.err = &LockError{Name: k.name, Reason: reason, Cause: cause}
		l.counts.fail(k, k.err)
		failed = append(failed, k)
		l.table.Unlock(now, k.use, out)
	})
	for _, k := range failed {
		k.cancel(k.err)
		close(k.ready)
	}
}
