// Package embedded runs a nats-server and a qlock node in this process. With one such
// server next to each instance of a service, these servers are both the NATS cluster and
// the lock cluster.
package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/crash"
	"github.com/qlock/qlock/internal/logqueue"
	"github.com/qlock/qlock/internal/redact"
)

// Config configures a nats-server and the node in it.
type Config struct {
	// Node is the node's configuration. Its Name is also the server's name.
	Node qlock.NodeConfig

	// Host and Port are where clients connect; default 127.0.0.1 and a free port. The usual
	// port is 4222.
	Host string
	Port int

	// RouteHost and RoutePort are where the other servers of the cluster connect; default
	// 127.0.0.1 and a free port. Routes lists the addresses of all servers of the cluster, such
	// as nats-route://10.0.0.1:6222; the server's own may be among them. List all addresses at
	// every server: a server gives up an address that it knows only by gossip after one failed
	// attempt. Without Routes and RoutePort the server is not part of a cluster.
	RouteHost string
	RoutePort int
	Routes    []string

	// RouteUser and RoutePassword are the credentials that servers must present to each other.
	RouteUser, RoutePassword string

	// TLS and RouteTLS are for client connections and for routes; nil means no TLS. A route
	// certificate must be valid for both ends of a connection, and each end requests the
	// certificate of the other.
	TLS, RouteTLS *tls.Config

	// Username and Password, or Token, are the credentials that clients must present.
	Username, Password, Token string

	// Options changes what this package sets before the server starts: accounts, users,
	// JetStream, limits, monitoring, and all other options of a server. It may be nil. If you
	// set users or accounts, set ConnOptions too.
	Options func(*server.Options)

	// ConnOptions apply to the two connections that this package makes to its own server, which
	// are the node's and Conn's. They set credentials, names and handlers.
	ConnOptions []nats.Option

	// Logger is for the server and the node; by default nothing is logged. Neither waits for
	// it: see qlock.NodeConfig.Logger. Lines of both that it does not accept in time are
	// counted in the node's LogDropped, unless Node has a Logger of its own.
	Logger *slog.Logger
}

// Server is a nats-server and a node. Its methods are safe for concurrent use.
type Server struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	server *server.Server
	nodeNC *nats.Conn
	conn   *nats.Conn
	node   *qlock.Node
}

// Start starts the server and its node. It returns when clients can connect and the node
// serves. The node may begin to vote some time later (see Node().WaitReady, and
// qlock.Bootstrap for a new cluster), and a quorum needs the other nodes.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: withLogger(cfg)}
	if err := s.Restart(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func withLogger(cfg Config) Config {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// The server logs from goroutines that carry messages, while it holds locks, so it must not
	// wait for the logger.
	cfg.Logger = slog.New(logqueue.New(cfg.Logger.Handler()))
	if cfg.Node.Logger == nil {
		cfg.Node.Logger = cfg.Logger
	}
	return cfg
}

// Restart starts a closed or crashed server again. The server has the same
// addresses, and uses what it left in its state directory. Restart does nothing if the
// server runs.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return nil
	}
	if err := s.startServer(ctx); err != nil {
		return errors.Join(err, s.shut())
	}
	if err := s.startNode(ctx); err != nil {
		return errors.Join(err, s.shut())
	}
	return nil
}

func (s *Server) startServer(ctx context.Context) error {
	opts, err := s.cfg.options()
	if err != nil {
		return err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("qlock/embedded: nats-server: %w", redact.Error(err))
	}
	failed := make(chan error, 1)
	srv.SetLogger(newLogger(s.cfg.Logger.With("server", opts.ServerName), failed), false, false)
	s.server = srv
	srv.Start()
	for !srv.ReadyForConnections(50 * time.Millisecond) {
		select {
		case err := <-failed:
			return fmt.Errorf("qlock/embedded: nats-server: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("qlock/embedded: nats-server %s is not ready: %w", opts.ServerName, context.Cause(ctx))
		default:
		}
	}
	// The next start must use the same addresses.
	if a, ok := srv.Addr().(*net.TCPAddr); ok {
		s.cfg.Port = a.Port
	}
	if a := srv.ClusterAddr(); a != nil {
		s.cfg.RoutePort = a.Port
	}
	return nil
}

func (s *Server) startNode(ctx context.Context) error {
	var err error
	if s.nodeNC, err = s.connect(ctx, "qlock node "+s.cfg.Node.Name); err != nil {
		return err
	}
	if s.conn, err = s.connect(ctx, s.cfg.Node.Name); err != nil {
		return err
	}
	s.node, err = qlock.StartNode(ctx, s.nodeNC, s.cfg.Node)
	return err
}

// connect makes a connection inside the process. It is several times faster than loopback,
// and ends with the server.
func (s *Server) connect(ctx context.Context, name string) (*nats.Conn, error) {
	// The client library's default of two seconds is short for a machine on which many servers
	// start at once.
	limit := 10 * time.Second
	if d, ok := ctx.Deadline(); ok {
		limit = max(time.Until(d), time.Millisecond)
	}
	log := s.cfg.Logger.With("connection", name)
	opts := []nats.Option{
		nats.Name(name), nats.InProcessServer(s.server), nats.Timeout(limit),
		// The connection stays open for as long as the server runs, even while credentials are
		// changed.
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		// The default handler prints to standard error.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("NATS connection", "error", err)
		}),
	}
	switch {
	case s.cfg.Token != "":
		opts = append(opts, nats.Token(s.cfg.Token))
	case s.cfg.Username != "":
		opts = append(opts, nats.UserInfo(s.cfg.Username, s.cfg.Password))
	}
	type made struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan made, 1)
	go func() {
		nc, err := nats.Connect("", append(opts, s.cfg.ConnOptions...)...)
		done <- made{nc, err}
	}()
	var m made
	select {
	case m = <-done:
	case <-ctx.Done(): // the client library does not accept a context
		go func() {
			if m := <-done; m.err == nil {
				m.nc.Close()
			}
		}()
		m.err = context.Cause(ctx)
	}
	if m.err != nil {
		return nil, fmt.Errorf("qlock/embedded: connect to the server in this process: %w", m.err)
	}
	return m.nc, nil
}

