package qlocktest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/crash"
	"github.com/qlock/qlock/internal/testproxy"
)

// DefaultLease is the lease of a cluster's locks, unless WithLease sets another. A lock
// whose holder is gone is free after this time. A node that crashed and was restarted
// votes after this time and 16 % more.
const DefaultLease = time.Second

// patience is the longest wait for anything that must happen.
const patience = 2 * time.Minute

// Option changes a cluster before it starts.
type Option func(*config)

type config struct {
	lease     time.Duration
	name      string
	authority *Authority
	links     bool
	change    []func(i int, c *embedded.Config)
}

// WithLease sets the lease. It is the longest that the nodes grant, and the lease of a
// Locker without qlock.WithLease, up to qlock.DefaultLease. The minimum is 10 ms. On a busy
// machine, locks with a lease far below a second are sometimes lost.
func WithLease(d time.Duration) Option { return func(c *config) { c.lease = d } }

// WithName sets the name of the cluster. Its Lockers use the same name. The default is
// qlock.DefaultCluster.
func WithName(cluster string) Option { return func(c *config) { c.name = cluster } }

// WithTLS makes the servers use TLS, for clients and for links, with certificates of a.
// Connect and Locker trust them. A program under test needs a.Config, or the files that
// a.WriteFiles writes.
func WithTLS(a *Authority) Option { return func(c *config) { c.authority = a } }

// WithLinks puts a proxy on each link between two servers. Cut and Isolate need it. It
// makes messages between servers slower.
func WithLinks() Option { return func(c *config) { c.links = true } }

// WithConfig changes the configuration of the i-th server, counted from 0, before it
// starts: its users, the limits of its node, or any option of nats-server. It is called
// for all servers in their order. It must not change the names of the cluster and of the
// nodes, nor the routes.
func WithConfig(change func(i int, c *embedded.Config)) Option {
	return func(c *config) { c.change = append(c.change, change) }
}

// Cluster is a cluster of nodes, each with a nats-server of its own. The nodes are named
// n1, n2 and so on. Its methods are safe for concurrent use. Methods with a t may end that
// test, so call them from the goroutine that runs it.
type Cluster struct {
	cluster *embedded.Cluster
	cfg     config
	names   []string
	urls    []string // of the servers, also while they are down
	log     *record
	tls     *tls.Config // of all servers; nil: no TLS

	// The key is a pair of servers. The first one dials the proxy to reach the second. nil without
	// WithLinks.
	links map[[2]int]*testproxy.Proxy

	mu      sync.Mutex      // guards what follows
	cut     map[[2]int]bool // by pair
	clients int
}

// StartCluster starts a cluster of n nodes. When it returns, all nodes vote and are
// connected to each other. The cluster is stopped when the test ends. If the test failed,
// the log of servers, nodes and Lockers is then written to t.Log.
//
// One node is enough for a test in which no node fails. Three nodes are the smallest
// cluster that tolerates the failure of one.
func StartCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := &Cluster{cfg: config{lease: DefaultLease}, log: &record{start: time.Now()}, cut: map[[2]int]bool{}}
	for _, o := range opts {
		o(&c.cfg)
	}
	if a := c.cfg.authority; a != nil {
		c.tls = a.Config(t, "qlocktest")
	}
	var err error
	if c.cfg.links {
		c.links, err = newLinks(n)
	}
	t.Cleanup(func() { // also if the start failed
		t.Helper()
		if c.cluster != nil {
			if err := c.cluster.Close(); err != nil {
				t.Errorf("qlocktest: stopping the cluster: %v", err)
			}
		}
		for _, p := range c.links {
			if err := p.Close(); err != nil {
				t.Errorf("qlocktest: stopping the cluster: %v", err)
			}
		}
		if t.Failed() {
			t.Logf("qlocktest: the log of the cluster and its clients:\n%s", c.log)
		}
	})
	ctx, cancel := withPatience(t)
	defer cancel()
	if err == nil {
		c.cluster, err = embedded.StartCluster(ctx, n, c.configure)
	}
	if err != nil {
		t.Fatalf("qlocktest: StartCluster: %v", err)
	}
	for i, s := range c.cluster.Servers() {
		if u, err := url.Parse(s.RouteURL()); err == nil {
			c.target(i, u.Host)
		}
		c.names = append(c.names, s.Name())
		c.urls = append(c.urls, s.ClientURL())
	}
	return c
}

