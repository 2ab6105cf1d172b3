package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// Config is what New needs. Only Conn has no default.
type Config struct {
	// Conn is the connection that the gateway works on. It stays the caller's. Whoever may
	// send requests to the gateway acts as this connection's NATS user: do not serve it
	// beyond loopback unless everybody who can reach it may do what that user may.
	Conn *nats.Conn

	Cluster string // of nodes; default: qlock.DefaultCluster
	Client  string // the client's name in subjects, events and permissions; default: as for qlock.WithName

	// Hosts are the names under which the gateway may be called, beside localhost and
	// loopback addresses: a page whose name is made to point to a loopback address cannot
	// call it (DNS rebinding). "*" allows all names.
	Hosts []string

	// Connect, if it is set, makes the connection for the credentials of requests over HTTP:
	// nats.Connect with Credentials.Options and what else is needed. Requests without credentials
	// are refused then, and those with credentials are served as the NATS user that has them, on
	// a connection that the gateway closes when nobody needs it. NATS permissions decide what a
	// request may do. The error of refused credentials must be nats.ErrAuthorization.
	Connect func(ctx context.Context, c Credentials) (*nats.Conn, error)

	// MapCertificate, if it is set, finds the credentials of a client certificate, for requests
	// over HTTPS that bring no others. The server must have verified it, as with
	// tls.VerifyClientCertIfGiven. Its error is told to the caller. The certificate itself goes
	// nowhere. It needs Connect.
	MapCertificate func(*x509.Certificate) (Credentials, error)

	// Origins are the origins of pages, such as https://locks.example, that may call the gateway
	// from a browser. Without Connect, such a page may do whatever the gateway may.
	Origins []string

	// Callers makes ServeNATS expect the name of the caller in the subject, where NATS
	// permissions guard it: lock.<cluster>.api.<verb>.<caller>[.<resource>].
	Callers bool

	// Secret is a key that all gateways of the cluster have, of 16 bytes or more. With Connect it
	// lets them forward requests to each other: they name the user of a request by a digest that is made
	// with it. Default: a random key, and such requests are not forwarded.
	Secret []byte

	// Alone makes the gateway serve only the leases that it made itself. Otherwise gateways of
	// one cluster forward requests to each other, on the subjects lock.<cluster>.gw.>, which only
	// gateways may use.
	Alone bool

	// Check, if it is set, finds what is wrong with a cluster. Lists of nodes have its findings,
	// and the dashboard shows them.
	Check func(*qlock.Members) []Finding

	// Drain is how long Shutdown waits for held leases before it ends them. Default: 30 s.
	Drain time.Duration

	Limits Limits
	Logger *slog.Logger // default: silent
}

// Limits bound what callers may use. Zero fields have defaults.
type Limits struct {
	Leases          int           // of one principal: 10,000
	WaitingPerLock  int           // leases that wait for one lock: 1,000
	PollsPerLease   int           // requests that wait for one lease: 16
	Principals      int           // NATS users that use the gateway at a time: 1,000
	Streams         int           // event streams and waiting lists of one principal: 100
	AddressStreams  int           // as well, of one address: 50
	Body            int64         // bytes: 64 KiB
	State           int64         // bytes of a Terraform state: 32 MiB
	BodyTime        time.Duration // for a request's body to arrive: 5 s
	WriteTime       time.Duration // for a caller to take the next 64 KiB of an answer: 10 s
	Block           time.Duration // that a request may wait: 55 s, below what proxies allow
	RequestsPerSec  float64       // of one address, with bursts of two seconds' worth; 0: unlimited
	Tombstones      int           // leases that are over and still known: 100,000
	TombstonesFor   time.Duration // for so long: 10 min
	UndecidedTryFor time.Duration // that a try may take when nodes do not answer: 5 s

	Value       int64 // bytes of a value in the store: 1 MiB, and what the NATS server takes
	Transaction int64 // bytes of the body of a transaction: 1 MiB
	Operations  int   // of a transaction: 500
	KeyWaits    int   // requests of one principal that wait for keys: 1,000
}

