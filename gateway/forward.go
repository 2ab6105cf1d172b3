package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Gateways of one cluster forward requests to each other, so that a caller may ask any of
// them. A lease has one owner, the gateway that made it. What others tell of it they have
// from the owner each time, so the rules for callers hold unchanged: handled_ms is the
// owner's, which is shorter than the time that the caller waited for.
//
// A message names a lease by the digest of its id. It is JSON, without fields that are not
// known to be ignored, so that gateways of neighboring versions understand each other.

// The subjects, below lock.<cluster>.gw.: only gateways may use them.
const (
	toGateway = "to."   // to.<gateway>.<verb>: a request about a lease of that gateway
	whereIs   = "where" // which gateway has a lease? All answer
	iHave     = "have"  // a gateway lives, or has made a lease
)

const (
	presence     = time.Second
	presentFor   = 3 * time.Second // after the last word of a gateway
	whereTime    = 300 * time.Millisecond
	forwardRetry = time.Second     // if nobody answers
	drainTime    = time.Second     // what is on the way when a gateway stops, without a connection
	lostAfter    = 5 * time.Second // what is sent once, after a reconnect: its answer may still come, or be lost
	mostOwners   = 100_000         // that are remembered
)

type peers struct {
	g    *Gateway
	nc   *nats.Conn
	base string
	subs []*nats.Subscription
	end  chan struct{} // closed by stop; nil: this gateway is alone

	done    sync.WaitGroup
	drained sync.Once

	mu    sync.Mutex // guards what follows
	since time.Time
	heard map[string]time.Time // other gateways
	self  time.Time            // when this gateway heard itself
	deaf  bool                 // it does not hear itself, though it is connected

	connected time.Time // since when, at the latest
	owners    map[leaseKey]string
	asked     map[string]map[*forwarded]context.CancelCauseFunc // requests that an owner has not answered yet
}

var (
	errGone    = errors.New("the gateway is gone")
	errLeaving = errors.New("this gateway stops")
	errNewWay  = errors.New("the connection to NATS is a new one")
)

func newPeers(g *Gateway) *peers {
	return &peers{g: g, nc: g.cfg.Conn, base: g.family(familyGW), heard: map[string]time.Time{}, owners: map[leaseKey]string{}, asked: map[string]map[*forwarded]context.CancelCauseFunc{}}
}

// have is what gateways tell all others.
type have struct {
	Gateway   string `json:"gateway"`
	Gone      bool   `json:"gone,omitempty"`  // it has stopped
	Hello     bool   `json:"hello,omitempty"` // it has started: the others say that they live
	Principal string `json:"principal,omitempty"`
	Lease     string `json:"lease,omitempty"`   // the digest of its id
	Created   int64  `json:"created,omitempty"` // microseconds since 1970
	Held      bool   `json:"held,omitempty"`

	Released string `json:"released,omitempty"` // the digest of the id of a lease that its caller has ended
}

// where asks for the gateway that has a lease.
type where struct {
	Gateway   string `json:"gateway"` // that asks
	Principal string `json:"principal,omitempty"`
	Lease     string `json:"lease,omitempty"`
	Encoded   string `json:"encoded,omitempty"` // with Token, in place of Lease
	Token     uint64 `json:"token,omitempty"`
}

// here answers it. All gateways answer, so that the absence of a lease is known as well.
type here struct {
	Gateway string `json:"gateway"`
	Has     string `json:"has,omitempty"` // lives, over: its id can never be used again, failed: it can; empty: it is not here
	Lease   string `json:"lease,omitempty"`
}

const (
	lives  = "lives"
	isOver = "over"
	failed = "failed"
)

