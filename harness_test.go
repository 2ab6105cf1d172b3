package qlock_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/crash"
	"github.com/qlock/qlock/internal/testworld"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests of this package run Lockers and Nodes on a real nats-server in virtual time: see
// internal/testworld, which has what the tests of the recipes use too. settle returns when every
// message has been delivered and handled.
var (
	bubble   = testworld.Bubble
	settle   = synctest.Wait
	timeout  = testworld.Within
	wantIs   = testworld.WantIs
	wantText = testworld.WantText
)

const (
	testLease = testworld.Lease
	maxLease  = 30 * time.Second
)

// stands returns how long a vote is valid for a client: the lease less the margin for drift (C1).
func stands(lease time.Duration) time.Duration { return lease - lease/50 }

// A node that may have forgotten votes listens for an earlier node of its name, and then waits
// until all votes have expired (N8, N9).
const (
	probeWait  = 300 * time.Millisecond    // the default of NodeConfig.ProbeWait
	runOut     = maxLease + maxLease/50    // after which all forgotten votes have expired
	listening  = maxLease/10 + maxLease/30 // in which an earlier node of the name asks for it
	quarantine = listening + runOut
)

// world is a nats-server and the nodes of a cluster. Each node has a connection of its own.
type world struct {
	t     *testing.T
	srv   *server.Server
	nodes []*testNode
	log   *logbook // of all nodes and clients
	real  bool     // see setup
}

// patience bounds waits in real time for something that must come.
const patience = 2 * time.Minute

// within is a context for what takes no longer than d in virtual time.
func (w *world) within(d time.Duration) context.Context {
	if w.real {
		d = patience
	}
	return timeout(w.t, d)
}

type testNode struct {
	*qlock.Node // nil while it is stopped
	world       *world
	cfg         qlock.NodeConfig
	link        *link
}

// setup changes the defaults of a world.
type setup struct {
	node   func(i int, c *qlock.NodeConfig)
	server func(o *server.Options)
	fresh  bool // do not bootstrap: the nodes begin in quarantine
	real   bool // the test runs in real time, which passes while the machine does something else
}

func (s setup) options() *server.Options { return testworld.ServerOptions(s.server) }

