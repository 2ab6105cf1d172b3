package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/redact"
	"github.com/qlock/qlock/internal/sat"
	"github.com/qlock/qlock/internal/subject"
)

// nodeOptions has the settings of a node from flags, environment and file.
type nodeOptions struct {
	connection // how clients reach the embedded server, or how the node reaches an external one
	logs

	config                             string
	bootstrap                          bool
	node                               qlock.NodeConfig
	listen                             string
	meshAddr                           string
	routes                             []string
	routeUser, routePassword           string
	routeTLSCert, routeKey, routeTLSCA string
	http                               string
	observe                            bool
	door                               string // address of a gateway

	levelFixed bool // the file cannot change the log level
}

func (a *app) node() *cobra.Command {
	o := &nodeOptions{}
	cmd := &cobra.Command{
		Use:     "node --name NAME --nodes NAMES [flags]",
		Short:   "Run a node",
		GroupID: groupNodes,
		Args:    noArgs,
		Long: `Run a node that votes on locks. The node starts a nats-server of its own in the same
process, which connects to those of the other nodes (--routes). With --server or
--context it uses a NATS system that already runs.

--name, --nodes, --cluster, --max-lease and --max-skew are the configuration. All
nodes must have the same configuration except for their names. To change it while the
cluster runs, use qlock nodes change.

--join in place of --nodes starts a new node of a cluster that runs. It waits until
qlock nodes change adds it. Its state directory identifies it from then on, and has the
list of nodes: --nodes and --join do not matter after that.

--bootstrap records in the empty state directory that the node has nothing to
forget, and exits. Run it by hand, once for each node of a new cluster, at most an
hour before the node's first start. Without it a node waits for --max-lease and 16 %
more before its first votes, which is right whenever its state was lost.

SIGTERM stops the node cleanly and saves its votes. It votes at once if it starts
again within 85 % of --max-lease, with the same directory, on a machine that was not
restarted. Otherwise it waits.

SIGHUP reads the file of --config and the certificates again. It applies log-level
from the file, and logs which settings need a restart.

The node exits with status 1 when it cannot continue: another node has its name, or
its NATS connection is closed permanently. Let a supervisor restart it.

--http serves /healthz (200 unless the node has stopped and needs a restart),
/readyz (200 while the node votes) and /metrics.

--gateway serves locks over HTTP, as qlock gateway does, if the node runs its own
server. Everybody who can reach that address may use all locks, so it must be on
loopback. A node that stops lets the leases of the gateway be renewed for five seconds
more, and waits until their callers cannot believe any more that they hold a lock.

The file of --config is YAML. Its keys are the names of these flags:

  name: n1
  nodes: [n1, n2, n3]
  state-dir: /var/lib/qlock
  cluster-listen: 0.0.0.0:6222
  routes:
    - nats-route://n1.example.com:6222
    - nats-route://n2.example.com:6222
    - nats-route://n3.example.com:6222`,
		Example: `  qlock node --name n1 --nodes n1,n2,n3 --state-dir /var/lib/qlock --bootstrap

  qlock node --name n1 --nodes n1,n2,n3 --state-dir /var/lib/qlock --listen 0.0.0.0:4222 \
    --cluster-listen 0.0.0.0:6222 --routes nats://n1:6222,nats://n2:6222,nats://n3:6222

  qlock node --name n1 --nodes n1,n2,n3 --state-dir /var/lib/qlock --server nats://localhost:4222

  qlock node --config /etc/qlock/node.yaml --http :8222`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runNode(cmd, o) },
	}
	o.flags(cmd.Flags())
	return cmd
}

