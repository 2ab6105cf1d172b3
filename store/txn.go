package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// Op is one operation of a transaction. Operations take effect in their order: a Get sees
// what a Put before it has written.
type Op struct {
	kind opKind
	key  string // or the id of Once
	write
	rev    uint64
	n      int64
	answer []byte
	err    error
}

type opKind int

const (
	opGet opKind = iota
	opUnchanged
	opPut
	opInsert
	opUpdate
	opDelete
	opAdd
	opOnce
)

// Get reads a key. Result.Get has the entry.
func Get(key string) Op { return Op{kind: opGet, key: key} }

// Unchanged reads a key like Get, and lets the transaction commit only if nobody has written
// the key since. Otherwise the transaction reads again and starts again. Store.Do checks all
// that it reads, and needs it not. View.Do relies on the lock for what Get has read, and does
// not notice a write by somebody who does not hold that lock: use Unchanged for keys that
// are also written without it. It costs one more message, and the key's own if it is written.
func Unchanged(key string) Op { return Op{kind: opUnchanged, key: key} }

// Put stores a value, whatever was there.
func Put(key string, value []byte, opts ...WriteOption) Op {
	return writing(Op{kind: opPut, key: key, write: write{data: value}}, opts)
}

// Insert stores a value. The transaction fails with ErrConflict if there is such a key.
func Insert(key string, value []byte, opts ...WriteOption) Op {
	return writing(Op{kind: opInsert, key: key, write: write{data: value}}, opts)
}

// Update stores a value. The transaction fails with ErrConflict if the key's revision is not
// rev.
func Update(key string, value []byte, rev uint64, opts ...WriteOption) Op {
	o := writing(Op{kind: opUpdate, key: key, write: write{data: value}, rev: rev}, opts)
	if rev == 0 {
		o.err = fmt.Errorf("%w: Update of %q with revision 0: use Create", ErrInvalid, key)
	}
	return o
}

// Delete marks a key as deleted, whatever was there.
func Delete(key string) Op { return Op{kind: opDelete, key: key, write: write{kind: writeDelete}} }

// Add adds n to a number. A key without a value counts as 0. The value is the number in
// decimal. Result.Number has the sum. It is exact: no other transaction gets the same sum, so
// that a counter whose sum is stored in the same transaction has no gaps.
func Add(key string, n int64) Op { return Op{kind: opAdd, key: key, n: n} }

// Once makes a transaction safe to repeat. The first one with this id stores a note of it in
// the same moment as its values. Another one with this id does nothing: it fails with a
// *DuplicateError, with the first one's Result and the given answer. The note is kept for
// ttl, at least a second, or for ever if ttl is 0.
func Once(id string, ttl time.Duration, answer ...byte) Op {
	o := Op{kind: opOnce, key: id, answer: answer, write: write{ttl: ttl}}
	if ttl != 0 && ttl < time.Second {
		o.err = fmt.Errorf("%w: Once with %v: the shortest time is one second", ErrInvalid, ttl)
	}
	return o
}

func writing(o Op, opts []WriteOption) Op {
	o.err = o.apply(opts)
	return o
}

// note is the body of a message that Once stores.
type note struct {
	ID      string           `json:"id"` // of the batch: it tells whether one without an answer was stored
	Answer  []byte           `json:"answer,omitempty"`
	Numbers map[string]int64 `json:"numbers,omitempty"`
	Got     map[string]noted `json:"got,omitempty"`
}

type noted struct {
	Value    []byte    `json:"value"`
	Revision uint64    `json:"revision"`
	Created  time.Time `json:"created"`
}

