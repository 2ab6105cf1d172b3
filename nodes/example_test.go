package nodes_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/nodes"
)

// maxLease is short, so that the examples do not take long. With the default of 30 s a change takes
// half a minute.
const maxLease = time.Second

// start starts a cluster of one node, n1, and a node that waits to be added, n2.
func start(ctx context.Context) (nc *nats.Conn, stop func()) {
	cluster, err := embedded.StartCluster(ctx, 1, func(_ int, c *embedded.Config) { c.Node.MaxLease, c.Node.ProbeWait = maxLease, maxLease/4 })
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "n2-")
	if err != nil {
		log.Fatal(err)
	}
	first := cluster.Servers()[0]
	n2, err := embedded.Start(ctx, embedded.Config{
		Node:   qlock.NodeConfig{Name: "n2", Join: true, StateDir: dir, MaxLease: maxLease},
		Routes: []string{first.RouteURL()}, Port: -1, RoutePort: -1,
	})
	if err != nil {
		log.Fatal(err)
	}
	for { // until the servers have found each other
		m, err := qlock.QueryMembers(ctx, n2.Conn(), qlock.WithName("ops"))
		if err != nil {
			log.Fatal(err)
		}
		if len(m.Nodes) == 2 {
			break
		}
	}
	return n2.Conn(), func() {
		_ = n2.Close()
		_ = cluster.Close()
		_ = os.RemoveAll(dir)
	}
}

// show prints the list of nodes, and the change that is under way.
func show(ctx context.Context, nc *nats.Conn) {
	m, err := qlock.QueryMembers(ctx, nc, qlock.WithName("ops"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print("nodes ", m.Config.Nodes)
	if m.Change != nil {
		fmt.Print(", changing to ", m.Change.Nodes)
	}
	fmt.Println()
}

// A second node is added. It was started with Join, and waits.
func ExampleChange() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, stop := start(ctx)
	defer stop()

	show(ctx, nc)
	if err := nodes.Change(ctx, nc, []string{"n1", "n2"}, nodes.Name("ops")); err != nil {
		log.Fatal(err)
	}
	show(ctx, nc)
	// Output:
	// nodes [n1]
	// nodes [n1 n2]
}

// A change can be left half-way. Locks need both lists then, and anybody can end it.
func ExampleRollBack() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, stop := start(ctx)
	defer stop()

	if err := nodes.Change(ctx, nc, []string{"n2"}, nodes.Name("ops"), nodes.StayJoint()); err != nil {
		log.Fatal(err)
	}
	show(ctx, nc)
	if err := nodes.RollBack(ctx, nc, nodes.Name("ops")); err != nil {
		log.Fatal(err)
	}
	show(ctx, nc)
	// Output:
	// nodes [n1], changing to [n2]
	// nodes [n1]
}

// What is decided, and what is waited for, can be shown to a person.
func ExampleProgress() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, stop := start(ctx)
	defer stop()

	progress := nodes.Progress(func(s string) { fmt.Println(s) })
	if err := nodes.Enable(ctx, nc, nodes.Name("ops"), progress); err != nil {
		log.Fatal(err)
	}
	// Output: epoch 1 is decided: nodes [n1]
}
