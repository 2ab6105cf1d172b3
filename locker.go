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

// Locker acquires locks for one client. Its methods are safe for concurrent use. One Locker is
// enough for a program: it has one subscription and two goroutines, however many locks it
// holds.
type Locker struct {
	client *driver.Client
	opt    options
	log    *natsio.Log
}

// New makes a Locker on a NATS connection. The connection remains the caller's: New does not
// close it, and changes only its error handler. NATS reports to that handler which subjects the
// user may not publish to. New installs a handler that passes on every error that does not
// concern the Locker, and Close removes it. A handler that the program installs in the
// meantime stays.
//
// New asks the nodes for their list of nodes until a quorum of them has given the same list.
// Only the nodes have to be configured. New fails when ctx ends before that, or after 5 s if
// ctx has no deadline.
//
// Errors: ErrInvalidName; ErrNoQuorum joined with the context's error, whose text says which
// subject was used and who answered; ErrClosed if the connection is closed; ErrInvalidLease if
// the lease is longer than the nodes allow.
//
// A lock is only as reliable as its connection. Configure the connection so that no temporary
// failure closes it, and so that it leaves a silent server while the lease is still valid. For
// a lease of 10 s:
//
//	nats.MaxReconnects(-1),           // reconnect, however long it takes
//	nats.IgnoreAuthErrorAbort(),      // also while credentials are being changed
//	nats.PingInterval(2*time.Second), // a fifth of the lease
//	nats.MaxPingsOutstanding(1),      // leave a silent server after two of these intervals
//
// New logs a warning (WithLogger) if the connection cannot keep a lock for its lease.
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

// Name returns the client's name.
func (l *Locker) Name() string { return l.opt.name }

// Cluster returns the cluster's name.
func (l *Locker) Cluster() string { return l.opt.cluster }

// Nodes returns the names of the cluster's nodes, as the nodes reported them.
func (l *Locker) Nodes() []string { return slices.Clone(l.client.Cluster().Nodes) }

// Lock waits until the exclusive lock on name is granted or ctx ends. It waits in the nodes'
// queues, where the oldest request comes first. Locks are not reentrant: a goroutine that locks
// a name twice waits for itself.
//
// Errors are of type *LockError, with ErrHeld or ErrNoQuorum joined with the context's error
// when ctx ended, ErrRefused, ErrEvicted or ErrClosed; or ErrInvalidName. If ctx has no
// deadline within a second and is canceled in the first 20 ms of the call, or in the first four
// round trips to the nodes if those take longer, the error may be ErrNoQuorum although the lock
// is held: the nodes have not been asked yet why the call waits.
func (l *Locker) Lock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.lock(ctx, name, exclusive, driver.Wait, driver.Detached, opts)
}

// RLock is like Lock for a shared lock. Any number of readers can hold it at the same time, but
// no writer can hold the lock together with them.
func (l *Locker) RLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return l.lock(ctx, name, shared, driver.Wait, driver.Detached, opts)
}

// TryLock acquires the exclusive lock on name if no other claim is in the way. Otherwise it
// fails with ErrHeld as soon as it knows; the *LockError says who holds the lock and since
// when. It takes no longer than ctx allows, or a lease if ctx has no deadline.
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

// Do acquires the exclusive lock on name, calls f, and releases the lock, also if f panics. The
// context of f ends when ctx ends or the lock is lost, and Token returns the fencing token from
// it. Do returns the error of f, joined with ErrLost if the lock was lost, or ErrHoldExpired if
// HoldAtMost ended it, before f returned. As after Unlock, call Close before the program ends:
// otherwise the lock may stay held for its lease.
func (l *Locker) Do(ctx context.Context, name string, f func(ctx context.Context) error, opts ...LockOption) (err error) {
	// When a lock's context ends, it is removed from its parent. The parent may be of any
	// implementation, and may block: with this context in between, only Do waits for it.
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

// lock sends the request and waits for it. A lock that is granted too late is given back.
func (l *Locker) lock(ctx context.Context, name string, mode quorum.Mode, patience driver.Patience, lifetime driver.Lifetime, opts []LockOption) (*Lock, error) {
	r := driver.Request{Name: name, Mode: mode, Patience: patience, Lifetime: lifetime}
	o, err := l.prepare(ctx, &r, opts)
	if err != nil {
		return nil, err
	}
	k := newLock()
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

// prepare completes a request from the options and ctx.
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

// watch returns what to do when the status of k may have changed: it passes news to f.
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

// operation names the method that makes such a request, for LockError.Op.
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

// Close releases all locks of the Locker, fails all calls that wait with ErrClosed, and stops
// everything that New started. The connection stays open. The contexts of the locks end first,
// with cause ErrUnlocked. Close waits until the server has the last releases and the logger has
// the last lines, but for 1 s at most. Calling it again does nothing.
func (l *Locker) Close() error { return l.client.Close() }
