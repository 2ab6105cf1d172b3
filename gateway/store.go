package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/store"
)

// The store, for callers without package store: buckets and keys, transactions, and waits for
// changes. Whatever is done under a lease is done by the gateway that owns the lease: package
// store orders what is done under one hold, and two processes that act for one hold would not
// know of each other.

// stores are the buckets that a connection has open. A bucket stays open: what the store knows
// of a hold's writes that have no answer must not be forgotten.
type stores struct {
	mu sync.Mutex
	js jetstream.JetStream
	by map[string]*store.Store
}

func (p *lockers) jetStream() (jetstream.JetStream, *Problem) {
	p.stores.mu.Lock()
	defer p.stores.mu.Unlock()
	if p.stores.js == nil {
		js, err := jetstream.New(p.nc)
		if err != nil {
			return nil, problem("internal", "%v", err)
		}
		p.stores.js, p.stores.by = js, map[string]*store.Store{}
	}
	return p.stores.js, nil
}

// bucket opens a bucket for the API of the store, or returns it if it is open.
func (p *lockers) bucket(ctx context.Context, name string) (*store.Store, *Problem) {
	s, err := p.open(ctx, name)
	if err != nil {
		return nil, apiProblem(err)
	}
	return s, nil
}

// open opens a bucket, or returns it if it is open. What its error means to a caller is for the API
// to say that the caller uses.
func (p *lockers) open(ctx context.Context, name string) (*store.Store, error) {
	js, pr := p.jetStream()
	if pr != nil {
		return nil, pr
	}
	p.stores.mu.Lock()
	s := p.stores.by[name]
	p.stores.mu.Unlock()
	if s != nil {
		return s, nil
	}
	if len(name) > 64 || !isClientName(name) { // a bucket's name has the same letters
		return nil, invalid("the name of a bucket is 1 to 64 of A-Z a-z 0-9 _ -")
	}
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	before := p.nc.LastError()
	opts := []store.Option{store.WithCluster(p.g.cfg.Cluster)}
	if client := p.clientName(); client != "" {
		opts = append(opts, store.WithClient(client))
	}
	s, err := store.Open(ctx, js, name, opts...)
	if err != nil {
		if denied := p.denied(before, "$JS.API.STREAM.INFO.KV_"+name); denied != nil {
			return nil, denied
		}
		return nil, err
	}
	p.stores.mu.Lock()
	defer p.stores.mu.Unlock()
	if known := p.stores.by[name]; known != nil { // two requests opened it, and they must share it
		return known, nil
	}
	p.stores.by[name] = s
	return s, nil
}

// forget lets a bucket be opened anew that is no longer what it was.
func (p *lockers) forget(s *store.Store) {
	p.stores.mu.Lock()
	defer p.stores.mu.Unlock()
	if p.stores.by[s.Bucket()] == s {
		delete(p.stores.by, s.Bucket())
	}
}

// failed takes note of an error of a bucket that is open.
func (p *lockers) failed(s *store.Store, err error) {
	if errors.Is(err, store.ErrNotPrepared) || errors.Is(err, jetstream.ErrBucketNotFound) {
		p.forget(s)
	}
}

func (p *lockers) clientName() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.short != nil {
		return p.short.Name()
	}
	return p.client
}

// denied says that NATS has denied a request on the subject since before was the connection's
// last error. JetStream gives no answer to such a request.
func (p *lockers) denied(before error, subject string) *Problem {
	err := p.nc.LastError()
	if err == before || !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), `"`+subject) {
		return nil
	}
	return problem("forbidden", "the NATS user may not publish to %s", subject)
}

// apiProblem is an error of a question about streams. Every server with JetStream listens to
// these, so nobody has it if nobody listens.
func apiProblem(err error) *Problem {
	if errors.Is(err, nats.ErrNoResponders) {
		err = jetstream.ErrJetStreamNotEnabled
	}
	return storeProblem(err)
}

