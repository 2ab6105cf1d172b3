package store

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		// Goroutines of a client that is closed, or of a server, may end late.
		err := goleak.Find()
		for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// startServer starts one server with JetStream.
func startServer(t testing.TB) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(2 * time.Minute) {
		t.Fatal("the server does not start")
	}
	return s
}

func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// startCluster starts n servers with JetStream that are one cluster.
func startCluster(t testing.TB, n int) []*server.Server {
	t.Helper()
	var servers []*server.Server
	var routes []string
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true,
			JetStream: true, StoreDir: t.TempDir(), NoFastProducerStall: true,
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: -1, PoolSize: 1},
			Routes:  server.RoutesFromStr(join(routes)),
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(2 * time.Minute) {
			t.Fatal("a server does not start")
		}
		servers = append(servers, s)
		routes = append(routes, fmt.Sprintf("nats://%s", s.ClusterAddr()))
	}
	eventually(t, "the servers elect a leader", func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == n
			}
		}
		return false
	})
	return servers
}

func join(routes []string) string {
	out := ""
	for i, r := range routes {
		if i > 0 {
			out += ","
		}
		out += r
	}
	return out
}

// patience bounds every wait for what must come.
const patience = 2 * time.Minute

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// soon calls f until it succeeds: a cluster that is new, or without a leader for a moment, refuses or
// does not answer.
func soon[T any](t testing.TB, f func() (T, error)) T {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		v, err := f()
		if err == nil {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %v", patience, err)
		}
	}
}

func newJS(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(patience/4))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

var buckets atomic.Int64

// patient has what a Store does without options of its own. A loaded machine may take longer for an
// answer than people wait; and what is done about an answer that does not come is the matter of
// tests that lose it.
var patient = []Option{WithTimeout(patience), WithAnswerTimeout(patience / 4)}

// newStore makes a bucket of its own.
func newStore(t testing.TB, js jetstream.JetStream, cfg jetstream.KeyValueConfig, opts ...Option) *Store {
	t.Helper()
	if cfg.Bucket == "" {
		cfg.Bucket = fmt.Sprintf("b%d", buckets.Add(1))
	}
	return soon(t, func() (*Store, error) { return Create(t.Context(), js, cfg, slices.Concat(patient, opts)...) })
}

// reopen is the same bucket, as another process has it.
func reopen(t testing.TB, s *Store, nc *nats.Conn, opts ...Option) *Store {
	t.Helper()
	return soon(t, func() (*Store, error) {
		return Open(t.Context(), newJS(t, nc), s.Bucket(), slices.Concat(patient, opts)...)
	})
}

// testLock is a lock without nodes.
type testLock struct {
	name   string
	token  uint64
	shared bool
	ctx    context.Context
	end    context.CancelCauseFunc
}

func lock(t testing.TB, name string, token uint64) *testLock {
	ctx, end := context.WithCancelCause(context.Background())
	t.Cleanup(func() { end(nil) })
	return &testLock{name: name, token: token, ctx: ctx, end: end}
}

func rlock(t testing.TB, name string, token uint64) *testLock {
	l := lock(t, name, token)
	l.shared = true
	return l
}

func (l *testLock) Name() string             { return l.name }
func (l *testLock) Token() uint64            { return l.token }
func (l *testLock) Shared() bool             { return l.shared }
func (l *testLock) Context() context.Context { return l.ctx }

// fakeWire stands between a store and its server, to lose, delay and spoil.
type fakeWire struct {
	wire
	mu           sync.Mutex
	onSend       func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error)
	onRead       func(ctx context.Context, subjects []string, real wire) (answer, error)
	onSince      func(ctx context.Context, from uint64, real wire) (page, error)
	sends, reads atomic.Int64
}

func fake(s *Store) *fakeWire {
	f := &fakeWire{wire: s.wire}
	s.wire = f
	return f
}

func (f *fakeWire) set(send func(ctx context.Context, id string, msgs []*nats.Msg, real wire) (uint64, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onSend = send
}

func (f *fakeWire) setRead(read func(ctx context.Context, subjects []string, real wire) (answer, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onRead = read
}

func (f *fakeWire) send(ctx context.Context, id string, msgs []*nats.Msg) (uint64, error) {
	f.sends.Add(1)
	f.mu.Lock()
	send := f.onSend
	f.mu.Unlock()
	if send != nil {
		return send(ctx, id, msgs, f.wire)
	}
	return f.wire.send(ctx, id, msgs)
}

func (f *fakeWire) read(ctx context.Context, subjects []string) (answer, error) {
	f.reads.Add(1)
	f.mu.Lock()
	read := f.onRead
	f.mu.Unlock()
	if read != nil {
		return read(ctx, subjects, f.wire)
	}
	return f.wire.read(ctx, subjects)
}

func (f *fakeWire) setSince(since func(ctx context.Context, from uint64, real wire) (page, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onSince = since
}

func (f *fakeWire) since(ctx context.Context, from uint64) (page, error) {
	f.mu.Lock()
	since := f.onSince
	f.mu.Unlock()
	if since != nil {
		return since(ctx, from, f.wire)
	}
	return f.wire.since(ctx, from)
}
