// Service is a NATS microservice with a job that must not run twice at the same time for
// the same customer, however many instances it has. On SIGTERM or Ctrl-C it finishes the
// jobs in progress, releases its locks and exits.
//
//	go run ./examples/service -server nats://localhost:4222
//
// connects to a NATS system on which qlock nodes run (NATS_URL and -creds work too).
// "nats req invoices.run acme" sends it a request, "nats micro info invoices" shows it.
// Start it twice and send two requests at once: the second answer names the holder.
//
//	go run ./examples/service
//
// without a server starts everything itself (demo.go), sends requests and then a SIGTERM
// to itself, and exits. It prints:
//
//	Neither -server nor NATS_URL is given. NATS with three qlock nodes starts in this
//	process, two instances of the service connect to it, and a client asks for invoices.
//
//	08:08:10.094  invoices-a  serves invoices.run on nats://127.0.0.1:43293, and locks with nodes n1 n2 n3
//	08:08:10.099  invoices-b  serves invoices.run on nats://127.0.0.1:38977, and locks with nodes n1 n2 n3
//	08:08:10.203  client      asks for acme
//	08:08:10.203  client      asks for globex
//	08:08:10.204  invoices-b  acme: begins, with token 1795248490204186
//	08:08:10.204  invoices-b  globex: begins, with token 1795248490204349
//	08:08:10.303  client      asks for acme
//	08:08:10.304  invoices-b  acme: 409: qlock: try-lock "invoices.acme": held by invoices-b (exclusively) for 99ms, by this same Locker: locks are not reentrant
//	08:08:10.304  client      hears: 409 for acme
//	08:08:10.504  invoices-b  acme: done
//	08:08:10.504  invoices-b  globex: done
//	08:08:10.505  client      hears: invoices of globex written by invoices-b
//	08:08:10.505  client      hears: invoices of acme written by invoices-b
//	08:08:10.505  client      asks for acme
//	08:08:10.506  invoices-a  acme: begins, with token 1795248490505692
//	08:08:10.806  invoices-a  acme: done
//	08:08:10.807  client      hears: invoices of acme written by invoices-a
//	08:08:10.807  client      asks for initech
//	08:08:10.807  invoices-a  initech: begins, with token 1795248490807486
//	08:08:10.907  client      sends SIGTERM to this process
//	08:08:10.907  invoices-a  stops: accepts no more requests, finishes 1 in progress
//	08:08:10.908  invoices-b  stops: accepts no more requests, finishes 0 in progress
//	08:08:10.926  invoices-b  stopped
//	08:08:11.108  invoices-a  initech: done
//	08:08:11.109  client      hears: invoices of initech written by invoices-a
//	08:08:11.109  invoices-a  stopped
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/qlock/qlock"
)

const subject = "invoices.run"

