package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// served is a gateway behind a real server, with short limits of time.
func served(t *testing.T, limits Limits) (*Gateway, *httptest.Server) {
	t.Helper()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	g, err := New(t.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	return g, srv
}

func dial(t *testing.T, srv *httptest.Server) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return nc
}

// A body that does not come ends the connection also when the request is refused without it:
// the server waits for the rest of such bodies.
func TestSlowBodyOfRefused(t *testing.T) {
	_, srv := served(t, Limits{BodyTime: 100 * time.Millisecond})
	for _, request := range []string{
		"POST /nothing HTTP/1.1\r\nHost: localhost\r\n",
		"POST /v1/locks/x HTTP/1.1\r\nHost: evil.example\r\n",
		"POST /v1/locks/x HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n",
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
		"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n",
	} {
		nc := dial(t, srv)
		fmt.Fprintf(nc, "%sContent-Length: 20\r\n\r\n{", request)
		if _, err := io.ReadAll(nc); err != nil { // until the server closes it
			t.Errorf("%q: %v", request, err)
		}
	}
}

const patience = 2 * time.Minute

// A caller that does not read its answers cannot keep them in memory for ever.
func TestSlowReader(t *testing.T) {
	_, srv := served(t, Limits{WriteTime: 100 * time.Millisecond})
	nc := dial(t, srv)
	// Pipelined requests, whose answers fill the buffers of the sockets. Then the server reads no
	// more requests, until it gives up the connection.
	for {
		if _, err := io.WriteString(nc, "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the server still waits")
			}
			return
		}
	}
}

// The deadline of an answer does not end a later one on the same connection.
func TestWriteTimeIsForOneAnswer(t *testing.T) {
	t.Parallel()
	g, srv := served(t, Limits{WriteTime: time.Second})
	hold := ask(t, g, "POST", "/v1/locks/x", `{"lease":"28s"}`).want(t, 201, "")
	nc := dial(t, srv)
	in := bufio.NewReader(nc)
	for _, request := range []string{
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /v1/locks/x HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=2\r\n\r\n", // longer than WriteTime
		"POST /v1/locks/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		if _, err := io.WriteString(nc, request); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		_, _ = io.Copy(io.Discard, a.Body)
		if a.StatusCode >= 500 {
			t.Errorf("%q: %s", request, a.Status)
		}
		time.Sleep(1100 * time.Millisecond)
	}
	ask(t, g, "DELETE", "/v1/leases/"+hold.lease.ID, "").want(t, 204, "")
}

func TestCallerOf(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64",
		"[2001:db8:1:2::9]:2": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64", "pipe": "pipe", "name:1": "name",
	} {
		if got := callerOf(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// A lease is not promised a length that its votes can never have.
func TestRenewalLongerThanTheVotes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway()
		short := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		ask(t, g, "POST", "/v1/leases/"+short.lease.ID+"/renew", `{"lease":"20s"}`).want(t, 422, "invalid")
		ask(t, g, "POST", "/v1/leases/"+short.lease.ID+"/renew", `{"lease":"5s"}`).want(t, 200, "")
		long := ask(t, g, "POST", "/v1/locks/y", `{"lease":"20s"}`).want(t, 201, "")
		if a := ask(t, g, "POST", "/v1/leases/"+long.lease.ID+"/renew", `{"lease":"25s"}`).want(t, 200, ""); a.lease.LeaseMS != 25_000 {
			t.Errorf("%s", a)
		}
	})
}

// An id that was asked for again is forgotten by its last end, not by its first.
func TestTombstoneOfRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) { c.Limits.TombstonesFor = time.Minute })
		other := ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		path := "/v1/leases/" + uuid.NewString()
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 409, "held")
		ask(t, g, "DELETE", "/v1/leases/"+other.lease.ID, "").want(t, 204, "")
		time.Sleep(40 * time.Second)
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 201, "")
		ask(t, g, "DELETE", path, "").want(t, 204, "")
		time.Sleep(40 * time.Second)
		ask(t, g, "PUT", path, `{"name":"x"}`).want(t, 410, "gone") // it never acquires a second time
		time.Sleep(40 * time.Second)
		ask(t, g, "GET", path, "").want(t, 404, "unknown-lease")
		if len(g.graves)+len(g.buried) != 0 {
			t.Errorf("%d tombstones, %d in order", len(g.graves), len(g.buried))
		}
	})
}