func (l Limits) filled() Limits {
	return Limits{
		Leases: cmp.Or(l.Leases, 10_000), WaitingPerLock: cmp.Or(l.WaitingPerLock, 1_000), PollsPerLease: cmp.Or(l.PollsPerLease, 16),
		Principals: cmp.Or(l.Principals, 1_000), Streams: cmp.Or(l.Streams, 100), AddressStreams: cmp.Or(l.AddressStreams, 50), Body: cmp.Or(l.Body, 64<<10), State: cmp.Or(l.State, 32<<20), BodyTime: cmp.Or(l.BodyTime, 5*time.Second), WriteTime: cmp.Or(l.WriteTime, 10*time.Second),
		Block: cmp.Or(l.Block, 55*time.Second), RequestsPerSec: l.RequestsPerSec, Tombstones: cmp.Or(l.Tombstones, 100_000),
		TombstonesFor: cmp.Or(l.TombstonesFor, 10*time.Minute), UndecidedTryFor: cmp.Or(l.UndecidedTryFor, 5*time.Second),
		Value: cmp.Or(l.Value, 1<<20), Transaction: cmp.Or(l.Transaction, 1<<20), Operations: cmp.Or(l.Operations, 500), KeyWaits: cmp.Or(l.KeyWaits, 1_000),
	}
}

const (
	defaultLease = 10 * time.Second
	minLease     = 100 * time.Millisecond
	anyLease     = 24 * time.Hour // no cluster allows a longer one
	maxWait      = 24 * time.Hour
	maxAge       = time.Hour
	ageSkew      = 5 * time.Second // by which the clocks of two gateways may differ
	grace        = 100 * time.Millisecond
)

// Gateway is an http.Handler. All its methods may be called from several goroutines.
type Gateway struct {
	cfg     Config
	limits  Limits
	log     *slog.Logger
	secret  []byte
	name    string // of this process among the gateways; begins the ids that it makes
	handler http.Handler
	now     func() time.Time // tests let it pause

	peers     *peers
	counters  counters
	requests  atomic.Uint64   // that were named
	draining  chan struct{}   // closed at the start of Shutdown
	leaving   context.Context // ends when no lease is left: nothing waits at other gateways from then on
	leave     context.CancelFunc
	serving   sync.WaitGroup // requests of the NATS door
	natsSlots chan struct{}
	looks     chan struct{} // views that are being looked at

	storeSlots chan struct{} // transactions that are being done

	mu       sync.Mutex // guards what follows; a lease's is locked before it
	quiet    *sync.Cond // tells that unfinished is 0
	stopping time.Time  // when held leases are ended; zero: it is not stopping
	only     *principal
	logins   map[string]*login     // by the name of the principal
	callers  map[string]*principal // of the NATS door
	refusals buckets               // of logins
	streams  map[string]int        // by address
	states   map[string]int        // requests about Terraform states, as well
	rings    map[ringKey]*ring
	watchers map[watchKey]*watcher
	leases   map[leaseKey]*lease
	byName   map[nameKey]map[*lease]struct{}
	graves   map[leaseKey]tombstone
	buried   []burial // oldest first
	burials  uint64
	buckets  buckets

	// unfinished counts what Shutdown must wait for: leases that are over though somebody may
	// believe in them yet, and goroutines that wait for a grant. A lease enters it in the
	// moment in which it leaves leases, or Shutdown could miss it between the two.
	unfinished int
	services   []func() error // that end the NATS door
	closed     bool
}

type nameKey struct {
	principal string
	encoded   string
}

type tombstone struct {
	why   *Problem
	until time.Time
	n     uint64 // of its burial
}

// burial is an entry of the order in which tombstones are forgotten. An id that was asked
// for again may have several: the last one counts.
type burial struct {
	key leaseKey
	n   uint64
}

// principal is who calls. Leases of one are unknown to all others.
type principal struct {
	*lockers
	g    *Gateway
	name string // the same at all gateways; empty: the one principal of requests without credentials

	prefix string // of notes: who it is, if it acts as the gateway's own NATS user

	streams int // guarded by g.mu
	leases  int // as well
	kept    int // as well: leases that are over, and are given back later
	use     int // as well: requests of a caller of the NATS door

	keyWaits int // as well
}