func main() {
	server := flag.String("server", os.Getenv("NATS_URL"), "NATS servers to connect to; empty: start one, and run a demonstration")
	creds := flag.String("creds", "", "credentials file for -server")
	cluster := flag.String("cluster", qlock.DefaultCluster, "name of the qlock cluster")
	name := flag.String("name", fmt.Sprintf("invoices-%d", os.Getpid()), "name of this instance")
	flag.Parse()

	var opts []nats.Option
	if *creds != "" {
		opts = append(opts, nats.UserCredentials(*creds))
	}
	// The first SIGTERM or Ctrl-C ends ctx and with it the service.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *server == "" {
		err = demonstrate(ctx)
	} else {
		err = serve(ctx, *server, *cluster, *name, opts...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// serve runs one instance until ctx ends.
func serve(ctx context.Context, server, cluster, name string, opts ...nats.Option) error {
	s, err := start(ctx, server, cluster, name, opts...)
	if err != nil {
		return err
	}
	say(name, "try: nats req %s acme", subject)
	select {
	case <-ctx.Done():
		return s.close()
	case <-s.gone: // permanently, by the client library: let a supervisor restart this process
		return errors.Join(fmt.Errorf("the NATS connection is closed: %w", cmp.Or(s.nc.LastError(), nats.ErrConnectionClosed)), s.locker.Close())
	}
}

// service writes invoices. For each customer only one job runs at a time, however many
// instances there are and however many requests arrive.
type service struct {
	name   string
	nc     *nats.Conn
	gone   chan struct{} // closed with the connection
	locker *qlock.Locker
	micro  micro.Service

	mu       sync.Mutex // guards the rest
	jobs     sync.WaitGroup
	inHand   int
	stopping bool
}

func start(ctx context.Context, server, cluster, name string, opts ...nats.Option) (*service, error) {
	s := &service{name: name, gone: make(chan struct{})}
	var err error
	s.nc, err = nats.Connect(server, append(opts, nats.Name(name),
		nats.MaxReconnects(-1),                  // reconnect, however long it takes
		nats.IgnoreAuthErrorAbort(),             // also while credentials are being changed
		nats.PingInterval(qlock.DefaultLease/5), // leave a server that falls silent
		nats.MaxPingsOutstanding(1),             // after two of these, while the lease stands
		nats.ReconnectWait(200*time.Millisecond),
		nats.ClosedHandler(func(*nats.Conn) { close(s.gone) }))...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	s.locker, err = qlock.New(ctx, s.nc, qlock.WithCluster(cluster), qlock.WithName(name),
		qlock.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		s.nc.Close()
		return nil, err
	}
	s.micro, err = micro.AddService(s.nc, micro.Config{
		Name: "invoices", Version: "1.0.0", Description: "writes a customer's invoices",
		Endpoint: &micro.EndpointConfig{Subject: subject, Handler: micro.HandlerFunc(s.handle)},
	})
	if err != nil {
		return nil, errors.Join(err, s.locker.Close(), s.drain())
	}
	say(name, "serves %s on %s, and locks with nodes %s", subject, s.nc.ConnectedAddr(), strings.Join(s.locker.Nodes(), " "))
	return s, nil
}

// handle runs each request in a goroutine of its own, because micro calls it for one
// request at a time.
func (s *service) handle(r micro.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		_ = r.Error("503", "this instance is stopping, ask again", nil)
		return
	}
	s.inHand++
	s.jobs.Go(func() {
		s.answer(r, string(r.Data()))
		s.mu.Lock()
		s.inHand--
		s.mu.Unlock()
	})
}

func (s *service) answer(r micro.Request, customer string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	text, err := s.invoice(ctx, customer)
	code := "500"
	switch {
	case err == nil:
		_ = r.Respond([]byte(text))
		return
	case errors.Is(err, errWho), errors.Is(err, qlock.ErrInvalidName):
		code = "400"
	case errors.Is(err, qlock.ErrHeld):
		code = "409"
	case errors.Is(err, qlock.ErrNoQuorum), errors.Is(err, qlock.ErrLost):
		code = "503"
	}
	say(s.name, "%s: %s: %v", customer, code, err)
	_ = r.Error(code, err.Error(), nil)
}

var errWho = errors.New("the request names no customer")

// invoice is the job. It releases the lock, and waits until the nodes know it, before the
// answer is sent: with the answer, a client may request the same customer again.
func (s *service) invoice(ctx context.Context, customer string) (text string, err error) {
	if customer == "" {
		return "", errWho
	}
	lock, err := s.locker.TryLock(ctx, "invoices."+customer)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Unlock(ctx), s.locker.Flush(ctx)) }()

	say(s.name, "%s: begins, with token %d", customer, lock.Token())
	select {
	case <-time.After(300 * time.Millisecond): // the work; it would send the token with each write
	case <-lock.Context().Done():
		return "", context.Cause(lock.Context()) // lost: another instance may have started
	}
	say(s.name, "%s: done", customer)
	return fmt.Sprintf("invoices of %s written by %s", customer, s.name), nil
}

// close ends everything in the order of dependencies: requests, jobs in progress, locks,
// connection.
func (s *service) close() error {
	err := s.micro.Stop()
	s.mu.Lock()
	s.stopping = true
	say(s.name, "stops: accepts no more requests, finishes %d in progress", s.inHand)
	s.mu.Unlock()
	s.jobs.Wait()
	err = errors.Join(err, s.locker.Close(), s.drain())
	say(s.name, "stopped")
	return err
}

// drain closes the connection after all answers are sent.
func (s *service) drain() error {
	if err := s.nc.Drain(); err != nil {
		return err
	}
	<-s.gone
	return nil
}

func say(who, format string, args ...any) {
	fmt.Printf("%s  %-10s  %s\n", time.Now().Format("15:04:05.000"), who, fmt.Sprintf(format, args...))
}
