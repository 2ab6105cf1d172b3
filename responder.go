package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/qlock/qlock/internal/node"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/subject"
)

// NodeConfig configures a node. Cluster, Nodes, MaxLease and MaxSkew must be the
// same at every node of a cluster: votes of nodes with another configuration do
// not count.
type NodeConfig struct {
	Cluster string   // name of the cluster; default "default"
	Name    string   // this node's name, one of Nodes
	Nodes   []string // names of all nodes, 1 to 64; fixed for the cluster's life

	// StateDir is where the node leaves, at a clean stop, what it must not forget.
	// Empty: nowhere, and the node gives no votes for MaxLease and 16 % more after each
	// start.
	StateDir string

	MaxLease time.Duration // longest lease that clients may have; default 30 s
	// PreviousMaxLease is the longest lease that the cluster allowed before MaxLease
	// was lowered. A node that may have forgotten votes waits for the longer of the
	// two. A node with a StateDir remembers it by itself. Default 0; at most 24 h.
	PreviousMaxLease time.Duration

	MaxSkew time.Duration // how far a client's clock may be ahead; default 5 s, at most MaxLease

	MaxClaims int // claims, held and waiting, of one client name; default 250,000
	MaxQueue  int // claims on one name beside one that holds it; default 65,536

	// ProbeWait is how long the node listens for another node of its name before
	// its first vote; default 300 ms or, if that is less, a quarter of MaxLease. At
	// most a third of that.
	ProbeWait time.Duration

	// NoService keeps the node out of `nats micro ls`; it needs no permission for
	// $SRV.> then.
	NoService bool

	// Logger is told what an operator should know; default: silent. The node never
	// waits for it: lines that it does not take in time are dropped and counted
	// (NodeStats.LogDropped). Only Close waits, for a second at most; a logger that
	// blocks for ever keeps one goroutine for ever.
	Logger *slog.Logger
}

func (c NodeConfig) withDefaults() (NodeConfig, error) {
	if c.Cluster == "" {
		c.Cluster = DefaultCluster
	}
	if c.MaxLease == 0 {
		c.MaxLease = DefaultMaxLease
	}
	if c.MaxSkew == 0 {
		c.MaxSkew = min(5*time.Second, c.MaxLease/2)
	}
	if c.MaxClaims == 0 {
		c.MaxClaims = 250_000
	}
	if c.MaxQueue == 0 {
		c.MaxQueue = 65_536
	}
	if c.ProbeWait == 0 {
		c.ProbeWait = min(300*time.Millisecond, c.MaxLease/4)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, c.check()
}

func (c NodeConfig) check() error {
	if err := subject.CheckToken("cluster", c.Cluster); err != nil {
		return err
	}
	if err := subject.CheckToken("node", c.Name); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := subject.CheckToken("node", n); err != nil {
			return err
		}
	}
	sorted := slices.Sorted(slices.Values(c.Nodes))
	switch {
	case len(c.Nodes) == 0:
		return errors.New("qlock: NodeConfig.Nodes is empty: it must list the names of all nodes of the cluster")
	case len(c.Nodes) > proto.MaxNodes:
		return fmt.Errorf("qlock: NodeConfig.Nodes has %d names, at most %d are allowed", len(c.Nodes), proto.MaxNodes)
	case len(slices.Compact(sorted)) != len(c.Nodes):
		return fmt.Errorf("qlock: NodeConfig.Nodes has a name twice: %v", c.Nodes)
	case !slices.Contains(c.Nodes, c.Name):
		return fmt.Errorf("qlock: NodeConfig.Name %q is not among Nodes %v", c.Name, c.Nodes)
	case c.MaxLease < proto.MinLease || c.MaxLease > proto.MaxLease || c.MaxLease%time.Millisecond != 0:
		return fmt.Errorf("qlock: NodeConfig.MaxLease %v: it must be within %v and %v, in whole milliseconds", c.MaxLease, proto.MinLease, proto.MaxLease)
	case c.PreviousMaxLease < 0 || c.PreviousMaxLease > proto.MaxLease:
		return fmt.Errorf("qlock: NodeConfig.PreviousMaxLease %v: it must be within 0 and %v", c.PreviousMaxLease, proto.MaxLease)
	case c.MaxSkew < time.Millisecond || c.MaxSkew > c.MaxLease || c.MaxSkew%time.Millisecond != 0:
		return fmt.Errorf("qlock: NodeConfig.MaxSkew %v: it must be within 1ms and MaxLease (%v), in whole milliseconds", c.MaxSkew, c.MaxLease)
	case c.MaxClaims < 1 || c.MaxQueue < 1:
		return fmt.Errorf("qlock: NodeConfig.MaxClaims (%d) and MaxQueue (%d) must be positive", c.MaxClaims, c.MaxQueue)
	case c.ProbeWait < 0 || c.ProbeWait > c.MaxLease/3:
		return fmt.Errorf("qlock: NodeConfig.ProbeWait %v: it must be within 0 and a third of MaxLease (%v)", c.ProbeWait, c.MaxLease/3)
	}
	return nil
}

