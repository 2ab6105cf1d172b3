package qlocktest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/subject"
)

// Connect connects to the cluster over TCP, with the options that qlock.New recommends. The
// connection prefers n1. When it breaks, it reconnects to the first server that accepts it.
// opts override these options. The connection is closed when the test ends.
//
// Connections are named client1, client2 and so on, in the order of the calls.
func (c *Cluster) Connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	return c.connect(t, c.client(), c.urls, opts)
}

// ConnectTo is like Connect, but connects to one server only, for a client that cannot
// move to another server.
func (c *Cluster) ConnectTo(t testing.TB, name string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	i := c.index(t, name)
	return c.connect(t, c.client(), c.urls[i:i+1], opts)
}

// client returns a new name for a client.
func (c *Cluster) client() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients++
	return fmt.Sprintf("client%d", c.clients)
}

func (c *Cluster) connect(t testing.TB, name string, urls []string, more []nats.Option) *nats.Conn {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	end, _ := ctx.Deadline()
	log := c.log.logger("connection", name)
	opts := []nats.Option{
		nats.Name(name), nats.SetCustomDialer(&dialer{}), nats.Timeout(max(time.Until(end), time.Second)),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(10 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.PingInterval(max(c.cfg.lease/5, 10*time.Millisecond)), nats.MaxPingsOutstanding(1),
		// The first server comes first, and no other servers are added.
		nats.DontRandomize(), nats.IgnoreDiscoveredServers(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("NATS connection", "error", err) }),
	}
	if a := c.cfg.authority; a != nil {
		opts = append(opts, nats.Secure(a.trust()))
	}
	o := nats.GetDefaultOptions()
	for _, set := range append(opts, more...) {
		if set == nil {
			continue
		}
		if err := set(&o); err != nil {
			t.Fatalf("qlocktest: an option of the connection: %v", err)
		}
	}
	o.Servers = urls
	nc, err := o.Connect()
	if err != nil {
		t.Fatalf("qlocktest: %s cannot connect to %v: %v", name, urls, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Locker creates a Locker on a connection of its own, which is like those of Connect. It
// has the name of the connection, and the cluster's lease, unless opts set others. It is
// closed when the test ends.
func (c *Cluster) Locker(t testing.TB, opts ...qlock.Option) *qlock.Locker {
	t.Helper()
	name := c.client()
	return c.locker(t, c.connect(t, name, c.urls, nil), name, opts)
}

// LockerOn is like Locker on a given connection: one for Disconnect, one of ConnectTo, or
// one that several Lockers share.
func (c *Cluster) LockerOn(t testing.TB, nc *nats.Conn, opts ...qlock.Option) *qlock.Locker {
	t.Helper()
	name := subject.TokenFrom(nc.Opts.Name)
	if nc.Opts.Name == "" {
		name = c.client()
	}
	return c.locker(t, nc, name, opts)
}

func (c *Cluster) locker(t testing.TB, nc *nats.Conn, name string, more []qlock.Option) *qlock.Locker {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	opts := []qlock.Option{qlock.WithName(name), qlock.WithLogger(c.log.logger("locker", name))}
	if c.cfg.name != "" {
		opts = append(opts, qlock.WithCluster(c.cfg.name))
	}
	l, err := qlock.New(ctx, nc, append(opts, more...)...)
	if err != nil {
		t.Fatalf("qlocktest: the Locker of %s: %v", name, err)
	}
	t.Cleanup(func() {
		if d, ok := nc.Opts.CustomDialer.(*dialer); ok {
			d.mend() // a Locker that is cut off would wait for a second
		}
		if err := l.Close(); err != nil {
			t.Errorf("qlocktest: closing the Locker of %s: %v", l.Name(), err)
		}
	})
	return l
}

// Disconnect breaks a connection of Connect or ConnectTo until Reconnect. When it returns,
// no message passes in either direction, and the connection has noticed that it is broken.
func (c *Cluster) Disconnect(t testing.TB, nc *nats.Conn) {
	t.Helper()
	d := dialerOf(t, "Disconnect", nc)
	d.cut()
	await(t, "Disconnect: the connection does not notice that it is broken", func() bool { return !nc.IsConnected() })
}

// Reconnect lets a connection reconnect that Disconnect broke, and waits until it has.
func (c *Cluster) Reconnect(t testing.TB, nc *nats.Conn) {
	t.Helper()
	d := dialerOf(t, "Reconnect", nc)
	d.mend()
	await(t, "Reconnect: the connection does not come back, to "+fmt.Sprint(nc.Opts.Servers), func() bool { return nc.IsConnected() })
}

func dialerOf(t testing.TB, what string, nc *nats.Conn) *dialer {
	t.Helper()
	d, ok := nc.Opts.CustomDialer.(*dialer)
	if !ok {
		t.Fatalf("qlocktest: %s: the connection was not made by Connect or ConnectTo of a Cluster, or with a dialer of its own", what)
	}
	return d
}

// await waits until ok returns true. If it never does, the test fails with text, which says
// what is missing.
func await(t testing.TB, text string, ok func() bool) {
	t.Helper()
	ctx, cancel := withPatience(t)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("qlocktest: %s", text)
		case <-time.After(time.Millisecond):
		}
	}
}

// dialer makes the connections of one client, one at a time, and can cut the client off.
type dialer struct {
	mu    sync.Mutex // guards what follows
	isCut bool
	last  net.Conn
}

var errCut = errors.New("disconnected by the test")

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isCut {
		return nil, errCut
	}
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err == nil {
		d.last = conn
	}
	return conn, err
}

func (d *dialer) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isCut = true
	if d.last != nil {
		_ = d.last.Close() // it may be closed
	}
}

func (d *dialer) mend() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isCut = false
}
