package qlock

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/driver"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// Locker takes locks for one client. All its methods may be called from several
// goroutines. One Locker for a program is enough; it has one subscription and two
// goroutines, however many locks it holds.
type Locker struct {
	client *driver.Client
	opt    options
	log    *natsio.Log
}

// New makes a Locker on a connection that stays the caller's: it is neither closed nor
// reconfigured, but for its error handler. NATS tells there what a user may not publish,
// so New puts a handler in front of it, which passes on what concerns others, and Close
// takes it away. If the program sets a handler of its own meanwhile, that one stays.
//
// New asks the nodes who they are until a quorum of them
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
	log := natsio.NewLog(opt.logger)
	client, err := driver.Open(ctx, nc, opt.driver(log))
	if err != nil {
		return nil, err
	}
	return &Locker{client: client, opt: opt, log: log}, nil
}

// Name is the client's name.
func (l *Locker) Name() string { return l.opt.name }

// Cluster is the cluster's name.
func (l *Locker) Cluster() string { return l.opt.cluster }

// Nodes lists the names of the cluster's nodes, as the nodes told them.
func (l *Locker) Nodes() []string { return slices.Clone(l.client.Cluster().Nodes) }

// Lock waits for the exclusive lock on name until it is granted or ctx ends. It
// waits in the nodes' queues, where the oldest request comes first.
//
// Errors are of type *LockError: ErrHeld or ErrNoQuorum joined with the context's
// error when ctx ended, ErrRefused, ErrClosed; or ErrInvalidName. A call whose ctx
// has no deadline within a second and is cancelled in its first 20 ms, or its first
// four round trips to the nodes if they take longer, may get ErrNoQuorum for a lock
// that is held: the nodes were not asked yet why it waits.
func (l *Locker) Lock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.lock(ctx, name, exclusive, driver.Wait, driver.Detached, opts)
}

// RLock is like Lock for a shared lock: any number of readers may hold it
// together, and no writer with them.
func (l *Locker) RLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.lock(ctx, name, shared, driver.Wait, driver.Detached, opts)
}

// TryLock takes the exclusive lock on name if nobody is in the way, and fails
// with ErrHeld as soon as it is known that somebody is; the *LockError says who
// and for how long. It is bounded by ctx, and by the lease if ctx has no deadline.
func (l *Locker) TryLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.tryLock(ctx, name, exclusive, opts)
}

// TryRLock is like TryLock for a shared lock.
func (l *Locker) TryRLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.tryLock(ctx, name, shared, opts)
}

func (l *Locker) tryLock(ctx context.Context, name string, mode quorum.Mode, opts []LockOption) (*Lock, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.client.Lease())
		defer cancel()
	}
	return l.lock(ctx, name, mode, driver.Try, driver.Detached, opts)
}

// Do calls f while it holds the exclusive lock on name. f's context ends with ctx
// and when the lock is lost, and qlock.Token gives the token from it. Do returns
// f's error, joined with ErrLost if the lock was lost before f returned; the lock
// is given back also if f panics. As after Unlock, call Close before the program ends,
// or the lock may stay held for its lease.
func (l *Locker) Do(ctx context.Context, name string, f func(ctx context.Context) error, opts ...LockOption) (err error) {
	// The end of a lock's context takes it from its parent, which may be of any make, and
	// what that does is to stand in nobody's way: this one is taken from it here.
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	lock, err := l.lock(ctx, name, exclusive, driver.Wait, driver.Attached, opts)
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

// lock asks, waits, and undoes what comes too late.
func (l *Locker) lock(ctx context.Context, name string, mode quorum.Mode, patience driver.Patience, lifetime driver.Lifetime, opts []LockOption) (*Lock, error) {
	r := driver.Request{Name: name, Mode: mode, Patience: patience, Lifetime: lifetime}
	o, err := l.prepare(ctx, &r, opts)
	if err != nil {
		return nil, err
	}
	k := new(Lock)
	var watch func()
	if o != nil {
		if o.shared || o.try {
			return nil, fmt.Errorf("qlock: %s %s: the options Shared and Try are for Start; use RLock or TryLock", operation(&r), quote(name))
		}
		watch = l.watch(k, o.waitFunc)
	}
	l.client.Start(ctx, &k.hold, r)
	if failure := k.hold.Wait(ctx, watch); failure != nil {
		return nil, l.lockError(&r, failure)
	}
	return k, nil
}

// prepare completes a request by what the options and ctx say.
func (l *Locker) prepare(ctx context.Context, r *driver.Request, opts []LockOption) (o *lockOptions, err error) {
	if r.Resource, err = subject.EncodeName(r.Name); err != nil {
		return nil, err
	}
	if o, err = buildLockOptions(opts); err != nil {
		return nil, err
	}
	r.Note = l.opt.note
	if note, ok := ctx.Value(noteKey{}).(string); ok {
		r.Note = note
	}
	if o != nil {
		r.Terms = &o.terms
		if o.note != nil {
			r.Note = *o.note
		}
	}
	if err := natsio.ContextError(ctx); err != nil {
		return nil, &LockError{Op: operation(r), Name: r.Name, Reason: ErrNoQuorum, Cause: fmt.Errorf("not asked: %w", err)}
	}
	return o, nil
}

// watch is what is done when what k waits for may have changed: f is told of what is new.
func (l *Locker) watch(k *Lock, f func(Waiting)) func() {
	if f == nil {
		return nil
	}
	var last *Waiting
	return func() {
		w := l.waiting(k)
		if !w.telling() || last != nil && w.same(last) {
			return
		}
		last = &w
		f(w)
	}
}

// operation is the method that makes the request, as LockError.Op has it.
func operation(r *driver.Request) string {
	switch {
	case r.Patience == driver.Try && r.Mode == shared:
		return "try-rlock"
	case r.Patience == driver.Try:
		return "try-lock"
	case r.Mode == shared:
		return "rlock"
	}
	return "lock"
}

// Close gives back what the Locker holds, ends what waits with ErrClosed, and
// stops all that it started; the connection stays open. The contexts of its locks
// end first, with cause ErrUnlocked. It waits until the server has the last releases,
// and the logger the last lines, for a second at most. Calling it again does nothing.
func (l *Locker) Close() error { return l.client.Close() }
