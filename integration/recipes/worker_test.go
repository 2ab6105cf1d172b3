//go:build unix

package recipes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/integration/internal/child"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/queue"
	"github.com/qlock/qlock/semaphore"
)

// role is what a process is told to be.
type role struct {
	Recipe   string
	Process  string // its name, which no other process has
	ID       string // of its seat: the process that takes its place has it too
	URLs     string // of the lock cluster
	Store    string // the URL of the JetStream and of the store, for the queue
	Lease    time.Duration
	Seed     uint64
	Sequence uint64 // of this process among those of its seat
}

const (
	permits    = 3
	partitions = 256
	beat       = 5 * time.Millisecond
)

// names are those that LockAll is called with.
var names = []string{"a", "b", "c", "d"}

// worker is a process.
type worker struct {
	*role
	out    *child.Journal
	nc     *nats.Conn
	locker *qlock.Locker
	all    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	claims map[uint64]*claim
	last   uint64

	writes int // of election, by its goroutine
}

// claim is something that this process has.
type claim struct {
	ctx context.Context
	// lock is asked as well: it knows the lease clock, while a context of a process that
	// was stopped may end a moment after the process goes on.
	lock *qlock.Lock
}

func (c *claim) trusted() bool { return c.ctx.Err() == nil && c.lock.Stands() > 0 }

func (r *role) run() error {
	w := &worker{role: r, out: child.NewJournal(os.Stdout), claims: map[uint64]*claim{}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when this process is told to, or when the judge has died
		cancel()
	}()
	if err := w.connect(ctx); err != nil || w.locker == nil {
		return err
	}
	defer w.nc.Close()
	beats, stop := context.WithCancel(context.Background())
	w.all.Go(func() { w.beat(beats) })
	err := w.work(ctx)
	stop()
	w.all.Wait()
	return errors.Join(err, w.locker.Close())
}

// connect makes the Locker, as often as it takes.
func (w *worker) connect(ctx context.Context) error {
	nc, err := dial(w.URLs, w.Process)
	if err != nil {
		return err
	}
	w.nc = nc
	for ctx.Err() == nil {
		w.locker, err = qlock.New(ctx, nc, qlock.WithName(w.Process), qlock.WithLease(w.Lease))
		if err == nil {
			return nil
		}
		if !errors.Is(err, qlock.ErrNoQuorum) {
			break
		}
	}
	nc.Close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func dial(urls, name string) (*nats.Conn, error) {
	return nats.Connect(urls, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.Name(name), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
}

// beat says what this process trusts.
func (w *worker) beat(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		l := line{Kind: still, At: now()} // before it looks
		w.mu.Lock()
		for id, c := range w.claims {
			if c.trusted() {
				l.IDs = append(l.IDs, id)
			}
		}
		w.mu.Unlock()
		if len(l.IDs) > 0 {
			w.out.Write(l)
		}
	}
}

// claim records that this process has something with this context. Call done before it is
// given back.
func (w *worker) claim(ctx context.Context, name string, token uint64) (done func()) {
	lock, ok := qlock.FromContext(ctx)
	if !ok {
		w.broken(fmt.Errorf("the context of %s comes from no lock", name))
		return func() {}
	}
	c := &claim{ctx, lock}
	w.mu.Lock()
	w.last++
	id := w.last
	w.mu.Unlock()
	at := now()
	if !c.trusted() {
		return func() {} // it was lost already
	}
	w.out.Write(line{Kind: claimed, At: at, ID: id, Name: name, Token: token})
	w.mu.Lock()
	w.claims[id] = c
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		delete(w.claims, id)
		w.mu.Unlock()
		if at := now(); c.trusted() {
			w.out.Write(line{Kind: still, At: at, IDs: []uint64{id}})
		} else {
			w.out.Write(line{Kind: ended, At: at, ID: id, Name: name, Text: fmt.Sprint(context.Cause(ctx))})
		}
	}
}

func (w *worker) broken(err error) { w.out.Write(line{Kind: broken, At: now(), Text: err.Error()}) }

// explained reports whether faults explain an error, and writes it down.
func (w *worker) explained(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	for _, target := range []error{qlock.ErrHeld, qlock.ErrNoQuorum, qlock.ErrLost} {
		if errors.Is(err, target) {
			w.out.Write(line{Kind: failed, At: now(), Text: err.Error()})
			return true
		}
	}
	w.broken(err)
	return false
}

func (w *worker) work(ctx context.Context) error {
	switch w.Recipe {
	case "semaphore":
		return w.several(ctx, 2, w.semaphore)
	case "lockall":
		return w.several(ctx, 2, w.lockAll)
	case "election":
		return w.several(ctx, 1, w.election)
	case "members":
		return w.several(ctx, 1, w.member)
	case "partition":
		return w.partition(ctx)
	case "queue":
		return w.queue(ctx)
	}
	return fmt.Errorf("no recipe %q", w.Recipe)
}

