package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
)

// Item is a piece of work.
type Item struct {
	Key      string
	Data     []byte
	Header   nats.Header
	ID       string // of WithID
	Seq      uint64 // in the stream: it names the item, also when it is tried again
	Enqueued time.Time
	Attempt  int // 1 for the first

	progress func()
}

// Progress says that the handler gets on: see WithStall. It may be called from several
// goroutines.
func (it *Item) Progress() {
	if it.progress != nil {
		it.progress()
	}
}

// Handler does an item's work. ctx comes from the lock of the item's key: qlock.Token and
// qlock.Held work with it. It ends when the lock is lost (cause qlock.ErrLost), when the
// worker stops (ErrStopped), and when the handler stalls (ErrStalled).
//
// If the handler returns nil, the item is done. If it returns an error, the item is tried
// again after a pause (Config.Backoff, or RetryAfter), or becomes a dead letter (Discard,
// Config.MaxAttempts). If the lock was lost meanwhile, the item is tried again in any case.
type Handler func(ctx context.Context, it *Item) error

// Discard makes the error of a handler final: the item becomes a dead letter at once.
func Discard(err error) error { return &verdict{err: err, discard: true} }

// RetryAfter makes the next attempt come after d, in place of Config.Backoff.
func RetryAfter(err error, d time.Duration) error { return &verdict{err: err, after: max(d, 0)} }

type verdict struct {
	err     error
	discard bool
	after   time.Duration
}

func (v *verdict) Error() string {
	if v.err == nil {
		return "queue: the handler gave no reason"
	}
	return v.err.Error()
}
func (v *verdict) Unwrap() error { return v.err }

// WorkOption changes how Work works.
type WorkOption func(*worker) error

// WithConcurrency sets how many handlers run at the same time. Default 1.
func WithConcurrency(n int) WorkOption {
	return func(w *worker) error {
		if n < 1 || n > 10_000 {
			return fmt.Errorf("%w: %d handlers at the same time, allowed are 1 to 10000", ErrInvalid, n)
		}
		w.slots = make(chan struct{}, n)
		return nil
	}
}

// WithDrain sets how long handlers may go on when ctx of Work has ended. Default 0: their
// contexts end at once.
func WithDrain(d time.Duration) WorkOption {
	return func(w *worker) error {
		if d < 0 {
			return fmt.Errorf("%w: WithDrain: %v is negative", ErrInvalid, d)
		}
		w.drain = d
		return nil
	}
}

// WithStall ends the context of a handler that has not called Item.Progress for d, with
// cause ErrStalled, and counts the attempt as failed when it returns. Default: a handler may
// take as long as it likes; its item and its lock stay with it while this process lives.
func WithStall(d time.Duration) WorkOption {
	return func(w *worker) error {
		if d <= 0 {
			return fmt.Errorf("%w: WithStall: %v, it must be more than 0", ErrInvalid, d)
		}
		w.stall = d
		return nil
	}
}

// WithErrors calls f for what went wrong with an item, or with the connection, and is tried
// again. f must not block. It may be called from several goroutines. The item is nil if the
// error concerns no item.
func WithErrors(f func(it *Item, err error)) WorkOption {
	return func(w *worker) error {
		if f == nil {
			return fmt.Errorf("%w: WithErrors: the function is nil", ErrInvalid)
		}
		w.report = f
		return nil
	}
}

// Work takes items and calls h for each, until ctx ends. Then it gives back what was not
// begun, and returns nil when all handlers have returned, which takes a second more than
// they do. All goroutines that it started have then ended.
//
// It fails if it cannot go on, which it notices within the lease, also while all handlers run:
// with ErrDeleted if the stream or its consumer was deleted, and if the Locker or one of the
// connections was closed, or that to JetStream is drained. Faults that may pass, such as a stream
// without a leader, are reported (WithErrors) and waited for. While too few nodes answer, the
// worker gives back what it has, and takes nothing.
func (q *Queue) Work(ctx context.Context, l *qlock.Locker, h Handler, opts ...WorkOption) error {
	if l == nil || h == nil {
		return fmt.Errorf("%w: Work: the Locker or the handler is nil", ErrInvalid)
	}
	w := &worker{q: q, locker: l, handle: h, lanes: map[string]*lane{}, ours: map[uint64]*held{}, late: map[string]block{}, room: make(chan struct{}, 1),
		report: func(*Item, error) {}}
	for _, o := range append([]WorkOption{WithConcurrency(1)}, opts...) {
		if o == nil {
			continue
		}
		if err := o(w); err != nil {
			return err
		}
	}
	return w.work(ctx)
}

