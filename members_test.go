package qlock_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

func members(t *testing.T, l *qlock.Locker) *qlock.Members {
	t.Helper()
	m, err := l.Members(t.Context())
	if err != nil {
		t.Fatalf("Members: %v", err)
	}
	return m
}

// in is a membership as a text: each node, with what is to be said of it.
func in(m *qlock.Members) string {
	var parts []string
	for _, n := range m.Nodes {
		s := n.Name + " " + string(n.State)
		if !n.Answered {
			s = n.Name + " missing"
		}
		if n.Conflict != "" {
			s += " (" + string(n.Conflict) + ")"
		}
		parts = append(parts, s)
	}
	return fmt.Sprintf("%s; agreed %v on %s", strings.Join(parts, ", "), m.Agreed, strings.Join(m.Config.Nodes, " "))
}

func TestMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		mustLock(t, a, "x")
		start := time.Now()
		m := members(t, a)
		if got := in(m); got != "n1 voting, n2 voting, n3 voting; agreed true on n1 n2 n3" {
			t.Error(got)
		}
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("all answered at once, and it took %v", d)
		}
		if m.Cluster != qlock.DefaultCluster || m.Voting() != 3 || len(m.Missing()) != 0 || m.Config.WriteQuorum() != 2 || m.Config.ReadQuorum() != 2 {
			t.Errorf("%+v", m)
		}
		n := m.Nodes[1]
		if n.Incarnation == "" || n.Version != qlock.Version() || n.Claims != 1 || n.Started.IsZero() || n.ClockOffset != 0 || n.RoundTrip != 0 || !n.Votes() ||
			n.Config.Digest != m.Config.Digest || n.Config.MaxLease != w.nodes[1].cfg.MaxLease || n.Config.MaxSkew == 0 {
			t.Errorf("%+v", n)
		}

		// One that is stopped is missing, one that forgot is recovering, and one with
		// a list of its own contradicts.
		w.nodes[0].stop()
		w.nodes[1].crash()
		w.nodes[1].start()
		start = time.Now()
		if got := in(members(t, a)); got != "n1 missing, n2 recovering, n3 voting; agreed true on n1 n2 n3" {
			t.Error(got)
		}
		if d := time.Since(start).Round(time.Microsecond); d != time.Second {
			t.Errorf("a silent node was waited for for %v", d)
		}
		w.nodes[2].stop()
		right := w.nodes[2].cfg.Nodes
		w.nodes[2].cfg.Nodes = []string{"n3"}
		w.nodes[2].start()
		m = members(t, a)
		if got := in(m); !strings.HasPrefix(got, "n1 missing, n2 recovering") || !strings.Contains(got, "agreed false") || m.Voting() != 0 {
			t.Error(got)
		}
		w.nodes[0].start()
		if got := in(members(t, a)); got != "n1 voting, n2 recovering, n3 recovering (other configuration); agreed true on n1 n2 n3" {
			t.Error(got)
		}
		w.nodes[2].stop()
		w.nodes[2].cfg.Nodes = right
		w.nodes[2].start()
		a.Close()
		_, err := a.Members(t.Context())
		wantIs(t, err, qlock.ErrClosed)
	})
}

// What goes wrong is said: on which subject, how many answered of how many, and why.
func TestMembersWithoutNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, link := w.clientOn("a")
		w.each((*testNode).crash)
		for _, d := range []time.Duration{0, 700 * time.Millisecond} {
			ctx, want := t.Context(), 5*time.Second
			if d > 0 {
				ctx, want = timeout(t, d), d
			}
			start := time.Now()
			_, err := a.Members(ctx)
			wantIs(t, err, qlock.ErrNoQuorum, context.DeadlineExceeded)
			wantText(t, err, "lock.default.node.info.a", "0 of 3 nodes", "no answer from n1 n2 n3", "are they running")
			if took := time.Since(start); took != want {
				t.Errorf("gave up after %v, want %v", took, want)
			}
		}
		// One that knows no nodes is told by the server that nobody listens.
		start := time.Now()
		_, err := qlock.QueryMembers(t.Context(), link.Conn, qlock.WithName("b"))
		wantIs(t, err, qlock.ErrNoQuorum)
		wantText(t, err, "lock.default.node.info.b", "nobody answered", "is a node running with this cluster name")
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if _, err := qlock.QueryMembers(t.Context(), nil); err == nil {
			t.Error("no error for a nil connection")
		}
		if _, err := qlock.QueryMembers(t.Context(), link.Conn, qlock.WithName("a.b")); err == nil {
			t.Error("no error for a bad name")
		}
		w.each((*testNode).start)

		// A minority is shown as what it is, though New would fail.
		w.nodes[1].stop()
		w.nodes[2].stop()
		m, err := qlock.QueryMembers(t.Context(), link.Conn)
		if err != nil || in(m) != "n1 recovering, n2 missing, n3 missing; agreed false on n1 n2 n3" {
			t.Error(m, err)
		}
		w.nodes[1].start()
		w.nodes[2].start()
		time.AfterFunc(time.Second, link.Close)
		w.each((*testNode).crash)
		start = time.Now()
		_, err = a.Members(t.Context())
		wantIs(t, err, qlock.ErrClosed)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("found out after %v that the connection is closed", took)
		}
		_, err = qlock.QueryMembers(t.Context(), link.Conn)
		wantIs(t, err, qlock.ErrClosed)
		w.each((*testNode).start)
	})
}

// Two processes of one name are both shown; a stranger's word is not taken for a node's.
func TestMembersOfOneName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a := w.client("a")
		nc, digest := w.connect(), members(t, a).Config.Digest
		info := func(m *nats.Msg) {
			_, nonce, _ := strings.Cut(string(m.Data), `"nonce":"`)
			nonce, _, _ = strings.Cut(nonce, `"`)
			_ = nc.Publish(m.Reply, []byte(fmt.Sprintf(`{"answer":"info","node":"n2","incarnation":"00000000-0000-0000-0000-000000000001","digest":%q,"nonce":%q,`+
				`"nodes":["n1","n2","n3"],"max_ttl_ms":%d,"skew_ms":%d,"state":"voting","started":1,"now":1,"claims":0,"version":"x"}`,
				digest, nonce, w.nodes[0].cfg.MaxLease.Milliseconds(), 5000)))
		}
		sub, err := nc.Subscribe("lock.default.node.info.a", info)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		settle()
		m := members(t, a)
		names := 0
		for _, n := range m.Nodes {
			if n.Name == "n2" {
				names++
				if !slices.Contains([]qlock.Conflict{qlock.ConflictName, qlock.ConflictDigest}, n.Conflict) || n.Votes() {
					t.Errorf("%+v", n)
				}
			}
		}
		if names != 2 || m.Voting() != 2 {
			t.Error(in(m))
		}
	})
}
