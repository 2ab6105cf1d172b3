package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
)

// Lock is a lock that is held: a *qlock.Lock, or one of another service whose tokens rise
// with each exclusive holder. If it has a method Cluster() string, as a *qlock.Lock has, then
// its cluster must be that of the store (WithCluster).
type Lock interface {
	Name() string
	Token() uint64
	Shared() bool
	Context() context.Context // ends when the lock is no longer held
}

// View reads and writes under the fence of one lock. Its methods may be called from several
// goroutines. Every method fails with ErrFenced after the lock's context has ended or
// another holder has moved the fence.
//
// Finish all calls before you unlock: a call that is running when the lock ends may have an
// unknown outcome.
type View struct {
	s *Store
	c *claim
}

// With returns a view for a lock. It sends nothing: the fence is moved at the first read or
// write. All views of a claim are the same; each shared lock is a claim of its own. The calls of a view of a lock of another cluster
// fail with ErrInvalid.
func (s *Store) With(l Lock) *View { return s.with(l, s.opt.client) }

func (s *Store) with(l Lock, client string) *View {
	if err := s.foreign(l); err != nil {
		return &View{s, &claim{s: s, lock: l, invalid: err}}
	}
	key := claimKey{lock: l.Name(), token: l.Token(), shared: l.Shared()}
	if key.shared {
		key.held = l.Context().Done()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[key]
	if c != nil && c.lock.Context().Err() == nil {
		return &View{s, c}
	}
	if len(s.claims) >= s.sweep {
		for k, c := range s.claims {
			if c.lock.Context().Err() != nil {
				delete(s.claims, k)
			}
		}
		s.sweep = max(64, 2*len(s.claims))
	}
	c = &claim{s: s, lock: l, token: key.token, shared: key.shared, client: client, taking: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	if c.subject, c.invalid = s.fenceOf(key.lock); c.invalid == nil && key.token == 0 {
		c.invalid = fmt.Errorf("%w: lock %q has no token", ErrInvalid, key.lock)
	}
	s.claims[key] = c
	return &View{s, c}
}

// foreign fails for a lock of another cluster. Its tokens say nothing about the holders of
// the lock of that name in the store's cluster: a higher one would shut them out, and with a
// lower one it would be shut out for no reason.
func (s *Store) foreign(l Lock) error {
	of, ok := l.(interface{ Cluster() string })
	if !ok || of.Cluster() == s.opt.cluster { //plant:store-foreign
		return nil
	}
	return fmt.Errorf("%w: lock %q is of cluster %q, and the store's fences are of cluster %q: open the store WithCluster", ErrInvalid, l.Name(), of.Cluster(), s.opt.cluster)
}

type viewKey struct{ s *Store }

// Under calls f while it holds the exclusive lock on name, with a view for it. It is
// Locker.Do with a view: f's context ends with ctx and when the lock is lost. Functions that
// f calls get the same view with In.
func (s *Store) Under(ctx context.Context, locker *qlock.Locker, name string, f func(ctx context.Context, v *View) error) error {
	if c := locker.Cluster(); c != s.opt.cluster {
		return fmt.Errorf("%w: the Locker is of cluster %q, and the store's fences are of cluster %q: open the store WithCluster", ErrInvalid, c, s.opt.cluster)
	}
	return locker.Do(ctx, name, func(ctx context.Context) error {
		client := s.opt.client
		if client == "" {
			client = locker.Name()
		}
		v := s.with(held{name, qlock.Token(ctx), ctx}, client)
		return f(context.WithValue(ctx, viewKey{s}, v), v)
	})
}

// held is an exclusive lock that Locker.Do holds.
type held struct {
	name  string
	token uint64
	ctx   context.Context
}

func (h held) Name() string             { return h.name }
func (h held) Token() uint64            { return h.token }
func (h held) Shared() bool             { return false }
func (h held) Context() context.Context { return h.ctx }

// NewContext returns a context that carries the view for In. Use it after With. Its parent
// must be the lock's context, or one that descends from it.
func (v *View) NewContext(parent context.Context) context.Context {
	return context.WithValue(parent, viewKey{v.s}, v)
}

// In returns the view of the innermost lock whose context is ctx or an ancestor of it, as
// within Locker.Do or Under, or else the view that View.NewContext has put into the context. It
// fails with ErrNoLock if there is neither, and with ErrInvalid if that lock is of another
// cluster.
func (s *Store) In(ctx context.Context) (*View, error) {
	v, _ := ctx.Value(viewKey{s}).(*View)
	l, ok := qlock.FromContext(ctx)
	if ok {
		if err := s.foreign(l); err != nil {
			return nil, err
		}
	}
	switch {
	case v == nil && !ok:
		return nil, fmt.Errorf("%w: the context comes from no lock: call it within Locker.Do or Store.Under", ErrNoLock)
	case ok && (v == nil || l.Name() != v.c.lock.Name() || l.Token() != v.c.token):
		return s.With(l), nil // of the innermost lock
	}
	return v, nil
}

func (v *View) ready(keys ...string) error {
	if v.c.invalid != nil {
		return v.c.invalid
	}
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return err
		}
	}
	return v.c.alive()
}

