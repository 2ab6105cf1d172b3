//go:build unix

package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/gateway"
)

// gatewayAnswer is what the tests look at.
type gatewayAnswer struct {
	status int
	ID     string `json:"id"`
	State  string `json:"state"`
	Token  uint64 `json:"token"`
	Cause  string `json:"cause"`
	text   string
}

func askGateway(t *testing.T, method, url, body string) gatewayAnswer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	a, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := gatewayAnswer{status: a.StatusCode, text: string(b)}
	_ = json.Unmarshal(b, &out)
	return out
}

func gatewayURL(t *testing.T, p *process) string {
	t.Helper()
	m := regexp.MustCompile(`url=(\S+)`).FindStringSubmatch(p.says(p.err, "gateway serves"))
	if m == nil {
		t.Fatal("it does not say where it serves")
	}
	return m[1]
}

// Two gateways exclude each other. One that is stopped gives its locks back when nobody can
// believe any more that it holds them; one that is killed loses them with its leases.
func TestGateway(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := "/v1/locks/" + t.Name()
	a := launch(t, "gateway", "-s", c.url(), "--http", "127.0.0.1:0", "--client", "gw-a", "--drain", "1ms")
	b := launch(t, "gateway", "-s", c.url(), "--http", "127.0.0.1:0", "--client", "gw-b", "--metrics", "127.0.0.1:0")
	ua, ub := gatewayURL(t, a), gatewayURL(t, b)
	at := regexp.MustCompile(`msg=metrics address=(\S+)`).FindStringSubmatch(b.says(b.err, "msg=metrics"))
	if at == nil {
		t.Fatal("it does not say where its metrics are")
	}
	if _, body := mustGet(t, "http://"+at[1]+"/metrics"); !strings.Contains(body, `qlock_gateway_leases{cluster=`) || !strings.Contains(body, "qlock_nats_") {
		t.Errorf("%s", body)
	}
	held := askGateway(t, "POST", ua+name, `{"lease":"20s"}`) // nobody renews it
	if held.status != 201 || held.Token == 0 {
		t.Fatal(held)
	}
	if busy := askGateway(t, "POST", ub+name, ""); busy.status != 409 || !strings.Contains(busy.text, "gw-a") {
		t.Fatal(busy)
	}
	sees(t, []string{"ls", "-s", c.url(), t.Name()}, 0, "gw-a")
	a.signal(syscall.SIGTERM)
	next := askGateway(t, "POST", ub+name, `{"wait":"60s"}`)
	for next.State == "waiting" {
		next = askGateway(t, "GET", ub+"/v1/leases/"+next.ID, "")
		time.Sleep(10 * time.Millisecond) // this client does not use long polls
	}
	if next.State != "held" || next.Token <= held.Token {
		t.Fatal(next)
	}
	a.wait().want(t, 0)
	if docs := askGateway(t, "GET", ub+"/openapi.json", ""); docs.status != 200 {
		t.Error(docs)
	}
	b.kill()
	qlockCmd(t, "run", "-s", c.url(), "--wait", patience.String(), t.Name(), "--", "true").want(t, 0)
}

// With --auth nats a request acts as the NATS user whose credentials it brings, also where
// the gateway's own credentials stand in the address of the server.
func TestGatewayAuth(t *testing.T) {
	t.Parallel()
	s := startNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "node", Password: "pw"}, {Username: "gw", Password: "pw"}, {Username: "svc-a", Password: "pw-a"}, {Username: "svc-b", Password: "pw-b", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"lock.*.node.acquire.>", "lock.*.node.svc-b"}},
		}}}
	})
	n := launch(t, bootstrapped(t, "node", "--server", s.ClientURL(), "--user", "node", "--password", "pw", "--name", "n1", "--nodes", "n1", "--max-lease", testMaxLease)...)
	n.says(n.err, "ready: this node votes")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := strings.Replace(s.ClientURL(), "nats://", "nats://gw:pw@", 1)
	var urls []string
	for range 2 {
		urls = append(urls, gatewayURL(t, launch(t, "gateway", "-s", address, "--http", "127.0.0.1:0", "--auth", "nats", "--secret-file", secret, "--drain", "1ms")))
	}
	as := func(user, password, url string) string {
		if user == "" {
			return url
		}
		return strings.Replace(url, "http://", "http://"+user+":"+password+"@", 1)
	}
	for _, c := range []struct {
		user, password string
		status         int
	}{{"", "", 401}, {"svc-a", "wrong", 401}, {"svc-b", "pw-b", 403}, {"svc-a", "pw-a", 201}} {
		if a := askGateway(t, "POST", as(c.user, c.password, urls[0])+"/v1/locks/x", `{"lease":"60s"}`); a.status != c.status {
			t.Errorf("%s: %d %s", c.user, a.status, a.text)
		} else if a.status == 201 {
			// Another gateway knows the same user by the common secret.
			if b := askGateway(t, "POST", as(c.user, c.password, urls[1])+"/v1/leases/"+a.ID+"/renew", ""); b.status != 200 {
				t.Errorf("%d %s", b.status, b.text)
			}
			if b := askGateway(t, "GET", as("svc-b", "pw-b", urls[1])+"/v1/leases/"+a.ID, ""); b.status != 404 {
				t.Errorf("%d %s", b.status, b.text)
			}
		}
	}
}

