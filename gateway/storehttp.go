package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The store over HTTP. A value is the body as it is; whoever wants JSON says so in Accept.

// value stands in the table of operations for a body that is a value. An answer may be JSON
// instead, as the type of json.
type value struct{ json any }

var (
	paramBucket   = parameter{name: "bucket", in: "path", doc: "the name of the bucket", required: true}
	paramKeyName  = parameter{name: "key", in: "path", doc: "the key, percent-encoded: letters, digits and -/_= in tokens that are separated by dots", required: true}
	paramFence    = parameter{name: "Qlock-Lease", in: "header", doc: "the id of a held lease: the server refuses what is done here once the lock has a newer holder"}
	paramIfMatch  = parameter{name: "If-Match", in: "header", doc: "the ETag of the key, which is its revision in quotes: 412 if the key has another one"}
	paramIfNone   = parameter{name: "If-None-Match", in: "header", doc: "*: 412 if there is such a key"}
	paramTTL      = parameter{name: "Qlock-TTL", in: "header", doc: "how long the value lives, such as 30s; default: for ever"}
	paramAccept   = parameter{name: "Accept", in: "header", doc: "application/json: the value in JSON, with its revision"}
	paramAfter    = parameter{name: "after", in: "query", doc: "a revision: with wait, wait until the key has a higher one. 0 waits for a key that does not exist", integer: true}
	paramWait     = parameter{name: "wait", in: "query", doc: "as Prefer: wait=, in seconds", integer: true}
	paramSelect   = parameter{name: "pattern", in: "query", doc: "as NATS selects subjects: orders.> or *.42; default: all"}
	paramOnceKey  = parameter{name: "Idempotency-Key", in: "header", doc: "in place of once"}
	storeProblems = []string{"no-bucket", "not-prepared", "no-jetstream", "unsupported", "store-unreachable", "unreachable", "draining"}
	fencing       = []string{"fenced", "held", "gone", "unknown-lease", "no-bucket", "not-prepared", "no-jetstream", "unsupported", "store-unreachable", "unreachable", "draining", "full", "unknown-outcome"}
)

func and(list []string, more ...string) []string { return append(more, list...) }

