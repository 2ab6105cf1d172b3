package natsio

import (
	"sync/atomic"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// batching decides whether several requests of a client may go in one message. The subject
// of a batch names no resource, so a batch needs a permission of its own. A user who is
// limited to some resources must not have that permission. To find out whether the user has
// it, and whether the nodes subscribe to batches, the first occasion for a batch sends one
// that only asks for an answer. Until the answer arrives, requests are sent one by one.
//
// Only the publisher's goroutine may call allowed. Any goroutine may call the other
// methods.
type batching struct {
	subject string
	state   atomic.Int32
	asked   time.Time // used by the publisher's goroutine only
}

const (
	batchesUnknown int32 = iota
	batchesAsked
	batchesAllowed
	batchesDenied // by NATS, for this connection
	batchesUnwanted
)

// batchPatience is how long batching waits for an answer before it asks again.
const batchPatience = 10 * time.Second

// allowed reports whether batches may be sent. If that is not known yet, it asks the nodes
// and returns false.
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
		// If this fails, the next publish fails too, and reports it.
		_ = nc.PublishRequest(b.subject, inbox, question)
	}
	return false
}

// answered records that a node answered a batch.
func (b *batching) answered() { b.state.CompareAndSwap(batchesAsked, batchesAllowed) }

// deny records that NATS denies batches. It reports whether batches with requests may have
// been lost.
func (b *batching) deny() (lost bool) {
	if b.state.CompareAndSwap(batchesAllowed, batchesDenied) {
		return true
	}
	b.state.CompareAndSwap(batchesAsked, batchesDenied)
	return false
}

// reset discards the result after a reconnect: it may not hold for the new connection.
func (b *batching) reset() {
	if b.state.Load() != batchesUnwanted {
		b.state.Store(batchesUnknown)
	}
}

// batch collects several requests for one message. Only the publisher's goroutine uses it.
type batch struct {
	most  int // limit of its size in bytes; 0: no request fits
	body  []byte
	count int
	reply bool // one of its requests wants an answer
}

// room is how many bytes of a batch a request needs besides its name and body.
const room = len(`,{"verb":"acquire","name":"",]`)

// fits reports whether the batch has room for one more request.
func (b *batch) fits(name string, body []byte) bool {
	return b.count < wire.MaxBatch && len(b.body)+len(name)+len(body)+room <= b.most
}

func (b *batch) add(verb wire.Verb, name string, body []byte, reply bool) {
	b.body = wire.AppendToBatch(wire.AppendSeparator(b.body), verb, name, body)
	b.reply = b.reply || reply
	b.count++
}

func (b *batch) reset() { b.body, b.count, b.reply = b.body[:0], 0, false }
