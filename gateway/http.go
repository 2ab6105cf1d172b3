package gateway

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// operation is one thing that callers can do. The routes, the NATS door and the OpenAPI
// document are all made from the table of operations.
type operation struct {
	id, method, path string
	verb             string // at the NATS door; empty: not there
	summary          string
	params           []parameter
	body             any // the zero value of what the body is; nil: no body
	answers          []answer
	problems         []string // kinds, beside those that every operation has
	serve            func(g *Gateway, c *call, in *input) (*output, *Problem)
}

type parameter struct {
	name, in, doc string
	integer       bool
	required      bool
}

type answer struct {
	status int
	doc    string
	body   any // the zero value of its type; nil: none
}

// input is a request as both doors give it.
type input struct {
	path   func(string) string
	query  url.Values
	header http.Header
	body   []byte
}

// output is an answer for both doors.
type output struct {
	status int
	body   any
	raw    []byte // in place of body: a value; not nil
	etag   string
	header map[string]string

	location string
	private  bool // no cache may keep it
}

func (o *output) set(key, value string) *output {
	if o.header == nil {
		o.header = map[string]string{}
	}
	o.header[key] = value
	return o
}

const (
	docLeaseID = "the lease's id"
	docName    = "the name of the lock, percent-encoded; slashes are encoded too"
)

var (
	paramPrefer  = parameter{name: "Prefer", in: "header", doc: "wait=30: the request may wait for 30 seconds (RFC 7240); 55 at most"}
	paramMatch   = parameter{name: "If-None-Match", in: "header", doc: "the ETag of an earlier answer: 304 if nothing has changed since. With Prefer: wait= the request waits for a change"}
	paramName    = parameter{name: "name", in: "path", doc: docName, required: true}
	paramID      = parameter{name: "id", in: "path", doc: docLeaseID, required: true}
	paramQName   = parameter{name: "name", in: "query", doc: "the name of the lock"}
	paramQEnc    = parameter{name: "encoded", in: "query", doc: "the name as it stands in NATS subjects, in place of name"}
	paramQLease  = parameter{name: "lease", in: "query", doc: docLeaseID}
	paramQToken  = parameter{name: "token", in: "query", doc: "the fencing token of the hold, in place of the lease's id", integer: true}
	paramQPatter = parameter{name: "pattern", in: "query", doc: "as NATS selects subjects: orders.> or *.42; default: all"}
	paramKey     = parameter{name: "Idempotency-Key", in: "header", doc: "a UUID, which becomes the lease's id: the request can be repeated then, as PUT /v1/leases/{id} can"}
)

var acquired = []answer{
	{200, "held; the lease was there already", Lease{}},
	{201, "held; this request made the lease", Lease{}},
	{202, "waiting; the place in the queue is kept", Lease{}},
}

var released = []answer{
	{202, "the gateway that has the lease does not answer: the lease ends by itself if nobody renews it", nil},
	{204, "released", nil},
}

func released204(p *Problem) (*output, *Problem) {
	switch {
	case p == nil:
		return &output{status: 204}, nil
	case p.Kind() == "unreachable":
		return &output{status: 202}, nil
	}
	return nil, p
}

// views are the problems of what callers look at.
var views = []string{"refused", "no-quorum", "unreachable", "draining"}

func seenAs(doc string, body any) []answer {
	return []answer{{200, doc, body}, {304, "nothing has changed since the ETag that was given", nil}}
}

var operations = slices.Concat(lockOperations, storeOperations)

