package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// lookEvery is how often is looked whether the bucket is still the one that is watched. The
	// consumer of a bucket that was deleted says nothing, nor does it for one that was made anew.
	lookEvery = 10 * time.Second
	// A watcher whose first read takes this long asks for a look at once.
	lookSoon = 500 * time.Millisecond
	// beat is how often the server tells a silent consumer that it is alive. After two without
	// it, the consumer is made anew, at another server if that one has failed. nats.go takes five
	// seconds where it is not told.
	beat = time.Second
	// What a watcher keeps of what was not taken. One that has more reads it from the bucket when
	// it comes to that.
	watchMost  = 1024
	watchBytes = 4 << 20
	// A watcher looks for a key among so few, and remembers where the keys of more are.
	watchFew = 8
	// removing is how long the last watcher waits until the server has removed the consumer.
	removing = 500 * time.Millisecond
)

// errDetached ends watchers whose consumer has ended.
var errDetached = fmt.Errorf("store: watch: %w", nats.ErrConnectionClosed)

// hub gives the changes of the bucket to all watchers of a Store. The server has one
// consumer for them. It is there while there are watchers, and so is a goroutine.
type hub struct {
	starting chan struct{} // one goroutine at a time makes or removes the consumer
	every    time.Duration // between two looks at whether the bucket is still the same one
	kick     chan struct{} // asks for a look now
	beat     time.Duration // see the constant

	mu       sync.Mutex // guards what follows
	consumer *feed
	ended    chan struct{} // closed when the goroutine of the consumer has ended
	pos      uint64        // every change up to here was given to those who watch
	exact    map[string]map[*watcher]struct{}
	wild     map[*watcher]struct{}
	count    int
}

// watcher is one call of Watch or Wait. It keeps the last value of each key that has not been
// taken, up to a limit: a slow one misses values, not keys. What finds no room is not kept. The
// watcher reads it from the bucket when it has taken the rest. So it costs the others no time,
// and the process no memory.
type watcher struct {
	patterns []string
	signal   chan struct{}
	failed   context.CancelFunc // ends the first read

	mu      sync.Mutex // guards what follows
	pending []*entry
	place   map[string]int // of each key in pending, if there are more than a few
	bytes   int            // of pending
	skip    uint64         // changes up to here came with a read
	missed  uint64         // the first change that found no room; 0: none
	pause   pause          // between reads of what was missed
	err     error
}

func (w *watcher) offer(e *entry) {
	w.mu.Lock()
	w.keep(e)
	w.mu.Unlock()
	w.wake()
}

// keep is called with mu held. It takes the same time however much is pending.
func (w *watcher) keep(e *entry) {
	if e.rev <= w.skip || w.missed != 0 {
		return
	}
	i, ok := w.find(e.key)
	size := w.bytes + len(e.key) + len(e.value)
	if ok {
		size -= len(e.key) + len(w.pending[i].value)
	}
	switch {
	case len(w.pending) > 0 && size > watchBytes, !ok && len(w.pending) == watchMost:
		w.missed = e.rev
		return
	case ok:
		w.pending[i] = e
	default:
		if w.place != nil {
			w.place[e.key] = len(w.pending)
		}
		w.pending = append(w.pending, e)
	}
	w.bytes = size
}

func (w *watcher) find(key string) (int, bool) {
	if w.place == nil {
		if len(w.pending) < watchFew {
			i := slices.IndexFunc(w.pending, func(e *entry) bool { return e.key == key })
			return i, i >= 0
		}
		w.place = make(map[string]int, 2*watchFew)
		for i, e := range w.pending {
			w.place[e.key] = i
		}
	}
	i, ok := w.place[key]
	return i, ok
}

// drop forgets what is pending up to a revision. It is called with mu held.
func (w *watcher) drop(upTo uint64) {
	all := w.pending
	w.pending, w.place, w.bytes = nil, nil, 0
	for _, e := range all {
		if e.rev > upTo {
			w.pending = append(w.pending, e)
			w.bytes += len(e.key) + len(e.value)
		}
	}
}

func (w *watcher) wants(key string) bool {
	return slices.ContainsFunc(w.patterns, func(p string) bool { return matches(p, key) })
}

func (w *watcher) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	w.failed()
	w.wake()
}

// next waits for changes.
func (s *Store) next(ctx context.Context, w *watcher) ([]*entry, error) {
	for {
		w.mu.Lock()
		es, err, missed := w.pending, w.err, w.missed
		w.pending, w.place, w.bytes = nil, nil, 0
		w.mu.Unlock()
		if len(es) == 0 && err == nil && missed != 0 {
			es, err = s.catchUp(ctx, w)
		}
		if len(es) > 0 || err != nil {
			return es, err
		}
		if missed != 0 {
			continue
		}
		select {
		case <-w.signal:
		case <-ctx.Done():
			return nil, fmt.Errorf("store: watch: %w", ctx.Err())
		}
	}
}

