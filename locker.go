package qlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// Locker takes locks for one client. All its methods may be called from several
// goroutines. One Locker for a program is enough; it has one subscription and one
// goroutine, however many locks it holds.
type Locker struct {
	nc    *nats.Conn
	opt   options
	log   *limited
	start time.Time // zero of the monotonic clock readings
	inbox string
	sub   *nats.Subscription

	mu        sync.Mutex // guards what follows; nothing is published and no caller's code is run under it
	core      *client.Client
	table     *local.Table        // what is held and waited for, on core
	survey    *survey             // of the nodes' configurations, while one is under way
	inquiries map[string]*inquiry // by nonce
	wakeAt    time.Time           // when the loop will look at core next
	closed    bool
	gone      bool // it was said that the connection is closed
	surveys   int
	asked     time.Time // of the last survey
	counts    counts
	leaps     leaps
	unlocked  time.Duration // when a lock was last unlocked
	losses    atomic.Uint64 // as counts.lost, to be read without mu
	burst     int           // how many got their locks by the last message that gave any

	denials   *denials      // the connection's
	denial    error         // the last one that was looked at
	published atomic.Uint64 // claims up to this number were asked for before the next denial

	out *outbox // taken under mu, so that messages are in the order of the steps

	found chan struct{} // closed when New knows the nodes
	wake  chan struct{} // tells the loop to look at core now
	stop  chan struct{}
	loop  sync.WaitGroup

	ending sync.WaitGroup // of contexts of locks that are lost
}

