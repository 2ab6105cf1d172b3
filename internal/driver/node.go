package driver

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

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// Registration is whether a node is entered as a service of package micro.
type Registration uint8

const (
	AsService Registration = iota
	WithoutService
)

// Ending is how a node stops.
type Ending uint8

const (
	Clean Ending = iota // it leaves its votes and queues in the state directory, and says farewell
	Crash               // as the end of its process would be
)

// NodeConfig is what a node is told at its start. It was checked.
type NodeConfig struct {
	Cluster, Name, Version     string
	Nodes                      []string
	StateDir                   string // "": none
	MaxLease, PreviousMaxLease time.Duration
	MaxSkew, ProbeWait         time.Duration
	MaxClaims, MaxQueue        int
	Registration               Registration
	ServiceStats               func(NodeStats) any // what the service shows of them
	Log                        *natsio.Log
}

func (c *NodeConfig) proto() wire.Config {
	return wire.Config{Nodes: slices.Sorted(slices.Values(c.Nodes)), MaxTTL: c.MaxLease, Skew: c.MaxSkew}
}

// Node runs the node machine on a connection. Any goroutine may call its exported methods.
type Node struct {
	nc      *nats.Conn
	cfg     NodeConfig
	inbox   string
	dir     *statedir.Dir // nil: none
	runs    []uuid.UUID   // this life's incarnation, after those of earlier ones
	machine *nodeMachine
	over    over

	// The goroutine that serves writes these, and after it that which leaves reads them.
	service micro.Service // nil: none
	subs    []*nats.Subscription

	stop chan struct{}
	loop sync.WaitGroup

	requests, malformed atomic.Uint64
}

// over is whether a node serves no more, and why. None of its methods blocks.
type over struct {
	done chan struct{} // closed when the node serves no more, under mu

	mu  sync.Mutex // guards why
	why error
}

// set says why the node serves no more, if nothing was said yet.
func (o *over) set(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.isDone() {
		o.why = why
		close(o.done)
	}
}

func (o *over) isDone() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

func (o *over) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.why
}

