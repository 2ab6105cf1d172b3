package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock"
)

// The operations, without HTTP and without NATS: both doors call these.

// call is who calls, and since when the gateway has the request.
type call struct {
	ctx       context.Context
	principal *principal
	received  time.Time
	request   string        // its id
	block     time.Duration // that it may wait
	resource  string        // encoded: the subject of the request names it
	address   string        // as net/http has it, for limits; empty at the NATS door
	trace     trace
}

// nameOf is the one name that a request gives: in its subject, or in its body.
func (c *call) nameOf(name, encoded string) (string, string, *Problem) {
	if c.resource == "" {
		return nameOf(name, encoded)
	}
	if name != "" || encoded != "" {
		return "", "", invalid("the name stands in the subject, so the body must not have one")
	}
	return nameOf("", c.resource)
}

// Lease is the answer about a lease that waits or is held.
type Lease struct {
	ID       string `json:"id" doc:"a secret: whoever knows it can renew and release the lease"`
	State    string `json:"state" enum:"waiting,held"`
	Name     string `json:"name,omitempty" doc:"of the lock; left out if it is not valid UTF-8"`
	Encoded  string `json:"encoded" doc:"the name as it stands in NATS subjects: ASCII and exact"`
	Mode     string `json:"mode" enum:"exclusive,shared"`
	Token    uint64 `json:"token,omitempty" doc:"held: the fencing token, to be sent with every write. Below 2^53"`
	Age      int64  `json:"age" doc:"the place in the queue, in microseconds since 1970. Only the order counts"`
	WaitedMS int64  `json:"waited_ms"`

	ExpiresInMS int64 `json:"expires_in_ms,omitempty" doc:"held: the caller holds the lock until the moment at which it sent the request, plus handled_ms, plus this"`
	HandledMS   int64 `json:"handled_ms" doc:"for how long the gateway had the request"`
	LeaseMS     int64 `json:"lease_ms,omitempty" doc:"held: how long it lives without a renewal"`

	Place        int      `json:"place,omitempty" doc:"waiting: 1 is next"`
	Blocker      *Blocker `json:"blocker,omitempty" doc:"waiting: who is in the way, if known"`
	Nodes        []Vote   `json:"nodes,omitempty" doc:"waiting, and it is not known that anybody is in the way: what each node said"`
	PollWithinMS int64    `json:"poll_within_ms,omitempty" doc:"waiting: the place is given up if no request asks for the lease within this time"`
	Moved        bool     `json:"moved,omitempty" doc:"waiting: the gateway is stopping and has given up the place. Ask another gateway, with the age"`
	DrainingInMS int64    `json:"draining_in_ms,omitempty" doc:"held: the gateway is stopping, and the lease can be renewed for so long"`

	Gateway string `json:"gateway"`
	Request string `json:"request" doc:"the id of the request that this answers"`

	revision int
}

// AcquireRequest asks for a lock.
type AcquireRequest struct {
	ID      string `json:"id,omitempty" doc:"of the lease, a UUID of the caller's; over HTTP it stands in the path"`
	Name    string `json:"name,omitempty" doc:"of the lock, unless it stands in the path"`
	Encoded string `json:"encoded,omitempty" doc:"the name as it stands in NATS subjects, in place of name"`
	Mode    string `json:"mode,omitempty" enum:"exclusive,shared" doc:"default: exclusive"`
	Lease   string `json:"lease,omitempty" format:"go-duration" doc:"how long it lives without a renewal, such as 10s, which is the default"`
	Wait    string `json:"wait,omitempty" format:"go-duration" doc:"how long to wait for the lock in all; default: what Prefer: wait= says, or 0s, which is a try"`
	Note    string `json:"note,omitempty" maxLength:"256" doc:"for people"`
	Age     int64  `json:"age,omitempty" doc:"of an earlier answer: the place in the queue, which a caller takes along to another gateway"`
}

