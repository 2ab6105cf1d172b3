package members_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/members"
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

// announce is what a service does: it is a member while it runs, and follows who else is.
func announce(ctx context.Context, locker *qlock.Locker, nc *nats.Conn, use func([]members.Info)) error {
	group, err := members.New(locker, "workers", members.WithEvents(nc))
	if err != nil {
		return err
	}
	me, err := group.Join(ctx, "worker-7", "10.0.0.7:8080") // me.Context() ends if it is lost
	if err != nil {
		return err
	}
	defer me.Leave(ctx)
	for update, err := range group.Watch(ctx) {
		if err != nil {
			return err // or log it: Watch goes on
		}
		use(update.Members) // and update.Changes: joined, left, lost, changed
	}
	return nil
}

func Example_announce() {
	locker, nc, stop, err := start()
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	fmt.Println(announce(ctx, locker, nc, func(list []members.Info) {
		for _, m := range list {
			fmt.Println(m.ID, m.Meta)
			cancel() // enough for an example
		}
	}))
	// Output:
	// worker-7 10.0.0.7:8080
	// <nil>
}

// A worker joins, changes what it says of itself, and leaves. Another watches.
func Example() {
	locker, nc, stop, err := start()
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx := context.Background()
	group, err := members.New(locker, "workers", members.WithEvents(nc))
	if err != nil {
		panic(err)
	}
	me, err := group.Join(ctx, "worker-7", "zone=b")
	if err != nil {
		panic(err)
	}
	for update, err := range group.Watch(ctx) {
		if err != nil {
			panic(err)
		}
		for _, c := range update.Changes {
			fmt.Println(c.Kind, c.Member.ID, c.Member.Meta)
			switch c.Kind {
			case members.Joined:
				err = me.SetMeta(ctx, "zone=c")
			case members.Changed:
				err = me.Leave(ctx)
			}
			if err != nil {
				panic(err)
			}
		}
		if len(update.Members) == 0 {
			break
		}
	}
	// Output:
	// joined worker-7 zone=b
	// changed worker-7 zone=c
	// left worker-7 zone=c
}