// storeProblem is an error of package store for a caller.
func storeProblem(err error) *Problem {
	var (
		p        *Problem
		fenced   *store.FencedError
		conflict *store.ConflictError
		missing  *store.NotPreparedError
		api      *jetstream.APIError
	)
	text := strings.TrimPrefix(err.Error(), "store: ")
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, store.ErrUnknown):
		p = problem("unknown-outcome", "the answer of the server is lost, and it may or may not have been done: read again, or repeat a transaction with the same once")
		if errors.Is(err, nats.ErrPermissionViolation) {
			p.Detail = "the NATS user lacks a permission, so that it is not known whether it was done: " + text
		}
	case errors.As(err, &fenced):
		p = problem("fenced", "%s", strings.TrimPrefix(fenced.Error(), "store: fenced: "))
		p.NewerToken, p.Client = fenced.Newer, fenced.Client
	case errors.As(err, &conflict):
		p = problem("conflict", "%s", strings.TrimPrefix(conflict.Error(), "store: conflict: "))
		p.Key, p.Revision = conflict.Key, conflict.Revision
	case errors.As(err, &missing):
		p = problem("not-prepared", "the bucket %s lacks what fences need: %s", missing.Bucket, strings.Join(missing.Missing, "; "))
		p.Missing, p.Command = missing.Missing, prepareCommand(missing.Bucket)
	case errors.Is(err, store.ErrFull):
		return problem("full", "the bucket or the account has no room: raise its limit; nothing was written")
	case errors.Is(err, store.ErrTooLarge): // its text has the limit
		return problem("too-large", "%s; nothing was written", text)
	case errors.Is(err, store.ErrUnsupported):
		return problem("unsupported", "%s", text)
	case errors.Is(err, store.ErrShared):
		return problem("read-only", "a shared lock only reads: acquire the lock exclusively")
	case errors.Is(err, store.ErrNotNumber): // its text quotes the value
		return problem("not-number", "add needs a key whose value is a whole number in decimal, and a sum within 64 bits")
	case errors.Is(err, jetstream.ErrBucketNotFound):
		return problem("no-bucket", "there is no bucket of this name: qlock store create makes one")
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return problem("no-key", "the key has no value")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return problem("no-jetstream", "the NATS server has no JetStream, or the account may not use it: the gateway serves locks only")
	case errors.Is(err, nats.ErrPermissionViolation):
		return problem("forbidden", "%s", text)
	case errors.Is(err, nats.ErrMaxPayload):
		return problem("too-large", "a message would be larger than the NATS server takes; nothing was written")
	case errors.Is(err, store.ErrInvalid):
		return invalid(strings.TrimPrefix(text, "invalid: "))
	case errors.Is(err, nats.ErrConnectionClosed):
		return problem("unreachable", "the connection to NATS is closed; nothing was written")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders), errors.As(err, &api) && api.Code == 503:
		return problem("store-unreachable", "JetStream did not answer in time; nothing was written: %s", withoutContext(text))
	default:
		return problem("internal", "%s", text)
	}
	return p
}

func prepareCommand(bucket string) string { return "qlock store prepare " + bucket }

