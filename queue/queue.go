package queue

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrInvalid: a name, key, id or option that cannot be one.
	ErrInvalid = errors.New("queue: invalid argument")
	// ErrNoSchedules: the server has no message schedules (before nats-server 2.12), which
	// delayed items need.
	ErrNoSchedules = errors.New("queue: this server cannot delay items: it has no message schedules")
	// ErrDeleted: the stream of items or its consumer was deleted. Open creates both again.
	ErrDeleted = errors.New("queue: the stream or its consumer was deleted")
	// ErrNotFound: there is no such dead letter.
	ErrNotFound = errors.New("queue: no such dead letter")
	// ErrStopped is the cause with which a handler's context ends when its worker stops and
	// the drain time is over.
	ErrStopped = errors.New("queue: the worker stops")
	// ErrStalled is the cause with which a handler's context ends that reported no progress
	// for as long as WithStall says.
	ErrStalled = errors.New("queue: the handler reports no progress")
)

// MaxKey is the limit of a key, in bytes.
const MaxKey = 256

// Config is a queue. All processes that open a queue should give the same. Only Name is
// needed.
type Config struct {
	Name string // 1 to 64 letters, digits, _ and -

	Replicas int                   // of the streams; default 1
	Storage  jetstream.StorageType // default jetstream.FileStorage

	// Lease is how long an item stays with a worker that is silent. Give it that of the
	// workers' Lockers. Default 10 s.
	Lease time.Duration

	// MaxAttempts is how often an item may be tried before it becomes a dead letter.
	// Default 10.
	MaxAttempts int
	// Backoff has the pauses after the first, second … failed attempt; the last holds for
	// all that follow. Default 1 s, 5 s, 30 s, 2 min, 10 min.
	Backoff []time.Duration

	Duplicates time.Duration // how long an id is remembered; default 2 min
	MaxPending int           // items that are with workers, of all workers; default 1000
	KeepDead   time.Duration // how long dead letters are kept, at least 100 ms; default: for ever
}

func (c *Config) check() error {
	switch {
	case !isWord(c.Name) || len(c.Name) > 64:
		return fmt.Errorf("%w: the name %q: use 1 to 64 letters, digits, _ and -", ErrInvalid, c.Name)
	case c.Replicas < 0 || c.Lease < 0 || c.MaxAttempts < 0 || c.Duplicates < 0 || c.MaxPending < 0 || c.KeepDead < 0:
		return fmt.Errorf("%w: the configuration of queue %s has a negative number", ErrInvalid, c.Name)
	case c.Lease > 0 && c.Lease < 100*time.Millisecond:
		return fmt.Errorf("%w: a lease of %v, the minimum is 100ms", ErrInvalid, c.Lease)
	case c.Duplicates > 0 && c.Duplicates < 100*time.Millisecond:
		return fmt.Errorf("%w: ids are to be remembered for %v, the minimum is 100ms", ErrInvalid, c.Duplicates)
	case c.KeepDead > 0 && c.KeepDead < 100*time.Millisecond:
		return fmt.Errorf("%w: dead letters are to be kept for %v, the minimum is 100ms", ErrInvalid, c.KeepDead)
	}
	for _, d := range c.Backoff {
		if d < 0 {
			return fmt.Errorf("%w: a pause of %v between attempts", ErrInvalid, d)
		}
	}
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.Lease = cmp.Or(c.Lease, 10*time.Second)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 10)
	c.Duplicates = cmp.Or(c.Duplicates, 2*time.Minute)
	c.MaxPending = cmp.Or(c.MaxPending, 1000)
	if len(c.Backoff) == 0 {
		c.Backoff = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute}
	}
	return nil
}

// Queue is an open queue. There is nothing to close. Its methods may be called from several
// goroutines.
type Queue struct {
	cfg       Config
	js        jetstream.JetStream
	items     jetstream.Stream
	dead      jetstream.Stream
	tries     jetstream.Stream
	consumer  jetstream.Consumer
	schedules bool
}

