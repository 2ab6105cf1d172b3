//go:build unix

package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/integration/internal/child"
)

// client is a client's process.
type client struct {
	*clientRole
	out    *child.Journal
	locker *qlock.Locker
	work   sync.WaitGroup
}

// run is a client's process: workers that share a Locker, until it is told to end.
func (r *clientRole) run() error {
	c := &client{clientRole: r, out: child.NewJournal(os.Stdout)}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		words := bufio.NewScanner(os.Stdin)
		for words.Scan() {
			if words.Text() == wordEnd {
				cancel(nil)
				return
			}
		}
		cancel(errOrphan)
	}()
	c.work.Go(func() { pulse(ctx, c.out, func() {}) })
	nc, err := c.connect(ctx)
	if err != nil {
		cancel(err)
	} else {
		for i := range r.Workers {
			c.work.Go(func() {
				if r.Keep && i == r.Workers-1 {
					c.keeper(ctx, i)
				} else {
					c.worker(ctx, i)
				}
			})
		}
		if !r.Keep {
			c.work.Go(func() { c.operate(ctx) })
		}
	}
	<-ctx.Done()
	c.work.Wait()
	if nc != nil {
		err = c.locker.Close()
		nc.Close()
	}
	if cause := context.Cause(ctx); errors.Is(cause, errOrphan) {
		return cause
	}
	return err
}

// pulse measures whether the process runs, and what look looks at, and shows that it lives.
func pulse(ctx context.Context, out *child.Journal, look func()) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	last := now()
	said := last
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true // what it did not run until now counts
		case <-tick.C:
		}
		look()
		t := now()
		switch {
		case t-last > (beat + tardy).Nanoseconds():
			out.Write(line{Kind: late, At: t, From: last})
			said = t
		case t-said > 10*beat.Nanoseconds():
			out.Write(line{Kind: alive, At: t})
			said = t
		}
		last = t
	}
}

// connect makes the Locker, as often as it takes: the process may begin while its
// links are cut, or without a quorum of nodes.
func (c *client) connect(ctx context.Context) (*nats.Conn, error) {
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for ctx.Err() == nil {
		nc, err := nats.Connect(c.URLs,
			nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.Timeout(time.Second),
			nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0), nats.PingInterval(c.Lease/3),
			nats.DontRandomize(), nats.IgnoreDiscoveredServers(), nats.Name(c.Process), quiet)
		if err != nil {
			return nil, fmt.Errorf("%s: connect: %w", c.Process, err)
		}
		c.locker, err = qlock.New(ctx, nc, qlock.WithName(c.Name), qlock.WithLease(c.Lease), qlock.WithLogger(log))
		if err == nil {
			return nc, nil
		}
		nc.Close()
		if !errors.Is(err, qlock.ErrNoQuorum) {
			return nil, fmt.Errorf("%s: %w", c.Process, err)
		}
		c.out.Write(line{Kind: failed, At: now(), Text: "qlock.New: no quorum"})
	}
	return nil, nil
}

// operate evicts one holder after the other, of whatever client.
func (c *client) operate(ctx context.Context) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 2))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second + time.Duration(r.Int64N(int64(3*time.Second)))):
		}
		text := "in vain"
		if err := c.evict(ctx, r); err == nil {
			text = "done"
		} else if !errors.Is(err, qlock.ErrNoQuorum) && !errors.Is(err, qlock.ErrHeld) {
			c.out.Write(line{Kind: broken, At: now(), Text: "evict: " + err.Error()})
		}
		c.out.Write(line{Kind: evicted, At: now(), Text: text})
	}
}

func (c *client) evict(ctx context.Context, r *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, c.Lease)
	defer cancel()
	locks, err := c.locker.Locks(ctx, "")
	if err != nil {
		return err
	}
	for _, i := range r.Perm(len(locks)) {
		if l := locks[i]; len(l.Holders) > 0 {
			return c.locker.Evict(ctx, l.Name, l.Holders[r.IntN(len(l.Holders))], "chaos")
		}
	}
	return nil
}

