//go:build unix

package recipes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
)

// bench is what the tests of faults of JetStream have in common: a queue on its servers,
// and what handlers did with its items.
type bench struct {
	t       *testing.T
	servers *servers
	locks   *qlocktest.Cluster
	cfg     queue.Config

	mu      sync.Mutex // guards what follows
	order   []write    // as they were enqueued
	done    []write    // as handlers did them
	reports []string
	running map[string]context.Context // of the handler that began last, by key
}

func newBench(t *testing.T, n int, change ...func(*serverOptions)) *bench {
	t.Helper()
	b := &bench{t: t, servers: startServers(t, n, change...), locks: qlocktest.StartCluster(t, 1), running: map[string]context.Context{}}
	b.cfg = queue.Config{Name: "q", Replicas: n, Lease: b.locks.Lease(), MaxAttempts: 1000, Backoff: []time.Duration{10 * time.Millisecond}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again: -recipes.seed=%d", *seed)
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Logf("reports of the workers:\n%s", strings.Join(b.reports[max(0, len(b.reports)-40):], "\n"))
		}
	})
	return b
}

// open opens the queue, as often as it takes.
func (b *bench) open(js jetstream.JetStream) *queue.Queue {
	b.t.Helper()
	var q *queue.Queue
	b.servers.await("the queue is opened", func() bool {
		var err error
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
		defer cancel()
		q, err = queue.Open(ctx, js, b.cfg)
		return err == nil
	})
	return q
}