// New makes a Locker on a connection that stays the caller's: it is neither
// closed nor reconfigured. It asks the nodes who they are until a quorum of them
// has given the same list of nodes, so that only nodes need to be configured; it
// fails when ctx ends before that, or after five seconds if ctx has no deadline.
//
// Errors: ErrInvalidName, ErrNoQuorum with the context's error (the text says
// what was asked on which subject, and who answered), ErrClosed for a closed
// connection, and a lease longer than the nodes allow (ErrInvalidLease).
//
// Locks are kept as well as their connection is. Make it so that it is never closed by
// what passes, and leaves a server that falls silent while the lease still stands. For a
// lease of ten seconds:
//
//	nats.MaxReconnects(-1),           // come back, however long it takes
//	nats.IgnoreAuthErrorAbort(),      // also while credentials are being changed
//	nats.PingInterval(2*time.Second), // a fifth of the lease
//	nats.MaxPingsOutstanding(1),      // a server that falls silent is left after two of these
//
// New warns (WithLogger) of a connection that cannot keep a lock for its lease.
func New(ctx context.Context, nc *nats.Conn, opts ...Option) (*Locker, error) {
	if nc == nil {
		return nil, errors.New("qlock: New: the connection is nil")
	}
	opt, err := buildOptions(opts)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	l := &Locker{
		nc: nc, opt: opt, log: newLimited(opt.logger), start: time.Now(), inbox: nc.NewInbox(),
		found: make(chan struct{}), wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.out = newOutbox(nc, l.inbox, opt, l.log)
	l.out.begin, l.out.shut, l.out.other = l.beforePublishing, l.shut, l.fit
	err = onConnection(ctx, func() error { return l.begin(ctx) }, func() { _ = l.Close() })
	if errors.Is(err, errStandsStill) {
		return nil, fmt.Errorf("%w: the nodes of cluster %q could not be asked: %w", ErrNoQuorum, opt.cluster, err)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// begin does what New has to do with the connection, which may stand still.
func (l *Locker) begin(ctx context.Context) error {
	if l.nc.IsClosed() {
		return closedError(l.nc)
	}
	l.denial = l.nc.LastError()
	l.out.measure()
	// A callback, not a channel: the client library's list for callbacks is long,
	// and a full channel loses answers. One subject for all answers: they carry
	// their claim in the body.
	var err error
	if l.sub, err = l.nc.Subscribe(l.inbox, l.receive); err != nil {
		return fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	if err := l.discover(ctx); err != nil {
		_ = l.sub.Unsubscribe()
		return err
	}
	l.denials = watchDenials(l.nc)
	l.denials.add(l)
	status := l.nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	l.loop.Go(func() { l.run(status) })
	l.loop.Go(func() { l.out.run(l.stop) })
	advise(l.nc, l.opt.lease, l.log, "locks")
	return nil
}

// fit keeps what is sent to what the connection takes.
func (l *Locker) fit(most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.core != nil {
		l.core.Fit(most)
	}
}

// Name is the client's name.
func (l *Locker) Name() string { return l.opt.name }

// Cluster is the cluster's name.
func (l *Locker) Cluster() string { return l.opt.cluster }

// Nodes lists the names of the cluster's nodes, as the nodes told them.
func (l *Locker) Nodes() []string { return slices.Clone(l.cluster().Nodes) }

func (l *Locker) cluster() proto.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.core.Cluster()
}

// Lock waits for the exclusive lock on name until it is granted or ctx ends. It
// waits in the nodes' queues, where the oldest request comes first.
//
// Errors are of type *LockError: ErrHeld or ErrNoQuorum joined with the context's
// error when ctx ended, ErrRefused, ErrClosed; or ErrInvalidName. A call whose ctx
// has no deadline within a second and is cancelled in its first 20 ms, or its first
// four round trips to the nodes if they take longer, may get ErrNoQuorum for a lock
// that is held: the nodes were not asked yet why it waits.
func (l *Locker) Lock(ctx context.Context, name string) (*Lock, error) {
	return l.lock(ctx, true, "lock", name, exclusive)
}

// RLock is like Lock for a shared lock: any number of readers may hold it
// together, and no writer with them.
func (l *Locker) RLock(ctx context.Context, name string) (*Lock, error) {
	return l.lock(ctx, true, "rlock", name, shared)
}

// TryLock takes the exclusive lock on name if nobody is in the way, and fails
// with ErrHeld as soon as it is known that somebody is; the *LockError says who
// and for how long. It is bounded by ctx, and by the lease if ctx has no deadline.
func (l *Locker) TryLock(ctx context.Context, name string) (*Lock, error) {
	return l.tryLock(ctx, "try-lock", name, exclusive)
}

// TryRLock is like TryLock for a shared lock.
func (l *Locker) TryRLock(ctx context.Context, name string) (*Lock, error) {
	return l.tryLock(ctx, "try-rlock", name, shared)
}

func (l *Locker) tryLock(ctx context.Context, op, name string, mode quorum.Mode) (*Lock, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.opt.lease)
		defer cancel()
	}
	return l.lock(ctx, true, op, name, mode)
}

// Do calls f while it holds the exclusive lock on name. f's context ends with ctx
// and when the lock is lost, and qlock.Token gives the token from it. Do returns
// f's error, joined with ErrLost if the lock was lost before f returned; the lock
// is given back also if f panics. As after Unlock, call Close before the program ends,
// or the lock may stay held for its lease.
func (l *Locker) Do(ctx context.Context, name string, f func(ctx context.Context) error) (err error) {
	// The end of a lock's context takes it from its parent, which may be of any make, and
	// what that does is to stand in nobody's way: this one is taken from it here.
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	lock, err := l.lock(ctx, false, "lock", name, exclusive)
	if err != nil {
		return err
	}
	defer func() {
		if lost := lock.Unlock(ctx); lost != nil {
			err = errors.Join(err, fmt.Errorf("qlock: lock %s: %w", quote(name), lost))
		}
	}()
	return f(lock.Context())
}

// lock asks, waits, and undoes what comes too late. The lock's context has the
// values of ctx, and unless it is detached ends with it.
func (l *Locker) lock(ctx context.Context, detached bool, op, name string, mode quorum.Mode) (*Lock, error) {
	resource, err := subject.EncodeName(name)
	if err != nil {
		return nil, err
	}
	if err := contextError(ctx); err != nil {
		return nil, &LockError{Op: op, Name: name, Reason: ErrNoQuorum, Cause: fmt.Errorf("not asked: %w", err)}
	}
	k := &Lock{locker: l, name: name, resource: resource, mode: mode, note: l.opt.note, ready: make(chan struct{})}
	if note, ok := ctx.Value(noteKey{}).(string); ok {
		k.note = note
	}
	k.parent = lockContext{ctx, k, detached}
	k.ctx, k.cancel = context.WithCancelCause(&k.parent)
	try := op == "try-lock" || op == "try-rlock"
	deadline, hasty := ctx.Deadline()
	hasty = hasty && time.Until(deadline) < time.Second
	l.step(func(now proto.Now, out *local.Out) {
		if l.closed {
			return
		}
		k.asked = l.start.Add(now.Mono)
		l.counts.waiting++
		k.use = l.table.Lock(now, local.Want{Resource: resource, Mode: mode, Try: try, Hasty: hasty, Note: k.note, User: k}, out)
	})
	if k.use == nil {
		k.cancel(ErrClosed)
		return nil, &LockError{Op: op, Name: name, Reason: ErrClosed}
	}
	select {
	case <-k.ready:
	case <-ctx.Done():
		return nil, l.giveUp(k, op, contextError(ctx))
	}
	if k.err != nil {
		k.err.Op = op
		return nil, k.err
	}
	return k, nil
}

// giveUp ends a claim whose caller has gone. It may have been granted in the same
// moment: then it is given back as well, since nobody would (semaphore.Acquire of
// golang.org/x/sync does the same).
func (l *Locker) giveUp(k *Lock, op string, cause error) error {
	var err *LockError
	l.step(func(now proto.Now, out *local.Out) {
		if err = k.err; err != nil { // it failed in the same moment
			return
		}
		err = l.report(now, op, k, cause)
		l.counts.fail(k, err)
		l.table.Unlock(now, k.use, out)
	})
	k.cancel(cause)
	err.Op = op
	return err
}

// inARow is how soon one Unlock follows another in a program that does not end yet: its
// releases go with the next requests, which costs less.
const inARow = 10 * time.Millisecond

func (l *Locker) unlock(k *Lock) error {
	for {
		l.mu.Lock()
		state, last := k.state, false
		now := l.at(time.Now())
		held := state == lockHeld && l.table.HeldAt(now, k.use)
		if held {
			l.counts.turn(k, lockUnlocked)
			last = l.counts.held+l.counts.waiting == 0 && (l.unlocked == 0 || now.Mono-l.unlocked > inARow)
			l.unlocked = now.Mono
		}
		l.mu.Unlock()
		switch {
		case held:
			k.cancel(ErrUnlocked) // before anybody can have the lock, here or elsewhere //plant:unlock
			l.step(func(now proto.Now, out *local.Out) { l.table.Unlock(now, k.use, out) })
			if last {
				l.out.giveWay()
			}
			return nil
		case state == lockHeld: // a loss that nobody has noticed yet
			l.step(l.table.Tick)
		case state == lockLost:
			k.cancel(k.lost) // it may be under way, and has happened when this returns
			return k.lost
		default:
			return nil
		}
	}
}

// Close gives back what the Locker holds, ends what waits with ErrClosed, and
// stops all that it started; the connection stays open. The contexts of its locks
// end first, with cause ErrUnlocked. It waits until the server has the last releases,
// and the logger the last lines, for a second at most. Calling it again does nothing.
func (l *Locker) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	all := l.table.All()
	l.mu.Unlock()
	l.giveUpAll(all)
	close(l.stop)
	l.denials.remove(l)
	patience := time.NewTimer(closePatience - logPatience)
	defer patience.Stop()
	defer l.log.flush(logPatience)
	var err error
	left := make(chan struct{})
	// All of this waits for the connection, which may stand still for longer than
	// ours is to wait.
	go func() {
		defer close(left)
		l.loop.Wait()
		err = l.leave()
	}()
	select {
	case <-left:
		return err
	case <-patience.C:
		l.log.line(slog.LevelWarn, "the NATS connection is blocked; the last releases may not reach the nodes, and the leases will expire")
		return nil
	}
}