// A node serves a gateway too, and gives its locks back before it stops.
func TestNodeServesGateway(t *testing.T) {
	t.Parallel()
	n := launch(t, append(bootstrapped(t, "node", "--name", "n1", "--nodes", "n1", "--max-lease", "12s"), "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0")...)
	url := gatewayURL(t, n)
	held := askGateway(t, "POST", url+"/v1/locks/x", `{"lease":"10s"}`)
	if held.status != 201 {
		t.Fatal(held)
	}
	if list := askGateway(t, "GET", url+"/v1/locks", ""); !strings.Contains(list.text, "gw-n1") {
		t.Error(list)
	}
	n.signal(syscall.SIGTERM)
	n.says(n.err, "gateway drains")
	n.wait().want(t, 0, "node stopped")
}

// The limits of the store have flags.
func TestGatewayStoreLimits(t *testing.T) {
	t.Parallel()
	s := startNATS(t, func(o *server.Options) { o.JetStream, o.StoreDir = true, t.TempDir() })
	n := launch(t, bootstrapped(t, "node", "--server", s.ClientURL(), "--name", "n1", "--nodes", "n1", "--max-lease", testMaxLease)...)
	n.says(n.err, "node votes")
	qlockCmd(t, "store", "create", "b", "-s", s.ClientURL()).want(t, 0)
	g := launch(t, "gateway", "-s", s.ClientURL(), "--http", "127.0.0.1:0", "--client", "gw",
		"--value-size", "1KiB", "--transaction-size", "2KiB", "--operations", "2", "--key-waits", "1", "--state-size", "1KiB")
	bucket := gatewayURL(t, g) + "/v1/stores/b"
	if a := askGateway(t, "GET", bucket, ""); a.status != 200 {
		t.Fatal(a.text)
	}
	op := `{"op":"put","key":"k","value":"x"}`
	for _, r := range []struct {
		method, path, body string
		fits               bool
	}{
		{"PUT", "/keys/k", strings.Repeat("x", 1024), true},
		{"PUT", "/keys/k", strings.Repeat("x", 1025), false},
		{"POST", "/transactions", `{"ops":[` + op + `,{"op":"get","key":"l"}]}`, true},
		{"POST", "/transactions", `{"ops":[` + op + `,{"op":"get","key":"l"},{"op":"get","key":"m"}]}`, false},
		{"POST", "/transactions", `{"ops":[` + op + `]` + strings.Repeat(" ", 2048) + `}`, false},
		{"POST", "/terraform/net", `{"x":"` + strings.Repeat("x", 1000) + `"}`, true},
		{"POST", "/terraform/net", `{"x":"` + strings.Repeat("x", 1024) + `"}`, false},
	} {
		if a := askGateway(t, r.method, bucket+r.path, r.body); a.status == 413 == r.fits || r.fits && a.status/100 != 2 {
			t.Errorf("%s %s with %d bytes: %d %s", r.method, r.path, len(r.body), a.status, a.text)
		}
	}
}

func TestGatewayFlags(t *testing.T) {
	for args, words := range map[string]string{
		"gateway --http 0.0.0.0:8080":                  "--insecure",
		"gateway --http example.com:80":                "--insecure",
		"gateway --http x":                             "not an address",
		"gateway --http 127.0.0.1:0 --http-cert x":     "belong together",
		"gateway --http 127.0.0.1:0 --connections 0":   "--connections",
		"gateway --value-size 0":                       "from 1 to 64MiB",
		"gateway --value-size 65MiB":                   "from 1 to 64MiB",
		"gateway --state-size 9223372036854775807GiB":  "from 1KiB to 1GiB",
		"gateway --transaction-size 1MB":               "65536, 64KiB or 1MiB",
		"gateway --operations 1000":                    "from 1 to 900",
		"gateway --key-waits 0":                        "--key-waits",
		"demo --gateway 0.0.0.0:1":                     "--insecure",
		"gateway --http 0.0.0.0:80 --auth nats":        "--http-cert",
		"gateway --auth x":                             "none or nats",
		"gateway --callers":                            "--nats",
		"gateway --auth nats --map-cert x":             "--http-ca",
		"gateway --auth-tlscert x":                     "belong together",
		"gateway --map-cert x --http-ca y":             "--auth nats",
		"gateway --auth nats --map-cert x --http-ca y": "--http-cert",
		"node --name n1 --nodes n1 --server nats://localhost:1 --gateway 127.0.0.1:0": "user of its own",
		"node --name n1 --nodes n1 --gateway 0.0.0.0:80":                              "--insecure",
	} {
		call(t, strings.Fields(args)...).want(t, exitUsage, words)
	}
}

// The gateway finds what qlock check finds about nodes, in the same words.
func TestGatewayFindings(t *testing.T) {
	m := membersOf(memberOf("a", "a b c", nil), memberOf("b", "a b c", func(m *qlock.Member) { m.ClockOffset = time.Minute }), qlock.Member{Name: "c"})
	r := &findings{}
	checkMembers(m, r)
	checkClocks(m, r)
	checkAhead(m, r)
	found := gatewayFindings(m)
	if len(found) != len(r.list) || r.count(problem) == 0 || r.count(warning) == 0 {
		t.Fatalf("%+v, and qlock check finds %+v", found, r.list)
	}
	for i, f := range r.list {
		if want := (gateway.Finding{Grade: string(f.Grade), About: f.About, Text: f.Text, Help: f.Help}); found[i] != want {
			t.Errorf("%+v, not %+v", found[i], want)
		}
	}
}