type worker struct {
	q      *Queue
	locker *qlock.Locker
	handle Handler
	drain  time.Duration
	stall  time.Duration
	report func(*Item, error)
	slots  chan struct{} // one for each handler that runs

	ctx   context.Context // ends when the worker stops
	stop  context.CancelCauseFunc
	hard  context.Context // ends when handlers must stop
	lanes map[string]*lane

	mu   sync.Mutex       // guards lanes and what they have, and what follows
	ours map[uint64]*held // all items that this worker has, by sequence
	late map[string]block // keys whose first item is not to be had for a while
	// Lanes wait for locks while this lasts. It ends when too few nodes answer, and then there
	// is a new one when they do.
	nodes   context.Context
	deaf    context.CancelCauseFunc // ends nodes
	heard   bool                    // the nodes gave a lock since watch looked
	arrived bool                    // items came since watch looked
	room    chan struct{}           // has room for one: an item less
	all     sync.WaitGroup          // of lanes

	unheard atomic.Bool // the worker stops, and the stream does not answer
}

// held is an item that this worker has.
type held struct {
	Item
	msg       jetstream.Msg
	delivered uint64 // how often
}

// block says that the items of a key behind the first are not worth having until a time.
// They make room for items of other keys, which the stream has behind them.
type block struct {
	first uint64
	until time.Time
	pause time.Duration // how long it was, for the next one
}

// lane is the items of one key that this worker has, with one goroutine while there are
// any. JetStream delivers them one by one to any worker. So each lane waits for the lock of
// its key, and under the lock works on the first item of the key, if it is one of its own.
// If it is not, another worker has it, which waits for the lock too.
type lane struct {
	key   string
	items []*held // by sequence
}

func (w *worker) work(ctx context.Context) error {
	w.ctx, w.stop = context.WithCancelCause(ctx)
	defer w.stop(nil)
	hard, harder := context.WithCancelCause(context.WithoutCancel(ctx))
	defer harder(nil)
	w.hard = hard
	w.nodes, w.deaf = context.WithCancelCause(w.ctx)

	var helpers sync.WaitGroup
	done := make(chan struct{})
	helpers.Go(func() {
		select {
		case <-w.ctx.Done():
			select {
			case <-time.After(w.drain):
			case <-done:
			}
			harder(ErrStopped)
		case <-done:
		}
	})
	helpers.Go(func() { w.extend(done) })
	helpers.Go(w.watch)

	w.fetch()
	w.all.Wait()
	close(done)
	helpers.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(w.ctx)
}

// extend keeps the items of this worker from being given to others.
func (w *worker) extend(done <-chan struct{}) {
	next := time.NewTicker(w.q.cfg.Lease / 3)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-done:
			return
		}
		w.mu.Lock()
		messages := make([]jetstream.Msg, 0, len(w.ours))
		for _, h := range w.ours {
			messages = append(messages, h.msg)
		}
		for key, b := range w.late {
			if time.Since(b.until) > 2*mostAway {
				delete(w.late, key)
			}
		}
		w.mu.Unlock()
		for _, m := range messages {
			_ = m.InProgress() // it is delivered again if this does not arrive
		}
	}
}

