package gateway

import (
	"net/http"
	"net/url"
	"slices"
)

// Some operations on a lock have several paths, which differ only in where the name of the
// lock stands: a path cannot express all names everywhere. Here is what they share.

// naming is where the name of a lock stands in a request over HTTP.
type naming struct{ params []parameter }

var (
	inPath  = &naming{[]parameter{paramName}}
	inQuery = &naming{[]parameter{paramQName, paramQEnc}}
	inBody  = &naming{}
)

// take puts the name into the fields of a request, which are those of its body if it has one.
func (n *naming) take(in *input, name, encoded *string) *Problem {
	switch n {
	case inPath:
		if *name != "" || *encoded != "" {
			return invalid("the name stands in the path, so the body must not have one")
		}
		*name = in.path("name")
	case inQuery:
		*name, *encoded = in.query.Get("name"), in.query.Get("encoded")
	}
	return nil
}

func (n *naming) with(params ...parameter) []parameter { return slices.Concat(n.params, params) }

// acquireOperation is an operation that acquires a lock. The id of the lease stands in the
// path, in a header, or nowhere.
func acquireOperation(id, method, path, verb string, where *naming, summary string, ofID parameter) operation {
	params := where.with(paramPrefer, ofID)
	if ofID.in == "path" {
		params = where.with(ofID, paramPrefer)
	}
	return operation{
		id: id, method: method, path: path, verb: verb, summary: summary, params: params, body: AcquireRequest{}, answers: acquired,
		problems: []string{"held", "lease-mismatch", "gone", "forbidden", "refused", "no-quorum", "unreachable", "draining"},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			body, p := decode[AcquireRequest](in.body)
			if p == nil {
				p = where.take(in, &body.Name, &body.Encoded)
			}
			if p != nil {
				return nil, p
			}
			if body.ID != "" {
				return nil, invalid("over HTTP the lease's id stands in the path, or in the header Idempotency-Key")
			}
			lease := in.header.Get("Idempotency-Key")
			if ofID.in == "path" {
				lease = in.path("id")
			}
			a, created, p := g.acquire(c, lease, body)
			if p != nil {
				return nil, p
			}
			return acquiredOutput(a, created), nil
		},
	}
}

func acquiredOutput(a *Lease, created bool) *output {
	out := leaseOutput(http.StatusOK, a)
	out.location = "/v1/leases/" + url.PathEscape(a.ID)
	switch {
	case a.State == waiting.String():
		out.status = http.StatusAccepted
		out.set("Retry-After", "0")
	case created:
		out.status = http.StatusCreated
	}
	return out
}

// releaseOperation releases the lease of a lock.
func releaseOperation(id, path string, where *naming, summary string) operation {
	return operation{
		id: id, method: "DELETE", path: path, summary: summary, params: where.with(paramQLease, paramQToken), answers: released,
		problems: []string{"precondition", "lease-mismatch"},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			of := &ReleaseRequest{ID: in.query.Get("lease")}
			p := where.take(in, &of.Name, &of.Encoded)
			if p == nil {
				of.Token, p = tokenOf(in.query.Get("token"))
			}
			if p != nil {
				return nil, p
			}
			return released204(g.releaseOf(c, of))
		},
	}
}

// evictOperation ends the claim of somebody else.
func evictOperation(id, path, verb string, where *naming, summary string) operation {
	return operation{
		id: id, method: "POST", path: path, verb: verb, summary: summary, params: where.with(paramPrefer), body: EvictRequest{},
		answers:  []answer{{200, "a quorum of nodes does not have the claim any more", Evicted{}}, {202, "the client was told; the claim ends at the end of its lease at the latest", Evicted{}}},
		problems: []string{"not-found", "ambiguous", "forbidden", "no-quorum", "unreachable"},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			body, p := decode[EvictRequest](in.body)
			if p == nil {
				p = where.take(in, &body.Name, &body.Encoded)
			}
			if p != nil {
				return nil, p
			}
			a, p := g.evict(c, body)
			switch {
			case p != nil:
				return nil, p
			case !a.Gone:
				return &output{status: http.StatusAccepted, body: a}, nil
			}
			return &output{status: http.StatusOK, body: a}, nil
		},
	}
}

// showOperation shows a lock.
func showOperation(id, path, verb string, where *naming, summary string) operation {
	return operation{
		id: id, method: "GET", path: path, verb: verb, summary: summary, params: where.with(paramPrefer, paramMatch), answers: seenAs("the lock", LockReport{}), problems: views,
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			of := new(LockRequest)
			p := where.take(in, &of.Name, &of.Encoded)
			if p != nil {
				return nil, p
			}
			v, p := c.lockView(of)
			if p != nil {
				return nil, p
			}
			return g.serveView(c, in, v)
		},
	}
}

// viewOperation shows what a recipe has made of locks. param is where its name stands.
func viewOperation(id, path, param, of, summary, doc string, body any, view func(name string) *view) operation {
	return operation{
		id: id, method: "GET", path: path, summary: summary, problems: views, answers: seenAs(doc, body),
		params: []parameter{{name: param, in: "path", doc: "the name of " + of, required: true}, paramPrefer, paramMatch},
		serve: func(g *Gateway, c *call, in *input) (*output, *Problem) {
			return g.serveView(c, in, view(in.path(param)))
		},
	}
}