func (o *nodeOptions) flags(fs *pflag.FlagSet) {
	str := func(p *string, name, value, use string) { fs.StringVar(p, name, value, use) }
	own := func(names ...string) {
		for _, n := range names {
			env(fs, n, "QLOCK_"+strings.ToUpper(strings.ReplaceAll(n, "-", "_")))
		}
	}
	str(&o.config, "config", "", "YAML file with these flags")
	str(&o.node.Name, "name", "", "this node's name, one of --nodes")
	// QLOCK_NAME is taken: qlock run sets it for its command.
	env(fs, "name", "QLOCK_NODE_NAME")
	fs.StringSliceVar(&o.node.Nodes, "nodes", nil, "names of all nodes of the cluster; the same on every node")
	str(&o.cluster, "cluster", qlock.DefaultCluster, "name of the lock cluster")
	str(&o.node.StateDir, "state-dir", "", "directory for state that must survive a restart; empty: wait for --max-lease after each start")
	fs.BoolVar(&o.node.Join, "join", false, "wait until qlock nodes change adds this node; needs --state-dir, and no --nodes")
	fs.BoolVar(&o.bootstrap, "bootstrap", false, "prepare the empty state directory of a node of a new cluster, and exit")
	durationFlag(fs, &o.node.MaxLease, "max-lease", qlock.DefaultMaxLease, 10*time.Millisecond, "longest lease that a client may have")
	durationFlag(fs, &o.node.PreviousMaxLease, "previous-max-lease", 0, 10*time.Millisecond, "value of --max-lease before it was lowered; a node that lost its state waits for the longer of the two")
	durationFlag(fs, &o.node.MaxSkew, "max-skew", 0, time.Millisecond, "how far a client's clock may be ahead; default 5s, or half of --max-lease if that is less")
	countFlag(fs, &o.node.MaxClaims, "max-claims", 250_000, 1, 1<<31-1, "limit of locks, held and awaited, of one client name")
	countFlag(fs, &o.node.MaxQueue, "max-queue", 65_536, 1, 1<<31-1, "limit of claims that wait for one lock")
	addressFlag(fs, &o.listen, "listen", "127.0.0.1:4222", "address for clients")
	addressFlag(fs, &o.meshAddr, "cluster-listen", "", "address for the servers of other nodes")
	fs.StringSliceVar(&o.routes, "routes", nil, "addresses of all servers of the mesh; may include this node's own")
	str(&o.routeUser, "route-user", "", "user with which servers log in to each other")
	str(&o.routePassword, "route-password", "", "password with which servers log in to each other")
	str(&o.routeTLSCert, "route-tlscert", "", "certificate file for connections between servers, used at both ends")
	str(&o.routeKey, "route-tlskey", "", "key file of --route-tlscert")
	str(&o.routeTLSCA, "route-tlsca", "", "file with the CA certificates that servers trust for each other")
	addressFlag(fs, &o.http, "http", "", "address of /healthz, /readyz and /metrics; empty: none")
	str(&o.door, "gateway", "", "address of a gateway to run too, such as 127.0.0.1:8080: locks over HTTP; empty: none")
	fs.BoolVar(&o.observe, "observe", false, "count the events of all clients in /metrics; default: only if the node runs its own server")
	own("config", "nodes", "join", "cluster", "state-dir", "max-lease", "previous-max-lease", "max-skew", "max-claims", "max-queue", "listen", "cluster-listen", "routes",
		"route-user", "route-password", "route-tlscert", "route-tlskey", "route-tlsca", "http", "gateway", "observe")
	o.logs.flags(fs, "info")

	var nats pflag.FlagSet
	o.natsFlags(&nats)
	for name, use := range map[string]string{
		"server":       "use these NATS servers, and start none",
		"context":      "use the NATS servers of this context of the nats command",
		"user":         "user; if the node runs its own server, clients must log in with these credentials",
		"tlscert":      "certificate file; if the node runs its own server, the server's certificate",
		"tlsca":        "file with the CA certificates to trust; if the node runs its own server, clients must present a certificate of these CAs",
		"timeout":      "time to wait for NATS",
		"inbox-prefix": "prefix of inboxes; default: _INBOX and the node's name",
	} {
		nats.Lookup(name).Usage = use
	}
	nats.VisitAll(func(f *pflag.Flag) {
		// Not the nats command's own variables: a user who has set these does not intend to run a
		// node on that server, or to require these credentials of the node's clients.
		variable := "QLOCK_" + f.Annotations[annotationEnv][0]
		f.Usage, _, _ = strings.Cut(f.Usage, " [")
		env(&nats, f.Name, variable)
		f.Annotations[annotationGroup] = []string{"nats"}
	})
	fs.AddFlagSet(&nats)
}

// external reports whether the node runs on a NATS server that is not its own.
func (o *nodeOptions) external() bool { return o.server != "" || o.context != "" }