// Open opens a queue. It creates the streams and the consumer, or updates them to the
// configuration. ctx bounds this; without a deadline it takes 5 s for each at most.
func Open(ctx context.Context, js jetstream.JetStream, cfg Config) (*Queue, error) {
	if js == nil {
		return nil, fmt.Errorf("%w: Open: the JetStream is nil", ErrInvalid)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	q := &Queue{cfg: cfg, js: js}
	fail := func(what string, err error) (*Queue, error) {
		return nil, fmt.Errorf("queue: open %s: %s: %w", cfg.Name, what, because(ctx, err))
	}
	items := jetstream.StreamConfig{
		Name: itemsOf(cfg.Name), Description: "Items of a qlock queue", Retention: jetstream.WorkQueuePolicy,
		Subjects: []string{q.subject(itemSubject, "*"), q.subject(atSubject, "*")},
		Replicas: cfg.Replicas, Storage: cfg.Storage, Duplicates: cfg.Duplicates, AllowMsgSchedules: true,
	}
	var err error
	q.items, err = js.CreateOrUpdateStream(ctx, items)
	if err != nil && ctx.Err() == nil {
		// It may be that this server knows no schedules.
		items.AllowMsgSchedules = false
		items.Discard = jetstream.DiscardNew // a server allows only one of both
		var again error
		if q.items, again = js.CreateOrUpdateStream(ctx, items); again == nil {
			err = nil
		}
	}
	if err != nil {
		return fail("the stream of items", err)
	}
	q.schedules = q.items.CachedInfo().Config.AllowMsgSchedules
	if q.dead, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: deadOf(cfg.Name), Description: "Dead letters of a qlock queue", Subjects: []string{q.subject(deadSubject, "*")},
		Replicas: cfg.Replicas, Storage: cfg.Storage, MaxAge: cfg.KeepDead, Duplicates: withinAge(cfg.Duplicates, cfg.KeepDead),
		Discard: jetstream.DiscardNew, // with a limit of its own, the item stays in the queue
	}); err != nil {
		return fail("the stream of dead letters", err)
	}
	if q.tries, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: triesOf(cfg.Name), Description: "Attempts of items of a qlock queue", Subjects: []string{q.subject(trySubject, "*")},
		Replicas: cfg.Replicas, Storage: cfg.Storage, MaxMsgsPerSubject: 1, MaxAge: keepTries,
	}); err != nil {
		return fail("the stream of attempts", err)
	}
	if q.consumer, err = q.items.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: consumerName, Description: "Workers of a qlock queue", FilterSubject: q.subject(itemSubject, "*"),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: cfg.Lease, MaxDeliver: -1, MaxAckPending: cfg.MaxPending,
	}); err != nil {
		return fail("the consumer", err)
	}
	return q, nil
}

func withinAge(d, age time.Duration) time.Duration {
	if age > 0 {
		return min(d, age)
	}
	return d
}

const (
	consumerName = "workers"
	keepTries    = 30 * 24 * time.Hour

	prefix      = "qlock.queue."
	itemSubject = "item"
	atSubject   = "at"
	deadSubject = "dead"
	trySubject  = "try"
)

// The streams of a queue. What tells them apart comes before the name of the queue: behind it,
// the dead letters of a queue "a" would be the items of a queue "a-dead".
func itemsOf(queue string) string { return "qlock-queue-" + queue }
func deadOf(queue string) string  { return "qlock-dead-" + queue }
func triesOf(queue string) string { return "qlock-tries-" + queue }

func (q *Queue) subject(kind, rest string) string {
	return prefix + q.cfg.Name + "." + kind + "." + rest
}

func (q *Queue) lock(key string) string { return prefix + q.cfg.Name + "." + key }

// ParseName splits the name of the lock of a key, for those who show locks. It reports
// false for other names.
func ParseName(lock string) (queue, key string, ok bool) {
	rest, ok := strings.CutPrefix(lock, prefix)
	if !ok {
		return "", "", false
	}
	queue, key, ok = strings.Cut(rest, ".")
	return queue, key, ok && isWord(queue) && key != ""
}

// because adds to the error of a call why its context ended.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || !errors.Is(err, ctx.Err()) || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

func isWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return s != ""
}

// A key is one token of a subject: itself if it is a word, and else "=" with its base64.
// Two keys never share a token.
func tokenOf(key string) string {
	if isWord(key) {
		return key
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(key))
}

