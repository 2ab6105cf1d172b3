package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

// patience bounds every wait for something that must come.
const patience = 2 * time.Minute

// lateness is by how much sleeps of this program were longer than asked for. On a busy machine, all
// that its goroutines do is late by as much.
type lateness struct {
	mu   sync.Mutex // guards what follows
	list []late
	nap  time.Time // when the present sleep began
}

type late struct {
	at time.Time // when the sleep ended
	by time.Duration
}

var delays lateness

const nap = 10 * time.Millisecond

// watch sleeps until stop is closed.
func (l *lateness) watch(stop <-chan struct{}) {
	for {
		began := time.Now()
		l.mu.Lock()
		l.nap = began
		l.mu.Unlock()
		select {
		case <-stop:
			return
		case <-time.After(nap):
		}
		if end := time.Now(); end.Sub(began) > 2*nap {
			l.mu.Lock()
			l.list = append(l.list, late{end, end.Sub(began) - nap})
			l.mu.Unlock()
		}
	}
}

// slack is what a busy machine may add to a time that the protocol bounds and that began then: as
// much as it added to sleeps, and some more.
func slack(began time.Time) time.Duration {
	delays.mu.Lock()
	defer delays.mu.Unlock()
	sum := 1500 * time.Millisecond
	// When all goroutines get to run again, that of watch need not be the first.
	sum += max(0, time.Since(delays.nap)-nap)
	for i := len(delays.list) - 1; i >= 0 && delays.list[i].at.After(began); i-- {
		sum += delays.list[i].by
	}
	return sum
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	return within(t, patience)
}

// within is a context for something that must be done, or must have failed, by
// then.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// await waits for a condition that must come to hold.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// quiet keeps a connection from printing what these tests bring about on purpose.
var quiet = nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})

// maxLease is the longest lease of a cluster.
var maxLease = qlocktest.WithLease

// startCluster is a cluster of which DefaultMaxLease is the longest lease, unless
// maxLease says otherwise.
func startCluster(t *testing.T, n int, opts ...qlocktest.Option) *qlocktest.Cluster {
	t.Helper()
	return qlocktest.StartCluster(t, n, append([]qlocktest.Option{maxLease(qlock.DefaultMaxLease)}, opts...)...)
}

// forking is held by who starts a process, and shared by who listens where there
// was a listener before. Between fork and exec a child has copies of all that is
// open, also of a listener that is being closed here, and its address is in use
// for that long.
var forking sync.RWMutex

// restart starts a server again at the place where it was.
func restart(t *testing.T, s *embedded.Server) {
	t.Helper()
	forking.RLock()
	defer forking.RUnlock()
	must(t, s.Restart(testContext(t)))
}

// urls lists the client addresses of servers, for nats.Connect.
func urls(servers ...*embedded.Server) string {
	var all []string
	for _, s := range servers {
		all = append(all, s.ClientURL())
	}
	return strings.Join(all, ",")
}

// connect makes a TCP connection that comes back for ever, and to no other server
// than those named, the first first.
func connect(t *testing.T, urls string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(urls, append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.PingInterval(300 * time.Millisecond), nats.DontRandomize(), nats.IgnoreDiscoveredServers(),
		quiet,
	}, opts...)...)
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func newLocker(t *testing.T, nc *nats.Conn, opts ...qlock.Option) *qlock.Locker {
	t.Helper()
	l, err := qlock.New(testContext(t), nc, opts...)
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// client is a Locker with a TCP connection of its own to the servers named.
func client(t *testing.T, name, urls string, opts ...qlock.Option) *qlock.Locker {
	t.Helper()
	return newLocker(t, connect(t, urls, nats.Name(name)), append(opts, qlock.WithName(name))...)
}

func lock(t *testing.T, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.Lock(testContext(t), name)
	must(t, err)
	return noted(k)
}

func rlock(t *testing.T, l *qlock.Locker, name string) *qlock.Lock {
	t.Helper()
	k, err := l.RLock(testContext(t), name)
	must(t, err)
	return noted(k)
}

// ends has the end of each lock that was taken with lock or rlock.
var ends sync.Map // *qlock.Lock to *end

type end struct {
	at   time.Time // read it when done is closed
	done chan struct{}
}

// noted notes when a lock ends. Whoever asks may come later.
func noted(k *qlock.Lock) *qlock.Lock {
	e := &end{done: make(chan struct{})}
	ends.Store(k, e)
	context.AfterFunc(k.Context(), func() {
		e.at = time.Now()
		close(e.done)
	})
	return k
}

func unlock(t *testing.T, k *qlock.Lock) {
	t.Helper()
	if err := k.Unlock(t.Context()); err != nil {
		t.Errorf("unlocking %s: %v", k.Name(), err)
	}
}

// pending is a call of Lock or RLock that is under way.
type pending struct {
	lock *qlock.Lock
	err  error
	at   time.Time // when it returned
	done chan struct{}
}

func start(t *testing.T, ctx context.Context, call func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error), name string) *pending {
	t.Helper()
	p := &pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.lock, p.err = call(ctx, name)
		p.at = time.Now()
	}()
	t.Cleanup(func() { <-p.done }) // ctx ends before that
	return p
}

// wait returns the lock that the call must get.
func (p *pending) wait(t *testing.T) *qlock.Lock {
	t.Helper()
	<-p.done
	must(t, p.err)
	return p.lock
}