// valueOf is the value that a request gives, in one of two fields.
func valueOf(text, encoded *string) ([]byte, *Problem) {
	switch {
	case (text == nil) == (encoded == nil):
		return nil, invalid("give the value in exactly one of the fields value and value_base64")
	case text != nil:
		return []byte(*text), nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(*encoded)
	if err != nil {
		return nil, invalid("value_base64 is not base64 with padding")
	}
	return b, nil
}

// shownValue is a value in JSON.
func shownValue(b []byte) (text, encoded *string) {
	if utf8.Valid(b) {
		s := string(b)
		return &s, nil
	}
	s := base64.StdEncoding.EncodeToString(b)
	return nil, &s
}

// transaction is a TransactionRequest, checked.
type transaction struct {
	in     *TransactionRequest
	ops    []store.Op
	writes bool
	sum    [sha256.Size]byte // of what it does
	// One write without a condition, which needs no transaction under a lock.
	single *Operation
	value  []byte
	opts   []store.WriteOption
}

// digestOf tells two transactions of one id apart.
func digestOf(ops []Operation, values [][]byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	add := func(b []byte) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(b))) // a hash takes everything
		_, _ = h.Write(b)
	}
	for i, o := range ops {
		by := int64(1)
		if o.By != nil {
			by = *o.By
		}
		add([]byte(o.Op))
		add([]byte(o.Key))
		add(values[i])
		add([]byte(fmt.Sprint(o.Revision, " ", by, " ", o.TTL)))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (g *Gateway) transactionOf(in *TransactionRequest) (*transaction, *Problem) {
	switch {
	case len(in.Ops) == 0:
		return nil, invalid("the transaction has no operations")
	case len(in.Ops) > g.limits.Operations:
		return nil, problem("too-large", "the transaction has %d operations, and the limit is %d", len(in.Ops), g.limits.Operations)
	case in.Lock != nil && in.Lease != "":
		return nil, invalid("give the id of a lease that is held, or a lock to acquire, and not both")
	case in.Lock == nil && in.Unlock != nil:
		return nil, invalid("unlock is for a transaction that acquires a lock")
	case in.Lock != nil && in.Once == "":
		return nil, invalid("a transaction that acquires a lock needs once: its answer may be lost when it was done, and only a repeat with the same id finds the answer")
	case in.Once == "" && in.OnceTTL != "":
		return nil, invalid("once_ttl without once")
	}
	t := &transaction{in: in}
	values := make([][]byte, len(in.Ops))
	most := int(min(g.limits.Value, max(g.cfg.Conn.MaxPayload()-valueHeadroom, 0)))
	for i := range in.Ops {
		o := &in.Ops[i]
		isWrite := o.Op == "put" || o.Op == "create" || o.Op == "update"
		bad := func(text string) (*transaction, *Problem) {
			return nil, invalid(fmt.Sprintf("operation %d: %s", i, text))
		}
		var opts []store.WriteOption
		var p *Problem
		switch {
		case isWrite:
			if values[i], p = valueOf(o.Value, o.ValueBase64); p != nil {
				return bad(p.Detail)
			}
			if len(values[i]) > most {
				return nil, problem("too-large", "operation %d: the value has %d bytes, and the limit is %d", i, len(values[i]), most)
			}
		case o.Value != nil || o.ValueBase64 != nil:
			return bad("it takes no value")
		case o.TTL != "":
			return bad("it takes no ttl")
		}
		if o.By != nil && o.Op != "add" || o.Revision != 0 && o.Op != "update" && o.Op != "delete" {
			return bad("by is for add, and revision for update and delete")
		}
		if o.TTL != "" {
			d, p := duration("ttl", o.TTL, time.Second, 10*365*24*time.Hour)
			if p != nil {
				return bad(p.Detail)
			}
			opts = append(opts, store.TTL(d))
		}
		t.writes = t.writes || o.Op != "get" && o.Op != "unchanged"
		switch o.Op {
		case "get":
			t.ops = append(t.ops, store.Get(o.Key))
		case "unchanged":
			t.ops = append(t.ops, store.Unchanged(o.Key))
		case "put":
			t.ops = append(t.ops, store.Put(o.Key, values[i], opts...))
		case "create":
			t.ops = append(t.ops, store.Insert(o.Key, values[i], opts...))
		case "update":
			if o.Revision == 0 {
				return bad("update needs the revision that the key must have")
			}
			t.ops = append(t.ops, store.Update(o.Key, values[i], o.Revision, opts...))
		case "delete":
			if o.Revision != 0 { // the condition of an update stays when the same transaction deletes
				t.ops = append(t.ops, store.Update(o.Key, nil, o.Revision))
			}
			t.ops = append(t.ops, store.Delete(o.Key))
		case "add":
			by := int64(1)
			if o.By != nil {
				by = *o.By
			}
			t.ops = append(t.ops, store.Add(o.Key, by))
		default:
			return bad("op is get, unchanged, put, create, update, delete or add")
		}
		if len(in.Ops) == 1 && (o.Op == "put" || o.Op == "delete" && o.Revision == 0) && in.Once == "" {
			t.single, t.value, t.opts = o, values[i], opts
		}
	}
	if in.Once != "" {
		ttl := onceFor
		if in.OnceTTL != "" {
			var p *Problem
			if ttl, p = duration("once_ttl", in.OnceTTL, time.Second, 10*365*24*time.Hour); p != nil {
				return nil, p
			}
		}
		t.sum, t.writes = digestOf(in.Ops, values), true
		t.ops = append([]store.Op{store.Once(in.Once, ttl, t.sum[:]...)}, t.ops...)
	}
	return t, nil
}

// transact does what a request asks for, and counts it.
func (g *Gateway) transact(c *call, counted string, in *TransactionRequest) (*TransactionAnswer, *Problem) {
	a, p := g.transacted(c, in)
	outcome := "done"
	switch {
	case p != nil:
		outcome = p.Kind()
	case a.Duplicate:
		outcome = "duplicate"
	}
	g.counters.store(StoreOperation{counted, outcome})
	return a, p
}

func (g *Gateway) transacted(c *call, in *TransactionRequest) (*TransactionAnswer, *Problem) {
	t, p := g.transactionOf(in)
	if p != nil {
		return nil, p
	}
	select {
	case g.storeSlots <- struct{}{}:
		defer func() { <-g.storeSlots }()
	case <-c.ctx.Done():
		return nil, problem("too-many", "%d transactions are being done", storesAtOnce)
	}
	switch {
	case in.Lock != nil:
		return g.lockAndTransact(c, t)
	case in.Lease != "":
		a, p := g.transactUnder(c, t, in.Lease)
		if p != nil && (p.Status == http.StatusGone || slices.Contains(undecided, p.Kind())) {
			if first := g.repeated(c, t); first != nil {
				return first, nil
			}
		}
		return a, p
	}
	s, p := c.principal.bucket(c.ctx, in.Bucket)
	if p != nil {
		return nil, p
	}
	ctx, cancel := t.context(c.ctx)
	defer cancel()
	res, err := s.Do(ctx, t.ops...)
	return g.transactionAnswer(c, t, s, res, err)
}

// context is for the work of a transaction. One that writes goes on when its caller has left:
// it must not be given up between its commit and the answer to that.
func (t *transaction) context(parent context.Context) (context.Context, context.CancelFunc) {
	if t.writes {
		parent = context.WithoutCancel(parent)
	}
	return context.WithTimeout(parent, storeTime)
}

func (g *Gateway) transactionAnswer(c *call, t *transaction, s *store.Store, res store.Result, err error) (*TransactionAnswer, *Problem) {
	a := &TransactionAnswer{Bucket: s.Bucket(), Gateway: g.name, Request: c.request}
	if d := (*store.DuplicateError)(nil); errors.As(err, &d) {
		if string(d.Answer) != string(t.sum[:]) {
			return nil, problem("once-mismatch", "a transaction with this once was done, and it had other operations")
		}
		a.Duplicate, err = true, nil
	}
	if err != nil {
		c.principal.failed(s, err)
		p := storeProblem(err)
		if p.Kind() == "internal" {
			g.log.Warn("a transaction failed", "request", c.request, "bucket", s.Bucket(), "error", err)
		}
		return nil, p
	}
	a.Revision = res.Revision()
	a.Results = make([]OperationResult, len(t.in.Ops))
	for i := range t.in.Ops {
		o, r := &t.in.Ops[i], &a.Results[i]
		r.Op, r.Key, r.Revision = o.Op, o.Key, res.Written(o.Key)
		switch o.Op {
		case "get", "unchanged":
			e, err := res.Get(o.Key)
			found := err == nil
			if r.Found = &found; found {
				r.Revision = e.Revision()
				r.Value, r.ValueBase64 = shownValue(e.Value())
			}
		case "add":
			n := res.Number(o.Key)
			r.Number = &n
		case "delete":
			r.Revision = 0
		}
	}
	return a, nil
}

// heldLock is what package store needs of a lease that is held. Its problem says why the lease
// is not.
func (l *lease) heldLock() (store.Lock, *Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	if l.state == held && !time.Now().Before(l.keepUntil) {
		l.tick()
	}
	switch l.state {
	case held:
		return l.lock, nil
	case waiting:
		return nil, problem("held", "the lease waits for the lock: ask again when it is held")
	}
	why := *l.why
	return nil, &why
}

// underLease does a transaction under a lease of this gateway.
func (g *Gateway) underLease(c *call, t *transaction, l *lease) (*TransactionAnswer, *Problem) {
	lock, p := l.heldLock()
	if p != nil {
		return nil, p
	}
	s, p := c.principal.bucket(c.ctx, t.in.Bucket)
	if p != nil {
		return nil, p
	}
	ctx, cancel := t.context(c.ctx)
	defer cancel()
	v := s.With(lock)
	var res store.Result
	var err error
	var rev uint64
	switch {
	case t.single != nil && t.single.Op == "put":
		rev, err = v.Put(ctx, t.single.Key, t.value, t.opts...)
	case t.single != nil:
		err = v.Delete(ctx, t.single.Key)
	default:
		res, err = v.Do(ctx, t.ops...)
	}
	a, p := g.transactionAnswer(c, t, s, res, err)
	if p == nil {
		if !a.Duplicate { // that was done under another hold
			a.Token = lock.Token()
		}
		if t.single != nil {
			a.Revision = rev
			a.Results[0].Revision = rev
		}
		return a, nil
	}
	if p.Kind() == "fenced" {
		if _, why := l.heldLock(); why != nil {
			return nil, why // it is over: that says more
		}
		if lock.Context().Err() != nil {
			return nil, gone(causeLost, lock.Token(), "the lock is lost, so nothing was written")
		}
		p.Token = lock.Token()
	}
	return nil, p
}

// transactUnder does a transaction under a lease, which may be another gateway's.
func (g *Gateway) transactUnder(c *call, t *transaction, id string) (*TransactionAnswer, *Problem) {
	key := keyOf(c.principal, id)
	l, p := g.find(key)
	if p == nil {
		a, p := g.underLease(c, t, l)
		if p == nil || p.owner == "" {
			return a, p
		}
		return g.peers.transact(c, p.owner, key, t)
	}
	owner := p.owner
	if owner == "" {
		if p.isFinal() || p.Kind() != "unknown-lease" {
			return nil, p
		}
		var why *Problem
		if owner, why = g.peers.ownerOf(c, normalID(id), key, false); why != nil {
			return nil, why
		}
		if owner == "" {
			return nil, p
		}
	}
	a, p := g.peers.transact(c, owner, key, t)
	if p != nil && p.Kind() == "unknown-lease" {
		g.peers.forget(key)
	}
	return a, p
}

// undecided are the kinds of problems, beside those of a lease that is over, that say nothing of
// an earlier transaction with the same once: it may have been done while the lease was held.
var undecided = []string{"unknown-lease", "fenced", "held", "unreachable", "unknown-outcome"}

// repeated is the answer of an earlier transaction with the same once, if that was done.
func (g *Gateway) repeated(c *call, t *transaction) *TransactionAnswer {
	if t.in.Once == "" {
		return nil
	}
	s, p := c.principal.bucket(c.ctx, t.in.Bucket)
	if p != nil {
		return nil
	}
	res, err := t.repeat(c, s)
	if !errors.Is(err, store.ErrDuplicate) {
		return nil
	}
	a, _ := g.transactionAnswer(c, t, s, res, err)
	return a
}

func (t *transaction) repeat(c *call, s *store.Store) (store.Result, error) {
	ctx, cancel := t.context(c.ctx)
	defer cancel()
	return s.Repeat(ctx, t.in.Once)
}

// lockAndTransact acquires a lock, does a transaction under it, and releases it when the answer
// is known. Nothing is left of a request that fails.
func (g *Gateway) lockAndTransact(c *call, t *transaction) (*TransactionAnswer, *Problem) {
	in := t.in.Lock
	s, p := c.principal.bucket(c.ctx, t.in.Bucket)
	if p != nil {
		return nil, p
	}
	one := *c
	if in.Wait != "" {
		if one.block, p = duration("wait", in.Wait, 0, g.limits.Block); p != nil {
			return nil, p
		}
	}
	l, p := g.acquireFor(&one, in)
	if p != nil {
		// This request has done nothing. An earlier one with the same id may have been done, and
		// then the lock is not needed.
		if res, err := t.repeat(c, s); errors.Is(err, store.ErrDuplicate) {
			return g.transactionAnswer(c, t, s, res, err)
		}
		return nil, p
	}
	keeps := t.in.Unlock != nil && !*t.in.Unlock
	a, p := g.underLease(c, t, l)
	if p != nil || !keeps || c.ctx.Err() != nil {
		_ = l.release() // it is over now, whatever it was before
		return a, p
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lease, why := l.current(c)
	if why == nil && lease.State == held.String() {
		a.Lease = lease
	}
	return a, nil // without the lease, if that is lost by now: the transaction was done
}

// acquireFor acquires the lock of a transaction, for this one request.
func (g *Gateway) acquireFor(c *call, in *TransactionLock) (*lease, *Problem) {
	a, _, p := g.acquire(c, "", &AcquireRequest{Name: in.Name, Encoded: in.Encoded, Mode: in.Mode, Lease: in.Lease, Note: in.Note, Wait: cmp.Or(in.Wait, c.block.String())})
	if p != nil {
		return nil, p
	}
	l, p := g.find(keyOf(c.principal, a.ID))
	if p != nil {
		return nil, p
	}
	if a.State != held.String() {
		why := l.release()
		if a.Moved {
			return nil, problem("draining", "the gateway is stopping: ask another one")
		}
		if why.Cause != causeReleased {
			return nil, why
		}
		p := problem("held", "the time to wait is over")
		if p.Blocker = a.Blocker; p.Blocker != nil {
			p.Detail = p.Blocker.text()
		}
		return nil, p
	}
	return l, nil
}

// get reads a key, or waits until it changes. unchanged: it has not changed since the revision
// known.
func (g *Gateway) get(c *call, in *GetRequest, known uint64) (e *Entry, unchanged bool, _ *Problem) {
	if in.Wait != "" {
		var p *Problem
		if c.block, p = duration("wait", in.Wait, 0, maxWait); p != nil {
			return nil, false, p
		}
	}
	c.block = min(c.block, g.limits.Block)
	after := known
	if in.After != nil {
		after = *in.After
	}
	waits := c.block > 0 && (in.After != nil || known > 0)
	if waits && in.Lease != "" {
		return nil, false, invalid("a read under a lease does not wait: only the holder of its lock writes")
	}
	if waits {
		e, p := g.awaitKey(c, in, after)
		if e != nil || p != nil {
			return e, false, p
		}
		if known > 0 && in.After == nil {
			return nil, true, nil
		}
	}
	a, p := g.transact(c, "get", &TransactionRequest{Bucket: in.Bucket, Lease: in.Lease, Ops: []Operation{{Op: "get", Key: in.Key}}})
	if p != nil {
		return nil, false, p
	}
	r := &a.Results[0]
	if !*r.Found {
		return nil, false, problem("no-key", "the key has no value")
	}
	if known > 0 && r.Revision == known {
		return nil, true, nil
	}
	e = &Entry{Bucket: in.Bucket, Key: in.Key, Revision: r.Revision, Value: r.Value, ValueBase64: r.ValueBase64, Token: a.Token, Gateway: a.Gateway, Request: c.request}
	e.bytes, p = valueOf(r.Value, r.ValueBase64)
	return e, false, p
}

// awaitKey waits until a key has a revision above after, for c.block at most. It returns nothing
// if it has none by then. All who wait for keys of a bucket share one consumer.
func (g *Gateway) awaitKey(c *call, in *GetRequest, after uint64) (*Entry, *Problem) {
	s, p := c.principal.bucket(c.ctx, in.Bucket)
	if p != nil {
		return nil, p
	}
	g.mu.Lock()
	if c.principal.keyWaits >= g.limits.KeyWaits {
		g.mu.Unlock()
		return nil, problem("too-many", "%d requests wait for keys, which is the limit", g.limits.KeyWaits)
	}
	c.principal.keyWaits++
	g.mu.Unlock()
	g.counters.keyWaits.Add(1)
	defer func() {
		g.counters.keyWaits.Add(-1)
		g.mu.Lock()
		defer g.mu.Unlock()
		c.principal.keyWaits--
	}()
	ctx, cancel := context.WithDeadline(c.ctx, c.received.Add(c.block))
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-g.draining:
			cancel()
		case <-ended:
		}
	}()
	before := c.principal.nc.LastError()
	e, err := s.Wait(ctx, in.Key, after)
	switch {
	case err == nil:
	case g.isDraining():
		return nil, problem("draining", "the gateway is stopping: ask another one")
	case ctx.Err() != nil:
		if denied := c.principal.denied(before, "$JS.API.CONSUMER.CREATE.KV_"+in.Bucket); denied != nil {
			return nil, denied
		}
		return nil, nil
	default:
		c.principal.failed(s, err)
		if denied := c.principal.denied(before, "$JS.API.CONSUMER.CREATE.KV_"+in.Bucket); denied != nil {
			return nil, denied
		}
		return nil, storeProblem(err)
	}
	if e.Operation() != jetstream.KeyValuePut {
		p := problem("no-key", "the key was deleted")
		p.Revision = e.Revision()
		return nil, p
	}
	out := &Entry{Bucket: in.Bucket, Key: in.Key, Revision: e.Revision(), Gateway: g.name, Request: c.request, bytes: e.Value()}
	out.Value, out.ValueBase64 = shownValue(e.Value())
	return out, nil
}

