package qlock

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/proto"
)

// batching is whether several requests of a Locker may go in one message. The subject
// of a batch names no resource, so it needs a permission of its own, and a user who is
// limited to some resources must not have it. Whether this one has, and whether nodes
// hear it, is asked when there first is something to put together: by a batch that
// wants nothing but an answer. Until that has come, requests go one by one.
type batching struct {
	subject string
	state   atomic.Int32
	asked   time.Time // the outbox's own
}

const (
	batchesUnknown int32 = iota
	batchesAsked
	batchesAllowed
	batchesDenied // by NATS, for this connection
	batchesUnwanted
)

// batchPatience is how long an answer may take before it is asked again.
const batchPatience = 10 * time.Second

// may reports whether batches may be sent. If that is not known, it asks.
func (b *batching) may(nc *nats.Conn, inbox string) bool {
	switch state := b.state.Load(); state {
	case batchesAllowed:
		return true
	case batchesUnknown, batchesAsked:
		if state == batchesAsked && time.Since(b.asked) < batchPatience || !b.state.CompareAndSwap(state, batchesAsked) {
			return false
		}
		b.asked = time.Now()
		question := proto.AppendRequest(nil, &proto.Request{Verb: proto.Info, Nonce: "batch"})
		question = append(proto.AppendToBatch(proto.AppendSeparator(nil), proto.Info, "", question), ']')
		_ = nc.PublishRequest(b.subject, inbox, question) // what follows fails too, and says so
	}
	return false
}

// heard notes that a batch was answered.
func (b *batching) heard() { b.state.CompareAndSwap(batchesAsked, batchesAllowed) }

// deny notes that NATS lets no batch through, and reports whether some may have been
// lost.
func (b *batching) deny() (lost bool) {
	if b.state.CompareAndSwap(batchesAllowed, batchesDenied) {
		return true
	}
	b.state.CompareAndSwap(batchesAsked, batchesDenied)
	return false
}

// anew forgets what was known of another connection to a server.
func (b *batching) anew() {
	if b.state.Load() != batchesUnwanted {
		b.state.Store(batchesUnknown)
	}
}

// parcel is a batch that is being put together.
type parcel struct {
	most  int // bytes of it
	body  []byte
	count int
	reply bool // one of its requests wants an answer
}

// room is what a parcel needs for a request beside its body.
const room = len(`,{"verb":"acquire","name":"",]`)

// fits reports whether a request can be added to what there is already.
func (p *parcel) fits(name string, body []byte) bool {
	return p.count < proto.MaxBatch && len(p.body)+len(name)+len(body)+room <= p.most
}

func (p *parcel) add(verb proto.Verb, name string, body []byte, reply bool) {
	p.body = proto.AppendToBatch(proto.AppendSeparator(p.body), verb, name, body)
	p.reply = p.reply || reply
	p.count++
}

func (p *parcel) reset() { p.body, p.count, p.reply = p.body[:0], 0, false }