var lockOperations = []operation{
	acquireOperation("acquireByID", "PUT", "/v1/leases/{id}", "acquire", inBody,
		"Acquire a lock under an id of the caller's. Repeating the request is safe: it never acquires the lock a second time.",
		parameter{name: "id", in: "path", doc: "a UUID of the caller's", required: true}),
	acquireOperation("acquire", "POST", "/v1/locks/{name}", "", inPath, "Acquire a lock. The gateway makes the lease's id.", paramKey),
	acquireOperation("acquireByBody", "POST", "/v1/leases", "", inBody, "Acquire a lock whose name stands in the body: any name can be written there.", paramKey),
	{
		id: "poll", method: "GET", path: "/v1/leases/{id}", verb: "poll",
		summary:  "Tell how a lease stands, or wait until it is granted or over. This does not renew it.",
		params:   []parameter{paramID, paramPrefer, paramMatch},
		answers:  []answer{{200, "held or waiting", Lease{}}, {304, "nothing has changed since the ETag that was given", nil}},
		problems: []string{"held", "gone", "forbidden", "refused", "no-quorum", "unreachable", "unknown-lease"},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			known, _ := strconv.Atoi(strings.Trim(in.header.Get("If-None-Match"), `"`))
			a, p := g.poll(c, in.path("id"), known)
			if p != nil {
				return nil, p
			}
			out := leaseOutput(200, a)
			if known > 0 && known == a.revision && a.DrainingInMS == 0 && !a.Moved {
				out.status, out.body = 304, nil
			}
			return out, nil
		},
	},
	{
		id: "renew", method: "POST", path: "/v1/leases/{id}/renew", verb: "renew",
		summary: "Renew a held lease: it lives for its whole length from now.",
		params:  []parameter{paramID}, body: RenewRequest{}, answers: []answer{{200, "held", Lease{}}},
		problems: []string{"held", "gone", "unknown-lease", "unreachable"},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			body, p := decode[RenewRequest](in.body)
			if p != nil {
				return nil, p
			}
			a, p := g.renew(c, in.path("id"), body)
			if p != nil {
				return nil, p
			}
			return leaseOutput(200, a), nil
		},
	},
	{
		id: "release", method: "DELETE", path: "/v1/leases/{id}", verb: "release",
		summary: "Release a lease. The answer is the same if it is over already, or unknown.",
		params:  []parameter{paramID}, answers: released,
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return released204(g.release(c, in.path("id")))
		},
	},
	releaseOperation("releaseLock", "/v1/locks/{name}", inPath, "Release the lease of a lock that has the id or the token."),
	evictOperation("evict", "/v1/locks/{name}/evict", "", inPath, "End the claim of somebody else, as qlock unlock --force does."),
	evictOperation("evictByBody", "/v1/evict", "evict", inBody, "End the claim of somebody else on a lock whose name stands in the body."),
	{
		id: "listLocks", method: "GET", path: "/v1/locks", verb: "locks",
		summary: "List the locks that are held or waited for.",
		params:  []parameter{paramQPatter, paramPrefer, paramMatch}, answers: seenAs("the locks, by name", LockList{}),
		problems: views,
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, locksView(in.query.Get("pattern")))
		},
	},
	showOperation("showLock", "/v1/locks/{name}", "", inPath, "Show all that the nodes know about a lock. If nobody holds it or waits for it, it has no claims."),
	showOperation("showLockByQuery", "/v1/lock", "lock", inQuery, "Show all that the nodes know about a lock whose name stands in the query: any name can be written there."),
	releaseOperation("releaseLockByQuery", "/v1/lock", inQuery, "Release the lease of a lock, whose name stands in the query, that has the id or the token."),
	{
		id: "listNodes", method: "GET", path: "/v1/nodes", verb: "nodes",
		summary:  "List the nodes, and which of them vote.",
		answers:  seenAs("the nodes, by name", NodeList{}),
		problems: views,
		params:   []parameter{paramPrefer, paramMatch},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, g.nodesView())
		},
	},
	viewOperation("listMembers", "/v1/members/{group}", "group", "the group", "List the members of a group, as package members of the library has them.", "the members, by id", MemberList{}, membersView),
	viewOperation("showElection", "/v1/elections/{name}", "name", "the election", "Show who leads and who campaigns, as package election of the library has it.", "the election", ElectionReport{}, electionView),
	viewOperation("showSemaphore", "/v1/semaphores/{name}", "name", "the semaphore", "Show who has the permits of a semaphore, as package semaphore of the library has it.", "the semaphore", SemaphoreReport{}, semaphoreView),
}

// everyProblem are the kinds that each operation may answer.
var everyProblem = []string{"unauthenticated", "forbidden", "malformed", "invalid", "cross-origin", "too-large", "media-type", "wrong-host", "too-many", "internal"}

func tokenOf(text string) (uint64, *Problem) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return 0, invalid("token is not a whole number below 2^53")
	}
	return n, nil
}

func leaseOutput(status int, a *Lease) *output {
	return &output{status: status, body: a, etag: strconv.Itoa(a.revision), private: true}
}

