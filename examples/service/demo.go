package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// demonstrate runs the environment of the service: it starts NATS and the nodes and two
// instances, sends requests, and finally sends a SIGTERM to this process.
func demonstrate(ctx context.Context) (err error) {
	fmt.Print("Neither -server nor NATS_URL is given. NATS with three qlock nodes starts in this\n" +
		"process, two instances of the service connect to it, and a client asks for invoices.\n\n")
	cluster, err := embedded.StartCluster(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	var instances []*service
	stop := sync.OnceValue(func() error {
		var all sync.WaitGroup
		errs := make([]error, len(instances))
		for i, s := range instances {
			all.Go(func() { errs[i] = s.close() })
		}
		all.Wait()
		return errors.Join(errs...)
	})
	defer func() { err = errors.Join(err, stop()) }()
	for i, name := range []string{"invoices-a", "invoices-b"} {
		s, err := start(ctx, cluster.Servers()[i].ClientURL(), qlock.DefaultCluster, name)
		if err != nil {
			return err
		}
		instances = append(instances, s)
	}
	nc, err := nats.Connect(cluster.Servers()[2].ClientURL(), nats.Name("client"))
	if err != nil {
		return err
	}
	defer nc.Close()
	time.Sleep(100 * time.Millisecond) // the client's server learns of both instances

	one := ask(ctx, nc, "acme")
	two := ask(ctx, nc, "globex")
	time.Sleep(100 * time.Millisecond)
	three := ask(ctx, nc, "acme") // while the first is in progress
	if err := errors.Join(one.want(""), two.want(""), three.want("409")); err != nil {
		return err
	}
	if err := ask(ctx, nc, "acme").want(""); err != nil {
		return err
	}
	last := ask(ctx, nc, "initech")
	time.Sleep(100 * time.Millisecond)
	say("client", "sends SIGTERM to this process")
	if err := terminate(ctx); err != nil {
		return err
	}
	err = stop()
	return errors.Join(err, last.want("")) // the requests in progress were answered
}

// request is a request in progress.
type request struct {
	customer string
	answer   chan *nats.Msg
	err      error // set before answer is closed
}

func ask(ctx context.Context, nc *nats.Conn, customer string) *request {
	say("client", "asks for %s", customer)
	r := &request{customer: customer, answer: make(chan *nats.Msg, 1)}
	go func() {
		defer close(r.answer)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		m, err := nc.RequestWithContext(ctx, subject, []byte(customer))
		if err != nil {
			r.err = err
			return
		}
		if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
			say("client", "hears: %s for %s", code, customer)
		} else {
			say("client", "hears: %s", m.Data)
		}
		r.answer <- m
	}()
	return r
}

// want waits for the answer and checks its code, which is "" if there is none.
func (r *request) want(code string) error {
	m, ok := <-r.answer
	if !ok {
		return fmt.Errorf("no answer for %s: %w", r.customer, r.err)
	}
	if got := m.Header.Get(micro.ErrorCodeHeader); got != code {
		return fmt.Errorf("the answer for %s has the code %q, not %q", r.customer, got, code)
	}
	return nil
}

// terminate ends this process as a supervisor does.
func terminate(ctx context.Context) error {
	p, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		say("client", "cannot (%v), and continues as if it had", err) // Windows has no SIGTERM
		return nil
	}
	<-ctx.Done()
	return nil
}