func (c *Cluster) configure(i int, s *embedded.Config) {
	s.Logger = c.log.logger("server", s.Node.Name)
	s.Node.Cluster, s.Node.MaxLease = c.cfg.name, c.cfg.lease
	s.Node.ProbeWait = min(s.Node.ProbeWait, c.cfg.lease/4)
	if c.tls != nil {
		s.TLS, s.RouteTLS = c.tls, c.tls
	}
	if c.links != nil {
		c.link(i, s)
	}
	for _, f := range c.cfg.change {
		f(i, s)
	}
	patient(s)
	if c.links != nil {
		noWayAround(s)
	}
}

// patient gives a handshake as long as all else: on a busy machine one may take longer than the
// two or five seconds that a server allows.
func patient(s *embedded.Config) {
	change := s.Options
	s.Options = func(o *server.Options) {
		o.AuthTimeout, o.TLSTimeout, o.Cluster.TLSTimeout = patience.Seconds(), patience.Seconds(), patience.Seconds()
		if change != nil {
			change(o)
		}
	}
}

// Names returns the names of the nodes, n1 first.
func (c *Cluster) Names() []string { return slices.Clone(c.names) }

// Lease returns the lease that WithLease set, or DefaultLease.
func (c *Cluster) Lease() time.Duration { return c.cfg.lease }

// URL lists the addresses of all servers, as nats.Connect and the command's --server
// expect them, for a program that connects by itself. It does not change when servers are
// stopped and restarted.
func (c *Cluster) URL() string { return strings.Join(c.urls, ",") }

// Servers returns the servers in the order of their names, for what this package does not
// wrap: connections inside the process, a node's statistics, the nats-server.
func (c *Cluster) Servers() []*embedded.Server { return slices.Clone(c.cluster.Servers()) }

// Server returns the server with that name: see Servers.
func (c *Cluster) Server(t testing.TB, name string) *embedded.Server {
	t.Helper()
	return c.cluster.Servers()[c.index(t, name)]
}

// index returns the index of the server called name. The test ends if there is none.
func (c *Cluster) index(t testing.TB, name string) int {
	t.Helper()
	i := slices.Index(c.names, name)
	if i < 0 {
		t.Fatalf("qlocktest: the cluster has no node %q: its nodes are %s", name, strings.Join(c.names, ", "))
	}
	return i
}

// withPatience returns a context for a wait that must end before the test's time is over.
// It is not derived from the test's context, so that it can also be used in functions that
// are passed to t.Cleanup.
func withPatience(t testing.TB) (context.Context, context.CancelFunc) {
	end := time.Now().Add(patience)
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		// End before the test is killed: the message that says what is missing is more useful than
		// stacks of goroutines.
		if limit, ok := d.Deadline(); ok && limit.Add(-time.Second).Before(end) {
			end = limit.Add(-time.Second)
		}
	}
	return context.WithDeadline(context.Background(), end)
}

// each calls f with the servers of these names concurrently, and waits for all calls.
func (c *Cluster) each(t testing.TB, what string, names []string, f func(*embedded.Server) error) {
	t.Helper()
	if len(names) == 0 {
		t.Fatalf("qlocktest: %s: name the nodes, of %s", what, strings.Join(c.names, ", "))
	}
	servers := make([]*embedded.Server, len(names))
	for i, name := range names {
		servers[i] = c.Server(t, name)
	}
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, s := range servers {
		all.Go(func() { errs[i] = f(s) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("qlocktest: %s %s: %v", what, names[i], err)
		}
	}
	if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.FailNow()
	}
}

// Crash stops servers and their nodes as if their processes were killed: the nodes save
// nothing, and the connections of their clients break.
func (c *Cluster) Crash(t testing.TB, names ...string) {
	t.Helper()
	c.each(t, "Crash", names, func(s *embedded.Server) error { return crash.Server(s) })
}

// Stop stops servers and their nodes cleanly: the nodes save their votes and queues.
func (c *Cluster) Stop(t testing.TB, names ...string) {
	t.Helper()
	c.each(t, "Stop", names, (*embedded.Server).Close)
}