func (c NodeConfig) proto() proto.Config {
	return proto.Config{Nodes: slices.Sorted(slices.Values(c.Nodes)), MaxTTL: c.MaxLease, Skew: c.MaxSkew}
}

// Node is one voting node on a NATS connection. Its methods may be called from
// several goroutines.
type Node struct {
	nc      *nats.Conn
	cfg     NodeConfig
	log     *limited
	start   time.Time
	inbox   string
	dir     *statedir.Dir // nil: none
	runs    []uuid.UUID   // this life's incarnation, after those of earlier ones
	service micro.Service // nil: none
	subs    []*nats.Subscription

	mu     sync.Mutex // guards what follows; nothing is published under it
	core   *node.Node
	closed bool
	why    error // why done is closed
	wakeAt time.Time

	state  atomic.Value  // proto.State
	change chan struct{} // closed and made anew when the state changes; guarded by mu
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{} // closed when the node serves no more
	loop   sync.WaitGroup

	requests, malformed atomic.Uint64
}

// StartNode starts a node on a connection that stays the caller's: it is not
// closed. It is entered as a service named qlock, for `nats micro`, which wraps
// the connection's handlers for errors and closing; see NodeConfig.NoService.
//
// It returns when the node serves and has made sure, for ProbeWait, that no other
// node has its name; if one has, StartNode fails. It fails when ctx ends before that,
// also on a connection that stands still. A node that may have forgotten
// votes then still waits before it gives any: see WaitReady, and Bootstrap for a
// new cluster.
func StartNode(ctx context.Context, nc *nats.Conn, cfg NodeConfig) (*Node, error) {
	if nc == nil {
		return nil, errors.New("qlock: StartNode: the connection is nil")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if nc.Opts.NoEcho { // of how the connection was made: it never changes
		return nil, errors.New("qlock: StartNode: the NATS connection was made with nats.NoEcho, so the node would not hear the requests that it sends to its own name: connect without it")
	}
	n := &Node{
		nc: nc, cfg: cfg, log: newLimited(cfg.Logger, "node", cfg.Name), start: time.Now(), inbox: nc.NewInbox(),
		change: make(chan struct{}), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	// First whether the connection moves at all: what is on disk is not touched for one
	// that does not.
	var most int
	err = onConnection(ctx, func() error {
		if nc.IsClosed() {
			return closedError(nc)
		}
		most = int(nc.MaxPayload())
		advise(nc, cfg.MaxLease, n.log, "this node's votes")
		return nil
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("qlock: StartNode: %w", err)
	}
	run := newInstance()
	mem := memory{longest: max(cfg.MaxLease, cfg.PreviousMaxLease)}
	now := n.at(time.Now())
	now.Boot = statedir.Uptime()
	if cfg.StateDir != "" {
		if n.dir, err = statedir.Open(cfg.StateDir); err != nil {
			return nil, fmt.Errorf("qlock: StartNode: %w", err)
		}
		if mem, err = takeMark(n.dir, cfg, now, run, n.log.log); err != nil {
			return nil, errors.Join(fmt.Errorf("qlock: StartNode: %w", err), n.dir.Close())
		}
	}
	n.core = node.New(node.Config{
		Name: cfg.Name, Config: cfg.proto(), Incarnation: run, ProbeWait: cfg.ProbeWait,
		MaxClaims: cfg.MaxClaims, MaxQueue: cfg.MaxQueue, MaxRuns: proto.RunsIn(most), MaxBody: most, Version: Version,
		FloorKey: newFloorKey(), Past: mem.past,
	}, now, mem.saved, mem.longest)
	n.runs = append(mem.past, run)
	n.state.Store(n.core.State())
	err = onConnection(ctx, func() error {
		err := n.serve(ctx)
		if err != nil {
			_, unsaved := n.quit(true)
			err = errors.Join(err, unsaved, n.leave(false))
		}
		return err
	}, func() { _ = n.leave(false) })
	if errors.Is(err, errStandsStill) {
		_, unsaved := n.quit(true)
		return nil, errors.Join(fmt.Errorf("qlock: StartNode: %w", err), unsaved)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// serve subscribes, and waits until the probe is over.
func (n *Node) serve(ctx context.Context) error {
	sub, err := n.nc.Subscribe(n.inbox, n.receiveAnswer)
	if err != nil {
		return fmt.Errorf("qlock: StartNode: %w", err)
	}
	n.subs = append(n.subs, sub)
	claims := subject.Family(n.cfg.Cluster, subject.FamilyNode)
	subjects := []string{subject.Family(n.cfg.Cluster, subject.FamilyAdmin)}
	if n.cfg.NoService {
		subjects = append(subjects, claims)
	} else if err := n.addService(claims); err != nil {
		return fmt.Errorf("qlock: StartNode: %w", err)
	}
	for _, s := range subjects {
		sub, err := n.nc.Subscribe(s, func(m *nats.Msg) { n.receive(m.Subject, m.Reply, m.Data) })
		if err != nil {
			return fmt.Errorf("qlock: StartNode: subscribe to %s: %w", s, err)
		}
		n.subs = append(n.subs, sub)
	}
	status := n.nc.StatusChanged(nats.CLOSED)
	n.loop.Go(func() { n.run(status) })
	for !n.probed() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("qlock: StartNode: node %s did not hear itself on %s: is it connected, and may it publish and subscribe there? %w", n.cfg.Name, claims, contextError(ctx))
		case <-n.done:
			return n.Err()
		case <-n.changed():
		}
	}
	return nil
}

func (n *Node) stoppedError() error {
	return fmt.Errorf("qlock: another node named %q already runs in cluster %q: give each node a name of its own", n.cfg.Name, n.cfg.Cluster)
}

func (n *Node) addService(subject string) error {
	var err error
	n.service, err = micro.AddService(n.nc, micro.Config{
		Name: "qlock", Version: Version, Description: "distributed locks",
		Metadata: map[string]string{"cluster": n.cfg.Cluster, "node": n.cfg.Name, "nodes": strings.Join(n.cfg.Nodes, " ")},
		StatsHandler: func(*micro.Endpoint) any {
			return n.Stats()
		},
	})
	if err != nil {
		return err
	}
	// Every node must hear every request, so no queue group; and the list of what
	// is waiting may be long, since a lost request is a lost vote.
	return n.service.AddEndpoint("node", micro.HandlerFunc(func(r micro.Request) {
		n.receive(r.Subject(), r.Reply(), r.Data())
	}), micro.WithEndpointSubject(subject), micro.WithEndpointQueueGroupDisabled())
}

// Name is the node's name.
func (n *Node) Name() string { return n.cfg.Name }

// Ready reports whether the node gives votes now.
func (n *Node) Ready() bool { return n.state.Load() == proto.Voting && !n.isDone() }

func (n *Node) isDone() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// Done is closed when the node serves no more: after Close, when it found that an
// older node has its name, or when its NATS connection was closed for ever, be it by
// the program or by the client library (see nats.IgnoreAuthErrorAbort and
// nats.MaxReconnects). Err says which. A program that does not end then should start
// the node anew, on another connection, after Close.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node serves no more: ErrClosed after Close, ErrClosed with the
// connection's error if that is closed for ever, another error if an older node has
// the name. It is nil until Done is closed.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.why
}

// WaitReady waits until the node gives votes. It fails when ctx ends, or when the
// node is closed or stopped before that.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		changed := n.changed()
		switch state := n.state.Load(); {
		case state == proto.Stopped:
			return n.stoppedError()
		case n.isDone():
			return n.Err()
		case state == proto.Voting:
			return nil
		}
		select {
		case <-changed:
		case <-n.done:
		case <-ctx.Done():
			return fmt.Errorf("qlock: node %s is %s and gives no votes yet: %w", n.cfg.Name, n.state.Load(), contextError(ctx))
		}
	}
}