// several runs f again and again in n goroutines, until ctx ends or f fails.
func (w *worker) several(ctx context.Context, n int, f func(context.Context, *rand.Rand) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		r := rand.New(rand.NewPCG(w.Seed, w.Sequence<<8|uint64(i)))
		all.Go(func() {
			for ctx.Err() == nil && errs[i] == nil {
				if errs[i] = f(ctx, r); errs[i] != nil && ctx.Err() != nil {
					errs[i] = nil
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// hold is for how long something is held: briefly as a rule, and sometimes for longer
// than the lease.
func (w *worker) hold(r *rand.Rand) time.Duration {
	if r.IntN(6) == 0 {
		return between(r, w.Lease/2, 3*w.Lease/2)
	}
	return between(r, 0, 20*time.Millisecond)
}

func (w *worker) semaphore(ctx context.Context, r *rand.Rand) error {
	s, err := semaphore.New(w.locker, "s", permits)
	if err != nil {
		return err
	}
	k := 1
	if r.IntN(5) == 0 {
		k = 2
	}
	ask, cancel := context.WithTimeout(ctx, 5*w.Lease)
	defer cancel()
	acquire := s.Acquire
	if r.IntN(6) == 0 {
		acquire = s.TryAcquire
	}
	p, err := acquire(ask, k)
	if err != nil {
		w.explained(ctx, err)
		return nil
	}
	var done []func()
	for _, n := range p.Numbers() {
		// The lock that is found from the context is that of the first permit. The others
		// are refreshed by the same messages.
		done = append(done, w.claim(p.Context(), fmt.Sprintf("permit %d", n), p.Token(n)))
	}
	rest(p.Context(), w.hold(r))
	for _, f := range done {
		f()
	}
	if err := p.Release(ctx); err != nil {
		w.explained(ctx, err)
	}
	return nil
}

func (w *worker) lockAll(ctx context.Context, r *rand.Rand) error {
	some := make([]string, 1+r.IntN(3))
	for i := range some {
		some[i] = names[r.IntN(len(names))]
	}
	ask, cancel := context.WithTimeout(ctx, 5*w.Lease)
	defer cancel()
	lockAll := w.locker.LockAll
	if r.IntN(4) == 0 {
		lockAll = w.locker.TryLockAll
	}
	s, err := lockAll(ask, some...)
	if err != nil {
		w.explained(ctx, err)
		rest(ctx, between(r, 0, 5*time.Millisecond))
		return nil
	}
	var done []func()
	for _, n := range s.Names() {
		done = append(done, w.claim(s.Context(), n, s.Token(n)))
	}
	rest(s.Context(), w.hold(r))
	for _, f := range done {
		f()
	}
	if err := s.Unlock(ctx); err != nil {
		w.explained(ctx, err)
	}
	return nil
}

func (w *worker) member(ctx context.Context, r *rand.Rand) error {
	g, err := members.New(w.locker, "g")
	if err != nil {
		return err
	}
	m, err := g.Join(ctx, w.ID, w.Process)
	if err != nil {
		w.explained(ctx, err)
		return nil
	}
	done := w.claim(m.Context(), m.ID(), m.Token())
	rest(m.Context(), between(r, w.Lease/4, 2*w.Lease))
	if m.Context().Err() == nil {
		if err := m.SetMeta(ctx, w.Process+" goes on"); err != nil {
			w.explained(ctx, err)
		}
	}
	// In the end all stay, for the judge to compare what it sees.
	if r.IntN(3) > 0 {
		select {
		case <-m.Context().Done():
		case <-ctx.Done():
		}
	}
	done()
	if err := m.Leave(ctx); err != nil {
		w.explained(ctx, err)
	}
	return nil
}

// election leads for some terms, and writes to the store all the while. It looks at its context
// before it waits, and not between that and the write: the fence must help.
func (w *worker) election(ctx context.Context, r *rand.Rand) error {
	e, err := election.New(w.locker, "e")
	if err != nil {
		return err
	}
	err = e.Run(ctx, w.Process, func(ctx context.Context) error {
		done := w.claim(ctx, leader, qlock.Token(ctx))
		defer done()
		for ctx.Err() == nil && r.IntN(8) > 0 {
			w.writes++
			item := fmt.Sprint(w.Process, " ", w.writes)
			w.out.Write(line{Kind: working, At: now(), Name: leader, Token: qlock.Token(ctx), Text: item})
			pause := between(r, 0, w.Lease/10)
			if r.IntN(10) == 0 {
				pause = w.Lease / 2 // so that also a judge that hears of it late stops it before it writes
			}
			time.Sleep(pause)
			answer, err := write{leader, item, qlock.Token(ctx)}.put(w.nc)
			if err != nil {
				return err
			}
			w.out.Write(line{Kind: effect, At: now(), Name: leader, Token: qlock.Token(ctx), Text: item + " " + answer})
		}
		return nil
	})
	if err != nil {
		w.explained(ctx, err)
	}
	return nil
}

func (w *worker) partition(ctx context.Context) error {
	g, err := partition.New(w.locker, "g", partitions, partition.WithEvents(w.nc), partition.WithDrain(w.Lease/4))
	if err != nil {
		return err
	}
	var p *partition.Worker
	for p == nil {
		p, err = g.Join(ctx, w.ID, "", func(ctx context.Context, a partition.Assignment) {
			done := w.claim(ctx, fmt.Sprintf("partition %d", a.Partition), a.Token)
			defer done()
			select {
			case <-a.Moving:
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !w.explained(ctx, err) {
			return err
		}
	}
	<-ctx.Done()
	return p.Leave(context.WithoutCancel(ctx))
}

// write is what a handler writes to the store: that it did an item.
type write struct {
	Key, Item string
	Token     uint64
}

// put asks the store to take a write, for as long as the store does not answer: nodes crash, and
// a process that was stopped finds its connection closed.
func (w write) put(nc *nats.Conn) (answer string, err error) {
	text, err := json.Marshal(w)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		once, stop := context.WithTimeout(ctx, time.Second)
		m, err := nc.RequestWithContext(once, effects, text)
		stop()
		if err == nil {
			return string(m.Data), nil
		}
		if rest(ctx, 10*time.Millisecond); ctx.Err() != nil {
			return "", err
		}
	}
}

const (
	leader  = "leader"  // what is claimed, and written, in elections
	effects = "effects" // the store's subject
	written = "written"
	fenced  = "fenced"
	slow    = "slow" // what an item begins with that says how long its handler waits
)

func (w *worker) queue(ctx context.Context) error {
	nc, err := dial(w.Store, w.Process)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	q, err := queue.Open(ctx, js, queueConfig(w.Lease))
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards r
	r := rand.New(rand.NewPCG(w.Seed, w.Sequence))
	err = q.Work(ctx, w.locker, func(ctx context.Context, it *queue.Item) error {
		token := qlock.Token(ctx)
		done := w.claim(ctx, it.Key, token)
		defer done()
		mu.Lock()
		pause, rude := between(r, 0, 10*time.Millisecond), r.IntN(3) == 0
		if r.IntN(20) == 0 {
			pause = w.Lease / 4
		}
		mu.Unlock()
		if wait, ok := strings.CutPrefix(string(it.Data), slow+" "); ok {
			w.out.Write(line{Kind: working, At: now(), Name: it.Key, Token: token, Text: string(it.Data)})
			d, err := time.ParseDuration(wait)
			if err != nil {
				w.broken(err)
			}
			pause, rude = d, true
		}
		if rude {
			time.Sleep(pause) // and does not look at the context: the fence must help
		} else if rest(ctx, pause); ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text, err := json.Marshal(write{it.Key, string(it.Data), token})
		if err != nil {
			return err
		}
		ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		answer, err := nc.RequestWithContext(ask, effects, text)
		if err != nil {
			return err
		}
		w.out.Write(line{Kind: effect, At: now(), Name: it.Key, Token: token, Text: string(answer.Data)})
		if string(answer.Data) == fenced {
			return errors.New("the store has a higher token")
		}
		return nil
	}, queue.WithConcurrency(4), queue.WithErrors(func(_ *queue.Item, err error) {
		w.out.Write(line{Kind: failed, At: now(), Text: err.Error()})
	}))
	return err
}

func queueConfig(lease time.Duration) queue.Config {
	return queue.Config{
		Name: "q", Lease: lease, Storage: jetstream.MemoryStorage, MaxAttempts: 1000, // no item becomes a dead letter
		Backoff: []time.Duration{10 * time.Millisecond},
	}
}

// span is a time in which a process had something for certain.
type span struct {
	name, process string
	token         uint64
	from, to      int64
}

func (s span) String() string {
	return fmt.Sprintf("%s by %s with token %d, for certain from %.6fs to %.6fs", s.name, s.process, s.token, float64(s.from)/1e9, float64(s.to)/1e9)
}

// check looks for two spans of one name at one moment, for tokens that do not rise, and,
// if limit is not 0, for more spans than that at one moment.
func check(spans []span, limit int) (found []string) {
	spans = slices.SortedFunc(slices.Values(spans), func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var open []span
	last := map[string]span{} // of each name, that with the highest token
	for _, s := range spans {
		open = slices.DeleteFunc(open, func(o span) bool { return o.to < s.from })
		for _, o := range open {
			if o.name == s.name {
				found = append(found, fmt.Sprintf("two have it: %v; %v", o, s))
			}
		}
		open = append(open, s)
		if limit > 0 && len(open) > limit {
			found = append(found, fmt.Sprintf("%d at one moment, allowed are %d: %v", len(open), limit, open))
		}
		// One lock may be had for several items, one after the other.
		if l, ok := last[s.name]; ok && (s.token < l.token || s.token == l.token && s.process != l.process) {
			found = append(found, fmt.Sprintf("the token does not rise: %v; %v", l, s))
		} else {
			last[s.name] = s
		}
	}
	return found
}
