package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
)

const (
	// DefaultTimeout bounds a call whose context has no deadline.
	DefaultTimeout = 10 * time.Second
	// DefaultAnswerTimeout is how long a single answer of the server is waited for.
	DefaultAnswerTimeout = 2 * time.Second

	// maxConsumers is what Create allows. Without a number of its own a stream has at most
	// 1,000, and each kv.Watch of each client is one.
	maxConsumers = 100_000

	metadataKey = "qlock.store"

	// smallest is the limit of a message below which a fence, with all its headers, does not fit.
	smallest = 512
)

// Store is a key-value bucket with fences. Its methods may be called from several
// goroutines. It needs no Close: it has no goroutine and no subscription, except while
// Watch or Wait is running, and some seconds longer if the server does not answer.
type Store struct {
	names
	opt      options
	nc       *nats.Conn
	kv       jetstream.KeyValue
	wire     wire
	api      string        // the prefix of JetStream's API
	maxAge   time.Duration // of values that have no lifetime of their own; 0: no limit
	grouped  bool          // one write in flight for each fence is all that the server allows
	check    func(ctx context.Context) error
	made     func(ctx context.Context) (time.Time, error) // when the bucket was made
	watching hub

	mu     sync.Mutex // guards what follows
	claims map[claimKey]*claim
	sweep  int // at so many claims, those that have ended are removed
}

// Option changes how a Store works.
type Option func(*options) error

type options struct {
	cluster string
	client  string
	timeout time.Duration
	quiet   time.Duration
}

// WithCluster names the cluster of qlock nodes that the locks are from. Locks of the same
// name from two clusters have fences of their own. Default: qlock.DefaultCluster.
func WithCluster(name string) Option {
	return func(o *options) error {
		if !tokenPattern.MatchString(name) {
			return fmt.Errorf("%w: cluster %q: use 1 to 64 letters, digits, - and _", ErrInvalid, name)
		}
		o.cluster = name
		return nil
	}
}

// WithClient names this client in the fences that it moves, for people, and in the errors
// of those that it fences off. Default: none. Under uses the name of its Locker.
func WithClient(name string) Option {
	return func(o *options) error {
		if name != "" && !tokenPattern.MatchString(name) {
			return fmt.Errorf("%w: client %q: use 1 to 64 letters, digits, - and _", ErrInvalid, name)
		}
		o.client = name
		return nil
	}
}

// WithTimeout bounds calls whose context has no deadline. Default: DefaultTimeout.
func WithTimeout(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return fmt.Errorf("%w: WithTimeout(%v): it must be above zero", ErrInvalid, d)
		}
		o.timeout = d
		return nil
	}
}

// WithAnswerTimeout sets how long to wait for a single answer before asking what has become
// of the write. While a stream elects a leader, answers are lost. Default:
// DefaultAnswerTimeout.
func WithAnswerTimeout(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return fmt.Errorf("%w: WithAnswerTimeout(%v): it must be above zero", ErrInvalid, d)
		}
		o.quiet = d
		return nil
	}
}

func buildOptions(opts []Option) (options, error) {
	o := options{cluster: qlock.DefaultCluster, timeout: DefaultTimeout, quiet: DefaultAnswerTimeout}
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt(&o); err != nil {
			return o, err
		}
	}
	return o, nil
}

