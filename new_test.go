package qlock_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

func TestNewKnowsTheClusterFromItsNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		nc := w.connect()
		l, err := qlock.New(t.Context(), nc.Conn)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		if l.Cluster() != "default" || l.Name() == "" || fmt.Sprint(l.Nodes()) != "[n1 n2 n3]" {
			t.Errorf("cluster %q, name %q, nodes %v", l.Cluster(), l.Name(), l.Nodes())
		}
		l.Nodes()[0] = "mine"
		if l.Nodes()[0] != "n1" {
			t.Error("Nodes gives out the Locker's own list")
		}
		// The default name is one that subjects can have.
		k := mustLock(t, l, "x")
		mustUnlock(t, k)
	})
}

// Two clusters share a NATS and know nothing of each other.
func TestClustersAreApart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		blue := qlock.NodeConfig{Cluster: "blue", Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir(), NoService: true}
		if err := qlock.Bootstrap(blue); err != nil {
			t.Fatal(err)
		}
		n, err := qlock.StartNode(t.Context(), w.connect().Conn, blue)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = n.Close() }()
		a, b := w.client("a"), w.client("b", qlock.WithCluster("blue"))
		if len(a.Nodes()) != 3 || len(b.Nodes()) != 1 || b.Cluster() != "blue" {
			t.Errorf("nodes %v and %v", a.Nodes(), b.Nodes())
		}
		k, k2 := mustLock(t, a, "x"), mustLock(t, b, "x")
		mustUnlock(t, k)
		mustUnlock(t, k2)
	})
}

func TestNewWithoutNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newServer(t, setup{})
		nc := w.connect()
		for _, tt := range []struct {
			bound, want time.Duration // bound 0: none
		}{{0, 5 * time.Second}, {700 * time.Millisecond, 700 * time.Millisecond}} {
			ctx := t.Context()
			if tt.bound > 0 {
				ctx = timeout(t, tt.bound)
			}
			start := time.Now()
			_, err := qlock.New(ctx, nc.Conn, qlock.WithCluster("prod"), qlock.WithName("svc-a"), qlock.WithLogger(slog.New(w.log)))
			if d := time.Since(start); d != tt.want {
				t.Errorf("New failed after %v, want %v", d, tt.want)
			}
			wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
			wantText(t, err, `cluster "prod"`, "lock.prod.node.info.svc-a", "nobody answered", "is a node running with this cluster name")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("mine"))
		_, err := qlock.New(ctx, nc.Conn)
		wantIs(t, err, context.Canceled)
		wantText(t, err, "mine")

		// That nobody subscribes to what was asked is no malformed answer.
		settle()
		if got := w.log.find(""); len(got) != 0 {
			t.Errorf("logged: %q", got)
		}
		if n := nc.NumSubscriptions(); n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
	})
}

func TestNewWithoutConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		if _, err := qlock.New(t.Context(), nil); err == nil {
			t.Error("no error for a nil connection")
		} else {
			wantText(t, err, "qlock: New", "nil")
		}
		w := newWorld(t, 1)
		nc := w.connect()
		nc.cut()
		settle()
		_, err := qlock.New(timeout(t, time.Second), nc.Conn)
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "nobody answered", "the NATS connection is RECONNECTING")
		nc.mend()
		l, err := qlock.New(timeout(t, time.Second), nc.Conn)
		if err != nil {
			t.Errorf("New while the connection comes back: %v", err)
		} else if err := l.Close(); err != nil {
			t.Error(err)
		}

		nc.Close()
		_, err = qlock.New(t.Context(), nc.Conn)
		wantIs(t, err, qlock.ErrClosed)

		// Closed while New is at it.
		for _, tn := range w.nodes {
			tn.crash()
		}
		nc = w.connect()
		time.AfterFunc(time.Second, nc.Close)
		start := time.Now()
		_, err = qlock.New(t.Context(), nc.Conn)
		wantIs(t, err, qlock.ErrClosed, nats.ErrConnectionClosed)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("found out after %v that the connection was closed after a second", d)
		}
	})
}

func TestNewWithMinorityOfNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.nodes[1].stop()
		w.nodes[2].stop()
		nc := w.connect()
		_, err := qlock.New(timeout(t, time.Second), nc.Conn)
		wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
		wantText(t, err, "answers came from n1 (voting, configuration ", "nodes n1 n2 n3", "a quorum of one list is needed")

		// One more is enough, also in a quarantine, and while New waits.
		if err := w.nodes[1].forget(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		started := make(chan struct{})
		time.AfterFunc(time.Second, func() {
			w.nodes[1].start()
			close(started)
		})
		l, err := qlock.New(timeout(t, 3*time.Second), nc.Conn)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 1500*time.Millisecond {
			t.Errorf("New took %v, a quorum was there after a second", d)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-started
	})
}

// Nodes of which no quorum has the same configuration are no cluster: the error
// shows who has which.
func TestNewWithNodesOfSeveralConfigurations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(i int, c *qlock.NodeConfig) {
			c.MaxLease = time.Duration(i+1) * 10 * time.Second
		}})
		_, err := qlock.New(timeout(t, time.Second), w.connect().Conn)
		wantIs(t, err, qlock.ErrNoQuorum)
		wantText(t, err, "n1 (voting", "n2 (voting", "n3 (voting", "a quorum of one list is needed")
		digests := map[string]bool{}
		for _, part := range strings.Split(err.Error(), "configuration ")[1:] {
			digest, _, _ := strings.Cut(part, " ")
			digests[digest] = true
		}
		if len(digests) != 3 {
			t.Errorf("the error shows %d configurations, want 3: %v", len(digests), err)
		}
	})
}

