package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/store"
)

var storeCrash = flag.Bool("gateway.crash", false, "also run TestStoreCrash, which waits for elections of JetStream")

// The tests of this file run in real time: a server of a real cluster is killed, the one that the
// gateway is connected to, under an HTTP server with its connections. They bound nothing by the
// clock but what must come at all.

const crashPatience = 2 * time.Minute

// crashWorld is a cluster of three servers, a gateway, and its HTTP server.
type crashWorld struct {
	t       *testing.T
	cluster *embedded.Cluster
	nc      *nats.Conn
	url     string
	client  *http.Client
	belief  *belief
}

func newCrashWorld(t *testing.T, change ...func(i int, c *embedded.Config)) *crashWorld {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), crashPatience)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() }) // one of them has crashed
	w := &crashWorld{t: t, cluster: cluster, client: &http.Client{Timeout: crashPatience}, belief: newBelief(t)}
	t.Cleanup(w.client.CloseIdleConnections)
	return w
}

// serve starts the gateway, on a connection to the first of these servers.
func (w *crashWorld) serve(servers ...*embedded.Server) {
	w.t.Helper()
	t := w.t
	ctx, cancel := context.WithTimeout(t.Context(), crashPatience)
	defer cancel()
	w.nc = w.connect(servers...)
	g, err := New(ctx, Config{Conn: w.nc, Client: "gateway", Drain: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, served := NewServer(g), make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		_ = srv.Close() // nobody asks any more
		<-served
	})
	w.url = "http://" + listener.Addr().String()
}

// connect connects to the first server, and to the next ones when that is gone.
func (w *crashWorld) connect(servers ...*embedded.Server) *nats.Conn {
	w.t.Helper()
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.ClientURL())
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.Timeout(crashPatience), nats.DontRandomize(), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), nats.MaxReconnects(-1),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // it would print that the server has gone
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

// ask sends a request over the network. Its answer is held against the OpenAPI document, and must
// be an answer to this request.
func (w *crashWorld) ask(method, path, body string, header ...string) *reply {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	id := uuid.NewString()
	r.Header.Set("X-Request-Id", id)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := w.client.Do(r)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, path, err)
		return &reply{}
	}
	text, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil {
		w.t.Errorf("%s %s: %v", method, path, err)
	}
	out := &reply{status: response.StatusCode, header: response.Header, body: text}
	check(w.t, r, out)
	named := struct {
		Request string `json:"request"`
	}{id}
	switch out.header.Get("Content-Type") {
	case "application/json":
		_ = json.Unmarshal(text, &out.lease)
		_ = json.Unmarshal(text, &named)
	case "application/problem+json":
		_ = json.Unmarshal(text, &out.fault)
		_ = json.Unmarshal(text, &named)
	}
	if named.Request != id || out.header.Get("X-Request-Id") != id {
		w.t.Errorf("%s %s: not an answer to this request: %s", method, path, out)
	}
	return out
}

// hears is what the caller of a lease believes after an answer to a request sent at that moment.
func (w *crashWorld) hears(sent time.Time, r *reply) {
	l := r.lease
	w.belief.believes(l.Encoded, l.ID, l.Token, sent.Add(time.Duration(l.HandledMS+l.ExpiresInMS)*time.Millisecond))
}

// held asks until the lock is held. Of three servers one may be gone, so the lock is granted,
// and nothing but that it still waits may be heard on the way.
func (w *crashWorld) held(id, name string) *reply {
	w.t.Helper()
	for end := time.Now().Add(crashPatience); time.Now().Before(end); {
		sent := time.Now()
		r := w.ask("PUT", "/v1/leases/"+id, `{"name":"`+name+`","wait":"2m"}`, "Prefer", "wait=55")
		switch {
		case r.lease.State == "held" && (r.status == 200 || r.status == 201):
			w.hears(sent, r)
			return r
		case r.status != 202:
			w.t.Errorf("acquire %s: %s", name, r)
			return r
		}
	}
	w.t.Errorf("%s was not granted within %v", name, crashPatience)
	return &reply{}
}

// renewed renews a lease, which must still be the hold with that token.
func (w *crashWorld) renewed(l Lease) {
	w.t.Helper()
	sent := time.Now()
	r := w.ask("POST", "/v1/leases/"+l.ID+"/renew", "")
	if r.status != 200 || r.lease.Token != l.Token {
		w.t.Errorf("renew %s: want token %d, got %s", l.Encoded, l.Token, r)
		return
	}
	w.hears(sent, r)
}

// release ends a lease. The caller stops to believe in it first.
func (w *crashWorld) release(l Lease) {
	w.t.Helper()
	w.belief.stops(l.Encoded, l.ID)
	if r := w.ask("DELETE", "/v1/leases/"+l.ID, ""); r.status != 204 {
		w.t.Errorf("release %s: %s", l.Encoded, r)
	}
}