// forwarded is a request about a lease, for its owner.
type forwarded struct {
	Gateway   string `json:"gateway"` // that asks
	Principal string `json:"principal,omitempty"`
	Lease     string `json:"lease"`
	Request   string `json:"request"`
	BlockMS   int64  `json:"block_ms,omitempty"`
	Revision  int    `json:"revision,omitempty"`

	Length  int64  `json:"length_ms,omitempty"` // renew
	Token   uint64 `json:"token,omitempty"`
	Encoded string `json:"encoded,omitempty"` // acquire
	Shared  bool   `json:"shared,omitempty"`

	Transaction *TransactionRequest `json:"transaction,omitempty"` // store

	verb  string
	write bool // it must not be sent twice
}

// answered is the owner's answer.
type answered struct {
	Lease        *Lease   `json:"answer,omitempty"` // without the id
	Revision     int      `json:"revision,omitempty"`
	Problem      *Problem `json:"problem,omitempty"`
	RetryAfterMS int64    `json:"retry_after_ms,omitempty"`

	Transaction *TransactionAnswer `json:"transaction,omitempty"`
}

func (p *peers) start() error {
	p.end, p.since = make(chan struct{}), time.Now()
	p.connected = p.since
	for name, handler := range map[string]nats.MsgHandler{
		iHave:                            p.onHave,
		whereIs:                          p.onWhere,
		toGateway + p.g.name + "." + "*": p.onForwarded,
	} {
		sub, err := p.nc.Subscribe(p.base+name, handler)
		if err != nil {
			p.unsubscribe()
			p.end = nil
			return fmt.Errorf("subscribe to %s: %w", p.base+name, err)
		}
		p.subs = append(p.subs, sub)
	}
	status := p.nc.StatusChanged(nats.CONNECTED)
	p.done.Go(func() {
		defer p.nc.RemoveStatusListener(status)
		for {
			select {
			case <-status:
				p.reconnected()
			case <-p.end:
				return
			}
		}
	})
	p.done.Go(p.tell)
	return nil
}

// reconnected is for requests that wait for an owner's answer. It may have been lost with the old
// connection, and so may they, and nobody says so: what may be sent twice is sent again, or its
// caller would wait for nothing, while a lease that was granted to it runs out.
func (p *peers) reconnected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, requests := range p.asked {
		for f, cancel := range requests {
			if f.write {
				time.AfterFunc(lostAfter, func() { cancel(errNewWay) })
			} else {
				cancel(errNewWay)
			}
		}
	}
}

func (p *peers) unsubscribe() {
	for _, s := range p.subs {
		_ = s.Unsubscribe() // it fails on a closed connection, where there is nothing to end
	}
}

// drain ends the subscriptions. Requests that are here already are served, so that who sent them
// need not guess whether they were.
func (p *peers) drain() {
	if p.end == nil {
		return
	}
	p.drained.Do(func() {
		closed := make(chan struct{}, 2*len(p.subs))
		for _, s := range p.subs {
			s.SetClosedHandler(func(string) { closed <- struct{}{} })
			if s.Drain() != nil { // the connection is closed
				closed <- struct{}{}
			}
		}
		timeout := time.NewTimer(drainTime)
		defer timeout.Stop()
		for range p.subs {
			select {
			case <-closed:
			case <-timeout.C:
				p.unsubscribe()
				return
			}
		}
	})
}

// stop ends it, and tells the others.
func (p *peers) stop() {
	if p.end == nil {
		return
	}
	close(p.end)
	p.done.Wait()
	p.publish(iHave, &have{Gateway: p.g.name, Gone: true})
}

// tell tells the other gateways that this one lives.
func (p *peers) tell() {
	every := time.NewTicker(presence)
	defer every.Stop()
	warned := false
	for n := 0; ; n++ {
		p.mu.Lock()
		now := time.Now()
		if !p.nc.IsConnected() {
			p.connected = now
		}
		deaf := now.Sub(p.connected) > 10*time.Second && now.Sub(p.self) > 10*time.Second
		p.deaf = deaf
		for name, at := range p.heard {
			if now.Sub(at) > presentFor && now.Sub(p.self) <= presentFor {
				p.gone(name)
			}
		}
		p.mu.Unlock()
		if deaf && !warned {
			p.g.log.Warn("this gateway does not hear what it tells other gateways, so requests are not forwarded: does its NATS user have permission?", "subjects", p.base+">")
		}
		warned = deaf
		if !deaf || n%60 == 0 { // each denial is a line in the log of the server
			p.publish(iHave, &have{Gateway: p.g.name, Hello: n == 0})
		}
		select {
		case <-every.C:
		case <-p.end:
			return
		}
	}
}

