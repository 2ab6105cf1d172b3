package qlock_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// soon is a context that ends soon.
func soon(t *testing.T) context.Context { return timeout(t, 300*time.Millisecond) }

// What has a context comes back when it ends, also on a connection on which every call
// stands still, and leaves nothing. These calls would come back when the connection
// moves again, which it does not before they have.
func TestConnectionStandsStill(t *testing.T) {
	w := newServer(t, setup{real: true})
	cfg := qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), NoService: true, MaxLease: time.Second}
	if err := qlock.Bootstrap(cfg); err != nil {
		t.Fatal(err)
	}
	n, err := qlock.StartNode(timeout(t, patience), w.connect().Conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	nc := w.connect()
	l, err := qlock.New(timeout(t, patience), nc.Conn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	k := mustLock(t, l, "x")
	subs := nc.NumSubscriptions()
	returns := func(what string, f func() error, want ...error) {
		t.Helper()
		back := make(chan error, 1)
		go func() { back <- f() }()
		select {
		case err := <-back:
			wantIs(t, err, want...)
		case <-time.After(patience):
			t.Fatalf("%s does not come back on a connection that stands still", what)
		}
	}

	open := nc.Shut(t)
	returns("New", func() error {
		_, err := qlock.New(soon(t), nc.Conn)
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Locks", func() error {
		_, err := l.Locks(soon(t), "")
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Inspect", func() error {
		_, err := l.Inspect(soon(t), "x")
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Members", func() error {
		_, err := l.Members(soon(t))
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("QueryMembers", func() error {
		_, err := qlock.QueryMembers(soon(t), nc.Conn)
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Flush", func() error { return l.Flush(soon(t)) }, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Lock", func() error {
		_, err := l.Lock(soon(t), "y")
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("TryRLock", func() error {
		_, err := l.TryRLock(soon(t), "y")
		return err
	}, qlock.ErrNoQuorum, context.DeadlineExceeded)
	returns("Unlock", func() error { _ = k.Unlock(t.Context()); return nil })
	other := qlock.NodeConfig{Cluster: "other", Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), NoService: true}
	if err := qlock.Bootstrap(other); err != nil {
		t.Fatal(err)
	}
	returns("StartNode", func() error {
		_, err := qlock.StartNode(soon(t), nc.Conn, other)
		return err
	}, context.DeadlineExceeded)
	open()
	leaves(t, nc, subs)

	// The state directory is nobody's, and its mark was not used up.
	if n, err = qlock.StartNode(timeout(t, patience), nc.Conn, other); err != nil {
		t.Fatal(err)
	}
	if !n.Ready() {
		t.Errorf("the node is %s: the start that failed gave no vote, and used up its mark", n.Stats().State)
	}
	open = nc.Shut(t)
	returns("Node.Close", n.Close)
	returns("Locker.Close", l.Close)
	open()
	leaves(t, nc, 0)
}

// leaves waits until no more than so many subscriptions are left.
func leaves(t *testing.T, nc *link, subs int) {
	t.Helper()
	for end := time.Now().Add(patience); nc.NumSubscriptions() > subs; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d subscriptions are left, want %d", nc.NumSubscriptions(), subs)
		}
	}
}

// A connection that comes to stand still while StartNode is at it.
func TestConnectionStandsStillWhileStarting(t *testing.T) {
	w := newServer(t, setup{real: true})
	nc := w.connect()
	cfg := qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), NoService: true,
		MaxLease: 3 * time.Minute, ProbeWait: time.Minute} // it has not ended when the connection stands still
	if err := qlock.Bootstrap(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := qlock.StartNode(ctx, nc.Conn, cfg)
		failed <- err
	}()
	for nc.NumSubscriptions() < 3 {
		time.Sleep(time.Millisecond)
	}
	open := nc.Shut(t)
	cancel()
	select {
	case err := <-failed:
		wantIs(t, err, context.Canceled)
	case <-time.After(patience):
		t.Fatal("StartNode does not come back on a connection that stands still")
	}
	open()
	leaves(t, nc, 0)
	cfg.ProbeWait = 0
	n, err := qlock.StartNode(timeout(t, patience), nc.Conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !n.Ready() {
		t.Errorf("the node is %s: the start that failed gave no vote, and used up its mark", n.Stats().State)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// A server falls silent, and others can be reached. A connection that was made as the
// documentation advises is at another one before a lock is lost, whenever it happens
// between two refreshes and two pings; one with the client library's own number of
// pings is not.
func TestSilentServer(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []nats.Option
		kept bool
	}{
		{"as advised", []nats.Option{nats.PingInterval(testLease / 5), nats.MaxPingsOutstanding(1)}, true},
		{"pings of a third of the lease", []nats.Option{nats.PingInterval(testLease / 3)}, false},
		{"defaults", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3)
				nc := w.connect(tt.opts...)
				a := w.locker(nc.Conn, "a")
				lost := 0
				for i := range time.Duration(12) {
					k := mustLock(t, a, "x")
					time.Sleep(testLease + i*testLease/36)
					nc.Hush()
					time.Sleep(2 * testLease)
					if k.Context().Err() != nil {
						lost++
					}
					_ = k.Unlock(t.Context())
					for nc.Status() != nats.CONNECTED || nc.IsSilent() {
						time.Sleep(time.Second)
					}
				}
				if tt.kept && lost > 0 || !tt.kept && lost == 0 {
					t.Errorf("lost %d times of 12", lost)
				}
			})
		})
	}
}