// catchUp reads a part of what a watcher has missed, and lets it hear changes again if that was
// all.
func (s *Store) catchUp(ctx context.Context, w *watcher) ([]*entry, error) {
	h := &s.watching
	h.mu.Lock()
	w.mu.Lock()
	from := w.missed
	w.missed = 0 // changes after pos are kept from now on, and those before are in the bucket
	w.mu.Unlock()
	pos := h.pos
	h.mu.Unlock()

	a, err := s.wire.since(ctx, from)
	if err != nil && !errors.Is(err, errBusy) && !errors.Is(err, errSilent) {
		return nil, fmt.Errorf("store: watch: %w", err)
	}
	if err == nil && !a.more && a.last < pos {
		err = behind(a.last, pos)
	}
	es := s.lastOf(a, w)

	w.mu.Lock()
	defer w.mu.Unlock()
	next := max(from, a.last+1)
	switch {
	case w.err != nil:
		return nil, w.err
	case err != nil || a.more:
		w.drop(math.MaxUint64) // it is read later
		w.missed = next
	default:
		w.skip = a.last
		w.drop(a.last)
		if w.missed != 0 {
			w.missed = max(w.missed, next)
		}
	}
	if err == nil {
		w.pause = pause{}
	}
	if err == nil || len(es) > 0 {
		return es, nil
	}
	tries := w.pause.tries
	w.mu.Unlock()
	defer w.mu.Lock()
	if err := s.stuck(ctx, tries, err); err != nil {
		return nil, err
	}
	if tries == 3 {
		// What was last may have been removed since. A new message tells which replica is behind.
		if _, err := s.barrier(ctx); err != nil {
			return nil, err
		}
	}
	return nil, w.pause.wait(ctx, err)
}

// lastOf is what a page has for a watcher. With a history a key comes several times.
func (s *Store) lastOf(a page, w *watcher) []*entry {
	place := map[string]int{}
	var es []*entry
	for i, it := range a.items {
		key, ok := strings.CutPrefix(a.subjects[i], s.keys())
		if !ok || !w.wants(key) {
			continue
		}
		e := s.entry(key, it)
		if j, ok := place[key]; ok {
			es[j] = nil
		}
		place[key] = len(es)
		es = append(es, e)
	}
	return slices.DeleteFunc(es, func(e *entry) bool { return e == nil })
}

// Watch gives the last value of each key, and then each change, until ctx ends. The last
// pair has the error that ended it. Without keys it is all keys. A key may have the wildcards
// of NATS: * for a token, and > at the end for all that follow. Deleted keys come as entries
// whose Operation is not jetstream.KeyValuePut; those that were deleted before come too.
//
// When changes come faster than they are taken, the values between are left out, and the
// last value of each key is not. All watchers of a Store share one consumer of the stream,
// which gets the changes of the whole bucket. A slow watcher does not slow the others: after
// 1,024 keys or 4 MiB that were not taken, it reads the rest from the bucket when it comes to
// that. It does so too if more than 1,023 keys match at the beginning. What is read from the
// bucket comes in the order of revisions, and with a history above 1 a key may come several
// times.
//
// When the server of the consumer fails, changes come some two seconds late, and none is lost. If it
// is the leader of the bucket too, they come up to two seconds after there is another leader.
//
// When the bucket was deleted, or was made anew, watchers end with jetstream.ErrBucketNotFound,
// within some ten seconds.
func (s *Store) Watch(ctx context.Context, keys ...string) (iter.Seq2[jetstream.KeyValueEntry, error], error) {
	if len(keys) == 0 {
		keys = []string{">"}
	}
	for _, k := range keys {
		if len(k) > maxKey || !searchPattern.MatchString(k) {
			return nil, fmt.Errorf("%w: watch %q: use letters, digits and -/_= in tokens, * for a token, > at the end for the rest, at most %d bytes", ErrInvalid, k, maxKey)
		}
	}
	return func(yield func(jetstream.KeyValueEntry, error) bool) {
		w, err := s.join(ctx, keys)
		if err != nil {
			yield(nil, because(ctx, err))
			return
		}
		defer s.watching.leave(w)
		for {
			es, err := s.next(ctx, w)
			for _, e := range es {
				if !yield(e, nil) {
					return
				}
			}
			if err != nil {
				yield(nil, because(ctx, err))
				return
			}
		}
	}, nil
}

