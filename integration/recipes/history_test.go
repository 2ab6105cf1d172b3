//go:build unix

package recipes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/internal/testworld"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
	"github.com/qlock/qlock/semaphore"
)

// What clients did while nodes crashed, stopped and were isolated, and clients were cut off, is
// checked against models. A history has an order in which the model allows it, or the checker
// finds that there is none: it needs no tolerances.

// deed is what was done to a thing: the leadership, a permit, or a key of a queue. Its holder is
// one term of office, one use of a permit, or one attempt of an item.
type deed struct {
	kind   string // enqueue, begin, end
	thing  string
	holder int
	item   uint64 // of enqueue and begin, of queues
	token  uint64 // of begin
	ok     bool   // of end: the item is done
}

type state struct {
	holder int // 0: nobody
	token  uint64
	items  string // of a queue: the numbers of those that are not done, or done last, each with a space
	done   bool   // the first of them is done, and may run again if that was not confirmed
}

// model: a thing has one holder at a time, whose token is above those before it. The items of a
// key begin in their order, each when the one before it is done.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			by[op.Input.(deed).thing] = append(by[op.Input.(deed).thing], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return state{} },
	Step: func(st, in, _ any) (bool, any) {
		s, d := st.(state), in.(deed)
		switch d.kind {
		case "enqueue":
			s.items += fmt.Sprint(d.item, " ")
			return true, s
		case "begin":
			// Several items may run one after the other under one lock.
			if s.holder != 0 || d.token < s.token || d.token == s.token && d.item == 0 {
				return false, s
			}
			s.holder, s.token = d.holder, d.token
			if d.item == 0 {
				return true, s
			}
			var first, second uint64
			_, _ = fmt.Sscan(s.items, &first, &second) // there may be none
			if s.done && d.item == second {
				s.items, s.done = s.items[len(fmt.Sprint(first, " ")):], false
				first = second
			}
			return d.item == first, s
		default:
			if s.holder != d.holder {
				return false, s
			}
			s.holder, s.done = 0, s.done || d.ok
			return true, s
		}
	},
	DescribeOperation: func(in, _ any) string { return fmt.Sprintf("%+v", in) },
	DescribeState:     func(st any) string { return fmt.Sprintf("%+v", st) },
}

// record is a history.
type record struct {
	start time.Time

	mu      sync.Mutex // guards what follows
	ops     []porcupine.Operation
	holders int
}

func (h *record) now() time.Duration { return time.Since(h.start) }

// next returns the number of a new holder.
func (h *record) next() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holders++
	return h.holders
}

// add notes a deed of a client, which took effect between two moments.
func (h *record) add(client int, d deed, from, to time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: d, Call: from.Nanoseconds(), Return: to.Nanoseconds()})
}

func (h *record) count(kind string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		if op.Input.(deed).kind == kind {
			n++
		}
	}
	return n
}

// check checks the history, and that the checker would find a token that was given twice.
func (h *record) check(t *testing.T) {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(model, h.ops, patience)
	t.Logf("%d operations: %s", len(h.ops), result)
	if result != porcupine.Ok {
		file := filepath.Join(t.ArtifactDir(), "history.html")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if err := porcupine.Visualize(model, info, f); err != nil {
			t.Error(err)
		}
		t.Fatalf("the model does not allow this history: see %s", file)
	}
	for what, spoil := range map[string]func(d *deed){
		"a token that falls":         func(d *deed) { d.token = 1 },
		"a holder that nobody ended": func(d *deed) { d.holder = -1 },
	} {
		bad := slices.Clone(h.ops)
		i := len(bad) / 2
		for d := bad[i].Input.(deed); d.kind != "begin"; d = bad[i].Input.(deed) {
			i++
		}
		d := bad[i].Input.(deed)
		spoil(&d)
		bad[i].Input = d
		if result := porcupine.CheckOperationsTimeout(model, bad, patience); result != porcupine.Illegal {
			t.Errorf("with %s the history is %s", what, result)
		}
	}
}