// New and StartNode warn of connections that will cost locks.
func TestConnectionIsAdvised(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, MaxPayload: 4096, Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	}()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	connect := func(opts ...nats.Option) *nats.Conn {
		t.Helper()
		// Not with a longer nats.Timeout, which would be in the advice.
		for end := time.Now().Add(patience); ; {
			nc, err := nats.Connect(srv.ClientURL(), append(opts, nats.UserInfo("u", "p"))...)
			if err == nil {
				t.Cleanup(nc.Close)
				return nc
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	log := newLogbook()
	n, err := qlock.StartNode(timeout(t, patience), connect(), qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, NoService: true, Logger: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	words := []string{"WARN the NATS connection is not suited for locks", "this node's votes", "closed for ever when a server was tried 60 times", "refuses its credentials twice",
		"up to 6m2s to leave a server that falls silent, and a lease of 30s leaves 19.4s: use nats.PingInterval(6s)", "takes 4096 bytes"}
	good := []nats.Option{nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(1)}
	for _, tt := range []struct {
		opts  []nats.Option
		lease time.Duration
		words []string // none: no warning
		not   string
	}{
		{good, 10 * time.Second, []string{"may cost=locks", "takes 4096 bytes"}, "silent"},
		{good, 5 * time.Second, []string{"up to 6s", "a lease of 5s leaves 3.233s"}, "for ever"},
		{append(good, nats.MaxPingsOutstanding(2)), 10 * time.Second, []string{"up to 8s", "a lease of 10s leaves 6.466s", "nats.PingInterval(2s) and nats.MaxPingsOutstanding(1)"}, "for ever"},
		{append(good, nats.PingInterval(-1)), 10 * time.Second, []string{"never notices"}, "for ever"},
		{append(good, nats.NoReconnect()), 10 * time.Second, []string{"does not reconnect"}, "silent"},
	} {
		log := newLogbook()
		l, err := qlock.New(timeout(t, patience), connect(tt.opts...), qlock.WithLease(tt.lease), qlock.WithLogger(slog.New(log)))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil { // and all lines are written
			t.Error(err)
		}
		if got := log.find("not suited for locks"); len(got) != 1 || !containsAll(got[0], tt.words...) || strings.Contains(got[0], tt.not) {
			t.Errorf("want %q and not %q: %q", tt.words, tt.not, got)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if len(log.find(words...)) != 1 {
		t.Errorf("want %q in the node's log: %q", words, log.find(""))
	}
}