// New makes a gateway on a connection. It asks the nodes who they are, as qlock.New does,
// and fails as that does.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	if cfg.Conn == nil {
		return nil, errors.New("gateway: New: the connection is nil")
	}
	if cfg.MapCertificate != nil && cfg.Connect == nil {
		return nil, errors.New("gateway: New: MapCertificate needs Connect")
	}
	for _, origin := range cfg.Origins {
		if err := checkOrigin(origin); err != nil {
			return nil, err
		}
	}
	cfg.Cluster = cmp.Or(cfg.Cluster, qlock.DefaultCluster)
	cfg.Drain = cmp.Or(cfg.Drain, 30*time.Second)
	if len(cfg.Secret) == 0 {
		cfg.Secret = make([]byte, 32)
		_, _ = rand.Read(cfg.Secret) // it never fails
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		cfg: cfg, secret: cfg.Secret, limits: cfg.Limits.filled(), log: cfg.Logger, name: newName(), now: time.Now,
		draining: make(chan struct{}), looks: make(chan struct{}, looksAtOnce), storeSlots: make(chan struct{}, storesAtOnce), natsSlots: make(chan struct{}, natsRequests), states: map[string]int{}, streams: map[string]int{}, logins: map[string]*login{}, rings: map[ringKey]*ring{}, watchers: map[watchKey]*watcher{}, callers: map[string]*principal{}, leases: map[leaseKey]*lease{}, byName: map[nameKey]map[*lease]struct{}{}, graves: map[leaseKey]tombstone{},
	}
	g.leaving, g.leave = context.WithCancel(context.Background())
	g.counters.ended, g.counters.requests = map[string]uint64{}, map[Request]uint64{}
	g.counters.storeOps = map[StoreOperation]uint64{}
	g.peers = newPeers(g)
	g.only = &principal{g: g, lockers: &lockers{g: g, nc: cfg.Conn, client: cfg.Client}}
	g.quiet = sync.NewCond(&g.mu)
	if _, err := g.only.locker(ctx, 0); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.handler = g.routes()
	if !cfg.Alone {
		if err := g.peers.start(); err != nil {
			return nil, errors.Join(fmt.Errorf("gateway: New: %w", err), g.only.close())
		}
	}
	return g, nil
}

// newName names this process among the gateways. Ids of leases begin with it.
func newName() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // it never fails
	return "g" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:7]
}

func (g *Gateway) newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return g.name + "." + base64.RawURLEncoding.EncodeToString(b[:])
}

// Name is how this gateway names itself in answers and in the ids that it makes.
func (g *Gateway) Name() string { return g.name }

// Cluster is the name of the cluster of nodes.
func (g *Gateway) Cluster() string { return g.cfg.Cluster }

// ServeHTTP serves the API.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.handler.ServeHTTP(w, r) }

// admit makes a lease, or finds the one of this id. It reports whether it made one.
func (g *Gateway) admit(l *lease, locker *qlock.Locker) (*lease, bool, *Problem) {
	l.mu.Lock() // nobody else has it; those who find it below wait until it has started
	defer l.mu.Unlock()
	known, p := g.enter(l)
	if p != nil || known != l {
		return known, false, p
	}
	l.start(locker)
	return l, true, nil
}

// enter puts a lease among the others, unless there is one of its id already.
func (g *Gateway) enter(l *lease) (*lease, *Problem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bury(time.Now())
	if known := g.leases[l.key]; known != nil {
		return known, nil
	}
	if t, ok := g.graves[l.key]; ok && t.why.isFinal() {
		why := *t.why
		return nil, &why
	}
	if !g.stopping.IsZero() {
		return nil, problem("draining", "the gateway is stopping: ask another one, with the same id")
	}
	p, name := l.who, nameKey{l.key.principal, l.encoded}
	if p.leases >= g.limits.Leases {
		return nil, problem("too-many", "%d leases exist, which is the limit: release some, or wait until they expire", p.leases)
	}
	if n := len(g.byName[name]); n >= g.limits.WaitingPerLock {
		return nil, problem("too-many", "%d leases of this lock exist, which is the limit", n)
	}
	delete(g.graves, l.key)
	p.leases++
	g.leases[l.key] = l
	if g.byName[name] == nil {
		g.byName[name] = map[*lease]struct{}{}
	}
	g.byName[name][l] = struct{}{}
	return l, nil
}

// begin and finish are for what Shutdown must wait for.
func (g *Gateway) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unfinished++
}

func (g *Gateway) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unfinished--; g.unfinished == 0 {
		g.quiet.Broadcast()
	}
}

// givenBack follows ended for a lease that was kept.
func (g *Gateway) givenBack(l *lease) {
	g.mu.Lock()
	l.who.kept--
	g.mu.Unlock()
	g.finish()
}

// ended takes note of a lease that is over. givenBack follows if keeps is
// set. l.mu is held.
func (g *Gateway) ended(l *lease, keeps bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if keeps {
		g.unfinished++
		l.who.kept++
	}
	g.counters.end(l.why)
	delete(g.leases, l.key)
	l.who.leases--
	name := nameKey{l.key.principal, l.encoded}
	if delete(g.byName[name], l); len(g.byName[name]) == 0 {
		delete(g.byName, name)
	}
	if l.why.Status != http.StatusGone && l.isOurID && !l.told || l.why.owner != "" {
		return // nobody can ask for it here
	}
	now := time.Now()
	g.burials++
	g.graves[l.key] = tombstone{l.why, now.Add(g.limits.TombstonesFor), g.burials}
	g.buried = append(g.buried, burial{l.key, g.burials})
	g.bury(now)
}

