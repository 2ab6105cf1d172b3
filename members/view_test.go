package members

import (
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// viewed is a view of a group in which only the id a is used. Times count from its start.
type viewed struct {
	t    *testing.T
	view *view
	at   time.Time
}

func newViewed(t *testing.T, events bool) *viewed {
	return &viewed{t, newView("g", events), time.Now()}
}

func (v *viewed) event(kind qlock.EventKind, token uint64, after time.Duration) {
	v.view.hear([]heard{{&qlock.Event{Kind: kind, Name: memberLock("g", "a"), Client: "c", Mode: "exclusive", Token: token}, v.at.Add(after)}})
}

func (v *viewed) join(token uint64, after time.Duration) {
	v.event(qlock.EventAcquired, token, after)
}

func (v *viewed) list(after time.Duration, tokens ...uint64) {
	var all []member
	for _, token := range tokens {
		all = append(all, member{Info: Info{ID: "a", Token: token, Lease: time.Second}})
	}
	v.view.list(all, v.at.Add(after))
}

// want checks the next update: the token of the present member, 0 if there is none, and the
// changes.
func (v *viewed) want(what string, token uint64, kinds ...Kind) {
	v.t.Helper()
	u, _ := v.view.update()
	var got uint64
	for _, m := range u.Members {
		got = m.Token
	}
	if got != token || len(u.Changes) != len(kinds) {
		v.t.Fatalf("%s: %+v, want the token %d and %v", what, u, token, kinds)
	}
	for i, c := range u.Changes {
		if c.Kind != kinds[i] {
			v.t.Errorf("%s: %s, want %s", what, c.Kind, kinds[i])
		}
	}
}

// A process that was stopped right after it joined publishes the event of that when it goes
// on, long after its lease has ended. It does not become a member again by that.
func TestLateEventOfAJoin(t *testing.T) {
	v := newViewed(t, false)
	v.list(0, 7)
	v.want("a member", 7, Joined)
	v.list(2*time.Second, 7)
	v.want("the same", 7)
	v.list(3 * time.Second)
	v.want("its lease ended", 0, Lost)
	v.join(7, time.Minute)
	v.want("the late event of the join", 0)
	v.join(8, time.Minute)
	v.want("the next member", 8, Joined)
	v.list(time.Minute, 8)
	v.want("the same", 8)
	v.list(2*time.Minute, 9)
	v.want("another takes over", 9, Lost, Joined)
	v.join(8, 2*time.Minute)
	v.want("a late event again", 9)

	// A forged event has a token that no list had. It shuts out nobody.
	v.join(1<<52, 3*time.Minute)
	v.want("a forged event", 1<<52, Lost, Joined)
	v.list(4*time.Minute, 9)
	v.want("the list mends it", 9, Lost, Joined)
	v.list(5 * time.Minute)
	v.want("its lease ended", 0, Lost)
	v.join(10, 6*time.Minute)
	v.want("the next member", 10, Joined)

	// A member that came and left between two lists has a token as well. What joined before
	// it and tells of it after it is gone.
	v.list(6*time.Minute+time.Second, 10)
	v.event(qlock.EventReleased, 10, 6*time.Minute+2*time.Second)
	v.want("it leaves", 0, Left)
	v.join(12, 6*time.Minute+3*time.Second)
	v.want("the next member", 12, Joined)
	v.event(qlock.EventReleased, 12, 6*time.Minute+4*time.Second)
	v.want("it leaves", 0, Left)
	v.list(6*time.Minute + 10*time.Second)
	v.want("nobody", 0)
	v.join(11, 6*time.Minute+11*time.Second)
	v.want("the late event of a join before it", 0)

	// The same if no event told of its end.
	v.join(13, 6*time.Minute+11*time.Second+100*time.Millisecond)
	v.want("the next member", 13, Joined)
	v.list(6*time.Minute + 11*time.Second + 200*time.Millisecond)
	v.want("its lease ended", 0, Lost)
	v.join(12, 6*time.Minute+11*time.Second+300*time.Millisecond)
	v.want("the late event of a join before it", 0)

	// And if another took over.
	v.join(14, 6*time.Minute+11*time.Second+400*time.Millisecond)
	v.join(15, 6*time.Minute+11*time.Second+500*time.Millisecond)
	v.want("the next member but one", 15, Joined)
	v.list(6*time.Minute + 11*time.Second + 600*time.Millisecond)
	v.want("its lease ended", 0, Lost)
	v.join(14, 6*time.Minute+11*time.Second+700*time.Millisecond)
	v.want("the late event of a join before it", 0)

	// If its events were forged, the next list that has a member mends that as well.
	v.join(1<<52, 6*time.Minute+12*time.Second)
	v.event(qlock.EventReleased, 1<<52, 6*time.Minute+12*time.Second)
	v.want("came and gone at once", 0)
	v.join(16, 6*time.Minute+14*time.Second)
	v.want("shut out by it", 0)
	v.list(6*time.Minute+15*time.Second, 16)
	v.want("the list has it", 16, Joined)
	v.event(qlock.EventReleased, 16, 6*time.Minute+16*time.Second)
	v.want("it leaves", 0, Left)
	v.join(17, 6*time.Minute+18*time.Second)
	v.want("the next member is seen at once", 17, Joined)

	// It is not remembered for ever.
	v.list(7*time.Minute, 17)
	v.list(8 * time.Minute)
	v.list(8*time.Minute + 2*longRemember)
	if len(v.view.gone) != 0 {
		t.Errorf("%v is remembered", v.view.gone)
	}
}

// Nodes may list a token that is too high for a moment, while the client of a claim settles on
// one. An event that names the right one, or another list, decides.
func TestTokenInDoubt(t *testing.T) {
	const ms = time.Millisecond
	v := newViewed(t, true)
	v.list(0, 5)
	v.want("the first list is all there is", 5, Joined)
	v.list(10*time.Second, 8)
	v.want("in doubt", 5)
	if next := v.view.nextDeath(); next > confirm {
		t.Errorf("the nodes are asked again after %v", next)
	}
	v.join(7, 10*time.Second+ms)
	v.want("the event", 7, Lost, Joined)
	v.list(10*time.Second+2*ms, 8)
	v.want("what the nodes say still", 7)
	v.list(10*time.Second+confirm, 7)
	v.want("what they say then", 7)

	v.list(20 * time.Second)
	v.want("its lease ended", 0, Lost)
	v.list(21*time.Second, 12)
	v.want("in doubt", 0)
	v.list(21*time.Second+10*ms, 11)
	v.want("in doubt again", 0)
	v.list(21*time.Second+confirm, 11)
	v.want("not for long enough", 0)
	v.list(21*time.Second+10*ms+confirm, 11)
	v.want("confirmed, though no event came", 11, Joined)
	v.list(30*time.Second, 1<<52)
	v.list(30*time.Second+10*ms, 11)
	v.list(30*time.Second+confirm, 1<<52)
	v.want("never the same for long enough", 11)
	v.list(31*time.Second, 11)
	if len(v.view.doubts) != 0 {
		t.Errorf("%v is in doubt", v.view.doubts)
	}

	// Without events there is nothing to wait for but lists, and the next is far away.
	v = newViewed(t, false)
	v.list(0)
	v.want("nobody", 0)
	v.list(time.Second, 8)
	v.want("at once", 8, Joined)
}