// Create makes a key-value bucket that has fences, or opens it if it was created with the same
// configuration. Its error is jetstream.ErrBucketExists if there is another bucket of that
// name: Prepare adds fences to it, and Open opens it.
//
// In the configuration, Mirror and Sources must be unset: what they copy passes by every
// condition. MaxValueSize includes the headers, as the server counts them: those of a fenced
// value take some 200 bytes and the length of the lock's name, and 130 more in a transaction.
// So it is at least 512. Three replicas are recommended where the data matters.
func Create(ctx context.Context, js jetstream.JetStream, cfg jetstream.KeyValueConfig, opts ...Option) (_ *Store, err error) {
	defer func() { err = because(ctx, err) }()
	o, err := buildOptions(opts)
	if err != nil {
		return nil, err
	}
	stream, err := streamConfig(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := askLevel(ctx, js); err != nil {
		return nil, err
	}
	// The sequences of a bucket that is made anew, or that a server with its memory has lost,
	// are above all of the one before. So no write of a former holder depends on a message that
	// is there again.
	stream.FirstSeq = uint64(time.Now().UnixMicro())
	before := js.Conn().LastError()
	made, err := js.CreateStream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		// It may be the same but for that number.
		c, wrong := config(ctx, js, cfg.Bucket)
		if wrong == nil {
			stream.FirstSeq = c.FirstSeq
			made, err = js.CreateStream(ctx, stream)
		} else if !errors.Is(wrong, jetstream.ErrBucketNotFound) {
			return nil, wrong
		}
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil, fmt.Errorf("store: create bucket %s: %w, with another configuration: Open opens it as it is, and Prepare adds fences to it", cfg.Bucket, jetstream.ErrBucketExists)
	} else if err != nil {
		return nil, fmt.Errorf("store: create bucket %s: %w%s", cfg.Bucket, unanswered(js.Conn(), before, apiOf(js)+"STREAM.CREATE."+stream.Name, err), overlap(err))
	}
	if missing := lacks(cfg.Bucket, made.CachedInfo().Config); len(missing) > 0 {
		return nil, fmt.Errorf("%w: nats-server 2.12 or later is needed: the server made the bucket %s without: %s", ErrUnsupported, cfg.Bucket, strings.Join(missing, "; "))
	}
	return open(ctx, js, cfg.Bucket, o)
}

// streamConfig is what jetstream.CreateKeyValue makes of the configuration, with fences.
func streamConfig(cfg jetstream.KeyValueConfig) (jetstream.StreamConfig, error) {
	if err := checkBucket(cfg.Bucket); err != nil {
		return jetstream.StreamConfig{}, err
	}
	if cfg.Mirror != nil || len(cfg.Sources) > 0 {
		return jetstream.StreamConfig{}, fmt.Errorf("%w: bucket %s: a mirror or a bucket with sources cannot have fences: what is copied passes by every condition", ErrUnsupported, cfg.Bucket)
	}
	if cfg.MaxValueSize > 0 && cfg.MaxValueSize < smallest {
		return jetstream.StreamConfig{}, fmt.Errorf("%w: bucket %s: a MaxValueSize of %d: the server counts the headers of a value, and fences need at least %d", ErrInvalid, cfg.Bucket, cfg.MaxValueSize, smallest)
	}
	if cfg.History > jetstream.KeyValueMaxHistory {
		return jetstream.StreamConfig{}, jetstream.ErrHistoryTooLarge
	}
	n := names{cfg.Bucket}
	orElse := func(n, none int64) int64 {
		if n == 0 {
			return none
		}
		return n
	}
	s := jetstream.StreamConfig{
		Name: n.stream(), Description: cfg.Description,
		MaxMsgsPerSubject: max(1, int64(cfg.History)), MaxBytes: orElse(cfg.MaxBytes, -1), MaxMsgs: -1,
		MaxAge: cfg.TTL, MaxMsgSize: int32(orElse(int64(cfg.MaxValueSize), -1)),
		Storage: cfg.Storage, Replicas: max(1, cfg.Replicas), Placement: cfg.Placement, RePublish: cfg.RePublish,
		DenyDelete: true, Discard: jetstream.DiscardNew, Duplicates: 2 * time.Minute,
		SubjectDeleteMarkerTTL: cfg.LimitMarkerTTL,
		Metadata:               map[string]string{},
	}
	if cfg.TTL > 0 {
		s.Duplicates = min(s.Duplicates, cfg.TTL)
	}
	if cfg.Compression {
		s.Compression = jetstream.S2Compression
	}
	for k, v := range cfg.Metadata {
		s.Metadata[k] = v
	}
	addFences(n, &s)
	s.MaxConsumers = maxConsumers // cannot be changed later
	return s, nil
}

// addFences makes what lacks reports.
func addFences(n names, s *jetstream.StreamConfig) {
	s.Subjects = append(slices.DeleteFunc(slices.Clone(s.Subjects), func(subject string) bool {
		return subject == n.keys()+">" || subject == n.own()+">"
	}), n.keys()+">", n.own()+">")
	s.AllowAtomicPublish, s.AllowDirect, s.AllowMsgTTL, s.AllowRollup = true, true, true, true
	s.Discard = jetstream.DiscardNew
	if s.Metadata == nil {
		s.Metadata = map[string]string{}
	}
	s.Metadata[metadataKey] = "1"
}

