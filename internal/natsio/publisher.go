package natsio

import (
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// PublisherConfig is the configuration of a Publisher.
type PublisherConfig struct {
	Cluster, Client string
	Inbox           string // where answers are sent
	Batches         bool   // several requests may go in one message, if NATS permits it
	MaxPayload      int    // largest message that the connection takes, bytes; 0: not known
}

// PublisherOwner receives what a Publisher finds when it looks at its connection. The
// Publisher's goroutine makes the calls, before it publishes more.
type PublisherOwner interface {
	// BeforePublish is called before messages are published; acquired is the highest claim
	// number that they ask for, or 0.
	BeforePublish(acquired uint64)
	// PayloadChanged is called when the size of the largest message that the connection takes
	// has changed to most bytes.
	PayloadChanged(most int)
	// ConnectionClosed is called when the connection is closed permanently. It may be called
	// again.
	ConnectionClosed()
}

// Publisher publishes the messages of a client, in order, from a goroutine of its own,
// which calls Run. Publishing may block for as long as the connection does: while the
// connection reconnects, or flushes to a peer that accepts nothing, every call on it waits
// for its mutex, for up to a minute. Leases go on expiring meanwhile, and the holder of a
// lost lock must be told in time. So only the Publisher's goroutine uses the connection
// while a client runs. Any goroutine may call the other methods, and none of them waits.
type Publisher struct {
	nc    Conn
	cfg   PublisherConfig
	owner PublisherOwner
	log   *Log
	most  atomic.Int64 // largest message that the connection takes, bytes; 0: not known yet

	batching batching

	mu      sync.Mutex // guards what follows; nothing is published under it
	queue   queue
	spare   queue // the memory of the previous queue
	dropped bool  // messages were dropped since the queue was last taken
	crowded bool  // several goroutines lock and unlock at present
	paused  int   // number of calls of Pause without a Resume
	timed   bool  // the timer for events runs

	wake   chan struct{} // has room for one
	events *time.Timer   // publishes events if no request takes them along

	yieldAgain atomic.Int64 // Yield does nothing until then (ns since 1970)

	// Only the goroutine of Run uses these.
	batch       batch
	noWaitUntil time.Time // until then it does not wait for others to add their messages
}

// eventDelay is how long events wait for other messages. Most locks are released before
// that. An event that goes with the release needs no flush and no switch of goroutines of
// its own.
const eventDelay = 2 * time.Millisecond

// longTurn is how long Go lets one goroutine compute while others are ready to run. After a
// wait that long, the Publisher does not wait for other goroutines for busyTime.
const (
	longTurn = 10 * time.Millisecond
	busyTime = time.Second
)

// NewPublisher returns a Publisher. It publishes nothing until Run is called.
func NewPublisher(nc Conn, cfg PublisherConfig, log *Log, owner PublisherOwner) *Publisher {
	p := &Publisher{nc: nc, cfg: cfg, owner: owner, log: log, wake: make(chan struct{}, 1)}
	p.most.Store(int64(cfg.MaxPayload))
	p.batching.subject = subject.Batch(cfg.Cluster, cfg.Client)
	if !cfg.Batches {
		p.batching.state.Store(batchesUnwanted)
	}
	p.events = time.AfterFunc(Idle, p.wakeForEvents)
	return p
}

// Requests queues the requests of one step of the machine. It must be called in the order
// of the steps: if an acquire overtook the release of its claim, the nodes would have a
// vote for a claim that is over until it is swept (C9). crowded means that several
// goroutines lock and unlock at present.
func (p *Publisher) Requests(all []wire.Request, crowded bool) {
	p.mu.Lock()
	p.crowded = crowded
	most := p.MaxBody()
	for i := range all {
		if p.queue.isFull() {
			p.dropped = true
			break
		}
		p.queue.addRequest(p.cfg.Cluster, &all[i], most)
	}
	p.mu.Unlock()
	p.Wake()
}

// Event queues an event. It is published with the next request, or a little later.
func (p *Publisher) Event(kind, resource string, e *wire.EventBody) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.isFull() {
		p.dropped = true
		return
	}
	p.queue.addEvent(p.cfg.Cluster, kind, p.cfg.Client, resource, e, p.MaxBody())
	if !p.timed {
		p.timed = true
		p.events.Reset(eventDelay)
	}
}

func (p *Publisher) wakeForEvents() {
	p.mu.Lock()
	waiting := len(p.queue.messages) > 0
	p.timed = false
	p.mu.Unlock()
	if waiting {
		p.Wake()
	}
}

// Pause stops publishing until Resume was called as often as Pause. The Publisher still
// looks at the connection meanwhile.
func (p *Publisher) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused++
}

// Resume cancels one Pause.
func (p *Publisher) Resume() {
	p.mu.Lock()
	p.paused--
	p.mu.Unlock()
	p.Wake()
}