// Get returns the entry of a key. It is at least as new as all that earlier holders of the
// lock have written, and as this claim's own writes. Its error is
// jetstream.ErrKeyNotFound if there is none, or it was deleted.
func (v *View) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	snap, err := v.GetAll(ctx, key)
	if err != nil {
		return nil, err
	}
	return snap.Get(key)
}

// GetAll returns the entries of up to 1,000 keys, as they were at one moment.
func (v *View) GetAll(ctx context.Context, keys ...string) (_ Snapshot, err error) {
	defer func() { err = because(ctx, err) }()
	if err := v.ready(keys...); err != nil {
		return Snapshot{}, err
	}
	if len(keys) > maxKeys {
		return Snapshot{}, fmt.Errorf("%w: %d keys in one read: the limit is %d", ErrInvalid, len(keys), maxKeys)
	}
	ctx, cancel := v.s.bound(ctx)
	defer cancel()
	subjects := make([]string, len(keys))
	for i, k := range keys {
		subjects[i] = v.s.key(k)
	}
	a, _, err := v.c.read(ctx, subjects)
	if err != nil {
		return Snapshot{}, err
	}
	snap := Snapshot{revision: a.upTo, entries: make(map[string]*entry, len(keys))}
	for i, k := range keys {
		if it := a.items[subjects[i]]; !it.gone() {
			snap.entries[k] = v.s.entry(k, it)
		}
	}
	return snap, nil
}

// maxKeys are all keys of one read or transaction: the server gives 1,024 messages in an
// answer, and takes 1,000 in a batch. The rest is for the fence, the guard and the id.
const maxKeys = 990

func (s *Store) entry(key string, i *item) *entry {
	return &entry{bucket: s.bucket, key: key, value: i.data, rev: i.seq, created: i.time, op: i.op()}
}

// WriteOption changes a single write.
type WriteOption func(*write) error

// TTL lets a value expire. It is at least a second, and the server rounds down to seconds.
func TTL(d time.Duration) WriteOption {
	return func(w *write) error {
		if d < time.Second {
			return fmt.Errorf("%w: a TTL of %v: the shortest is one second", ErrInvalid, d)
		}
		w.ttl = d
		return nil
	}
}

// write is one message for a key.
type write struct {
	subject string
	data    []byte
	kind    writeKind
	ttl     time.Duration
}

type writeKind int

const (
	writeValue writeKind = iota
	writeDelete
	writePurge
)

func (w *write) apply(opts []WriteOption) error {
	for _, o := range opts {
		if o != nil {
			if err := o(w); err != nil {
				return err
			}
		}
	}
	return nil
}