// lacks says in which ways a stream cannot have fences. Prepare can mend these.
func lacks(bucket string, c jetstream.StreamConfig) []string {
	var missing []string
	n := names{bucket}
	for _, subject := range []string{n.keys() + ">", n.own() + ">"} {
		if !slices.Contains(c.Subjects, subject) {
			missing = append(missing, "the stream has no subject "+subject)
		}
	}
	for _, f := range []struct {
		set  bool
		what string
	}{
		{c.AllowAtomicPublish, "atomic batches (allow_atomic) are off"},
		{c.AllowDirect, "direct gets (allow_direct) are off"},
		{c.AllowMsgTTL, "the lifetime of single messages (allow_msg_ttl) is off"},
		{c.AllowRollup, "rollups (allow_rollup_hdrs) are off"},
		{c.Discard == jetstream.DiscardNew, "a full bucket discards old values (discard is not new)"},
	} {
		if !f.set {
			missing = append(missing, f.what)
		}
	}
	return missing
}

// unfit says why no change of its configuration lets a stream have fences.
func unfit(bucket string, c jetstream.StreamConfig) error {
	switch {
	case c.Mirror != nil:
		return fmt.Errorf("%w: bucket %s is a mirror of %s: what is copied passes by every condition: use the origin", ErrUnsupported, bucket, c.Mirror.Name)
	case len(c.Sources) > 0:
		return fmt.Errorf("%w: bucket %s has sources: what is copied passes by every condition", ErrUnsupported, bucket)
	case c.MaxMsgSize > 0 && c.MaxMsgSize < smallest:
		return fmt.Errorf("%w: bucket %s takes messages of at most %d bytes with their headers, and fences need %d: raise its max_msg_size", ErrUnsupported, bucket, c.MaxMsgSize, smallest)
	}
	return nil
}

func checkBucket(bucket string) error {
	if !tokenPattern.MatchString(bucket) {
		return fmt.Errorf("%w: bucket %q: use 1 to 64 letters, digits, - and _", ErrInvalid, bucket)
	}
	return nil
}

// askLevel fails for servers that would store the messages of a batch one by one.
func askLevel(ctx context.Context, js jetstream.JetStream) error {
	const batches = 2 // nats-server 2.12
	before := js.Conn().LastError()
	info, err := js.AccountInfo(ctx)
	if err != nil {
		return fmt.Errorf("store: ask for the account: %w", unanswered(js.Conn(), before, apiOf(js)+"INFO", err))
	}
	if info.API.Level < batches {
		return fmt.Errorf("%w: the server's JetStream API has level %d, and %d is needed: use nats-server 2.12 or later", ErrUnsupported, info.API.Level, batches)
	}
	return nil
}

// Prepare adds fences to a bucket that is there. It needs the permission to update the
// stream. Values, watchers and clients are unaffected. Calling it again changes nothing.
//
// A program that makes its bucket at each start must stop doing so. For a prepared bucket,
// jetstream.CreateKeyValue fails with ErrBucketExists. UpdateKeyValue and
// CreateOrUpdateKeyValue fail too, unless their configuration has a LimitMarkerTTL: then they
// take the fences away, no new holder can take one, and its calls fail with
// ErrNotPrepared.
func Prepare(ctx context.Context, js jetstream.JetStream, bucket string) (err error) {
	defer func() { err = because(ctx, err) }()
	if err := checkBucket(bucket); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	if err := askLevel(ctx, js); err != nil {
		return err
	}
	c, err := config(ctx, js, bucket)
	if err != nil {
		return err
	}
	if err := unfit(bucket, c); err != nil {
		return err
	}
	if len(lacks(bucket, c)) == 0 {
		return nil
	}
	addFences(names{bucket}, &c)
	before := js.Conn().LastError()
	made, err := js.UpdateStream(ctx, c)
	if err != nil {
		return fmt.Errorf("store: prepare bucket %s: %w%s", bucket, unanswered(js.Conn(), before, apiOf(js)+"STREAM.UPDATE."+c.Name, err), overlap(err))
	}
	if missing := lacks(bucket, made.CachedInfo().Config); len(missing) > 0 {
		return fmt.Errorf("%w: nats-server 2.12 or later is needed: the server did not change: %s", ErrUnsupported, strings.Join(missing, "; "))
	}
	return nil
}

