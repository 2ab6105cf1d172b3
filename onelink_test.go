package qlock_test

import (
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A node that did not hear a release learns of it from one that did, when who waits has
// that one's vote (N11, C14): nobody waits for the lease of a lock that was given back.
func TestReleaseThatOneNodeDidNotHear(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a", qlock.WithoutEvents())
		k := mustLock(t, a, "x")
		settle()
		w.nodes[1].link.cut()
		settle()
		mustUnlock(t, k)
		if err := a.Close(); err != nil { // there is no refresh any more that could say it
			t.Fatal(err)
		}
		settle()
		w.nodes[1].link.mend()
		time.Sleep(2 * reconnectWait)
		if n := w.claims(1); n != 1 {
			t.Fatalf("n2 has %d claims, want the one that it did not hear the end of", n)
		}
		w.nodes[0].stop() // so that n2 is needed
		b := w.client("b", qlock.WithoutEvents())
		o := w.observe()
		start := time.Now()
		next := mustLock(t, b, "x")
		if d := time.Since(start); d > time.Second {
			t.Errorf("the lock was given back, and is had after %v", d)
		}
		if got := o.take(); got["acquire"] > 4 || got["info"] > 2 {
			t.Errorf("that took %v", got)
		}
		mustUnlock(t, next)
		w.noClaims()
	})
}

// What is held is asked about in vain: the node that did not hear of it learns nothing
// from those that did, and who waits goes on waiting.
func TestHeldLockIsNotOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithoutEvents()), w.client("b", qlock.WithoutEvents())
		w.nodes[1].link.cut()
		settle()
		k := mustLock(t, a, "x") // with the votes of n1 and n3
		w.nodes[1].link.mend()
		time.Sleep(2 * reconnectWait)
		o := w.observe()
		next := waitFor(timeout(t, time.Minute), b.Lock, "x") // it has n2's vote
		time.Sleep(3 * testLease)
		if next.over() || k.Context().Err() != nil {
			t.Fatal("the lock went from its holder")
		}
		if got := o.take(); got["acquire"] > 2+3*5+8 {
			t.Errorf("in three leases that took %v", got)
		}
		mustUnlock(t, k)
		released := time.Now()
		mustUnlock(t, next.held(t))
		if d := time.Since(released); d > testLease/50 {
			t.Errorf("the next has it after %v", d)
		}
		w.noClaims()
	})
}