// plain reports whether the message of the write has no header of its own.
func (w *write) plain() bool { return w.kind == writeValue && w.ttl == 0 }

func (w *write) msg() *nats.Msg {
	m := &nats.Msg{Subject: w.subject, Data: w.data, Header: make(nats.Header, 2)}
	switch w.kind {
	case writeDelete:
		m.Header[headerKVOp] = []string{"DEL"}
	case writePurge:
		m.Header[headerKVOp] = []string{"PURGE"}
		m.Header[headerRollup] = []string{"sub"}
	}
	if w.ttl > 0 {
		m.Header[headerTTL] = []string{ttlText(w.ttl)}
	}
	return m
}

func ttlText(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "s" }

// is reports whether a message is this write, done under a fence whose message was at rev.
func (w *write) is(i *item, rev uint64) bool {
	return i != nil && bytes.Equal(i.data, w.data) && i.hdr.Get(headerKVOp) == w.msg().Header.Get(headerKVOp) &&
		i.hdr.Get(jetstream.ExpectedLastSubjSeqHeader) == strconv.FormatUint(rev, 10)
}

// Put stores a value, whatever was there, and returns its revision.
func (v *View) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (uint64, error) {
	return v.put(ctx, key, write{data: value}, opts)
}

// Delete marks a key as deleted, whatever was there. The bucket's history stays.
func (v *View) Delete(ctx context.Context, key string) error {
	_, err := v.put(ctx, key, write{kind: writeDelete}, nil)
	return err
}

// Purge is like Delete, and removes the key's history.
func (v *View) Purge(ctx context.Context, key string) error {
	_, err := v.put(ctx, key, write{kind: writePurge}, nil)
	return err
}

// Create stores a value if there is no such key, and returns its revision. Else its error is
// a *ConflictError.
//
// Create and Update cost more than Put: they read, and commit a batch of two messages. A
// holder that alone writes a key needs neither.
func (v *View) Create(ctx context.Context, key string, value []byte, opts ...WriteOption) (uint64, error) {
	return single(key)(v.Do(ctx, Insert(key, value, opts...)))
}

// Update stores a value if the key's revision is still rev, and returns the new one. Else its
// error is a *ConflictError.
func (v *View) Update(ctx context.Context, key string, value []byte, rev uint64, opts ...WriteOption) (uint64, error) {
	return single(key)(v.Do(ctx, Update(key, value, rev, opts...)))
}

func single(key string) func(Result, error) (uint64, error) {
	return func(r Result, err error) (uint64, error) {
		if err != nil {
			return 0, err
		}
		return r.Written(key), nil
	}
}

// put is an unconditional write under the fence that waits for its turn.
type put struct {
	write
	ctx   context.Context // of the call, with a deadline; nil if it sends alone
	bytes int
	done  chan struct{} // closed when rev and err are set
	over  bool          // done is closed; of whoever sends it
	rev   uint64
	err   error
}

func (p *put) end(err error) {
	p.err, p.over = err, true
	close(p.done)
}

const (
	// What one goroutine sends for others that wait with it.
	groupMost  = 256
	groupBytes = 1 << 20
)

