package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/permissions"
)

func userOf(t *testing.T, u permissions.User, err error) *server.User {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return &server.User{Username: u.Name, Password: "pw-" + u.Name, Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: u.Publish}, Subscribe: &server.SubjectPermission{Allow: u.Subscribe},
	}}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// authWorld has a server with users: a gateway's, two services, of which one may lock orders
// only, and an operator.
func authWorld(t *testing.T) *world {
	t.Helper()
	client := func(name string, resources ...string) *server.User {
		u, err := permissions.NewClient("default", name, resources...)
		return userOf(t, u, err)
	}
	operator, err := permissions.NewOperator("default", "ops")
	return newWorld(t, 3, &server.User{Username: "all", Password: "pw"}, client("svc-a", "orders.>"), client("svc-b"), userOf(t, operator, err))
}

// gatewayForUsers serves requests as the NATS users that send them.
func (w *world) gatewayForUsers(dials *atomic.Int64, change ...func(*Config)) *Gateway {
	w.t.Helper()
	return w.gateway(append([]func(*Config){func(c *Config) {
		c.Secret = []byte("of all gateways")
		c.Connect = func(ctx context.Context, c Credentials) (*nats.Conn, error) {
			dials.Add(1)
			return nats.Connect("", append(c.Options(), nats.InProcessServer(w.srv), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
		}
	}}, change...)...)
}

// A request acts as the NATS user whose credentials it brings, and as nobody else.
func TestCredentials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := authWorld(t)
		var dials atomic.Int64
		g := w.gatewayForUsers(&dials)
		a, b, ops := basic("svc-a", "pw-svc-a"), basic("svc-b", "pw-svc-b"), basic("ops", "pw-ops")
		for _, path := range []string{"/v1/locks", "/v1/nodes", "/v1/leases/x", "/v1/events", "/v1/lock?name=x"} {
			if r := ask(t, g, "GET", path, "").want(t, 401, "unauthenticated"); !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Basic ") {
				t.Errorf("%v", r.header)
			}
		}
		for _, path := range []string{"/healthz", "/readyz", "/openapi.json", "/docs"} {
			if r := ask(t, g, "GET", path, ""); r.status != 200 {
				t.Errorf("%s: %s", path, r)
			}
		}
		held := ask(t, g, "POST", "/v1/locks/orders.1", "", "Authorization", a).want(t, 201, "")
		if r := ask(t, g, "GET", "/v1/locks/orders.1", "", "Authorization", ops); !strings.Contains(string(r.body), `"client":"svc-a"`) {
			t.Errorf("%s", r)
		}
		ask(t, g, "POST", "/v1/locks/x", "", "Authorization", a).want(t, 403, "forbidden")
		ask(t, g, "POST", "/v1/locks/orders.2", "", "Authorization", a, "Qlock-Client", "svc-b").want(t, 403, "forbidden")
		ask(t, g, "POST", "/v1/locks/orders.1/evict", "", "Authorization", b).want(t, 403, "forbidden")
		ask(t, g, "GET", "/v1/locks", "", "Authorization", b).want(t, 403, "forbidden")
		path := held.header.Get("Location")
		// For another user the lease does not exist, and cannot be released.
		for _, other := range []string{b, ops} {
			ask(t, g, "GET", path, "", "Authorization", other).want(t, 404, "unknown-lease")
			ask(t, g, "POST", path+"/renew", "", "Authorization", other).want(t, 404, "unknown-lease")
			ask(t, g, "DELETE", path, "", "Authorization", other).want(t, 204, "")
			ask(t, g, "PUT", "/v1/leases/"+uuid.NewString(), `{"name":"orders.1"}`, "Authorization", other)
		}
		ask(t, g, "GET", path, "", "Authorization", a).want(t, 200, "")
		if r := ask(t, g, "POST", "/v1/locks/orders.1", "", "Authorization", b).want(t, 409, "held"); r.fault.Blocker.Client != "svc-a" {
			t.Errorf("%s", r)
		}
		before := dials.Load()
		for range 3 {
			ask(t, g, "GET", path, "", "Authorization", a).want(t, 200, "")
		}
		if dials.Load() != before {
			t.Error("each request makes a connection")
		}
		ask(t, g, "DELETE", path, "", "Authorization", a).want(t, 204, "")
		w.noClaims()

		// Connections that nobody uses are closed.
		time.Sleep(2 * time.Minute)
		settle()
		if n := len(g.logins); n != 0 {
			t.Errorf("%d logins", n)
		}
		if n := w.srv.NumClients(); n != 3+1 { // nodes, gateway
			t.Errorf("%d connections", n)
		}
		// But not while a lease needs them.
		ask(t, g, "POST", "/v1/locks/orders.1", `{"wait":"10m","lease":"25s"}`, "Authorization", a).want(t, 201, "")
		waits := ask(t, g, "POST", "/v1/locks/orders.1", `{"wait":"10m","lease":"25s"}`, "Authorization", b).want(t, 202, "")
		poll := later(t, g, "GET", waits.header.Get("Location"), "", "Authorization", b, "Prefer", "wait=55")
		(<-poll).want(t, 200, "")
	})
}

