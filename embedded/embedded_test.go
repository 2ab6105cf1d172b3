package embedded_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must come.
const patience = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// solo is the configuration of a node that is a cluster by itself, bootstrapped.
func solo(t *testing.T) embedded.Config {
	t.Helper()
	cfg := embedded.Config{Port: qlocktest.FreePort(t), Node: qlock.NodeConfig{
		Name: "solo", Nodes: []string{"solo"}, StateDir: filepath.Join(t.TempDir(), "state"),
		ProbeWait: 20 * time.Millisecond,
	}}
	if err := qlock.Bootstrap(cfg.Node); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func start(t *testing.T, cfg embedded.Config) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ready waits for the node's vote.
func ready(t *testing.T, s *embedded.Server) *embedded.Server {
	t.Helper()
	if err := s.Node().WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	// The default handler prints what these tests bring about on purpose.
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	nc, err := nats.Connect(url, append(opts, quiet)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func newLocker(t *testing.T, nc *nats.Conn, opts ...qlock.Option) *qlock.Locker {
	t.Helper()
	l, err := qlock.New(testContext(t), nc, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// mustLock acquires a lock by way of nc and releases it.
func mustLock(t *testing.T, nc *nats.Conn) {
	t.Helper()
	ctx := testContext(t)
	l := newLocker(t, nc)
	k, err := l.Lock(ctx, "a.name")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(k.Unlock(ctx), l.Close()); err != nil {
		t.Error(err)
	}
}

// await waits for a condition that must become true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// logged is a logger whose lines can be waited for.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) has(text string) bool { return l.count(text) > 0 }

// count is the number of lines with all the texts in them.
func (l *logged) count(texts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
lines:
	for line := range strings.Lines(l.buf.String()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		n++
	}
	return n
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestStartAlone(t *testing.T) {
	t.Parallel()
	s := ready(t, start(t, solo(t)))

	u, err := url.Parse(s.ClientURL())
	if err != nil || u.Hostname() != "127.0.0.1" {
		t.Errorf("ClientURL is %q (%v), not on loopback", s.ClientURL(), err)
	}
	if s.RouteURL() != "" {
		t.Errorf("a server that stands alone has the route address %q", s.RouteURL())
	}
	if s.Name() != "solo" || s.NATS().Name() != "solo" || s.Node().Name() != "solo" {
		t.Errorf("names: %q, %q, %q, want solo", s.Name(), s.NATS().Name(), s.Node().Name())
	}
	mustLock(t, connect(t, s.ClientURL()))
	mustLock(t, s.Conn())

	// One lock, seen from both sides.
	ctx := testContext(t)
	k, err := newLocker(t, s.Conn(), qlock.WithName("inside")).Lock(ctx, "both")
	if err != nil {
		t.Fatal(err)
	}
	_, err = newLocker(t, connect(t, s.ClientURL())).TryLock(ctx, "both")
	if !errors.Is(err, qlock.ErrHeld) || !strings.Contains(fmt.Sprint(err), "inside") {
		t.Errorf("TryLock of a lock held by inside: %v", err)
	}
	if err := k.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := ready(t, start(t, solo(t)))
	addr := s.NATS().Addr().String()
	conn, node := s.Conn(), s.Node()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	qlocktest.CrashServer(t, s)
	if s.Conn() != nil || s.Node() != nil || s.NATS() != nil || s.ClientURL() != "" || s.RouteURL() != "" {
		t.Error("a closed server still shows something")
	}
	if !conn.IsClosed() {
		t.Error("the connection inside the process outlived its server")
	}
	select {
	case <-node.Done():
	default:
		t.Error("the node outlived its server")
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Errorf("%s still takes connections", addr)
	}
}

// Clients find a restarted server at its old address, and after a clean stop it votes at
// once.
func TestRestartKeepsPorts(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cfg := solo(t)
	cfg.RoutePort = qlocktest.FreePort(t)
	s := ready(t, start(t, cfg))
	client, route := s.ClientURL(), s.RouteURL()
	if route == "" {
		t.Fatal("no route address")
	}

	running := s.NATS()
	if err := s.Restart(ctx); err != nil || s.NATS() != running {
		t.Errorf("Restart of a running server: %v, another server: %v", err, s.NATS() != running)
	}

	nc := connect(t, client, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	// The longest lease: the lock must last while the server is away, however slow that is.
	k, err := newLocker(t, nc, qlock.WithLease(qlock.DefaultMaxLease)).Lock(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	for _, stop := range []func() error{s.Close, s.Close} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if s.ClientURL() != client || s.RouteURL() != route {
			t.Errorf("after Restart: %s and %s, before it: %s and %s", s.ClientURL(), s.RouteURL(), client, route)
		}
		if !s.Node().Ready() {
			t.Error("a node that was stopped cleanly does not vote when Restart returns")
		}
		if got := s.Node().Stats().Claims; got != 1 {
			t.Errorf("after Restart the node knows %d claims, not the one that is held", got)
		}
	}
	await(t, "the client is back", nc.IsConnected)
	if err := k.Unlock(ctx); err != nil {
		t.Errorf("the lock was not kept over clean restarts: %v", err)
	}
}

// A start that fails can be tried again.
func TestRestartFails(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := ready(t, start(t, solo(t)))
	addr := s.NATS().Addr().String()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(ctx); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("Restart at an address in use: %v", err)
	}
	if s.Node() != nil || s.Conn() != nil || s.NATS() != nil {
		t.Error("a server that did not start shows something")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if !s.Node().Ready() {
		t.Error("the clean mark was used up by a start that failed")
	}
}

// A crash leaves no clean mark: the node gives no votes until those that it may
// have forgotten have run out (N8).
func TestCrashIsFollowedByQuarantine(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cfg := solo(t)
	cfg.Node.StateDir = filepath.Join(t.TempDir(), "state")
	cfg.Node.MaxLease = 3 * time.Second
	if err := qlock.Bootstrap(cfg.Node); err != nil {
		t.Fatal(err)
	}
	s := ready(t, start(t, cfg))
	url := s.ClientURL()
	qlocktest.CrashServer(t, s)
	if s.Conn() != nil || s.ClientURL() != "" {
		t.Error("a crashed server still shows something")
	}
	restarted := time.Now()
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if s.ClientURL() != url {
		t.Errorf("after the crash at %s, before it at %s", s.ClientURL(), url)
	}
	// If this comes late, the quarantine may be over.
	if state := s.Node().Stats().State; state != "recovering" && time.Since(restarted) < cfg.Node.MaxLease {
		t.Errorf("after a crash the node is %s", state)
	}
	k, err := newLocker(t, s.Conn()).Lock(ctx, "a.name")
	if err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(restarted); waited < cfg.Node.MaxLease {
		t.Errorf("a vote came %v after the restart, within the longest lease of %v", waited, cfg.Node.MaxLease)
	}
	if err := k.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	cfg := solo(t)
	cfg.Options = func(o *server.Options) {
		if o.ServerName != "solo" || !o.NoSigs || !o.NoFastProducerStall {
			t.Errorf("the hook does not see what was set: %+v", o)
		}
		o.HTTPHost, o.HTTPPort = "127.0.0.1", -1
		o.MaxPayload = 64 << 10
		o.Users = []*server.User{
			{Username: "owner", Password: "secret"},
			{Username: "guest", Password: "guest", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"lock.>"}},
			}},
		}
	}
	cfg.ConnOptions = []nats.Option{nats.UserInfo("owner", "secret"), nats.Name("mine")}
	s := ready(t, start(t, cfg))

	if got := s.Conn().MaxPayload(); got != 64<<10 {
		t.Errorf("MaxPayload is %d", got)
	}
	if got := s.Conn().Opts.Name; got != "mine" {
		t.Errorf("the connection's name is %q: ConnOptions come last", got)
	}
	mustLock(t, s.Conn())
	r, err := http.Get("http://" + s.NATS().MonitorAddr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if r.StatusCode != http.StatusOK {
		t.Errorf("monitoring answers %s", r.Status)
	}
	_, err = qlock.New(testContext(t), connect(t, s.ClientURL(), nats.UserInfo("guest", "guest")))
	if !errors.Is(err, qlock.ErrRefused) {
		t.Errorf("a guest who may not publish there: %v", err)
	}
}

// A server that cannot listen on its port reports that, and leaves nothing behind that
// would affect the next start: no goroutine and no claim on the state directory. It does
// not use up the clean mark.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // after the parallel parts
	port := l.Addr().(*net.TCPAddr).Port

	for name, change := range map[string]func(*embedded.Config){
		"client":     func(c *embedded.Config) { c.Port = port },
		"client too": func(c *embedded.Config) { c.Port, c.RoutePort = port, -1 },
		"route":      func(c *embedded.Config) { c.RoutePort = port },
		"monitoring": func(c *embedded.Config) {
			c.Options = func(o *server.Options) { o.HTTPHost, o.HTTPPort = "127.0.0.1", port }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := solo(t)
			var log logged
			cfg.Logger = log.logger()
			taken := cfg
			change(&taken)
			began := time.Now()
			s, err := embedded.Start(testContext(t), taken)
			if s != nil || err == nil {
				t.Fatalf("Start on a port in use: %v, %v", s, err)
			}
			for _, want := range []string{"qlock/embedded: ", strconv.Itoa(port), "in use"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if d := time.Since(began); d > patience/2 {
				t.Errorf("it took %v to find out", d)
			}
			if !log.has("level=ERROR") {
				t.Error("the logger was not told")
			}
			if !ready(t, start(t, cfg)).Node().Ready() { // ready: at once, by the mark
				t.Error("not ready")
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*embedded.Config)
		want   string
	}{
		"route without scheme": {func(c *embedded.Config) { c.Routes = []string{"10.0.0.1:6222"} }, `"10.0.0.1:6222" is not an address like nats-route://host:6222`},
		"route without host":   {func(c *embedded.Config) { c.Routes = []string{"nats-route://"} }, "is not an address"},
		"route garbled":        {func(c *embedded.Config) { c.Routes = []string{"nats-route://%zz"} }, "is not an address"},
		"name not among nodes": {func(c *embedded.Config) { c.Node.Name = "other" }, `"other" is not among Nodes`},
		"no name":              {func(c *embedded.Config) { c.Node.Name = "" }, "node name"},
		"name with a space":    {func(c *embedded.Config) { c.Node.Name = "a b" }, "name cannot contain spaces"},
		"no nodes":             {func(c *embedded.Config) { c.Node.Nodes = nil }, "Nodes is empty"},
		"lease too long":       {func(c *embedded.Config) { c.Node.MaxLease = 25 * time.Hour }, "MaxLease 25h"},
		"cluster name":         {func(c *embedded.Config) { c.Node.Cluster = "a.b" }, `"a.b"`},
		"state directory":      {func(c *embedded.Config) { c.Node.StateDir = os.Args[0] }, "state directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := solo(t)
			c.change(&cfg)
			s, err := embedded.Start(testContext(t), cfg)
			if s != nil || err == nil {
				t.Fatalf("Start: %v, %v", s, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error does not say %q: %v", c.want, err)
			}
		})
	}
}

// A node whose name is already taken does not start, and the node that has the name
// continues.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	cfg := solo(t)
	cfg.RoutePort = -1
	first := ready(t, start(t, cfg))

	again := cfg
	again.Port = 0
	again.Node.StateDir = ""
	again.Node.ProbeWait = time.Second
	again.Routes = []string{first.RouteURL()}
	// The servers need names of their own to form a cluster at all.
	again.Options = func(o *server.Options) { o.ServerName = "impostor" }
	s, err := embedded.Start(testContext(t), again)
	if err == nil { // the route came up after the node had asked: it stops when it hears the other
		defer s.Close()
		select {
		case <-s.Node().Done():
			err = s.Node().Err()
		case <-testContext(t).Done():
		}
	}
	if err == nil || !strings.Contains(err.Error(), `another node named "solo"`) {
		t.Errorf("Start under a name that is taken: %v, %v", s, err)
	}
	mustLock(t, first.Conn())
}

func TestStartEndsWithContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	cfg := solo(t)
	if s, err := embedded.Start(ctx, cfg); s != nil || !errors.Is(err, cause) {
		t.Errorf("Start with an ended context: %v, %v", s, err)
	}
	// The state directory is free again.
	start(t, cfg)
}

// The accessors may be called while another goroutine stops and starts the
// server.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := ready(t, start(t, solo(t)))
	stop := make(chan struct{})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, _, _, _, _ = s.Conn(), s.ClientURL(), s.RouteURL(), s.Name(), s.NATS()
				if n := s.Node(); n != nil {
					_, _ = n.Stats(), n.Ready()
				}
			}
		})
	}
	for range 3 {
		var both sync.WaitGroup
		both.Go(func() { _ = s.Close() })
		both.Go(func() { _ = s.Close() })
		both.Wait()
		both.Go(func() {
			if err := s.Restart(ctx); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if err := s.Restart(ctx); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
	}
	close(stop)
	work.Wait()
	mustLock(t, s.Conn())
}

func TestClientTLS(t *testing.T) {
	t.Parallel()
	ca, other := qlocktest.NewAuthority(t, "ours"), qlocktest.NewAuthority(t, "theirs")
	t.Run("server's certificate", func(t *testing.T) {
		t.Parallel()
		cfg := solo(t)
		cfg.TLS = ca.Config(t, "server")
		s := ready(t, start(t, cfg))
		mustLock(t, s.Conn()) // no TLS within the process, whatever the network is told
		nc := connect(t, s.ClientURL(), nats.Secure(&tls.Config{RootCAs: ca.Pool()}))
		if !nc.TLSRequired() {
			t.Error("TLS is not required")
		}
		if _, err := nc.TLSConnectionState(); err != nil {
			t.Errorf("the connection is plain: %v", err)
		}
		mustLock(t, nc)
		if nc, err := nats.Connect(s.ClientURL(), nats.Secure(&tls.Config{RootCAs: other.Pool()})); err == nil {
			nc.Close()
			t.Error("a client that trusts another authority connected")
		}
	})
	t.Run("client's certificate", func(t *testing.T) {
		t.Parallel()
		cfg := solo(t)
		cfg.TLS = ca.Config(t, "server")
		cfg.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		s := ready(t, start(t, cfg))
		mustLock(t, s.Conn())
		mustLock(t, connect(t, s.ClientURL(), nats.Secure(ca.Config(t, "client"))))
		for name, c := range map[string]*tls.Config{
			"no certificate":         {RootCAs: ca.Pool()},
			"a foreign certificate":  {RootCAs: ca.Pool(), Certificates: []tls.Certificate{other.Certificate(t, "client")}},
			"an unknown server's CA": other.Config(t, "client"),
		} {
			if nc, err := nats.Connect(s.ClientURL(), nats.Secure(c)); err == nil {
				nc.Close()
				t.Errorf("a client with %s connected", name)
			}
		}
	})
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change       func(*embedded.Config)
		right, wrong nats.Option
	}{
		"password": {
			func(c *embedded.Config) { c.Username, c.Password = "ann", "secret" },
			nats.UserInfo("ann", "secret"), nats.UserInfo("ann", "guess"),
		},
		"token": {
			func(c *embedded.Config) { c.Token = "secret" },
			nats.Token("secret"), nats.Token("guess"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := solo(t)
			c.change(&cfg)
			s := ready(t, start(t, cfg))
			mustLock(t, s.Conn())
			mustLock(t, connect(t, s.ClientURL(), c.right))
			for _, opts := range [][]nats.Option{{c.wrong}, nil} {
				nc, err := nats.Connect(s.ClientURL(), opts...)
				if err == nil {
					nc.Close()
				}
				if !errors.Is(err, nats.ErrAuthorization) {
					t.Errorf("connecting with %d wrong credentials: %v", len(opts), err)
				}
			}
		})
	}
}

// The logger gets the server's lines, with its name.
func TestLogger(t *testing.T) {
	t.Parallel()
	var log logged
	cfg := solo(t)
	cfg.Logger = log.logger()
	s := ready(t, start(t, cfg))
	await(t, "a line of the server", func() bool { return log.count("server=solo", "Server is ready") > 0 })
	await(t, "a line of the node", func() bool { return log.count("node=solo", "this node votes") > 0 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Faults of the package's own connections are logged, and not printed.
func TestConnectionErrorsAreLogged(t *testing.T) {
	t.Parallel()
	var log logged
	cfg := solo(t)
	cfg.Logger = log.logger()
	cfg.Options = func(o *server.Options) {
		o.Users = []*server.User{{Username: "ann", Password: "secret", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"denied"}},
		}}}
	}
	cfg.ConnOptions = []nats.Option{nats.UserInfo("ann", "secret")}
	s := ready(t, start(t, cfg))
	if err := s.Conn().Publish("denied", nil); err != nil {
		t.Fatal(err)
	}
	await(t, "the logger is told", func() bool { return log.count("connection=solo", "denied") > 0 })
}