// checkNode rejects contradictory settings before anything is started.
func (o *nodeOptions) checkNode() error {
	switch {
	case o.node.Name == "":
		return usage("--name is missing: give this node one of the names of --nodes")
	case o.node.Join && len(o.node.Nodes) > 0:
		return usage("--join and --nodes exclude each other: a node that joins learns the list from the cluster")
	case o.node.Join && o.node.StateDir == "":
		return usage("--join needs --state-dir, which identifies the node")
	case o.node.Join && o.bootstrap:
		return usage("--join and --bootstrap exclude each other: a node that joins needs no bootstrap")
	case o.node.Join && !o.external() && o.meshAddr == "" && len(o.routes) == 0:
		return usage("this node would be alone: give --cluster-listen and --routes, or --server")
	case o.node.Join:
	case len(o.node.Nodes) == 0:
		return usage("--nodes is missing: give the names of all nodes of the cluster, such as n1,n2,n3; or --join, for a node that a change adds or has added")
	case !slices.Contains(o.node.Nodes, o.node.Name):
		return usage("--name %q is not among --nodes %s", o.node.Name, strings.Join(o.node.Nodes, ","))
	}
	switch {
	case o.node.MaxSkew > o.node.MaxLease:
		return usage("--max-skew %v is more than --max-lease %v", o.node.MaxSkew, o.node.MaxLease)
	case o.bootstrap && o.node.StateDir == "":
		return usage("--bootstrap needs --state-dir")
	case o.external() && (o.meshAddr != "" || len(o.routes) > 0):
		return usage("--server is for NATS servers that already run, --cluster-listen and --routes are for a server in this process: give one or the other")
	case !o.bootstrap && !o.external() && len(o.node.Nodes) > 1 && o.meshAddr == "" && len(o.routes) == 0:
		return usage("this node would be alone: --nodes names %d, so give --cluster-listen and --routes, or --server", len(o.node.Nodes))
	case (o.routeTLSCert == "") != (o.routeKey == "") || (o.routeTLSCert == "") != (o.routeTLSCA == ""):
		return usage("--route-tlscert, --route-tlskey and --route-tlsca must be given together; some of them are missing")
	case o.external() && o.door != "":
		return usage("--gateway is for a node with a server of its own: the NATS user of a node must not acquire locks, so run qlock gateway with a user of its own")
	case !o.external() && (o.creds != "" || o.nkey != ""):
		return usage("--creds and --nkey are for --server: clients of the node's own server log in with --user and --password, --token, or certificates")
	}
	if o.door != "" {
		if err := o.gateway().check(); err != nil {
			return usage("--gateway %q is not an address on loopback, such as 127.0.0.1:8080: whoever can reach it may use all locks; qlock gateway has --auth nats and --insecure for other addresses", o.door)
		}
	}
	for _, n := range o.node.Nodes {
		if !subject.IsToken(n) {
			return usage("--nodes: %q: %s", n, subject.TokenRule)
		}
	}
	for _, r := range o.routes {
		if _, err := parseServer(r); err != nil || !strings.Contains(r, "://") {
			return usage("--routes %q: use an address such as nats://n1.example.com:6222; in a user name and a password write %%2F for /, %%40 for @, and encode all other characters that are not letters or digits in the same way", redact.URL(r))
		}
	}
	// A node that listens for another node of its name for longer than a lease would never
	// finish.
	o.node.ProbeWait = min(300*time.Millisecond, o.node.MaxLease/4)
	o.client = o.node.Name
	o.node.Cluster = o.cluster
	return o.connection.check()
}