func keyOf(token string) (string, error) {
	encoded, ok := strings.CutPrefix(token, "=")
	if !ok {
		return token, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(encoded)
	return string(b), err
}

// isToken reports whether a token is that of its key, and the key is one. An item under another
// token could not be found as the first of its key.
func isToken(token string) bool {
	key, err := keyOf(token)
	return err == nil && key != "" && len(key) <= MaxKey && tokenOf(key) == token
}

// Headers of items and dead letters.
const (
	HeaderID       = "Qlock-Id"       // what WithID gave
	HeaderReason   = "Qlock-Reason"   // why it is a dead letter
	HeaderAttempts = "Qlock-Attempts" // how often it was tried
	HeaderSeq      = "Qlock-Seq"      // its sequence in the stream of items
)

// EnqueueOption changes how an item is stored.
type EnqueueOption func(*enqueue) error

type enqueue struct {
	id     string
	at     time.Time
	header nats.Header
}

// maxID is the length of the longest id. Revive has longer ones.
const maxID = 256

// WithID makes items with the same id one: while the stream remembers the id
// (Config.Duplicates), Enqueue stores nothing.
func WithID(id string) EnqueueOption {
	return func(e *enqueue) error {
		if id == "" || len(id) > maxID || strings.ContainsAny(id, "\r\n") {
			return fmt.Errorf("%w: an id has 1 to 256 bytes, and no line breaks", ErrInvalid)
		}
		e.id = id
		return nil
	}
}

// WithDelay makes the item wait before it is put at the end of the items of its key. It
// needs a server with message schedules; see ErrNoSchedules. It comes up to a second late.
func WithDelay(d time.Duration) EnqueueOption {
	return func(e *enqueue) error { return WithTime(time.Now().Add(d))(e) }
}

// WithTime is like WithDelay, until a time by the server's clock.
func WithTime(t time.Time) EnqueueOption {
	return func(e *enqueue) error {
		if year := t.UTC().Year(); year > 9999 {
			return fmt.Errorf("%w: an item cannot wait until the year %d, the last is 9999", ErrInvalid, year)
		}
		e.at = t
		return nil
	}
}

// WithHeader gives the item headers. Names have letters, digits and !#$%&'*+-.^_`|~ as in HTTP.
// Those that begin with Nats- or Qlock- are reserved.
func WithHeader(h nats.Header) EnqueueOption {
	return func(e *enqueue) error {
		for name := range h {
			if !isHeader(name) {
				// With a line break in it, it would be another header.
				return fmt.Errorf("%w: %q cannot be the name of a header", ErrInvalid, name)
			}
			if lower := strings.ToLower(name); strings.HasPrefix(lower, "nats-") || strings.HasPrefix(lower, "qlock-") {
				return fmt.Errorf("%w: the header %q is reserved", ErrInvalid, name)
			}
		}
		e.header = h
		return nil
	}
}

func isHeader(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

// Receipt is what the stream said of a new item.
type Receipt struct {
	Seq       uint64 // in the stream of items; of a delayed item, of its schedule
	Duplicate bool   // it was there already
}

// Enqueue stores an item. When it returns nil, the item will be done, or become a dead
// letter, though all processes die. When it fails with the context's error or that of a
// connection, or as the stream has no leader, the item may be stored: try again with the same
// id. It fails with ErrDeleted if the stream was deleted, and with a *jetstream.APIError if a
// limit of the stream or of the account is reached.
func (q *Queue) Enqueue(ctx context.Context, key string, data []byte, opts ...EnqueueOption) (Receipt, error) {
	if key == "" || len(key) > MaxKey {
		return Receipt{}, fmt.Errorf("%w: a key has 1 to %d bytes, got %d", ErrInvalid, MaxKey, len(key))
	}
	var e enqueue
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o(&e); err != nil {
			return Receipt{}, err
		}
	}
	m := nats.NewMsg(q.subject(itemSubject, tokenOf(key)))
	m.Data = data
	for name, values := range e.header {
		m.Header[name] = values
	}
	if e.id != "" {
		m.Header.Set(HeaderID, e.id)
		m.Header.Set(jetstream.MsgIDHeader, e.id)
	}
	if time.Until(e.at) > 0 {
		if !q.schedules {
			return Receipt{}, ErrNoSchedules
		}
		// A subject has one schedule.
		m.Header.Set("Nats-Schedule", "@at "+e.at.UTC().Format(time.RFC3339Nano))
		m.Header.Set("Nats-Schedule-Target", m.Subject)
		m.Subject = q.subject(atSubject, uuid.NewString())
	}
	ack, err := q.js.PublishMsg(ctx, m)
	if errors.Is(err, jetstream.ErrNoStreamResponse) { // it is gone, or has no leader at this moment
		if gone := q.deleted(ctx); gone != nil {
			return Receipt{}, fmt.Errorf("%w: %w", gone, err)
		}
	}
	if err != nil {
		return Receipt{}, fmt.Errorf("queue: enqueue in %s: %w", q.cfg.Name, because(ctx, err))
	}
	return Receipt{ack.Sequence, ack.Duplicate}, nil
}

// Stats are numbers of a queue.
type Stats struct {
	Items uint64 // stored: waiting, delayed, and with workers
	Dead  uint64 // dead letters
}

// Stats asks for the numbers of the queue.
func (q *Queue) Stats(ctx context.Context) (Stats, error) {
	items, err := q.items.Info(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("queue: numbers of %s: %w", q.cfg.Name, because(ctx, err))
	}
	dead, err := q.dead.Info(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("queue: numbers of %s: %w", q.cfg.Name, because(ctx, err))
	}
	return Stats{items.State.Msgs, dead.State.Msgs}, nil
}

// deleted returns an error if the servers say that the stream or its consumer does not
// exist.
func (q *Queue) deleted(ctx context.Context) error {
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	name := itemsOf(q.cfg.Name)
	switch _, err := q.js.Consumer(ask, name, consumerName); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%w: there is no stream %s any more, and its items are lost: open the queue again, and enqueue them again", ErrDeleted, name)
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return fmt.Errorf("%w: stream %s has no consumer %s any more, and keeps its items: open the queue again to go on", ErrDeleted, name, consumerName)
	}
	return nil
}