// Do runs operations as one transaction under the fence: all are done, or none. Reading and
// committing take a round trip each, and a transaction that only reads takes one. At most
// 990 keys. While a transaction that writes is running, other writes of this view wait.
//
// It is serializable together with all other transactions if each key that it reads with Get
// is written under this lock alone. It does not notice that somebody who does not hold the
// lock, or another process that works under the same claim, writes such a key between its
// read and its commit. Read other keys with Unchanged. What Add, Insert and Update read is
// always checked.
//
// Errors beside those of Put: *ConflictError, *DuplicateError, ErrNotNumber. On a file-based
// bucket with one replica, a transaction with several messages is some hundred times slower
// than a Put.
func (v *View) Do(ctx context.Context, ops ...Op) (_ Result, err error) {
	defer func() { err = because(ctx, err) }()
	if err := v.ready(); err != nil {
		return Result{}, err
	}
	t, err := v.s.transaction(ops)
	if err != nil {
		return Result{}, err
	}
	c := v.c
	if c.shared && t.writes {
		return Result{}, fmt.Errorf("%w: lock %q: acquire the lock exclusively", ErrShared, c.lock.Name())
	}
	ctx, cancel := v.s.bound(ctx)
	defer cancel()
	if t.writes {
		// Two transactions of one claim would read the same, and the fence does not tell
		// them apart.
		select {
		case c.turn <- struct{}{}:
			defer func() { <-c.turn }()
		case <-ctx.Done():
			return Result{}, fmt.Errorf("store: %w while waiting for other writes under lock %q", ctx.Err(), c.lock.Name())
		}
		done, err := c.alone(ctx)
		if err != nil {
			return Result{}, fmt.Errorf("store: %w while waiting for other writes under lock %q", err, c.lock.Name())
		}
		defer done()
	}
	return v.s.run(ctx, t, c)
}

// Do runs operations as one transaction without a lock: all are done, or none, and only if
// nothing that they read or write has changed meanwhile. Else it starts again, until ctx
// ends. What it reads is current, and is unchanged at the moment of its commit, whoever writes
// it. So it is serializable together with all other transactions of a Store, and with those of
// a View as View.Do says.
// Under contention a lock is faster.
//
// If the answer to a commit is lost, Do finds out whether it was done unless others have
// written the same keys since: then its error is ErrUnknown. With Once it always finds out.
func (s *Store) Do(ctx context.Context, ops ...Op) (_ Result, err error) {
	defer func() { err = because(ctx, err) }()
	t, err := s.transaction(ops)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.run(ctx, t, nil)
}

// transaction is the operations, checked.
type transaction struct {
	ops      []Op
	once     *Op
	marker   string   // the subject of the note of Once
	subjects []string // of all keys and the marker
	writes   bool
}

func (s *Store) transaction(ops []Op) (*transaction, error) {
	t := &transaction{ops: slices.Clone(ops)}
	for i := range t.ops {
		o := &t.ops[i]
		if o.err != nil {
			return nil, o.err
		}
		t.writes = t.writes || o.kind != opGet && o.kind != opUnchanged
		if o.kind == opOnce {
			if t.once != nil {
				return nil, fmt.Errorf("%w: a transaction has one id: Once was given %q and %q", ErrInvalid, t.once.key, o.key)
			}
			id, err := encode("the id of Once", o.key)
			if err != nil {
				return nil, err
			}
			t.once, t.marker = o, s.own()+"once."+id
			o.subject = t.marker
		} else {
			if err := checkKey(o.key); err != nil {
				return nil, err
			}
			o.subject = s.key(o.key)
		}
		if !slices.Contains(t.subjects, o.subject) {
			if len(t.subjects) == maxKeys {
				return nil, fmt.Errorf("%w: more than %d keys in one transaction", ErrInvalid, maxKeys)
			}
			t.subjects = append(t.subjects, o.subject)
		}
	}
	return t, nil
}

// attempt is what a transaction comes to, given what it has read.
type attempt struct {
	id     string
	msgs   []*nats.Msg
	keys   map[string]int // of written keys, the place of their message
	result Result
	rev    uint64 // of the fence
	old    map[string]uint64
	sent   time.Time
}