func (a *app) runNode(cmd *cobra.Command, o *nodeOptions) error {
	file, err := readConfig(o.config)
	if err != nil {
		return err
	}
	o.levelFixed = cmd.Flags().Changed("log-level")
	if err := file.apply(cmd.Flags()); err != nil {
		return err
	}
	if err := o.checkNode(); err != nil {
		return err
	}
	if !cmd.Flags().Changed("observe") {
		o.observe = !o.external()
	}
	a.supervise()
	log, level := o.logger(a.err)
	o.node.Logger = log // the library adds the node's name
	base := log
	log = log.With("node", o.node.Name)
	if o.bootstrap {
		if err := qlock.Bootstrap(o.node); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s is ready for the first start of node %s. Start it without --bootstrap.\n", o.node.StateDir, o.node.Name)
		return nil
	}

	ctx, stop := interrupted(cmd.Context())
	defer stop()
	certs, err := o.certificates()
	if err != nil {
		return err
	}
	s := &nodeServer{o: o, log: log, base: base}
	web, err := serveHTTP(o.http, s, log)
	if err != nil {
		return err
	}
	defer web.close()
	hangups, noHangups := hangup()
	defer noHangups()

	log.Info("node starts", "version", qlock.Version(), "cluster", o.node.Cluster, "nodes", o.node.Nodes, "state_dir", o.node.StateDir)
	if err := s.start(ctx, certs); err != nil {
		if ctx.Err() != nil {
			return errors.Join(s.close())
		}
		return errors.Join(err, s.close())
	}
	if web != nil {
		s.enter(web.registry)
	}
	log.Info("node serves", s.where()...)
	leaving, leave := context.WithCancel(ctx)
	defer leave()
	closed, err := s.serveGateway(leaving)
	if err != nil {
		return errors.Join(err, s.close())
	}
	defer func() { // not with its connection gone
		leave()
		<-closed
	}()
	for {
		select {
		case <-ctx.Done():
			stop() // a second signal ends the process at once
			<-closed
			log.Info("node stops", "why", "signal")
			voted := s.qnode().Ready()
			if err := s.close(); err != nil {
				return err
			}
			switch {
			case o.node.StateDir == "":
				log.Warn("node stopped; without --state-dir its votes are forgotten, and its next start waits for --max-lease")
			case !voted:
				log.Warn("node stopped before it voted; its next start waits for --max-lease again")
			default:
				log.Info("node stopped, its state was saved")
			}
			return nil
		case <-s.qnode().Done():
			// A supervisor restarts this process.
			leave()
			<-closed
			return errors.Join(s.qnode().Err(), s.close())
		case <-hangups:
			file = o.reload(file, certs, level, log)
		}
	}
}

// nodeServer is a running node, with its own server or on an external one.
type nodeServer struct {
	o    *nodeOptions
	log  *slog.Logger // with the node's name
	base *slog.Logger // without the node's name

	started  atomic.Pointer[running]
	embedded *embedded.Server // nil: external
	link     *link            // external
}

// running is what other goroutines may read while the node serves.
type running struct {
	node   *qlock.Node
	nc     *nats.Conn
	server *embedded.Server
}

func (s *nodeServer) qnode() *qlock.Node { return s.started.Load().node }

func (s *nodeServer) start(ctx context.Context, certs *certificates) error {
	// Not ended by signals only: a node that never receives its own messages should report
	// that.
	ctx, cancel := context.WithTimeout(ctx, startTime(s.o.timeout))
	defer cancel()
	if s.o.external() {
		return s.startExternal(ctx)
	}
	return s.startEmbedded(ctx, certs)
}

// startTime returns how long a start may take if its connection may take for timeout.
func startTime(timeout time.Duration) time.Duration {
	return sat.Add(max(timeout, 5*time.Second), 25*time.Second)
}

func (s *nodeServer) startExternal(ctx context.Context) error {
	link, err := s.o.connect("node", s.o.node.MaxLease, connectionLogs(s.log)...)
	if err != nil {
		return err
	}
	s.link = link
	node, err := qlock.StartNode(ctx, link.Conn, s.o.node)
	if err != nil {
		return err
	}
	s.started.Store(&running{node: node, nc: link.Conn})
	return nil
}

func (s *nodeServer) startEmbedded(ctx context.Context, certs *certificates) error {
	o := s.o
	host, port, err := splitAddress(o.listen)
	if err != nil {
		return usage("--listen %q: %w", o.listen, err)
	}
	cfg := embedded.Config{
		Node: o.node, Host: host, Port: port, Routes: o.routes,
		RouteUser: o.routeUser, RoutePassword: o.routePassword,
		Username: o.user, Password: o.password, Token: o.token,
		TLS: certs.clients(), RouteTLS: certs.routes(),
		Logger: s.base,
	}
	if o.user != "" && o.password == "" {
		cfg.Username, cfg.Token = "", o.user
	}
	if o.meshAddr != "" {
		if cfg.RouteHost, cfg.RoutePort, err = splitAddress(o.meshAddr); err != nil {
			return usage("--cluster-listen %q: %w", o.meshAddr, err)
		}
		if cfg.RoutePort == 0 {
			cfg.RoutePort = -1
		}
	}
	if s.embedded, err = embedded.Start(ctx, cfg); err != nil {
		return err
	}
	s.started.Store(&running{node: s.embedded.Node(), nc: s.embedded.Conn(), server: s.embedded})
	return nil
}

