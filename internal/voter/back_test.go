package voter

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// tick makes a node do what is due, and hear its own question.
func tick(n *Node, now *wire.Now) Out {
	var out Out
	for range 4 {
		if n.Deadline() > now.Mono {
			break
		}
		n.Tick(*now, &out)
		if q := out.Probe; q != nil {
			out.Probe = nil
			hear(n, *now, q, "n1", &out)
		}
	}
	return out
}

// ready returns a node that votes and has just heard itself.
func ready(t *testing.T) (*Node, *wire.Now) {
	t.Helper()
	n, now := attacked(t)
	for at := n.heardAt; n.heardAt == at || n.heardAt != now.Mono; {
		pass(now, 10*time.Millisecond)
		tick(n, now)
	}
	return n, now
}

// until returns after what time the node votes.
func until(t *testing.T, n *Node, now *wire.Now) time.Duration {
	t.Helper()
	const step = 10 * time.Millisecond
	for d := time.Duration(0); d < 5*time.Second; d += step {
		if tick(n, now); n.voting() {
			return d
		}
		pass(now, step)
	}
	t.Fatalf("the node is %s after 5s", n.State())
	return 0
}

// The node asks for its name every 1.5 s here. An interruption that is shorter than 1.5 s
// in addition costs nothing. After a longer one, the node listens for a second, and its
// question has 0.3 s to be answered (N9).
func TestBackFromAPause(t *testing.T) {
	for _, c := range []struct{ pause, wait time.Duration }{
		{time.Second, 0},
		{3000 * time.Millisecond, 0},
		{3001 * time.Millisecond, 1300 * time.Millisecond},
		{20 * time.Second, 1300 * time.Millisecond},
		{30 * time.Second, 1300 * time.Millisecond},
	} {
		n, now := ready(t)
		pass(now, c.pause)
		if got := until(t, n, now); got != c.wait {
			t.Errorf("after a pause of %v it votes in %v, want %v", c.pause, got, c.wait)
		}
	}
}

// A restart that takes no longer than such an interruption costs only the question that
// every start asks.
func TestBackByAMark(t *testing.T) {
	for _, c := range []struct{ down, wait time.Duration }{
		{3000 * time.Millisecond, 300 * time.Millisecond},
		{3001 * time.Millisecond, 1300 * time.Millisecond},
		{29 * time.Second, 1300 * time.Millisecond},
	} {
		n, now := ready(t)
		saved, ok := n.Save(*now)
		if !ok {
			t.Fatal("it leaves no mark")
		}
		pass(now, c.down)
		if got := until(t, New(n.cfg, *now, saved, 0), now); got != c.wait {
			t.Errorf("%v after its stop it votes in %v, want %v", c.down, got, c.wait)
		}
	}
}

// A node that is away again while it listens may have missed the questions that it
// listens for.
func TestAwayWhileItListens(t *testing.T) {
	n, now := ready(t)
	pass(now, 10*time.Second)
	tick(n, now)
	// Since its question: a pause of a waiting node, and the time for an answer.
	pass(now, 810*time.Millisecond)
	if got, want := until(t, n, now), 1300*time.Millisecond; got != want {
		t.Errorf("it votes in %v, want %v", got, want)
	}
}

// Until it has listened, hearing itself does not prove that its memory is current. A mark
// that it leaves then is as old as what it heard before it was away (N8).
func TestMarkWhileItListens(t *testing.T) {
	n, now := ready(t)
	pass(now, 10*time.Second)
	tick(n, now)
	pass(now, 100*time.Millisecond)
	saved, ok := n.Save(*now)
	if !ok {
		t.Fatal("it leaves no mark")
	}
	if want := 10100 * time.Millisecond; saved.Away != want {
		t.Errorf("it has been away for %v by its mark, want %v", saved.Away, want)
	}
}

// A vote that expired while a node stood still goes to nobody until the node has noticed
// that it stood still.
func TestExpiryAfterAPause(t *testing.T) {
	for _, message := range []bool{false, true} {
		n, now := ready(t)
		var out Out
		for i, ttl := range []time.Duration{time.Second, 30 * time.Second} {
			n.Handle(*now, &wire.Request{
				Verb: wire.Acquire, Client: "a", Resource: "x", Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: uint64(i + 1)}, SentAt: 1,
				Mode: quorum.Exclusive, At: now.Wall, TTL: ttl, Digest: n.digest,
			}, "a's inbox", &out)
		}
		pass(now, 5*time.Second)
		out.Reset()
		if message {
			n.Handle(*now, &wire.Request{Verb: wire.Info, Client: "c"}, "", &out)
		} else {
			n.Tick(*now, &out)
		}
		for _, s := range out.Answers {
			if s.Answer.Kind == wire.Granted {
				t.Errorf("message %v: a vote is given: %+v", message, s.Answer)
			}
		}
		if n.Claims() != 1 {
			t.Errorf("message %v: %d claims, want the one whose lease has not run out", message, n.Claims())
		}
	}
}