func (p *pending) isDone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stays looks for d that a lock is not lost.
func stays(t *testing.T, k *qlock.Lock, d time.Duration) {
	t.Helper()
	select {
	case <-k.Context().Done():
		t.Fatalf("lock %s ended: %v", k.Name(), context.Cause(k.Context()))
	case <-time.After(d):
	}
}

// lostBy waits until a lock is lost, which must be by then, a lease after its nodes were.
func lostBy(t *testing.T, k *qlock.Lock, deadline time.Time) {
	t.Helper()
	found, ok := ends.Load(k)
	if !ok {
		t.Fatalf("the end of lock %s was not noted", k.Name())
	}
	e := found.(*end)
	select {
	case <-e.done:
	case <-time.After(patience):
		t.Fatalf("lock %s is never lost", k.Name())
	}
	if late := e.at.Sub(deadline); late > slack(deadline) {
		t.Errorf("lock %s was lost %v too late", k.Name(), late)
	}
	if cause := context.Cause(k.Context()); !errors.Is(cause, qlock.ErrLost) {
		t.Errorf("lock %s ended by %v, not by loss", k.Name(), cause)
	}
}

// noQuorum calls Lock or TryLock where there is no quorum, with more and more time until no more
// than these nodes are silent: the others may be slow, and an error that comes before they have
// answered counts them too.
func noQuorum(t *testing.T, call func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error), name string, silent int) (*qlock.LockError, error) {
	t.Helper()
	for d := time.Second; ; d *= 2 {
		began := time.Now()
		_, err := call(within(t, d), name)
		if late := time.Since(began) - d; late > slack(began) {
			t.Errorf("the call returned %v after its deadline of %v", late, d)
		}
		var detail *qlock.LockError
		if !errors.Is(err, qlock.ErrNoQuorum) || !errors.As(err, &detail) {
			t.Fatalf("a call without a quorum: %v", err)
		}
		if n := len(detail.Silent()); n == silent {
			return detail, err
		} else if n < silent && len(detail.Nodes) > 0 || d > patience/2 {
			t.Fatalf("%d nodes are silent, want %d: %v", n, silent, err)
		}
	}
}

// isOver fails the test if the first of two conflicting locks could still be
// unlocked when the second had been granted. Unlock reads the lease clock: its
// answer does not depend on how soon a goroutine came to run, as the end of the
// lock's context would.
func isOver(t *testing.T, first *qlock.Lock) {
	t.Helper()
	if err := first.Unlock(t.Context()); !errors.Is(err, qlock.ErrLost) {
		t.Errorf("two hold %s: Unlock of the first, after the second was granted, says %v", first.Name(), err)
	}
}

// empty waits until the nodes know of no claims.
func empty(t *testing.T, servers ...*embedded.Server) {
	t.Helper()
	for _, s := range servers {
		await(t, s.Name()+" has no claims left", func() bool {
			stats := s.Node().Stats()
			return stats.Claims == 0 && stats.Resources == 0
		})
	}
}

// errStale is the store's refusal of a token from the past.
var errStale = errors.New("stale token")

// store is what locks protect: counters that refuse a token lower than the
// highest seen, at reads as well as at writes, and know who came with which.
type store struct {
	mu       sync.Mutex
	counters map[string]*counter
	wrong    []string // what must never happen
}

type counter struct {
	value   int
	token   uint64
	owner   *qlock.Lock
	owners  int
	refused int
}

// access is called with s.mu held.
func (s *store) access(k *qlock.Lock) (*counter, error) {
	c := s.counters[k.Name()]
	if c == nil {
		c = &counter{}
		if s.counters == nil {
			s.counters = map[string]*counter{}
		}
		s.counters[k.Name()] = c
	}
	switch {
	case k.Token() < c.token:
		c.refused++
		return nil, errStale
	case k.Token() == c.token && k != c.owner:
		s.wrong = append(s.wrong, fmt.Sprintf("two holders of %s with token %d", k.Name(), c.token))
	case k.Token() > c.token:
		c.token, c.owner = k.Token(), k
		c.owners++
	}
	return c, nil
}

func (s *store) read(k *qlock.Lock) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.access(k)
	if err != nil {
		return 0, err
	}
	return c.value, nil
}

func (s *store) write(k *qlock.Lock, value int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.access(k)
	if err == nil {
		c.value = value
	}
	return err
}

// increment reads and writes in two steps, between which another holder would do
// harm. A refusal must be explained by a loss.
func (s *store) increment(ctx context.Context, k *qlock.Lock) error {
	v, err := s.read(k)
	if err == nil {
		err = s.write(k, v+1)
	}
	if lost := k.Unlock(ctx); errors.Is(err, errStale) && !errors.Is(lost, qlock.ErrLost) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wrong = append(s.wrong, fmt.Sprintf("token %d of %s was refused, but its lock was not lost: %v", k.Token(), k.Name(), lost))
	}
	return err
}

// highest is the highest token seen for a name.
func (s *store) highest(name string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters[name].token
}

// check compares the counters with the writes that were confirmed.
func (s *store) check(t *testing.T, confirmed map[string]int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.wrong {
		t.Error(w)
	}
	for name, want := range confirmed {
		c := s.counters[name]
		if c == nil || c.value != want {
			t.Errorf("%s is %+v after %d confirmed increments", name, c, want)
			continue
		}
		t.Logf("%s: %d increments by %d holders, %d stale accesses refused, last token %d", name, c.value, c.owners, c.refused, c.token)
	}
}