// routes puts everything together.
func (g *Gateway) routes() http.Handler {
	mux := http.NewServeMux()
	for i := range operations {
		op := &operations[i]
		mux.HandleFunc(op.method+" "+op.path, func(w http.ResponseWriter, r *http.Request) { g.serveOperation(w, r, op) })
	}
	mux.HandleFunc("GET /v1/events", g.serveEvents)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", g.readyz)
	g.terraform(mux)
	g.documents(mux)
	g.dashboard(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { exchangeOf(w).fail(unrouted(mux, r)) })
	origin := http.NewCrossOriginProtection()
	for _, o := range g.cfg.Origins {
		_ = origin.AddTrustedOrigin(o) // New has checked it
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &exchange{ResponseWriter: w, control: *http.NewResponseController(w), writeTime: g.limits.WriteTime, started: time.Now(), id: g.requestID(r)}
		// The deadline of an earlier answer on this connection would end this one. Not every
		// server has deadlines.
		_ = e.control.SetWriteDeadline(time.Time{})
		if hasBody(r) {
			// Also for requests that are refused before their bodies are read: the server reads the
			// rest of those.
			_ = e.control.SetReadDeadline(e.started.Add(g.limits.BodyTime))
		}
		h := w.Header()
		h["X-Request-Id"], h["X-Content-Type-Options"] = []string{e.id}, noSniff
		defer g.logged(e, r)
		defer g.recovered(e)
		if p := g.admits(r, e.started); p != nil {
			e.fail(p)
			return
		}
		if g.cors(e, r) {
			return
		}
		if err := origin.Check(r); err != nil {
			e.fail(problem("cross-origin", "the request comes from a page of another origin"))
			return
		}
		if isUnclean(r.URL.EscapedPath()) {
			e.fail(problem("malformed", "the path has an empty part, or one of . or .., which clients and servers take away: write the name in the body or in the query"))
			return
		}
		mux.ServeHTTP(e, r)
	})
}

// exchange is a request and its answer, on the way.
type exchange struct {
	http.ResponseWriter
	control   http.ResponseController
	writeTime time.Duration
	started   time.Time
	id        string
	status    int
	operation string
	lease     string // its id, a secret
}

// exchangeOf is the exchange of a handler, which has it as its http.ResponseWriter.
func exchangeOf(w http.ResponseWriter) *exchange { return w.(*exchange) }

// Values of headers that many answers share. Nobody changes them.
var (
	noSniff  = []string{"nosniff"}
	noStore  = []string{"no-store"}
	typeJSON = []string{"application/json"}
)

// writeChunk is what a reader must take within Limits.WriteTime. There is no deadline for the
// whole answer, because requests may wait.
const writeChunk = 64 << 10

// hurry bounds how long the next chunk may take, or the headers of an answer without a body.
func (e *exchange) hurry() { _ = e.control.SetWriteDeadline(time.Now().Add(e.writeTime)) }

func (e *exchange) WriteHeader(status int) {
	if e.status == 0 {
		e.status = status
	}
	e.hurry()
	e.ResponseWriter.WriteHeader(status)
}

func (e *exchange) Write(b []byte) (written int, _ error) {
	e.status = cmp.Or(e.status, http.StatusOK)
	for {
		e.hurry()
		n, err := e.ResponseWriter.Write(b[:min(len(b), writeChunk)])
		written += n
		if b = b[n:]; err != nil || len(b) == 0 {
			return written, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (e *exchange) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// fail answers with a problem.
func (e *exchange) fail(p *Problem) {
	p.Request = e.id
	h := e.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(max(p.retryAfter/time.Second, 1))))
	}
	if p.Status == http.StatusUnauthorized {
		h.Add("WWW-Authenticate", `Basic realm="qlock", charset="UTF-8"`)
		h.Add("WWW-Authenticate", `Bearer realm="qlock"`)
	}
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	e.WriteHeader(p.Status)
	_ = json.NewEncoder(e).Encode(p) // who asked may have gone
}

func (g *Gateway) recovered(e *exchange) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	g.counters.panics.Add(1)
	g.log.Error("a request failed", "request", e.id, "panic", v)
	if e.status == 0 {
		e.fail(problem("internal", "the gateway's log says more, under the id of this request"))
	}
}