// worker takes one lock after the other and works under it. The first of each
// process is rude: it writes without a look at the lock's context. Only the fence
// stands between it and the store.
func (c *client) worker(ctx context.Context, number int) {
	w := &worker{client: c, number: number, rude: number == 0}
	w.rand = rand.New(rand.NewPCG(c.Seed, c.Sequence<<32|uint64(number)))
	var err error
	w.store, err = dialStore(c.Store)
	if err != nil {
		w.broken(err)
		return
	}
	defer func() { _ = w.store.conn.Close() }()
	for i := 0; ctx.Err() == nil; i++ {
		if err := w.turn(ctx, fmt.Sprintf("%s/w%d#%d", c.Process, number, i)); err != nil {
			w.broken(err)
			return
		}
		w.rest(ctx, w.between(2, 15))
	}
}

type worker struct {
	*client
	number int
	rude   bool
	rand   *rand.Rand
	store  *storeClient
}

func (w *worker) broken(err error) {
	w.out.Write(line{Kind: broken, At: now(), Worker: w.number, Text: err.Error()})
}

// between is a time of so many milliseconds.
func (w *worker) between(low, high int) time.Duration {
	return time.Duration(low)*time.Millisecond + time.Duration(w.rand.Int64N(int64(high-low)*1e6))
}

// rest waits, or until ctx ends.
func (w *worker) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// hold is how long a lock is held: shortly as a rule, so that there are many. Two
// workers of each process hold long as a rule, so that faults find locks held, and
// one of these is rude.
func (w *worker) hold() time.Duration {
	switch n := w.rand.IntN(100); {
	case w.number < 2 && n < 60:
		return w.between(50, 1200)
	case n < 95:
		return w.between(0, 8)
	case n < 99:
		return w.between(20, 400)
	}
	return w.between(400, 2000)
}

// turn takes a lock, works, and unlocks. It fails by what no fault explains.
func (w *worker) turn(ctx context.Context, id string) error {
	name := w.Names[w.rand.IntN(len(w.Names))]
	shared := w.rand.IntN(4) == 0
	try := w.rand.IntN(8) == 0
	call := w.locker.Lock
	switch {
	case shared && try:
		call = w.locker.TryRLock
	case shared:
		call = w.locker.RLock
	case try:
		call = w.locker.TryLock
	}
	limit := 3 * w.Lease
	if w.rand.IntN(16) == 0 {
		limit = w.between(1, 50) // some give up while they are granted
	}
	ask, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	called := now()
	k, err := call(ask, name)
	returned := now()
	switch {
	case ctx.Err() != nil && err != nil:
		return nil
	case errors.Is(err, qlock.ErrHeld):
		w.out.Write(line{Kind: failed, At: returned, Worker: w.number, Text: "held"})
		return nil
	case errors.Is(err, qlock.ErrNoQuorum):
		w.out.Write(line{Kind: failed, At: returned, Worker: w.number, Text: "no quorum"})
		return nil
	case errors.Is(err, qlock.ErrEvicted): // it was held at the nodes, and its client did not know yet
		w.out.Write(line{Kind: failed, At: returned, Worker: w.number, Text: "evicted"})
		return nil
	case err != nil:
		return err
	}
	w.out.Write(line{
		Kind: granted, At: returned, Called: called, Holder: id, Worker: w.number,
		Name: name, Shared: shared, Rude: w.rude, Token: k.Token(),
	})
	lost := make(chan struct{})
	context.AfterFunc(k.Context(), func() {
		defer close(lost)
		at := now()
		if errors.Is(context.Cause(k.Context()), qlock.ErrLost) {
			w.out.Write(line{Kind: told, At: at, Holder: id})
		}
	})
	wrote, err := w.use(k, request{Name: name, Holder: id, Token: k.Token(), Shared: shared})
	w.out.Write(line{Kind: releasing, At: now(), Holder: id})
	unlock := k.Unlock(ctx)
	w.out.Write(line{Kind: released, At: now(), Holder: id, Lost: unlock != nil, Wrote: wrote})
	<-lost
	if unlock != nil && !errors.Is(unlock, qlock.ErrLost) {
		return errors.Join(err, fmt.Errorf("unlock %s: %w", name, unlock))
	}
	return err
}

