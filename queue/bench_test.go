package queue_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/qlocktest"
	"github.com/qlock/qlock/queue"
)

// BenchmarkThroughput drains items by one worker with 32 handlers that do nothing, and by a
// bare consumer that acknowledges each item and waits for the confirmation, also 32 at a
// time. An operation is an item. The ratio of the two is what the locks and the order cost.
func BenchmarkThroughput(b *testing.B) {
	const at = 32
	fill := func(b *testing.B, q *queue.Queue, keys int) {
		b.Helper()
		slots := make(chan error, at)
		for i := range at {
			go func() {
				var err error
				for n := i; n < b.N && err == nil; n += at {
					_, err = q.Enqueue(context.Background(), fmt.Sprint(n%keys), []byte("0123456789"))
				}
				slots <- err
			}()
		}
		for range at {
			if err := <-slots; err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, keys := range []int{1 << 30, 100, 1} {
		name := fmt.Sprint("keys=", keys)
		if keys == 1<<30 {
			name = "keys=all"
		}
		b.Run("queue/"+name, func(b *testing.B) {
			c := qlocktest.StartCluster(b, 3, qlocktest.WithLease(10*time.Second))
			_, js := connect(b, jetStream(b))
			q := open(b, js, queue.Config{})
			fill(b, q, keys)
			ctx, cancel := context.WithCancel(b.Context())
			var done atomic.Int64
			b.ResetTimer()
			err := q.Work(ctx, c.Locker(b), func(context.Context, *queue.Item) error {
				if done.Add(1) == int64(b.N) {
					b.StopTimer()
					cancel()
				}
				return nil
			}, queue.WithConcurrency(at))
			if err != nil {
				b.Fatal(err)
			}
		})
	}
	b.Run("consumer", func(b *testing.B) {
		_, js := connect(b, jetStream(b))
		q := open(b, js, queue.Config{})
		fill(b, q, 100)
		consumer, err := js.Consumer(b.Context(), "qlock-queue-mail", "workers")
		if err != nil {
			b.Fatal(err)
		}
		var done atomic.Int64
		end := make(chan struct{})
		slots := make(chan struct{}, at)
		b.ResetTimer()
		consuming, err := consumer.Consume(func(m jetstream.Msg) {
			slots <- struct{}{}
			go func() {
				if err := m.DoubleAck(context.Background()); err != nil {
					b.Error(err)
				}
				<-slots
				if done.Add(1) == int64(b.N) {
					close(end)
				}
			}()
		})
		if err != nil {
			b.Fatal(err)
		}
		<-end
		b.StopTimer()
		consuming.Stop()
		<-consuming.Closed()
	})
}