// acquire asks for a lock. id is the caller's own, or empty.
func (g *Gateway) acquire(c *call, id string, in *AcquireRequest) (a *Lease, created bool, _ *Problem) {
	l, p := g.newLease(c, id, in)
	if p != nil {
		return nil, false, p
	}
	locker, err := c.principal.locker(c.ctx, l.length)
	if err != nil {
		return nil, false, problemOf(err)
	}
	l.length = cmp.Or(l.length, min(defaultLease, mostOf(locker)))
	if !l.isOurID {
		if a, p := g.acquireElsewhere(c, l); a != nil || p != nil {
			return a, false, p
		}
	}
	shared, encoded := l.shared, l.encoded
	l, created, p = g.admit(l, locker)
	if p != nil {
		return nil, false, p
	}
	if l.shared != shared || l.encoded != encoded {
		return nil, false, mismatch()
	}
	if created && !l.isOurID {
		g.peers.tellOf(l)
	}
	block := c.block
	switch {
	case l.try: // it is decided soon
		block = g.limits.UndecidedTryFor
	case created: // a lock that is free is answered at once, without another request
		block = max(block, grace)
	}
	a, p = l.await(c, block, 0)
	if p != nil && p.owner != "" {
		a, p = g.elsewhere(c, l.id, p, &forwarded{verb: "acquire", BlockMS: block.Milliseconds(), Encoded: encoded, Shared: shared})
		return a, false, p
	}
	if p != nil && created && p.Cause == causeDraining {
		return nil, false, problem("draining", "the gateway is stopping: ask another one, with the same id")
	}
	return a, created, p
}

func mismatch() *Problem {
	return problem("lease-mismatch", "the lease of this id is for another name, or in another mode")
}

// acquireElsewhere answers a repeated request if another gateway has its lease. It returns
// nothing if none has, or none is known to have: two leases of one id exclude each other.
func (g *Gateway) acquireElsewhere(c *call, l *lease) (*Lease, *Problem) {
	if _, p := g.find(l.key); p == nil || p.isFinal() {
		return nil, nil // it is here
	}
	owner, p := g.peers.ownerOf(c, l.id, l.key, true)
	if p != nil || owner == "" {
		return nil, nil
	}
	block := c.block
	if l.try {
		block = g.limits.UndecidedTryFor
	}
	a, p := g.peers.forward(c, owner, &forwarded{verb: "acquire", Lease: l.key.hex(), BlockMS: block.Milliseconds(), Encoded: l.encoded, Shared: l.shared})
	switch {
	case p != nil && (p.Kind() == "unknown-lease" || p.Cause == causeGatewayLost):
		g.peers.forget(l.key)
		return nil, nil
	case p != nil:
		return nil, p
	case a.Moved: // to this gateway, then
		g.peers.forget(l.key)
		l.age = min(l.age, a.Age)
		return nil, nil
	}
	a.ID, a.Request = l.id, c.request
	return a, nil
}

// newLease is the lease that a request asks for, not yet among the others.
func (g *Gateway) newLease(c *call, id string, in *AcquireRequest) (*lease, *Problem) {
	l := &lease{g: g, who: c.principal, created: c.received, note: in.Note}
	var p *Problem
	if l.name, l.encoded, p = c.nameOf(in.Name, in.Encoded); p != nil {
		return nil, p
	}
	if id != "" {
		if _, err := uuid.Parse(id); err != nil || len(id) != 36 {
			return nil, invalid("the id of the lease is not a UUID such as 0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11")
		}
		id = normalID(id)
	} else {
		id, l.isOurID = g.newID(), true
	}
	l.id, l.key = id, keyOf(c.principal, id)
	switch in.Mode {
	case "", "exclusive":
	case "shared":
		l.shared = true
	default:
		return nil, invalid("mode is exclusive or shared")
	}
	if len(c.principal.prefix)+len(in.Note) > 256 {
		return nil, invalid("note has more than 256 bytes")
	}
	if in.Lease != "" {
		if l.length, p = leaseLength(in.Lease); p != nil {
			return nil, p
		}
	}
	wait := c.block
	if in.Wait != "" {
		if wait, p = duration("wait", in.Wait, 0, maxWait); p != nil {
			return nil, p
		}
	}
	now := c.received
	l.try = wait == 0
	if l.try {
		wait = g.limits.UndecidedTryFor
	}
	l.waitEnd = now.Add(wait)
	l.age = now.UnixMicro()
	if in.Age != 0 {
		switch at := time.UnixMicro(in.Age); {
		case at.After(now.Add(ageSkew)):
			return nil, invalid("age lies in the future: give the age of an earlier answer, in microseconds")
		case at.Before(now.Add(-maxAge)):
			l.age = now.Add(-maxAge).UnixMicro()
		case at.Before(now):
			l.age = in.Age
		}
	}
	return l, nil
}