// Wait waits until a key has a revision above after, and returns its entry, also when the
// key was deleted: then its Operation is not jetstream.KeyValuePut. It returns at once if the
// key has such a revision already.
func (s *Store) Wait(ctx context.Context, key string, after uint64) (_ jetstream.KeyValueEntry, err error) {
	defer func() { err = because(ctx, err) }()
	if err := checkKey(key); err != nil {
		return nil, err
	}
	w, err := s.join(ctx, []string{key})
	if err != nil {
		return nil, err
	}
	defer s.watching.leave(w)
	for {
		es, err := s.next(ctx, w)
		for _, e := range es {
			if e.rev > after {
				return e, nil
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// join adds a watcher, and gives it the last values.
func (s *Store) join(ctx context.Context, patterns []string) (*watcher, error) {
	reading, failed := context.WithCancel(ctx)
	defer failed()
	w := &watcher{patterns: patterns, signal: make(chan struct{}, 1), failed: failed}
	pos, err := s.attach(ctx, w)
	if err != nil {
		return nil, err
	}
	// What the consumer has given before w was there is in this answer, and what comes later
	// comes from the consumer. Revisions tell what comes twice.
	subjects := []string{s.guard()}
	for _, p := range patterns {
		subjects = append(subjects, s.key(p))
	}
	// If the bucket was made anew, no replica has the message at pos.
	slow := time.AfterFunc(lookSoon, s.watching.look)
	a, err := s.readFrom(reading, pos, subjects)
	slow.Stop()
	many := errors.Is(err, errTooMany) // they are read in pages
	if err != nil && !many {
		s.watching.leave(w)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err != nil {
			return nil, w.err
		}
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	heard, missed, overflow := w.pending, w.missed, w.missed != 0
	w.drop(math.MaxUint64)
	if many {
		w.missed = 1
		return w, nil
	}
	// What was heard meanwhile and is in the answer as well comes once.
	w.skip, w.missed = a.upTo, 0
	prefix := len(s.keys())
	for subject, i := range a.items {
		if len(subject) > prefix && subject[:prefix] == s.keys() {
			e := s.entry(subject[prefix:], i)
			w.pending = append(w.pending, e)
			w.bytes += len(e.key) + len(e.value)
		}
	}
	for _, e := range heard {
		w.keep(e)
	}
	if missed = max(missed, a.upTo+1); w.missed == 0 && overflow {
		w.missed = missed
	}
	return w, nil
}

// attach registers a watcher, and makes the consumer for the first one. It returns the
// position from which on changes come.
func (s *Store) attach(ctx context.Context, w *watcher) (uint64, error) {
	h := &s.watching
	select {
	case h.starting <- struct{}{}:
		defer func() { <-h.starting }()
	case <-ctx.Done():
		return 0, fmt.Errorf("store: watch: %w while another goroutine makes the consumer", ctx.Err())
	}
	h.mu.Lock()
	running := h.consumer != nil
	if running {
		h.add(w)
	}
	pos := h.pos
	h.mu.Unlock()
	if running {
		return pos, nil
	}
	made, err := s.identity(ctx)
	if err != nil {
		return 0, err
	}
	// The consumer starts where some replica ends. So it does not matter whether that one is
	// behind. If it does not say where it ends, the consumer gives everything.
	a, err := s.readFrom(ctx, 0, []string{s.guard()})
	if err != nil {
		return 0, err
	}
	// The consumer outlives this call, and this call's context ends the making of it.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	before := s.nc.LastError()
	kw, err := s.feed(lasting, a.upTo+1)
	if !stop() {
		if err == nil {
			_ = kw.stop() // its context has ended it
		}
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return 0, fmt.Errorf("store: watch: %w", unanswered(s.nc, before, s.api+"CONSUMER.CREATE."+s.stream()+".", err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.consumer, h.pos, h.ended = kw, a.upTo, make(chan struct{})
	h.add(w)
	looking := make(chan struct{})
	go func() {
		defer close(looking)
		if err := s.guardBucket(lasting, made); err != nil {
			h.detach(kw, err)
			_ = kw.stop() // the consumer went with its bucket
		}
	}()
	go func(ended chan struct{}) {
		defer close(ended)
		h.run(kw)
		cancel()
		<-looking
	}(h.ended)
	return h.pos, nil
}

// identity tells one bucket from another one of the same name: it is when the bucket was made.
func (s *Store) identity(ctx context.Context) (time.Time, error) {
	var p pause
	for {
		made, err := s.made(ctx)
		switch {
		case err == nil:
			return made, nil
		case !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded):
			return time.Time{}, err
		}
		if err := p.wait(ctx, err); err != nil {
			return time.Time{}, err
		}
	}
}

// guardBucket looks whether the bucket is still the one that was made at that time, until ctx
// ends. Its error says that it is not.
func (s *Store) guardBucket(ctx context.Context, made time.Time) error {
	t := time.NewTicker(s.watching.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-s.watching.kick:
		}
		switch now, err := s.made(ctx); {
		case errors.Is(err, jetstream.ErrBucketNotFound):
			return fmt.Errorf("store: watch: %w", err)
		case err == nil && !now.Equal(made):
			return fmt.Errorf("store: watch: bucket %s: %w: it was deleted, and another one was made at %s: watch again", s.bucket, jetstream.ErrBucketNotFound, now.UTC().Format(time.RFC3339))
		}
	}
}

// look asks for a look at the bucket.
func (h *hub) look() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// add is called with mu held. A watcher of which one pattern has a wildcard is in wild alone, so
// that it does not get a change twice.
func (h *hub) add(w *watcher) {
	h.count++
	if !slices.ContainsFunc(w.patterns, func(p string) bool { return !isKey(p) }) {
		for _, p := range w.patterns {
			if h.exact == nil {
				h.exact = map[string]map[*watcher]struct{}{}
			}
			if h.exact[p] == nil {
				h.exact[p] = map[*watcher]struct{}{}
			}
			h.exact[p][w] = struct{}{}
		}
		return
	}
	if h.wild == nil {
		h.wild = map[*watcher]struct{}{}
	}
	h.wild[w] = struct{}{}
}

// leave removes a watcher, and with the last one the consumer.
func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	h.count--
	for _, p := range w.patterns {
		if set := h.exact[p]; set != nil {
			if delete(set, w); len(set) == 0 {
				delete(h.exact, p)
			}
		}
	}
	delete(h.wild, w)
	h.mu.Unlock()

	h.mu.Lock()
	kw, ended := h.consumer, h.ended
	if h.count > 0 || kw == nil {
		h.mu.Unlock()
		return
	}
	h.consumer = nil
	h.mu.Unlock()
	// Without a server the request to remove the consumer has no answer for seconds. The caller
	// does not wait for that, and the server removes a consumer that nobody listens to.
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		// Its error is that of a connection that is closed, with which the consumer ends as well.
		if err := kw.stop(); err == nil || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrBadSubscription) {
			<-ended
		}
	}()
	t := time.NewTimer(removing)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
	}
}

// feed is the consumer of a hub: the ordered one of nats.go that kv.Watch uses too.
type feed struct {
	sub     *nats.Subscription
	changes chan *entry // closed when the subscription has ended
}

func (f *feed) stop() error { return f.sub.Unsubscribe() }

// feed gives all changes from a sequence on, until ctx ends.
func (s *Store) feed(ctx context.Context, from uint64) (*feed, error) {
	js, err := s.nc.JetStream(nats.APIPrefix(s.api))
	if err != nil {
		return nil, err
	}
	// The server does not send more than fits, and what does not fit waits there.
	f := &feed{changes: make(chan *entry, 256)}
	f.sub, err = js.Subscribe(s.keys()+">", func(m *nats.Msg) {
		about, err := m.Metadata()
		if err != nil || len(m.Subject) <= len(s.keys()) {
			return
		}
		f.changes <- s.entry(m.Subject[len(s.keys()):], &item{seq: about.Sequence.Stream, time: about.Timestamp, data: m.Data, hdr: m.Header})
	}, nats.BindStream(s.stream()), nats.OrderedConsumer(), nats.StartSequence(from), nats.IdleHeartbeat(s.watching.beat), nats.Context(ctx))
	if err != nil {
		return nil, err
	}
	f.sub.SetClosedHandler(func(string) { close(f.changes) })
	return f, nil
}

// run gives changes to the watchers.
func (h *hub) run(kw *feed) {
	for change := range kw.changes {
		h.mu.Lock()
		if h.consumer != kw {
			h.mu.Unlock()
			continue // another one gives changes now, perhaps of another bucket
		}
		h.pos = max(h.pos, change.rev)
		for w := range h.exact[change.key] {
			w.offer(change)
		}
		for w := range h.wild {
			if w.wants(change.key) {
				w.offer(change)
			}
		}
		h.mu.Unlock()
	}
	h.detach(kw, errDetached)
}

// detach fails the watchers of a consumer that has ended.
func (h *hub) detach(kw *feed, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.consumer != kw {
		return // the last watcher has left, or they know
	}
	h.consumer = nil
	for w := range h.wild {
		w.fail(err)
	}
	for _, set := range h.exact {
		for w := range set {
			w.fail(err)
		}
	}
}