// crash kills the server that the gateway is connected to, and returns when it has another.
func (w *crashWorld) crash() {
	w.t.Helper()
	name := w.nc.ConnectedServerName()
	if err := w.cluster.Crash(name); err != nil {
		w.t.Error(err)
	}
	for end := time.Now().Add(crashPatience); !w.nc.IsConnected() || w.nc.ConnectedServerName() == name; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Errorf("the gateway has not reconnected within %v", crashPatience)
			return
		}
	}
}

// steps counts what callers have done, so that a test can wait for more of it.
type steps struct {
	mu   sync.Mutex
	more *sync.Cond
	by   map[string]int
	stop bool
}

func newSteps() *steps {
	s := &steps{by: map[string]int{}}
	s.more = sync.NewCond(&s.mu)
	return s
}

// done counts a step, and reports whether there is to be another.
func (s *steps) done(who string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.by[who]++
	s.more.Broadcast()
	return !s.stop
}

// wait waits until each has made n more steps.
func (s *steps) wait(n int, who ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range who {
		for from := s.by[one]; s.by[one] < from+n; {
			s.more.Wait()
		}
	}
}

func (s *steps) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = true
}

// One of three servers is killed, the one that the gateway is connected to, while locks are held,
// waited for and taken over HTTP. Every hold survives with its token, nobody believes at the same
// time as another, and each request that is under way is answered by what it asked for.
func TestServerCrash(t *testing.T) {
	w := newCrashWorld(t)
	w.serve(w.cluster.Servers()...)
	const holds, takers = 3, 4
	var all sync.WaitGroup
	defer all.Wait()
	did := newSteps()
	defer did.end()
	var who []string
	var free []chan struct{} // closed when a holder is to release
	for i := range holds {
		name := fmt.Sprintf("held%d", i)
		l := w.held(uuid.NewString(), name).lease
		last := make(chan struct{})
		who, free = append(who, name), append(free, last)
		all.Go(func() {
			for w.renewed(l); did.done(name); w.renewed(l) {
				select {
				case <-last:
					w.release(l)
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	waiters := make([]chan Lease, holds)
	for i := range waiters {
		waiters[i] = make(chan Lease, 1)
		all.Go(func() { waiters[i] <- w.held(uuid.NewString(), fmt.Sprintf("held%d", i)).lease })
	}
	for i := range takers {
		taker := fmt.Sprintf("taker%d", i)
		who = append(who, taker)
		all.Go(func() {
			for ok := true; ok; ok = did.done(taker) {
				l := w.held(uuid.NewString(), fmt.Sprintf("taken%d", i%2)).lease
				w.renewed(l)
				w.release(l)
			}
		})
	}
	did.wait(3, who...)
	w.crash()
	all.Go(func() {
		nodes := read[NodeList](t, w.ask("GET", "/v1/nodes", ""))
		if nodes.Voting != 2 || len(nodes.Nodes) != 3 || slices.ContainsFunc(nodes.Nodes, func(n Node) bool { return n.Votes == (n.Name == "n1") }) {
			t.Errorf("%+v", nodes)
		}
	})
	did.wait(8, who...)
	for i, last := range free {
		select {
		case l := <-waiters[i]:
			t.Errorf("%s was granted while another held it: %+v", l.Encoded, l)
			continue
		default:
		}
		close(last)
		w.release(<-waiters[i])
	}
}

// The server that is killed also leads the stream of a bucket, while callers write under their
// leases. A write that was acknowledged is stored once, at its revision; one that was answered with
// an error that says that nothing was done is not stored; and of one with an unknown outcome, a
// repetition with its once, or a read under the lease, tells.
func TestStoreCrash(t *testing.T) {
	if !*storeCrash {
		t.Skip("waits for elections: run it with -gateway.crash")
	}
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	w := newCrashWorld(t, func(i int, c *embedded.Config) {
		c.Options = func(o *server.Options) { o.JetStream, o.StoreDir = true, dirs[i] }
		if i == 0 { // JetStream does not start in a cluster without any route
			c.Routes = []string{fmt.Sprintf("nats-route://127.0.0.1:%d", c.RoutePort)}
		}
	})
	js, err := jetstream.New(w.connect(w.cluster.Servers()...))
	if err != nil {
		t.Fatal(err)
	}
	eventually := func(what string, ok func(ctx context.Context) bool) {
		t.Helper()
		for end := time.Now().Add(crashPatience); ; time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			done := ok(ctx)
			cancel()
			if done {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not within %v: %s", crashPatience, what)
			}
		}
	}
	eventually("the bucket is made", func(ctx context.Context) bool {
		_, err := store.Create(ctx, js, jetstream.KeyValueConfig{Bucket: "orders", Replicas: 3, History: 64, Storage: jetstream.MemoryStorage})
		return err == nil || errors.Is(err, jetstream.ErrBucketExists)
	})
	// The leader at this moment. If it is another one when a server is killed, that is a run of
	// another kind, in which the same must hold.
	leader := ""
	eventually("the stream has a leader", func(ctx context.Context) bool {
		s, err := js.Stream(ctx, "KV_orders")
		if err == nil && s.CachedInfo().Cluster != nil {
			leader = s.CachedInfo().Cluster.Leader
		}
		return leader != ""
	})
	servers := slices.Clone(w.cluster.Servers())
	first := slices.IndexFunc(servers, func(s *embedded.Server) bool { return s.Name() == leader })
	servers[0], servers[first] = servers[first], servers[0]
	w.serve(servers...)

	const at, writers, adders, perKey = "/v1/stores/orders/", 4, 3, 50 // the bucket remembers 64 of a key
	type written struct {
		value    string
		revision uint64
	}
	var all sync.WaitGroup
	did := newSteps()
	var who []string
	acked, refused, made := make([][]written, writers), make([][]string, writers), make([]int, writers)
	for i := range writers {
		me := fmt.Sprintf("writer%d", i)
		who = append(who, me)
		all.Go(func() {
			l := w.held(uuid.NewString(), me).lease
			for ok := true; ok; ok = did.done(me) {
				made[i]++
				key, value := fmt.Sprintf("%skeys/%s.%d", at, me, made[i]/perKey), fmt.Sprint(made[i])
				r := w.ask("PUT", key, value, "Qlock-Lease", l.ID)
				stored := r.status == 200
				revision := r.header.Get("Etag")
				for kind := r.fault.Kind(); kind == "unknown-outcome"; {
					// A read under a lease settles what was before it.
					switch r := w.ask("GET", key, "", "Qlock-Lease", l.ID); {
					case r.status == 200 || r.fault.Kind() == "no-key":
						kind, stored, revision = "", string(r.body) == value, r.header.Get("Etag")
					case r.status == 410:
						l = w.held(uuid.NewString(), me).lease
					case r.fault.Kind() != "store-unreachable":
						t.Errorf("%s: %s", me, r)
						kind = ""
					}
				}
				switch kind := r.fault.Kind(); {
				case stored:
					n, err := strconv.ParseUint(strings.Trim(revision, `"`), 10, 64)
					if err != nil {
						t.Errorf("%s: %v", me, err)
					}
					acked[i] = append(acked[i], written{value, n})
				case kind == "unknown-outcome" || kind == "store-unreachable" || kind == "gone":
					refused[i] = append(refused[i], value)
				default:
					t.Errorf("%s: %s", me, r)
				}
				if w.ask("POST", "/v1/leases/"+l.ID+"/renew", "").status == 410 {
					l = w.held(uuid.NewString(), me).lease
				}
				time.Sleep(20 * time.Millisecond)
			}
			w.release(l)
		})
	}
	sums := make([]int, adders)
	for i := range adders {
		me := fmt.Sprintf("adder%d", i)
		who = append(who, me)
		all.Go(func() {
			for ok := true; ok; ok = did.done(me) {
				once := uuid.NewString()
				for again := true; again; {
					// Lock, change and unlock in one request, repeated until it is known to be done.
					r := w.ask("POST", at+"transactions", `{"once":"`+once+`","lock":{"name":"sum","wait":"30s"},"ops":[{"op":"add","key":"sum"}]}`)
					switch r.fault.Kind() {
					case "":
						sums[i]++
						again = false
					case "unknown-outcome", "store-unreachable", "held", "gone":
					default:
						t.Errorf("%s: %s", me, r)
						again = false
					}
				}
			}
		})
	}
	did.wait(5, who...)
	w.crash()
	did.wait(5, who...)
	did.end()
	all.Wait()

	kv, err := js.KeyValue(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for i := range writers {
		found := map[string][]uint64{}
		for n := range made[i]/perKey + 1 {
			var entries []jetstream.KeyValueEntry
			eventually("the bucket is read", func(ctx context.Context) bool {
				var err error
				entries, err = kv.History(ctx, fmt.Sprintf("writer%d.%d", i, n))
				return err == nil
			})
			for _, e := range entries {
				found[string(e.Value())] = append(found[string(e.Value())], e.Revision())
			}
		}
		for _, a := range acked[i] {
			if r := found[a.value]; len(r) != 1 || r[0] != a.revision {
				t.Errorf("writer%d: write %s was acknowledged with the revision %d, and is stored as %d", i, a.value, a.revision, r)
			}
		}
		for _, v := range refused[i] {
			if r := found[v]; len(r) != 0 {
				t.Errorf("writer%d: write %s was not done, and is stored as %d", i, v, r)
			}
		}
		unknown += len(refused[i])
	}
	want := sum(sums)
	if got := w.ask("GET", at+"keys/sum", ""); string(got.body) != fmt.Sprint(want) {
		t.Errorf("%d sums were acknowledged, and there are %s", want, got.body)
	}
	t.Logf("%s was killed, %s led; %d writes, %d not done, %d sums", servers[0].Name(), leader, sum(made), unknown, want)
}

func sum(list []int) (n int) {
	for _, x := range list {
		n += x
	}
	return n
}