// enqueue enqueues an item, as often as it takes.
func (b *bench) enqueue(q *queue.Queue, key, item string) {
	b.t.Helper()
	b.servers.await("an item is stored", func() bool {
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		_, err := q.Enqueue(ctx, key, []byte(item), queue.WithID(key+"/"+item))
		return err == nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, write{Key: key, Item: item})
}

// handle is the handler of most tests.
func (b *bench) handle(ctx context.Context, it *queue.Item) error {
	// A context may end late, when the lock is another's. The lease clock tells.
	b.mu.Lock()
	err := qlock.Held(ctx)
	if other := b.running[it.Key]; other != nil && err == nil && qlock.Held(other) == nil {
		b.t.Errorf("two handlers run for the key %s", it.Key)
	}
	if err == nil {
		b.running[it.Key] = ctx
	}
	b.mu.Unlock()
	time.Sleep(time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running[it.Key] == ctx {
		delete(b.running, it.Key)
	}
	if err := qlock.Held(ctx); err != nil {
		return err
	}
	b.done = append(b.done, write{it.Key, string(it.Data), qlock.Token(ctx)})
	return nil
}

// work runs a worker until stop is called, which returns what Work did.
func (b *bench) work(q *queue.Queue, h queue.Handler, opts ...queue.WorkOption) (stop func() error, ended <-chan struct{}) {
	b.t.Helper()
	l := b.locks.Locker(b.t)
	ctx, cancel := context.WithCancel(b.t.Context())
	over := make(chan struct{})
	var err error
	go func() {
		defer close(over)
		err = q.Work(ctx, l, h, append(opts, queue.WithErrors(func(_ *queue.Item, err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.reports = append(b.reports, err.Error())
		}))...)
	}()
	stop = func() error {
		cancel()
		<-over
		return err
	}
	b.t.Cleanup(func() { _ = stop() })
	return stop, over
}

func (b *bench) await(what string, ok func() bool) {
	b.t.Helper()
	b.servers.await(what, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return ok()
	})
}

// finish waits until the queue is empty, and compares what was done with what was enqueued.
func (b *bench) finish(q *queue.Queue) (again int) {
	b.t.Helper()
	var last string
	limit := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
		s, err := q.Stats(ctx)
		cancel()
		if err == nil && s.Items == 0 {
			if s.Dead != 0 {
				b.t.Errorf("%d dead letters", s.Dead)
			}
			break
		}
		if last = fmt.Sprint(s, err); time.Now().After(limit) {
			b.t.Fatalf("not done within %v: %s", patience, last)
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return checkOrder(b.t, b.order, b.done)
}

// The server that leads the stream is stopped and started while items come and go; with
// -recipes.long then that which leads the consumer, and then the leader of the stream is lost
// with its disk. No item is lost, and the items of a key stay in order.
func TestReplicas(t *testing.T) {
	t.Parallel()
	b := newBench(t, 3)
	_, js := b.servers.connect(t)
	q := b.open(js)
	for range 3 {
		_, js := b.servers.connect(t)
		b.work(b.open(js), b.handle, queue.WithConcurrency(4))
	}
	over := make(chan struct{})
	var producers sync.WaitGroup
	for i, key := range []string{"a", "b", "c", "d"} {
		r := rand.New(rand.NewPCG(*seed, uint64(i)))
		producers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				case <-time.After(between(r, 10*time.Millisecond, 60*time.Millisecond)):
				}
				b.mu.Lock()
				behind := len(b.order) - len(b.done)
				b.mu.Unlock()
				if behind > 60 {
					continue // the workers are slower, and what they leave must be done in the end
				}
				b.enqueue(q, key, fmt.Sprint(n))
			}
		})
	}
	leader := func(consumer bool) int {
		name := ""
		b.servers.await("there is a leader", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if s, err := js.Stream(ctx, "qlock-queue-q"); err == nil && !consumer {
				name = s.CachedInfo().Cluster.Leader
			} else if c, err := js.Consumer(ctx, "qlock-queue-q", "workers"); err == nil && consumer {
				name = c.CachedInfo().Cluster.Leader
			}
			return name != ""
		})
		return slices.IndexFunc(b.servers.opts, func(o *serverOptions) bool { return o.ServerName == name })
	}
	current := func() bool { // else a majority may be lost with the next one
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, "qlock-queue-q")
		if err != nil {
			return false
		}
		c := s.CachedInfo().Cluster
		return c.Leader != "" && len(c.Replicas) == 2 && !slices.ContainsFunc(c.Replicas, func(p *jetstream.PeerInfo) bool { return p.Offline || !p.Current })
	}
	progress := func() {
		b.mu.Lock()
		n := len(b.order)
		b.mu.Unlock()
		b.await("an item that was stored after this is done", func() bool {
			return len(b.order) > n && slices.ContainsFunc(b.done, func(w write) bool { w.Token = 0; return w == b.order[n] })
		})
	}
	rounds := 1
	if *long {
		rounds = 3
	}
	for round := range rounds {
		progress()
		began := time.Now()
		i := leader(round == 1)
		b.servers.stop(i)
		if round == 2 {
			b.servers.opts[i].StoreDir = t.TempDir() // its disk is lost
		}
		progress() // while it is away
		away := time.Since(began)
		b.servers.start(i)
		b.servers.await("all replicas are there", current)
		t.Logf("%s was away: the queue went on after %v, and was complete again %v later", b.servers.opts[i].ServerName, away, time.Since(began)-away)
	}
	progress()
	close(over)
	producers.Wait()
	began := time.Now()
	again := b.finish(q)
	if time.Since(began) > 5*time.Second {
		b.mu.Lock() // the workers go on
		for _, r := range b.reports[max(0, len(b.reports)-60):] {
			t.Log(r)
		}
		b.mu.Unlock()
	}
	t.Logf("%d items, %d of them done again, the last %v after the last was stored", len(b.order), again, time.Since(began))
}

