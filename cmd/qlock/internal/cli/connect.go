package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"github.com/spf13/pflag"
	"github.com/synadia-io/orbit.go/natscontext"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/redact"
	"github.com/qlock/qlock/internal/subject"
)

// connection says how to reach NATS. It has the same flags, variables and contexts as the
// nats command.
type connection struct {
	server, context        string
	user, password, token  string
	creds, nkey            string
	tlsCert, tlsKey, tlsCA string
	inboxPrefix            string
	timeout                time.Duration
	cluster                string
	anyCluster             bool // --cluster may be *
	client                 string
}

// flags adds the flags of a command that is a client.
func (c *connection) flags(fs *pflag.FlagSet) {
	var own pflag.FlagSet
	own.StringVar(&c.cluster, "cluster", qlock.DefaultCluster, "name of the lock cluster")
	env(&own, "cluster", "QLOCK_CLUSTER")
	own.StringVar(&c.client, "client", "", "name of this client in subjects, events and permissions; default: the user of --user, of the address or of the context, otherwise host and program")
	env(&own, "client", "QLOCK_CLIENT")
	c.natsFlags(&own)
	own.VisitAll(func(f *pflag.Flag) {
		if err := own.SetAnnotation(f.Name, annotationGroup, []string{"nats"}); err != nil {
			panic(err)
		}
	})
	fs.AddFlagSet(&own)
}

func (c *connection) natsFlags(fs *pflag.FlagSet) {
	fs.StringVarP(&c.server, "server", "s", "", "NATS servers, separated by commas")
	env(fs, "server", "NATS_URL")
	fs.StringVar(&c.user, "user", "", "user, or token if there is no password")
	env(fs, "user", "NATS_USER")
	fs.StringVar(&c.password, "password", "", "password")
	env(fs, "password", "NATS_PASSWORD")
	fs.StringVar(&c.token, "token", "", "token")
	env(fs, "token", "NATS_TOKEN")
	fs.StringVar(&c.creds, "creds", "", "credentials file")
	env(fs, "creds", "NATS_CREDS")
	fs.StringVar(&c.nkey, "nkey", "", "file with an NKEY seed")
	env(fs, "nkey", "NATS_NKEY")
	fs.StringVar(&c.tlsCert, "tlscert", "", "certificate file")
	env(fs, "tlscert", "NATS_CERT")
	fs.StringVar(&c.tlsKey, "tlskey", "", "key file of --tlscert")
	env(fs, "tlskey", "NATS_KEY")
	fs.StringVar(&c.tlsCA, "tlsca", "", "file with the CA certificates to trust")
	env(fs, "tlsca", "NATS_CA")
	fs.StringVar(&c.context, "context", "", "context of the nats command; default: the selected one, unless --server is given")
	env(fs, "context", "NATS_CONTEXT")
	fs.StringVar(&c.inboxPrefix, "inbox-prefix", "", "prefix of inboxes; default: _INBOX and the name, which matches qlock permissions")
	env(fs, "inbox-prefix", "NATS_INBOX_PREFIX")
	durationFlag(fs, &c.timeout, "timeout", 5*time.Second, time.Millisecond, "time to wait for NATS and for the first answer of the nodes")
	env(fs, "timeout", "NATS_TIMEOUT")
}

// link is a connection with the errors that the server reported on it.
type link struct {
	*nats.Conn
	cluster, client string
	timeout         time.Duration

	closed chan struct{} // closed when the connection is closed permanently

	mu     sync.Mutex // guards what follows
	denied []error
}

// lostForEver returns why the connection was closed, for a command that cannot go on.
func (l *link) lostForEver() error {
	err := errors.New("the NATS connection is closed permanently")
	if last := l.LastError(); last != nil {
		err = fmt.Errorf("%w: %w", err, redact.Error(last))
	}
	return &statusError{exitSelf, err}
}

// name returns the client's name. By default that is the name of the NATS user, because
// permissions are given to users. The user may come from an address (which takes
// precedence), a flag or a context.
func (c *connection) name(o *nats.Options) string {
	if c.client != "" {
		return c.client
	}
	for _, s := range o.Servers {
		u, err := parseServer(s)
		if err != nil || u.User == nil {
			continue
		}
		if _, ok := u.User.Password(); !ok { // without a password it is a token, which is secret
			return hostAndProgram()
		}
		if subject.IsToken(u.User.Username()) {
			return u.User.Username()
		}
		break
	}
	switch {
	case c.password != "" && subject.IsToken(c.user):
		return c.user
	case o.Password != "" && subject.IsToken(o.User):
		return o.User
	}
	return hostAndProgram()
}

func hostAndProgram() string {
	host, _ := os.Hostname()
	return subject.ClientName(host, os.Args[0])
}

