package partition_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/partition"
)

// start makes a cluster of one node in this process, and a Locker. A real program has a
// connection to a cluster.
func start() (locker *qlock.Locker, nc *nats.Conn, stop func(), err error) {
	ctx := context.Background()
	cluster, err := embedded.StartCluster(ctx, 1)
	if err != nil {
		return nil, nil, nil, err
	}
	nc, err = nats.Connect(cluster.Servers()[0].ClientURL(), nats.Timeout(time.Minute))
	if err != nil {
		return nil, nil, nil, err
	}
	locker, err = qlock.New(ctx, nc)
	if err != nil {
		return nil, nil, nil, err
	}
	return locker, nc, func() { _ = locker.Close(); nc.Close(); _ = cluster.Close() }, nil
}

// A worker owns its share of four partitions; it is alone, so that is all of them.
func Example() {
	locker, nc, stop, err := start()
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx := context.Background()
	group, err := partition.New(locker, "orders", 4, partition.WithEvents(nc))
	if err != nil {
		panic(err)
	}
	owned := make(chan int)
	worker, err := group.Join(ctx, "worker-7", "", func(ctx context.Context, a partition.Assignment) {
		owned <- a.Partition
		select {
		case <-a.Moving: // finish what has begun, and return
		case <-ctx.Done(): // lost
		}
	})
	if err != nil {
		panic(err)
	}
	sum := 0
	for range 4 {
		sum += <-owned
	}
	owner, err := group.Owner(ctx, "customer 42")
	if err != nil {
		panic(err)
	}
	fmt.Println(sum, owner.ID, owner.Partition == group.Partition("customer 42"))
	if err := worker.Leave(ctx); err != nil {
		panic(err)
	}
	// Output: 6 worker-7 true
}

// consume is what a service does: it works on each partition that it owns.
func consume(ctx context.Context, locker *qlock.Locker, nc *nats.Conn, work func(ctx context.Context, partition int)) error {
	group, err := partition.New(locker, "orders", 256, partition.WithEvents(nc))
	if err != nil {
		return err
	}
	worker, err := group.Join(ctx, "worker-7", "", func(ctx context.Context, a partition.Assignment) {
		for ctx.Err() == nil { // until the lock is lost, or the drain time is over
			select {
			case <-a.Moving: // another worker is to have it: return, and it goes on there
				return
			default:
				work(ctx, a.Partition) // qlock.Token(ctx) is the fencing token
			}
		}
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return worker.Leave(context.WithoutCancel(ctx))
}

func Example_consume() {
	locker, nc, stop, err := start()
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	fmt.Println(consume(ctx, locker, nc, func(_ context.Context, partition int) {
		if partition == 17 {
			cancel() // enough for an example
		}
		time.Sleep(time.Millisecond)
	}))
	// Output: <nil>
}