var storeOperations = []operation{
	{
		id: "listStores", method: "GET", path: "/v1/stores", verb: "stores",
		summary: "List the key-value buckets, and whether they can be used here.",
		params:  []parameter{paramPrefer, paramMatch}, answers: seenAs("the buckets, by name", BucketList{}), problems: storeProblems,
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, g.bucketsView(c.principal))
		},
	},
	{
		id: "showStore", method: "GET", path: "/v1/stores/{bucket}", verb: "store",
		summary: "Show a bucket, and which holders of locks were the last to use it.",
		params:  []parameter{paramBucket, paramPrefer, paramMatch}, answers: seenAs("the bucket", BucketReport{}), problems: and(storeProblems, "full"),
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, g.bucketView(c.principal, in.path("bucket")))
		},
	},
	{
		id: "listKeys", method: "GET", path: "/v1/stores/{bucket}/keys", verb: "store-keys",
		summary: "List the keys of a bucket. The list may be behind by a moment.",
		params:  []parameter{paramBucket, paramSelect, paramPrefer, paramMatch}, answers: seenAs("the keys, by name", KeyList{}), problems: storeProblems,
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, g.keysView(c.principal, in.path("bucket"), in.query.Get("pattern")))
		},
	},
	{
		id: "getKey", method: "GET", path: "/v1/stores/{bucket}/keys/{key}", verb: "store-get",
		summary: "Read a key, or wait until it changes. The answer is not older than the request.",
		params:  []parameter{paramBucket, paramKeyName, paramFence, paramPrefer, paramMatch, paramAfter, paramWait, paramAccept},
		answers: []answer{{200, "the value; ETag and Qlock-Revision have its revision", value{Entry{}}}, {304, "the key has the revision of If-None-Match", nil}}, problems: and(fencing, "no-key"),
		serve: (*Gateway).serveGet,
	},
	{
		id: "putKey", method: "PUT", path: "/v1/stores/{bucket}/keys/{key}", verb: "store-put",
		summary: "Write a key. The body is the value, of any type.",
		params:  []parameter{paramBucket, paramKeyName, paramFence, paramIfMatch, paramIfNone, paramTTL}, body: value{},
		answers: []answer{{200, "written", Written{}}, {201, "created, with If-None-Match: *", Written{}}}, problems: and(fencing, "conflict", "read-only"),
		serve: (*Gateway).servePut,
	},
	{
		id: "deleteKey", method: "DELETE", path: "/v1/stores/{bucket}/keys/{key}", verb: "store-delete",
		summary: "Delete a key. The answer is the same if there is none.",
		params:  []parameter{paramBucket, paramKeyName, paramFence, paramIfMatch},
		answers: []answer{{204, "deleted", nil}}, problems: and(fencing, "conflict", "read-only"),
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			rev, _, p := conditions(in)
			if p != nil {
				return nil, p
			}
			_, p = g.write(c, in.path("bucket"), in.header.Get("Qlock-Lease"), Operation{Op: "delete", Key: in.path("key"), Revision: rev})
			return &output{status: 204}, p
		},
	},
	{
		id: "addToKey", method: "POST", path: "/v1/stores/{bucket}/keys/{key}/add", verb: "store-add",
		summary: "Add to the number that a key has. No other request gets the same sum.",
		params:  []parameter{paramBucket, paramKeyName, paramFence}, body: AddRequest{},
		answers: []answer{{200, "added", Written{}}}, problems: and(fencing, "not-number", "read-only"),
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			body, p := decode[AddRequest](in.body)
			if p != nil {
				return nil, p
			}
			if body.Bucket != "" || body.Key != "" {
				return nil, invalid("bucket and key stand in the path, so the body must not have them")
			}
			if body.Lease, p = either("lease", body.Lease, "Qlock-Lease", in.header); p != nil {
				return nil, p
			}
			a, p := g.write(c, in.path("bucket"), body.Lease, Operation{Op: "add", Key: in.path("key"), By: body.By})
			return writtenOutput(200, a), p
		},
	},
	{
		id: "transact", method: "POST", path: "/v1/stores/{bucket}/transactions", verb: "store-transact",
		summary: "Do operations, all or none. With lock, the request acquires a lock, does the operations under it, and releases it.",
		params:  []parameter{paramBucket, paramFence, paramPrefer, paramOnceKey}, body: TransactionRequest{},
		answers: []answer{{200, "done, now or before", TransactionAnswer{}}}, problems: and(fencing, "conflict", "once-mismatch", "not-number", "read-only", "refused", "no-quorum", "forbidden"),
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			body, p := decode[TransactionRequest](in.body)
			if p != nil {
				return nil, p
			}
			if body.Bucket != "" {
				return nil, invalid("the bucket stands in the path, so the body must not have it")
			}
			body.Bucket = in.path("bucket")
			if body.Lease, p = either("lease", body.Lease, "Qlock-Lease", in.header); p != nil {
				return nil, p
			}
			if body.Once, p = either("once", body.Once, "Idempotency-Key", in.header); p != nil {
				return nil, p
			}
			a, p := g.transact(c, countedAs(body), body)
			if p != nil {
				return nil, p
			}
			out := (&output{status: 200, body: a}).set("Cache-Control", "no-store")
			if a.Lease != nil {
				out.set("Location", "/v1/leases/"+a.Lease.ID)
			}
			return out, nil
		},
	},
}

func countedAs(t *TransactionRequest) string {
	if t.Lock != nil {
		return "lock"
	}
	return "transaction"
}

// either is what stands in a field or in a header, but not in both.
func either(field, text, name string, h http.Header) (string, *Problem) {
	values := h.Values(name)
	switch {
	case len(values) == 0:
		return text, nil
	case len(values) > 1:
		return "", problem("malformed", "the header %s comes twice", name)
	case text != "":
		return "", invalid("give " + field + " in the body, or the header " + name + ", and not both")
	}
	return values[0], nil
}

