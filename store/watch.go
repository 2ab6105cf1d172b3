package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
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

	mu       sync.Mutex // guards what follows
	consumer jetstream.KeyWatcher
	ended    chan struct{} // closed when the goroutine of the consumer has ended
	pos      uint64        // every change up to here was given to those who watch
	exact    map[string]map[*watcher]struct{}
	wild     map[*watcher]struct{}
	count    int
}

// watcher is one call of Watch or Wait. It keeps the last value of each key that has not been
// taken: a slow one misses values, not keys.
type watcher struct {
	patterns []string
	signal   chan struct{}
	failed   context.CancelFunc // ends the first read

	mu      sync.Mutex // guards what follows
	pending []*entry
	seen    map[string]uint64 // the last revision, by key
	err     error
}

func (w *watcher) offer(e *entry) {
	w.mu.Lock()
	if e.rev > w.seen[e.key] {
		w.seen[e.key] = e.rev
		replaced := false
		for i, old := range w.pending {
			if old.key == e.key {
				w.pending[i], replaced = e, true
				break
			}
		}
		if !replaced {
			w.pending = append(w.pending, e)
		}
	}
	w.mu.Unlock()
	w.wake()
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
func (w *watcher) next(ctx context.Context) ([]*entry, error) {
	for {
		w.mu.Lock()
		es, err := w.pending, w.err
		w.pending = nil
		w.mu.Unlock()
		if len(es) > 0 || err != nil {
			return es, err
		}
		select {
		case <-w.signal:
		case <-ctx.Done():
			return nil, fmt.Errorf("store: watch: %w", ctx.Err())
		}
	}
}

// Watch gives the last value of each key, and then each change, until ctx ends. The last
// pair has the error that ended it. Without keys it is all keys. A key may have the wildcards
// of NATS: * for a token, and > at the end for all that follow. Deleted keys come as entries
// whose Operation is not jetstream.KeyValuePut; those that were deleted before come too.
//
// When changes come faster than they are taken, the values between are left out, and the
// last value of each key is not. All watchers of a Store share one consumer of the stream,
// which gets the changes of the whole bucket. Watch ends with an error if more than 1,023 keys
// match at the beginning, as many as the server gives in an answer.
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
			yield(nil, err)
			return
		}
		defer s.watching.leave(w)
		for {
			es, err := w.next(ctx)
			for _, e := range es {
				if !yield(e, nil) {
					return
				}
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}, nil
}

// Wait waits until a key has a revision above after, and returns its entry, also when the
// key was deleted: then its Operation is not jetstream.KeyValuePut. It returns at once if the
// key has such a revision already.
func (s *Store) Wait(ctx context.Context, key string, after uint64) (jetstream.KeyValueEntry, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	w, err := s.join(ctx, []string{key})
	if err != nil {
		return nil, err
	}
	defer s.watching.leave(w)
	for {
		es, err := w.next(ctx)
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
	w := &watcher{patterns: patterns, signal: make(chan struct{}, 1), failed: failed, seen: make(map[string]uint64, 1)}
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
	if err != nil {
		s.watching.leave(w)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err != nil {
			return nil, w.err
		}
		return nil, err
	}
	prefix := len(s.keys())
	for subject, i := range a.items {
		if len(subject) > prefix && subject[:prefix] == s.keys() {
			w.offer(s.entry(subject[prefix:], i))
		}
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
	kw, err := s.kv.Watch(lasting, ">", jetstream.ResumeFromRevision(a.upTo+1))
	if !stop() && err == nil {
		_ = kw.Stop() // its context has ended it
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return 0, fmt.Errorf("store: watch: %w", err)
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
			_ = kw.Stop() // the consumer went with its bucket
		}
	}()
	go func(ended chan struct{}) {
		defer close(ended)
		h.run(kw, s.bucket)
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

// add is called with mu held.
func (h *hub) add(w *watcher) {
	h.count++
	for _, p := range w.patterns {
		if isKey(p) {
			if h.exact == nil {
				h.exact = map[string]map[*watcher]struct{}{}
			}
			if h.exact[p] == nil {
				h.exact[p] = map[*watcher]struct{}{}
			}
			h.exact[p][w] = struct{}{}
		} else {
			if h.wild == nil {
				h.wild = map[*watcher]struct{}{}
			}
			h.wild[w] = struct{}{}
		}
	}
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
		if err := kw.Stop(); err == nil || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrBadSubscription) {
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

// run gives changes to the watchers.
func (h *hub) run(kw jetstream.KeyWatcher, bucket string) {
	for e := range kw.Updates() {
		if e == nil {
			continue // the end of what was there
		}
		change := &entry{bucket: bucket, key: e.Key(), value: e.Value(), rev: e.Revision(), created: e.Created(), op: e.Operation()}
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
			for _, p := range w.patterns {
				if matches(p, change.key) {
					w.offer(change)
					break
				}
			}
		}
		h.mu.Unlock()
	}
	h.detach(kw, errDetached)
}

// detach fails the watchers of a consumer that has ended.
func (h *hub) detach(kw jetstream.KeyWatcher, err error) {
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
