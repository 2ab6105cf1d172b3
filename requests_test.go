package qlock_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Who listens beside the nodes reads each request, whether it came alone or with others.
func TestParseRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a", qlock.WithNote("a note")), w.client("b", qlock.WithoutBatches())
		subjects, err := qlock.RequestSubjects("default", "price%20list")
		if err != nil || len(subjects) != 4 {
			t.Fatal(subjects, err)
		}
		heard := make(chan qlock.Request, 100)
		nc := w.connect().Conn
		for _, s := range subjects {
			_, err := nc.Subscribe(s, func(m *nats.Msg) {
				list, err := qlock.ParseRequests(m.Subject, m.Data)
				if err != nil {
					t.Errorf("%s: %v", m.Subject, err)
				}
				for _, r := range list {
					if qlock.MatchName("price%20list", r.Name) {
						heard <- r
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		settle()
		asked := time.Now()
		k := mustRLock(t, a, "price list")
		claim := inspect(t, a, "price list").Holders[0].ID
		mustUnlock(t, k)
		mustUnlock(t, mustLock(t, b, "price list"))
		mustUnlock(t, mustLock(t, b, "others"))
		settle()
		want := []qlock.Request{
			{Kind: qlock.RequestAcquire, Client: "a", Shared: true, Note: "a note", Claim: claim},
			{Kind: qlock.RequestRelease, Client: "a", Claim: claim},
			{Kind: qlock.RequestAcquire, Client: "b"},
			{Kind: qlock.RequestRelease, Client: "b"},
		}
		if len(heard) != len(want) {
			t.Fatalf("%d requests", len(heard))
		}
		all := map[string]qlock.Request{} // each subscription has a goroutine of its own
		for range want {
			r := <-heard
			all[string(r.Kind)+r.Client] = r
		}
		for _, r := range want {
			got := all[string(r.Kind)+r.Client]
			r.Cluster, r.Name, r.Encoded = "default", "price list", "price%20list"
			if r.Kind == qlock.RequestAcquire {
				r.Since = got.Since
				if !got.Since.Equal(asked) {
					t.Errorf("asked at %v, and it says %v", asked, got.Since)
				}
			}
			if r.Claim == "" {
				r.Claim = got.Claim
			}
			if got != r || got.Claim == "" {
				t.Errorf("%+v, want %+v", got, r)
			}
		}
	})
	for on, body := range map[string]string{
		"lock.default.event.acquired.a.x": `{"mode":"shared"}`,
		"lock.default.node.acquire.a.x":   `{"mode":"shared"}`,
		"lock.default.node.a":             `[7`,
		"lick.default.node.acquire.a.x":   `{}`,
		"":                                ``,
	} {
		if list, err := qlock.ParseRequests(on, []byte(body)); err == nil {
			t.Errorf("%s %s is taken for %+v", on, body, list)
		}
	}
	for _, bad := range [][2]string{{"a.b", ""}, {"a", "x..y"}, {"", ">"}} {
		if s, err := qlock.RequestSubjects(bad[0], bad[1]); err == nil {
			t.Errorf("%v: %s", bad, s)
		}
	}
	if s, err := qlock.RequestSubjects("*", ""); err != nil || s[0] != "lock.*.node.acquire.*.>" {
		t.Errorf("%v, %v", s, err)
	}
	if !qlock.MatchName("", "x.y") || !qlock.MatchName("x.*", "x.y") || qlock.MatchName("x", "x.y") {
		t.Error("names match wrongly")
	}
}

// Nothing that comes on a subject makes its readers panic, and what they return can be used.
func FuzzParse(f *testing.F) {
	const one = `{"verb":"acquire","name":"x","claim":"00000000-0000-0000-0000-000000000001/1","mode":"shared","at":1,"ttl_ms":1000}`
	for _, on := range []string{
		"lock.default.node.acquire.a.x", "lock.default.node.a", "lock.default.node.release.a.x", "lock.default.node.yield.a.x",
		"lock.default.node.refresh.a", "lock.c.event.acquired.a.x", "lock..node..", "lock.default.node.acquire.a.%zz",
	} {
		for _, body := range []string{``, `{}`, `[]`, `null`, `[null]`, "\xff", one, "[" + one + "]"} {
			f.Add(on, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, on string, body []byte) {
		list, err := qlock.ParseRequests(on, body)
		if err != nil && len(list) > 0 {
			t.Errorf("%d requests, and %v", len(list), err)
		}
		for _, r := range list {
			if r.Name == "" || r.Encoded == "" || r.Client == "" || r.Claim == "" {
				t.Errorf("%+v", r)
			}
			qlock.MatchName("a.>", r.Name)
			_ = r.Since.String()
		}
		if e, err := qlock.ParseEvent(on, body); (e == nil) != (err != nil) {
			t.Errorf("event %v, %v", e, err)
		}
		_, _ = qlock.ParseSubject(on)
	})
}