// put stores one message. With replicas the server lets only one write depend on a fence at
// a time, and refuses all others until it is stored. So the first goroutine sends its own,
// and what has come meanwhile goes as one batch by the next (S3). With one replica there is
// no such limit, and there a batch costs much more than a message.
func (v *View) put(ctx context.Context, key string, w write, opts []WriteOption) (_ uint64, err error) {
	defer func() { err = because(ctx, err) }()
	if err := v.ready(key); err != nil {
		return 0, err
	}
	c := v.c
	if c.shared {
		return 0, fmt.Errorf("%w: lock %q, key %q: acquire the lock exclusively", ErrShared, c.lock.Name(), key)
	}
	w.subject = v.s.key(key)
	if err := w.apply(opts); err != nil {
		return 0, err
	}
	p := &put{write: w}
	if !v.s.grouped {
		if c.enter() {
			err := c.sendPuts(ctx, []*put{p})
			c.exit()
			return p.rev, err
		}
		return v.putAfter(ctx, key, p)
	}
	// Mostly nobody else is writing.
	select {
	case c.turn <- struct{}{}:
		if c.idle() {
			err := c.sendPuts(ctx, []*put{p})
			<-c.turn
			return p.rev, err
		}
		<-c.turn
	default:
	}
	ctx, cancel := v.s.bound(ctx)
	defer cancel()
	p.ctx, p.bytes, p.done = ctx, len(w.subject)+len(w.data)+256, make(chan struct{})
	c.mu.Lock()
	c.waiting = append(c.waiting, p)
	c.mu.Unlock()
	for {
		select {
		case <-p.done:
			return p.rev, p.err
		case <-ctx.Done():
			if c.leave(p) {
				return 0, fmt.Errorf("store: put %q: %w while waiting for other writes under lock %q", key, ctx.Err(), c.lock.Name())
			}
			// Another goroutine is sending it. That takes as long as an answer, since it does not
			// try again for a call that has ended.
			<-p.done
			return p.rev, p.err
		case c.turn <- struct{}{}:
			if ps := c.group(p); len(ps) == 1 && ps[0] == p {
				c.commitPuts(ctx, ps)
			} else if len(ps) > 0 {
				// The others must not suffer from the end of this call's context.
				detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.s.opt.timeout)
				c.commitPuts(detached, ps)
				cancel()
			}
			<-c.turn
		}
	}
}

// putAfter stores a message when the transactions that are running have ended.
func (v *View) putAfter(ctx context.Context, key string, p *put) (uint64, error) {
	ctx, cancel := v.s.bound(ctx)
	defer cancel()
	c := v.c
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return 0, fmt.Errorf("store: put %q: %w while waiting for a transaction under lock %q", key, ctx.Err(), c.lock.Name())
	}
	err := c.sendPuts(ctx, []*put{p})
	return p.rev, err
}

// idle reports whether no put waits.
func (c *claim) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) == 0
}

// leave takes back a put that nobody has sent.
func (c *claim) leave(p *put) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, q := range c.waiting {
		if q == p {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// group takes what waits, if p waits too.
func (c *claim) group(p *put) []*put {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-p.done:
		return nil
	default:
	}
	n, size := 0, 0
	for _, q := range c.waiting {
		if size += q.bytes; n > 0 && (n == groupMost || size > groupBytes) {
			break
		}
		n++
	}
	ps := append([]*put(nil), c.waiting[:n]...)
	c.waiting = append(c.waiting[:0], c.waiting[n:]...)
	return ps
}

// commitPuts stores puts in one message or batch, and tells each its outcome.
func (c *claim) commitPuts(ctx context.Context, ps []*put) {
	many := len(ps) > 1
	err := c.sendPuts(ctx, ps)
	over := errors.Is(err, errCallEnded) || ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded)
	ps = slices.DeleteFunc(ps, func(p *put) bool { return p.over })
	if (many || errors.Is(err, errCallEnded)) && over && !errors.Is(err, ErrUnknown) && !forbidden(err) {
		// Nothing was stored. The time of one of them has passed, and the others go on.
		var rest []*put
		for _, p := range ps {
			if why := p.ctx.Err(); why == nil {
				rest = append(rest, p)
			} else {
				p.end(fmt.Errorf("store: put %s: %w in a batch with others: %v", p.subject, why, err))
			}
		}
		c.mu.Lock()
		c.waiting = append(rest, c.waiting...)
		c.mu.Unlock()
		return
	}
	if err != nil && many && !final(err) {
		// One of them spoils the batch, such as by a key that this user may not write.
		// Nothing was stored: let each have its own answer.
		for _, p := range ps {
			c.commitPuts(ctx, []*put{p})
		}
		return
	}
	for _, p := range ps {
		p.end(err)
	}
}

