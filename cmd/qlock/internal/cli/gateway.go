package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/gateway"
	"github.com/qlock/qlock/gateway/gatewaymetrics"
	"github.com/qlock/qlock/metrics"
)

// httpDoor is how a gateway is reached over HTTP.
type httpDoor struct {
	addr, cert, key string
	insecure        bool
	hosts           []string
	drain           time.Duration
	rate            int
	connections     int
	perAddress      int
	nats, callers   bool
	alone           bool
	auth            string
	authCert        string
	authKey         string
	clientCA        string
	mapCert         string
	origins         []string
	streams         int
	store           gateway.Limits // those of the store
	secretFile      string
	metrics         string
}

func (a *app) gateway() *cobra.Command {
	c, logs, d := &connection{}, &logs{}, &httpDoor{}
	cmd := &cobra.Command{
		Use:     "gateway [flags]",
		Short:   "Serve locks over HTTP, and over NATS request-reply",
		GroupID: groupNodes,
		Long: `Serve the locks of a cluster to programs in any language: over HTTP, and with --nats
as a NATS micro service. The address --http has a dashboard at /, a page of
documentation at /docs, and an OpenAPI document at /openapi.json.

Without --auth nats, everybody who can reach the gateway acts as its NATS user.
Therefore it listens on loopback only, unless --insecure is given. With --auth nats,
each request brings the credentials of a NATS user, whose permissions decide.

SIGTERM or Ctrl-C drains the gateway. It then accepts no new leases, sends waiting
callers to other gateways, lets leases be renewed for --drain, ends those that are
left, and exits when no caller can believe any more that it holds a lock. A second
signal ends the process at once: its locks are then free when their leases expire.
--log-level debug logs each request.`,
		Example: `  qlock gateway
  qlock gateway --http 127.0.0.1:9000 --nats
  qlock gateway --http 127.0.0.1:0 --auth nats`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends the process
			log, _ := logs.logger(a.err)
			if err := d.check(); err != nil {
				return err
			}
			l, err := c.connect("gateway", 10*time.Second, connectionLogs(log)...)
			if err != nil {
				return err
			}
			defer l.Close()
			return d.serve(ctx, l, log, nil)
		},
	}
	fs := cmd.Flags()
	d.flags(fs)
	logs.flags(fs, "info")
	c.flags(fs)
	return cmd
}

