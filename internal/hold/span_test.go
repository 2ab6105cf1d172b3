package hold

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// lockFor requests a lock with bounds for the hold named by the client's name and a number.
func (w *world) lockFor(name, resource string, least, most time.Duration) *Hold {
	u := w.tables[name[:1]].Lock(w.clock(), Request{Resource: resource, Mode: writer, AtLeast: least, AtMost: most, User: name}, w.outs[name[:1]])
	w.deliver()
	return u
}

// The bounds of a hold count from its grant, and leave nothing behind when it ends before.
func TestSpans(t *testing.T) {
	for _, retention := range []time.Duration{0, time.Minute} {
		w := newWorld(t, retention, "a", "b")
		table := w.tables["a"]
		u := w.lockFor("a1", "r", 300*time.Millisecond, 200*time.Millisecond)
		if d, ok := u.expiresIn(w.clock()); !ok || d != 200*time.Millisecond || table.Stands(w.clock(), u) != d {
			t.Errorf("it may hold for %v, %v, and stands for %v", d, ok, table.Stands(w.clock(), u))
		}
		next := w.lock("b1", writer)
		w.pass(199 * time.Millisecond)
		if d, ok := table.Wait(w.clock()); !ok || d != 999*time.Microsecond { // b began a microsecond later
			t.Errorf("the next tick is due in %v, %v", d, ok)
		}
		w.take()
		w.pass(50 * time.Millisecond)
		if log := w.take(); log != "a1 expired" || u.State() != Holding || next.State() != Waiting {
			t.Fatalf("%q, %v, %v", log, u.State(), next.State())
		}
		w.unlock(u)
		own := w.lock("a2", writer, true)
		if got, ok := table.Ours(w.clock(), own); !ok || got.Kept < 50*time.Millisecond || got.Kept > 52*time.Millisecond || own.State() != Over {
			t.Errorf("%+v, %v", got, ok)
		}
		w.unlock(u) // a second time
		w.pass(50 * time.Millisecond)
		if next.State() != Waiting || u.State() != Kept {
			t.Fatal("it did not stay")
		}
		w.pass(2 * time.Millisecond)
		if next.State() != Holding || u.State() != Over {
			t.Fatal("it stays")
		}
		w.unlock(next)

		// One that was given up at the moment of the grant.
		u = w.lockFor("a3", "r", time.Hour, time.Hour)
		table.Drop(w.clock(), u, w.outs["a"])
		w.deliver()
		if u.State() != Over || len(table.timers) != 0 {
			t.Errorf("%v, %d timers", u.State(), len(table.timers))
		}
	}
}

// Any duration may be a bound, and any number of holds may have some.
func TestSpansOfAnyLength(t *testing.T) {
	w := newWorld(t, 0, "a")
	table := w.tables["a"]
	u := w.lockFor("a1", "r", math.MaxInt64, math.MaxInt64)
	w.pass(time.Second)
	w.unlock(u)
	if d := table.Keeps(w.clock(), u); u.State() != Kept || d < time.Hour {
		t.Errorf("%v, it stays for %v", u.State(), d)
	}
	if table.Abandon(w.clock(), u, w.outs["a"]) != true || u.State() != Kept {
		t.Error("it is not left to the nodes")
	}
	var all []*Hold
	for i := range 50 {
		all = append(all, w.lockFor(fmt.Sprint("a", 10+i), fmt.Sprint("s", i), time.Duration(i%3)*time.Second, time.Duration(1+(i*37)%50)*time.Millisecond))
	}
	for _, u := range all[:10] {
		w.unlock(u)
	}
	w.take()
	w.pass(60 * time.Millisecond)
	if n := len(w.log); n != 40 {
		t.Errorf("%d expired", n)
	}
	for _, u := range all {
		w.unlock(u)
		w.unlock(u)
	}
	w.pass(2 * time.Second)
	if len(table.timers) != 1 || table.Claims() != 1 {
		t.Errorf("%d timers, %d claims", len(table.timers), table.Claims())
	}
}

// A claim that stays though its hold is unlocked does not stay when it is lost.
func TestLostWhileKept(t *testing.T) {
	for _, manual := range []bool{false, true} {
		w := newWorld(t, 0, "a")
		table := w.tables["a"]
		u := table.Lock(w.clock(), Request{Resource: "r", Mode: writer, AtLeast: time.Hour, Manual: manual, User: "a1"}, w.outs["a"])
		w.deliver()
		w.unlock(u)
		w.cut["a"] = true
		w.take()
		w.pass(2 * lease)
		if log := w.take(); log != "a1 lost" || u.State() != Over || len(table.timers) != 0 || table.Claims() != 0 {
			t.Errorf("%q, %v, %d timers", log, u.State(), len(table.timers))
		}
	}
}
