// Rwmutex shows qlock.RWMutex, a sync.RWMutex for several programs: readers read
// together, a writer writes alone, and later readers wait behind a waiting writer.
//
//	go run ./examples/rwmutex
//
// It exits with status 1 if a writer was not alone, if a reader saw inconsistent prices,
// or if readers never read together. It prints:
//
//	Two programs, A and B, share one RWMutex for 1.5s.
//	r reads, W writes, . waits for the lock; a column is 25ms.
//
//	  A reader 1 | rrrr  rrrr  ...rrrr  .rrrr  ..rrrr  ...rrrr  .rrrr  rrrr ..|
//	  A reader 2 |  rrrr  rrrrr  ........rrrr   .rrrr   ..rrrr   rrrr   .....r|
//	  A reader 3 |   rrrr   ......rrrr    rrrr   rrrrr   .rrrr    rrrr   ....r|
//	  A writer   |         ....WWW         ...WWW          ...WWW         ....|
//	  B reader 1 | rrrr  rrrr  ...rrrr  .rrrr  ..rrrr  ...rrrr  .rrrr  rrrr ..|
//	  B reader 2 |  rrrr  rrrrr  ........rrrr   .rrrr   ..rrrr   rrrr  ......r|
//	  B reader 3 |   rrrr   ......rrrr    rrrr   rrrrr   .rrrr    rrrr   ....r|
//	  B writer   |             .......WWW              WWW             ....WW |
//
//	46 reads, up to 6 at once; 7 writes, up to 1 at once.
//	OK: readers together, a writer alone, and every reader saw consistent prices.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

const (
	columns = 60
	column  = 25 * time.Millisecond
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rwmutex: FAILED:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()

	fmt.Printf("Two programs, A and B, share one RWMutex for %v.\n", columns*column)
	fmt.Print("r reads, W writes, . waits for the lock; a column is ", column, ".\n\n")
	b := &board{}
	p := &prices{bid: 100, ask: 101}
	during, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	for i, program := range []string{"A", "B"} {
		// As in a separate process, each program has a connection to a server of its own, and a
		// Locker. The two share only the name of the lock.
		nc, err := nats.Connect(cluster.Servers()[i].ClientURL(), nats.Name(program))
		if err != nil {
			return err
		}
		defer nc.Close()
		locker, err := qlock.New(ctx, nc, qlock.WithName("program-"+program))
		if err != nil {
			return err
		}
		defer func() { _ = locker.Close() }()

		mu := locker.RWMutex("prices") // was: var mu sync.RWMutex
		for r := range 3 {
			who := b.add(fmt.Sprintf("%s reader %d", program, r+1))
			all.Go(func() {
				for pause(during, time.Duration(40+25*r)*time.Millisecond) {
					b.set(who, waits)
					mu.RLock()
					b.set(who, reads)
					b.check(p.read())
					b.set(who, away)
					mu.RUnlock()
				}
			})
		}
		who := b.add(program + " writer")
		all.Go(func() {
			for pause(during, time.Duration(250+100*i)*time.Millisecond) {
				b.set(who, waits)
				mu.Lock()
				b.set(who, writes)
				p.rise()
				b.set(who, away)
				mu.Unlock()
			}
		})
	}
	for range columns {
		time.Sleep(column)
		b.draw()
	}
	stop()
	if err := wait(ctx, &all); err != nil {
		return err
	}
	return b.verdict()
}

// prices is the data that the lock protects: ask is always one above bid, except while a
// write is in progress.
type prices struct{ bid, ask int }

func (p *prices) read() (bid, ask int) {
	bid = p.bid
	time.Sleep(110 * time.Millisecond)
	return bid, p.ask
}

func (p *prices) rise() {
	p.bid++
	time.Sleep(75 * time.Millisecond)
	p.ask++
}

// pause waits for d, and reports whether there is more to do then.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func wait(ctx context.Context, all *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.New("somebody still waits for the lock")
	}
}

// What a reader or writer is doing.
const (
	away   = ' '
	waits  = '.'
	reads  = 'r'
	writes = 'W'
)

// board records what each reader and writer does, checks it, and draws a chart.
type board struct {
	mu    sync.Mutex // guards the rest
	names []string
	now   []byte // what each reader and writer does
	chart [][]byte
	wrong error

	reads, writes            int
	mostReaders, mostWriters int
}

func (b *board) add(name string) (who int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names, b.now, b.chart = append(b.names, name), append(b.now, away), append(b.chart, nil)
	return len(b.names) - 1
}

func (b *board) set(who int, does byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now[who] = does
	readers, writers := strings.Count(string(b.now), "r"), strings.Count(string(b.now), "W")
	switch does {
	case reads:
		b.reads++
	case writes:
		b.writes++
	}
	b.mostReaders, b.mostWriters = max(b.mostReaders, readers), max(b.mostWriters, writers)
	if writers > 1 || writers == 1 && readers > 0 {
		b.fail(fmt.Errorf("%d writers and %d readers had the lock at once", writers, readers))
	}
}

func (b *board) check(bid, ask int) {
	if ask != bid+1 {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.fail(fmt.Errorf("a reader saw a bid of %d and an ask of %d: somebody wrote while it read", bid, ask))
	}
}

// fail keeps the first error. It must be called with b.mu held.
func (b *board) fail(err error) {
	if b.wrong == nil {
		b.wrong = err
	}
}

// draw adds a column.
func (b *board) draw() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.now {
		b.chart[i] = append(b.chart[i], b.now[i])
	}
}

func (b *board) verdict() error {
	for i, name := range b.names {
		fmt.Printf("  %-10s |%s|\n", name, b.chart[i])
	}
	fmt.Printf("\n%d reads, up to %d at once; %d writes, up to %d at once.\n",
		b.reads, b.mostReaders, b.writes, b.mostWriters)
	switch {
	case b.wrong != nil:
		return b.wrong
	case b.mostReaders < 2:
		return errors.New("readers never read together")
	case b.writes == 0:
		return errors.New("nobody ever wrote")
	}
	fmt.Println("OK: readers together, a writer alone, and every reader saw consistent prices.")
	return nil
}
