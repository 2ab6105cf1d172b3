package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// Events tells whether a client publishes events for observers.
type Events uint8

const (
	WithEvents Events = iota
	WithoutEvents
)

// Batches tells whether a client puts several requests in one message.
type Batches uint8

const (
	WithBatches Batches = iota
	WithoutBatches
)

// Config is the configuration of a client.
type Config struct {
	Cluster string
	Name    string // name of the client
	Log     *natsio.Log

	Lease        time.Duration // 0: DefaultLease, or the cluster's longest if that is shorter
	DefaultLease time.Duration
	Retention    time.Duration
	PassMost     int           // how often a claim is passed on although others wait; 0: no bound
	PassWithin   time.Duration // how long it is passed on although others wait; 0: no bound

	Events  Events
	Batches Batches
}

// fitLease sets the final lease when the longest lease that the nodes allow is known.
func (c *Config) fitLease(longest time.Duration) error {
	if c.Lease == 0 {
		c.Lease = min(c.DefaultLease, longest)
	}
	if c.Lease > longest {
		return fmt.Errorf("%w: the lease of %v is longer than the %v that cluster %q allows (NodeConfig.MaxLease)", ErrInvalidLease, c.Lease, longest, c.Cluster)
	}
	return nil
}

// Client runs the client machine on a connection. The machine, the publisher, the denials and the
// queries each have a mutex of their own. The exported methods are safe for concurrent use, unless
// their comments say otherwise.
type Client struct {
	cfg     Config
	nc      natsio.Conn
	inbox   string
	machine *machine
	pub     *natsio.Publisher
	denials *natsio.Denials
	queries queries

	published atomic.Uint64 // highest seq of an acquire published before the next denial
	toldGone  atomic.Bool   // whether the log says that the connection is closed

	stop    chan struct{}
	running sync.WaitGroup // the loop and the publisher
	detach  func() error   // removes the client from its connection; set by Run
}

// Open finds the nodes of a cluster and starts a client on a connection. It fails when ctx ends
// first, or after 5 s if ctx has no deadline.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Client, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	opened := make(chan *Client, 1)
	err := natsio.Call(ctx, func() error {
		c, err := open(ctx, nc, cfg)
		if err == nil {
			opened <- c
		}
		return err
	}, func() { _ = (<-opened).Close() })
	if errors.Is(err, natsio.ErrStandsStill) {
		return nil, fmt.Errorf("%w: the nodes of cluster %q could not be asked: %w", ErrNoQuorum, cfg.Cluster, err)
	}
	if err != nil {
		return nil, err
	}
	return <-opened, nil
}

// open does the part of Open that uses the connection, and so may block.
func open(ctx context.Context, nc *nats.Conn, cfg Config) (*Client, error) {
	if nc.IsClosed() {
		return nil, closedError(nc)
	}
	inbox, lastError := nc.NewInbox(), nc.LastError()
	m, err := discover(ctx, nc, inbox, lastError, &cfg)
	if err != nil {
		return nil, err
	}
	if err := cfg.fitLease(m.config.MaxTTL); err != nil {
		return nil, err
	}
	c := NewClient(nc, inbox, lastError, cfg, m)
	// Use a callback, not a channel: the client library's list for callbacks is long, and a full
	// channel loses answers. One subject is enough for all answers, because their bodies name the
	// claims.
	sub, err := nc.Subscribe(inbox, c.Receive)
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	c.denials.Watch(nc)
	status := nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	c.Run(status, func() error {
		nc.RemoveStatusListener(status)
		err := leave(nc, sub, cfg.Log)
		c.denials.Stop() // not earlier: denials of the last messages do not concern the program
		c.denials.Restore(nc)
		return err
	})
	natsio.Advise(nc, cfg.Lease, cfg.Log, "locks")
	return c, nil
}

// NewClient makes a client that knows the nodes. lastError is the last error that the connection
// had before the client existed. cfg.Lease must be final. NewClient starts nothing: see Run.
func NewClient(nc natsio.Conn, inbox string, lastError error, cfg Config, m *Membership) *Client {
	c := &Client{cfg: cfg, nc: nc, inbox: inbox, stop: make(chan struct{})}
	c.denials = natsio.NewDenials(nc, lastError, c.denied)
	c.pub = natsio.NewPublisher(nc, natsio.PublisherConfig{
		Cluster: cfg.Cluster, Client: cfg.Name, Inbox: inbox, Batches: cfg.Batches == WithBatches, MaxPayload: int(nc.MaxPayload()),
	}, cfg.Log, (*publisherOwner)(c))
	c.machine = newMachine(&c.cfg, c.pub, m)
	return c
}

