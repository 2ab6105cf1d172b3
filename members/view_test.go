package members

import (
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// A process that was stopped right after it joined publishes the event of that when it goes
// on, long after its lease has ended. It does not become a member again by that.
func TestLateEventOfAJoin(t *testing.T) {
	v := newView("g")
	at := time.Now()
	event := func(kind qlock.EventKind, token uint64, after time.Duration) {
		v.hear([]heard{{&qlock.Event{Kind: kind, Name: memberLock("g", "a"), Client: "c", Mode: "exclusive", Token: token}, at.Add(after)}})
	}
	join := func(token uint64, after time.Duration) {
		t.Helper()
		event(qlock.EventAcquired, token, after)
	}
	list := func(after time.Duration, tokens ...uint64) {
		var all []member
		for _, token := range tokens {
			all = append(all, member{Info: Info{ID: "a", Token: token, Lease: time.Second}})
		}
		v.list(all, at.Add(after))
	}
	want := func(what string, token uint64, kinds ...Kind) {
		t.Helper()
		u, _ := v.update()
		var got uint64
		for _, m := range u.Members {
			got = m.Token
		}
		if got != token || len(u.Changes) != len(kinds) {
			t.Fatalf("%s: %+v, want the token %d and %v", what, u, token, kinds)
		}
		for i, c := range u.Changes {
			if c.Kind != kinds[i] {
				t.Errorf("%s: %s, want %s", what, c.Kind, kinds[i])
			}
		}
	}
	list(0, 7)
	want("a member", 7, Joined)
	list(2*time.Second, 7)
	want("the same", 7)
	list(3 * time.Second)
	want("its lease ended", 0, Lost)
	join(7, time.Minute)
	want("the late event of the join", 0)
	join(8, time.Minute)
	want("the next member", 8, Joined)
	list(time.Minute, 8)
	want("the same", 8)
	list(2*time.Minute, 9)
	want("another takes over", 9, Lost, Joined)
	join(8, 2*time.Minute)
	want("a late event again", 9)

	// A forged event has a token that no list had. It shuts out nobody.
	join(1<<52, 3*time.Minute)
	want("a forged event", 1<<52, Lost, Joined)
	list(4*time.Minute, 9)
	want("the list mends it", 9, Lost, Joined)
	list(5 * time.Minute)
	want("its lease ended", 0, Lost)
	join(10, 6*time.Minute)
	want("the next member", 10, Joined)

	// A member that came and left between two lists has a token as well. What joined before
	// it and tells of it after it is gone.
	list(6*time.Minute+time.Second, 10)
	event(qlock.EventReleased, 10, 6*time.Minute+2*time.Second)
	want("it leaves", 0, Left)
	join(12, 6*time.Minute+3*time.Second)
	want("the next member", 12, Joined)
	event(qlock.EventReleased, 12, 6*time.Minute+4*time.Second)
	want("it leaves", 0, Left)
	list(6*time.Minute + 10*time.Second)
	want("nobody", 0)
	join(11, 6*time.Minute+11*time.Second)
	want("the late event of a join before it", 0)

	// If its events were forged, the next list that has a member mends that as well.
	join(1<<52, 6*time.Minute+12*time.Second)
	event(qlock.EventReleased, 1<<52, 6*time.Minute+12*time.Second)
	want("came and gone at once", 0)
	join(13, 6*time.Minute+14*time.Second)
	want("shut out by it", 0)
	list(6*time.Minute+15*time.Second, 13)
	want("the list has it", 13, Joined)
	event(qlock.EventReleased, 13, 6*time.Minute+16*time.Second)
	want("it leaves", 0, Left)
	join(14, 6*time.Minute+18*time.Second)
	want("the next member is seen at once", 14, Joined)

	// It is not remembered for ever.
	list(7*time.Minute, 14)
	list(8 * time.Minute)
	list(8*time.Minute + 2*longRemember)
	if len(v.gone) != 0 {
		t.Errorf("%v is remembered", v.gone)
	}
}