// use is the work under a lock: a writer increments, a reader reads twice. It
// returns the value that the store took.
func (w *worker) use(k *qlock.Lock, r request) (int, error) {
	first, err := w.store.ask(r)
	if err != nil || first.Refused {
		return 0, err
	}
	if w.rude {
		w.rest(context.Background(), w.hold())
	} else {
		w.rest(k.Context(), w.hold())
		if k.Context().Err() != nil {
			return 0, nil
		}
	}
	if r.Shared {
		_, err := w.store.ask(r)
		return 0, err
	}
	r.Write, r.Value = true, first.Value+1
	second, err := w.store.ask(r)
	if err != nil || second.Refused {
		return 0, err
	}
	return r.Value, nil
}

// keeper takes one lock and keeps it, and works under it all the time. It takes the lock again when
// it was lost.
func (c *client) keeper(ctx context.Context, number int) {
	w := &worker{client: c, number: number}
	var err error
	if w.store, err = dialStore(c.Store); err != nil {
		w.broken(err)
		return
	}
	defer func() { _ = w.store.conn.Close() }()
	for i := 0; ctx.Err() == nil; i++ {
		if err := w.keep(ctx, fmt.Sprintf("%s/k#%d", c.Process, i)); err != nil {
			w.broken(err)
			return
		}
	}
}

// kept is what the names of locks begin with that are kept.
const kept = "kept."

func (w *worker) keep(ctx context.Context, id string) error {
	r := request{Name: kept + w.Name, Holder: id, Shared: w.KeepShared}
	call := w.locker.Lock
	if r.Shared {
		call = w.locker.RLock
	}
	ask, cancel := context.WithTimeout(ctx, 3*w.Lease)
	defer cancel()
	called := now()
	k, err := call(ask, r.Name)
	returned := now()
	switch {
	case ctx.Err() != nil && err != nil:
		return nil
	case errors.Is(err, qlock.ErrHeld):
		w.out.Write(line{Kind: failed, At: returned, Worker: w.number, Text: "kept: held"})
		return nil
	case errors.Is(err, qlock.ErrNoQuorum):
		w.out.Write(line{Kind: failed, At: returned, Worker: w.number, Text: "kept: no quorum"})
		return nil
	case err != nil:
		return err
	}
	r.Token = k.Token()
	w.out.Write(line{Kind: granted, At: returned, Called: called, Holder: id, Worker: w.number, Name: r.Name, Shared: r.Shared, Token: r.Token})
	lost := make(chan struct{})
	context.AfterFunc(k.Context(), func() {
		defer close(lost)
		if at := now(); errors.Is(context.Cause(k.Context()), qlock.ErrLost) {
			w.out.Write(line{Kind: told, At: at, Holder: id, Text: context.Cause(k.Context()).Error()})
		}
	})
	wrote, err := 0, error(nil)
	for value := 0; err == nil && ctx.Err() == nil && k.Context().Err() == nil; {
		var p reply
		if p, err = w.store.ask(r); err != nil || p.Refused {
			break
		}
		if r.Write {
			wrote = r.Value
		}
		value = p.Value
		if !r.Shared {
			r.Write, r.Value = true, value+1
		}
		work, cancel := context.WithTimeout(k.Context(), 50*time.Millisecond)
		select {
		case <-work.Done():
		case <-ctx.Done():
		}
		cancel()
	}
	w.out.Write(line{Kind: releasing, At: now(), Holder: id})
	unlock := k.Unlock(context.Background())
	w.out.Write(line{Kind: released, At: now(), Holder: id, Lost: unlock != nil, Wrote: wrote})
	<-lost
	if unlock != nil && !errors.Is(unlock, qlock.ErrLost) {
		return errors.Join(err, fmt.Errorf("unlock %s: %w", r.Name, unlock))
	}
	return err
}
