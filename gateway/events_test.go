package gateway

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/qlocktest"
)

// A stream tells who acquires and releases what matches, and ends when the gateway stops.
func TestEvents(t *testing.T) {
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	g, err := New(t.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Limits: Limits{Streams: 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/v1/events?pattern=orders.*&kinds=acquired,released", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", "another-1")
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(a.Status, a.Header)
	}
	lines := bufio.NewScanner(a.Body)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ended without %q: %v", want, lines.Err())
	}
	next("retry: 2000")
	next("event: reset")
	next("event: hello")
	ask(t, g, "GET", "/v1/events", "").want(t, 429, "too-many")
	ask(t, g, "GET", "/v1/events?kinds=x", "").want(t, 422, "invalid")
	ask(t, g, "GET", "/v1/events?pattern=a..b", "").want(t, 422, "invalid")
	ask(t, g, "POST", "/v1/locks/other", "").want(t, 201, "")
	lease := ask(t, g, "POST", "/v1/locks/orders.42", `{"note":"a\nb"}`).want(t, 201, "")
	next(`event: acquired`)
	next(`"encoded":"orders.42"`)
	ask(t, g, "DELETE", lease.header.Get("Location"), "").want(t, 204, "")
	next(`event: released`)
	for _, l := range g.all() {
		l.release()
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	next(`"reason":"draining"`)
	if lines.Scan(); lines.Scan() {
		t.Errorf("it goes on: %s", lines.Text())
	}
	http.DefaultClient.CloseIdleConnections()
}

// A caller that reconnects gets what it missed. One that cannot is told why.
func TestEventsResume(t *testing.T) {
	g, srv := served(t, Limits{})
	open := func(last string) (next func(want string) string, leave func()) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/v1/events?kinds=acquired", nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(a.Body)
		id := ""
		return func(want string) string {
				t.Helper()
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "id: ") {
						id = strings.TrimPrefix(lines.Text(), "id: ")
					}
					if strings.Contains(lines.Text(), want) {
						return id
					}
				}
				t.Fatalf("the stream ended without %q: %v", want, lines.Err())
				return ""
			}, func() {
				cancel()
				_ = a.Body.Close()
			}
	}
	acquire := func(name string) {
		lease := ask(t, g, "POST", "/v1/locks/"+name, "").want(t, 201, "")
		ask(t, g, "DELETE", lease.header.Get("Location"), "").want(t, 204, "")
	}
	next, leave := open("")
	next("event: hello")
	acquire("a")
	id := next(`"encoded":"a"`)
	leave()
	for _, name := range []string{"b", "c"} {
		acquire(name)
	}
	next, leave = open(id)
	next("event: hello")
	next(`"encoded":"b"`)
	id2 := next(`"encoded":"c"`)
	leave()
	for last, reason := range map[string]string{"gzzzzzzz-1-1": "other-gateway", g.Name() + "-1-1": "restart", id2 + "000": "restart", "x": "other-gateway"} {
		next, leave = open(last)
		next("event: reset")
		next(`"reason":"` + reason + `"`)
		next("event: hello")
		leave()
	}
	http.DefaultClient.CloseIdleConnections()
}

// A ring forgets the oldest, and a reader that is too far behind is told how much it misses.
func TestRing(t *testing.T) {
	r := &ring{id: "i", next: 1, changed: make(chan struct{})}
	for range ringEvents + 10 {
		r.add("acquired", 1)
	}
	list, first, forgotten, more, closed := r.after(3)
	if len(list) != 256 || first != 11 || forgotten != 7 || closed {
		t.Errorf("%d events from %d on, %d forgotten", len(list), first, forgotten)
	}
	if n, reset := r.resume("g", "g-i-4000"); n != 4000 || reset != "" {
		t.Error(n, reset)
	}
	if n, reset := r.resume("g", "g-i-10"); n != 10 || reset != "" { // the next is the first that is there
		t.Error(n, reset)
	}
	if n, reset := r.resume("g", "g-i-9"); n != ringEvents+10 || reset != "too-old" {
		t.Error(n, reset)
	}
	list, first, _, _, _ = r.after(ringEvents + 10)
	if len(list) != 0 || first != ringEvents+11 {
		t.Error(len(list), first)
	}
	r.close()
	<-more
	big := &ring{next: 1, changed: make(chan struct{})}
	for range 10 {
		big.add("acquired", strings.Repeat("x", ringBytes/4))
	}
	if len(big.events) != 3 || big.bytes > ringBytes {
		t.Errorf("%d events, %d bytes", len(big.events), big.bytes)
	}
}