// One node of three with another configuration is like a dead one: its vote does
// not count, and errors say why.
func TestNodeOfAnotherConfigurationDoesNotCount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3, setup{node: func(i int, c *qlock.NodeConfig) {
			if i == 2 {
				c.MaxLease = time.Minute
			}
		}})
		a := w.client("a")
		k := mustLock(t, a, "x")
		time.Sleep(3 * testLease)
		if err := context.Cause(k.Context()); err != nil {
			t.Errorf("lost: %v", err)
		}
		mustUnlock(t, k)
		w.nodes[0].crash()
		_, err := a.Lock(timeout(t, time.Second), "x")
		wantIs(t, err, qlock.ErrNoQuorum)
		wantText(t, err, "1 of 3 nodes voted, 2 are needed", "n1 silent", "n2 voted", "n3 refused (it has another configuration)")
		w.noClaims()
	})
}

func TestLeaseMustFitTheCluster(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		_, err := qlock.New(t.Context(), w.connect().Conn, qlock.WithLease(40*time.Second))
		wantIs(t, err, qlock.ErrInvalidLease)
		wantText(t, err, "the lease of 40s is longer than the 30s", `cluster "default"`, "NodeConfig.MaxLease")
	})
}

// Where nobody asked for a lease, the cluster's longest will do.
func TestDefaultLeaseShrinksToTheClusters(t *testing.T) {
	for _, tt := range []struct{ longest, want time.Duration }{{3 * time.Second, 3 * time.Second}, {maxLease, qlock.DefaultLease}} {
		t.Run(tt.longest.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, 3, setup{node: func(_ int, c *qlock.NodeConfig) { c.MaxLease = tt.longest }})
				l, err := qlock.New(t.Context(), w.connect().Conn)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				if got := l.Lease(); got != tt.want {
					t.Errorf("the lease is %v, want %v", got, tt.want)
				}
				for _, tn := range w.nodes {
					tn.crash()
				}
				start := time.Now()
				_, err = l.TryLock(t.Context(), "x")
				wantIs(t, err, qlock.ErrNoQuorum)
				if d := time.Since(start); d != tt.want {
					t.Errorf("a try, which is bounded by the lease, took %v, want %v", d, tt.want)
				}
			})
		})
	}
}

func TestOptions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		nc := w.connect()
		tests := []struct {
			name string
			opt  qlock.Option
			is   error // nil: only the words
			want []string
		}{
			{"cluster empty", qlock.WithCluster(""), qlock.ErrInvalidName, []string{"cluster name", "is empty"}},
			{"cluster with a dot", qlock.WithCluster("a.b"), qlock.ErrInvalidName, []string{`cluster name "a.b"`, "not allowed"}},
			{"cluster a wildcard", qlock.WithCluster("*"), qlock.ErrInvalidName, []string{`"*"`}},
			{"cluster too long", qlock.WithCluster(strings.Repeat("c", 65)), qlock.ErrInvalidName, []string{"65 bytes", "1 to 64"}},
			{"client empty", qlock.WithName(""), qlock.ErrInvalidName, []string{"client name", "is empty"}},
			{"client a wildcard", qlock.WithName(">"), qlock.ErrInvalidName, []string{`client name ">"`}},
			{"client with a space", qlock.WithName("a b"), qlock.ErrInvalidName, []string{`"a b"`}},
			{"client with unicode", qlock.WithName("größe"), qlock.ErrInvalidName, []string{"größe", "A-Z a-z 0-9 _ -"}},
			{"lease zero", qlock.WithLease(0), qlock.ErrInvalidLease, []string{"lease: 0s", "10ms", "24h0m0s"}},
			{"lease too short", qlock.WithLease(9 * time.Millisecond), qlock.ErrInvalidLease, []string{"lease: 9ms", "10ms"}},
			{"lease too long", qlock.WithLease(25 * time.Hour), qlock.ErrInvalidLease, []string{"lease: 25h0m0s", "24h0m0s"}},
			{"lease negative", qlock.WithLease(-time.Second), qlock.ErrInvalidLease, []string{"lease: -1s"}},
			{"pass on nothing", qlock.WithPassOn(0, 0), nil, []string{"WithPassOn(0, 0s)", "above zero"}},
			{"pass on negative", qlock.WithPassOn(-1, time.Second), nil, []string{"WithPassOn(-1, 1s)"}},
			{"retention negative", qlock.WithRetention(-1), nil, []string{"retention -1ns"}},
			{"lease with microseconds", qlock.WithLease(time.Second + time.Microsecond), qlock.ErrInvalidLease, []string{"lease: 1.000001s", "whole milliseconds"}},
		}
		for _, tt := range tests {
			start := time.Now()
			l, err := qlock.New(t.Context(), nc.Conn, tt.opt)
			if l != nil || err == nil {
				t.Errorf("%s: no error", tt.name)
				continue
			}
			wantText(t, err, append(tt.want, "qlock: ")...)
			if tt.is != nil {
				wantIs(t, err, tt.is)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("%s: found out after %v", tt.name, d)
			}
		}
		// What is no mistake.
		l, err := qlock.New(t.Context(), nc.Conn, nil, qlock.WithLogger(nil), qlock.WithName(strings.Repeat("n", 64)), qlock.WithLease(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