// parseServer parses the address of a server as the client library does. Its error quotes
// nothing, because an address may be invalid since its password is not encoded.
func parseServer(s string) (*url.URL, error) {
	s = strings.TrimSpace(s)
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || redact.Misread(u) {
		return nil, errors.New("use addresses such as nats://n1.example.com:4222; in a user name and a password write %2F for /, %40 for @, and encode all other characters that are not letters or digits in the same way")
	}
	return u, nil
}

// addresses splits a list of addresses as the client library does.
func addresses(list string) []string {
	var out []string
	for _, s := range strings.Split(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// checkServers rejects addresses for which the client library's error would quote a
// password.
func checkServers(list []string) error {
	for i, s := range list {
		if _, err := parseServer(s); err != nil {
			return fmt.Errorf("address %d of %d cannot be read: %w", i+1, len(list), err)
		}
	}
	return nil
}

// serverURL returns the address of the server that nc is connected to, without secrets.
func serverURL(nc *nats.Conn) string { return redact.URL(nc.ConnectedUrl()) }

// connect makes a connection for a lease of the given length: it detects a dead server, and
// connects to another one, while locks are still held.
func (c *connection) connect(role string, lease time.Duration, more ...nats.Option) (*link, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	l := &link{cluster: c.cluster, timeout: c.timeout, closed: make(chan struct{})}
	opts := append(c.options(l),
		nats.ClosedHandler(func(*nats.Conn) { close(l.closed) }),
		// The connection never ends by itself: servers may reject the credentials for a while, when
		// they are changed in several places.
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(max(lease/5, 100*time.Millisecond)), nats.MaxPingsOutstanding(1),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.Timeout(c.timeout))
	opts = append(opts, more...)
	opts = append(opts, func(o *nats.Options) error {
		// The servers of a flag take precedence over those of a context. A context without servers
		// means the local one.
		if c.server != "" {
			o.Servers = addresses(c.server)
		} else if len(o.Servers) == 1 && o.Servers[0] == "" {
			o.Servers = []string{nats.DefaultURL}
		}
		if err := checkServers(o.Servers); err != nil {
			return err
		}
		l.client = c.name(o)
		o.Name = "qlock " + role + " " + l.client
		// The prefix is unique to this connection, so that one subscription to all its inboxes gets
		// no messages for others of its name (wait.go).
		o.InboxPrefix = orElse(c.inboxPrefix, orElse(o.InboxPrefix, subject.InboxPrefix(l.client))) + "." + nuid.Next()
		return nil
	})
	var err error
	if c.server != "" && c.context == "" {
		l.Conn, err = nats.Connect(c.server, opts...)
	} else {
		l.Conn, _, err = natscontext.Connect(c.context, opts...)
	}
	if err != nil {
		return nil, c.notConnected(err)
	}
	return l, nil
}

// connectWaiting does what connect does, and ends with ctx, whatever the connection does.
// If failed is not nil, it also waits for a server: it retries after errors that may pass,
// and calls failed after each of them.
func (c *connection) connectWaiting(ctx context.Context, role string, lease time.Duration, failed func(), more ...nats.Option) (*link, error) {
	type made struct {
		l   *link
		err error
	}
	var last error
	for attempt := 1; ; attempt++ {
		done := make(chan made, 1)
		go func() {
			l, err := c.connect(role, lease, more...)
			done <- made{l, err}
		}()
		select {
		case m := <-done:
			if m.err == nil || failed == nil || !passes(m.err) {
				return m.l, m.err
			}
			last = m.err
			failed()
			pause(ctx, reconnectDelay(attempt))
		case <-ctx.Done():
			go func() { // the client library does not accept a context
				if m := <-done; m.err == nil {
					m.l.Close()
				}
			}()
		}
		if ctx.Err() != nil {
			if last == nil {
				last = c.notConnected(errors.New("no server has answered"))
			}
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
	}
}

// passes reports whether an error of connect means that no server is there, and not that
// this program was configured wrongly.
func passes(err error) bool {
	if exitOf(err) == exitUsage || strings.Contains(err.Error(), "x509") || strings.Contains(err.Error(), "tls:") {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, io.EOF)
}

// reconnectDelay returns the delay before another attempt. It is short while a lock may
// still be kept. Later it is longer, to spare servers that are down, or that reject the
// credentials, for long.
func reconnectDelay(attempts int) time.Duration {
	if attempts <= 30 {
		return 100*time.Millisecond + rand.N(100*time.Millisecond)
	}
	return time.Second + rand.N(500*time.Millisecond)
}

// connectionLogs returns options that log when the connection breaks and when it is
// restored. An error of the attempts in between is logged once a minute, and when it
// changes.
func connectionLogs(log *slog.Logger) []nats.Option {
	var mu sync.Mutex
	var last string
	var at time.Time
	news := func(text string) bool {
		mu.Lock()
		defer mu.Unlock()
		if text == last && time.Since(at) < time.Minute {
			return false
		}
		last, at = text, time.Now()
		return true
	}
	return []nats.Option{
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS connection lost", "error", redact.Error(err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			news("") // the next error counts as new
			log.Info("NATS connection restored", "server", serverURL(nc))
		}),
		func(o *nats.Options) error {
			before := o.AsyncErrorCB
			o.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
				if news(err.Error()) {
					log.Warn("NATS connection", "error", redact.Error(err))
				}
				if before != nil {
					before(nc, sub, err)
				}
			}
			return nil
		},
	}
}