// options returns the options of nats-server, with those settings that were found to matter
// for locks.
func (c *Config) options() (*server.Options, error) {
	o := &server.Options{
		ServerName: c.Node.Name,
		Host:       or(c.Host, "127.0.0.1"),
		Port:       free(c.Port),
		Username:   c.Username, Password: c.Password, Authorization: c.Token,
		NoSigs: true, // signals belong to the program, not to the server
		// One slow observer must not delay clients that publish requests.
		NoFastProducerStall: true,
		WriteDeadline:       2 * time.Second,
	}
	if c.TLS != nil {
		o.TLSConfig, o.TLSTimeout = c.TLS.Clone(), 5
		o.TLSVerify = c.TLS.ClientAuth >= tls.VerifyClientCertIfGiven
	}
	if len(c.Routes) > 0 || c.RoutePort != 0 {
		o.Cluster = server.ClusterOpts{
			Name: "qlock-" + or(c.Node.Cluster, qlock.DefaultCluster),
			Host: or(c.RouteHost, "127.0.0.1"), Port: free(c.RoutePort),
			Username: c.RouteUser, Password: c.RoutePassword,
			PoolSize: 1, // as fast for small messages, with fewer goroutines
			// A half-open route is detected within seconds, not minutes.
			PingInterval: time.Second, MaxPingsOut: 2,
			Compression: server.CompressionOpts{Mode: server.CompressionOff},
		}
		if c.RouteTLS != nil {
			t := c.RouteTLS.Clone()
			t.ClientAuth = tls.RequireAndVerifyClientCert
			if t.ClientCAs == nil {
				t.ClientCAs = t.RootCAs
			}
			o.Cluster.TLSConfig, o.Cluster.TLSTimeout = t, 5
		}
		for _, r := range c.Routes {
			u, err := url.Parse(r)
			if err != nil || u.Host == "" || redact.Misread(u) {
				return nil, fmt.Errorf("qlock/embedded: Config.Routes: %q is not an address like nats-route://host:6222", redact.URL(r))
			}
			if u.User == nil && c.RouteUser != "" {
				u.User = url.UserPassword(c.RouteUser, c.RoutePassword)
			}
			o.Routes = append(o.Routes, u)
		}
	}
	if c.Options != nil {
		c.Options(o)
	}
	return o, nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// free converts a port: 0 means any free port in Config, and the server has another value
// for that.
func free(port int) int {
	if port == 0 {
		return server.RANDOM_PORT
	}
	return port
}

// Conn returns a connection to this server inside the process, for the service's own use
// and for qlock.New. It belongs to the Server, and ends with it: unlike a connection over
// the network, it does not move to another server. Conn returns nil while the server is
// down.
func (s *Server) Conn() *nats.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// ClientURL returns the address where clients connect. It is empty while the server is
// down.
func (s *Server) ClientURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return ""
	}
	return s.server.ClientURL()
}

// RouteURL returns the address of this server for the Routes of others. It is empty if the
// server has none, or is down.
func (s *Server) RouteURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return ""
	}
	a := s.server.ClusterAddr()
	if a == nil {
		return ""
	}
	return "nats-route://" + net.JoinHostPort(or(s.cfg.RouteHost, "127.0.0.1"), strconv.Itoa(a.Port))
}

// Node returns the node, or nil while the server is down.
func (s *Server) Node() *qlock.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// NATS returns the nats-server itself, for what this package does not wrap. It returns nil
// while the server is down.
func (s *Server) NATS() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// Name returns the name of the node and the server.
func (s *Server) Name() string { return s.cfg.Node.Name }

// Close stops the node cleanly, so that it may vote at once when it starts again, and then
// stops the server. Further calls do nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shut()
}

// Only tests (by package qlocktest) and demonstrations (by Cluster.Crash) crash servers, so
// the function is not exported.
func init() {
	crash.Server = func(s any) error { return s.(*Server).crash() }
}

// crash stops node and server as if their process were killed: no state is saved.
func (s *Server) crash() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.node != nil {
		err = crash.Node(s.node)
	}
	return errors.Join(err, s.shut())
}

func (s *Server) shut() error {
	var err error
	if s.node != nil {
		err = s.node.Close()
	}
	for _, nc := range []*nats.Conn{s.nodeNC, s.conn} {
		if nc != nil {
			nc.Close()
		}
	}
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
	s.node, s.nodeNC, s.conn, s.server = nil, nil, nil, nil
	if q, ok := s.cfg.Logger.Handler().(*logqueue.Handler); ok {
		giveUp := time.NewTimer(time.Second)
		defer giveUp.Stop()
		q.Flush(giveUp.C)
	}
	return err
}
