package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// demonstrate makes traffic to look at: a lock, a client that waits for it, readers, a try
// that fails, and a lock that is lost because two of three nodes die.
func demonstrate(ctx context.Context, subject string) (err error) {
	fmt.Print("Neither -server nor NATS_URL is given: NATS with three nodes starts in this process,\n" +
		"with some traffic. Requests to the nodes are in lower case, EVENTS in capitals.\n\n")
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	n1 := cluster.Servers()[0]
	observer, err := nats.Connect(n1.ClientURL(), nats.Name("observe"))
	if err != nil {
		return err
	}
	defer observer.Close()
	p, err := watch(observer, subject)
	if err != nil {
		return err
	}

	client := map[string]*qlock.Locker{}
	for _, name := range []string{"orders", "billing", "mail"} {
		nc, err := nats.Connect(n1.ClientURL(), nats.Name(name))
		if err != nil {
			return err
		}
		defer nc.Close()
		l, err := qlock.New(ctx, nc, qlock.WithName(name), qlock.WithLease(2*time.Second))
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		client[name] = l
	}
	if err := traffic(ctx, client); err != nil {
		return err
	}

	lock, err := client["billing"].Lock(ctx, "orders.42")
	if err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond) // for the observer
	fmt.Print("              n2 and n3 die now: a lock needs two votes, so this lock will be lost\n")
	if err := errors.Join(cluster.Crash("n2"), cluster.Crash("n3")); err != nil {
		return err
	}
	select {
	case <-lock.Context().Done():
	case <-ctx.Done():
		return errors.New("billing was not told that its lock was lost")
	}
	if err := lock.Unlock(ctx); !errors.Is(err, qlock.ErrLost) {
		return fmt.Errorf("a lost lock was unlocked with the error %v", err)
	}
	for _, what := range []string{"acquired", "released", "lost"} {
		for p.count(what) == 0 { // the event is on its way to the observer
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("no lock was seen to be %s", what)
			}
		}
	}
	return nil
}

func traffic(ctx context.Context, client map[string]*qlock.Locker) error {
	orders, billing, mail := client["orders"], client["billing"], client["mail"]

	// One client holds the lock, one waits, and one does not wait.
	first, err := orders.Lock(ctx, "orders.42")
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	var waited error
	wait.Go(func() {
		waited = billing.Do(ctx, "orders.42", func(context.Context) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
	})
	time.Sleep(100 * time.Millisecond)
	if _, err := mail.TryLock(ctx, "orders.42"); !errors.Is(err, qlock.ErrHeld) {
		return fmt.Errorf("mail tried a lock that orders holds: %v", err)
	}
	time.Sleep(100 * time.Millisecond)
	if err := first.Unlock(ctx); err != nil {
		return err
	}
	wait.Wait()
	if waited != nil {
		return waited
	}

	// Two readers of a name that must be encoded in a subject.
	for _, reader := range []*qlock.Locker{orders, mail} {
		lock, err := reader.RLock(ctx, "price list")
		if err != nil {
			return err
		}
		defer func() { _ = lock.Unlock(ctx) }()
	}
	time.Sleep(800 * time.Millisecond)
	return nil
}