// Close stops the node cleanly: it leaves its votes and queues in the state
// directory, so that it may vote at once when it starts again. The connection
// stays open; should it stand still, Close waits for it for a second at most. Calling
// it again does nothing.
func (n *Node) Close() error { return n.close(true) }

// Abort stops the node as a crash would: nothing is left in the state directory,
// and the node's next start waits until its votes have run out. It is for tests
// of what happens then.
func (n *Node) Abort() error { return n.close(false) }

func (n *Node) close(save bool) error {
	first, err := n.quit(save)
	if !first {
		return nil
	}
	// The rest waits for the connection, which may stand still for longer than ours is
	// to wait.
	patience := time.NewTimer(closePatience - logPatience)
	defer patience.Stop()
	defer n.log.flush(logPatience)
	left := make(chan error, 1)
	go func() { left <- n.leave(save) }()
	select {
	case gone := <-left:
		err = errors.Join(err, gone)
	case <-patience.C:
		n.log.line(slog.LevelWarn, "the NATS connection is blocked; the node's subscriptions end when it recovers")
	}
	if err != nil {
		return fmt.Errorf("qlock: closing node %s: %w", n.cfg.Name, err)
	}
	return nil
}

// quit ends the node, but for what it has of its connection. It reports whether it
// was not ended before.
func (n *Node) quit(save bool) (first bool, err error) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return false, nil
	}
	n.closed = true // no message is handled after what is saved now
	now := n.at(time.Now())
	now.Boot = statedir.Uptime()
	saved, clean := n.core.Save(now)
	n.mu.Unlock()

	if n.dir != nil {
		if clean && save {
			err = writeMark(n.dir, n.cfg, n.runs, n.cfg.MaxLease, saved)
		}
		err = errors.Join(err, n.dir.Close())
	}
	close(n.stop)
	n.finish(ErrClosed)
	return true, err
}