// Credentials that NATS refuses cost a connection, so they are remembered, and counted.
func TestRefusedCredentials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := authWorld(t)
		var dials atomic.Int64
		g := w.gatewayForUsers(&dials, func(c *Config) {
			connect := c.Connect
			c.Connect = func(ctx context.Context, k Credentials) (*nats.Conn, error) {
				if k.Password != "pw-svc-a" { // a real refusal takes seconds on a pipe
					dials.Add(1)
					return nil, nats.ErrAuthorization
				}
				return connect(ctx, k)
			}
		})
		for range 10 {
			ask(t, g, "GET", "/v1/nodes", "", "Authorization", basic("svc-a", "wrong")).want(t, 401, "unauthenticated")
		}
		if dials.Load() != 1 {
			t.Errorf("%d connections", dials.Load())
		}
		limited, start := 0, time.Now()
		for i := range 15 {
			if ask(t, g, "GET", "/v1/nodes", "", "Authorization", basic("svc-a", strings.Repeat("x", i+1))).status == 429 {
				limited++
			}
		}
		if limited != 6 || dials.Load() != 10 {
			t.Errorf("%d refused by the limit, %d connections, %v", limited, dials.Load(), time.Since(start))
		}
		time.Sleep(6 * time.Second)
		ask(t, g, "GET", "/v1/nodes", "", "Authorization", basic("svc-a", "pw-svc-a")).want(t, 200, "")
		for _, bad := range []string{"Basic x", "Basic " + base64.StdEncoding.EncodeToString([]byte("svc-a:")), "Bearer ", "Digest x", "Bearer SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"} {
			ask(t, g, "GET", "/v1/nodes", "", "Authorization", bad).want(t, 401, "unauthenticated")
		}
		claims := func(text string) string {
			return "eyJ0eXAiOiJKV1QifQ." + base64.RawURLEncoding.EncodeToString([]byte(text)) + ".c2ln"
		}
		ask(t, g, "GET", "/v1/nodes", "", "Authorization", "Bearer "+claims(`{"nats":{"type":"user"}}`)).want(t, 401, "unauthenticated")
		r, _ := http.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+claims(`{"nats":{"type":"user","bearer_token":true}}`))
		r.Header.Set("Qlock-Client", "x")
		if c, p := g.credentialsOf(r); p != nil || c.JWT == "" || c.Client != "x" {
			t.Errorf("%+v %v", c, p)
		}
		r.Header.Set("Authorization", "Bearer "+claims(`{"sub":"somebody of an identity provider"}`))
		if c, p := g.credentialsOf(r); p != nil || c.Token == "" {
			t.Errorf("%+v %v", c, p)
		}
	})
}

// A lease of a user is forwarded between gateways that have one secret, and is unknown to
// others.
func TestForwardForUsers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := authWorld(t)
		var dials atomic.Int64
		g1 := w.gatewayForUsers(&dials)
		g2 := w.gatewayForUsers(&dials)
		other := w.gatewayForUsers(&dials, func(c *Config) { c.Secret = nil })
		time.Sleep(time.Second)
		a, b := basic("svc-a", "pw-svc-a"), basic("svc-b", "pw-svc-b")
		path := "/v1/leases/" + uuid.NewString()
		ask(t, g1, "PUT", path, `{"name":"orders.1"}`, "Authorization", a).want(t, 201, "")
		ask(t, g2, "GET", path, "", "Authorization", a).want(t, 200, "")
		ask(t, g2, "GET", path, "", "Authorization", b).want(t, 404, "unknown-lease")
		ask(t, g2, "DELETE", path, "", "Authorization", b).want(t, 204, "")
		ask(t, other, "GET", path, "", "Authorization", a).want(t, 404, "unknown-lease")
		ask(t, g2, "DELETE", path, "", "Authorization", a).want(t, 204, "")
		ask(t, g1, "GET", path, "", "Authorization", a).want(t, 410, "gone")
	})
}

