package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/qlocktest"
)

var strangeNames = []string{
	"a", "orders.42", "a/b", "..", ".", "a b", "%", "%2F", "a%2fb", "ü", "日本", "\xff", "\x00", "a..b", ".a", "a.", "*", ">", `"`, "<script>", "\u202e", "\u2028", strings.Repeat("x", 1024), strings.Repeat("\xfe", 1024),
}

// The encoding is the library's own, which is not exported.
func TestEncoding(t *testing.T) {
	for _, name := range strangeNames {
		want, err := subject.EncodeName(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := encodeName(name); err != nil || got != want {
			t.Errorf("%q is %q, want %q: %v", name, got, want, err)
		}
		if got, err := decodeName(want); err != nil || got != name {
			t.Errorf("%q is %q, want %q: %v", want, got, name, err)
		}
	}
}

func FuzzDecodeName(f *testing.F) {
	for _, name := range strangeNames {
		f.Add(name)
		e, _ := encodeName(name)
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := decodeName(s)
		want, wantErr := subject.DecodeName(s)
		if (err == nil) != (wantErr == nil) || err == nil && got != want {
			t.Errorf("%q is %q (%v), want %q (%v)", s, got, err, want, wantErr)
		}
	})
}

// Any name arrives exactly, by path and by body, and an answer never has another one.
func TestNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway()
		for _, name := range strangeNames {
			encoded, _ := encodeName(name)
			body, _ := json.Marshal(map[string]string{"encoded": encoded})
			a := ask(t, g, "PUT", "/v1/leases/"+uuid.NewString(), string(body)).want(t, 201, "")
			if a.lease.Encoded != encoded || a.lease.Name != "" && a.lease.Name != name {
				t.Errorf("%q: %s", name, a)
			}
			if name != "." && name != ".." {
				ask(t, g, "POST", "/v1/locks/"+url.PathEscape(name), "").want(t, 409, "held")
			}
			r := ask(t, g, "GET", "/v1/lock?encoded="+url.QueryEscape(encoded), "").want(t, 200, "")
			var report LockReport
			if err := json.Unmarshal(r.body, &report); err != nil || report.Encoded != encoded || report.Holding != 1 {
				t.Errorf("%q: %v %s", name, err, r)
			}
			ask(t, g, "DELETE", "/v1/lock?encoded="+url.QueryEscape(encoded)+"&lease="+a.lease.ID, "").want(t, 204, "")
		}
		w.noClaims()
	})
}

