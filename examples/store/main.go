// A worker counts orders under a lock, each once. Then the server refuses the write of a
// former holder.
//
//	go run ./examples/store
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/store"
)

func main() {
	log.SetFlags(0)
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "qlock-store-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Locks and data may be of different servers: here the nodes have three of their own.
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	data, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: dir,
	})
	if err != nil {
		return err
	}
	data.Start()
	defer data.WaitForShutdown()
	defer data.Shutdown()
	nc, err := nats.Connect(cluster.Servers()[0].ClientURL())
	if err != nil {
		return err
	}
	defer nc.Close()
	dataConn, err := nats.Connect(data.ClientURL(), nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	defer dataConn.Close()
	js, err := jetstream.New(dataConn)
	if err != nil {
		return err
	}
	s, err := store.Create(ctx, js, jetstream.KeyValueConfig{Bucket: "orders", Storage: jetstream.MemoryStorage})
	if err != nil {
		return err
	}
	locker, err := qlock.New(ctx, nc, qlock.WithName("worker"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, locker.Close()) }()

	for order := range 3 {
		if err := count(ctx, s, locker, fmt.Sprint("order-", order)); err != nil {
			return err
		}
	}
	// The same order again, such as after a crash: nothing is done twice.
	if err := count(ctx, s, locker, "order-2"); err != nil {
		return err
	}

	stopped, err := locker.Lock(ctx, "orders")
	if err != nil {
		return err
	}
	former := s.With(unaware{stopped})
	if _, err := former.Put(ctx, "note", []byte("of a holder")); err != nil {
		return err
	}
	if err := stopped.Unlock(ctx); err != nil {
		return err
	}
	err = s.Under(ctx, locker, "orders", func(ctx context.Context, v *store.View) error {
		_, err := v.Put(ctx, "note", []byte("of the next holder"))
		return err
	})
	if err != nil {
		return err
	}
	if _, err = former.Put(ctx, "note", []byte("stale")); !errors.Is(err, store.ErrFenced) {
		return fmt.Errorf("a former holder has written: %w", err)
	}
	fmt.Println(err)
	return nil
}

// unaware is a lock whose holder does not learn that it is over: its process was stopped.
type unaware struct{ *qlock.Lock }

func (unaware) Context() context.Context { return context.Background() }

// count counts an order once.
func count(ctx context.Context, s *store.Store, locker *qlock.Locker, order string) error {
	return s.Under(ctx, locker, "orders", func(ctx context.Context, v *store.View) error {
		res, err := v.Do(ctx, store.Once(order, time.Hour), store.Put(order, []byte("paid")), store.Add("total", 1))
		if errors.Is(err, store.ErrDuplicate) {
			fmt.Printf("%s was counted before, as number %d\n", order, res.Number("total"))
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Printf("%s is number %d\n", order, res.Number("total"))
		return nil
	})
}