// final reports whether an error is that of the claim or the outcome, not of one message.
func final(err error) bool {
	if forbidden(err) && !errors.Is(err, ErrUnknown) {
		return false // of one key; it may say as well that no answer came
	}
	return errors.Is(err, ErrFenced) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotPrepared) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// sendPuts stores puts in one message or batch.
func (c *claim) sendPuts(ctx context.Context, ps []*put) error {
	start := time.Now()
	if err := c.alive(); err != nil {
		return err
	}
	// Mostly the fence is there and the first try succeeds. The wire bounds a single try. A
	// context for the whole call would cost as much as all else here.
	var first *putTry
	if rev, floor := c.state(); rev != 0 {
		t := c.tryPuts(ctx, ps, rev, floor)
		if t.err == nil {
			return nil
		}
		first = &t
	}
	return c.settlePuts(ctx, start, ps, first)
}

// putTry is one try to store puts.
type putTry struct {
	rev, floor uint64 // as they were before
	id         string // of the batch
	sent       time.Time
	err        error // nil if they are stored
}

func (c *claim) tryPuts(ctx context.Context, ps []*put, rev, floor uint64) putTry {
	t := putTry{rev: rev, floor: floor, sent: time.Now()}
	msgs := make([]*nats.Msg, len(ps))
	for i, q := range ps {
		if i == 0 {
			msgs[i] = c.carry(&q.write, rev)
			continue
		}
		msgs[i] = q.msg()
	}
	if len(msgs) > 1 {
		t.id = newID()
	}
	var seq uint64
	if seq, t.err = c.s.wire.send(ctx, t.id, msgs); t.err != nil {
		return t
	}
	if seq <= floor { //plant:store-replaced
		// It is stored, and what this claim relies on is not: another holder may have had the fence.
		_ = c.ended(fence{}, errReplaced)
		t.err = &UnknownError{What: describe(ps), Cause: errReplaced}
		return t
	}
	c.wrote(seq, rev)
	spread(ps, seq)
	return t
}

// settlePuts goes on after a first try, or without one.
func (c *claim) settlePuts(ctx context.Context, start time.Time, ps []*put, first *putTry) error {
	ctx, cancel := c.s.boundFrom(ctx, start)
	defer cancel()
	until, stop := firstEnd(ctx, ps)
	defer stop()
	var p pause
	// ended is the error of what until has ended before anything was sent.
	ended := func(err error) error {
		if ctx.Err() == nil && until.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, ErrFenced) {
			p.tries++
			return p.end(errCallEnded)
		}
		return err
	}
	for {
		var t putTry
		if first != nil {
			t, first = *first, nil
		} else {
			rev, err := c.take(until)
			if err != nil {
				return ended(err)
			}
			if err := until.Err(); err != nil {
				return ended(p.end(err))
			}
			_, floor := c.state()
			t = c.tryPuts(ctx, ps, rev, floor)
		}
		switch r := (*refused)(nil); {
		case t.err == nil:
			return nil
		case errors.Is(t.err, ErrUnknown):
			return t.err
		case errors.As(t.err, &r):
			// The fence has moved. Who has it now is a matter of a read (S2).
			c.raise(r.seq)
			if _, _, err := c.read(until, nil); err != nil {
				return ended(err)
			}
		case errors.Is(t.err, errBusy) && forbidden(t.err):
			return fmt.Errorf("store: write %s: %w", describe(ps), t.err)
		case errors.Is(t.err, errBusy):
			if err := c.s.stuck(ctx, p.tries, t.err); err != nil {
				return err
			}
			if until.Err() != nil {
				p.last = t.err
				return ended(p.end(until.Err()))
			}
		case errors.Is(t.err, errSilent):
			c.doubt(t.rev) //plant:store-doubt
			done, unsure := c.find(ctx, ps, &t)
			if unsure != nil {
				return &UnknownError{What: describe(ps), Cause: errors.Join(unsure, t.err)}
			} else if done {
				return nil
			} else if forbidden(t.err) {
				return fmt.Errorf("store: write %s: %w", describe(ps), t.err)
			}
			if err := c.s.stuck(ctx, p.tries, t.err); err != nil {
				return err
			}
			if until.Err() != nil {
				p.last = t.err
				return ended(p.end(until.Err()))
			}
		default:
			return fmt.Errorf("store: write %s: %w", describe(ps), t.err)
		}
		if err := p.wait(until, t.err); err != nil {
			return ended(err)
		}
	}
}