// bury forgets leases that have been over for long. Call with g.mu held.
func (g *Gateway) bury(now time.Time) {
	for len(g.buried) > 0 {
		b := g.buried[0]
		t, ok := g.graves[b.key]
		isLast := ok && t.n == b.n
		if isLast && now.Before(t.until) && len(g.buried) <= g.limits.Tombstones {
			return
		}
		if isLast {
			delete(g.graves, b.key)
		}
		g.buried[0] = burial{}
		if g.buried = g.buried[1:]; len(g.buried) == 0 {
			g.buried = nil
		}
	}
}

// find is the lease of an id, or why there is none.
func (g *Gateway) find(key leaseKey) (*lease, *Problem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bury(time.Now())
	if l := g.leases[key]; l != nil {
		return l, nil
	}
	if t, ok := g.graves[key]; ok {
		why := *t.why
		return nil, &why
	}
	return nil, unknownLease()
}

func unknownLease() *Problem {
	return problem("unknown-lease", "no lease has this id: it never existed, it has been over for long, or it was lost with its gateway")
}

// byToken is the principal's held lease of a lock that has the token.
func (g *Gateway) byToken(principal, encoded string, token uint64) *lease {
	g.mu.Lock()
	var all []*lease
	for l := range g.byName[nameKey{principal, encoded}] {
		all = append(all, l)
	}
	g.mu.Unlock()
	for _, l := range all {
		l.mu.Lock()
		found := l.state == held && l.lock.Token() == token
		l.mu.Unlock()
		if found {
			return l
		}
	}
	return nil
}

// noteOfHolder is the note of the lease that holds what l waits for, if it is one of the
// same principal. l.mu is held.
func (g *Gateway) noteOfHolder(l *lease) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	for other := range g.byName[nameKey{l.key.principal, l.encoded}] {
		if other != l && other.isHeld.Load() {
			return other.note
		}
	}
	return ""
}

func (g *Gateway) isDraining() bool {
	select {
	case <-g.draining:
		return true
	default:
		return false
	}
}

// drainingIn is how long held leases still live, in milliseconds, if the gateway is
// stopping.
func (g *Gateway) drainingIn(now time.Time) int64 {
	if !g.isDraining() {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.stopping.Sub(now).Milliseconds(), 1)
}

func (g *Gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.leases)
}

func (g *Gateway) all() []*lease {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*lease, 0, len(g.leases))
	for _, l := range g.leases {
		out = append(out, l)
	}
	return out
}

// Shutdown stops the gateway. New leases are refused. Requests that wait for a lease are
// answered at once, with "moved" and the age, so that their callers can ask another gateway
// and keep their places. Held leases can be renewed for Config.Drain, or until ctx ends;
// those that are left are ended then.
//
// Shutdown returns when no caller can believe any more that it holds a lock, which takes as
// long as the longest lease at most: nothing makes this shorter, not even the end of ctx,
// because a lock must not be released while its holder goes on. Serve requests meanwhile.
// Calling it again waits for the same.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	first := g.stopping.IsZero()
	if first {
		g.stopping = time.Now().Add(g.cfg.Drain)
		close(g.draining)
	}
	end := g.stopping
	g.mu.Unlock()
	for _, l := range g.all() {
		l.mu.Lock()
		l.settle()
		switch {
		case l.state == held && first:
			l.change(held) // whoever waits for a change is told once
		case l.state == waiting && l.polls == 0:
			l.end(gone(causeDraining, 0, "the gateway is stopping"))
		}
		l.mu.Unlock()
	}
	timeout := time.NewTimer(time.Until(end))
	defer timeout.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for drained := false; !drained && g.count() > 0; {
		select {
		case <-look.C:
		case <-timeout.C:
			drained = true
		case <-ctx.Done():
			drained = true
		}
	}
	for _, l := range g.all() {
		l.mu.Lock()
		l.settle()
		l.end(gone(causeDraining, 0, "the gateway stopped"))
		l.mu.Unlock()
	}
	g.mu.Lock()
	for g.unfinished > 0 {
		g.quiet.Wait()
	}
	g.mu.Unlock()
	g.leave()
	g.peers.drain()
	g.mu.Lock()
	last, services := !g.closed, g.services
	g.closed, g.services = true, nil
	g.mu.Unlock()
	if !last {
		return nil
	}
	var errs []error
	for _, stop := range services {
		errs = append(errs, stop())
	}
	g.closeRings()
	g.serving.Wait()
	g.peers.stop() // those that wait for an answer have it
	errs = append(errs, g.closeLogins()...)
	return errors.Join(append(errs, g.only.close())...)
}

// Close is Shutdown without time for callers to move: held leases end at once, and are
// given back when nobody can believe any more that it holds them.
func (g *Gateway) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return g.Shutdown(ctx)
}