// leave takes a node that has quit from its connection.
func (n *Node) leave(save bool) error {
	n.loop.Wait()
	var errs []error
	if save { // should it not get through, who bears the name next waits for longer (N9)
		n.mu.Lock()
		p := n.core.Farewell()
		n.mu.Unlock()
		_ = n.nc.Publish(subject.Request(n.cfg.Cluster, string(p.Verb), p.Client, ""), proto.AppendRequest(nil, p))
	}
	if n.service != nil {
		errs = append(errs, n.service.Stop())
	}
	for _, s := range n.subs {
		errs = append(errs, s.Unsubscribe())
	}
	for i, err := range errs { // gone with the connection
		if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrBadSubscription) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// finish says why the node serves no more.
func (n *Node) finish(why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.isDone() {
		n.why = why
		close(n.done)
	}
}

// gone ends a node whose connection is closed for ever. Close still saves its votes.
func (n *Node) gone() {
	err := closedError(n.nc)
	n.finish(err)
	n.log.line(slog.LevelError, "this node has stopped serving", "error", err)
}

func (n *Node) at(t time.Time) proto.Now {
	return proto.Now{Mono: t.Sub(n.start), Wall: t.UnixMicro()}
}

func (n *Node) changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.change
}

func (n *Node) probed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.core.Probed()
}