// Run starts the goroutines that run until Close: the loop and the publisher. status receives
// changes of the connection's status. detach removes the client from the connection; Close calls it
// when both goroutines have ended. It may block.
func (c *Client) Run(status <-chan nats.Status, detach func() error) {
	c.detach = detach
	c.running.Go(func() { c.loop(status) })
	c.running.Go(func() { c.pub.Run(c.stop) })
}

// loop calls the machine when time passes or the connection's status changes. The machine decides
// what is due and when: refreshes, repeated requests, losses, the release of retained claims. loop
// must not touch the connection, because a blocked connection must not delay the end of lost locks.
func (c *Client) loop(status <-chan nats.Status) {
	alarm := natsio.NewAlarm()
	defer alarm.Stop()
	for {
		wait := c.machine.sleep()
		select {
		case <-c.stop:
			return
		case <-c.machine.wake:
		case now, ok := <-status:
			switch {
			case !ok:
				status = nil // removed by the program; the timer is enough
			case now == nats.CLOSED:
				c.pub.Wake()
			case now == nats.RECONNECTING:
				c.machine.disconnected()
			default:
				c.pub.Reconnected()
				c.machine.reconnected()
			}
		case <-alarm.In(wait):
			c.pub.Wake() // so that the publisher checks the connection
			c.machine.tick()
		}
	}
}

// Lease returns how long locks outlive a client that falls silent. A change of the list of nodes
// may have made it shorter than the configured one (E18).
func (c *Client) Lease() time.Duration { return time.Duration(c.machine.lease.Load()) }

// Cluster returns the configuration by which votes are counted.
func (c *Client) Cluster() wire.Config { return c.machine.cluster() }

// Stats returns the client's current state and counters.
func (c *Client) Stats() Stats { return c.machine.stats() }

// Losses returns the number of locks that were lost.
func (c *Client) Losses() uint64 { return c.machine.losses.Load() }

// Closed returns a channel that Close closes.
func (c *Client) Closed() <-chan struct{} { return c.stop }

// Start requests a lock, initializes h with it, and does not wait. Hold.Ready and Hold.Wait report
// the outcome. The lock's context has the values of ctx.
func (c *Client) Start(ctx context.Context, h *Hold, r Request) {
	h.client, h.request, h.ready = c, r, make(chan struct{})
	h.parent = holdContext{ctx, h}
	h.ctx, h.cancel = context.WithCancelCause(&h.parent)
	deadline, ok := ctx.Deadline()
	if !c.machine.acquire(h, ok && time.Until(deadline) < time.Second) {
		h.failure = &Failure{Reason: ErrClosed}
		h.settle()
	}
}

func (c *Client) unlock(h *Hold) error {
	for {
		was, isHeld, last := c.machine.unlock(h)
		switch {
		case isHeld:
			h.cancel(ErrUnlocked) // before any other holder, here or elsewhere (C7) //plant:unlock
			c.machine.release(h)
			if last {
				c.pub.Yield()
			}
			return nil
		case was == held: // the loss has not been noticed yet
			c.machine.tick()
		case was == left:
			h.cancel(h.lost)
			c.machine.release(h)
			return h.lost
		case was == lost, was == expired:
			// Another goroutine may be ending the context. It has ended when cancel returns.
			h.cancel(h.lost)
			return h.lost
		default:
			return nil
		}
	}
}

// Close releases all locks, fails all waiting requests with ErrClosed, and stops what Run started.
// It waits for the connection for 1 s at most. Calling it again does nothing.
func (c *Client) Close() error {
	all, first := c.machine.close()
	if !first {
		return nil
	}
	c.machine.giveUpAll(all)
	close(c.stop)
	return natsio.Leave(func() error {
		c.running.Wait()
		return c.detach()
	}, c.cfg.Log, "the NATS connection is blocked; the last releases may not reach the nodes, and the leases will expire")
}

// leave ends the subscription of a client that has stopped, and waits until the server has its last
// messages.
func leave(nc *nats.Conn, sub *nats.Subscription, log *natsio.Log) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second-2*natsio.LogPatience)
	defer cancel()
	if nc.IsClosed() {
		return nil
	}
	err := sub.Unsubscribe()
	if flushErr := nc.FlushWithContext(ctx); flushErr != nil && err == nil && !errors.Is(flushErr, nats.ErrConnectionClosed) {
		log.Line(slog.LevelWarn, "the last releases may not have reached the nodes; the leases will expire", "error", flushErr)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
		return fmt.Errorf("qlock: close: %w", err)
	}
	return nil
}

var (
	answers     = sync.Pool{New: func() any { return new(wire.Answer) }}
	answerLists = sync.Pool{New: func() any { return new([]wire.Answer) }}
)

