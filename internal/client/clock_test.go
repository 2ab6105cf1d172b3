package client

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// C8: however often the lease clock is read, it advances as the clocks do, and by the
// larger of both when one of them leaps.
func TestLeaseClock(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	at := func(mono, wall time.Duration) wire.Now {
		return wire.Now{Mono: mono, Wall: 1_750_000_000_000_000 + wall.Microseconds()}
	}
	var mono, wall time.Duration
	c := newLeaseClock(at(0, 0))
	last, gone := c.now, time.Duration(0)
	step := func(m, w, want time.Duration) {
		t.Helper()
		mono, wall = mono+m, wall+w
		gone += want
		now := c.read(at(mono, wall))
		if now < last {
			t.Fatalf("back from %v to %v", last, now)
		}
		if off := now - startAt - gone; off < -time.Microsecond || off > 2*time.Microsecond {
			t.Fatalf("after %v and %v: off by %v", m, w, off)
		}
		last = now
	}
	for range 1_000_000 {
		d := time.Duration(r.IntN(3000))
		step(d, d, d)
	}
	step(0, time.Hour, time.Hour)                   // the machine slept
	step(time.Second, 0, time.Second)               // the wall clock was set back
	step(time.Second, 2*time.Second, 2*time.Second) // and forward again
	for range 1000 {
		step(time.Millisecond, -time.Millisecond, time.Millisecond)
	}
}

// A wall clock that is set centuries ahead leaps by more than a duration can express.
// Held claims are lost, as after a sleep, and do not stay held as if no time had passed.
func TestLeaseClockAtItsEnd(t *testing.T) {
	c := newLeaseClock(wire.Now{Wall: -8_000_000_000_000_000})
	if now := c.read(wire.Now{Mono: time.Second, Wall: 8_000_000_000_000_000}); now < 100*365*24*time.Hour {
		t.Errorf("the clock went on by %v", now-startAt)
	}
	before := c.now
	if now := c.read(wire.Now{Mono: time.Hour, Wall: 8_000_000_000_000_000}); now < before {
		t.Errorf("it went back by %v", before-now)
	}
}

// What is due is due at its moment, whichever reading of the clocks the client processed last.
// A driver that slept for as long as it was said then would else end a lost lock late (C7).
func TestWaitCountsFromTheReading(t *testing.T) {
	const ttl = 10 * time.Second
	k := newTalk(t, ttl, nil)
	k.hold(1)
	first, _ := k.Wait(k.now)
	const later = 50 * time.Millisecond
	if second, _ := k.Wait(after(k.now, later)); second != first-later {
		t.Errorf("%v after a wait of %v was told, it is %v, want %v", later, first, second, first-later)
	}
	asleep := k.now
	asleep.Wall += later.Microseconds() // and its monotonic clock stood still
	if second, _ := k.Wait(asleep); second != first-later {
		t.Errorf("after a sleep of %v the wait is %v, want %v", later, second, first-later)
	}
	if again, _ := k.Wait(k.now); again != first {
		t.Errorf("a question for the wait changed it from %v to %v", first, again)
	}
}