func (g *Gateway) logged(e *exchange, r *http.Request) {
	g.counters.request("http", e.operation, cmp.Or(e.status, http.StatusOK))
	if !g.log.Enabled(r.Context(), slog.LevelDebug) {
		return
	}
	args := []any{"method", r.Method, "operation", e.operation, "status", e.status, "ms", time.Since(e.started).Milliseconds(), "request", e.id, "address", addressOf(r)}
	if e.lease != "" {
		args = append(args, "lease", digest(normalID(e.lease)))
	}
	g.log.Debug("request", append(args, traceOfRequest(r).args()...)...)
}

// requestID is that of the caller's, if it is harmless.
func (g *Gateway) requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); isToken(id, 64) {
		return id
	}
	return g.newRequestID()
}

// newRequestID is unlike all others: a gateway's name is that of one process.
func (g *Gateway) newRequestID() string {
	var b [32]byte
	return string(strconv.AppendUint(append(append(b[:0], g.name...), '-'), g.requests.Add(1), 36))
}

func isToken(s string, most int) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')
	})
}

// admits refuses what must not reach an operation.
func (g *Gateway) admits(r *http.Request, now time.Time) *Problem {
	if !g.servesHost(r.Host) {
		return problem("wrong-host", "the gateway is not called under this host name: its configuration lists the names that it serves")
	}
	if g.limits.RequestsPerSec <= 0 {
		return nil
	}
	g.mu.Lock()
	wait := g.buckets.take(addressOf(r), g.limits.RequestsPerSec, now)
	g.mu.Unlock()
	if wait > 0 {
		p := problem("too-many", "this address sends more than %g requests a second", g.limits.RequestsPerSec)
		p.retryAfter = wait
		return p
	}
	return nil
}

func (g *Gateway) servesHost(host string) bool {
	if slices.Contains(g.cfg.Hosts, "*") || slices.Contains(g.cfg.Hosts, host) {
		return true
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	addr, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && addr.IsLoopback() || slices.Contains(g.cfg.Hosts, name)
}

func addressOf(r *http.Request) string { return callerOf(r.RemoteAddr) }

// callerOf is what limits count as one address. Whoever has one IPv6 address has the 2^64 of
// its network.
func callerOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		return addr.String()
	}
	network, _ := addr.Prefix(64) // it has as many bits
	return network.String()
}

// isUnclean reports whether http.ServeMux would redirect a path. Clients that follow would
// repeat the request for another lock than the one that was named.
func isUnclean(path string) bool {
	return strings.Contains(path, "//") || strings.Contains(path+"/", "/./") || strings.Contains(path+"/", "/../") || !strings.HasPrefix(path, "/")
}

// unrouted is what is wrong with a request that no route takes.
func unrouted(mux *http.ServeMux, r *http.Request) *Problem {
	methods := map[string]bool{}
	for _, m := range []string{"GET", "POST", "PUT", "DELETE", "LOCK", "UNLOCK"} {
		other := r.Clone(r.Context())
		other.Method = m
		if _, pattern := mux.Handler(other); pattern != "/" {
			methods[m] = true
		}
	}
	if len(methods) == 0 {
		return problem("not-found", "GET /openapi.json describes what there is. A slash in a name is written %%2F")
	}
	p := problem("method-not-allowed", "the resource has the methods %s", strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
	p.allow = strings.Join(slices.Sorted(maps.Keys(methods)), ", ")
	return p
}

// serveOperation is an operation over HTTP.
func (g *Gateway) serveOperation(w http.ResponseWriter, r *http.Request, op *operation) {
	e := exchangeOf(w)
	e.operation = op.id
	e.lease = r.PathValue("id")
	body, p := g.readBody(e, r, op)
	if p != nil {
		e.fail(p)
		return
	}
	block, stated, p := g.prefer(r)
	if p != nil {
		e.fail(p)
		return
	}
	query, p := queryOf(r, op)
	if p != nil {
		e.fail(p)
		return
	}
	who, leave, p := g.principalOf(r)
	if p != nil {
		e.fail(p)
		return
	}
	defer leave()
	c := &call{ctx: r.Context(), principal: who, received: e.started, request: e.id, block: block, address: r.RemoteAddr, trace: traceOfRequest(r)}
	out, p := op.serve(g, c, &input{path: r.PathValue, query: query, header: r.Header, body: body})
	if p != nil {
		e.fail(p)
		return
	}
	h := e.Header()
	for key, value := range out.header {
		h.Set(key, value)
	}
	if out.private {
		h["Cache-Control"] = noStore
	}
	if out.location != "" {
		h["Location"] = []string{out.location}
	}
	if out.etag != "" {
		h["Etag"] = []string{`"` + out.etag + `"`}
	}
	if stated {
		h.Set("Preference-Applied", "wait="+strconv.Itoa(int(block/time.Second)))
	}
	if out.raw != nil {
		e.writeValue(out)
		return
	}
	if out.body == nil {
		e.WriteHeader(out.status)
		return
	}
	text, err := json.Marshal(out.body)
	if err != nil {
		panic(err)
	}
	h["Content-Type"], h["Content-Length"] = typeJSON, []string{strconv.Itoa(len(text) + 1)}
	e.WriteHeader(out.status)
	_, _ = e.Write(append(text, '\n')) // who asked may have gone
}

// queryOf reads the query as strictly as decode reads bodies.
func queryOf(r *http.Request, op *operation) (url.Values, *Problem) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem("malformed", "the query is not percent-encoded as it should be")
	}
	for key, values := range query {
		if !slices.ContainsFunc(op.params, func(p parameter) bool { return p.in == "query" && p.name == key }) {
			return nil, invalid("the query has an unknown field")
		}
		if len(values) > 1 {
			return nil, problem("malformed", "the query has the field %s twice", key)
		}
	}
	return query, nil
}