// A worker whose stream or consumer was deleted says so and ends, whether it waits for
// items or is busy. The queue can be opened again and goes on: with the items that the
// stream has, or anew.
func TestDeleted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		delete func(context.Context, jetstream.JetStream) error
		busy   bool
		want   error
		say    string
	}{
		{"consumer", func(ctx context.Context, js jetstream.JetStream) error {
			return js.DeleteConsumer(ctx, "qlock-queue-q", "workers")
		}, false, queue.ErrDeleted, "consumer"},
		{"consumer, busy", func(ctx context.Context, js jetstream.JetStream) error {
			return js.DeleteConsumer(ctx, "qlock-queue-q", "workers")
		}, true, queue.ErrDeleted, "consumer"},
		{"stream", func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, "qlock-queue-q") }, false, queue.ErrDeleted, "stream"},
		{"stream, busy", func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, "qlock-queue-q") }, true, queue.ErrDeleted, "stream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			_, js := b.servers.connect(t)
			q := b.open(js)
			begun, goOn := make(chan struct{}, 100), make(chan struct{})
			stop, ended := b.work(q, func(ctx context.Context, it *queue.Item) error {
				begun <- struct{}{}
				<-goOn
				return b.handle(ctx, it)
			})
			stays := strings.HasPrefix(c.name, "consumer")
			if c.busy {
				for i := range 20 { // more than a worker takes
					b.enqueue(q, "a", fmt.Sprint(i))
				}
				<-begun
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := c.delete(ctx, js); err != nil {
				t.Fatal(err)
			}
			close(goOn)
			select {
			case <-ended:
			case <-ctx.Done():
				t.Fatal("the worker goes on")
			}
			err := stop()
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say+" ") {
				t.Errorf("the worker ended with %v, want %v of the %s", err, c.want, c.say)
			}
			t.Log(err)
			if !stays {
				// Enqueue does not wait for long to hear why no stream took the item.
				b.servers.await("Enqueue says that the stream is deleted", func() bool {
					_, err := q.Enqueue(ctx, "a", nil)
					if err == nil {
						t.Fatal("an item for a stream that was deleted")
					}
					return errors.Is(err, queue.ErrDeleted)
				})
				b.order, b.done = nil, nil // they are lost
			}
			q = b.open(js)
			b.work(q, b.handle)
			b.enqueue(q, "a", "last")
			b.finish(q)
		})
	}
}