// giveUpAll ends all uses of a Locker that is closed, in steps, as there may be many and
// the clock goes on for those whose turn comes last.
func (l *Locker) giveUpAll(all []*local.Use) {
	slices.Reverse(all) // who waits last goes first, and is given nothing
	var held, waiting []*Lock
	l.inSteps(len(all), func(i int, now proto.Now, out *local.Out) {
		k := all[i].User.(*Lock)
		switch all[i].State() {
		case local.Waiting:
			k.err = &LockError{Name: k.name, Reason: ErrClosed}
			l.counts.fail(k, k.err)
			waiting = append(waiting, k)
			l.table.Unlock(now, k.use, out)
		case local.Holding:
			if k.state == lockHeld { // else it is being unlocked, and its context may not have ended yet
				l.counts.turn(k, lockUnlocked)
			}
			held = append(held, k)
		}
	})
	for _, k := range waiting {
		k.cancel(ErrClosed)
		close(k.ready)
	}
	endAll(held, func(*Lock) error { return ErrUnlocked })
	l.ending.Wait() // for those that are lost: nothing is published before
	l.inSteps(len(held), func(i int, now proto.Now, out *local.Out) { l.table.Unlock(now, held[i].use, out) })
	for more := true; more; {
		l.step(func(now proto.Now, out *local.Out) { more = l.table.Rest(now, mostInStep, out) })
	}
	l.ending.Wait() // should one have been lost since: what is held back is not published at the end
}

