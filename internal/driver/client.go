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

// Events is whether a client publishes events for observers.
type Events uint8

const (
	WithEvents Events = iota
	WithoutEvents
)

// Batches is whether a client puts several requests in one message.
type Batches uint8

const (
	WithBatches Batches = iota
	WithoutBatches
)

// Config is what a client is told at its start.
type Config struct {
	Cluster string
	Name    string // of the client
	Log     *natsio.Log

	Lease        time.Duration // 0: DefaultLease, or the cluster's longest if that is shorter
	DefaultLease time.Duration
	Retention    time.Duration
	PassMost     int           // how often a claim is passed on that others wait for; 0: no bound
	PassWithin   time.Duration // and for how long; 0: no bound

	Events  Events
	Batches Batches
}

// fitLease settles the lease when it is known what the nodes allow.
func (c *Config) fitLease(longest time.Duration) error {
	if c.Lease == 0 {
		c.Lease = min(c.DefaultLease, longest)
	}
	if c.Lease > longest {
		return fmt.Errorf("%w: the lease of %v is longer than the %v that cluster %q allows (NodeConfig.MaxLease)", ErrInvalidLease, c.Lease, longest, c.Cluster)
	}
	return nil
}

// Client runs the client machine on a connection. Its parts have locks of their own:
// the machine, the publisher, the denials and the queries. Any goroutine may call its
// exported methods, but for those that say otherwise.
type Client struct {
	cfg     Config
	nc      natsio.Conn
	inbox   string
	machine *machine
	pub     *natsio.Publisher
	denials *natsio.Denials
	queries queries

	published atomic.Uint64 // claims up to this number were asked for before the next denial
	toldGone  atomic.Bool   // it was said that the connection is closed

	stop    chan struct{}
	running sync.WaitGroup // the loop and the publisher
	detach  func() error   // takes the client from its connection; Run sets it
}

// Open finds the nodes of a cluster and starts a client on a connection. It fails when
// ctx ends before that, or after 5 s if ctx has no deadline.
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

// open does what Open has to do with the connection, which may stand still.
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
	// A callback, not a channel: the client library's list for callbacks is long,
	// and a full channel loses answers. One subject for all answers: they carry
	// their claim in the body.
	sub, err := nc.Subscribe(inbox, c.Receive)
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	c.denials.Watch(nc)
	status := nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	c.Run(status, func() error {
		nc.RemoveStatusListener(status)
		err := leave(nc, sub, cfg.Log)
		c.denials.Stop() // not before: what is denied of the last messages is no news to the caller
		c.denials.Restore(nc)
		return err
	})
	natsio.Advise(nc, cfg.Lease, cfg.Log, "locks")
	return c, nil
}

// NewClient makes a client that knows the nodes. lastError is the error of the connection
// that is older than the client. The lease must be settled. It starts nothing: see Run.
func NewClient(nc natsio.Conn, inbox string, lastError error, cfg Config, m *Membership) *Client {
	c := &Client{cfg: cfg, nc: nc, inbox: inbox, stop: make(chan struct{})}
	c.denials = natsio.NewDenials(nc, lastError, c.denied)
	c.pub = natsio.NewPublisher(nc, natsio.PublisherConfig{
		Cluster: cfg.Cluster, Client: cfg.Name, Inbox: inbox, Batches: cfg.Batches == WithBatches, MaxPayload: int(nc.MaxPayload()),
	}, cfg.Log, (*publisherOwner)(c))
	c.machine = newMachine(&c.cfg, c.pub, m)
	return c
}

// Run starts what runs until Close: the loop and the publisher. status tells of changes of
// the connection. detach takes the client from the connection when both have ended; it
// may block.
func (c *Client) Run(status <-chan nats.Status, detach func() error) {
	c.detach = detach
	c.running.Go(func() { c.loop(status) })
	c.running.Go(func() { c.pub.Run(c.stop) })
}