// leaseLength is a length that some cluster allows. Whether this one does, is known of a Locker.
func leaseLength(text string) (time.Duration, *Problem) {
	return duration("lease", text, minLease, anyLease)
}

func duration(field, text string, least, most time.Duration) (time.Duration, *Problem) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, invalid(field + " is not a duration such as 30s or 1m30s")
	}
	if d < least || d > most {
		return 0, outOfRange(field, least, most)
	}
	return d, nil
}

func outOfRange(field string, least, most time.Duration) *Problem {
	return invalid(fmt.Sprintf("%s must be within %v and %v", field, least, most))
}

// poll tells how a lease stands. revision is that which the caller knows, 0 for none.
func (g *Gateway) poll(c *call, id string, revision int) (*Lease, *Problem) {
	l, p := g.find(keyOf(c.principal, id))
	if p == nil {
		var a *Lease
		if a, p = l.await(c, c.block, revision); p == nil || p.owner == "" {
			return a, p
		}
	}
	return g.elsewhere(c, normalID(id), p, &forwarded{verb: "poll", BlockMS: c.block.Milliseconds(), Revision: revision})
}

// RenewRequest renews a lease.
type RenewRequest struct {
	ID    string `json:"id,omitempty" doc:"of the lease; over HTTP it stands in the path"`
	Lease string `json:"lease,omitempty" format:"go-duration" doc:"another time that the lease lives without a renewal"`
	Token uint64 `json:"token,omitempty" doc:"the fencing token of the hold to renew: if the lease is not known, the answer says that its gateway is gone"`
}

func (g *Gateway) renew(c *call, id string, in *RenewRequest) (*Lease, *Problem) {
	var length time.Duration
	if in.Lease != "" {
		var p *Problem
		if length, p = leaseLength(in.Lease); p != nil {
			return nil, p
		}
	}
	var a *Lease
	l, p := g.find(keyOf(c.principal, id))
	if p == nil {
		if a, p = l.renew(c, length, in.Token); p == nil || p.owner == "" {
			return a, p
		}
	}
	a, p = g.elsewhere(c, normalID(id), p, &forwarded{verb: "renew", Length: length.Milliseconds(), Token: in.Token})
	if p != nil && p.Kind() == "unknown-lease" && in.Token > 0 {
		return nil, gone(causeGatewayLost, in.Token, "no gateway that answers has this lease: the one that had it is gone, and the lock is lost")
	}
	return a, p
}

// release ends a lease. One that is over, or that never was, is released. The problem is that
// its gateway does not answer.
func (g *Gateway) release(c *call, id string) *Problem {
	key := keyOf(c.principal, id)
	l, p := g.find(key)
	if p == nil {
		p = l.release()
	}
	if !p.isFinal() {
		_, p = g.elsewhere(c, normalID(id), p, &forwarded{verb: "release"})
	}
	if p != nil && p.isFinal() && !g.madeByGateway(id) {
		g.peers.tellReleased(key) // another gateway may have a lease of the same id (G10)
	}
	if p != nil && p.Kind() == "unreachable" {
		return p
	}
	return nil
}