func TestElectionHistory(t *testing.T) {
	t.Parallel()
	c := testworld.StartFaults(t)
	h := &record{start: time.Now()}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	for i := range 4 {
		e, err := election.New(c.LockerOn(t, c.Client(t)), "scheduler")
		if err != nil {
			t.Fatal(err)
		}
		r := testworld.Rand(uint64(20 + i))
		all.Go(func() {
			for ctx.Err() == nil {
				called := h.now()
				k, err := e.Campaign(ctx, "")
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				d := deed{kind: "begin", thing: "scheduler", holder: h.next(), token: k.Token()}
				h.add(i, d, called, h.now())
				_, last, ok := testworld.Hold(k.Context(), h.start, r)
				if !ok {
					last = called // it was lost at some moment since
				}
				if err := k.Resign(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, qlock.ErrLost) {
					t.Error(err)
				}
				d.kind = "end"
				h.add(i, d, last, h.now())
			}
		})
	}
	c.RoundsFor(t, func() bool { return h.count("end") >= 20 })
	stop()
	all.Wait()
	h.check(t)
}

func TestSemaphoreHistory(t *testing.T) {
	t.Parallel()
	const limit = 3
	c := testworld.StartFaults(t)
	h := &record{start: time.Now()}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	for i := range 5 {
		s, err := semaphore.New(c.LockerOn(t, c.Client(t)), "renders", limit)
		if err != nil {
			t.Fatal(err)
		}
		r := testworld.Rand(uint64(30 + i))
		all.Go(func() {
			for ctx.Err() == nil {
				called := h.now()
				p, err := s.Acquire(ctx, 1+r.IntN(2))
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				returned := h.now()
				var deeds []deed
				for _, n := range p.Numbers() {
					if n < 1 || n > limit {
						t.Errorf("permit %d of %d", n, limit)
					}
					d := deed{kind: "begin", thing: fmt.Sprint("permit ", n), holder: h.next(), token: p.Token(n)}
					h.add(i, d, called, returned)
					deeds = append(deeds, d)
				}
				_, last, ok := testworld.Hold(p.Context(), h.start, r)
				if !ok {
					last = called // the first permit was lost at some moment since
				}
				others := called // what Hold looks at is the clock of the first permit
				now := h.now()
				switch err := p.Release(context.WithoutCancel(ctx)); {
				case err == nil: // all were held until now
					last, others = now, now
				case !errors.Is(err, qlock.ErrLost):
					t.Error(err)
				}
				for n, d := range deeds {
					d.kind = "end"
					if n > 0 {
						last = others
					}
					h.add(i, d, last, h.now())
				}
			}
		})
	}
	c.RoundsFor(t, func() bool { return h.count("end") >= 20 })
	stop()
	all.Wait()
	h.check(t)
}

func TestQueueHistory(t *testing.T) {
	t.Parallel()
	const lease, items = 700 * time.Millisecond, 100 // a short lease, which is lost again and again
	c := testworld.StartFaults(t, qlocktest.WithLease(lease))
	url := testworld.StartJetStream(t, 1)[0]
	open := func() *queue.Queue {
		nc, err := nats.Connect(url, nats.Timeout(patience))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		q, err := queue.Open(t.Context(), js, queue.Config{Name: "mail", Storage: jetstream.MemoryStorage, Lease: lease, MaxAttempts: 10_000, Backoff: []time.Duration{0}})
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	h := &record{start: time.Now()}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	for i := range 3 {
		q, l, r := open(), c.LockerOn(t, c.Client(t)), testworld.Rand(uint64(40+i))
		all.Go(func() {
			err := q.Work(ctx, l, func(ctx context.Context, it *queue.Item) (err error) {
				d := deed{kind: "begin", thing: it.Key, holder: h.next(), item: it.Seq, token: qlock.Token(ctx)}
				began, last, ok := testworld.Hold(ctx, h.start, r)
				if !ok {
					return errors.New("the lock was lost before the handler ran")
				}
				h.add(i, d, began, began)
				d.kind, d.ok = "end", ctx.Err() == nil && r.IntN(5) > 0
				h.add(i, d, last, h.now())
				if !d.ok {
					return errors.New("it was to fail")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	q, r := open(), testworld.Rand(50)
	all.Go(func() {
		for range items {
			key, called := fmt.Sprint(r.IntN(4)), h.now()
			receipt, err := q.Enqueue(testworld.Within(t, patience), key, nil)
			if err != nil {
				t.Error(err)
				return
			}
			h.add(9, deed{kind: "enqueue", thing: key, item: receipt.Seq}, called, h.now())
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		}
	})
	c.RoundsFor(t, func() bool {
		s, err := q.Stats(t.Context())
		return h.count("enqueue") == items && err == nil && s.Items == 0
	})
	stop()
	all.Wait()
	h.check(t)
}