// receive takes a request. It runs on the goroutine of a subscription; those for
// claims come one at a time.
func (n *Node) receive(on, reply string, body []byte) {
	n.requests.Add(1)
	verb, client, resource, err := subject.ParseRequest(n.cfg.Cluster, on)
	if err != nil {
		n.ignore(on, err)
		return
	}
	if subject.IsReserved(reply) {
		n.ignore(on, fmt.Errorf("the reply subject %s is not an inbox", quote(reply)))
		return
	}
	if verb == subject.BatchVerb {
		n.receiveBatch(client, on, reply, body)
		return
	}
	r := requests.Get().(*proto.Request)
	defer requests.Put(r) // the machine keeps nothing of it but its strings
	if err := r.Decode(proto.Verb(verb), client, resource, body); err != nil {
		n.ignore(on, err)
		return
	}
	most := 0
	switch r.Verb {
	case proto.Refresh, proto.List, proto.Inspect: // whose answers may be long: another server may take less
		most = int(n.nc.MaxPayload())
	}
	n.step("", func(now proto.Now, out *node.Out) {
		if most > 0 {
			n.core.Fit(most)
		}
		n.core.Handle(now, r, reply, out)
	})
}

// receiveBatch takes several requests of one client at once.
func (n *Node) receiveBatch(client, subject, reply string, body []byte) {
	list := batches.Get().(*[]proto.Request)
	var err error
	*list, err = proto.DecodeBatch((*list)[:0], client, body)
	if err != nil {
		n.ignore(subject, err)
	}
	n.requests.Add(uint64(max(len(*list), 1) - 1)) // the message was counted
	n.step(reply, func(now proto.Now, out *node.Out) {
		for i := range *list {
			n.core.Handle(now, &(*list)[i], reply, out)
		}
	})
	clear(*list)
	batches.Put(list)
}

func (n *Node) ignore(subject string, err error) {
	n.malformed.Add(1)
	n.log.line(slog.LevelWarn, "request ignored", "subject", quote(subject), "error", err)
}

// receiveAnswer takes answers to the node's probes.
func (n *Node) receiveAnswer(m *nats.Msg) {
	a, err := proto.DecodeAnswer(m.Data)
	if err != nil {
		n.ignore(m.Subject, err)
		return
	}
	n.step("", func(now proto.Now, out *node.Out) { n.core.HandleAnswer(now, a, out) })
}

var requests = sync.Pool{New: func() any { return new(proto.Request) }}

var batches = sync.Pool{New: func() any { return new([]proto.Request) }}

var nodeOuts = sync.Pool{New: func() any { return new(node.Out) }}

