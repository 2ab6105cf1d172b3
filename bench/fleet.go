package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/loopback"
)

const (
	inProcess = "in process"
	overTCP   = "TCP"
)

// fleet is the NATS system that a rival runs on. It is one server to which all clients have
// a connection inside the process, or several servers with routes over loopback and clients
// over loopback too. All rivals on NATS get the same number of servers over loopback, which
// is three. A rival with one node or one replica gets one server, because a second one
// would only add a route.
type fleet struct {
	dir     string
	ports   []*loopback.Port
	servers []*server.Server
	tcp     bool
	next    atomic.Uint64 // the server of the next client
}

// serversFor returns how many servers a rival of n nodes or replicas gets.
func serversFor(n int, transport string) int {
	if transport == overTCP && n > 1 {
		return 3
	}
	return 1
}

func startFleet(ctx context.Context, transport string, size int, jetStream bool) (*fleet, error) {
	dir, err := os.MkdirTemp("", "qlock-bench-")
	if err != nil {
		return nil, err
	}
	f := &fleet{dir: dir, tcp: transport == overTCP}
	if err := f.start(ctx, size, jetStream); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context, size int, jetStream bool) error {
	var routes []*url.URL
	var numbers []int
	for range size {
		if size == 1 {
			break
		}
		// JetStream must know all routes before the first server starts.
		number, err := f.reserve()
		if err != nil {
			return err
		}
		numbers = append(numbers, number)
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(number))})
	}
	for i := range size {
		o := &server.Options{
			ServerName: fmt.Sprintf("s%d", i+1), NoSigs: true, NoLog: true,
			// The same settings as in package embedded.
			NoFastProducerStall: true, WriteDeadline: 2 * time.Second,
		}
		if f.tcp {
			o.Host, o.Port = "127.0.0.1", server.RANDOM_PORT
		} else {
			o.DontListen = true
		}
		if size > 1 {
			o.Cluster = server.ClusterOpts{
				Name: "bench", Host: "127.0.0.1", Port: numbers[i], PoolSize: 1,
				PingInterval: time.Second, MaxPingsOut: 2,
				Compression: server.CompressionOpts{Mode: server.CompressionOff},
			}
			o.Routes = routes
		}
		if jetStream {
			o.JetStream, o.StoreDir = true, filepath.Join(f.dir, o.ServerName)
			o.JetStreamMaxMemory, o.JetStreamMaxStore = 1<<30, 1<<30
		}
		s, err := server.NewServer(o)
		if err != nil {
			return fmt.Errorf("nats-server: %w", err)
		}
		f.servers = append(f.servers, s)
		s.Start()
	}
	return f.ready(ctx)
}

func (f *fleet) reserve() (int, error) {
	p, err := loopback.Reserve()
	if err != nil {
		return 0, err
	}
	f.ports = append(f.ports, p)
	if p.Number != 0 {
		return p.Number, nil
	}
	return freePort()
}

// freePort finds a port that was free a moment ago, for systems on which a port cannot be
// reserved.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (f *fleet) ready(ctx context.Context) error {
	return poll(ctx, "the nats-servers are not ready", func() (bool, error) {
		for _, s := range f.servers {
			if !s.ReadyForConnections(time.Millisecond) || s.NumRoutes() < len(f.servers)-1 {
				return false, nil
			}
		}
		return true, nil
	})
}

// poll calls f until it returns true, for conditions that nothing signals.
func poll(ctx context.Context, what string, f func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := f()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(err, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// connect makes a client's connection. Clients are spread over the servers.
func (f *fleet) connect() (*nats.Conn, error) {
	i := int(f.next.Add(1)-1) % len(f.servers)
	if f.tcp {
		return nats.Connect(f.servers[i].ClientURL(), connOptions()...)
	}
	return f.local(i)
}

// local makes a connection inside the process, for a component next to a server.
func (f *fleet) local(i int) (*nats.Conn, error) {
	return nats.Connect("", append(connOptions(), nats.InProcessServer(f.servers[i%len(f.servers)]))...)
}

func connOptions() []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1), nats.Timeout(10 * time.Second),
		// The default handler prints to standard error. The caller gets the errors that matter as
		// well.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
}

func (f *fleet) traffic() (traffic, error) {
	var t traffic
	for _, s := range f.servers {
		v, err := s.Varz(nil)
		if err != nil {
			return t, err
		}
		t.inMsgs += v.InMsgs
		t.outMsgs += v.OutMsgs
		t.inBytes += v.InBytes
		t.outBytes += v.OutBytes
	}
	return t, nil
}

func (f *fleet) close() error {
	for _, s := range f.servers {
		s.Shutdown()
	}
	for _, s := range f.servers {
		s.WaitForShutdown()
	}
	var errs []error
	for _, p := range f.ports {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}
