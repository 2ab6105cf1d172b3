// Quickstart shows qlock at work, in one process and a few seconds: three nodes form a
// NATS cluster, and five services add to one counter under one lock. A node dies while it
// is in use and comes back, and no increment is lost.
//
//	go run ./examples/quickstart
//
// It exits with status 0 only if the counter is exact and each holder's fencing token
// was greater than the one before. With -nolock the services do the same work without
// the lock, and it exits with status 1. It prints:
//
//	qlock quickstart: three nodes, five services, one lock. One of the nodes will die.
//
//	 0.00s  starting n1, n2 and n3: a NATS server and a qlock node each, in this process
//	 0.20s  they form a cluster and vote; a lock needs 2 of the 3 votes
//	 0.21s  five services add 1 to one counter, as often as they can, under one lock
//
//	  time  service  on    waited  counter  token
//	 0.22s  search   n2    1.7 ms        1  1795248270175850
//	 0.22s  orders   n1    6.8 ms        2  1795248270182093
//	 0.23s  billing  n2   11.8 ms        3  1795248270187013
//	 0.68s  search   n2   20.0 ms       96  1795248270640323
//	 1.13s  orders   n1   20.3 ms      187  1795248271093778
//	 1.21s  >>> n2 dies while billing, which is connected to it, holds the lock
//	 1.21s      search has moved to n3
//	 1.21s      billing has moved to n3
//	 1.26s  billing  n3   20.3 ms      213  1795248271225933
//	 1.71s  search   n3   31.9 ms      301  1795248271676088
//	 2.04s  >>> n2 is back. It may have forgotten votes, so it gives none until they have expired (2s)
//	 2.10s  billing  n3   20.2 ms      378  1795248272058800
//	 2.55s  orders   n1   19.5 ms      467  1795248272512377
//	 3.00s  search   n3   23.8 ms      556  1795248272964751
//	 3.45s  orders   n1   20.3 ms      642  1795248273414267
//	 3.91s  mail     n1   21.1 ms      715  1795248273866823
//	 3.98s  >>> n2 votes again
//	 4.03s  mail     n1   23.5 ms      740  1795248273994163
//
//	  services added  799 (orders 160, billing 160, stock 160, mail 159, search 160)
//	  counter is      799
//	  tokens          increased 798 times out of 798; locks lost: 0
//	  fencing         a late write with the first token was rejected
//
//	OK: nothing was lost, nothing was counted twice.
//
// The "waited" of a service is the time that the other four held the lock.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

const (
	lease = 2 * time.Second // short, so that a node that forgot its votes may vote again soon
	task  = 4 * time.Millisecond
)

func main() {
	unlocked := flag.Bool("nolock", false, "do the same work without the lock, and see the check fail")
	flag.Parse()
	if err := run(!*unlocked); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart: FAILED:", err)
		os.Exit(1)
	}
}

func run(locked bool) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s := &show{start: time.Now()}
	fmt.Print("qlock quickstart: three nodes, five services, one lock. One of the nodes will die.\n\n")

	s.say("starting n1, n2 and n3: a NATS server and a qlock node each, in this process")
	cluster, err := embedded.StartCluster(ctx, 3, func(_ int, c *embedded.Config) { c.Node.MaxLease = lease })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	s.say("they form a cluster and vote; a lock needs 2 of the 3 votes")

	// Each service has a TCP connection, a server and a Locker of its own, as it would
	// have in a separate process.
	counter := &store{}
	var services []*service
	for i, name := range []string{"orders", "billing", "stock", "mail", "search"} {
		v, err := connect(ctx, s, cluster, i%3, name)
		if err != nil {
			return err
		}
		defer v.close()
		services = append(services, v)
	}

	s.say("five services add 1 to one counter, as often as they can, under one lock")
	s.table()
	victim := cluster.Servers()[1]
	crash := newMoment(time.Now().Add(time.Second), func(holder *service) error {
		s.say(">>> n2 dies while %s, which is connected to it, holds the lock", holder.name)
		return cluster.Crash(victim.Name())
	})
	work, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	errs := make(chan error, len(services))
	for _, v := range services {
		group.Go(func() {
			if err := v.work(ctx, work, s, counter, crash, locked); err != nil {
				errs <- fmt.Errorf("%s: %w", v.name, err)
				stop()
			}
		})
	}
	err = revive(work, s, victim, crash)
	stop()
	group.Wait()
	close(errs)
	if e, ok := <-errs; ok {
		return e
	}
	if err != nil {
		return err
	}
	return verdict(counter, services)
}

// revive restarts the node that died, and returns some time after it votes again.
func revive(ctx context.Context, s *show, victim *embedded.Server, crash *moment) error {
	select {
	case <-crash.passed:
	case <-ctx.Done():
		return fmt.Errorf("n2 never died: %w", context.Cause(ctx))
	}
	if !sleep(ctx, 700*time.Millisecond) {
		return context.Cause(ctx)
	}
	if err := victim.Restart(ctx); err != nil {
		return err
	}
	s.say(">>> n2 is back. It may have forgotten votes, so it gives none until they have expired (%v)", lease)
	if err := victim.Node().WaitReady(ctx); err != nil {
		return err
	}
	s.say(">>> n2 votes again")
	sleep(ctx, 400*time.Millisecond)
	return nil
}