// Requests that are wrong are refused with the right problem, and no part of them is
// repeated where it could be a secret.
func TestRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) { c.Hosts = []string{"locks.example.com"} })
		for _, c := range []struct {
			method, path, body string
			status             int
			kind               string
			header             []string
		}{
			{"POST", "/v1/leases", `{"name":"a","name":"b"}`, 400, "malformed", nil},
			{"POST", "/v1/leases", `{"Name":"a"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a"} {}`, 400, "malformed", nil},
			{"POST", "/v1/leases", `[]`, 400, "malformed", nil},
			{"POST", "/v1/leases", `{`, 400, "malformed", nil},
			{"POST", "/v1/leases", `{"name":"a"`, 400, "malformed", nil},
			{"POST", "/v1/leases", `null`, 400, "malformed", nil},
			{"POST", "/v1/leases", "{\"name\":\"\xff\"}", 400, "malformed", nil},
			{"POST", "/v1/leases", `{"name":"\ud800"}`, 400, "malformed", nil},
			{"POST", "/v1/leases", `{"name":"\udc00\ud800"}`, 400, "malformed", nil},
			{"POST", "/v1/leases", `{"name":7}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","encoded":"a"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"encoded":"%61"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","id":"x"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","mode":"both"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","lease":"1h"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","lease":"10"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","wait":"-1s"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","age":-9e99}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"` + strings.Repeat("x", 1025) + `"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"name":"a","note":"` + strings.Repeat("x", 257) + `"}`, 422, "invalid", nil},
			{"POST", "/v1/leases", `{"note":"` + strings.Repeat("x", 70000) + `"}`, 413, "too-large", nil},
			{"POST", "/v1/locks/a", `{"name":"b"}`, 422, "invalid", nil},
			{"POST", "/v1/locks/a", "x=1", 415, "media-type", []string{"Content-Type", "application/x-www-form-urlencoded"}},
			{"POST", "/v1/locks/a", "", 422, "invalid", []string{"Prefer", "wait=x"}},
			{"POST", "/v1/locks/a", "", 422, "invalid", []string{"Idempotency-Key", "x"}},
			{"POST", "/v1/locks/a", "", 403, "cross-origin", []string{"Origin", "https://evil.example"}},
			{"POST", "/v1/locks/a", "", 403, "cross-origin", []string{"Sec-Fetch-Site", "cross-site"}},
			{"GET", "/v1/locks", "", 421, "wrong-host", []string{"Host", "evil.example"}},
			{"GET", "/v1/locks", "", 421, "wrong-host", []string{"Host", "evil.example:8080"}},
			{"GET", "/v1/locks?pattern=a&pattern=b", "", 400, "malformed", nil},
			{"GET", "/v1/locks?patern=a", "", 422, "invalid", nil},
			{"GET", "/v1/locks?pattern=a..b", "", 422, "invalid", nil},
			{"DELETE", "/v1/locks/a", "", 428, "precondition", nil},
			{"DELETE", "/v1/locks/a?token=x", "", 422, "invalid", nil},
			{"GET", "/v1/leases/forged", "", 404, "unknown-lease", nil},
			{"POST", "/v1/leases/forged/renew", "", 404, "unknown-lease", nil},
			{"POST", "/v1/leases/forged/renew", `{"token":7}`, 410, "gone", nil},
			{"PATCH", "/v1/locks", "", 405, "method-not-allowed", nil},
			{"LOCK", "/v1/locks", "", 405, "method-not-allowed", nil},
			{"GET", "/v2/locks", "", 404, "not-found", nil},
		} {
			r := ask(t, g, c.method, c.path, c.body, c.header...)
			if r.status != c.status || r.fault.Kind() != c.kind || r.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s %.80s %v: want %d %s, got %s", c.method, c.path, c.body, c.header, c.status, c.kind, r)
			}
			if r.fault.Request == "" || r.fault.Request != r.header.Get("X-Request-Id") {
				t.Errorf("%s %s: request %q, header %q", c.method, c.path, r.fault.Request, r.header.Get("X-Request-Id"))
			}
			if r.status == 405 && r.header.Get("Allow") == "" {
				t.Errorf("%s: no Allow", c.path)
			}
		}
		for _, host := range []string{"localhost", "localhost:8080", "127.0.0.1", "[::1]:8080", "locks.example.com:443"} {
			ask(t, g, "GET", "/v1/nodes", "", "Host", host).want(t, 200, "")
		}
		if r := ask(t, g, "GET", "/v1/nodes", "", "X-Request-Id", "mine-1"); r.header.Get("X-Request-Id") != "mine-1" {
			t.Errorf("%v", r.header)
		}
		if r := ask(t, g, "GET", "/v1/nodes", "", "X-Request-Id", "a b<"); r.header.Get("X-Request-Id") == "a b<" {
			t.Errorf("%v", r.header)
		}
		w.noClaims()
	})
}

// Callers cannot have more than the limits allow, and what they leave behind is forgotten.
func TestLimits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) {
			c.Limits = Limits{Leases: 5, WaitingPerLock: 3, PollsPerLease: 2, Tombstones: 4, TombstonesFor: time.Minute, RequestsPerSec: 100}
		})
		var first *reply
		for i := range 3 {
			a := ask(t, g, "POST", "/v1/locks/x", `{"wait":"1m"}`)
			if i == 0 {
				first = a
			}
		}
		if r := ask(t, g, "POST", "/v1/locks/x", `{"wait":"1m"}`).want(t, 429, "too-many"); r.header.Get("Retry-After") == "" {
			t.Errorf("%v", r.header)
		}
		ask(t, g, "POST", "/v1/locks/y", "").want(t, 201, "")
		ask(t, g, "POST", "/v1/locks/z", "").want(t, 201, "")
		ask(t, g, "POST", "/v1/locks/zz", "").want(t, 429, "too-many")
		var polls []chan *reply
		for range 2 {
			polls = append(polls, later(t, g, "GET", "/v1/leases/"+first.lease.ID, "", "Prefer", "wait=5", "If-None-Match", first.header.Get("ETag")))
		}
		_ = polls
		time.Sleep(time.Minute)
		settle()
		if n := len(g.leases) + len(g.byName); n != 0 || g.only.leases != 0 {
			t.Errorf("%d leases are left, %d counted", n, g.only.leases)
		}
		if len(g.graves) > 4 || len(g.buried) > 4 {
			t.Errorf("%d tombstones", len(g.graves))
		}
		time.Sleep(time.Minute)
		ask(t, g, "GET", "/v1/leases/"+first.lease.ID, "").want(t, 404, "unknown-lease")
		if len(g.graves)+len(g.buried) != 0 {
			t.Errorf("%d tombstones, %d in order", len(g.graves), len(g.buried))
		}

		// A flood from one address.
		refused := 0
		for range 500 {
			if r := ask(t, g, "GET", "/healthz", ""); r.status == 429 {
				refused++
			}
		}
		if refused != 301 { // one was asked for before
			t.Errorf("%d of 500 requests were refused", refused)
		}
		w.noClaims()
	})
}

