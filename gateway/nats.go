package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/qlock/qlock"
)

// The NATS door: the operations as a micro service, with the same JSON. A request is
// answered once, at the end of its wait: the nats command, and most programs, take the
// first message for the answer.

// PollRequest asks how a lease stands, or waits until that changes.
type PollRequest struct {
	ID   string `json:"id,omitempty"`
	Wait string `json:"wait,omitempty" format:"go-duration"`
}

// natsRequests bounds how many requests of the NATS door wait at once, as connections do
// over HTTP.
const natsRequests = 20_000

type verb struct {
	name  string
	named bool // the resource may stand in the subject, behind the caller
	serve func(g *Gateway, c *call, body []byte) (int, any, *Problem)
}

// verbs are the operations that have a verb in the table of operations; a test compares them.
var verbs = slices.Concat(lockVerbs, storeVerbs)

var lockVerbs = []verb{
	{"acquire", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[AcquireRequest](body)
		if p != nil {
			return 0, nil, p
		}
		if in.Wait != "" {
			if c.block, p = duration("wait", in.Wait, 0, maxWait); p != nil {
				return 0, nil, p
			}
		}
		c.block = min(c.block, g.limits.Block)
		a, created, p := g.acquire(c, in.ID, in)
		switch {
		case p != nil:
			return 0, nil, p
		case a.State == waiting.String():
			return 202, a, nil
		case created:
			return 201, a, nil
		}
		return 200, a, nil
	}},
	{"poll", false, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[PollRequest](body)
		if p == nil && in.Wait != "" {
			c.block, p = duration("wait", in.Wait, 0, maxWait)
		}
		if p != nil {
			return 0, nil, p
		}
		c.block = min(c.block, g.limits.Block)
		a, p := g.poll(c, in.ID, 0)
		return 200, a, p
	}},
	{"renew", false, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[RenewRequest](body)
		if p != nil {
			return 0, nil, p
		}
		a, p := g.renew(c, in.ID, in)
		return 200, a, p
	}},
	{"release", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[ReleaseRequest](body)
		if p != nil {
			return 0, nil, p
		}
		if p = g.releaseOf(c, in); p != nil && p.Kind() == "unreachable" {
			return 202, nil, nil
		}
		return 204, nil, p
	}},
	{"evict", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[EvictRequest](body)
		if p != nil {
			return 0, nil, p
		}
		a, p := g.evict(c, in)
		if p == nil && !a.Gone {
			return 202, a, nil
		}
		return 200, a, p
	}},
	{"locks", false, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[ListRequest](body)
		if p != nil {
			return 0, nil, p
		}
		return g.verbView(c, locksView(in.Pattern))
	}},
	{"lock", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[LockRequest](body)
		if p != nil {
			return 0, nil, p
		}
		v, p := c.lockView(in)
		if p != nil {
			return 0, nil, p
		}
		return g.verbView(c, v)
	}},
	{"nodes", false, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		if _, p := decode[struct{}](body); p != nil {
			return 0, nil, p
		}
		return g.verbView(c, g.nodesView())
	}},
}