// Receive handles a message to the inbox. The subscription's goroutine calls it.
func (c *Client) Receive(m *nats.Msg) {
	if natsio.NobodyHears(m) {
		return // the server reports that no node listens; that is silence, not an answer
	}
	if wire.IsList(m.Data) {
		c.receiveList(m.Data)
		return
	}
	a := answers.Get().(*wire.Answer)
	defer answers.Put(a)
	if err := a.Decode(m.Data); err != nil {
		c.malformed(m.Data, err)
		return
	}
	if isReply(a.Kind) {
		c.receiveReply(*a)
		return
	}
	c.machine.handleOne(a)
}

// receiveList handles a node's answers to a batch.
func (c *Client) receiveList(body []byte) {
	list := answerLists.Get().(*[]wire.Answer)
	var err error
	*list, err = wire.DecodeAnswers((*list)[:0], body)
	if err != nil {
		c.malformed(body, err)
	}
	c.pub.BatchAnswered()
	for _, a := range *list {
		if isReply(a.Kind) {
			c.receiveReply(a)
		}
	}
	c.machine.handle(*list)
	if cap(*list) <= 4*wire.MaxBatch { // do not keep the memory of an abnormally long list
		clear(*list)
		answerLists.Put(list)
	}
}

// isReply reports whether answers of this kind are not about a claim of this client.
func isReply(k wire.Kind) bool {
	return k == wire.Informed || k == wire.Listed || k == wire.Evicting
}

// receiveReply handles an answer to a question about the nodes or about claims of any client.
func (c *Client) receiveReply(a wire.Answer) {
	if a.Kind == wire.Informed {
		a.Nonce = a.Info.Nonce
		c.machine.informed(&a)
		c.queries.informed(&a)
	}
	if c.isOurs(&a) {
		c.queries.reply(&a)
	}
}

// isOurs reports whether an answer may belong to a query of this client. Answers to info do not
// name the client that asked.
func (c *Client) isOurs(a *wire.Answer) bool {
	return (a.Client == c.cfg.Name || a.Kind == wire.Informed) && a.Digest == c.machine.digest()
}

func (c *Client) malformed(body []byte, err error) {
	c.cfg.Log.Line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(body))
}

// publisherOwner is the part of a Client that its publisher calls.
type publisherOwner Client

// BeforePublish reads the connection's last error before more is published: that error cannot be
// about messages that have not been published yet.
func (o *publisherOwner) BeforePublish(acquired uint64) {
	o.denials.Read()
	// A repeated request of an older claim must not lower it.
	o.published.Store(max(o.published.Load(), acquired))
}

// PayloadChanged limits the size of messages to the most bytes that the connection accepts.
func (o *publisherOwner) PayloadChanged(most int) { o.machine.fit(most) }

// ConnectionClosed fails everything that waits for a connection that is permanently closed.
func (o *publisherOwner) ConnectionClosed() {
	c := (*Client)(o)
	cause := natsio.CloseCause(c.nc)
	c.machine.failWaiting(ErrClosed, cause, func(*Hold) bool { return true })
	c.queries.failAll(fmt.Errorf("%w: %w", ErrClosed, cause))
	if first := !c.toldGone.Swap(true); first && !c.isClosed() {
		c.cfg.Log.Line(slog.LevelError, "the NATS connection is closed permanently: this Locker gets no more locks, and locks that it holds are lost when their leases end",
			"held", c.machine.stats().Held, "error", cause)
	}
}

func (c *Client) isClosed() bool {
	c.machine.mu.Lock()
	defer c.machine.mu.Unlock()
	return c.machine.closed
}

// denied fails the claims and queries whose requests the server denied. It reports whether the
// denial was expected and affects none of them. See natsio.NewDenials.
func (c *Client) denied(err error, known bool) (expected bool) {
	on, ok := natsio.DeniedSubject(err)
	if !ok {
		return false
	}
	if isBatch, lost := c.pub.BatchDenied(on); isBatch {
		if lost {
			c.machine.reconnected()
		}
		return true
	}
	if known || !c.concerns(on) {
		return false
	}
	cause := natsio.PermissionError(on, err)
	refused := fmt.Errorf("%w: %w", ErrRefused, cause)
	c.queries.fail(on, refused)
	if on == infoSubject(c.cfg.Cluster, c.cfg.Name) {
		c.queries.failMembers(refused)
	}
	published := c.published.Load()
	c.machine.failWaiting(ErrRefused, cause, func(h *Hold) bool {
		claim := h.use.Claim()
		return claim != nil && claim.Seq() <= published && on == subject.Request(c.cfg.Cluster, subject.Acquire, c.cfg.Name, h.request.Resource)
	})
	c.cfg.Log.Line(slog.LevelError, "NATS permissions are missing", "subject", on, "error", err)
	return false
}

// concerns reports whether this client publishes or subscribes on a subject. Other users of the
// connection have other subjects.
func (c *Client) concerns(on string) bool {
	p, ok := subject.Split(on)
	return on == c.inbox || ok && p.Cluster == c.cfg.Cluster && p.Client == c.cfg.Name
}