// hasBody reports whether a request has a body. Over HTTP/2, Body tells nothing.
func hasBody(r *http.Request) bool {
	return r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
}

// readBody reads all of a body, which is JSON, or a value of any type.
func (g *Gateway) readBody(e *exchange, r *http.Request, op *operation) ([]byte, *Problem) {
	most, isValue := g.bodyOf(op)
	body, p := g.readAll(e, r, most, g.limits.BodyTime)
	if p != nil || len(body) == 0 || isValue {
		return body, p
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, problem("media-type", "send the body as application/json: curl --json does, and curl -d does not")
	}
	return body, nil
}

// readAll reads all of a body, within limits of size and time.
func (g *Gateway) readAll(e *exchange, r *http.Request, limit int64, within time.Duration) ([]byte, *Problem) {
	if !hasBody(r) {
		return nil, nil
	}
	if within > g.limits.BodyTime {
		_ = e.control.SetReadDeadline(e.started.Add(within))
	}
	// The deadline is taken away again: the server goes on reading, to notice when the
	// client leaves, and takes an error there for that.
	body, err := io.ReadAll(http.MaxBytesReader(e, r.Body, limit))
	if err == nil {
		_ = e.control.SetReadDeadline(time.Time{})
	} else {
		e.Header().Set("Connection", "close") // else the server would go on reading what does not come
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problem("too-large", "the body has more than %d bytes", limit)
	case err != nil:
		return nil, problem("malformed", "the body did not arrive in full within %v", within)
	}
	return body, nil
}

// prefer is for how long the request may wait, and whether it says so.
func (g *Gateway) prefer(r *http.Request) (time.Duration, bool, *Problem) {
	for _, line := range r.Header.Values("Prefer") {
		for part := range strings.SplitSeq(line, ",") {
			key, value, _ := strings.Cut(part, "=")
			if !strings.EqualFold(strings.TrimSpace(key), "wait") {
				continue
			}
			n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`))
			if err != nil || n < 0 {
				return 0, false, invalid("Prefer: wait= is not a whole number of seconds")
			}
			return min(time.Duration(min(n, 1e6))*time.Second, g.limits.Block), true, nil
		}
	}
	return 0, false, nil
}

// readyz fails while the gateway takes no new leases.
func (g *Gateway) readyz(w http.ResponseWriter, r *http.Request) {
	e := exchangeOf(w)
	switch {
	case g.isDraining():
		e.fail(problem("draining", "the gateway is stopping"))
	case !g.cfg.Conn.IsConnected():
		e.fail(problem("unreachable", "the NATS connection is %v", g.cfg.Conn.Status()))
	default:
		_, _ = io.WriteString(w, "ready\n")
	}
}

// normalID is the one spelling of a lease's id: some programs write UUIDs in capitals.
func normalID(id string) string {
	if len(id) != 36 {
		return id
	}
	if u, err := uuid.Parse(id); err == nil {
		return u.String()
	}
	return id
}