func (g *Gateway) put(c *call, in *PutRequest) (*Written, *Problem) {
	o := Operation{Op: "put", Key: in.Key, Value: in.Value, ValueBase64: in.ValueBase64, TTL: in.TTL, Revision: in.Revision}
	switch {
	case in.Create && in.Revision > 0:
		return nil, invalid("a key that must not exist has no revision: give create or revision")
	case in.Create:
		o.Op = "create"
	case in.Revision > 0:
		o.Op = "update"
	}
	return g.write(c, in.Bucket, in.Lease, o)
}

func (g *Gateway) write(c *call, bucket, lease string, o Operation) (*Written, *Problem) {
	a, p := g.transact(c, o.Op, &TransactionRequest{Bucket: bucket, Lease: lease, Ops: []Operation{o}})
	if p != nil {
		return nil, p
	}
	r := &a.Results[0]
	return &Written{Bucket: bucket, Key: o.Key, Revision: r.Revision, Number: r.Number, Token: a.Token, Gateway: a.Gateway, Request: c.request}, nil
}

func (g *Gateway) bucketsView(who *principal) *view {
	return &view{key: "stores", quiet: true, noLocker: true, look: func(ctx context.Context, _ *qlock.Locker) (any, *Problem) {
		js, p := who.jetStream()
		if p != nil {
			return nil, p
		}
		ctx, cancel := context.WithTimeout(ctx, openTime)
		defer cancel()
		before := who.nc.LastError()
		out := &BucketList{Buckets: []Bucket{}}
		list := js.ListStreams(ctx, jetstream.WithStreamListSubject("$KV.*.>"))
		for info := range list.Info() {
			if !strings.HasPrefix(info.Config.Name, "KV_") {
				continue
			}
			if len(out.Buckets) == mostBuckets {
				out.More = true
				break
			}
			out.Buckets = append(out.Buckets, bucketOf(info))
		}
		if !out.More {
			if err := list.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
				if denied := who.denied(before, "$JS.API.STREAM.LIST"); denied != nil {
					return nil, denied
				}
				return nil, apiProblem(err)
			}
		}
		slices.SortFunc(out.Buckets, func(a, b Bucket) int { return strings.Compare(a.Bucket, b.Bucket) })
		return out, nil
	}}
}