// evaluate runs the operations on what was read (S4). It writes each key once, with the
// last value.
func (s *Store) evaluate(t *transaction, a answer, c *claim, rev uint64) (*attempt, error) {
	at := &attempt{id: newID(), keys: map[string]int{}, rev: rev, old: map[string]uint64{}}
	at.result = Result{
		Snapshot: Snapshot{revision: a.upTo, entries: map[string]*entry{}},
		numbers:  map[string]int64{}, written: map[string]uint64{},
	}
	if t.once != nil {
		if it := a.items[t.marker]; !it.gone() {
			return nil, s.duplicate(t, at, it)
		}
	}
	type cell struct {
		e       *entry // nil: no value
		w       *write
		checked bool // the message depends on the key's revision, also under a lock
	}
	cells := map[string]*cell{}
	var order []string
	for i := range t.ops {
		o := &t.ops[i]
		if o.kind == opOnce {
			continue
		}
		x := cells[o.key]
		if x == nil {
			x = &cell{}
			if it := a.items[o.subject]; !it.gone() {
				x.e = s.entry(o.key, it)
			}
			cells[o.key] = x
			order = append(order, o.key)
		}
		at.old[o.subject] = a.items[o.subject].revision()
		switch o.kind {
		case opGet, opUnchanged:
			x.checked = x.checked || o.kind == opUnchanged //plant:store-unchanged
			delete(at.result.entries, o.key)
			if x.e != nil {
				at.result.entries[o.key] = x.e
			}
			continue
		case opInsert:
			if x.e != nil {
				return at, &ConflictError{Key: o.key, Revision: x.e.rev}
			}
			x.checked = true
		case opUpdate:
			if x.e == nil || x.e.rev != o.rev {
				conflict := &ConflictError{Key: o.key, Want: o.rev}
				if x.e != nil {
					conflict.Revision = x.e.rev
				}
				return at, conflict
			}
			x.checked = true
		case opAdd:
			sum, err := add(o, x.e)
			if err != nil {
				return at, err
			}
			at.result.numbers[o.key] = sum
			o.data = strconv.AppendInt(nil, sum, 10)
			x.checked = true
		}
		w := o.write
		x.w, x.e = &w, nil
		if w.kind == writeValue {
			x.e = &entry{bucket: s.bucket, key: o.key, value: w.data}
		}
	}

	carrier := -1 // the message that depends on the fence
	if t.once != nil {
		n := note{ID: at.id, Answer: t.once.answer, Numbers: at.result.numbers, Got: map[string]noted{}}
		for k, e := range at.result.entries {
			n.Got[k] = noted{e.value, e.rev, e.created}
		}
		m := &nats.Msg{Subject: t.marker, Data: marshal(n), Header: nats.Header{headerTTL: {"never"}}}
		if t.once.ttl > 0 {
			m.Header[headerTTL] = []string{ttlText(t.once.ttl)}
		}
		// Where a note has expired, a message that says so may be in its place.
		at.old[t.marker] = a.items[t.marker].revision()
		condition(m, t.marker, at.old[t.marker])
		at.msgs = append(at.msgs, m)
	}
	var unwritten []string // and must not have changed
	for _, key := range order {
		x := cells[key]
		subject := s.key(key)
		if x.w == nil {
			// Under a lock, what was only read is left to the lock: a check costs a message.
			if c == nil || x.checked {
				unwritten = append(unwritten, subject)
			}
			continue
		}
		m := x.w.msg()
		if c == nil || x.checked {
			condition(m, subject, at.old[subject])
		} else if carrier < 0 {
			carrier = len(at.msgs)
		}
		at.keys[key] = len(at.msgs)
		at.msgs = append(at.msgs, m)
	}
	if len(at.msgs) == 0 {
		return at, nil
	}
	for _, subject := range unwritten {
		m := s.guardMsg()
		condition(m, subject, at.old[subject]) //plant:store-reads
		at.msgs = append(at.msgs, m)
	}
	if c != nil {
		if carrier < 0 {
			carrier = len(at.msgs)
			at.msgs = append(at.msgs, s.guardMsg())
		}
		condition(at.msgs[carrier], c.subject, rev)
	}
	if len(at.msgs) == 1 {
		at.msgs[0].Header[headerID] = []string{at.id}
	}
	return at, nil
}

func add(o *Op, e *entry) (int64, error) {
	var was int64
	if e != nil {
		var err error
		if was, err = strconv.ParseInt(string(e.value), 10, 64); err != nil {
			return 0, fmt.Errorf("%w: key %q has the value %.40q", ErrNotNumber, o.key, e.value)
		}
	}
	sum := was + o.n
	if (sum > was) != (o.n > 0) && o.n != 0 {
		return 0, fmt.Errorf("%w: key %q has %d, and %d more is out of the range of int64", ErrNotNumber, o.key, was, o.n)
	}
	return sum, nil
}