// gone forgets a gateway, and ends the requests that wait for its answer. p.mu is held.
func (p *peers) gone(name string) {
	delete(p.heard, name)
	for _, cancel := range p.asked[name] {
		cancel(errGone)
	}
	delete(p.asked, name)
}

func (p *peers) publish(name string, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_ = p.nc.Publish(p.base+name, text) // without a connection, nobody is told
}

// others are the other gateways that live, as far as is known.
func (p *peers) others() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name, at := range p.heard {
		if time.Since(at) <= presentFor {
			out = append(out, name)
		}
	}
	return out
}

// state of another gateway: it lives; it does not; or it is not known, because this gateway
// has just started, or is cut off itself.
func (p *peers) state(name string) (lives, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if at, ok := p.heard[name]; ok && now.Sub(at) <= presentFor {
		return true, true
	}
	return false, now.Sub(p.since) > whereTime && (p.deaf || now.Sub(p.self) <= presentFor)
}

// listened waits until a gateway that has just started has heard of the others.
func (p *peers) listened(ctx context.Context) {
	if wait := time.Until(p.since.Add(whereTime + time.Millisecond)); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func (p *peers) remember(key leaseKey, owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.owners) >= mostOwners {
		clear(p.owners) // who has a lease can be asked again
	}
	p.owners[key] = owner
}

func (p *peers) forget(key leaseKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.owners, key)
}

func isGatewayName(s string) bool {
	return len(s) == 8 && s[0] == 'g' && isToken(s, 8) && !strings.ContainsAny(s, ".")
}

// ownerOf is the gateway that has a lease which is not here; empty if none has. final is set
// if only an id counts that can never be used again, or a lease that lives.
func (p *peers) ownerOf(c *call, id string, key leaseKey, final bool) (string, *Problem) {
	if p.end == nil {
		return "", nil
	}
	p.listened(c.ctx)
	if name, _, ok := strings.Cut(id, "."); ok && isGatewayName(name) {
		if name == p.g.name {
			return "", nil
		}
		switch lives, known := p.state(name); {
		case lives:
			return name, nil
		case known:
			return "", gone(causeGatewayLost, 0, "gateway %s, which had the lease, is gone", name)
		}
		return "", problem("unreachable", "it is not known whether gateway %s lives, which has the lease", name)
	}
	p.mu.Lock()
	owner, ok := p.owners[key]
	p.mu.Unlock()
	if ok {
		if lives, _ := p.state(owner); lives {
			return owner, nil
		}
		p.forget(key)
	}
	a, p2 := p.ask(c, &where{Principal: key.principal, Lease: key.hex()}, final)
	if p2 != nil || a == nil {
		return "", p2
	}
	p.remember(key, a.Gateway)
	return a.Gateway, nil
}