// watch stops the worker when it cannot go on. The other goroutines would not notice: they
// may all wait for handlers and for locks, and do not use what is gone.
//
// It also looks whether the nodes answer. If they do not, this worker can have no lock, but it
// could keep its items from others for ever, as JetStream may answer all the while. So it
// then gives them back, and takes none.
func (w *worker) watch() {
	limit := w.q.cfg.Lease / 3
	for missing := 0; ; {
		w.sleep(limit)
		if w.ctx.Err() != nil {
			return
		}
		switch nc := w.q.js.Conn(); {
		case nc.IsClosed():
			w.cannotGoOn(nats.ErrConnectionClosed)
			return
		case nc.IsDraining():
			// Nothing would come for the requests of its handlers.
			w.cannotGoOn(nats.ErrConnectionDraining)
			return
		}
		w.mu.Lock()
		heard, arrived := w.heard, w.arrived
		w.heard, w.arrived = false, false
		w.mu.Unlock()
		var gone error
		if !arrived {
			gone = w.q.deleted(w.ctx)
		}
		if gone == nil {
			missing = 0
		} else if missing++; missing > 1 { // as in fetch, which may not be at it
			w.stop(gone)
			return
		}
		if !heard {
			ctx, cancel := context.WithTimeout(w.ctx, max(limit, time.Second))
			err := w.locker.Flush(ctx)
			cancel()
			if errors.Is(err, qlock.ErrClosed) {
				w.cannotGoOn(err)
				return
			}
			w.hear(err)
		}
	}
}

func (w *worker) cannotGoOn(err error) {
	w.stop(fmt.Errorf("queue: work on %s: %w", w.q.cfg.Name, err))
}

// hear notes whether the nodes answer.
func (w *worker) hear(err error) {
	w.mu.Lock()
	was := w.nodes.Err() == nil
	switch {
	case was && errors.Is(err, qlock.ErrNoQuorum):
		w.deaf(err)
	case !was && err == nil:
		w.nodes, w.deaf = context.WithCancelCause(w.ctx)
	}
	is := w.nodes.Err() == nil
	w.mu.Unlock()
	switch {
	case was && !is && w.ctx.Err() == nil:
		w.report(nil, fmt.Errorf("queue: work on %s: items are left to other workers: %w", w.q.cfg.Name, err))
	case !was && is:
		w.hasRoom()
	}
}

// hasRoom wakes fetch.
func (w *worker) hasRoom() {
	select {
	case w.room <- struct{}{}:
	default:
	}
}

// fetchWait is how long the server keeps a request for items. When the worker stops, what
// still comes for it is given back.
const fetchWait = time.Second

// mostMissing is how often in a row the servers must say that the consumer is not there. One
// that has just become their leader may not know yet.
const mostMissing = 3

// fetch takes items from the stream until the worker stops.
func (w *worker) fetch() {
	most := 4 * cap(w.slots) // those that wait for a lock need no slot
	missing := 0             // how often in a row the consumer was not there
	for pause := 50 * time.Millisecond; w.ctx.Err() == nil; {
		w.mu.Lock()
		free := most - len(w.ours)
		if w.nodes.Err() != nil {
			free = 0
		}
		w.mu.Unlock()
		if free <= 0 {
			select {
			case <-w.room:
			case <-w.ctx.Done():
			}
			continue
		}
		batch, err := w.q.consumer.Fetch(free, jetstream.FetchMaxWait(fetchWait))
		if err == nil {
			for m := range batch.Messages() {
				pause = 50 * time.Millisecond
				w.take(m)
			}
			err = batch.Error()
		}
		if err == nil || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			missing = 0
			continue
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			w.cannotGoOn(err)
			return
		}
		// A consumer that was deleted answers nothing, like one that has no leader for a moment.
		if gone := w.q.deleted(w.ctx); gone == nil {
			missing = 0
		} else if missing++; missing == mostMissing {
			w.stop(gone)
			return
		}
		w.report(nil, fmt.Errorf("queue: fetch from %s: %w", w.q.cfg.Name, err))
		w.sleep(pause)
		pause = min(2*pause, 2*time.Second)
	}
}

func (w *worker) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
	}
}