// leave takes a Locker that does nothing any more from its connection.
func (l *Locker) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second-2*logPatience)
	defer cancel()
	if l.nc.IsClosed() {
		return nil
	}
	err := l.sub.Unsubscribe()
	if flushErr := l.nc.FlushWithContext(ctx); flushErr != nil && err == nil && !errors.Is(flushErr, nats.ErrConnectionClosed) {
		l.log.line(slog.LevelWarn, "the last releases may not have reached the nodes; the leases will expire", "error", flushErr)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
		return fmt.Errorf("qlock: close: %w", err)
	}
	return nil
}

// at is a reading of the clocks.
func (l *Locker) at(t time.Time) proto.Now {
	return proto.Now{Mono: t.Sub(l.start), Wall: t.UnixMicro()}
}

var outs = sync.Pool{New: func() any { return new(local.Out) }}

// step lets f work on the machine under the lock, notes what became of claims,
// puts what is to be sent into the outbox, and after the lock is given up tells
// whom it concerns. It waits for nobody but other steps.
func (l *Locker) step(f func(now proto.Now, out *local.Out)) {
	out := outs.Get().(*local.Out)
	l.mu.Lock()
	t := time.Now()
	now := l.at(t)
	f(now, out)
	if out.Renew {
		l.table.Renew(now, freshInstance(t), out)
	}
	held := 0
	var lost, unlocking []*Lock
	for _, e := range out.Uses {
		k := e.Use.User.(*Lock)
		l.became(now, e)
		switch {
		case e.Kind == local.Held:
			held++
		case e.Kind == local.Lost && k.state == lockLost:
			lost = append(lost, k)
		case e.Kind == local.Lost: // while its owner ends its context, which may take long yet
			unlocking = append(unlocking, k)
			l.event(subject.Released, k)
		case e.Kind == local.Returned: // before the release, and so before the next one has it
			l.event(subject.Released, k)
		}
	}
	if len(lost) > 0 {
		l.out.hold()
		l.ending.Go(func() { l.endLost(lost) })
	}
	if len(unlocking) > 0 { // what the machine says of them is not said before
		l.out.hold()
		l.ending.Go(func() {
			endAll(unlocking, func(*Lock) error { return ErrUnlocked })
			l.out.letGo()
		})
	}
	if held > 0 {
		l.burst = held
	}
	if out.AskInfo && l.askAgain() {
		out.Requests = append(out.Requests, l.infoRequest())
	}
	wake := l.rearm(t, now)
	if len(out.Requests) > 0 {
		l.out.requests(l.opt.cluster, out.Requests, l.counts.waiting > 1 || l.burst > 1)
	}
	l.mu.Unlock()

	if wake {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	for _, e := range out.Uses {
		k := e.Use.User.(*Lock)
		switch e.Kind {
		case local.Held:
			if e.First {
				l.event(subject.Acquired, k) // before its owner can cause the next
			}
			close(k.ready)
		case local.Failed:
			k.cancel(k.err)
			close(k.ready)
		}
	}
	for _, note := range out.Notes {
		l.log.line(slog.LevelError, note)
	}
	out.Reset()
	outs.Put(out)
}

// became notes an event in the lock's fields. Call with l.mu held.
func (l *Locker) became(now proto.Now, e local.Event) {
	k := e.Use.User.(*Lock)
	switch e.Kind {
	case local.Held:
		k.token, k.since = e.Use.Token(), l.start.Add(now.Mono)
		l.counts.hold(k, e.First)
		k.votes, k.nodes = e.Votes, len(l.core.Cluster().Nodes)
	case local.Lost:
		if k.state != lockHeld {
			break // its owner is about to give it back, and ends its context
		}
		k.lost = ErrLost
		if e.Eviction != nil {
			k.lost = &evictedError{client.Eviction{By: e.Eviction.By, Why: printable.Text(e.Eviction.Why)}}
		} else if l.leaps.read(now); l.leaps.explain(now, l.opt.lease) != "" {
			k.lost = &leaptError{l.leaps.explain(now, l.opt.lease)}
		}
		l.counts.turn(k, lockLost)
		l.losses.Add(1)
	case local.Failed:
		if k.err = l.report(now, "lock", k, nil); e.Eviction != nil {
			k.err.Reason, k.err.Cause = ErrEvicted, &client.Eviction{By: e.Eviction.By, Why: printable.Text(e.Eviction.Why)}
		}
		l.counts.fail(k, k.err)
	}
}

// report tells why k does not hold. Call with l.mu held.
func (l *Locker) report(now proto.Now, op string, k *Lock, cause error) *LockError {
	if mode, since, ours := l.table.Ours(now, k.use); ours {
		return &LockError{Op: op, Name: k.name, Reason: ErrHeld, Cause: cause, Holder: &Holder{
			Client: l.opt.name, Shared: mode == shared, Held: true, For: since, Own: true,
		}}
	}
	return lockError(op, k.name, l.table.Report(now, k.use), nil, cause)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// receive takes an answer. It runs on the subscription's goroutine.
func (l *Locker) receive(m *nats.Msg) {
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return // the server says that no node hears: that is silence, not an answer
	}
	if proto.IsList(m.Data) {
		l.receiveList(m.Data)
		return
	}
	a := answers.Get().(*proto.Answer)
	defer answers.Put(a) // the machine keeps nothing of it but its strings and the blocker
	if err := a.Decode(m.Data); err != nil {
		l.log.line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(m.Data))
		return
	}
	if isReply(a.Kind) {
		l.receiveReply(*a)
		return
	}
	l.step(func(now proto.Now, out *local.Out) {
		if l.core != nil && !l.closed {
			l.table.Handle(now, a, out)
		}
	})
}