// service is one of the services that compete for the lock.
type service struct {
	name   string
	nc     *nats.Conn
	locker *qlock.Locker
	added  int // number of increments that the store confirmed
	lost   int // number of locks
}

func connect(ctx context.Context, s *show, cluster *embedded.Cluster, home int, name string) (*service, error) {
	var urls []string
	for i := range cluster.Servers() {
		urls = append(urls, cluster.Servers()[(home+i)%3].ClientURL())
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.Name(name), nats.DontRandomize(),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ReconnectHandler(func(nc *nats.Conn) { s.say("    %s has moved to %s", name, nc.ConnectedServerName()) }))
	if err != nil {
		return nil, err
	}
	locker, err := qlock.New(ctx, nc, qlock.WithName(name), qlock.WithLease(lease))
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &service{name: name, nc: nc, locker: locker}, nil
}

func (v *service) close() {
	_ = v.locker.Close()
	v.nc.Close()
}

// work adds to the counter until during ends.
func (v *service) work(ctx, during context.Context, s *show, counter *store, crash *moment, locked bool) error {
	for during.Err() == nil {
		asked := time.Now()
		add := func(ctx context.Context) error {
			waited := time.Since(asked)
			// Read, think, write: a second service that does so at the same time would
			// corrupt the counter.
			n := counter.read()
			if err := crash.reached(v); err != nil {
				return err
			}
			time.Sleep(task)
			token := qlock.Token(ctx)
			if err := counter.write(token, n+1); err != nil {
				return err
			}
			v.added++
			s.row(v, waited, n+1, token)
			return nil
		}
		if !locked {
			if err := add(ctx); err != nil {
				return err
			}
			continue
		}
		err := v.locker.Do(ctx, "counter", add)
		switch {
		case errors.Is(err, qlock.ErrLost):
			// This machine stood still for a lease. The store was still safe.
			v.lost++
		case err != nil:
			return err
		}
	}
	return nil
}

// store is the data that the lock protects. It is fenced: it rejects a write whose token is
// lower than one that it has seen. So a holder that was stopped for longer than its lease
// does no harm when it resumes.
type store struct {
	mu     sync.Mutex
	value  int
	tokens []uint64 // of all writes
}

func (s *store) read() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value
}

var errStale = errors.New("the store refused a stale token")

func (s *store) write(token uint64, value int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.tokens); n > 0 && token < s.tokens[n-1] {
		return fmt.Errorf("%w: %d, it has seen %d", errStale, token, s.tokens[n-1])
	}
	s.value, s.tokens = value, append(s.tokens, token)
	return nil
}

// verdict checks that no increment is missing and that each token was greater
// than the one before.
func verdict(counter *store, services []*service) error {
	added, lost := 0, 0
	var each []string
	for _, v := range services {
		added, lost = added+v.added, lost+v.lost
		each = append(each, fmt.Sprintf("%s %d", v.name, v.added))
	}
	fmt.Printf("\n  services added  %d (%s)\n  counter is      %d\n", added, strings.Join(each, ", "), counter.value)
	if counter.value != added {
		return fmt.Errorf("the services added %d, but the counter is %d: two worked on it at once", added, counter.value)
	}
	for i := 1; i < len(counter.tokens); i++ {
		if counter.tokens[i] <= counter.tokens[i-1] {
			return fmt.Errorf("token %d came after %d: tokens must rise", counter.tokens[i], counter.tokens[i-1])
		}
	}
	fmt.Printf("  tokens          increased %d times out of %d; locks lost: %d\n", len(counter.tokens)-1, len(counter.tokens)-1, lost)
	if err := counter.write(counter.tokens[0], -1); !errors.Is(err, errStale) {
		return errors.New("the store took a late write with the first token")
	}
	fmt.Print("  fencing         a late write with the first token was rejected\n\nOK: nothing was lost, nothing was counted twice.\n")
	return nil
}

// moment is an action that the first service on n2 that holds the lock after a given
// time performs once.
type moment struct {
	at     time.Time
	do     func(*service) error
	once   sync.Once
	passed chan struct{}
}

func newMoment(at time.Time, do func(*service) error) *moment {
	return &moment{at: at, do: do, passed: make(chan struct{})}
}

func (m *moment) reached(v *service) (err error) {
	if time.Now().Before(m.at) || v.nc.ConnectedServerName() != "n2" {
		return nil
	}
	m.once.Do(func() {
		err = m.do(v)
		close(m.passed)
	})
	return err
}

// show prints what happens.
type show struct {
	start time.Time
	rows  atomic.Int64

	mu   sync.Mutex // guards the output and next
	next time.Time
}

func (s *show) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Printf("%5.2fs  %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
	s.next = time.Now().Add(50 * time.Millisecond) // a row soon after
}

func (s *show) table() {
	fmt.Print("\n  time  service  on    waited  counter  token\n")
}

// row prints the first three increments, and then one now and then.
func (s *show) row(v *service, waited time.Duration, value int, token uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows.Add(1) > 3 && time.Now().Before(s.next) {
		return
	}
	s.next = time.Now().Add(450 * time.Millisecond)
	fmt.Printf("%5.2fs  %-7s  %-2s  %5.1f ms  %7d  %d\n", time.Since(s.start).Seconds(), v.name, v.nc.ConnectedServerName(), float64(waited.Microseconds())/1000, value, token)
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