// newWorld starts a server and n nodes that vote.
func newWorld(t *testing.T, n int, change ...setup) *world {
	t.Helper()
	var s setup
	if len(change) > 0 {
		s = change[0]
	}
	w := newServer(t, s)
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	dir := t.TempDir()
	for i, name := range names {
		tn := &testNode{world: w, link: w.connect()}
		tn.cfg = qlock.NodeConfig{
			Name: name, Nodes: names, StateDir: filepath.Join(dir, name), MaxLease: maxLease,
			// Closing a service calls Drain, which calls Flush, which uses a pooled timer.
			NoService: true,
			Logger:    slog.New(w.log),
		}
		if s.node != nil {
			s.node(i, &tn.cfg)
		}
		if !s.fresh && tn.cfg.StateDir != "" {
			if err := qlock.Bootstrap(tn.cfg); err != nil {
				t.Fatal(err)
			}
		}
		w.nodes = append(w.nodes, tn)
		t.Cleanup(func() {
			if tn.Node != nil {
				tn.stop()
			}
		})
	}
	w.each(func(tn *testNode) { tn.start() })
	if !s.fresh {
		for _, tn := range w.nodes {
			if err := tn.WaitReady(w.within(time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// newServer starts the server of a world without nodes.
func newServer(t *testing.T, s setup) *world {
	t.Helper()
	return &world{t: t, srv: testworld.StartServer(t, s.server), log: newLogbook(), real: s.real}
}

// each calls f for all nodes concurrently, and waits.
func (w *world) each(f func(*testNode)) {
	var wg sync.WaitGroup
	for _, tn := range w.nodes {
		wg.Go(func() { f(tn) })
	}
	wg.Wait()
}

func (tn *testNode) start() {
	tn.world.t.Helper()
	if err := tn.tryStart(); err != nil {
		tn.world.t.Errorf("start %s: %v", tn.cfg.Name, err)
	}
}

func (tn *testNode) tryStart() error {
	n, err := qlock.StartNode(tn.world.within(5*time.Second), tn.link.Conn, tn.cfg)
	if err == nil {
		tn.Node = n
	}
	return err
}

// stop stops the node cleanly.
func (tn *testNode) stop() {
	tn.world.t.Helper()
	if err := tn.Close(); err != nil {
		tn.world.t.Errorf("stop %s: %v", tn.cfg.Name, err)
	}
	tn.Node = nil
}

// crash stops the node as if its process ended.
func (tn *testNode) crash() {
	tn.world.t.Helper()
	if err := crash.Node(tn.Node); err != nil {
		tn.world.t.Errorf("crash %s: %v", tn.cfg.Name, err)
	}
	tn.Node = nil
}

// link is a connection that can be cut.
type link struct{ *testworld.Link }

func (l *link) cut()  { l.Cut() }
func (l *link) mend() { l.Mend() }

const reconnectWait = testworld.ReconnectWait

// connect makes a connection to the server and closes it when the test ends.
func (w *world) connect(opts ...nats.Option) *link {
	w.t.Helper()
	if w.real {
		opts = append(opts, nats.Timeout(patience))
	}
	return &link{testworld.Connect(w.t, w.srv, opts...)}
}

// client makes a Locker with a lease of testLease on a connection of its own, and closes it when
// the test ends.
func (w *world) client(name string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	l, _ := w.clientOn(name, opts...)
	return l
}

// clientOn is like client for tests that also need the connection.
func (w *world) clientOn(name string, opts ...qlock.Option) (*qlock.Locker, *link) {
	w.t.Helper()
	nc := w.connect()
	return w.locker(nc.Conn, name, opts...), nc
}

func (w *world) locker(nc *nats.Conn, name string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	ctx := w.t.Context()
	if w.real {
		ctx = w.within(patience)
	}
	l, err := qlock.New(ctx, nc, append([]qlock.Option{
		qlock.WithName(name), qlock.WithLease(testLease), qlock.WithLogger(slog.New(w.log)),
	}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			w.t.Errorf("close %s: %v", name, err)
		}
	})
	return l
}

// claims returns the number of claims at the i-th node.
func (w *world) claims(i int) int { return w.nodes[i].Stats().Claims }

// noClaims checks that no node has a claim.
func (w *world) noClaims() {
	w.t.Helper()
	settle()
	for _, tn := range w.nodes {
		if tn.Node != nil && tn.Stats().Claims != 0 {
			w.t.Errorf("%s still has %d claims", tn.cfg.Name, tn.Stats().Claims)
		}
	}
}

// mustLock acquires a lock that must be free, or become free within a minute.
func mustLock(t *testing.T, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.Lock(timeout(t, time.Minute), name)
	if err != nil {
		t.Fatalf("Lock(%q): %v", name, err)
	}
	return k
}

func mustRLock(t *testing.T, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.RLock(timeout(t, time.Minute), name)
	if err != nil {
		t.Fatalf("RLock(%q): %v", name, err)
	}
	return k
}

func mustUnlock(t *testing.T, k *qlock.Lock) {
	t.Helper()
	if err := k.Unlock(t.Context()); err != nil {
		t.Fatalf("Unlock(%q): %v", k.Name(), err)
	}
}

// waiter is a call of Lock or RLock in a goroutine of its own.
type waiter struct {
	done   chan struct{}
	lock   *qlock.Lock
	err    error
	waited time.Duration
}

// waitFor calls lock in a goroutine. It returns when the call waits in the nodes' queues or has
// returned.
func waitFor(ctx context.Context, lock func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error), name string) *waiter {
	w := &waiter{done: make(chan struct{})}
	start := time.Now()
	go func() {
		w.lock, w.err = lock(ctx, name)
		w.waited = time.Since(start)
		close(w.done)
	}()
	settle()
	return w
}

// over reports whether the call has returned after all messages have been delivered.
func (w *waiter) over() bool {
	settle()
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// held waits for the lock and returns it.
func (w *waiter) held(t *testing.T) *qlock.Lock {
	t.Helper()
	select {
	case <-w.done:
	case <-time.After(5 * time.Minute):
		t.Fatal("the lock was not granted within five minutes")
	}
	if w.err != nil {
		t.Fatalf("the wait for the lock failed: %v", w.err)
	}
	return w.lock
}

// observer counts the messages on lock.>.
type observer struct {
	mu    sync.Mutex // guards count, seen
	count map[string]int
	seen  []*nats.Msg
}

// observe subscribes to everything about locks, as a person with "nats sub" would.
func (w *world) observe() *observer {
	w.t.Helper()
	o := &observer{count: map[string]int{}}
	nc := w.connect()
	_, err := nc.Subscribe("lock.>", func(m *nats.Msg) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, m := range unfold(w.t, m) {
			o.count[strings.Split(m.Subject, ".")[3]]++
			o.seen = append(o.seen, m)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	settle()
	return o
}

// unfold splits a batch into messages with one request each.
func unfold(t testing.TB, m *nats.Msg) []*nats.Msg {
	part := strings.Split(m.Subject, ".")
	if len(part) != 4 {
		return []*nats.Msg{m}
	}
	var list []json.RawMessage
	if json.Unmarshal(m.Data, &list) != nil {
		return []*nats.Msg{m} // not a batch
	}
	out := make([]*nats.Msg, len(list))
	for i, one := range list {
		var in struct{ Verb, Name string }
		if err := json.Unmarshal(one, &in); err != nil {
			t.Errorf("%s: %v: %s", m.Subject, err, one)
		}
		subject := strings.TrimSuffix(strings.Join([]string{"lock", part[1], "node", in.Verb, part[3], in.Name}, "."), ".")
		out[i] = &nats.Msg{Subject: subject, Reply: m.Reply, Data: one}
	}
	return out
}

// take returns how often each verb and each kind of event was seen since the last call, after all
// messages have been delivered.
func (o *observer) take() map[string]int {
	settle()
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.count
	o.count = map[string]int{}
	return c
}

// messages returns the messages that were seen on subjects with the prefix.
func (o *observer) messages(prefix string) []*nats.Msg {
	settle()
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*nats.Msg
	for _, m := range o.seen {
		if strings.HasPrefix(m.Subject, prefix) {
			out = append(out, m)
		}
	}
	return out
}

// logbook is a slog.Handler that stores the lines.
type logbook struct {
	state *logState // shared by handlers made with WithAttrs
	attrs string
}

func newLogbook() *logbook { return &logbook{state: &logState{}} }

type logState struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (b *logbook) Enabled(context.Context, slog.Level) bool { return true }

func (b *logbook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message + b.attrs
	r.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	return nil
}

func (b *logbook) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := &logbook{state: b.state, attrs: b.attrs}
	for _, a := range attrs {
		c.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return c
}

func (b *logbook) WithGroup(string) slog.Handler { return b }

// find returns the lines that contain all the words.
func (b *logbook) find(words ...string) []string {
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, line := range s.lines {
		if containsAll(line, words...) {
			out = append(out, line)
		}
	}
	return out
}

func containsAll(s string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// forget removes the mark of a stopped node from its state directory.
func (tn *testNode) forget() error { return os.Remove(filepath.Join(tn.cfg.StateDir, "node.json")) }
