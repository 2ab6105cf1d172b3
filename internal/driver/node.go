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

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// Registration tells whether a node is registered as a service of package micro.
type Registration uint8

const (
	AsService Registration = iota
	WithoutService
)

// Ending tells how a node stops.
type Ending uint8

const (
	Clean Ending = iota // it saves its votes and queues in the state directory, and says farewell
	Crash               // as if its process ended
)

// NodeConfig is the configuration of a node. The caller has checked it.
type NodeConfig struct {
	Cluster, Name, Version     string
	Nodes                      []string
	StateDir                   string // "": none
	MaxLease, PreviousMaxLease time.Duration
	MaxSkew, ProbeWait         time.Duration
	MaxClaims, MaxQueue        int
	Registration               Registration
	ServiceStats               func(NodeStats) any // converts the statistics for the service
	Log                        *natsio.Log
}

func (c *NodeConfig) proto() wire.Config {
	return wire.Config{Nodes: slices.Sorted(slices.Values(c.Nodes)), MaxTTL: c.MaxLease, Skew: c.MaxSkew}
}

// Node runs the node machine on a connection. Its exported methods are safe for concurrent use.
type Node struct {
	nc      *nats.Conn
	cfg     NodeConfig
	inbox   string
	dir     *statedir.Dir // nil: none
	runs    []uuid.UUID   // earlier incarnations, then the current one
	longest time.Duration // longest lease that forgotten votes can have had
	state   epoch.State   // what it promised and learned about the configuration
	machine *nodeMachine
	over    over

	// The goroutine that runs serve writes these. After that, only the goroutine that runs leave
	// reads them.
	service micro.Service // nil: none
	subs    []*nats.Subscription

	stop chan struct{}
	loop sync.WaitGroup

	requests, malformed atomic.Uint64
}

// over records whether a node has stopped serving, and why. Its methods do not block.
type over struct {
	done chan struct{} // closed under mu when the node stops serving

	mu  sync.Mutex // guards why
	why error
}

// set records why the node stops serving. Only the first call has an effect.
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

// StartNode starts a node on a connection. It returns when the node serves and its probe is over.
// It fails if ctx ends first.
func StartNode(ctx context.Context, nc *nats.Conn, cfg NodeConfig) (*Node, error) {
	start := time.Now()
	// Check first that the connection responds. If it does not, the state directory must stay
	// untouched.
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

// newNode takes the mark from the node's state directory, and makes the node's machine.
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
		Cluster: cfg.Cluster, State: mem.state, Fresh: mem.fresh || dir == nil,
	}, now, mem.saved, mem.longest)
	n := &Node{
		nc: nc, cfg: cfg, inbox: nc.NewInbox(), dir: dir, runs: append(mem.past, run), longest: mem.longest, state: mem.state, machine: newNodeMachine(start, core),
		over: over{done: make(chan struct{})}, stop: make(chan struct{}),
	}
	n.machine.keep = n.keep
	return n, nil
}

// serve subscribes and waits until the probe is over.
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
	// No queue group, because every node must hear every request. The client library's long list of
	// pending messages stays as it is, because a lost request is a lost vote.
	return n.service.AddEndpoint("node", micro.HandlerFunc(func(r micro.Request) {
		n.receive(r.Subject(), r.Reply(), r.Data())
	}), micro.WithEndpointSubject(claims), micro.WithEndpointQueueGroupDisabled())
}

// run calls the machine when something is due: leases that end, the end of a quarantine, probes. It
// returns when the connection is closed.
func (n *Node) run(status chan nats.Status) {
	defer n.nc.RemoveStatusListener(status)
	alarm := natsio.NewAlarm()
	defer alarm.Stop()
	if n.nc.IsClosed() { // closed before the listener was added
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
			closed = nil // removed by the program
		case <-n.machine.wake:
		case <-alarm.In(wait):
			if s := n.machine.begin(); s != nil {
				n.machine.core.Tick(s.now, &s.Out)
				n.finish(s)
			}
		}
	}
}

// connectionClosed stops a node whose connection is permanently closed. Close still saves the
// node's votes.
func (n *Node) connectionClosed() {
	err := closedError(n.nc)
	n.over.set(err)
	n.cfg.Log.Line(slog.LevelError, "this node has stopped serving", "error", err)
}

// Stats returns the node's current state and counters.
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

// Done returns a channel that is closed when the node stops serving.
func (n *Node) Done() <-chan struct{} { return n.over.done }

// Err returns why the node stopped serving, or nil if Done is not closed yet.
func (n *Node) Err() error { return n.over.err() }

