package members_test

import (
	"context"
	"fmt"

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
	nc, err = nats.Connect(cluster.Servers()[0].ClientURL())
	if err != nil {
		return nil, nil, nil, err
	}
	locker, err = qlock.New(ctx, nc)
	if err != nil {
		return nil, nil, nil, err
	}
	return locker, nc, func() { _ = locker.Close(); nc.Close(); _ = cluster.Close() }, nil
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