// take puts an item into its lane.
func (w *worker) take(m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		w.report(nil, fmt.Errorf("queue: an item of %s without metadata: %w", w.q.cfg.Name, err))
		return
	}
	if w.ctx.Err() != nil {
		w.spare(meta.Sequence.Stream, meta.NumDelivered)
		_ = m.Nak()
		return
	}
	token := strings.TrimPrefix(m.Subject(), w.q.subject(itemSubject, ""))
	key, _ := keyOf(token)
	h := &held{
		Item: Item{Key: key, Data: m.Data(), Header: m.Headers(), ID: m.Headers().Get(HeaderID), Seq: meta.Sequence.Stream, Enqueued: meta.Timestamp},
		msg:  m, delivered: meta.NumDelivered,
	}
	if !isToken(token) { // somebody else's
		if err := w.q.bury(w.hard, &h.Item, "the subject "+m.Subject()+" is not that of a key"); err == nil {
			_ = m.Term()
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.arrived = true
	if old := w.ours[h.Seq]; old != nil {
		// It was delivered again, as a message that extends it came too late. An
		// acknowledgement of the one is that of the other.
		return
	}
	if b, ok := w.late[key]; ok && h.Seq != b.first {
		if after := time.Until(b.until); after > 0 {
			if h.delivered == 1 {
				// As spare does. Nobody waits for the answer, which comes before the item does.
				_ = w.q.js.Conn().PublishMsg(w.q.untried(h.Seq))
			}
			_ = m.NakWithDelay(after)
			return
		}
	}
	w.ours[h.Seq] = h
	ln := w.lanes[key]
	if ln == nil {
		ln = &lane{key: key}
		w.lanes[key] = ln
		w.all.Go(func() { w.run(ln) })
	}
	ln.items = append(ln.items, h)
	slices.SortFunc(ln.items, func(a, b *held) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
}

// next is the first item of a lane. If there is none, the lane is gone.
func (w *worker) next(ln *lane) *held {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(ln.items) > 0 {
		return ln.items[0]
	}
	delete(w.lanes, ln.key)
	return nil
}

// drop takes an item off a lane.
func (w *worker) drop(ln *lane, h *held) {
	w.mu.Lock()
	ln.items = slices.DeleteFunc(ln.items, func(o *held) bool { return o == h })
	if w.ours[h.Seq] == h { // it may have come again
		delete(w.ours, h.Seq)
	}
	w.mu.Unlock()
	w.hasRoom()
}

// giveBack gives all items of a lane back, to be delivered after a pause.
func (w *worker) giveBack(ln *lane, after time.Duration) {
	w.mu.Lock()
	items := slices.Clone(ln.items)
	w.mu.Unlock()
	for _, h := range items {
		w.spare(h.Seq, h.delivered)
		w.drop(ln, h)
		_ = h.msg.NakWithDelay(after) // or it comes after the lease
	}
}

// spare notes that an item that is about to be given back was not tried, so that this costs it no
// attempt. Whoever gets the item must find that. If it cannot be noted, an attempt is lost.
func (w *worker) spare(seq, delivered uint64) {
	if delivered > 1 || w.unheard.Load() {
		return // there is a record, or it came from a worker that died
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), min(time.Second, w.q.cfg.Lease/2))
	defer cancel()
	_, err := w.q.js.PublishMsg(ctx, w.q.untried(seq))
	var refused *jetstream.APIError
	if err != nil && w.ctx.Err() != nil && !errors.As(err, &refused) {
		w.unheard.Store(true) // Work returns soon, however many items there are
	}
}

const (
	// When the first item of a key is nobody's who waits for the lock, it is on its way to a
	// worker, or waits for its next attempt. So it is looked for again for a while, and
	// then its successors are given back, each time for longer.
	firstLook = 5 * time.Millisecond
	patience  = 300 * time.Millisecond
	away      = time.Second
	mostAway  = 30 * time.Second
)

// putOff notes that the first item of a key is not to be had for a while; 0: for a time that
// is not known. It returns for how long.
func (w *worker) putOff(key string, first uint64, d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d == 0 {
		d = away
		if b := w.late[key]; b.first == first {
			d = 2 * b.pause
		}
	}
	d = min(d, mostAway)
	w.late[key] = block{first, time.Now().Add(d), d}
	return d
}

// isPutOff returns for how long, 0 if the item is not.
func (w *worker) isPutOff(key string, first uint64) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.late[key]; ok && b.first == first {
		return max(time.Until(b.until), 0)
	}
	return 0
}