func bucketOf(info *jetstream.StreamInfo) Bucket {
	c := &info.Config
	b := Bucket{
		Bucket: strings.TrimPrefix(c.Name, "KV_"), Prepared: true, Replicas: c.Replicas, Storage: "file", History: max(c.MaxMsgsPerSubject, 1),
		Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: max(c.MaxBytes, 0),
	}
	if c.Storage == jetstream.MemoryStorage {
		b.Storage = "memory"
	}
	var missing *store.NotPreparedError
	switch err := store.Check(*c); {
	case errors.As(err, &missing):
		b.Prepared, b.Missing, b.Command = false, missing.Missing, prepareCommand(b.Bucket)
	case err != nil:
		b.Prepared, b.Missing = false, []string{strings.TrimPrefix(err.Error(), "store: ")}
	}
	return b
}

func (g *Gateway) bucketView(who *principal, bucket string) *view {
	return &view{key: "store " + bucket, quiet: true, noLocker: true, look: func(ctx context.Context, _ *qlock.Locker) (any, *Problem) {
		s, p := who.bucket(ctx, bucket)
		if p != nil {
			return nil, p
		}
		js, p := who.jetStream()
		if p != nil {
			return nil, p
		}
		ctx, cancel := context.WithTimeout(ctx, openTime)
		defer cancel()
		stream, err := js.Stream(ctx, "KV_"+bucket)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			who.forget(s)
			err = jetstream.ErrBucketNotFound
		}
		if err != nil {
			return nil, storeProblem(err)
		}
		out := &BucketReport{Bucket: bucketOf(stream.CachedInfo()), Fences: []FenceInfo{}}
		fences, err := s.Fences(ctx)
		switch {
		case errors.Is(err, store.ErrInvalid):
			out.MoreFences = true
		case err != nil:
			return nil, storeProblem(err)
		}
		for _, f := range fences {
			info := FenceInfo{Encoded: f.Lock, Token: f.Token, Client: f.Client, Shared: f.Shared, ForMS: max(time.Since(f.Moved).Milliseconds(), 0)}
			if name, err := decodeName(f.Lock); err == nil {
				info.Name = shown(name)
			}
			out.Fences = append(out.Fences, info)
		}
		return out, nil
	}}
}