// StartNode starts a node on a connection. It returns when the node serves and its probe
// is over, and fails when ctx ends before that.
func StartNode(ctx context.Context, nc *nats.Conn, cfg NodeConfig) (*Node, error) {
	start := time.Now()
	// First whether the connection moves at all: what is on disk is not touched for one
	// that does not.
	payload := make(chan int, 1)
	err := natsio.Call(ctx, func() error {
		if nc.IsClosed() {
			return closedError(nc)
		}
		payload <- int(nc.MaxPayload())
		natsio.Advise(nc, cfg.MaxLease, cfg.Log, "this node's votes")
		return nil
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("qlock: StartNode: %w", err)
	}
	n, err := newNode(nc, cfg, start, <-payload)
	if err != nil {
		return nil, fmt.Errorf("qlock: StartNode: %w", err)
	}
	err = natsio.Call(ctx, func() error {
		err := n.serve(ctx)
		if err != nil {
			_, unsaved := n.quit(Clean)
			err = errors.Join(err, unsaved, n.leave(Crash))
		}
		return err
	}, func() { _ = n.leave(Crash) })
	if errors.Is(err, natsio.ErrStandsStill) {
		_, unsaved := n.quit(Clean)
		return nil, errors.Join(fmt.Errorf("qlock: StartNode: %w", err), unsaved)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// newNode takes what the node left in its state directory, and makes its machine.
func newNode(nc *nats.Conn, cfg NodeConfig, start time.Time, most int) (*Node, error) {
	run := newInstance()
	mem := memory{longest: max(cfg.MaxLease, cfg.PreviousMaxLease)}
	now := clocks(start, time.Now())
	now.Boot = statedir.Uptime()
	var dir *statedir.Dir
	if cfg.StateDir != "" {
		var err error
		if dir, err = statedir.Open(cfg.StateDir); err != nil {
			return nil, err
		}
		if mem, err = takeMark(dir, &cfg, now, run); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
	}
	core := voter.New(voter.Config{
		Name: cfg.Name, Config: cfg.proto(), Incarnation: run, ProbeWait: cfg.ProbeWait,
		MaxClaims: cfg.MaxClaims, MaxQueue: cfg.MaxQueue, MaxRuns: wire.RunsIn(most), MaxBody: most, Version: cfg.Version,
		FloorKey: newFloorKey(), Past: mem.past,
	}, now, mem.saved, mem.longest)
	return &Node{
		nc: nc, cfg: cfg, inbox: nc.NewInbox(), dir: dir, runs: append(mem.past, run), machine: newNodeMachine(start, core),
		over: over{done: make(chan struct{})}, stop: make(chan struct{}),
	}, nil
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
	if n.cfg.Registration == WithoutService {
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
	for !n.machine.probed() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("qlock: StartNode: node %s did not hear itself on %s: is it connected, and may it publish and subscribe there? %w", n.cfg.Name, claims, natsio.ContextError(ctx))
		case <-n.over.done:
			return n.Err()
		case <-n.machine.changed():
		}
	}
	return nil
}

func (n *Node) stoppedError() error {
	return fmt.Errorf("qlock: another node named %q already runs in cluster %q: give each node a name of its own", n.cfg.Name, n.cfg.Cluster)
}

func (n *Node) addService(claims string) error {
	var err error
	n.service, err = micro.AddService(n.nc, micro.Config{
		Name: "qlock", Version: n.cfg.Version, Description: "distributed locks",
		Metadata:     map[string]string{"cluster": n.cfg.Cluster, "node": n.cfg.Name, "nodes": strings.Join(n.cfg.Nodes, " ")},
		StatsHandler: func(*micro.Endpoint) any { return n.cfg.ServiceStats(n.Stats()) },
	})
	if err != nil {
		return err
	}
	// Every node must hear every request, so no queue group; and the list of what
	// is waiting may be long, since a lost request is a lost vote.
	return n.service.AddEndpoint("node", micro.HandlerFunc(func(r micro.Request) {
		n.receive(r.Subject(), r.Reply(), r.Data())
	}), micro.WithEndpointSubject(claims), micro.WithEndpointQueueGroupDisabled())
}

// run does what time alone brings: leases that run out, the end of a quarantine,
// probes; and it ends with the connection.
func (n *Node) run(status chan nats.Status) {
	defer n.nc.RemoveStatusListener(status)
	alarm := natsio.NewAlarm()
	defer alarm.Stop()
	if n.nc.IsClosed() { // before it was listened to
		n.connectionClosed()
		return
	}
	closed := (<-chan nats.Status)(status)
	for {
		wait := n.machine.sleep()
		select {
		case <-n.stop:
			return
		case _, ok := <-closed:
			if ok {
				n.connectionClosed()
				return
			}
			closed = nil // removed by someone else
		case <-n.machine.wake:
		case <-alarm.In(wait):
			if s := n.machine.begin(); s != nil {
				n.machine.core.Tick(s.now, &s.Out)
				n.finish(s)
			}
		}
	}
}

// connectionClosed ends a node whose connection is closed for ever. Close still saves its
// votes.
func (n *Node) connectionClosed() {
	err := closedError(n.nc)
	n.over.set(err)
	n.cfg.Log.Line(slog.LevelError, "this node has stopped serving", "error", err)
}

// Stats is what the node has and counted.
func (n *Node) Stats() NodeStats {
	s := n.machine.stats()
	s.Requests, s.Malformed = n.requests.Load(), n.malformed.Load()
	if n.over.isDone() {
		s.State, s.Recovering = wire.Stopped, 0
	}
	return s
}

// Ready reports whether the node gives votes now.
func (n *Node) Ready() bool { return n.machine.state.Load() == wire.Voting && !n.over.isDone() }

// Done is closed when the node serves no more.
func (n *Node) Done() <-chan struct{} { return n.over.done }

// Err is why the node serves no more, nil until Done is closed.
func (n *Node) Err() error { return n.over.err() }

// WaitReady waits until the node gives votes.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		changed := n.machine.changed()
		state := n.machine.state.Load()
		switch {
		case state == wire.Stopped:
			return n.stoppedError()
		case n.over.isDone():
			return n.Err()
		case state == wire.Voting:
			return nil
		}
		select {
		case <-changed:
		case <-n.over.done:
		case <-ctx.Done():
			return fmt.Errorf("qlock: node %s is %s and gives no votes yet: %w", n.cfg.Name, state, natsio.ContextError(ctx))
		}
	}
}

