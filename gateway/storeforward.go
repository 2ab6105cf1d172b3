package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

// Transactions under a lease of another gateway. They are sent once: a message that had no
// answer may have been done.

const verbStore = "store"

// transact lets the owner of a lease do a transaction.
func (p *peers) transact(c *call, owner string, key leaseKey, t *transaction) (*TransactionAnswer, *Problem) {
	in := *t.in
	in.Lease = "" // its digest stands beside it
	f := &forwarded{Gateway: p.g.name, Principal: c.principal.name, Lease: key.hex(), Request: c.request, BlockMS: storeTime.Milliseconds(), Transaction: &in, verb: verbStore, write: t.writes}
	text, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	p.g.counters.forwarded.Add(1)
	sent := *c
	if t.writes {
		sent.ctx = context.WithoutCancel(c.ctx)
	}
	began := time.Now()
	for {
		m, err := p.request(&sent, owner, f, text)
		lives, known := p.state(owner)
		switch {
		case err == nil:
			return readTransaction(m.Data, t.writes)
		case err == errNewWay && !t.writes:
			continue
		case errors.Is(err, nats.ErrMaxPayload):
			return nil, problem("too-large", "gateway %s has the lease, and the request is larger than what the NATS server lets this one forward to it; nothing was written", owner)
		case !errors.Is(err, nats.ErrNoResponders) && t.writes:
			return nil, problem("unknown-outcome", "gateway %s, which has the lease, does not answer, and it may or may not have been done", owner)
		case !lives && known:
			return nil, gone(causeGatewayLost, 0, "gateway %s, which had the lease, is gone", owner)
		case !errors.Is(err, nats.ErrNoResponders) || time.Since(began) > forwardRetry:
			return nil, problem("unreachable", "gateway %s, which has the lease, does not answer; nothing was written", owner)
		}
		select { // nobody has received it
		case <-time.After(100 * time.Millisecond):
		case <-c.ctx.Done():
			return nil, problem("unreachable", "gateway %s, which has the lease, does not answer; nothing was written", owner)
		}
	}
}

func readTransaction(text []byte, writes bool) (*TransactionAnswer, *Problem) {
	a := new(answered)
	if err := json.Unmarshal(text, a); err != nil || (a.Transaction == nil) == (a.Problem == nil) {
		if !writes {
			return nil, problem("unreachable", "the gateway that has the lease gave an answer that cannot be read")
		}
		return nil, problem("unknown-outcome", "the gateway that has the lease gave an answer that cannot be read, so it may or may not have been done")
	}
	if a.Problem != nil {
		a.Problem.retryAfter = time.Duration(a.RetryAfterMS) * time.Millisecond
		return nil, a.Problem
	}
	return a.Transaction, nil
}

// onTransaction does a transaction under a lease of this gateway. Its body may be larger than
// those of the other requests.
func (p *peers) onTransaction(m *nats.Msg, received time.Time) {
	f := new(forwarded)
	if !isInbox(m.Reply) || json.NewDecoder(bytes.NewReader(m.Data)).Decode(f) != nil || !isToken(f.Request, 64) || f.Transaction == nil {
		return
	}
	ok := p.g.inBackground(func() {
		ctx, cancel := context.WithTimeout(context.Background(), storeTime+5*time.Second)
		defer cancel()
		p.g.counters.answered.Add(1)
		a, why := p.g.ownedTransaction(&call{ctx: ctx, received: received, request: f.Request}, f)
		out := &answered{Transaction: a, Problem: why}
		if why != nil {
			out.RetryAfterMS = why.retryAfter.Milliseconds()
		}
		p.answerTo(m, out)
		p.g.log.Debug("request of another gateway", append([]any{"verb", verbStore, "gateway", f.Gateway, "request", f.Request}, traceOf(natsValues(m.Header)).args()...)...)
	})
	if !ok {
		p.answerTo(m, &answered{Problem: problem("too-many", "%d requests are being served", natsRequests)})
	}
}

func (g *Gateway) ownedTransaction(c *call, f *forwarded) (*TransactionAnswer, *Problem) {
	key, ok := keyFrom(f.Principal, f.Lease)
	if !ok || f.Transaction.Lock != nil {
		return nil, unknownLease()
	}
	l, p := g.find(key)
	if p != nil {
		return nil, p
	}
	c.principal = l.who
	t, p := g.transactionOf(f.Transaction)
	if p != nil {
		return nil, p
	}
	return g.underLease(c, t, l)
}