// duplicate gives the first one's result.
func (s *Store) duplicate(t *transaction, at *attempt, it *item) error {
	var n note
	if err := json.Unmarshal(it.data, &n); err != nil {
		return fmt.Errorf("%w: the note of %q cannot be read: %w", ErrInvalid, t.once.key, err)
	}
	for k, v := range n.Got {
		at.result.entries[k] = &entry{bucket: s.bucket, key: k, value: v.Value, rev: v.Revision, created: v.Created}
	}
	for k, v := range n.Numbers {
		at.result.numbers[k] = v
	}
	return &duplicateOf{at.result, n.ID, it, &DuplicateError{ID: t.once.key, Answer: n.Answer, When: it.time}}
}

// duplicateOf is a note that was found. It may be this very transaction's.
type duplicateOf struct {
	result Result
	id     string
	it     *item
	err    *DuplicateError
}

func (d *duplicateOf) Error() string { return d.err.Error() }

// done completes an attempt whose last message is at seq.
func (at *attempt) done(last uint64) Result {
	first := last - uint64(len(at.msgs)-1)
	for key, i := range at.keys {
		rev := first + uint64(i)
		at.result.written[key] = rev
		if e := at.result.entries[key]; e != nil && e.rev == 0 {
			e.rev = rev
		}
	}
	at.result.revision = last
	return at.result
}

// place finds a message of the attempt, and returns where its last one is.
func (at *attempt) place(a answer) (last uint64, ok bool) {
	for _, it := range a.items {
		switch {
		case len(at.msgs) == 1 && it.hdr.Get(headerID) == at.id:
			return it.seq, true
		case len(at.msgs) > 1 && it.hdr.Get(headerBatch) == at.id:
			n, err := strconv.ParseUint(it.hdr.Get(headerBatchSeq), 10, 64)
			if err == nil && n > 0 && n <= uint64(len(at.msgs)) {
				return it.seq + uint64(len(at.msgs)) - n, true
			}
		}
	}
	return 0, false
}

// changed reports whether every key that the attempt writes has another message than
// before, or none any more. Else the attempt was not done.
func (s *Store) changed(at *attempt, a answer) bool {
	for _, m := range at.msgs {
		old, ok := at.old[m.Subject]
		if !ok || s.lapsed(m, at.sent) {
			continue // the guard, or what may have expired
		}
		if a.items[m.Subject].revision() == old {
			return false
		}
	}
	return true
}