func (c *connection) notConnected(err error) error {
	err = redact.Error(err)
	where := redact.URLs(orElse(c.server, nats.DefaultURL))
	if c.context != "" {
		where = fmt.Sprintf("the servers of context %q", c.context)
	}
	hint := "is a server running there? --server, NATS_URL or --context say where"
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		hint = "see --user, --password, --token, --creds and --nkey"
	case strings.Contains(err.Error(), "x509"), strings.Contains(err.Error(), "tls:"):
		hint = "see --tlsca, --tlscert and --tlskey"
	case errors.Is(err, os.ErrNotExist), strings.Contains(err.Error(), "unknown context"):
		return fmt.Errorf("connect to NATS: %w", err)
	}
	return fmt.Errorf("connect to NATS at %s: %w; %s", where, err, hint)
}

// check rejects settings that would be ignored silently, or fail later with a less useful
// error.
func (c *connection) check() error {
	switch {
	case !subject.IsToken(c.cluster) && !(c.anyCluster && c.cluster == subject.Any):
		return usage("--cluster %q: %s", c.cluster, subject.TokenRule)
	case c.password != "" && c.user == "":
		return usage("--password is given without --user")
	case (c.tlsCert == "") != (c.tlsKey == ""):
		return usage("--tlscert and --tlskey must be given together; only one of them is given")
	case c.client != "" && !subject.IsToken(c.client):
		return usage("--client %q: %s", c.client, subject.TokenRule)
	}
	if c.server != "" {
		if err := checkServers(addresses(c.server)); err != nil {
			return usage("--server: %w", err)
		}
	}
	for _, f := range []struct{ flag, path string }{
		{"creds", c.creds}, {"nkey", c.nkey}, {"tlscert", c.tlsCert}, {"tlskey", c.tlsKey}, {"tlsca", c.tlsCA},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return usage("--%s: %w", f.flag, err)
		}
	}
	return nil
}

func (c *connection) options(l *link) []nats.Option {
	opts := []nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				l.mu.Lock()
				l.denied = append(l.denied, err)
				l.mu.Unlock()
			}
		}),
	}
	switch {
	case c.token != "":
		opts = append(opts, nats.Token(c.token))
	case c.user != "" && c.password == "" && c.creds == "" && c.nkey == "":
		opts = append(opts, nats.Token(c.user))
	case c.user != "":
		opts = append(opts, nats.UserInfo(c.user, c.password))
	}
	if c.creds != "" {
		opts = append(opts, nats.UserCredentials(c.creds))
	}
	if c.nkey != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.nkey)
		if err != nil {
			nkey = func(*nats.Options) error { return fmt.Errorf("--nkey: %w", err) }
		}
		opts = append(opts, nkey)
	}
	// Read at each connect, because certificates are renewed while nodes run.
	if c.tlsCert != "" {
		opts = append(opts, nats.ClientTLSConfig(
			func() (tls.Certificate, error) { return tls.LoadX509KeyPair(c.tlsCert, c.tlsKey) }, nil))
	}
	if c.tlsCA != "" {
		opts = append(opts, nats.RootCAs(c.tlsCA))
	}
	return opts
}

// denials returns the permissions that were found missing. It also reads the last error,
// because the handler of errors may not have run for it yet.
func (l *link) denials() []error {
	last := l.LastError()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.denied)
	if errors.Is(last, nats.ErrPermissionViolation) && !slices.Contains(out, last) {
		out = append(out, last)
	}
	return out
}

// locker makes a Locker. Finding the nodes may take for patience, or for --timeout if
// patience is 0.
func (l *link) locker(ctx context.Context, patience time.Duration, log *slog.Logger, opts ...qlock.Option) (*qlock.Locker, error) {
	if patience == 0 {
		patience = l.timeout
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return qlock.New(ctx, l.Conn, append([]qlock.Option{
		qlock.WithCluster(l.cluster), qlock.WithName(l.client), qlock.WithLogger(log),
	}, opts...)...)
}

// authorities reads a file of certificates.
func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM form", file)
	}
	return pool, nil
}