// madeByGateway reports whether some gateway made the id of a lease, so that no other has one.
func (g *Gateway) madeByGateway(id string) bool {
	name, _, ok := strings.Cut(id, ".")
	return ok && isGatewayName(name)
}

// ReleaseRequest names the lease to release: by its id, or by lock and token.
type ReleaseRequest struct {
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	Encoded string `json:"encoded,omitempty"`
	Token   uint64 `json:"token,omitempty"`
}

func (g *Gateway) releaseOf(c *call, in *ReleaseRequest) *Problem {
	if in.ID == "" && in.Token == 0 {
		return problem("precondition", "name the lease that you want to release, by its id or by the token of its hold; evict ends the lease of somebody else")
	}
	encoded := ""
	if in.Name != "" || in.Encoded != "" || in.ID == "" || c.resource != "" {
		var p *Problem
		if _, encoded, p = c.nameOf(in.Name, in.Encoded); p != nil {
			return p
		}
	}
	if in.ID != "" {
		if l, p := g.find(keyOf(c.principal, in.ID)); p == nil && encoded != "" && l.encoded != encoded {
			return problem("lease-mismatch", "the lease of this id is for another name")
		}
		return g.release(c, in.ID)
	}
	if l := g.byToken(c.principal.name, encoded, in.Token); l != nil {
		_ = l.release() // it is over now, whatever it was before
		return nil
	}
	return g.peers.releaseByToken(c, encoded, in.Token)
}

// EvictRequest ends a claim of somebody else.
type EvictRequest struct {
	Name    string `json:"name,omitempty"`
	Encoded string `json:"encoded,omitempty"`
	Claim   string `json:"claim,omitempty" doc:"the claim's id, as lists show it; may be left out if the lock has one holder"`
	Reason  string `json:"reason,omitempty" maxLength:"512" doc:"for its client to read"`
}

// Evicted is the answer to an EvictRequest.
type Evicted struct {
	Encoded string `json:"encoded"`
	Claim   string `json:"claim"`
	Client  string `json:"client"`
	Gone    bool   `json:"gone" doc:"a quorum of nodes does not have the claim any more; otherwise its client was told, and its lease is not extended"`
	Request string `json:"request"`
}

func (g *Gateway) evict(c *call, in *EvictRequest) (*Evicted, *Problem) {
	name, encoded, p := c.nameOf(in.Name, in.Encoded)
	if p != nil {
		return nil, p
	}
	locker, err := c.principal.locker(c.ctx, 0)
	if err != nil {
		return nil, problemOf(err)
	}
	info, err := locker.Inspect(c.ctx, name)
	if err != nil {
		return nil, problemOf(err)
	}
	claim, p := claimOf(info, in.Claim)
	if p != nil {
		return nil, p
	}
	reason := in.Reason
	if reason == "" {
		reason = "evicted through a gateway"
	}
	ctx, cancel := context.WithTimeout(c.ctx, max(c.block, 2*time.Second))
	defer cancel()
	a := &Evicted{Encoded: encoded, Claim: claim.ID, Client: claim.Client, Gone: true, Request: c.request}
	err = locker.Evict(ctx, name, *claim, reason)
	if errors.Is(err, qlock.ErrHeld) {
		a.Gone, err = false, nil // it was told
	}
	if err != nil {
		return nil, problemOf(err)
	}
	return a, nil
}

func claimOf(info *qlock.LockInfo, id string) (*qlock.ClaimInfo, *Problem) {
	if id == "" {
		switch len(info.Holders) {
		case 0:
			return nil, problem("not-found", "nobody holds the lock")
		case 1:
			return &info.Holders[0], nil
		}
		return nil, problem("ambiguous", "the lock has %d holders: name the claim", info.Holding)
	}
	for _, list := range [][]qlock.ClaimInfo{info.Holders, info.Queue} {
		for i := range list {
			if list[i].ID == id {
				return &list[i], nil
			}
		}
	}
	return nil, problem("not-found", "the lock has no such claim")
}