func config(ctx context.Context, js jetstream.JetStream, bucket string) (jetstream.StreamConfig, error) {
	info, err := streamInfo(ctx, js, bucket)
	if err != nil {
		return jetstream.StreamConfig{}, err
	}
	return info.Config, nil
}

func streamInfo(ctx context.Context, js jetstream.JetStream, bucket string) (*jetstream.StreamInfo, error) {
	before := js.Conn().LastError()
	s, err := js.Stream(ctx, names{bucket}.stream())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("store: bucket %s: %w: make it with \"qlock store create %s\" or store.Create", bucket, jetstream.ErrBucketNotFound, bucket)
	} else if err != nil {
		return nil, fmt.Errorf("store: look at bucket %s: %w", bucket, unanswered(js.Conn(), before, apiOf(js)+"STREAM.INFO."+names{bucket}.stream(), err))
	}
	return s.CachedInfo(), nil
}

// overlap explains the refusal of a bucket whose subjects another one has.
func overlap(err error) string {
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == codeOverlap {
		return ": a bucket B with fences has the subjects of a bucket named B-qlock too, so that there cannot be both"
	}
	return ""
}

// apiOf is the prefix of JetStream's API.
func apiOf(js jetstream.JetStream) string {
	switch given := js.Options(); {
	case given.Domain != "":
		return "$JS." + given.Domain + ".API."
	case given.APIPrefix != "":
		return strings.TrimSuffix(given.APIPrefix, ".") + "."
	}
	return jetstream.DefaultAPIPrefix
}

// Open opens a bucket that Create or Prepare has made. It only looks: it changes nothing.
//
// Errors: a *NotPreparedError that lists what is missing, ErrUnsupported for mirrors and
// buckets with sources, and jetstream.ErrBucketNotFound.
func Open(ctx context.Context, js jetstream.JetStream, bucket string, opts ...Option) (_ *Store, err error) {
	defer func() { err = because(ctx, err) }()
	o, err := buildOptions(opts)
	if err != nil {
		return nil, err
	}
	if err := checkBucket(bucket); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return open(ctx, js, bucket, o)
}

func open(ctx context.Context, js jetstream.JetStream, bucket string, o options) (*Store, error) {
	var c jetstream.StreamConfig
	check := func(ctx context.Context) (err error) {
		if c, err = config(ctx, js, bucket); err != nil {
			return err
		}
		if err := unfit(bucket, c); err != nil {
			return err
		}
		if missing := lacks(bucket, c); len(missing) > 0 {
			return &NotPreparedError{bucket, missing}
		}
		return nil
	}
	if err := check(ctx); err != nil {
		return nil, err
	}
	grouped := c.Replicas > 1
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("store: open bucket %s: %w", bucket, err)
	}
	api, prefix := apiOf(js), ""
	if api != jetstream.DefaultAPIPrefix {
		prefix = api
	}
	n := names{bucket}
	w := &natsWire{nc: js.Conn(), prefix: prefix, stream: n.stream(), get: api + "DIRECT.GET." + n.stream(), quiet: min(o.quiet, o.timeout)}
	w.limit(c)
	look := func(ctx context.Context) (jetstream.StreamConfig, error) {
		now, err := config(ctx, js, bucket)
		if err == nil {
			w.limit(now)
		}
		return now, err
	}
	w.look = func(ctx context.Context) error { _, err := look(ctx); return err }
	return &Store{
		names: n, opt: o, nc: js.Conn(), api: api, kv: kv, maxAge: c.MaxAge, grouped: grouped, claims: map[claimKey]*claim{}, sweep: 64,
		wire:     w,
		watching: hub{starting: make(chan struct{}, 1), every: lookEvery, beat: beat, kick: make(chan struct{}, 1)},
		made: func(ctx context.Context) (time.Time, error) {
			info, err := streamInfo(ctx, js, bucket)
			if err != nil {
				return time.Time{}, err
			}
			return info.Created, nil
		},
		check: func(ctx context.Context) error {
			// Not the variable above: this runs in several goroutines.
			now, err := look(ctx)
			if err != nil {
				return err
			}
			if missing := lacks(bucket, now); len(missing) > 0 {
				return &NotPreparedError{bucket, missing}
			}
			return nil
		},
	}, nil
}

// Bucket is the name of the bucket.
func (s *Store) Bucket() string { return s.bucket }

