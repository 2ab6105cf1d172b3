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

// PublisherConfig is what a Publisher is told at its start.
type PublisherConfig struct {
	Cluster, Client string
	Inbox           string // where answers go
	Batches         bool   // requests may go together in one message, if NATS lets them
	MaxPayload      int    // bytes of a message that the connection takes; 0: not known
}

// PublisherOwner is told by a Publisher what it finds when it looks at its connection.
// The Publisher's goroutine makes the calls, before it publishes more.
type PublisherOwner interface {
	// BeforePublish is called before messages are published; acquired is the highest
	// claim number that they ask for, or 0.
	BeforePublish(acquired uint64)
	// PayloadChanged says that the connection takes another number of bytes now.
	PayloadChanged(most int)
	// ConnectionClosed says that the connection is closed for ever. It may be called
	// again.
	ConnectionClosed()
}

// Publisher publishes for a client, in order, from a goroutine of its own, which calls
// Run. Publishing may stand still for as long as the connection does: while it
// reconnects or flushes into a black hole, every call on it waits for its mutex, for up
// to a minute. The clock goes on meanwhile, and whoever holds a lock must be told that
// it is lost. So only the Publisher's goroutine touches the connection while a client
// runs. Any goroutine may call the other methods, and none of them waits.
type Publisher struct {
	nc    Conn
	cfg   PublisherConfig
	owner PublisherOwner
	log   *Log
	most  atomic.Int64 // bytes of a message that the connection takes; 0: not known yet

	batching batching

	mu      sync.Mutex // guards what follows; nothing is published under it
	queue   queue
	spare   queue // the memory of the queue before
	dropped bool  // messages were dropped since the queue was last taken
	crowded bool  // several goroutines lock and unlock just now
	paused  int   // how often it was told to publish nothing for now
	timed   bool  // the timer for events runs

	wake   chan struct{} // has room for one
	events *time.Timer   // sees to events that nothing else took along

	yieldAgain atomic.Int64 // until then (ns since 1970) nobody gives way in Yield

	// The goroutine of Run alone uses these.
	batch       batch
	noWaitUntil time.Time // until then it does not wait for others to add their messages
}

// eventDelay is how long events wait for company. Most locks are given back before
// that, and an event that goes with the release costs no flush and no switch of its
// own.
const eventDelay = 2 * time.Millisecond

// longTurn is as long as Go lets one goroutine compute while others are ready to run,
// and busyTime how long nobody is waited for after somebody computed that long.
const (
	longTurn = 10 * time.Millisecond
	busyTime = time.Second
)

// NewPublisher makes a Publisher. It publishes nothing until Run is called.
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

// Requests queues what a step of the machine gave. Call it in the order of the steps:
// were an acquire to overtake its claim's release, the nodes would have a vote for nobody
// until it is swept (C9). crowded says that several goroutines lock and unlock just now.
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

// Event queues an event. It goes with the next request, or a little later.
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

// Pause keeps it from publishing until Resume was called as often. It looks at the
// connection meanwhile, as ever.
func (p *Publisher) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused++
}

// Resume undoes one Pause.
func (p *Publisher) Resume() {
	p.mu.Lock()
	p.paused--
	p.mu.Unlock()
	p.Wake()
}

// Wake makes it look at the connection, also when there is nothing to publish.
func (p *Publisher) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Yield lets the Publisher publish before its caller goes on, for programs that end, or
// close their connection, right after their last Unlock. It is no promise; and in a
// program that computes all the time it is not tried.
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

// MaxBody is how many bytes of a message the connection takes, as far as known.
func (p *Publisher) MaxBody() int {
	if most := p.most.Load(); most > 0 {
		return int(most)
	}
	return wire.MaxBody
}

// BatchAnswered notes that a node answered a batch.
func (p *Publisher) BatchAnswered() { p.batching.answered() }

// BatchDenied takes the subject of a publish that NATS denied. It reports whether that
// was a batch's, and whether requests may have been lost with it.
func (p *Publisher) BatchDenied(subject string) (isBatch, lost bool) {
	if subject != p.batching.subject {
		return false, false
	}
	return true, p.batching.deny()
}

// Reconnected forgets what was known of another connection to a server: permissions may
// be others now.
func (p *Publisher) Reconnected() { p.batching.reset() }

// Run publishes until stop is closed, and then what there is.
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

// publish looks at the connection and publishes what is queued.
func (p *Publisher) publish() {
	// Another server may take less.
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
		case m.verb == "": // an event may overtake requests, but not they it
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

// take gives what is to be published. Where several are about it, those that are ready
// to run put in theirs first: what goes in one message costs all of us a fraction. But
// in a program that computes all the time, that is to wait for a turn with those who
// do, and each turn is ten milliseconds: then it does without for a while.
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
	p.spare = queue{} // it is in use
	return q, dropped
}