// When NATS no longer accepts a user, its leases are lost, and say so.
func TestRevokedUser(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := authWorld(t)
		var dials atomic.Int64
		g := w.gatewayForUsers(&dials)
		a := basic("svc-a", "pw-svc-a")
		held := ask(t, g, "POST", "/v1/locks/orders.1", "", "Authorization", a).want(t, 201, "")
		waits := ask(t, g, "POST", "/v1/locks/orders.1", `{"wait":"10m"}`, "Authorization", a).want(t, 202, "")
		g.mu.Lock()
		for _, l := range g.logins {
			l.principal.nc.Close()
		}
		g.mu.Unlock()
		settle()
		time.Sleep(15 * time.Second)
		// A new connection of the user is made, on which the old leases are known and over.
		if r := ask(t, g, "GET", held.header.Get("Location"), "", "Authorization", a); r.status != 410 {
			t.Errorf("%s", r)
		}
		if r := ask(t, g, "GET", waits.header.Get("Location"), "", "Authorization", a); r.status < 400 {
			t.Errorf("%s", r)
		}
		time.Sleep(15 * time.Second)
		ask(t, g, "POST", "/v1/locks/orders.1", "", "Authorization", a).want(t, 201, "")
		if dials.Load() != 2 {
			t.Errorf("%d connections", dials.Load())
		}
	})
}

// At the NATS door, the subject says who calls. The user of each caller may use its own name
// only, and its leases are its own.
func TestCallersOfTheDoor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		service := func(name string, allow ...string) *server.User {
			return &server.User{Username: name, Password: "pw-" + name, Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: allow}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX." + name + ".>"}},
			}}
		}
		w := newWorld(t, 1, &server.User{Username: "all", Password: "pw-all"},
			service("billing", "lock.default.api.*.billing", "lock.default.api.*.billing.>"),
			service("small", "lock.default.api.acquire.small.orders.>", "lock.default.api.release.small.orders.>", "lock.default.api.poll.small", "lock.default.api.renew.small"))
		g := w.gateway(func(c *Config) { c.Callers = true })
		if err := g.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		as := func(name string) func(subject, body string) (string, string) {
			nc := w.connect(nats.UserInfo(name, "pw-"+name), nats.CustomInboxPrefix("_INBOX."+name))
			return func(subject, body string) (string, string) {
				m, err := nc.Request("lock.default.api."+subject, []byte(body), 3*time.Second)
				if err != nil {
					return err.Error(), ""
				}
				if e := m.Header.Get("Nats-Service-Error-Code"); e != "" {
					return e, string(m.Data)
				}
				return m.Header.Get("Status"), string(m.Data)
			}
		}
		billing, small, all := as("billing"), as("small"), as("all")
		want := func(status string) func(got, body string) string {
			return func(got, body string) string {
				t.Helper()
				if got != status {
					t.Errorf("%s, not %s: %s", got, status, body)
				}
				return body
			}
		}
		id, id2 := uuid.NewString(), uuid.NewString()
		want("201")(billing("acquire.billing", `{"name":"x","id":"`+id+`","note":"nightly"}`))
		if info, err := w.locker("looker", qlock.WithoutEvents()).Inspect(t.Context(), "x"); err != nil || len(info.Holders) != 1 || info.Holders[0].Note != "billing: nightly" {
			t.Fatalf("%+v %v", info, err)
		}
		want("200")(billing("renew.billing", `{"id":"`+id+`"}`))
		want("404")(small("poll.small", `{"id":"`+id+`"}`))
		want("409")(billing("acquire.billing.x", ``))
		want("422")(billing("acquire.billing.y", `{"name":"x"}`))
		want("422")(all("acquire.bad%20name", `{"name":"x"}`))
		want("nats: timeout")(small("acquire.billing", `{"name":"y"}`))     // NATS denies it
		want("nats: timeout")(small("acquire.small", `{"name":"secrets"}`)) // as well
		want("201")(small("acquire.small.orders.1", `{"id":"`+id2+`"}`))
		want("409")(billing("release.billing.orders.2", `{"id":"`+id+`"}`)) // of another name
		want("204")(billing("release.billing", `{"id":"`+id2+`"}`))         // unknown to it
		want("200")(small("renew.small", `{"id":"`+id2+`"}`))
		want("204")(small("release.small.orders.1", `{"id":"`+id2+`"}`))
		want("204")(billing("release.billing.x", `{"id":"`+id+`"}`))
		if _, err := w.connect().Request("lock.default.api.acquire", []byte(`{"name":"x"}`), time.Second); err == nil {
			t.Error("a request without a caller is served")
		}
		settle()
		if n := len(g.callers); n != 0 {
			t.Errorf("%d callers are remembered", n)
		}
		w.noClaims()
	})
}