// attempts is how many attempts were made of an item that was delivered before. If nothing is
// recorded, that is one: the first is not, so that an item that is done at once costs no record.
func (q *Queue) attempts(ctx context.Context, it *Item) (int, error) {
	m, err := q.tries.GetLastMsgForSubject(ctx, q.subject(trySubject, strconv.FormatUint(it.Seq, 10)))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 1, nil
	}
	if err != nil {
		return 0, because(ctx, err)
	}
	if m.Time.Before(it.Enqueued) {
		return 1, nil // of an item of an earlier stream, which was deleted
	}
	n, err := strconv.Atoi(string(m.Data))
	if err != nil || n < 0 || n > q.cfg.MaxAttempts {
		return 1, nil // not of this package, or of an earlier configuration
	}
	return n, nil
}

func (q *Queue) record(ctx context.Context, seq uint64, attempts int) error {
	_, err := q.js.Publish(ctx, q.subject(trySubject, strconv.FormatUint(seq, 10)), strconv.AppendInt(nil, int64(attempts), 10))
	return because(ctx, err)
}

// isFull reports whether JetStream has no room for a message.
func isFull(err error) bool {
	var refused *jetstream.APIError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.ErrorCode {
	case 10002, // the account's resources
		10023, // the server's resources
		10028, // memory
		10047, // storage
		10077: // the stream's limit, or its disk
		return true
	}
	return false
}

// untried is the record of an item that has been delivered, and has not been tried. It does not
// replace a record that is there.
func (q *Queue) untried(seq uint64) *nats.Msg {
	m := nats.NewMsg(q.subject(trySubject, strconv.FormatUint(seq, 10)))
	m.Data = []byte("0")
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	return m
}

func (q *Queue) forget(ctx context.Context, seq uint64) error {
	return because(ctx, q.tries.Purge(ctx, jetstream.WithPurgeSubject(q.subject(trySubject, strconv.FormatUint(seq, 10)))))
}

// first is the sequence of the first item of a key that is not done; 0 if there is none.
func (q *Queue) first(ctx context.Context, key string) (uint64, error) {
	m, err := q.items.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(q.subject(itemSubject, tokenOf(key))))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, because(ctx, err)
	}
	return m.Sequence, nil
}