// ask asks all gateways who has a lease. nil: nobody.
func (p *peers) ask(c *call, q *where, final bool) (*here, *Problem) {
	silent := map[string]bool{}
	for _, name := range p.others() {
		silent[name] = true
	}
	if len(silent) == 0 {
		if _, known := p.state(""); !known {
			return nil, problem("unreachable", "it is not known whether another gateway has the lease, because this one has no connection to it")
		}
		return nil, nil
	}
	q.Gateway = p.g.name
	text, err := json.Marshal(q)
	if err != nil {
		panic(err)
	}
	inbox := p.nc.NewInbox()
	sub, err := p.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, problem("unreachable", "%v", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := p.nc.PublishRequest(p.base+whereIs, inbox, text); err != nil {
		return nil, problem("unreachable", "%v", err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, whereTime)
	defer cancel()
	for len(silent) > 0 {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) {
			break
		}
		if err != nil {
			names := make([]string, 0, len(silent))
			for name := range silent {
				names = append(names, name)
			}
			return nil, problem("unreachable", "%d gateways did not say whether they have the lease: %s", len(names), strings.Join(names, ", "))
		}
		a := new(here)
		if json.Unmarshal(m.Data, a) != nil || !isGatewayName(a.Gateway) || a.Gateway == p.g.name {
			continue
		}
		if a.Has == lives || a.Has == isOver || a.Has == failed && !final {
			return a, nil
		}
		delete(silent, a.Gateway)
	}
	return nil, nil
}

// forward lets the owner of a lease answer. When this gateway stops, it asks once more how the
// lease stands, without waiting: the caller has an answer then, and the lease keeps its place.
func (p *peers) forward(c *call, owner string, f *forwarded) (*Lease, *Problem) {
	f.Gateway, f.Principal, f.Request = p.g.name, c.principal.name, c.request
	p.g.counters.forwarded.Add(1)
	began, block := time.Now(), f.BlockMS
	for {
		f.BlockMS = max(block-time.Since(began).Milliseconds(), 0)
		if p.g.leaving.Err() != nil {
			f.BlockMS = 0
		}
		text, err := json.Marshal(f)
		if err != nil {
			panic(err)
		}
		m, err := p.request(c, owner, f, text)
		switch lives, known := p.state(owner); {
		case err == nil:
			return readAnswer(m.Data)
		case err == errLeaving, err == errNewWay:
			continue
		case !lives && known:
			return nil, gone(causeGatewayLost, 0, "gateway %s, which had the lease, is gone", owner)
		case !errors.Is(err, nats.ErrNoResponders) || time.Since(began) > forwardRetry:
			return nil, problem("unreachable", "gateway %s, which has the lease, does not answer", owner)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-c.ctx.Done():
		}
	}
}

// request waits for an owner's answer for as long as the owner lives.
func (p *peers) request(c *call, owner string, f *forwarded, text []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(c.ctx, time.Duration(f.BlockMS)*time.Millisecond+5*time.Second)
	defer cancel()
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	if f.BlockMS > 0 && f.verb != verbStore {
		defer context.AfterFunc(p.g.leaving, func() { abandon(errLeaving) })()
	}
	p.mu.Lock()
	if p.asked[owner] == nil {
		p.asked[owner] = map[*forwarded]context.CancelCauseFunc{}
	}
	p.asked[owner][f] = abandon
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.asked[owner], f); len(p.asked[owner]) == 0 {
			delete(p.asked, owner)
		}
	}()
	m, err := p.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: p.base + toGateway + owner + "." + f.verb, Data: text, Header: c.trace.header()})
	if cause := context.Cause(ctx); err != nil && (cause == errLeaving || cause == errNewWay) {
		err = cause
	}
	return m, err
}

func readAnswer(text []byte) (*Lease, *Problem) {
	a := new(answered)
	if err := json.Unmarshal(text, a); err != nil || (a.Lease == nil) == (a.Problem == nil) {
		return nil, problem("unreachable", "the gateway that has the lease gave an answer that cannot be read")
	}
	if a.Problem != nil {
		a.Problem.retryAfter = time.Duration(a.RetryAfterMS) * time.Millisecond
		return nil, a.Problem
	}
	a.Lease.revision = a.Revision
	return a.Lease, nil
}