// step lets f work on the machine under the lock, and publishes what it wants
// sent when the lock is given up. The answers to list, the reply subject of a batch
// or "", go in one message.
func (n *Node) step(list string, f func(now proto.Now, out *node.Out)) {
	out := nodeOuts.Get().(*node.Out)
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	wasProbed := n.core.Probed()
	t := time.Now()
	now := n.at(t)
	f(now, out)
	state, over := n.core.State(), n.core.Stopped() && !n.core.Leaving()
	if state != n.state.Load() || n.core.Probed() != wasProbed {
		n.state.Store(state)
		close(n.change)
		n.change = make(chan struct{})
	}
	at := t.Add(n.wait(now))
	wake := at.Before(n.wakeAt)
	if wake {
		n.wakeAt = at
	}
	n.mu.Unlock()

	if wake {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
	buf := buffers.Get().(*[]byte)
	for i := range out.Answers { // who is called by what another gave back comes first
		s := &out.Answers[i]
		if s.To != list {
			*buf = proto.AppendAnswer((*buf)[:0], &s.Answer)
			err := n.nc.Publish(s.To, *buf)
			if s.Answer.Text != "" && errors.Is(err, nats.ErrMaxPayload) { // what it means counts, not what it says
				s.Answer.Text = ""
				*buf = proto.AppendAnswer((*buf)[:0], &s.Answer)
				err = n.nc.Publish(s.To, *buf)
			}
			n.sent(s.To, *buf, err)
		}
	}
	if list != "" {
		n.publishList(list, out.Answers, buf)
	}
	for _, p := range []*proto.Request{out.Probe, out.Ask} {
		if p == nil {
			continue
		}
		*buf = proto.AppendRequest((*buf)[:0], p)
		if err := n.nc.PublishRequest(subject.Request(n.cfg.Cluster, string(p.Verb), p.Client, ""), n.inbox, *buf); err != nil {
			n.log.line(slog.LevelWarn, "question to other nodes not sent", "error", err)
		}
	}
	buffers.Put(buf)
	for _, note := range out.Notes {
		n.log.line(slog.LevelWarn, note)
	}
	if out.Ready {
		n.log.line(slog.LevelInfo, "ready: this node votes")
	}
	out.Reset()
	nodeOuts.Put(out)
	if over {
		n.finish(n.stoppedError())
	}
}

// sent says what could not be published. A connection that is closed ends the node,
// which says so itself.
func (n *Node) sent(to string, body []byte, err error) {
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		n.log.line(slog.LevelWarn, "answer not sent", "to", to, "bytes", len(body), "error", err)
	}
}

// publishList sends what of the answers goes to one inbox, in one message or, should
// they be long, in several.
func (n *Node) publishList(to string, answers []node.Send, buf *[]byte) {
	most := int(min(proto.MaxBatchBody, n.nc.MaxPayload()))
	ship := func(list []byte) {
		list = append(list, ']')
		n.sent(to, list, n.nc.Publish(to, list))
	}
	b := (*buf)[:0]
	for i := range answers {
		if answers[i].To != to {
			continue
		}
		end := len(b)
		if b = proto.AppendAnswer(proto.AppendSeparator(b), &answers[i].Answer); len(b) < most {
			continue
		}
		if end > 0 { // those before go without it
			ship(b[:end:end])
			b = b[:copy(b, b[end:])]
			b[0] = '['
		}
		if len(b) >= most && answers[i].Answer.Text != "" {
			answers[i].Answer.Text = ""
			b = proto.AppendAnswer(proto.AppendSeparator(b[:0]), &answers[i].Answer)
		}
	}
	if len(b) > 0 {
		ship(b)
	}
	*buf = b
}

// wait is how long the loop may sleep. Call with n.mu held.
func (n *Node) wait(now proto.Now) time.Duration {
	return min(max(n.core.Deadline()-now.Mono, 0), idle)
}

// run does what time alone brings: leases that run out, the end of a quarantine,
// probes; and it ends with the connection.
func (n *Node) run(status chan nats.Status) {
	defer n.nc.RemoveStatusListener(status)
	alarm := newAlarm()
	defer alarm.stop()
	if n.nc.IsClosed() { // before it was listened to
		n.gone()
		return
	}
	for {
		n.mu.Lock()
		t := time.Now()
		wait := n.wait(n.at(t))
		n.wakeAt = t.Add(wait)
		n.mu.Unlock()
		select {
		case <-n.stop:
			return
		case _, ok := <-status:
			if ok {
				n.gone()
				return
			}
			status = nil // removed by someone else
		case <-n.wake:
		case <-alarm.in(wait):
			n.step("", func(now proto.Now, out *node.Out) { n.core.Tick(now, out) })
		}
	}
}