// run reads, evaluates and commits, until that succeeds. c is nil without a lock.
func (s *Store) run(ctx context.Context, t *transaction, c *claim) (Result, error) {
	var (
		p     pause
		floor uint64     // without a lock
		fresh = c != nil // what is read is not older than the call
		open  []*attempt // without an answer
		no    error      // a permission that the last attempt lacked
	)
	unknown := func(err error) error {
		if len(open) == 0 {
			return err
		}
		return &UnknownError{What: fmt.Sprintf("the transaction of %d messages", len(open[0].msgs)), Cause: err}
	}
	for {
		if !fresh && !t.writes {
			seq, err := s.barrier(ctx)
			if err != nil {
				return Result{}, err
			}
			floor, fresh = seq, true
		}
		var (
			a   answer
			rev uint64
			err error
		)
		if c != nil {
			a, rev, err = c.read(ctx, t.subjects)
		} else {
			a, err = s.readFrom(ctx, floor, append([]string{s.guard()}, t.subjects...))
		}
		if err != nil {
			return Result{}, unknown(err)
		}
		for _, at := range open {
			if last, ok := at.place(a); ok {
				if c != nil {
					c.raise(last)
				}
				return at.done(last), nil
			}
		}
		at, err := s.evaluate(t, a, c, rev)
		if d := (*duplicateOf)(nil); errors.As(err, &d) {
			for _, o := range open {
				if o.id == d.id {
					return o.done(d.it.seq + uint64(len(o.msgs)-1)), nil
				}
			}
			return d.result, d.err
		}
		if len(open) > 0 {
			// Read at a floor behind which no attempt can be stored any more. The note of Once
			// tells that none was, as long as it has not expired.
			for _, o := range open {
				if noted := t.once != nil && !s.lapsed(o.msgs[0], o.sent); !noted && s.changed(o, a) {
					return Result{}, unknown(errOvertaken)
				}
			}
		}
		if err != nil {
			if !fresh {
				// A replica that is behind may have said so.
				seq, err := s.barrier(ctx)
				if err != nil {
					return Result{}, unknown(err)
				}
				floor, fresh = seq, true
				continue
			}
			return Result{}, err
		}
		open = nil
		if no != nil {
			return Result{}, fmt.Errorf("store: commit: %w", no)
		}
		if len(at.msgs) == 0 {
			return at.result, nil
		}
		last, err := s.commit(ctx, at, c, &open)
		r := (*refused)(nil)
		switch {
		case err == nil && last <= a.upTo:
			if c != nil {
				_ = c.ended(fence{}, errReplaced)
			}
			return Result{}, &UnknownError{What: fmt.Sprintf("the transaction of %d messages", len(at.msgs)), Cause: errReplaced}
		case err == nil:
			if c != nil {
				c.wrote(last, at.rev)
			}
			return at.done(last), nil
		case errors.As(err, &r):
			if c != nil {
				c.raise(r.seq)
			}
			floor = max(floor, r.seq)
			if c == nil && len(open) > 0 {
				// A refusal that names no message says nothing of where to read.
				seq, err := s.barrier(ctx)
				if err != nil {
					return Result{}, unknown(err)
				}
				floor, fresh = max(floor, seq), true
			}
		case errors.Is(err, errSilent) && forbidden(err) && c != nil:
			no = err // if the next read shows that it was not done
		case forbidden(err):
			return Result{}, unknown(fmt.Errorf("store: commit: %w", err))
		case errors.Is(err, errBusy):
		case errors.Is(err, errSilent):
			if err := s.stuck(ctx, p.tries, err); err != nil {
				return Result{}, unknown(err)
			}
		default:
			return Result{}, unknown(fmt.Errorf("store: commit: %w", err))
		}
		if err := p.wait(ctx, err); err != nil {
			return Result{}, unknown(err)
		}
	}
}

// commit sends an attempt. Attempts that have no answer are added to open.
//
// Under a lock the next read moves the fence, and then they are stored or will never be.
// Without a lock the same is sent again until there is an answer. At most one of them can be
// stored, as each writes keys that the others depend on. An answer, also a refusal, says
// that nothing that was sent before can be stored any more.
func (s *Store) commit(ctx context.Context, at *attempt, c *claim, open *[]*attempt) (uint64, error) {
	var p pause
	for {
		if c != nil {
			if err := c.alive(); err != nil {
				return 0, err
			}
		}
		at.sent = time.Now()
		last, err := s.wire.send(ctx, at.id, at.msgs)
		switch {
		case errors.Is(err, errSilent):
			*open = append(*open, at)
			if c != nil {
				c.doubt(at.rev) //plant:store-doubt-commit
				return 0, err
			}
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			if forbidden(err) {
				return 0, err
			}
			if err := s.stuck(ctx, p.tries, err); err != nil {
				return 0, err
			}
		case errors.Is(err, errBusy) && forbidden(err):
			return 0, err
		case errors.Is(err, errBusy):
			if err := s.stuck(ctx, p.tries, err); err != nil {
				return 0, err
			}
			if c != nil && p.tries > 8 {
				return 0, err
			}
		default:
			return last, err
		}
		if err := p.wait(ctx, err); err != nil {
			return 0, err
		}
		if len(*open) > 0 && c == nil {
			at = at.again()
		}
	}
}

// again is the same attempt under another id: a batch whose id is in use is another one's
// beginning.
func (at *attempt) again() *attempt {
	next := *at
	next.id = newID()
	next.msgs = make([]*nats.Msg, len(at.msgs))
	for i, m := range at.msgs {
		c := &nats.Msg{Subject: m.Subject, Data: m.Data, Header: nats.Header{}}
		for k, v := range m.Header {
			c.Header[k] = v
		}
		if c.Header[headerID] != nil {
			c.Header[headerID] = []string{next.id}
		}
		next.msgs[i] = c
	}
	return &next
}