// Wake makes the Publisher look at the connection, even if it has nothing to publish.
func (p *Publisher) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Yield gives the Publisher an opportunity to publish before the caller goes on. It is for
// programs that end, or close their connection, right after their last Unlock. It
// guarantees nothing, and it does nothing in a program that computes all the time.
func (p *Publisher) Yield() {
	before := time.Now()
	if before.UnixNano() < p.yieldAgain.Load() {
		return
	}
	runtime.Gosched()
	if after := time.Now(); after.Sub(before) > longTurn/10 {
		p.yieldAgain.Store(after.Add(busyTime).UnixNano())
	}
}

// MaxBody returns the size of the largest message that the connection takes, in bytes, as
// far as known.
func (p *Publisher) MaxBody() int {
	if most := p.most.Load(); most > 0 {
		return int(most)
	}
	return wire.MaxBody
}

// BatchAnswered records that a node answered a batch.
func (p *Publisher) BatchAnswered() { p.batching.answered() }

// BatchDenied records that NATS denied a publish on subject. It reports whether that is the
// subject of batches, and whether requests may have been lost with a batch.
func (p *Publisher) BatchDenied(subject string) (isBatch, lost bool) {
	if subject != p.batching.subject {
		return false, false
	}
	return true, p.batching.deny()
}

// Reconnected discards what was known about the previous connection to a server: the
// permissions may be different now.
func (p *Publisher) Reconnected() { p.batching.reset() }

// Run publishes until stop is closed, and then publishes what is still queued.
func (p *Publisher) Run(stop <-chan struct{}) {
	defer p.events.Stop()
	for {
		select {
		case <-p.wake:
			p.publish()
		case <-stop:
			p.publish()
			return
		}
	}
}

// publish looks at the connection and publishes the queue.
func (p *Publisher) publish() {
	// After a reconnect, the new server may have a lower limit.
	if most := p.nc.MaxPayload(); most > 0 && most != p.most.Swap(most) {
		p.owner.PayloadChanged(int(most))
	}
	q, dropped := p.take()
	p.owner.BeforePublish(q.acquired)
	switch err := p.send(q); {
	case errors.Is(err, nats.ErrConnectionClosed), len(q.messages) == 0 && p.nc.IsClosed():
		p.owner.ConnectionClosed()
	case err != nil:
		p.log.Line(slog.LevelWarn, "publish failed, it will be repeated", "error", err)
	case dropped:
		p.log.Line(slog.LevelWarn, "the NATS connection is blocked; messages were dropped and will be repeated")
	}
	p.mu.Lock()
	p.spare = q.emptied()
	p.mu.Unlock()
}

// send publishes a queue, and returns the first error.
func (p *Publisher) send(q queue) (failed error) {
	publish := func(subject string, body []byte, reply bool) {
		var err error
		if reply {
			err = p.nc.PublishRequest(subject, p.cfg.Inbox, body)
		} else {
			err = p.nc.Publish(subject, body)
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	b := &p.batch
	flush := func() {
		if b.count > 0 {
			publish(p.batching.subject, append(b.body, ']'), b.reply)
			b.reset()
		}
	}
	if q.batchable > 1 && p.batching.allowed(p.nc, p.cfg.Inbox) {
		b.most = min(wire.MaxBatchBody, p.MaxBody())
	} else {
		b.most = 0
	}
	subjects, last := string(q.subjects), message{}
	for _, m := range q.messages {
		subject, name, body := subjects[last.subject:m.subject], subjects[m.name:m.subject], q.bodies[last.body:m.body]
		last = m
		switch {
		case m.verb == "": // an event may overtake requests, but requests may not overtake an event
			publish(subject, body, m.reply)
			continue
		case !m.batchable():
			flush()
		default:
			if !b.fits(name, body) {
				flush()
			}
			if b.fits(name, body) {
				b.add(m.verb, name, body, m.reply)
				continue
			}
		}
		publish(subject, body, m.reply)
	}
	flush()
	return failed
}

// take returns the messages to publish. If several goroutines lock and unlock, those that
// are ready to run may add their messages first, since messages that share a batch cost
// much less. But in a program that computes all the time, this means to wait until
// goroutines that compute have used their turns of ten milliseconds each. After such a
// wait, take stops waiting for a while.
func (p *Publisher) take() (q queue, dropped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.crowded && p.batching.state.Load() == batchesAllowed {
		p.mu.Unlock()
		if before := time.Now(); before.After(p.noWaitUntil) {
			runtime.Gosched()
			if after := time.Now(); after.Sub(before) > longTurn {
				p.noWaitUntil = after.Add(busyTime)
			}
		}
		p.mu.Lock()
	}
	if p.paused > 0 { //plant:ends-awaited
		return queue{}, false
	}
	q, dropped = p.queue, p.dropped
	p.queue, p.dropped = p.spare, false
	p.spare = queue{} // in use now
	return q, dropped
}