// KeyValue is the same bucket without fences. Its writes are not fenced, and its reads may
// be behind on a bucket with replicas, also under a lock.
func (s *Store) KeyValue() jetstream.KeyValue { return s.kv }

// bound gives a context without a deadline one.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return s.boundFrom(ctx, time.Now())
}

// boundFrom is bound for a call that began at start.
func (s *Store) boundFrom(ctx context.Context, start time.Time) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, start.Add(s.opt.timeout))
}

// pause waits before another try, longer each time. Its error is that of the context, with
// why the tries before failed.
type pause struct {
	tries int
	last  error
}

func (p *pause) wait(ctx context.Context, why error) error {
	p.tries++
	if why != nil {
		p.last = why
	}
	d := min(time.Millisecond<<min(p.tries-1, 5), 20*time.Millisecond)
	d = d/2 + rand.N(d)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return p.end(ctx.Err())
	}
}

func (p *pause) end(err error) error {
	if p.last == nil {
		return fmt.Errorf("store: %w", err)
	}
	return fmt.Errorf("store: %w after %d tries; the last one failed: %w", err, p.tries, p.last)
}

// behind is why an answer of a replica does not count.
func behind(upTo, floor uint64) error {
	return fmt.Errorf("the replica that answered has messages up to %d, and %d is needed: it is behind, or the bucket was restored or made anew", upTo, floor)
}

// readFrom reads the subjects until a replica answers that has the message at floor. A floor
// of 0 takes any answer.
func (s *Store) readFrom(ctx context.Context, floor uint64, subjects []string) (answer, error) {
	var p pause
	for empty := 0; ; {
		if err := ctx.Err(); err != nil {
			return answer{}, p.end(err)
		}
		a, err := s.wire.read(ctx, subjects)
		switch {
		case errors.Is(err, errBusy), errors.Is(err, errSilent):
			if err := s.stuck(ctx, p.tries, err); err != nil {
				return answer{}, err
			}
		case err != nil:
			return answer{}, fmt.Errorf("store: read: %w", err)
		case a.upTo >= floor /*plant:store-floor*/ :
			return a, nil
		default:
			err = behind(a.upTo, floor)
			if a.upTo == 0 {
				empty++
			}
			if p.tries%64 == 8 && s.replaced(ctx, floor) {
				return answer{}, fmt.Errorf("store: bucket %s: %w: %w", s.bucket, errReplaced, err)
			}
		}
		if empty == 3 {
			// A replica that has none of the subjects does not say how far it is. It has the
			// guard.
			empty++
			if _, err := s.barrier(ctx); err != nil {
				return answer{}, err
			}
			subjects = append(slices.Clone(subjects), s.guard())
		}
		if err := p.wait(ctx, err); err != nil {
			return answer{}, err
		}
	}
}

// replaced reports whether the bucket gives sequences that it gave before: then no replica is
// behind, and what was written up to floor is lost. It does not say so without an answer.
func (s *Store) replaced(ctx context.Context, floor uint64) bool {
	seq, err := s.wire.send(ctx, "", []*nats.Msg{s.guardMsg()})
	return err == nil && seq <= floor
}

// barrier stores a message without meaning. A replica that has it has all that was stored
// before.
func (s *Store) barrier(ctx context.Context) (uint64, error) {
	var p pause
	for {
		seq, err := s.wire.send(ctx, "", []*nats.Msg{s.guardMsg()})
		switch {
		case err == nil:
			return seq, nil
		case !errors.Is(err, errBusy) && !errors.Is(err, errSilent), forbidden(err):
			return 0, fmt.Errorf("store: %w", err)
		}
		if err := s.stuck(ctx, p.tries, err); err != nil {
			return 0, err
		}
		if err := p.wait(ctx, err); err != nil {
			return 0, err
		}
	}
}

func (s *Store) guardMsg() *nats.Msg {
	return &nats.Msg{Subject: s.guard(), Header: nats.Header{headerTTL: {"never"}}}
}