// Restart starts servers again that were stopped or crashed, with their addresses and
// state directories. When it returns, all running servers are connected to each other,
// except by links that are cut. A node that was stopped cleanly votes at once. A node that
// crashed does not vote until all votes that it may have given have expired: WaitVotes
// waits for that.
func (c *Cluster) Restart(t testing.TB, names ...string) {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	c.each(t, "Restart", names, func(s *embedded.Server) error { return s.Restart(ctx) })
	c.wait(ctx, t, "Restart", "answer", answered, everybody)
}

// WaitVotes waits until all running nodes vote, and can be reached from each running
// server, except by links that are cut.
func (c *Cluster) WaitVotes(t testing.TB) {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	c.wait(ctx, t, "WaitVotes", "vote", (*qlock.Member).Votes, everybody)
}

// WaitQuorum waits until clients of each running server can acquire locks: the server
// must reach as many voting nodes as an exclusive lock needs. It does not wait for a server
// that cannot reach so many because its links are cut.
func (c *Cluster) WaitQuorum(t testing.TB) {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	c.wait(ctx, t, "WaitQuorum", "vote", (*qlock.Member).Votes, aQuorum)
}

func answered(m *qlock.Member) bool { return m.Answered }

type howMany bool

const (
	everybody howMany = true
	aQuorum   howMany = false
)

// wait asks all nodes through each running server, until enough of them are in the state
// that good checks.
func (c *Cluster) wait(ctx context.Context, t testing.TB, what, state string, good func(*qlock.Member) bool, many howMany) {
	t.Helper()
	need, asked, running := len(c.names)/2+1, 0, 0
	for i, s := range c.cluster.Servers() {
		if s.Node() == nil {
			continue
		}
		running++
		want := c.reaches(i)
		if many == aQuorum {
			if want < need {
				continue
			}
			want = need
		}
		asked++
		if got, err := c.ask(ctx, s, good, want); err != nil {
			t.Fatalf("qlocktest: %s: %s reaches %d of %d nodes that %s: %v", what, c.names[i], got, want, state, err)
		}
	}
	if asked == 0 {
		t.Fatalf("qlocktest: %s: %d of %d nodes run, and no server reaches %d of them", what, running, len(c.names), need)
	}
}

// reaches returns how many running nodes the server i has links to, including its own node.
func (c *Cluster) reaches(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for j, s := range c.cluster.Servers() {
		if s.Node() != nil && !c.cut[pair(i, j)] {
			n++
		}
	}
	return n
}

// ask asks the nodes through the server s until want answers are good. It returns how many
// were good last.
func (c *Cluster) ask(ctx context.Context, s *embedded.Server, good func(*qlock.Member) bool, want int) (int, error) {
	nc := s.Conn()
	if nc == nil {
		return 0, fmt.Errorf("%s was stopped meanwhile", s.Name())
	}
	name := cmp.Or(c.cfg.name, qlock.DefaultCluster)
	// While a node is down, each query takes all the time that it may take.
	for limit := 100 * time.Millisecond; ; limit = min(2*limit, time.Second) {
		got := 0
		short, cancel := context.WithTimeout(ctx, limit)
		m, err := qlock.QueryMembers(short, nc, qlock.WithCluster(name), qlock.WithName(s.Name()))
		cancel()
		if err == nil {
			for i := range m.Nodes {
				if good(&m.Nodes[i]) {
					got++
				}
			}
			if got >= want {
				return got, nil
			}
			err = errors.New(m.String())
		}
		if errors.Is(err, qlock.ErrClosed) || errors.Is(err, qlock.ErrRefused) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// CrashNode stops a node that the test started with qlock.StartNode, as if its process
// were killed: it saves nothing, and after its next start it does not vote until all votes
// that it may have given have expired. Its connection stays open.
func CrashNode(t testing.TB, n *qlock.Node) {
	t.Helper()
	if err := crash.Node(n); err != nil {
		t.Fatalf("qlocktest: CrashNode %s: %v", n.Name(), err)
	}
}

// CrashServer is like CrashNode for a server that the test started with embedded.Start.
// Server.Restart starts it again.
func CrashServer(t testing.TB, s *embedded.Server) {
	t.Helper()
	if err := crash.Server(s); err != nil {
		t.Fatalf("qlocktest: CrashServer %s: %v", s.Name(), err)
	}
}