// elsewhere forwards a request about a lease that is not here. why tells what is known of it
// here.
func (g *Gateway) elsewhere(c *call, id string, why *Problem, f *forwarded) (*Lease, *Problem) {
	key := keyOf(c.principal, id)
	owner := why.owner
	for range 3 { // a lease may have gone to yet another gateway
		if owner == "" {
			if why.owner != "" || why.isFinal() {
				return nil, why
			}
			// If it failed here, it may have been asked for again elsewhere.
			isKnown := why.Kind() != "unknown-lease"
			var p *Problem
			if owner, p = g.peers.ownerOf(c, id, key, f.verb == "acquire" || isKnown); p != nil {
				if isKnown {
					return nil, why
				}
				return nil, p
			}
			if owner == "" {
				return nil, why
			}
		}
		f.Lease = key.hex()
		a, p := g.peers.forward(c, owner, f)
		if p == nil {
			a.ID, a.Request = id, c.request
			return a, nil
		}
		if p.Kind() != "unknown-lease" {
			return nil, p
		}
		g.peers.forget(key)
		if strings.HasPrefix(id, owner+".") {
			return nil, p
		}
		owner = ""
	}
	return nil, why
}

// onHave hears of other gateways and of what they made. If two have made a lease of one id,
// one gives up its own: a held one stays, and of two that wait the older (G10).
func (p *peers) onHave(m *nats.Msg) {
	h := new(have)
	if json.Unmarshal(m.Data, h) != nil || !isGatewayName(h.Gateway) {
		return
	}
	p.mu.Lock()
	switch {
	case h.Gateway == p.g.name:
		p.self = time.Now()
	case h.Gone:
		p.gone(h.Gateway)
	case len(p.heard) < 1000 || !p.heard[h.Gateway].IsZero():
		p.heard[h.Gateway] = time.Now()
	}
	p.mu.Unlock()
	if h.Hello && h.Gateway != p.g.name {
		p.publish(iHave, &have{Gateway: p.g.name})
	}
	if h.Lease == "" && h.Released == "" || h.Gateway == p.g.name {
		return
	}
	key, ok := keyFrom(h.Principal, cmp.Or(h.Released, h.Lease))
	if !ok {
		return
	}
	p.g.mu.Lock()
	l := p.g.leases[key]
	p.g.mu.Unlock()
	if l == nil {
		return
	}
	if h.Released != "" {
		_ = l.release() // it is over now, whatever it was before
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	created := l.created.UnixMicro()
	switch {
	case l.state == held && !h.Held, l.state == waiting && !h.Held && (created < h.Created || created == h.Created && p.g.name < h.Gateway):
		p.made(l)
	case l.state == waiting:
		why := problem("unreachable", "gateway %s has the lease", h.Gateway)
		why.owner = h.Gateway
		p.remember(key, h.Gateway)
		l.end(why)
	}
}

// tellOf tells the others of a new lease whose id is the caller's.
func (p *peers) tellOf(l *lease) {
	if len(p.others()) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != over {
		p.made(l)
	}
}

// tellReleased tells the others that a caller has ended the lease of its id. Two gateways may
// have one: both of a shared lock, or the second one made after the first was taken for lost.
func (p *peers) tellReleased(key leaseKey) {
	if p.end != nil && len(p.others()) > 0 {
		p.publish(iHave, &have{Gateway: p.g.name, Principal: key.principal, Released: key.hex()})
	}
}

// releaseByToken releases a lease of another gateway.
func (p *peers) releaseByToken(c *call, encoded string, token uint64) *Problem {
	if p.end == nil {
		return nil
	}
	a, why := p.ask(c, &where{Principal: c.principal.name, Encoded: encoded, Token: token}, true)
	if why == nil && a != nil {
		_, why = p.forward(c, a.Gateway, &forwarded{verb: "release", Lease: a.Lease})
	}
	if why != nil && why.Kind() == "unreachable" {
		return why
	}
	return nil
}

// made tells the others of a lease. l.mu is held.
func (p *peers) made(l *lease) {
	if p.end != nil {
		p.publish(iHave, &have{Gateway: p.g.name, Principal: l.key.principal, Lease: l.key.hex(), Created: l.created.UnixMicro(), Held: l.state == held})
	}
}

// keyFrom is the key of a lease that a message names.
func keyFrom(principal, lease string) (leaseKey, bool) {
	b, err := hex.DecodeString(lease)
	if err != nil || len(b) != sha256.Size {
		return leaseKey{}, false
	}
	return leaseKey{principal, [sha256.Size]byte(b)}, true
}

// answerTo answers a message of another gateway, unless its answer would be a message of
// qlock or of NATS itself.
func (p *peers) answerTo(m *nats.Msg, v any) {
	if !isInbox(m.Reply) {
		return
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_ = p.nc.Publish(m.Reply, text) // without a connection, nobody waits
}

func (p *peers) onWhere(m *nats.Msg) {
	q := new(where)
	if json.Unmarshal(m.Data, q) != nil || q.Gateway == p.g.name {
		return
	}
	a := &here{Gateway: p.g.name}
	if q.Token > 0 {
		if l := p.g.byToken(q.Principal, q.Encoded, q.Token); l != nil {
			a.Has, a.Lease = lives, l.key.hex()
		}
	} else if key, ok := keyFrom(q.Principal, q.Lease); ok {
		switch _, why := p.g.find(key); {
		case why == nil:
			a.Has = lives
		case why.isFinal():
			a.Has = isOver
		case why.Kind() != "unknown-lease":
			a.Has = failed
		}
	}
	p.answerTo(m, a)
}

// onForwarded answers a request about a lease of this gateway.
func (p *peers) onForwarded(m *nats.Msg) {
	received := time.Now()
	f := new(forwarded)
	d := json.NewDecoder(bytes.NewReader(m.Data))
	if strings.HasSuffix(m.Subject, "."+verbStore) {
		p.onTransaction(m, received)
		return
	}
	if int64(len(m.Data)) > p.g.limits.Body || d.Decode(f) != nil || !isToken(f.Request, 64) {
		return
	}
	f.verb = m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	ok := p.g.inBackground(func() {
		block := min(max(time.Duration(f.BlockMS)*time.Millisecond, 0), p.g.limits.Block)
		ctx, cancel := context.WithTimeout(context.Background(), block+10*time.Second)
		defer cancel()
		p.g.counters.answered.Add(1)
		if p.g.log.Enabled(ctx, slog.LevelDebug) {
			p.g.log.Debug("request of another gateway", append([]any{"verb", f.verb, "gateway", f.Gateway, "request", f.Request}, traceOf(natsValues(m.Header)).args()...)...)
		}
		a, why := p.g.owned(&call{ctx: ctx, received: received, request: f.Request, block: block}, f)
		out := &answered{Lease: a, Problem: why}
		if a != nil {
			a.ID, out.Revision = "", a.revision
		}
		if why != nil {
			out.RetryAfterMS = why.retryAfter.Milliseconds()
		}
		p.answerTo(m, out)
	})
	if !ok {
		p.answerTo(m, &answered{Problem: problem("too-many", "%d requests are being served", natsRequests)})
	}
}

// owned serves a forwarded request.
func (g *Gateway) owned(c *call, f *forwarded) (*Lease, *Problem) {
	key, ok := keyFrom(f.Principal, f.Lease)
	if !ok {
		return nil, unknownLease()
	}
	l, p := g.find(key)
	if p == nil {
		c.principal = l.who
	} else {
		if f.verb == "acquire" && !p.isFinal() {
			return nil, unknownLease() // it may be asked for again, at any gateway
		}
		return nil, p
	}
	switch f.verb {
	case "acquire":
		if f.Encoded != l.encoded || f.Shared != l.shared {
			return nil, mismatch()
		}
		return l.await(c, c.block, 0)
	case "poll":
		return l.await(c, c.block, f.Revision)
	case "renew":
		return l.renew(c, time.Duration(f.Length)*time.Millisecond, f.Token)
	case "release":
		return nil, l.release()
	}
	return nil, problem("not-found", "this gateway has no verb %.20q for other gateways", f.verb)
}
