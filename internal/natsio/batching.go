package natsio

import (
	"sync/atomic"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// batching is whether several requests of a client may go in one message. The subject
// of a batch names no resource, so it needs a permission of its own, and a user who is
// limited to some resources must not have it. Whether this user has it, and whether
// nodes hear batches, is asked when there first is something to put together: by a batch
// that wants nothing but an answer. Until that has come, requests go one by one.
//
// The publisher's goroutine calls allowed; any goroutine may call the other methods.
type batching struct {
	subject string
	state   atomic.Int32
	asked   time.Time // the publisher's goroutine alone uses it
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

// allowed reports whether batches may be sent. If that is not known, it asks.
func (b *batching) allowed(nc Conn, inbox string) bool {
	switch state := b.state.Load(); state {
	case batchesAllowed:
		return true
	case batchesUnknown, batchesAsked:
		if state == batchesAsked && time.Since(b.asked) < batchPatience || !b.state.CompareAndSwap(state, batchesAsked) {
			return false
		}
		b.asked = time.Now()
		question := wire.AppendRequest(nil, &wire.Request{Verb: wire.Info, Nonce: "batch"})
		question = append(wire.AppendToBatch(wire.AppendSeparator(nil), wire.Info, "", question), ']')
		_ = nc.PublishRequest(b.subject, inbox, question) // what follows fails too, and reports it
	}
	return false
}

// answered notes that a node answered a batch.
func (b *batching) answered() { b.state.CompareAndSwap(batchesAsked, batchesAllowed) }

// deny notes that NATS lets no batch through, and reports whether some may have been
// lost.
func (b *batching) deny() (lost bool) {
	if b.state.CompareAndSwap(batchesAllowed, batchesDenied) {
		return true
	}
	b.state.CompareAndSwap(batchesAsked, batchesDenied)
	return false
}

// reset forgets what was known of another connection to a server.
func (b *batching) reset() {
	if b.state.Load() != batchesUnwanted {
		b.state.Store(batchesUnknown)
	}
}

// batch is several requests that are put into one message. The publisher's goroutine
// alone uses it.
type batch struct {
	most  int // bytes of it; 0: nothing fits
	body  []byte
	count int
	reply bool // one of its requests wants an answer
}

// room is what a batch needs for a request beside its body.
const room = len(`,{"verb":"acquire","name":"",]`)

// fits reports whether a request can be added to what there is already.
func (b *batch) fits(name string, body []byte) bool {
	return b.count < wire.MaxBatch && len(b.body)+len(name)+len(body)+room <= b.most
}

func (b *batch) add(verb wire.Verb, name string, body []byte, reply bool) {
	b.body = wire.AppendToBatch(wire.AppendSeparator(b.body), verb, name, body)
	b.reply = b.reply || reply
	b.count++
}

func (b *batch) reset() { b.body, b.count, b.reply = b.body[:0], 0, false }
