package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/testworld"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests run gateways, Lockers and nodes on a real nats-server in virtual time
// (testing/synctest). Requests are calls of ServeHTTP, so a wait can be measured to the
// microsecond, and nothing sleeps in earnest. Every answer of every test is held against
// the OpenAPI document.

var bubble = testworld.Bubble

func settle() { synctest.Wait() }

type world struct {
	t     *testing.T
	user  []nats.Option // of nodes and gateways, if the server has users
	srv   *server.Server
	nodes []*qlock.Node
}

func newWorld(t *testing.T, n int, users ...*server.User) *world {
	t.Helper()
	return newWorldOn(t, n, nil, users...)
}

// newWorldOn lets the options of the server be changed.
func newWorldOn(t *testing.T, n int, change func(*server.Options), users ...*server.User) *world {
	t.Helper()
	w := &world{t: t}
	w.srv = testworld.StartServer(t, func(o *server.Options) {
		if change != nil {
			change(o)
		}
		if users != nil { // the first may do everything
			o.Users = users
			w.user = []nats.Option{nats.UserInfo(users[0].Username, users[0].Password)}
		}
	})
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	dir := t.TempDir()
	w.nodes = make([]*qlock.Node, n)
	var all sync.WaitGroup
	for i, name := range names {
		cfg := qlock.NodeConfig{Name: name, Nodes: names, StateDir: filepath.Join(dir, name), MaxLease: 30 * time.Second, NoService: true}
		if err := qlock.Bootstrap(cfg); err != nil {
			t.Fatal(err)
		}
		nc := w.connect()
		all.Go(func() {
			node, err := qlock.StartNode(t.Context(), nc.Conn, cfg)
			if err != nil {
				t.Errorf("start %s: %v", name, err)
				return
			}
			w.nodes[i] = node
		})
	}
	all.Wait()
	for _, n := range w.nodes {
		if n == nil {
			t.FailNow()
		}
		if err := n.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
	}
	return w
}

type link = testworld.Link

func (w *world) connect(opts ...nats.Option) *link {
	w.t.Helper()
	return testworld.Connect(w.t, w.srv, append(slices.Clone(w.user), opts...)...)
}

// gateway starts one on a connection of its own, and closes it when the test ends.
func (w *world) gateway(change ...func(*Config)) *Gateway {
	w.t.Helper()
	g, _ := w.gatewayOn(change...)
	return g
}

func (w *world) gatewayOn(change ...func(*Config)) (*Gateway, *link) {
	w.t.Helper()
	nc := w.connect()
	cfg := Config{Conn: nc.Conn, Client: "gateway"}
	for _, f := range change {
		f(&cfg)
	}
	g, err := New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := g.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
	})
	return g, nc
}

func (w *world) locker(name string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	l, err := qlock.New(w.t.Context(), w.connect().Conn, append([]qlock.Option{qlock.WithName(name)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// noClaims checks that no node knows of any claim any more.
func (w *world) noClaims() {
	w.t.Helper()
	settle()
	for i, n := range w.nodes {
		if c := n.Stats().Claims; c != 0 {
			w.t.Errorf("n%d still has %d claims", i+1, c)
		}
	}
}

// reply is an answer, read.
type reply struct {
	status int
	header http.Header
	lease  Lease
	fault  Problem
	body   []byte
}

func (r *reply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// ask sends a request and waits for the answer. header has pairs of name and value.
func ask(t testing.TB, g http.Handler, method, path, body string, header ...string) *reply {
	t.Helper()
	return askIn(t, context.Background(), g, method, path, body, header...)
}

func askIn(t testing.TB, ctx context.Context, g http.Handler, method, path, body string, header ...string) *reply {
	t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(ctx, method, "http://localhost"+path, in)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	out := &reply{status: w.Code, header: w.Header(), body: w.Body.Bytes()}
	check(t, r, out)
	switch w.Header().Get("Content-Type") {
	case "application/json":
		_ = json.Unmarshal(out.body, &out.lease)
	case "application/problem+json":
		if err := json.Unmarshal(out.body, &out.fault); err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
	}
	return out
}

var document = sync.OnceValues(func() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI())
	if err == nil {
		err = doc.Validate(context.Background())
	}
	return doc, err
})

var matcher = sync.OnceValue(func() *http.ServeMux {
	mux := http.NewServeMux()
	for i := range operations {
		mux.Handle(operations[i].method+" "+operations[i].path, http.NotFoundHandler())
	}
	return mux
})

// check holds an answer against the OpenAPI document.
func check(t testing.TB, r *http.Request, a *reply) {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatalf("the OpenAPI document: %v", err)
	}
	_, pattern := matcher().Handler(r)
	method, path, ok := strings.Cut(pattern, " ")
	if a.status >= 400 {
		checkBody(t, r, a, doc.Components.Schemas["Problem"].Value)
	}
	if !ok {
		return
	}
	op := doc.Paths.Value(path).GetOperation(method)
	response := op.Responses.Status(a.status)
	if response == nil {
		t.Errorf("%s %s: the document has no answer %d: %s", r.Method, r.URL, a.status, a.body)
		return
	}
	kind := a.header.Get("Content-Type")
	if len(response.Value.Content) == 0 {
		if len(a.body) > 0 {
			t.Errorf("%s %s: %d with a body: %s", r.Method, r.URL, a.status, a.body)
		}
		return
	}
	content := response.Value.Content.Get(kind)
	if content == nil {
		t.Errorf("%s %s: %d as %q", r.Method, r.URL, a.status, kind)
		return
	}
	if kind != "application/octet-stream" {
		checkBody(t, r, a, content.Schema.Value)
	}
}

func checkBody(t testing.TB, r *http.Request, a *reply, schema *openapi3.Schema) {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Errorf("%s %s: %d: %v: %q", r.Method, r.URL, a.status, err, a.body)
		return
	}
	if err := schema.VisitJSON(v, openapi3.MultiErrors()); err != nil {
		t.Errorf("%s %s: %d: %v: %s", r.Method, r.URL, a.status, err, a.body)
	}
}

// want fails the test unless the answer has the status, and of a problem the kind.
func (r *reply) want(t testing.TB, status int, kind string) *reply {
	t.Helper()
	if r.status != status || r.fault.Kind() != kind {
		t.Fatalf("want %d %s, got %s", status, kind, r)
	}
	return r
}

// later sends a request from another goroutine.
func later(t testing.TB, g http.Handler, method, path, body string, header ...string) chan *reply {
	c := make(chan *reply, 1)
	go func() { c <- ask(t, g, method, path, body, header...) }()
	settle()
	return c
}
