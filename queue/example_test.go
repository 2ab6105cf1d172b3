package queue_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/queue"
)

// start makes a lock cluster of one node, and a server with JetStream, in this process. A
// real program has one connection for both.
func start() (locker *qlock.Locker, js jetstream.JetStream, stop func(), err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "queue-example")
	if err != nil {
		return nil, nil, nil, err
	}
	srv, err := server.NewServer(&server.Options{Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dir})
	if err != nil {
		return nil, nil, nil, err
	}
	srv.Start()
	if !srv.ReadyForConnections(2 * time.Minute) {
		return nil, nil, nil, errors.New("the server is not ready")
	}
	stored, err := nats.Connect(srv.ClientURL(), nats.Timeout(time.Minute))
	if err != nil {
		return nil, nil, nil, err
	}
	if js, err = jetstream.New(stored); err != nil {
		return nil, nil, nil, err
	}
	cluster, err := embedded.StartCluster(ctx, 1)
	if err != nil {
		return nil, nil, nil, err
	}
	nc, err := nats.Connect(cluster.Servers()[0].ClientURL(), nats.Timeout(time.Minute))
	if err != nil {
		return nil, nil, nil, err
	}
	if locker, err = qlock.New(ctx, nc); err != nil {
		return nil, nil, nil, err
	}
	return locker, js, func() {
		_ = locker.Close()
		nc.Close()
		stored.Close()
		_ = cluster.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
		_ = os.RemoveAll(dir)
	}, nil
}

// deliver is what a service does: it works on items, those of one customer one at a time.
func deliver(ctx context.Context, locker *qlock.Locker, js jetstream.JetStream, send func(ctx context.Context, customer string, mail []byte) error) error {
	q, err := queue.Open(ctx, js, queue.Config{Name: "mail"})
	if err != nil {
		return err
	}
	return q.Work(ctx, locker, func(ctx context.Context, item *queue.Item) error {
		// No other worker has an item of this customer. qlock.Token(ctx) is the token.
		return send(ctx, item.Key, item.Data) // an error: it is tried again
	}, queue.WithConcurrency(16))
}

// Items of one key are worked on one at a time and in order. One that fails is tried again
// before those behind it.
func Example() {
	locker, js, stop, err := start()
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	q, err := queue.Open(ctx, js, queue.Config{Name: "mail"})
	if err != nil {
		panic(err)
	}
	for _, text := range []string{"welcome", "invoice"} {
		if _, err := q.Enqueue(ctx, "customer-42", []byte(text), queue.WithID("42/"+text)); err != nil {
			panic(err)
		}
	}
	tries := 0
	err = deliver(ctx, locker, js, func(_ context.Context, customer string, mail []byte) error {
		if tries++; tries == 1 {
			return queue.RetryAfter(errors.New("busy"), 0)
		}
		fmt.Println(customer, string(mail))
		if string(mail) == "invoice" {
			cancel() // enough for an example
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// customer-42 welcome
	// customer-42 invoice
	// <nil>
}
