package embedded_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// A single server with one node: for a single machine, or to get started.
func ExampleStart() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "n1-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	cfg := embedded.Config{
		Node: qlock.NodeConfig{Name: "n1", Nodes: []string{"n1"}, StateDir: dir},
	}
	if err := qlock.Bootstrap(cfg.Node); err != nil { // once, by hand
		log.Fatal(err)
	}
	server, err := embedded.Start(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	if err := server.Node().WaitReady(ctx); err != nil {
		log.Fatal(err)
	}

	locker, err := qlock.New(ctx, server.Conn())
	if err != nil {
		log.Fatal(err)
	}
	defer locker.Close()
	err = locker.Do(ctx, "orders.42", func(context.Context) error {
		fmt.Println("holding orders.42")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: holding orders.42
}

// One of three machines. The others have the same configuration except for their own
// names. Each needs Bootstrap once, before its very first start.
func ExampleStart_cluster() {
	server, err := embedded.Start(context.Background(), embedded.Config{
		Node: qlock.NodeConfig{
			Cluster:  "prod",
			Name:     "n1",
			Nodes:    []string{"n1", "n2", "n3"},
			StateDir: "/var/lib/qlock",
		},
		Host: "0.0.0.0", Port: 4222, // for clients
		RouteHost: "0.0.0.0", RoutePort: 6222, // for n2 and n3
		Routes: []string{
			"nats-route://n1.example.com:6222",
			"nats-route://n2.example.com:6222",
			"nats-route://n3.example.com:6222",
		},
		RouteUser: "route", RoutePassword: os.Getenv("ROUTE_PASSWORD"),
		Username: "service", Password: os.Getenv("NATS_PASSWORD"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	<-server.Node().Done()
}

// Three servers in one process: locks are still granted when one of them dies.
func ExampleStartCluster() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	n1, n2 := cluster.Servers()[0], cluster.Servers()[1]

	locker, err := qlock.New(ctx, n1.Conn())
	if err != nil {
		log.Fatal(err)
	}
	defer locker.Close()

	try := func(when string) {
		lock, err := locker.Lock(ctx, "orders.42")
		if err != nil {
			log.Fatal(err)
		}
		defer lock.Unlock(ctx)
		fmt.Println(when, "locked")
	}
	try("with three nodes:")
	if err := cluster.Crash("n2"); err != nil {
		log.Fatal(err)
	}
	try("with two:")
	// It has forgotten its votes, so it now gives none for MaxLease and 16 % more.
	// n2.Node().WaitReady waits for the end of that time.
	if err := n2.Restart(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("n2 is", n2.Node().Stats().State)
	// Output:
	// with three nodes: locked
	// with two: locked
	// n2 is recovering
}
