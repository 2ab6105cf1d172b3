//go:build unix

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// get is a look at what a node serves over HTTP.
func get(url string) (int, string, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	r, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

func mustGet(t *testing.T, url string) (int, string) {
	t.Helper()
	status, body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	base := "http://" + c.addr["n1"][2]
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := mustGet(t, base+path); status != 200 || !strings.Contains(body, `"state":"voting"`) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _ := mustGet(t, base+"/secrets"); status != 404 {
		t.Errorf("an unknown page has status %d", status)
	}
	qlockCmd(t, "run", lockName(t), "-s", c.url(), "--", "true").want(t, 0)
	var body string
	eventually(t, func() error {
		_, body = mustGet(t, base+"/metrics")
		for _, want := range []string{
			`qlock_node_info{cluster="default",node="n1",version="0.`,
			`qlock_node_state{cluster="default",node="n1",state="voting"} 1`,
			`qlock_node_state{cluster="default",node="n1",state="recovering"} 0`,
			`qlock_node_requests_total{cluster="default",node="n1"} `, `qlock_node_start_time_seconds{cluster="default",node="n1"} `,
			`qlock_node_recovering_seconds{cluster="default",node="n1"} 0`, `qlock_node_leases_expired_total{cluster="default",node="n1"} `,
			`qlock_node_claims_refused_total{cluster="default",node="n1",reason="queue"} 0`,
			`qlock_peer_up{peer="n3"} 1`, `qlock_peer_votes{peer="n2"} 1`, `qlock_peer_round_trip_seconds{peer="n1"} 0.`,
			`qlock_nats_connected 1`, `qlock_server_routes `, `qlock_locks_lost_total{cluster="default",mode="exclusive"} `,
			`go_goroutines `, `process_start_time_seconds `,
		} {
			if !strings.Contains(body, want) {
				return fmt.Errorf("no %s in\n%s", want, body)
			}
		}
		if strings.Contains(body, `qlock_locks_acquired_total{cluster="default",mode="exclusive"} 0`) {
			return fmt.Errorf("no lock was counted")
		}
		return nil
	})
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A node that stops by SIGTERM keeps its votes, and with them the locks of clients
// that come back in time.
func TestCleanStop(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	h := hold(t, c, "kept") // for longer than the node is away
	c.proc(t, "n1").signal(syscall.SIGTERM)
	c.proc(t, "n1").wait().want(t, 0, "node stops", "its state was saved")
	if err := c.launch("n1"); err != nil {
		t.Fatal(err)
	}
	if err := c.ready("n1"); err != nil {
		t.Fatal(err)
	}
	qlockCmd(t, "lock", "kept", "-s", c.url(), "--try").want(t, exitHeld, "held by holder")
	_ = h.in.Close()
	h.wait().want(t, 0)
	if log := c.proc(t, "n1").err.String(); strings.Contains(log, "may have forgotten") {
		t.Errorf("it forgot:\n%s", log)
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	c := newCluster(t.TempDir(), 1)
	t.Cleanup(c.stop)
	file := filepath.Join(t.TempDir(), "node.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: info\nlog-format: json\n")
	p := launch(t, append(c.args("n1"), "--config", file)...)
	p.says(p.err, "node serves")
	// It was not bootstrapped, and so waits; a restart would not help.
	if status, body := mustGet(t, "http://"+c.addr["n1"][2]+"/readyz"); status != 503 || !strings.Contains(body, "recovering") || !strings.Contains(body, "gives no votes") {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, body := mustGet(t, "http://"+c.addr["n1"][2]+"/healthz"); status != 200 {
		t.Errorf("healthz: %d %s", status, body)
	}
	write("log-level: debug\nlog-format: json\nmax-claims: 7\n")
	p.signal(syscall.SIGHUP)
	p.says(p.err, `"msg":"reloaded"`)
	p.says(p.err, `"keys":["max-claims"]`)
	p.says(p.err, `"log_level":"debug"`)
	write("log-level: loud\n")
	p.signal(syscall.SIGHUP)
	p.says(p.err, "reload failed, nothing was changed")
	p.says(p.err, "allowed are debug, info, warn, error")
	p.signal(syscall.SIGTERM)
	r := p.wait()
	r.want(t, 0)
	// The embedded server logs its end at this level only.
	if !strings.Contains(r.err, `"level":"DEBUG"`) {
		t.Errorf("nothing is logged at level debug:\n%s", r.err)
	}
	for _, line := range strings.Split(strings.TrimSpace(r.err), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

// A node that cannot start says why, with status 1.
func TestNodeFails(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	t.Run("name is taken", func(t *testing.T) {
		t.Parallel()
		c := startCluster(t, 3) // other tests look at the nodes of the shared one
		qlockCmd(t, "node", "--name", "n1", "--nodes", "n1,n2,n3", "--server", c.url()).
			want(t, exitFailed, `another node named "n1" already runs in cluster "default"`)
	})
	t.Run("directory is taken", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "node", "--name", "n1", "--nodes", "n1", "--cluster", "other", "--server", c.url(), "--state-dir", filepath.Join(c.dir, "n1")).
			want(t, exitFailed, "n1")
	})
	t.Run("bootstrapped twice", func(t *testing.T) {
		t.Parallel()
		args := []string{"node", "--name", "a", "--nodes", "a", "--state-dir", t.TempDir(), "--bootstrap"}
		qlockCmd(t, args...).want(t, 0, "Start it without --bootstrap")
		qlockCmd(t, args...).want(t, exitFailed, "must not be bootstrapped again")
	})
	t.Run("port is taken", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "node", "--name", "a", "--nodes", "a", "--listen", c.addr["n1"][0]).want(t, exitFailed, "address already in use")
		qlockCmd(t, "node", "--name", "a", "--nodes", "a", "--server", c.url(), "--http", c.addr["n1"][2]).want(t, exitFailed, "--http", "address already in use")
	})
	t.Run("no NATS", func(t *testing.T) {
		t.Parallel()
		qlockCmd(t, "node", "--name", "a", "--nodes", "a", "--server", "nats://127.0.0.1:1").want(t, exitFailed, "nats://127.0.0.1:1")
	})
}

// Nodes on an external NATS server, one of which has a different list of nodes.
func TestExternal(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	node := func(name, nodes string) *process {
		return launch(t, "node", "--server", c.url(), "--cluster", "ext", "--name", name, "--nodes", nodes, "--max-lease", "8s", "--http", "127.0.0.1:0")
	}
	a, b, x := node("a", "a,b,c"), node("b", "a,b,c"), node("x", "x,y")
	for _, p := range []*process{a, b, x} {
		p.says(p.err, "node serves")
		p.says(p.err, "ready: this node votes")
	}
	qlockCmd(t, "run", "e", "-s", c.url(), "--cluster", "ext", "--lease", "8s", "--", "true").want(t, 0)
	// Node c never answers, and is waited for.
	sees(t, []string{"nodes", "-s", c.url(), "--cluster", "ext", "--timeout", "2s"}, 0, "Nodes of cluster ext", "other configuration", "x y, lease 8s, skew 4s", "unreachable", "2 of 3 nodes vote")
	sees(t, []string{"check", "-s", c.url(), "--cluster", "ext", "--timeout", "2s"}, exitFailed,
		"node x has nodes x y", "most have a b c", "must be the same at every node", "node c does not answer")
	a.signal(syscall.SIGTERM)
	a.wait().want(t, 0, "without --state-dir its votes are forgotten")
}

// An unlimited --timeout gives a long time to start, and not none.
func TestStartTime(t *testing.T) {
	for _, tt := range []struct{ timeout, want time.Duration }{
		{time.Millisecond, 30 * time.Second},
		{time.Minute, 85 * time.Second},
		{math.MaxInt64, math.MaxInt64},
	} {
		if got := startTime(tt.timeout); got != tt.want {
			t.Errorf("with --timeout %v a start may take %v, want %v", tt.timeout, got, tt.want)
		}
	}
}