// revisionOf reads an ETag of a key.
func revisionOf(name, tag string) (uint64, *Problem) {
	text, ok := strings.CutPrefix(tag, `"`)
	text, ok2 := strings.CutSuffix(text, `"`)
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || !ok2 || err != nil || n == 0 {
		return 0, invalid(name + ` is not the ETag of a key, such as "17"`)
	}
	return n, nil
}

// conditions are those of a write: the revision that the key must have, or that there is none.
func conditions(in *input) (revision uint64, create bool, _ *Problem) {
	match, p := either("", "", "If-Match", in.header)
	if p != nil {
		return 0, false, p
	}
	none, p := either("", "", "If-None-Match", in.header)
	if p != nil {
		return 0, false, p
	}
	if in.header.Get("Idempotency-Key") != "" {
		return 0, false, invalid("Idempotency-Key is for transactions: send the write as one")
	}
	switch {
	case match != "" && none != "":
		return 0, false, invalid("If-Match and If-None-Match exclude each other")
	case none == "*":
		return 0, true, nil
	case none != "":
		return 0, false, invalid("If-None-Match of a write is *")
	case match == "":
		return 0, false, nil
	}
	revision, p = revisionOf("If-Match", match)
	return revision, false, p
}

func (g *Gateway) serveGet(c *call, in *input) (*output, *Problem) {
	req := &GetRequest{Bucket: in.path("bucket"), Key: in.path("key"), Lease: in.header.Get("Qlock-Lease")}
	var known uint64
	tag, p := either("", "", "If-None-Match", in.header)
	if p == nil && tag != "" {
		known, p = revisionOf("If-None-Match", tag)
	}
	if p != nil {
		return nil, p
	}
	if text := in.query.Get("after"); text != "" {
		after, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, invalid("after is not a revision")
		}
		req.After = &after
	}
	if text := in.query.Get("wait"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, invalid("wait is not a whole number of seconds")
		}
		c.block = time.Duration(n) * time.Second
	}
	if c.block > 0 && known == 0 && req.After == nil {
		return nil, invalid("a request that waits needs If-None-Match or after, to know for what")
	}
	e, unchanged, p := g.get(c, req, known)
	if p != nil {
		return nil, p
	}
	out := (&output{status: 200, etag: strconv.FormatUint(known, 10)}).set("Cache-Control", "no-store")
	if unchanged {
		out.status = 304
		return out, nil
	}
	out.etag = strconv.FormatUint(e.Revision, 10)
	out.set("Qlock-Revision", out.etag)
	if strings.Contains(in.header.Get("Accept"), "application/json") {
		out.body = e
		return out, nil
	}
	if out.raw = e.bytes; out.raw == nil {
		out.raw = []byte{}
	}
	return out, nil
}

func (g *Gateway) servePut(c *call, in *input) (*output, *Problem) {
	rev, create, p := conditions(in)
	if p != nil {
		return nil, p
	}
	text, encoded := shownValue(in.body)
	a, p := g.put(c, &PutRequest{
		Bucket: in.path("bucket"), Key: in.path("key"), Value: text, ValueBase64: encoded, Revision: rev, Create: create,
		TTL: in.header.Get("Qlock-TTL"), Lease: in.header.Get("Qlock-Lease"),
	})
	if create {
		return writtenOutput(201, a), p
	}
	return writtenOutput(200, a), p
}

func writtenOutput(status int, a *Written) *output {
	if a == nil {
		return nil
	}
	out := &output{status: status, body: a, etag: strconv.FormatUint(a.Revision, 10)}
	return out.set("Cache-Control", "no-store")
}

// bodyOf is how large the body of an operation may be, and whether it is a value.
func (g *Gateway) bodyOf(op *operation) (most int64, isValue bool) {
	switch op.body.(type) {
	case value:
		return g.limits.Value, true
	case TransactionRequest:
		return g.limits.Transaction, false
	}
	return g.limits.Body, false
}

// writeValue answers with a value. It is what some client has stored, and a browser must not
// take it for a page of this gateway.
func (e *exchange) writeValue(out *output) {
	h := e.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Length", strconv.Itoa(len(out.raw)))
	e.WriteHeader(out.status)
	_, _ = e.Write(out.raw) // who asked may have gone
}
