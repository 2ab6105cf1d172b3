package security

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
)

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// patience bounds every wait for what must come.
const patience = 2 * time.Minute

// quiet is how long a test looks before it says that something does not come. What
// would come is known to take a thousandth of that.
const quiet = 150 * time.Millisecond

var nodeNames = []string{"n1", "n2", "n3"}

// printed returns a configuration of docs/security.md as it stands there.
func printed(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile(pagePath)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- generated: "+name+" -->\n```")
	if !ok {
		t.Fatalf("docs/security.md has no configuration %q", name)
	}
	_, rest, _ = strings.Cut(rest, "\n")
	text, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatalf("the configuration %q does not end", name)
	}
	return text
}

// pagePath is absolute: some tests change the directory.
var pagePath = func() string {
	path, err := filepath.Abs("../../docs/security.md")
	if err != nil {
		panic(err)
	}
	return path
}()

// options is what a server makes of a configuration file, but for its ports. The
// passwords are the users' names.
func options(t *testing.T, text string) *server.Options {
	t.Helper()
	for _, user := range append([]string{"svc-a", "svc-b", "worker", "watch", "audit", "monitor", "look", "ops", "ops-orders", "admin"}, nodeNames...) {
		t.Setenv("QLOCK_"+strings.ToUpper(strings.ReplaceAll(user, "-", "_")), user)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("nats-server does not take it: %v\n%s", err, text)
	}
	opts.Host, opts.Port = "127.0.0.1", -1
	opts.NoSigs, opts.NoLog, opts.NoFastProducerStall = true, true, true
	return opts
}

// run starts a server.
func run(t *testing.T, opts *server.Options) *server.Server {
	t.Helper()
	srv, err := server.NewServer(opts)
	must(t, err)
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	return srv
}

// dial makes a connection as it would be in production: with the user's name and
// its inbox prefix.
func dial(t *testing.T, url, user string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{
		nats.UserInfo(user, user), nats.CustomInboxPrefix("_INBOX." + user),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
	if err != nil {
		t.Fatalf("%s cannot connect: %v", user, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

type world struct {
	t     *testing.T
	nodes []*qlock.Node
	dial  func(user string) *nats.Conn
	url   string
}

// dial2 is dial for those who connect in another way than they should.
func (w *world) dial2(user string, opts ...nats.Option) *nats.Conn {
	return dial(w.t, w.url, user, opts...)
}

// start starts the nodes n1 to n3, each with its own user.
func start(t *testing.T, dial func(user string) *nats.Conn, change ...func(*qlock.NodeConfig)) *world {
	t.Helper()
	w := &world{t: t, dial: dial, nodes: make([]*qlock.Node, len(nodeNames))}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i, name := range nodeNames {
		nc := dial(name)
		cfg := qlock.NodeConfig{
			Cluster: "prod", Name: name, Nodes: nodeNames, StateDir: filepath.Join(dir, name),
			ProbeWait: 20 * time.Millisecond,
		}
		for _, f := range change {
			f(&cfg)
		}
		must(t, qlock.Bootstrap(cfg))
		wg.Go(func() {
			var err error
			if w.nodes[i], err = qlock.StartNode(deadline(t), nc, cfg); err != nil {
				t.Errorf("start %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, n := range w.nodes {
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		must(t, n.WaitReady(deadline(t)))
	}
	return w
}

// locker makes a Locker for a user, who is the client of that name.
func (w *world) locker(user string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	return w.lockerOn(w.dial(user), user, opts...)
}

func (w *world) lockerOn(nc *nats.Conn, client string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	l, err := qlock.New(deadline(w.t), nc, append([]qlock.Option{qlock.WithCluster("prod"), qlock.WithName(client)}, opts...)...)
	must(w.t, err)
	w.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return l
}

// static is the first configuration of the page, with its nodes.
func static(t *testing.T, change ...func(*qlock.NodeConfig)) *world {
	t.Helper()
	srv := run(t, options(t, printed(t, "users")))
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) }, change...)
	w.url = srv.ClientURL()
	return w
}

func deadline(t *testing.T) context.Context { return within(t, patience) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func mustLock(t *testing.T, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.Lock(deadline(t), name)
	if err != nil {
		t.Fatalf("%s: %v", l.Name(), err)
	}
	return k
}

func mustUnlock(t *testing.T, k *qlock.Lock) {
	t.Helper()
	must(t, k.Unlock(t.Context()))
}

// raw speaks the protocol by hand, as a client that means no good would.
type raw struct {
	t  *testing.T
	nc *nats.Conn
}

func (w *world) raw(user string) *raw {
	w.t.Helper()
	return &raw{t: w.t, nc: w.dial(user)}
}

// send publishes, and reports whether the server let it through.
func (r *raw) send(subject, reply string, body any) bool {
	r.t.Helper()
	data, ok := body.([]byte)
	if !ok {
		var err error
		data, err = json.Marshal(body)
		must(r.t, err)
	}
	return r.allowed(`Publish to "`+subject+`"`, func() error {
		return r.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: data})
	})
}

// listen subscribes, and reports whether the server let it.
func (r *raw) listen(subject, queue string, f func(*nats.Msg)) bool {
	r.t.Helper()
	return r.allowed(`Subscription to "`+subject+`"`, func() error {
		sub, err := r.nc.QueueSubscribe(subject, queue, f)
		if err == nil {
			r.t.Cleanup(func() { _ = sub.Unsubscribe() })
		}
		return err
	})
}

// allowed reports whether the server did not complain of what f does. Its
// complaint, if any, comes before its answer to the flush; each is an error of its
// own.
func (r *raw) allowed(violation string, f func() error) bool {
	r.t.Helper()
	before := r.nc.LastError()
	must(r.t, f())
	must(r.t, r.nc.FlushWithContext(deadline(r.t)))
	err := r.nc.LastError()
	return err == before || !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), violation)
}

// next is the next message, which must come.
func next(t *testing.T, from <-chan *nats.Msg) *nats.Msg {
	t.Helper()
	select {
	case m := <-from:
		return m
	case <-time.After(patience):
		t.Fatalf("no message within %v", patience)
		return nil
	}
}

// body is what requests have in common.
type body map[string]any

func (b body) with(key string, value any) body {
	out := body{}
	for k, v := range b {
		out[k] = v
	}
	out[key] = value
	return out
}

// claim is a claim that a Locker made, as those see it who may listen.
type claim struct {
	Instance uuid.UUID `json:"instance"`
	Seq      uint64    `json:"seq"`
	Beat     uint64    `json:"beat"`
	At       int64     `json:"at"`
	Digest   string    `json:"digest"`
	reply    string
}

func (c claim) acquire(beat uint64) body {
	return body{
		"instance": c.Instance, "seq": c.Seq, "beat": beat, "mode": "exclusive", "at": c.At,
		"ttl_ms": 10_000, "digest": c.Digest,
	}
}

// overheard is the claim that f makes: an auditor listens to its acquire.
func (w *world) overheard(subject string, f func()) claim {
	w.t.Helper()
	heard := make(chan *nats.Msg, 1)
	r := w.raw("audit")
	if !r.listen(subject, "", func(m *nats.Msg) {
		select {
		case heard <- m:
		default: // the first is enough
		}
	}) {
		w.t.Fatal("an auditor may not listen")
	}
	f()
	select {
	case m := <-heard:
		c := claim{reply: m.Reply}
		must(w.t, json.Unmarshal(m.Data, &c))
		return c
	case <-time.After(patience):
		w.t.Fatal("nothing was overheard")
		panic("")
	}
}

func (w *world) stats() (s []qlock.NodeStats) {
	for _, n := range w.nodes {
		s = append(s, n.Stats())
	}
	return s
}

// claims is the number of claims at each node.
func (w *world) claims() string {
	var out []int
	for _, s := range w.stats() {
		out = append(out, s.Claims)
	}
	return fmt.Sprint(out)
}