// gateway is the gateway of --gateway.
func (o *nodeOptions) gateway() *httpDoor {
	return &httpDoor{addr: o.door, drain: 5 * time.Second, connections: 20_000, perAddress: 1_000, auth: "none"}
}

// serveGateway serves locks over HTTP until ctx ends and its leases are over; the channel is
// closed then. A gateway needs a quorum of nodes to start, which may come later.
func (s *nodeServer) serveGateway(ctx context.Context) (closed <-chan struct{}, _ error) {
	done := make(chan struct{})
	if s.o.door == "" {
		close(done)
		return done, nil
	}
	d := s.o.gateway()
	probe, err := net.Listen("tcp", d.addr)
	if err != nil {
		return nil, fmt.Errorf("--gateway: %w", err)
	}
	d.addr = probe.Addr().String() // a free port, if it was 0
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("--gateway: %w", err)
	}
	name := s.o.node.Name
	l := &link{Conn: s.embedded.Conn(), cluster: s.o.cluster, client: "gw-" + name[:min(len(name), 61)], timeout: s.o.timeout, closed: make(chan struct{})}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := d.serve(ctx, l, s.log, nil); err != nil && ctx.Err() == nil {
				s.log.Warn("the gateway does not serve, and is started again", "error", err)
				pause(ctx, 2*time.Second)
			}
		}
	}()
	return done, nil
}

// where returns the log attributes of a node that serves.
func (s *nodeServer) where() []any {
	if s.embedded == nil {
		return []any{"nats", serverURL(s.link.Conn)}
	}
	args := []any{"clients", s.embedded.ClientURL()}
	if r := s.embedded.RouteURL(); r != "" {
		args = append(args, "servers", r)
	}
	return args
}

// close stops the node cleanly and in this order: the votes are saved before the connection
// is closed.
func (s *nodeServer) close() error {
	if s.embedded != nil {
		return s.embedded.Close()
	}
	var err error
	if r := s.started.Load(); r != nil {
		err = r.node.Close()
	}
	if s.link != nil {
		s.link.Close()
	}
	return err
}

// certificates are reloaded on request. Authorities are not: which clients a server trusts
// must not change while they are connected.
type certificates struct {
	o               *nodeOptions
	client, route   atomic.Pointer[tls.Certificate]
	clientC, routeC *tls.Config
}

func (o *nodeOptions) certificates() (*certificates, error) {
	c := &certificates{o: o}
	if o.external() {
		return c, nil
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	if o.tlsCert != "" {
		c.clientC = &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.client.Load(), nil },
		}
		if o.tlsCA != "" {
			pool, err := authorities(o.tlsCA)
			if err != nil {
				return nil, usage("--tlsca: %w", err)
			}
			c.clientC.ClientCAs, c.clientC.ClientAuth = pool, tls.RequireAndVerifyClientCert
		}
	}
	if o.routeTLSCert != "" {
		pool, err := authorities(o.routeTLSCA)
		if err != nil {
			return nil, usage("--route-tlsca: %w", err)
		}
		c.routeC = &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: pool, ClientCAs: pool,
			GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.route.Load(), nil },
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.route.Load(), nil },
		}
	}
	return c, nil
}

func (c *certificates) clients() *tls.Config { return c.clientC }
func (c *certificates) routes() *tls.Config  { return c.routeC }

// load reads the certificates. After an error, the previous ones remain in use.
func (c *certificates) load() error {
	for _, f := range []struct {
		flag, cert, key string
		to              *atomic.Pointer[tls.Certificate]
	}{
		{"tlscert", c.o.tlsCert, c.o.tlsKey, &c.client},
		{"route-tlscert", c.o.routeTLSCert, c.o.routeKey, &c.route},
	} {
		if f.cert == "" || c.o.external() {
			continue
		}
		cert, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return usage("--%s: %w", f.flag, err)
		}
		f.to.Store(&cert)
	}
	return nil
}
