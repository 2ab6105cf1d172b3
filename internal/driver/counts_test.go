package driver

import "testing"

// A lock may come in the moment when its caller gives up, and be lost in that step as
// well: it is counted once, whatever it is told.
func TestGivenUpIsCountedOnce(t *testing.T) {
	for _, way := range []struct {
		name   string
		states []holdState
		want   Counts
	}{
		{"gave up", []holdState{failed}, Counts{Failed: Failures{NoQuorum: 1}}},
		{"gave up what came", []holdState{held, failed}, Counts{Granted: 1, Unlocked: 1}},
		{"and was told lost", []holdState{held, failed, lost}, Counts{Granted: 1, Unlocked: 1}},
		{"lost before", []holdState{held, lost, failed}, Counts{Granted: 1, Lost: 1}},
	} {
		c, h := Counts{Waiting: 1}, &Hold{}
		for _, s := range way.states {
			if s == failed {
				c.fail(h, &Failure{Reason: ErrNoQuorum})
			} else {
				c.setState(h, s)
			}
		}
		if c != way.want {
			t.Errorf("%s: %+v, want %+v", way.name, c, way.want)
		}
	}
}