// Close stops the node. It waits for the connection for a second at most.
func (n *Node) Close(how Ending) error {
	first, err := n.quit(how)
	if !first {
		return nil
	}
	err = errors.Join(err, natsio.Leave(func() error { return n.leave(how) }, n.cfg.Log,
		"the NATS connection is blocked; the node's subscriptions end when it recovers"))
	if err != nil {
		return fmt.Errorf("qlock: closing node %s: %w", n.cfg.Name, err)
	}
	return nil
}

// quit ends the node, but for what it has of its connection. It reports whether it
// was not ended before.
func (n *Node) quit(how Ending) (first bool, err error) {
	saved, clean, first := n.machine.close(statedir.Uptime())
	if !first {
		return false, nil
	}
	if n.dir != nil {
		if clean && how == Clean {
			err = writeMark(n.dir, &n.cfg, n.runs, n.cfg.MaxLease, saved)
		}
		err = errors.Join(err, n.dir.Close())
	}
	close(n.stop)
	n.over.set(ErrClosed)
	return true, err
}

// leave takes a node that has quit from its connection.
func (n *Node) leave(how Ending) error {
	n.loop.Wait()
	var errs []error
	if how == Clean { // should it not get through, who bears the name next waits for longer (N9)
		p := n.machine.farewell()
		_ = n.nc.Publish(subject.Request(n.cfg.Cluster, string(p.Verb), p.Client, ""), wire.AppendRequest(nil, p))
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

var (
	requests = sync.Pool{New: func() any { return new(wire.Request) }}
	batches  = sync.Pool{New: func() any { return new([]wire.Request) }}
	buffers  = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}
)

// receive takes a request. The subscriptions' goroutines call it; requests for claims come
// one at a time.
func (n *Node) receive(on, reply string, body []byte) {
	n.requests.Add(1)
	verb, client, resource, err := subject.ParseRequest(n.cfg.Cluster, on)
	if err != nil {
		n.ignore(on, err)
		return
	}
	if subject.IsReserved(reply) {
		n.ignore(on, fmt.Errorf("the reply subject %s is not an inbox", printable.Quote(reply)))
		return
	}
	if verb == "" {
		n.receiveBatch(client, on, reply, body)
		return
	}
	r := requests.Get().(*wire.Request)
	defer requests.Put(r) // the machine keeps nothing of it but its strings
	if err := r.Decode(wire.Verb(verb), client, resource, body); err != nil {
		n.ignore(on, err)
		return
	}
	most := 0
	switch r.Verb {
	case wire.Refresh, wire.List, wire.Inspect: // whose answers may be long: another server may take less
		most = int(n.nc.MaxPayload())
	}
	s := n.machine.begin()
	if s == nil {
		return
	}
	if most > 0 {
		n.machine.core.Fit(most)
	}
	n.machine.core.Handle(s.now, r, reply, &s.Out)
	n.finish(s)
}

// receiveBatch takes several requests of one client at once.
func (n *Node) receiveBatch(client, on, reply string, body []byte) {
	list := batches.Get().(*[]wire.Request)
	var err error
	*list, err = wire.DecodeBatch((*list)[:0], client, body)
	if err != nil {
		n.ignore(on, err)
	}
	n.requests.Add(uint64(max(len(*list), 1) - 1)) // the message was counted
	if s := n.machine.begin(); s != nil {
		for i := range *list {
			n.machine.core.Handle(s.now, &(*list)[i], reply, &s.Out)
		}
		n.finishBatch(s, reply)
	}
	clear(*list)
	batches.Put(list)
}

// receiveAnswer takes answers to the node's questions. The subscription's goroutine calls it.
func (n *Node) receiveAnswer(m *nats.Msg) {
	a, err := wire.DecodeAnswer(m.Data)
	if err != nil {
		n.ignore(m.Subject, err)
		return
	}
	if s := n.machine.begin(); s != nil {
		n.machine.core.HandleAnswer(s.now, a, &s.Out)
		n.finish(s)
	}
}

func (n *Node) ignore(on string, err error) {
	n.malformed.Add(1)
	n.cfg.Log.Line(slog.LevelWarn, "request ignored", "subject", printable.Quote(on), "error", err)
}

// finish ends a step, and sends what the machine wants sent.
func (n *Node) finish(s *nodeStep) {
	n.finishBatch(s, "")
}

// finishBatch is finish for the step of a batch: the answers to it go in one message to
// reply, unless that is empty, after those to others, who are called by what its client
// gave back.
func (n *Node) finishBatch(s *nodeStep, reply string) {
	over := n.machine.end(s)
	buf := buffers.Get().(*[]byte)
	for i := range s.Answers {
		if s.Answers[i].To != reply {
			n.publish(&s.Answers[i], buf)
		}
	}
	if reply != "" {
		n.publishList(reply, s.Answers, buf)
	}
	n.publishRest(s, over, buf)
}

// publish sends one answer. buf is memory.
func (n *Node) publish(s *voter.Send, buf *[]byte) {
	*buf = wire.AppendAnswer((*buf)[:0], &s.Answer)
	err := n.nc.Publish(s.To, *buf)
	if s.Answer.Text != "" && errors.Is(err, nats.ErrMaxPayload) { // what it means counts, not what it says
		s.Answer.Text = ""
		*buf = wire.AppendAnswer((*buf)[:0], &s.Answer)
		err = n.nc.Publish(s.To, *buf)
	}
	n.sent(s.To, *buf, err)
}

// publishRest sends and tells what a step brought beside answers, and frees the step.
func (n *Node) publishRest(s *nodeStep, over bool, buf *[]byte) {
	for _, p := range []*wire.Request{s.Probe, s.Ask} {
		if p == nil {
			continue
		}
		*buf = wire.AppendRequest((*buf)[:0], p)
		if err := n.nc.PublishRequest(subject.Request(n.cfg.Cluster, string(p.Verb), p.Client, ""), n.inbox, *buf); err != nil {
			n.cfg.Log.Line(slog.LevelWarn, "question to other nodes not sent", "error", err)
		}
	}
	buffers.Put(buf)
	for _, note := range s.Notes {
		n.cfg.Log.Line(slog.LevelWarn, note)
	}
	if s.Ready {
		n.cfg.Log.Line(slog.LevelInfo, "ready: this node votes")
	}
	s.free()
	if over {
		n.over.set(n.stoppedError())
	}
}

// sent says what could not be published. A connection that is closed ends the node,
// which says so itself.
func (n *Node) sent(to string, body []byte, err error) {
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		n.cfg.Log.Line(slog.LevelWarn, "answer not sent", "to", to, "bytes", len(body), "error", err)
	}
}

// publishList sends what of the answers goes to one inbox, in one message or, should
// they be long, in several.
func (n *Node) publishList(to string, answers []voter.Send, buf *[]byte) {
	most := int(min(wire.MaxBatchBody, n.nc.MaxPayload()))
	flush := func(list []byte) {
		list = append(list, ']')
		n.sent(to, list, n.nc.Publish(to, list))
	}
	b := (*buf)[:0]
	for i := range answers {
		if answers[i].To != to {
			continue
		}
		end := len(b)
		if b = wire.AppendAnswer(wire.AppendSeparator(b), &answers[i].Answer); len(b) < most {
			continue
		}
		if end > 0 { // those before go without it
			flush(b[:end:end])
			b = b[:copy(b, b[end:])]
			b[0] = '['
		}
		if len(b) >= most && answers[i].Answer.Text != "" {
			answers[i].Answer.Text = ""
			b = wire.AppendAnswer(wire.AppendSeparator(b[:0]), &answers[i].Answer)
		}
	}
	if len(b) > 0 {
		flush(b)
	}
	*buf = b
}
