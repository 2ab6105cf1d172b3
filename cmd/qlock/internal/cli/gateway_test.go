//go:build unix

package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
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
	b := launch(t, "gateway", "-s", c.url(), "--http", "127.0.0.1:0", "--client", "gw-b")
	ua, ub := gatewayURL(t, a), gatewayURL(t, b)
	held := askGateway(t, "POST", ua+name, `{"lease":"1s"}`)
	if held.status != 201 || held.Token == 0 {
		t.Fatal(held)
	}
	if busy := askGateway(t, "POST", ub+name, ""); busy.status != 409 || !strings.Contains(busy.text, "gw-a") {
		t.Fatal(busy)
	}
	qlockCmd(t, "ls", "-s", c.url(), t.Name()).want(t, 0, "gw-a")
	a.signal(syscall.SIGTERM)
	next := askGateway(t, "POST", ub+name, `{"wait":"15s"}`)
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
	qlockCmd(t, "run", "-s", c.url(), "--wait", "60s", t.Name(), "--", "true").want(t, 0)
}

func TestGatewayFlags(t *testing.T) {
	for args, words := range map[string]string{
		"gateway --http 0.0.0.0:8080":                "--insecure",
		"gateway --http example.com:80":              "--insecure",
		"gateway --http x":                           "not an address",
		"gateway --http 127.0.0.1:0 --http-cert x":   "belong together",
		"gateway --http 127.0.0.1:0 --connections 0": "--connections",
		"demo --gateway 0.0.0.0:1":                   "--insecure",
	} {
		call(t, strings.Fields(args)...).want(t, exitUsage, words)
	}
}