// run works on a lane until it is empty.
func (w *worker) run(ln *lane) {
	pause, waited, waitedFor := firstLook, time.Duration(0), uint64(0)
	for {
		h := w.next(ln)
		if h == nil {
			return
		}
		if w.ctx.Err() != nil {
			w.giveBack(ln, 0)
			continue
		}
		w.mu.Lock()
		nodes := w.nodes
		w.mu.Unlock()
		if nodes.Err() != nil {
			w.giveBack(ln, away)
			continue
		}
		lock, err := w.locker.Lock(nodes, w.q.lock(ln.key))
		if err != nil {
			if errors.Is(err, qlock.ErrClosed) || errors.Is(err, qlock.ErrRefused) {
				w.cannotGoOn(err)
			} else if nodes.Err() == nil {
				w.report(&h.Item, err)
				w.sleep(patience)
			}
			continue
		}
		w.mu.Lock()
		w.heard = true
		w.mu.Unlock()
		first, ran := w.underLock(ln, lock)
		// Fails if it was lost; then the items were not acknowledged.
		_ = lock.Unlock(w.ctx)
		if ran || first != waitedFor {
			pause, waited, waitedFor = firstLook, 0, first
		}
		if first == 0 {
			continue // they are all done
		}
		if d := w.isPutOff(ln.key, first); d > 0 {
			w.giveBack(ln, d)
			continue
		}
		if ran {
			continue // behind those who wait for the lock
		}
		if waited > patience {
			w.giveBack(ln, w.putOff(ln.key, first, 0))
			continue
		}
		w.sleep(pause)
		waited += pause
		pause *= 2
	}
}

// underLock works on the items of a lane in order. It returns the sequence of the first
// item of the key, which is another's, or 0 if none is left; and whether any item ran.
func (w *worker) underLock(ln *lane, lock *qlock.Lock) (first uint64, ran bool) {
	for w.ctx.Err() == nil && lock.Context().Err() == nil {
		w.mu.Lock()
		var h *held
		if len(ln.items) > 0 {
			h = ln.items[0]
		}
		w.mu.Unlock()
		if h == nil {
			return 0, ran
		}
		first, err := w.q.first(lock.Context(), ln.key)
		switch {
		case err != nil:
			w.report(&h.Item, fmt.Errorf("queue: the first item of a key in %s: %w", w.q.cfg.Name, err))
			return h.Seq, false
		case first == 0 || first > h.Seq:
			// It is done, and was delivered again though, or it was deleted. Or it is there, and a
			// server that has just become the leader of the stream, or does not know that it is
			// not any more, does not know of it. So it is not acknowledged, which would be its end,
			// but given back: the stream delivers what it has.
			w.spare(h.Seq, h.delivered)
			w.drop(ln, h)
			_ = h.msg.NakWithDelay(patience)
			continue
		case first < h.Seq:
			return first, ran
		}
		select {
		case w.slots <- struct{}{}:
		case <-w.ctx.Done():
			return h.Seq, ran
		case <-lock.Context().Done():
			return h.Seq, ran
		}
		w.try(ln, h, lock)
		<-w.slots
		ran = true
	}
	return 1, ran // whatever it is
}