// WaitReady waits until the node gives votes. It fails if the node stops serving or ctx ends first.
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

// Close stops the node. It waits for the connection for 1 s at most. Calling it again does nothing.
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

// quit stops the node, except for what belongs to its connection. first reports whether this call
// stopped it.
func (n *Node) quit(how Ending) (first bool, err error) {
	saved, state, first := n.machine.close(statedir.Uptime())
	if !first {
		return false, nil
	}
	if state != nil {
		n.state = *state
	}
	if n.dir != nil {
		if saved != nil && how == Clean {
			err = writeMark(n.dir, &n.cfg, n.runs, leaseOf(&n.cfg, &n.state), &n.state, saved)
		}
		err = errors.Join(err, n.dir.Close())
	}
	close(n.stop)
	n.over.set(ErrClosed)
	return true, err
}

// leave removes a node that has quit from its connection.
func (n *Node) leave(how Ending) error {
	n.loop.Wait()
	var errs []error
	if how == Clean { // if the farewell is lost, the next node of this name waits longer (N9)
		p := n.machine.farewell()
		_ = n.nc.Publish(subject.Request(n.cfg.Cluster, string(p.Verb), p.Client, ""), wire.AppendRequest(nil, p))
	}
	if n.service != nil {
		errs = append(errs, n.service.Stop())
	}
	for _, s := range n.subs {
		errs = append(errs, s.Unsubscribe())
	}
	for i, err := range errs { // these ended with the connection
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

// receive handles a request. The subscriptions' goroutines call it. Requests for claims come one at
// a time.
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
	defer requests.Put(r) // the machine retains only strings of it
	if err := r.Decode(wire.Verb(verb), client, resource, body); err != nil {
		n.ignore(on, err)
		return
	}
	most := 0
	switch r.Verb {
	// The answers may be long, and another server may accept less.
	case wire.Refresh, wire.List, wire.Inspect:
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

// receiveBatch handles several requests of one client in one message.
func (n *Node) receiveBatch(client, on, reply string, body []byte) {
	list := batches.Get().(*[]wire.Request)
	var err error
	*list, err = wire.DecodeBatch((*list)[:0], client, body)
	if err != nil {
		n.ignore(on, err)
	}
	n.requests.Add(uint64(max(len(*list), 1) - 1)) // receive has counted the message as one
	if s := n.machine.begin(); s != nil {
		for i := range *list {
			n.machine.core.Handle(s.now, &(*list)[i], reply, &s.Out)
		}
		n.finishBatch(s, reply)
	}
	clear(*list)
	batches.Put(list)
}

// receiveAnswer handles an answer to a question of this node. The subscription's goroutine calls
// it.
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

// finish ends a step and publishes its results.
func (n *Node) finish(s *nodeStep) {
	n.finishBatch(s, "")
}

// finishBatch is like finish for the step of a batch. If reply is not empty, the answers to reply
// go in one message. They are published after those to other clients, which get locks that the
// client of the batch released.
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

// publish publishes one answer. buf is scratch memory.
func (n *Node) publish(s *voter.Send, buf *[]byte) {
	*buf = wire.AppendAnswer((*buf)[:0], &s.Answer)
	err := n.nc.Publish(s.To, *buf)
	// The text is only an explanation, and the answer counts without it.
	if s.Answer.Text != "" && errors.Is(err, nats.ErrMaxPayload) {
		s.Answer.Text = ""
		*buf = wire.AppendAnswer((*buf)[:0], &s.Answer)
		err = n.nc.Publish(s.To, *buf)
	}
	n.sent(s.To, *buf, err)
}

// publishRest publishes and logs all results of a step except the answers, and frees the step.
func (n *Node) publishRest(s *nodeStep, over bool, buf *[]byte) {
	for _, p := range []*wire.Request{s.Probe, s.Ask, s.Survey} {
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
	failed := s.failed
	s.free()
	if failed != nil {
		err := fmt.Errorf("qlock: node %s has stopped: it cannot write what it must not forget: %w", n.cfg.Name, failed)
		n.over.set(err)
		n.cfg.Log.Line(slog.LevelError, "this node has stopped serving", "error", err)
	}
	if over {
		n.over.set(n.stoppedError())
	}
}

// sent logs an answer that could not be published. It does not log that the connection is closed,
// because connectionClosed does.
func (n *Node) sent(to string, body []byte, err error) {
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		n.cfg.Log.Line(slog.LevelWarn, "answer not sent", "to", to, "bytes", len(body), "error", err)
	}
}

// publishList publishes the answers to one inbox in one message, or in several if they are long.
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
		if end > 0 { // publish the answers before this one without it
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