// ServeNATS serves the operations on the gateway's connection as well, as the micro service
// qlock-api on the subjects lock.<cluster>.api.<verb>, until Shutdown is over. A message says
// nothing of its sender, so whoever may publish there acts as the gateway's NATS user. With
// Config.Callers the subjects name the caller: its leases are its own, and notes say who it is.
//
// Gateways of one cluster share the requests as a queue group, and forward those for leases of
// others.
func (g *Gateway) ServeNATS() error {
	major := strings.SplitN(strings.TrimPrefix(qlock.Version(), "v"), "+", 2)[0]
	service, err := micro.AddService(g.cfg.Conn, micro.Config{
		Name: "qlock-api", Version: major, Description: "locks of the cluster " + g.cfg.Cluster, QueueGroup: "api",
		Metadata: map[string]string{"gateway": g.name, "cluster": g.cfg.Cluster},
	})
	if err != nil {
		return fmt.Errorf("gateway: the NATS service: %w", err)
	}
	for i := range verbs {
		v := &verbs[i]
		handler := micro.HandlerFunc(func(r micro.Request) { g.serveVerb(r, v) })
		endpoints := map[string]string{v.name: v.name}
		if g.cfg.Callers {
			endpoints = map[string]string{v.name: v.name + ".*"}
			if v.named {
				endpoints[v.name+"-resource"] = v.name + ".*.>"
			}
		}
		for name, rest := range endpoints {
			if err := service.AddEndpoint(name, handler, micro.WithEndpointSubject(g.api()+rest)); err != nil {
				_ = service.Stop() // the first error is the one to tell
				return fmt.Errorf("gateway: the NATS service: %w", err)
			}
		}
	}
	if g.cfg.Conn.IsConnected() {
		// Whoever hears that the gateway serves may ask at once, on another connection. If this one
		// is lost now, the service begins with the next.
		_ = g.cfg.Conn.FlushTimeout(2 * time.Second)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.services = append(g.services, service.Stop)
	return nil
}

func (g *Gateway) api() string { return g.family(familyAPI) }

// callOf is who calls, and about which resource, by the subject of a message.
func (g *Gateway) callOf(called string) (who *principal, leave func(), resource string, _ *Problem) {
	if !g.cfg.Callers {
		return g.only, func() {}, "", nil
	}
	_, rest, _ := strings.Cut(strings.TrimPrefix(called, g.api()), ".")
	name, resource, _ := strings.Cut(rest, ".")
	if !isClientName(name) {
		return nil, nil, "", invalid("the subject has no caller's name: 1 to 64 of A-Z a-z 0-9 _ -")
	}
	who, leave, p := g.caller(name)
	return who, leave, resource, p
}

// verbView looks at a view.
func (g *Gateway) verbView(c *call, v *view) (int, any, *Problem) {
	s, p := g.see(c.ctx, c.principal, v)
	if p != nil {
		return 0, nil, p
	}
	return 200, s.body, nil
}

// serveVerb answers a message. Handlers of one endpoint are called one after the other, so
// what waits gets a goroutine.
func (g *Gateway) serveVerb(r micro.Request, v *verb) {
	received := time.Now()
	if !isInbox(r.Reply()) {
		return // nobody waits, or the answer would be a message of qlock or of NATS itself
	}
	id := r.Headers().Get("X-Request-Id")
	if !isToken(id, 64) {
		id = g.newRequestID()
	}
	body := append([]byte(nil), r.Data()...)
	ok := g.inBackground(func() {
		defer func() {
			if v := recover(); v != nil {
				g.counters.panics.Add(1)
				g.log.Error("a request failed", "request", id, "panic", v)
				g.respond(r, id, 0, nil, problem("internal", "the gateway's log says more, under the id of this request"))
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), g.limits.Block+10*time.Second)
		defer cancel()
		who, leave, resource, p := g.callOf(r.Subject())
		if p != nil {
			g.respond(r, id, 0, nil, p)
			return
		}
		defer leave()
		c := &call{ctx: ctx, principal: who, received: received, request: id, resource: resource, trace: traceOf(natsValues(nats.Header(r.Headers())))}
		if most := g.messageOf(v); int64(len(body)) > most {
			g.respond(r, id, 0, nil, problem("too-large", "the body has more than %d bytes", most))
			return
		}
		status, a, p := v.serve(g, c, body)
		g.respond(r, id, status, a, p)
		if p != nil {
			status = p.Status
		}
		g.counters.request("nats", v.name, status)
		if g.log.Enabled(ctx, slog.LevelDebug) {
			g.log.Debug("request", append([]any{"verb", v.name, "status", status, "ms", time.Since(received).Milliseconds(), "request", id}, c.trace.args()...)...)
		}
	})
	if !ok {
		g.respond(r, id, 0, nil, problem("too-many", "%d requests are being served", natsRequests))
	}
}

// inBackground serves a message in a goroutine, unless there are too many, or the gateway has
// stopped. Shutdown waits for it.
func (g *Gateway) inBackground(serve func()) bool {
	select {
	case g.natsSlots <- struct{}{}:
	default:
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed { // Shutdown may wait already
		<-g.natsSlots
		return false
	}
	g.serving.Go(func() {
		defer func() { <-g.natsSlots }()
		defer func() {
			if v := recover(); v != nil {
				g.counters.panics.Add(1)
				g.log.Error("a request failed", "panic", v)
			}
		}()
		serve()
	})
	return true
}

// respond answers. It does not use r.Error, which leaves the error in the request, where package
// micro reads it as soon as its handler has returned: this runs later.
func (g *Gateway) respond(r micro.Request, id string, status int, a any, p *Problem) {
	m := &nats.Msg{Subject: r.Reply()}
	if p != nil {
		p.Request = id
		m.Header = nats.Header{micro.ErrorHeader: {p.Title}, micro.ErrorCodeHeader: {strconv.Itoa(p.Status)}}
		m.Data, _ = json.Marshal(p) // it has only what JSON has
	} else {
		m.Header = nats.Header{"Status": {strconv.Itoa(status)}, "X-Request-Id": {id}}
		if a != nil {
			m.Data, _ = json.Marshal(a) // as well
		}
	}
	if err := g.cfg.Conn.PublishMsg(m); errors.Is(err, nats.ErrMaxPayload) && p == nil {
		g.respond(r, id, 0, nil, problem("too-large", "the request was served, but the answer is larger than what the NATS server takes"))
	}
}