// An item of a new stream has the sequence of one of the former stream. It has no attempts,
// and its dead letter is kept, though the other's was stored a moment ago.
func TestNewStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.cfg.MaxAttempts = 2
	_, js := b.servers.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for life := range 2 {
		q := b.open(js)
		var attempts atomic.Int32
		stop, _ := b.work(q, func(context.Context, *queue.Item) error {
			attempts.Add(1)
			return errors.New("no")
		})
		b.enqueue(q, "a", fmt.Sprint(life))
		b.servers.await("there is a dead letter", func() bool {
			s, err := q.Stats(ctx)
			return err == nil && s.Items == 0
		})
		if s, err := q.Stats(ctx); err != nil || s.Dead != uint64(life)+1 {
			t.Errorf("%d dead letters after %d items failed: %v", s.Dead, life+1, err)
		}
		if n := attempts.Load(); n != 2 {
			t.Errorf("%d attempts, want 2", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		// A worker that is interrupted leaves the attempts of an item behind.
		if _, err := js.Publish(ctx, "qlock.queue.q.try.1", []byte("2")); err != nil {
			t.Fatal(err)
		}
		if err := js.DeleteStream(ctx, "qlock-queue-q"); err != nil {
			t.Fatal(err)
		}
	}
}

// An account that is full refuses new items, and keeps those that it has. A full stream of
// dead letters keeps the item in the queue.
func TestFull(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1, func(o *serverOptions) { o.JetStreamMaxStore = 1 << 20 })
	_, js := b.servers.connect(t)
	q := b.open(js)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	limit := func(stream string, n int64) {
		t.Helper()
		s, err := js.Stream(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		cfg.MaxMsgs = n
		if _, err := js.UpdateStream(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; ; i++ {
		item := fmt.Sprintf("%d %0100000d", i, 0)
		_, err := q.Enqueue(ctx, "a", []byte(item))
		if err == nil && i < 100 {
			b.order = append(b.order, write{Key: "a", Item: item})
			continue
		}
		var api *jetstream.APIError
		if !errors.As(err, &api) || !strings.Contains(err.Error(), "resource") {
			t.Errorf("an item more than the account takes: %v", err)
		}
		t.Logf("%d items are stored: %v", i, err)
		break
	}
	var refuse atomic.Bool
	b.work(q, func(ctx context.Context, it *queue.Item) error {
		if refuse.Load() {
			return queue.Discard(errors.New("no"))
		}
		return b.handle(ctx, it)
	})
	b.finish(q)

	refuse.Store(true)
	limit("qlock-dead-q", 1)
	for _, item := range []string{"first", "second"} {
		if _, err := q.Enqueue(ctx, item, nil); err != nil {
			t.Fatal(err)
		}
	}
	b.await("a worker says that the dead letter cannot be stored", func() bool {
		return slices.ContainsFunc(b.reports, func(s string) bool {
			return strings.Contains(s, "dead letter") && strings.Contains(s, "maximum messages exceeded")
		})
	})
	// The one that is a dead letter leaves the queue when that is stored.
	b.servers.await("one is a dead letter, and the other stays", func() bool {
		s, err := q.Stats(ctx)
		return err == nil && s == queue.Stats{Items: 1, Dead: 1}
	})
	limit("qlock-dead-q", -1)
	b.servers.await("both are dead letters", func() bool {
		s, err := q.Stats(ctx)
		return err == nil && s == queue.Stats{Dead: 2}
	})
}

// faulty is a JetStream whose answers are lost or old.
type faulty struct {
	jetstream.JetStream
	first func() bool              // the question for the first item says that there is none
	ack   func() (send, tell bool) // whether an acknowledgement comes to the server, and its answer back
}

type faultyStream struct {
	jetstream.Stream
	*faulty
}

type faultyConsumer struct {
	jetstream.Consumer
	*faulty
}

type faultyBatch struct {
	jetstream.MessageBatch
	*faulty
}

type faultyMsg struct {
	jetstream.Msg
	*faulty
}

func (f *faulty) CreateOrUpdateStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := f.JetStream.CreateOrUpdateStream(ctx, cfg)
	return &faultyStream{s, f}, err
}

func (f *faultyStream) GetMsg(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if f.first != nil && f.first() {
		return nil, jetstream.ErrMsgNotFound
	}
	return f.Stream.GetMsg(ctx, seq, opts...)
}

func (f *faultyStream) CreateOrUpdateConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	c, err := f.Stream.CreateOrUpdateConsumer(ctx, cfg)
	return &faultyConsumer{c, f.faulty}, err
}

func (f *faultyConsumer) Fetch(n int, opts ...jetstream.FetchOpt) (jetstream.MessageBatch, error) {
	b, err := f.Consumer.Fetch(n, opts...)
	return &faultyBatch{b, f.faulty}, err
}

func (f *faultyBatch) Messages() <-chan jetstream.Msg {
	out := make(chan jetstream.Msg)
	go func() {
		defer close(out)
		for m := range f.MessageBatch.Messages() {
			out <- &faultyMsg{m, f.faulty}
		}
	}()
	return out
}

var errAnswerLost = errors.New("the answer is lost")

func (f *faultyMsg) DoubleAck(ctx context.Context) error {
	send, tell := true, true
	if f.ack != nil {
		send, tell = f.ack()
	}
	if send {
		if err := f.Msg.DoubleAck(ctx); err != nil {
			return err
		}
	}
	if !tell {
		return errAnswerLost
	}
	return nil
}

// Acknowledgements, or their answers, are lost. Items may be done again, and none is lost
// or comes after one that was enqueued behind it.
func TestAckLost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		send bool
	}{{"the acknowledgement", false}, {"its answer", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 1)
			_, js := b.servers.connect(t)
			q := b.open(js)
			var n atomic.Int32
			f := &faulty{JetStream: js, ack: func() (send, tell bool) {
				if n.Add(1)%7 == 3 {
					return c.send, false
				}
				return true, true
			}}
			for i := range 40 {
				b.enqueue(q, fmt.Sprint("k", i%3), fmt.Sprint(i))
			}
			for range 2 {
				b.work(b.open(f), b.handle, queue.WithConcurrency(2))
			}
			t.Logf("%d items were done again", b.finish(q))
		})
	}
}

// The stream that is asked for the first item of a key says that there is none, though
// there is: its server has just become the leader, or does not know that it is not any more.
// The item is not lost.
func TestStaleAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	_, js := b.servers.connect(t)
	q := b.open(js)
	var n atomic.Int32
	f := &faulty{JetStream: js, first: func() bool { return n.Add(1)%5 == 2 }}
	for i := range 40 {
		b.enqueue(q, fmt.Sprint("k", i%3), fmt.Sprint(i))
	}
	for range 2 {
		b.work(b.open(f), b.handle, queue.WithConcurrency(2))
	}
	b.finish(q)
}