// loop does what time alone brings, and what the connection tells. What there is to do,
// and when, is the machine's to say: refresh what lives, ask again, find out what is lost,
// give back what was retained. It must not touch the connection.
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
				status = nil // removed by someone else: the timer does without
			case now == nats.CLOSED:
				c.pub.Wake()
			case now == nats.RECONNECTING:
				c.machine.disconnected()
			default:
				c.pub.Reconnected()
				c.machine.reconnected()
			}
		case <-alarm.In(wait):
			c.pub.Wake() // to look at the connection
			c.machine.tick()
		}
	}
}

// Lease is how long locks outlive a silent client.
func (c *Client) Lease() time.Duration { return c.cfg.Lease }

// Cluster is the configuration that votes are counted by.
func (c *Client) Cluster() wire.Config { return c.machine.cluster() }

// Stats is what the client has and counted.
func (c *Client) Stats() Stats { return c.machine.stats() }

// Losses is how many locks were lost.
func (c *Client) Losses() uint64 { return c.machine.losses.Load() }

// Closed is closed by Close.
func (c *Client) Closed() <-chan struct{} { return c.stop }

// Start asks for a lock and does not wait for it: h is made what Hold.Ready, Wait and
// Unlock tell of and end. The lock's context has the values of ctx.
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
			h.cancel(ErrUnlocked) // before anybody can have the lock, here or elsewhere //plant:unlock
			c.machine.release(h)
			if last {
				c.pub.Yield()
			}
			return nil
		case was == held: // a loss that nobody has noticed yet
			c.machine.tick()
		case was == evicted:
			h.cancel(h.lost)
			c.machine.release(h)
			return h.lost
		case was == lost, was == expired:
			h.cancel(h.lost) // it may be under way, and has happened when this returns
			return h.lost
		default:
			return nil
		}
	}
}

// Close gives back what the client holds, fails what waits with ErrClosed, and stops all
// that was started. It waits for the connection for a second at most.
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

// leave ends the subscription of a client that does nothing any more, and waits until the
// server has its last messages.
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

// Receive takes a message that came to the inbox. The subscription's goroutine calls it.
func (c *Client) Receive(m *nats.Msg) {
	if natsio.NobodyHears(m) {
		return // the server says that no node hears: that is silence, not an answer
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

// receiveList takes a node's answers to a batch.
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
	if cap(*list) <= 4*wire.MaxBatch { // more was somebody's joke, do not keep it
		clear(*list)
		answerLists.Put(list)
	}
}

// isReply reports whether an answer of this kind is about no claim of this client.
func isReply(k wire.Kind) bool {
	return k == wire.Informed || k == wire.Listed || k == wire.Evicting
}

// receiveReply takes an answer to a question about the nodes or others' claims.
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

// isOurs reports whether an answer may be one to a query of this client. Info is asked for
// by nobody in particular.
func (c *Client) isOurs(a *wire.Answer) bool {
	return (a.Client == c.cfg.Name || a.Kind == wire.Informed) && a.Digest == c.machine.digest()
}

func (c *Client) malformed(body []byte, err error) {
	c.cfg.Log.Line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(body))
}

// publisherOwner is a Client as its publisher sees it.
type publisherOwner Client

// BeforePublish looks at what the connection remembers before it is given more: that
// cannot be about what was not published yet.
func (o *publisherOwner) BeforePublish(acquired uint64) {
	o.denials.Read()
	o.published.Store(max(o.published.Load(), acquired)) // a claim that asks again does not take it back
}

func (o *publisherOwner) PayloadChanged(most int) { o.machine.fit(most) }

// ConnectionClosed ends what waits for a connection that is closed for good.
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

// denied fails claims and queries whose requests the server did not let through. It
// reports whether that was to be expected, and concerns none. See natsio.NewDenials.
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

// concerns reports whether this client publishes or subscribes to it; others may share its
// connection.
func (c *Client) concerns(on string) bool {
	p, ok := subject.Split(on)
	return on == c.inbox || ok && p.Cluster == c.cfg.Cluster && p.Client == c.cfg.Name
}