// A caller that waits for news of its held lease is told once that the gateway stops, and
// need not ask in a loop.
func TestDrainIsToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) { c.Drain = 5 * time.Second })
		a := ask(t, g, "POST", "/v1/locks/x", `{"lease":"20s"}`).want(t, 201, "")
		path := "/v1/leases/" + a.lease.ID
		poll := later(t, g, "GET", path, "", "Prefer", "wait=30", "If-None-Match", a.header.Get("ETag"))
		start := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- g.Shutdown(context.Background()) }()
		first := (<-poll).want(t, 200, "")
		if first.lease.DrainingInMS == 0 || time.Since(start) > time.Second {
			t.Errorf("%s after %v", first, time.Since(start))
		}
		again := ask(t, g, "GET", path, "", "Prefer", "wait=30", "If-None-Match", first.header.Get("ETag"))
		if again.status != 410 || time.Since(start) < 4*time.Second {
			t.Errorf("%s after %v", again, time.Since(start))
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// What nodes refuse is not what NATS permissions deny.
func TestRefusedByNodes(t *testing.T) {
	byNodes := &qlock.LockError{Reason: qlock.ErrRefused, Nodes: []qlock.NodeAnswer{{Node: "n1", Answer: qlock.AnswerRefused, Detail: "client a has 5 claims here"}}}
	if p := problemOf(byNodes); p.Kind() != "refused" || p.Status != 503 || len(p.Nodes) != 1 {
		t.Errorf("%+v", p)
	}
	byNATS := &qlock.LockError{Reason: qlock.ErrRefused, Nodes: []qlock.NodeAnswer{{Node: "n1", Answer: qlock.AnswerSilent}}}
	if p := problemOf(byNATS); p.Kind() != "forbidden" {
		t.Errorf("%+v", p)
	}
}

// Over HTTP/2 all of it works as well: requests without a body, bodies, waits that are longer
// than a body may take, and streams.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	g, err := New(t.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Limits: Limits{BodyTime: time.Second, WriteTime: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	srv := httptest.NewUnstartedServer(g)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	do := func(method, path, body string, header ...string) *http.Response {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		r, err := http.NewRequestWithContext(ctx, method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		a, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Body.Close() })
		if a.ProtoMajor != 2 {
			t.Errorf("%s %s: %s", method, path, a.Proto)
		}
		return a
	}
	events := do("GET", "/v1/events", "")
	if events.StatusCode != 200 {
		t.Fatal(events.Status)
	}
	path := "/v1/leases/" + uuid.NewString()
	if a := do("PUT", path, `{"name":"x","lease":"28s"}`); a.StatusCode != 201 {
		t.Error(a.Status)
	}
	waits := do("POST", "/v1/locks/x", `{"wait":"1m"}`, "Prefer", "wait=2")
	if waits.StatusCode != 202 {
		t.Error(waits.Status)
	}
	lines := bufio.NewScanner(events.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), `"encoded":"x"`) {
	}
	if lines.Err() != nil {
		t.Error(lines.Err())
	}
	for _, path := range []string{path, waits.Header.Get("Location")} {
		if a := do("DELETE", path, ""); a.StatusCode != 204 {
			t.Error(a.Status)
		}
	}
	srv.CloseClientConnections()
}

// A path that a server would clean is refused: a client that follows the redirect would lock
// something else.
func TestUncleanPaths(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newWorld(t, 1).gateway()
		for _, path := range []string{"/v1/locks/a/../b", "/v1/locks/..", "/v1/locks/.", "/v1/locks/./a", "/v1//locks/a", "//v1/locks/a", "/v1/locks/a//b", "/v1/locks/a/.."} {
			r := httptest.NewRequest("POST", "http://localhost/", nil)
			r.URL = &url.URL{Path: path}
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r)
			if w.Code != 400 || !strings.Contains(w.Body.String(), "in the body") {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		for path, name := range map[string]string{"/v1/locks/a%2F..%2Fb": "a/../b", "/v1/locks/...": "...", "/v1/locks/%2F%2F": "//", "/v1/locks/a.": "a.", "/v1/locks/..a": "..a", "/v1/locks/%2E%2E": ".."} {
			if a := ask(t, g, "POST", path, "").want(t, 201, ""); a.lease.Name != name {
				t.Errorf("%s: %s", path, a)
			}
		}
		if a := ask(t, g, "POST", "/v1/locks/a/b", "").want(t, 404, "not-found"); !strings.Contains(a.fault.Detail, "%2F") {
			t.Errorf("%s", a)
		}
	})
}