func (d *httpDoor) flags(fs *pflag.FlagSet) {
	fs.StringVar(&d.addr, "http", "127.0.0.1:8080", "address to serve HTTP on; port 0: any free port")
	env(fs, "http", "QLOCK_HTTP")
	fs.BoolVar(&d.insecure, "insecure", false, "serve on an address that is not loopback, where everybody may do what the gateway may")
	fs.StringArrayVar(&d.hosts, "host", nil, "host name that the gateway may be called by; may be given several times")
	fs.StringVar(&d.cert, "http-cert", "", "certificate file, to serve HTTPS")
	fs.StringVar(&d.key, "http-key", "", "key file of --http-cert")
	durationFlag(fs, &d.drain, "drain", 30*time.Second, time.Millisecond, "how long leases can be renewed after SIGTERM")
	countFlag(fs, &d.rate, "rate", 0, 0, 1<<30, "requests per second from one address; 0: no limit")
	countFlag(fs, &d.connections, "connections", 20_000, 1, 1<<30, "connections at a time")
	countFlag(fs, &d.perAddress, "connections-per-address", 1_000, 1, 1<<30, "connections at a time from one address")
	countFlag(fs, &d.streams, "streams-per-address", 50, 1, 1<<30, "event streams and waiting lists at a time from one address")
	sizeFlag(fs, &d.store.Value, "value-size", 1<<20, 1, 64<<20, "largest value in the store; the NATS server may take less")
	sizeFlag(fs, &d.store.Transaction, "transaction-size", 1<<20, 1<<10, 64<<20, "largest body of a transaction in the store")
	countFlag(fs, &d.store.Operations, "operations", 500, 1, 900, "operations of a transaction in the store")
	countFlag(fs, &d.store.KeyWaits, "key-waits", 1_000, 1, 1<<30, "requests of one NATS user or caller that wait for keys at a time")
	sizeFlag(fs, &d.store.State, "state-size", 32<<20, 1<<10, 1<<30, "largest Terraform state")
	fs.StringArrayVar(&d.origins, "cors-origin", nil, "origin of pages that may call the gateway, such as https://locks.example; may be given several times")
	fs.BoolVar(&d.nats, "nats", false, "serve as a NATS micro service as well")
	fs.BoolVar(&d.callers, "callers", false, "with --nats: subjects have the caller's name behind the verb, for NATS permissions to guard")
	fs.StringVar(&d.auth, "auth", "none", "whose NATS user a request acts as: none: the gateway's; nats: that of its Basic or Bearer credentials")
	fs.StringVar(&d.authCert, "auth-tlscert", "", "with --auth nats: certificate file for the connections of requests, if the NATS servers want one of every client")
	fs.StringVar(&d.authKey, "auth-tlskey", "", "key file of --auth-tlscert")
	fs.StringVar(&d.clientCA, "http-ca", "", "CA certificates of clients over HTTPS, for --map-cert")
	fs.StringVar(&d.mapCert, "map-cert", "", "with --auth nats: JSON file with the NATS users that client certificates stand for")
	fs.StringVar(&d.secretFile, "secret-file", "", "file with a secret that all gateways of the cluster have; needed to forward requests with --auth nats")
	addressFlag(fs, &d.metrics, "metrics", "", "address of /metrics; empty: none")
	fs.BoolVar(&d.alone, "alone", false, "do not forward requests to and from other gateways of the cluster")
}

func (d *httpDoor) check() error {
	if (d.cert == "") != (d.key == "") {
		return usage("--http-cert and --http-key belong together")
	}
	host, _, err := net.SplitHostPort(d.addr)
	if err != nil {
		return usage("--http %q is not an address such as 127.0.0.1:8080", d.addr)
	}
	if d.auth != "none" && d.auth != "nats" {
		return usage("--auth is none or nats, not %q", d.auth)
	}
	switch {
	case (d.authCert == "") != (d.authKey == ""):
		return usage("--auth-tlscert and --auth-tlskey belong together")
	case (d.clientCA == "") != (d.mapCert == ""):
		return usage("--http-ca and --map-cert belong together")
	case d.auth != "nats" && d.authCert+d.mapCert != "":
		return usage("--auth-tlscert and --map-cert are for --auth nats")
	case d.mapCert != "" && d.cert == "":
		return usage("--map-cert needs HTTPS: give --http-cert and --http-key")
	}
	if d.callers && !d.nats {
		return usage("--callers is for the NATS service: give --nats too")
	}
	addr, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && addr.IsLoopback()
	switch {
	case loopback || d.insecure:
	case d.auth == "none":
		return usage("--http %s can be reached from elsewhere, and everybody who reaches it may do what the gateway may: give --auth nats, or --insecure if that is meant", d.addr)
	case d.cert == "":
		return usage("--http %s can be reached from elsewhere, and credentials would travel unencrypted: give --http-cert and --http-key, or --insecure if something else encrypts them", d.addr)
	}
	return nil
}

// secret reads the secret of --secret-file.
func (d *httpDoor) secret() ([]byte, error) {
	if d.secretFile == "" {
		return nil, nil
	}
	b, err := os.ReadFile(d.secretFile)
	if err != nil {
		return nil, fmt.Errorf("--secret-file: %w", err)
	}
	if b = bytes.TrimSpace(b); len(b) < 16 {
		return nil, usage("--secret-file has %d bytes: 16 or more are needed, such as from openssl rand -hex 32", len(b))
	}
	return b, nil
}