// try makes an attempt. The item is off the lane afterwards.
func (w *worker) try(ln *lane, h *held, lock *qlock.Lock) {
	defer w.drop(ln, h)
	// The stream may deliver it again at once, and take ignores what is in the lane.
	giveBack := func(after time.Duration) {
		w.drop(ln, h)
		_ = h.msg.NakWithDelay(after)
	}
	recorded := false
	if h.Attempt = 1; h.delivered > 1 {
		n, err := w.q.attempts(lock.Context(), &h.Item)
		if err == nil {
			h.Attempt = n + 1
			recorded = true
			if h.Attempt <= w.q.cfg.MaxAttempts { // otherwise there is no attempt
				// Before the handler runs: it may be what kills this process.
				err = w.q.record(lock.Context(), h.Seq, h.Attempt)
			}
			if isFull(err) {
				// Only items that are done make room, so it runs, and the attempt does not count.
				w.report(&h.Item, fmt.Errorf("queue: attempt %d of item %d of %s is not counted: %w", h.Attempt, h.Seq, w.q.cfg.Name, err))
				err = nil
			}
		}
		if err != nil {
			w.report(&h.Item, fmt.Errorf("queue: attempts of item %d of %s: %w", h.Seq, w.q.cfg.Name, err))
			giveBack(away)
			return
		}
	}
	var err error
	if h.Attempt > w.q.cfg.MaxAttempts {
		err = Discard(fmt.Errorf("queue: %d attempts, and the last worker did not say how its attempt ended", h.Attempt-1))
		h.Attempt--
	} else {
		err = w.call(&h.Item, lock)
	}
	if lock.Context().Err() != nil {
		// Another worker may have it by now. What was done may be done again.
		w.report(&h.Item, fmt.Errorf("queue: item %d of %s: %w", h.Seq, w.q.cfg.Name, context.Cause(lock.Context())))
		giveBack(0)
		return
	}
	var v *verdict
	final := errors.As(err, &v) && v.discard
	switch {
	case err == nil:
	case final || h.Attempt >= w.q.cfg.MaxAttempts && w.ctx.Err() == nil:
		if err := w.q.bury(lock.Context(), &h.Item, err.Error()); err != nil {
			w.report(&h.Item, fmt.Errorf("queue: dead letter of item %d of %s: %w", h.Seq, w.q.cfg.Name, err))
			giveBack(away)
			return
		}
		w.report(&h.Item, fmt.Errorf("queue: item %d of %s is a dead letter after %d attempts: %w", h.Seq, w.q.cfg.Name, h.Attempt, err))
	default:
		after := w.q.cfg.Backoff[min(h.Attempt, len(w.q.cfg.Backoff))-1]
		if v != nil {
			after = v.after
		}
		if w.hard.Err() != nil {
			after = 0 // it was told to stop
		}
		w.report(&h.Item, fmt.Errorf("queue: attempt %d of item %d of %s: %w", h.Attempt, h.Seq, w.q.cfg.Name, err))
		if after > patience {
			w.putOff(h.Key, h.Seq, after)
		}
		giveBack(after)
		return
	}
	// Under the lock, so that the next holder finds it gone.
	ask, cancel := context.WithTimeout(lock.Context(), w.q.cfg.Lease)
	defer cancel()
	if err := w.done(ask, h); err != nil {
		w.report(&h.Item, fmt.Errorf("queue: item %d of %s is done, and not confirmed: %w", h.Seq, w.q.cfg.Name, err))
		return
	}
	if recorded {
		if err := w.q.forget(ask, h.Seq); err != nil {
			w.report(&h.Item, fmt.Errorf("queue: attempts of item %d of %s: %w", h.Seq, w.q.cfg.Name, err))
		}
	}
}

// done tells the stream that an item is done, until it confirms that: otherwise it is done
// again. While the stream changes its leader, nobody answers.
func (w *worker) done(ctx context.Context, h *held) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		once, cancel := context.WithTimeout(ctx, w.q.cfg.Lease/4)
		err := h.msg.DoubleAck(once)
		cancel()
		if err == nil || errors.Is(err, nats.ErrConnectionClosed) {
			return err
		}
		// A second acknowledgement is not answered if the first one came.
		if first, err := w.q.first(ctx, h.Key); err == nil && first != h.Seq {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return because(ctx, err)
		}
	}
}

var errExit = errors.New("queue: the handler ended its goroutine and returned nothing")

// call calls the handler.
func (w *worker) call(it *Item, lock *qlock.Lock) error {
	ctx, cancel := context.WithCancelCause(lock.Context())
	defer cancel(nil)
	defer context.AfterFunc(w.hard, func() { cancel(ErrStopped) })()
	var stalled atomic.Bool
	if w.stall > 0 {
		timer := time.AfterFunc(w.stall, func() {
			stalled.Store(true)
			cancel(ErrStalled)
		})
		defer timer.Stop()
		it.progress = func() { timer.Reset(w.stall) }
	}
	// In a goroutine of its own, since the handler may end that: by runtime.Goexit, as the FailNow
	// of a test does. That of the lane would leave the key stuck.
	err := errExit
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		err = w.handle(ctx, it)
	}()
	<-returned
	if stalled.Load() {
		err = errors.Join(ErrStalled, err)
	}
	return err
}
