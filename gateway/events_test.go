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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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
