package election_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/embedded"
)

// lead schedules while this process is the leader, and campaigns while it is not.
func lead(ctx context.Context, locker *qlock.Locker, schedule func(ctx context.Context, term uint64) error) error {
	e, err := election.New(locker, "scheduler")
	if err != nil {
		return err
	}
	return e.Run(ctx, "10.0.0.7:8080", func(ctx context.Context) error {
		// This process leads until ctx ends. If the leadership is lost, Run campaigns again.
		return schedule(ctx, qlock.Token(ctx)) // the term: send it with each write
	})
}

// A scheduler that runs in several processes, and schedules in one of them.
func Example() {
	ctx, stopped := context.WithCancel(context.Background())
	locker, stop := newLocker("scheduler") // each process has its own
	defer stop()

	err := lead(ctx, locker, func(ctx context.Context, term uint64) error {
		e, err := election.New(locker, "scheduler")
		if err != nil {
			return err
		}
		leader, err := e.Leader(ctx)
		fmt.Println(leader.Client, "leads at", leader.Value, err)
		fmt.Println("the term is that of the context:", leader.Term == term)
		stopped() // as a signal would
		<-ctx.Done()
		return nil
	})
	fmt.Println("the end:", err)
	// Output:
	// scheduler leads at 10.0.0.7:8080 <nil>
	// the term is that of the context: true
	// the end: <nil>
}

// What Run does, step by step.
func ExampleElection_Campaign() {
	ctx := context.Background()
	locker, stop := newLocker("scheduler")
	defer stop()
	e, err := election.New(locker, "scheduler")
	if err != nil {
		log.Fatal(err)
	}

	leadership, err := e.Campaign(ctx, "starting")
	if err != nil {
		log.Fatal(err)
	}
	// Work under leadership.Context(), and send leadership.Token() with each write.
	if err := leadership.Proclaim(ctx, "serving"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(leadership.Value())
	if err := leadership.Resign(ctx); err != nil {
		log.Fatal(err) // it was lost before
	}
	if err := locker.Flush(ctx); err != nil { // until the nodes know
		log.Fatal(err)
	}
	_, err = e.Leader(ctx)
	fmt.Println("nobody leads:", errors.Is(err, election.ErrNoLeader))
	// Output:
	// serving
	// nobody leads: true
}

// A program that follows the leader, whoever that is.
func ExampleElection_Observe() {
	ctx := context.Background()
	locker, stop := newLocker("scheduler")
	defer stop()
	e, err := election.New(locker, "scheduler") // and WithEvents, to learn of changes at once
	if err != nil {
		log.Fatal(err)
	}
	leadership, err := e.Campaign(ctx, "10.0.0.7:8080")
	if err != nil {
		log.Fatal(err)
	}
	defer leadership.Resign(ctx)

	for leader, err := range e.Observe(ctx) {
		if err != nil {
			continue // nobody leads, or too few nodes tell
		}
		fmt.Println("connect to", leader.Value)
		break // a real program goes on
	}
	// Output: connect to 10.0.0.7:8080
}

// newLocker makes a Locker on NATS with one node.
func newLocker(name string) (*qlock.Locker, func()) {
	cluster, err := embedded.StartCluster(context.Background(), 1)
	if err != nil {
		log.Fatal(err)
	}
	locker, err := qlock.New(context.Background(), cluster.Servers()[0].Conn(), qlock.WithName(name))
	if err != nil {
		log.Fatal(err)
	}
	return locker, func() {
		_ = locker.Close()
		_ = cluster.Close()
	}
}