// Polls of one lease are bounded.
func TestPollLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway(func(c *Config) { c.Limits.PollsPerLease = 2 })
		ask(t, g, "POST", "/v1/locks/x", "").want(t, 201, "")
		a := ask(t, g, "POST", "/v1/locks/x", `{"wait":"1m"}`).want(t, 202, "")
		path := "/v1/leases/" + a.lease.ID
		one, two := later(t, g, "GET", path, "", "Prefer", "wait=5"), later(t, g, "GET", path, "", "Prefer", "wait=5")
		ask(t, g, "GET", path, "", "Prefer", "wait=5").want(t, 429, "too-many")
		ask(t, g, "GET", path, "").want(t, 200, "") // one that does not wait
		(<-one).want(t, 200, "")
		(<-two).want(t, 200, "")
	})
}

// A log never has what is secret.
func TestNoSecretsInLogs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var log bytes.Buffer
		g := w.gateway(func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		})
		a := ask(t, g, "POST", "/v1/locks/x", `{"note":"note-7"}`, "Authorization", "Bearer secret-1", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").want(t, 201, "")
		ask(t, g, "GET", "/v1/leases/"+a.lease.ID, "").want(t, 200, "")
		ask(t, g, "DELETE", "/v1/locks/x?lease="+a.lease.ID, "").want(t, 204, "")
		for _, secret := range []string{a.lease.ID, "secret-1", "lease=" + a.lease.ID} {
			if strings.Contains(log.String(), secret) {
				t.Errorf("the log has %q:\n%s", secret, log.String())
			}
		}
		for _, word := range []string{"operation=acquire", "status=201", "lease=" + digest(a.lease.ID), "traceparent=00-0af7"} {
			if !strings.Contains(log.String(), word) {
				t.Errorf("the log lacks %q:\n%s", word, log.String())
			}
		}
		list := ask(t, g, "GET", "/v1/locks", "")
		if strings.Contains(string(list.body), a.lease.ID) {
			t.Errorf("a list has the id of a lease: %s", list)
		}
	})
}

// Over a real connection: a body that does not come is given up, and a poll whose caller
// leaves ends.
func TestSlowBody(t *testing.T) {
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	g, err := New(t.Context(), Config{Conn: c.Servers()[0].Conn(), Client: "gateway", Limits: Limits{BodyTime: 100 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	fmt.Fprintf(nc, "POST /v1/locks/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{")
	answer, err := io.ReadAll(nc)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("%v %s", err, answer)
	}

	// A poll goes on for longer than a body may take.
	hold := ask(t, g, "POST", "/v1/locks/x", `{"lease":"28s"}`).want(t, 201, "")
	wait := func(ctx context.Context, header string) (int, error) {
		r, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/locks/x", strings.NewReader(`{"wait":"20s"}`))
		if err != nil {
			return 0, err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Prefer", header)
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err
		}
		defer func() { _ = a.Body.Close() }()
		return a.StatusCode, nil
	}
	if status, err := wait(t.Context(), "wait=1"); err != nil || status != 202 {
		t.Errorf("%d %v", status, err)
	}
	ask(t, g, "DELETE", "/v1/leases/"+hold.lease.ID, "").want(t, 204, "")
	http.DefaultClient.CloseIdleConnections()
}

// The documents are there, load nothing from elsewhere, and name every kind of problem.
func TestDocuments(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.gateway()
		for path, kind := range map[string]string{"/openapi.json": "application/json", "/docs": "text/html", "/docs/docs.js": "text/javascript", "/docs/docs.css": "text/css"} {
			r := ask(t, g, "GET", path, "")
			if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), kind) || !strings.Contains(r.header.Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("%s: %d %v", path, r.status, r.header)
			}
			for _, bad := range []string{"innerHTML", "outerHTML", "document.write", "http://", "//unpkg", "<script>", " style=", " onclick"} {
				if path != "/openapi.json" && strings.Contains(string(r.body), bad) {
					t.Errorf("%s has %q", path, bad)
				}
			}
		}
		for kind := range kinds {
			if !bytes.Contains(openAPI(), []byte(ProblemBase+kind)) {
				t.Errorf("the document lacks %s", kind)
			}
		}
	})
}