// stuck looks at the bucket's configuration if nobody has listened to a publish several
// times: somebody may have taken the fences away. Or somebody has lowered the limit of a
// message: the server drops what is above it from a batch, and the rest is incomplete, or has
// no answer. The wire knows the new limit then.
func (s *Store) stuck(ctx context.Context, tries int, err error) error {
	at := 8
	switch api := (*jetstream.APIError)(nil); {
	case errors.Is(err, nats.ErrNoResponders), errors.As(err, &api) && api.ErrorCode == codeBatchIncomplete:
	case errors.Is(err, errSilent):
		at = 1 // each took the time for an answer
	default:
		return nil
	}
	if tries%16 != at {
		return nil
	}
	// While there is no leader, this question has no answer either.
	ctx, cancel := context.WithTimeout(ctx, s.opt.quiet)
	defer cancel()
	if err := s.check(ctx); errors.Is(err, ErrNotPrepared) || errors.Is(err, jetstream.ErrBucketNotFound) {
		return err
	}
	return nil
}

// Fence is what the fence of a lock says.
type Fence struct {
	Token    uint64 // 0 if no holder has used the store, or an operator has set it back
	Shared   bool   // the last claim was a reader's
	Client   string // who moved it, if known
	Revision uint64
	Moved    time.Time
}

// Fence returns the fence of a lock. It is read from any replica, and may be behind.
func (s *Store) Fence(ctx context.Context, lock string) (_ Fence, err error) {
	defer func() { err = because(ctx, err) }()
	subject, err := s.fenceOf(lock)
	if err != nil {
		return Fence{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.fenceFrom(ctx, 0, subject)
}

// fenceFrom reads a fence from a replica that has the message at floor.
func (s *Store) fenceFrom(ctx context.Context, floor uint64, subject string) (Fence, error) {
	a, err := s.readFrom(ctx, floor, []string{subject})
	if err != nil {
		return Fence{}, err
	}
	f, err := parseFence(a.items[subject])
	if err != nil {
		return Fence{Revision: a.items[subject].revision()}, err
	}
	out := Fence{Token: f.token, Shared: f.shared, Client: f.client, Revision: f.rev}
	if i := a.items[subject]; i != nil {
		out.Moved = i.time
	}
	return out, nil
}

// Unfence sets the fence of a lock back, so that a holder with any token can take it. It is
// for an operator, for the case that tokens of new holders are lower than before: the nodes
// of the cluster have lost their state, and the clocks of the new ones are behind. Claims
// that have the fence are fenced off. It returns the fence as it was, with the token 0 if somebody
// else wrote it and it has none.
//
// A former holder that has a token and has not used this store with it yet may take the
// fence again. Make sure that none is left.
func (s *Store) Unfence(ctx context.Context, lock string) (_ Fence, err error) {
	defer func() { err = because(ctx, err) }()
	subject, err := s.fenceOf(lock)
	if err != nil {
		return Fence{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var p pause
	var f, was Fence
	// A replica that is behind may know nothing of the fence. The refusal of a condition that
	// cannot hold tells which message is the last.
	m := fenceMsg(subject, fence{client: s.opt.client}, noSequence)
	for {
		_, err = s.wire.send(ctx, "", []*nats.Msg{m})
		r := (*refused)(nil)
		switch {
		case err == nil:
			return f, nil
		case errors.As(err, &r):
			if r.seq == 0 {
				return was, nil
			}
			f, err = s.fenceFrom(ctx, r.seq, subject)
			broken := errors.Is(err, ErrInvalid) && f.Revision > 0 // nobody can take it as it is
			switch {
			case err != nil && !broken:
				return f, err
			case err == nil && f.Token == 0 && was.Revision > 0:
				return was, nil // the answer was lost
			case err == nil && f.Token == 0:
				return f, nil
			}
			was = f
			m = fenceMsg(subject, fence{client: s.opt.client}, f.Revision)
			continue
		case !errors.Is(err, errBusy) && !errors.Is(err, errSilent), forbidden(err):
			return f, fmt.Errorf("store: unfence %q: %w", lock, err)
		}
		if err := s.stuck(ctx, p.tries, err); err != nil {
			return f, err
		}
		if err := p.wait(ctx, err); err != nil {
			return f, err
		}
	}
}

// noSequence is one that no message has.
const noSequence = 1 << 62

func (s *Store) fenceOf(lock string) (string, error) {
	name, err := encode("the lock's name", lock)
	if err != nil {
		return "", err
	}
	return s.fences() + s.opt.cluster + "." + name, nil
}

// marshal is for values that can be encoded.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("store: " + err.Error())
	}
	return b
}
