package qlock

import "testing"

// A lock may come in the moment when its caller gives up, and be lost in that step as
// well: it is counted once, whatever it is told.
func TestGivenUpIsCountedOnce(t *testing.T) {
	for _, way := range []struct {
		name   string
		states []lockState
		want   counts
	}{
		{"gave up", []lockState{lockFailed}, counts{failed: LockerFailures{NoQuorum: 1}}},
		{"gave up what came", []lockState{lockHeld, lockFailed}, counts{granted: 1, unlocked: 1}},
		{"and was told lost", []lockState{lockHeld, lockFailed, lockLost}, counts{granted: 1, unlocked: 1}},
		{"lost before", []lockState{lockHeld, lockLost, lockFailed}, counts{granted: 1, lost: 1}},
	} {
		c, k := counts{waiting: 1}, &Lock{}
		for _, s := range way.states {
			if s == lockFailed {
				c.fail(k, &LockError{Reason: ErrNoQuorum})
			} else {
				c.turn(k, s)
			}
		}
		if c != way.want {
			t.Errorf("%s: %+v, want %+v", way.name, c, way.want)
		}
	}
}