// errCallEnded ends the tries to store a batch for the sake of one of its calls.
var errCallEnded = errors.New("the call of another key has ended")

// firstEnd is a context that ends with ctx, and as soon as the call of one of them ends.
func firstEnd(ctx context.Context, ps []*put) (context.Context, func()) {
	until, cancel := context.WithCancel(ctx)
	var stops []func() bool
	for _, p := range ps {
		if p.ctx != nil && !p.over {
			stops = append(stops, context.AfterFunc(p.ctx, cancel))
		}
	}
	return until, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// spread tells each put its revision: a batch is stored in one piece.
func spread(ps []*put, last uint64) {
	for i, p := range ps {
		if !p.over {
			p.rev = last - uint64(len(ps)-1-i)
		}
	}
}

// find is landed for puts of several calls. One whose call ends meanwhile has no known outcome,
// and it is found out for the others.
func (c *claim) find(ctx context.Context, ps []*put, t *putTry) (bool, error) {
	for {
		until, stop := firstEnd(ctx, ps)
		done, err := c.landed(until, ps, t)
		stopped := until.Err() != nil
		stop()
		if err == nil || !stopped || ctx.Err() != nil {
			return done, err
		}
		left := false
		for _, p := range ps {
			if why := p.ctx.Err(); !p.over && why != nil {
				p.end(&UnknownError{What: p.subject, Cause: fmt.Errorf("%w: %w", t.err, why)})
			}
			left = left || !p.over
		}
		if !left {
			return false, err
		}
	}
}

var errOvertaken = errors.New("other writes came meanwhile, or the values may have expired")

// landed moves the fence, so that puts without an answer are stored by now or never (S5),
// and looks whether they are.
func (c *claim) landed(ctx context.Context, ps []*put, t *putTry) (bool, error) {
	subjects := make([]string, 0, len(ps))
	for _, p := range ps {
		subjects = append(subjects, p.subject)
	}
	a, _, err := c.read(ctx, subjects)
	if err != nil {
		return false, err
	}
	overtaken := true
	for i, p := range ps {
		it := a.items[p.subject]
		if len(ps) > 1 && it != nil && it.hdr.Get(headerBatch) == t.id {
			n, err := strconv.ParseUint(it.hdr.Get(headerBatchSeq), 10, 64)
			if err != nil || n == 0 || n > uint64(len(ps)) {
				return false, fmt.Errorf("the message at %d has no sequence in its batch", it.seq)
			}
			last := it.seq + uint64(len(ps)) - n
			c.raise(last)
			spread(ps, last)
			return true, nil
		}
		if len(ps) == 1 && it.revision() > t.floor && p.is(it, t.rev) {
			ps[i].rev = it.seq
			return true, nil
		}
		overtaken = overtaken && (it.revision() > t.floor || c.s.lapsed(p.msg(), t.sent))
	}
	if overtaken {
		return false, errOvertaken
	}
	return false, nil
}

func describe(ps []*put) string {
	keys := make([]string, 0, 3)
	for _, p := range ps {
		if len(keys) == 3 && len(ps) > 3 {
			return fmt.Sprintf("%s and %d more", strings.Join(keys, ", "), len(ps)-3)
		}
		keys = append(keys, p.subject)
	}
	return strings.Join(keys, ", ")
}