// serveMetrics serves /metrics on an address of its own: callers need not see it.
func (d *httpDoor) serveMetrics(g *gateway.Gateway, l *link, log *slog.Logger) (stop func(), _ error) {
	listener, err := net.Listen("tcp", d.metrics)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	reg := registry()
	reg.MustRegister(gatewaymetrics.New(g), metrics.NewConnection(l.Conn))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // it ends with Close
	}()
	log.Info("metrics", "address", listener.Addr().String())
	return func() {
		_ = server.Close() // nothing is lost by that
		<-done
	}, nil
}

// gatewayFindings checks the nodes as qlock check does.
func gatewayFindings(m *qlock.Members) []gateway.Finding {
	r := &findings{}
	checkMembers(m, r)
	checkClocks(m, r)
	checkAhead(m, r)
	out := make([]gateway.Finding, len(r.list))
	for i, f := range r.list {
		out[i] = gateway.Finding{Grade: string(f.Grade), About: f.About, Text: f.Text, Help: f.Help}
	}
	return out
}

// serve serves until ctx ends, and then drains. It calls started, unless that is nil, with
// the gateway's address.
func (d *httpDoor) serve(ctx context.Context, l *link, log *slog.Logger, started func(url string)) error {
	secret, err := d.secret()
	if err != nil {
		return err
	}
	config, err := d.tlsConfig()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", d.addr)
	if err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	begin, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	limits := d.store
	limits.RequestsPerSec, limits.AddressStreams = float64(d.rate), d.streams
	cfg := gateway.Config{
		Conn: l.Conn, Cluster: l.cluster, Client: l.client, Drain: d.drain, Logger: log, Alone: d.alone,
		Hosts: append(d.hosts, listener.Addr().String()), Limits: limits, Origins: d.origins, Callers: d.callers, Secret: secret, Check: gatewayFindings,
	}
	if d.auth == "nats" {
		cfg.Connect, err = d.connectUsers(begin, l)
	}
	if d.mapCert != "" && err == nil {
		cfg.MapCertificate, err = mapCertificates(d.mapCert)
	}
	if err != nil {
		_ = listener.Close() // nothing was served
		return err
	}
	g, err := gateway.New(begin, cfg)
	if err != nil {
		_ = listener.Close() // nothing was served
		return lookError(err)
	}
	if d.nats {
		if err := g.ServeNATS(); err != nil {
			_ = listener.Close() // as well
			return errors.Join(err, g.Close())
		}
	}
	if d.metrics != "" {
		stop, err := d.serveMetrics(g, l, log)
		if err != nil {
			_ = listener.Close() // as well
			return errors.Join(err, g.Close())
		}
		defer stop()
	}
	server, scheme := gateway.NewServer(g), "http"
	server.TLSConfig = config
	limited := gateway.LimitListener(listener, d.connections, d.perAddress)
	served := make(chan error, 1)
	go func() {
		if d.cert != "" {
			served <- server.ServeTLS(limited, d.cert, d.key)
		} else {
			served <- server.Serve(limited)
		}
	}()
	if d.cert != "" {
		scheme = "https"
	}
	url := scheme + "://" + listener.Addr().String()
	log.Info("gateway serves", "url", url, "name", g.Name(), "cluster", l.cluster)
	if started != nil {
		started(url)
	}
	select {
	case <-ctx.Done():
		log.Info("gateway drains", "for", d.drain.String())
	case <-l.closed:
		err = l.lostForEver()
	case err = <-served:
		err = fmt.Errorf("HTTP: %w", err)
		served <- http.ErrServerClosed
	}
	if err == nil {
		err = g.Shutdown(context.Background())
	} else {
		err = errors.Join(err, g.Close())
	}
	end, leave := context.WithTimeout(context.Background(), time.Second)
	defer leave()
	if server.Shutdown(end) != nil {
		_ = server.Close() // somebody reads slowly; the process ends now
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
