package qlock_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// events decodes the bodies of messages, which must know no other fields than
// qlock.Event and its documentation.
func events(t *testing.T, messages []*nats.Msg) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, m := range messages {
		var e map[string]any
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Fatalf("event on %s: %v", m.Subject, err)
		}
		out = append(out, e)
	}
	return out
}

func wantEvent(t *testing.T, got []map[string]any, want map[string]any) {
	t.Helper()
	if len(got) != 1 {
		t.Errorf("%d events, want one: %v", len(got), got)
		return
	}
	for field, v := range want {
		if got[0][field] != v {
			t.Errorf("%s is %v, want %v", field, got[0][field], v)
		}
	}
	if len(got[0]) != len(want) {
		t.Errorf("event %v, want %v", got[0], want)
	}
}

// eventDelay is longer than an event waits for other messages to go with.
const eventDelay = 10 * time.Millisecond

func TestEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		o := w.observe()
		a, b := w.client("svc-a"), w.client("svc-b")
		w.nodes[2].crash() // that the number of votes does not depend on who is first
		k := mustLock(t, a, "orders.42")
		time.Sleep(eventDelay)
		wantEvent(t, events(t, o.messages("lock.default.event.acquired.svc-a.orders.42")),
			map[string]any{"mode": "exclusive", "token": float64(k.Token()), "votes": 2.0, "nodes": 3.0, "waited_ms": 0.0})
		next := waitFor(t.Context(), b.RLock, "orders.42")
		time.Sleep(1500 * time.Millisecond)
		mustUnlock(t, k)
		r, start := next.held(t), time.Now()
		wantEvent(t, events(t, o.messages("lock.default.event.released.svc-a.orders.42")),
			map[string]any{"mode": "exclusive", "token": float64(k.Token()), "waited_ms": 0.0, "held_ms": 1510.0})
		time.Sleep(eventDelay)
		wantEvent(t, events(t, o.messages("lock.default.event.acquired.svc-b.orders.42")),
			map[string]any{"mode": "shared", "token": float64(r.Token()), "votes": 2.0, "nodes": 3.0, "waited_ms": 1500.0})

		w.nodes[0].crash()
		lost, _ := died(t, r.Context())
		time.Sleep(eventDelay)
		held := float64(lost.Sub(start).Microseconds()) / 1000
		wantEvent(t, events(t, o.messages("lock.default.event.lost.svc-b.orders.42")),
			map[string]any{"mode": "shared", "token": float64(r.Token()), "waited_ms": 1500.0, "held_ms": held})
		_ = r.Unlock(t.Context())
		if got := o.messages("lock.default.event."); len(got) != 4 {
			t.Errorf("%d events, want 4", len(got))
		}

		// The type that observers may use reads the same.
		var e qlock.Event
		if err := json.Unmarshal(o.messages("lock.default.event.lost.")[0].Data, &e); err != nil {
			t.Fatal(err)
		}
		if e != (qlock.Event{Mode: "shared", Token: r.Token(), Waited: 1500, Held: held}) {
			t.Errorf("event %+v", e)
		}
	})
}

// Who waits, fails or is refused is no event.
func TestNoEventWithoutLock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		k := mustLock(t, a, "x")
		time.Sleep(eventDelay)
		o := w.observe()
		_, err := b.TryLock(t.Context(), "x")
		wantIs(t, err, qlock.ErrHeld)
		_, err = b.Lock(timeout(t, time.Second), "x")
		wantIs(t, err, qlock.ErrHeld)
		if got := o.messages("lock.default.event."); len(got) != 0 {
			t.Errorf("%d events, the first on %s", len(got), got[0].Subject)
		}
		mustUnlock(t, k)
	})
}

func TestWithoutEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		o := w.observe()
		a := w.client("a", qlock.WithoutEvents())
		mustUnlock(t, mustLock(t, a, "x"))
		mustRLock(t, a, "y")
		for _, tn := range w.nodes {
			tn.crash()
		}
		time.Sleep(testLease)
		if got := o.messages("lock.default.event."); len(got) != 0 {
			t.Errorf("%d events, the first on %s", len(got), got[0].Subject)
		}
	})
}

// What Lockers publish is read by ParseEvent, and nothing else is.
func TestParseEvent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		subject, err := qlock.EventSubject("default", "price%20list")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *qlock.Event, 10)
		if _, err := w.connect().Subscribe(subject, func(m *nats.Msg) {
			e, err := qlock.ParseEvent(m.Subject, m.Data)
			if err != nil {
				t.Error(err)
			}
			got <- e
		}); err != nil {
			t.Fatal(err)
		}
		settle()
		a := w.client("a", qlock.WithNote("a note"))
		mustUnlock(t, mustLock(t, a, "another"))
		k := mustLock(t, a, "price list")
		time.Sleep(time.Second)
		mustUnlock(t, k)
		settle()
		if len(got) != 2 {
			t.Fatalf("%d events", len(got))
		}
		want := qlock.Event{Cluster: "default", Kind: "acquired", Client: "a", Name: "price list", Mode: "exclusive", Token: k.Token(), Votes: 2, Nodes: 3, Note: "a note"}
		e := <-got
		want.Votes, want.Waited = e.Votes, e.Waited
		if *e != want || e.Votes < 2 {
			t.Errorf("%+v, want %+v", *e, want)
		}
		if e := <-got; e.Kind != "released" || e.Held != 1000 || e.Token != k.Token() {
			t.Errorf("%+v", *e)
		}
	})
	for subject, body := range map[string]string{
		"lock.default.event.acquired.a":          `{"mode":"shared"}`,
		"lock.default.node.acquired.a.x":         `{"mode":"shared"}`,
		"lick.default.event.acquired.a.x":        `{"mode":"shared"}`,
		"lock.default.event.stolen.a.x":          `{"mode":"shared"}`,
		"lock.default.event.acquired.a.%61":      `{"mode":"shared"}`,
		"lock.default.event.acquired.a.y":        `{"mode":"sideways"}`,
		"lock.default.event.acquired.a.x.y":      `{"mode":"shared"`,
		"lock.default.event.acquired.a.x.y.z":    `[]`,
		"lock.default.event.acquired.a.x.y.z.0":  `{"mode":"shared","token":-1}`,
		"lock.default.event.acquired.a\x1b[2J.x": `{"mode":"shared"}`,
		"lock.def\x1bault.event.acquired.a.x":    `{"mode":"shared"}`,
		"lock.default.event.acquired.a.b":        `{"MODE":"shared"}`,
		"lock.default.event.acquired.a.c":        `{"mode":"shared","mode":"shared"}`,
		"lock.default.event.acquired.a.d":        `{"mode":"shared","waited_ms":-1}`,
		"lock.default.event.acquired.a.e":        `{"mode":"shared","note":"` + "\xff" + `"}`,
		"lock.default.event.acquired.a.f":        `{"mode":"shared","evicted_by":"a b"}`,
		"lock.default.event.acquired.a.g":        `{"mode":"shared","votes":99999999999}`,
	} {
		if e, err := qlock.ParseEvent(subject, []byte(body)); err == nil {
			t.Errorf("%s %s is taken for %+v", subject, body, e)
		}
	}
	for _, bad := range [][2]string{{"a.b", ""}, {"a", "x..y"}, {"", ">"}, {"a", "x>"}} {
		if s, err := qlock.EventSubject(bad[0], bad[1]); err == nil {
			t.Errorf("%v: %s", bad, s)
		}
	}
	if s, err := qlock.EventSubject("prod", ""); err != nil || s != "lock.prod.event.*.*.>" {
		t.Errorf("%s, %v", s, err)
	}
}