// The permissions on the page are enough for a gateway and its callers.
func TestPermissionsOfThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	config := "accounts { A { users = [ { user: all, password: pw }\n"
	for _, block := range regexp.MustCompile("(?s)```text\n(\\{ user: .*?)```").FindAllStringSubmatch(string(page), -1) {
		config += block[1]
	}
	config = regexp.MustCompile(`password: \$(\w+)`).ReplaceAllString(config, `password: "pw"`) + "] } }\n"
	config = strings.ReplaceAll(config, "lock.prod.", "lock.default.")
	file := filepath.Join(t.TempDir(), "page.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("%v:\n%s", err, config)
	}
	users := map[string]*server.User{}
	for _, u := range opts.Users {
		u.Account = nil
		users[u.Username] = u
	}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, users["all"], users["gateway"], users["billing"], users["small"])
		as := func(name string) *link {
			return w.connect(nats.UserInfo(name, "pw"), nats.CustomInboxPrefix("_INBOX."+name), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				if name == "gateway" {
					t.Errorf("the gateway: %v", err)
				}
			}))
		}
		gateways := make([]*Gateway, 2)
		for i := range gateways {
			gateways[i] = w.gateway(func(c *Config) { c.Conn, c.Callers = as("gateway").Conn, true })
			if err := gateways[i].ServeNATS(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		g := gateways[0]
		id := uuid.NewString()
		ask(t, g, "PUT", "/v1/leases/"+id, `{"name":"x"}`).want(t, 201, "")
		ask(t, gateways[1], "GET", "/v1/leases/"+id, "").want(t, 200, "")
		ask(t, g, "GET", "/v1/locks", "").want(t, 200, "")
		ask(t, g, "GET", "/v1/nodes", "").want(t, 200, "")
		ask(t, g, "POST", "/v1/locks/x/evict", "").want(t, 202, "")
		ask(t, gateways[1], "DELETE", "/v1/leases/"+id, "").want(t, 204, "")
		for name, lock := range map[string]string{"billing": "y", "small": "orders.42"} {
			nc := as(name)
			m, err := nc.Request("lock.default.api.acquire."+name+"."+lock, []byte(`{"id":"`+id+`"}`), 3*time.Second)
			if err != nil || m.Header.Get("Status") != "201" {
				t.Errorf("%s: %v %+v", name, err, m)
			}
			for _, verb := range []string{"poll", "renew"} {
				if m, err := nc.Request("lock.default.api."+verb+"."+name, []byte(`{"id":"`+id+`"}`), 3*time.Second); err != nil || m.Header.Get("Status") != "200" {
					t.Errorf("%s: %v %+v", name, err, m)
				}
			}
			if m, err := nc.Request("lock.default.api.release."+name+"."+lock, []byte(`{"id":"`+id+`"}`), 3*time.Second); err != nil || m.Header.Get("Status") != "204" {
				t.Errorf("%s: %v %+v", name, err, m)
			}
			for _, bad := range []string{"lock.default.gw.have", "lock.default.node.acquire." + name + ".x", "lock.default.api.acquire.gateway"} {
				if _, err := nc.Request(bad, []byte(`{"name":"x"}`), time.Second); !errors.Is(err, nats.ErrTimeout) {
					t.Errorf("%s may publish %s: %v", name, bad, err)
				}
			}
		}
		time.Sleep(15 * time.Second) // the evicted lease was promised
		w.noClaims()
	})
}