// isReply reports whether an answer of this kind is about no claim of this Locker.
func isReply(k proto.Kind) bool {
	return k == proto.Informed || k == proto.Listed || k == proto.Evicting
}

// receiveReply takes an answer to a question about the nodes or others' claims.
func (l *Locker) receiveReply(a proto.Answer) {
	if a.Kind == proto.Informed {
		a.Nonce = a.Info.Nonce
		l.informed(&a)
	}
	l.replied(&a)
}

// receiveList takes a node's answers to a batch.
func (l *Locker) receiveList(body []byte) {
	list := answerLists.Get().(*[]proto.Answer)
	var err error
	*list, err = proto.DecodeAnswers((*list)[:0], body)
	if err != nil {
		l.log.line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(body))
	}
	l.out.batching.heard()
	for _, a := range *list {
		if isReply(a.Kind) {
			l.receiveReply(a)
		}
	}
	l.step(func(now proto.Now, out *local.Out) {
		if l.core == nil || l.closed {
			return
		}
		for i := range *list {
			if a := &(*list)[i]; !isReply(a.Kind) {
				l.table.Handle(now, a, out)
			}
		}
	})
	if cap(*list) <= 4*proto.MaxBatch { // more was somebody's joke, do not keep it
		clear(*list)
		answerLists.Put(list)
	}
}

var answerLists = sync.Pool{New: func() any { return new([]proto.Answer) }}

var answers = sync.Pool{New: func() any { return new(proto.Answer) }}

func newInstance() uuid.UUID { return uuid.New() }

// freshInstance is one for a client that may have copies. A machine's random numbers may
// have been copied with it, but not the moment at which each reads its clock.
func freshInstance(t time.Time) uuid.UUID {
	return uuid.NewSHA1(newInstance(), strconv.AppendInt(nil, t.UnixNano(), 10))
}