func (g *Gateway) keysView(who *principal, bucket, pattern string) *view {
	pattern = cmp.Or(pattern, ">")
	return &view{key: "keys " + bucket + " " + pattern, quiet: true, noLocker: true, look: func(ctx context.Context, _ *qlock.Locker) (any, *Problem) {
		s, p := who.bucket(ctx, bucket)
		if p != nil {
			return nil, p
		}
		if !isKeyPattern(pattern) {
			return nil, invalid("pattern has letters, digits and -/_= in tokens, * for a token, and > at the end for the rest")
		}
		ctx, cancel := context.WithTimeout(ctx, openTime)
		defer cancel()
		before := who.nc.LastError()
		w, err := s.KeyValue().Watch(ctx, pattern, jetstream.MetaOnly(), jetstream.IgnoreDeletes())
		if err != nil {
			if denied := who.denied(before, "$JS.API.CONSUMER.CREATE.KV_"+bucket); denied != nil {
				return nil, denied
			}
			return nil, storeProblem(err)
		}
		defer func() { _ = w.Stop() }() // the server forgets the consumer by itself
		out := &KeyList{Bucket: bucket, Keys: []KeyInfo{}}
		for !out.More {
			select {
			case e, ok := <-w.Updates():
				if !ok {
					return nil, storeProblem(nats.ErrConnectionClosed)
				}
				if e == nil { // all that was there
					slices.SortFunc(out.Keys, func(a, b KeyInfo) int { return strings.Compare(a.Key, b.Key) })
					return out, nil
				}
				out.Keys = append(out.Keys, KeyInfo{Key: e.Key(), Revision: e.Revision(), ForMS: max(time.Since(e.Created()).Milliseconds(), 0)})
				out.More = len(out.Keys) == mostKeys
			case <-ctx.Done():
				return nil, storeProblem(ctx.Err())
			}
		}
		slices.SortFunc(out.Keys, func(a, b KeyInfo) int { return strings.Compare(a.Key, b.Key) })
		return out, nil
	}}
}

// isKeyPattern reports whether NATS can select keys by a pattern. The wildcards of a pattern
// stand in a subject.
func isKeyPattern(pattern string) bool {
	if len(pattern) > 2048 {
		return false
	}
	tokens := strings.Split(pattern, ".")
	for i, t := range tokens {
		if t == "*" || t == ">" && i == len(tokens)-1 {
			continue
		}
		if t == "" || strings.ContainsFunc(t, func(c rune) bool {
			return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-/_=", c))
		}) {
			return false
		}
	}
	return true
}
