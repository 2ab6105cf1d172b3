package integration

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/internal/testproxy"
)

// While a connection reconnects, or flushes into a black hole, every call on it
// waits for it, for seconds or for a minute. A holder is told all the same that its
// lock is lost, and neither Unlock nor Lock waits longer than it may. (Virtual time
// cannot show this: it stands still while a goroutine waits for a mutex.)

// proxied puts a proxy before a server.
func proxied(t *testing.T, s *embedded.Server) *testproxy.Proxy {
	t.Helper()
	u, err := url.Parse(s.ClientURL())
	must(t, err)
	p, err := testproxy.New(u.Host, 1)
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// standsStill checks what a Locker does whose connection stands still: it holds
// held, which another wants too.
func standsStill(t *testing.T, lease time.Duration, l *qlock.Locker, held *qlock.Lock, other *qlock.Locker) {
	t.Helper()
	began := time.Now()
	var once sync.Once
	told := make(chan time.Time, 1)
	stop := context.AfterFunc(held.Context(), func() { once.Do(func() { told <- time.Now() }) })
	defer stop()
	next, err := other.Lock(testContext(t), held.Name())
	must(t, err)
	got := time.Now()
	select {
	case at := <-told:
		t.Logf("the loss was told after %v, the next one had the lock after %v", at.Sub(began), got.Sub(began))
		if late := at.Sub(got); late > slack(got) {
			t.Errorf("told %v after the next one had the lock", late)
		}
	case <-time.After(patience):
		t.Errorf("not told within %v", patience)
	}
	if cause := context.Cause(held.Context()); cause != qlock.ErrLost {
		t.Errorf("the holder was told %v, want ErrLost", cause)
	}
	start := time.Now()
	if err := held.Unlock(t.Context()); err != qlock.ErrLost {
		t.Errorf("Unlock: %v, want ErrLost", err)
	}
	if d := time.Since(start); d > slack(start) {
		t.Errorf("Unlock took %v", d)
	}
	start = time.Now()
	if k, err := l.Lock(within(t, lease/4), "another"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock while the connection stands still: %v, %v", k, err)
	}
	if d := time.Since(start); d > lease/4+slack(start) {
		t.Errorf("Lock took %v, its context had %v", d, lease/4)
	}
	unlock(t, next)
}

func TestLossIsToldWhileReconnecting(t *testing.T) {
	const lease = 4 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	p := proxied(t, servers[0])
	// The server is found dead soon, and then the handshake with it waits for an
	// answer for long.
	nc := connect(t, "nats://"+p.Addr(), nats.PingInterval(lease/8), nats.Timeout(5*lease))
	a := newLocker(t, nc, qlock.WithName("a"))
	b := client(t, "b", urls(servers[1:]...))
	held := lock(t, a, "name")
	p.Block(testproxy.Out)
	standsStill(t, lease, a, held, b)
	p.Cut()
	p.Heal()
	await(t, "the connection is back", nc.IsConnected)
	unlock(t, lock(t, a, "name"))
}

func TestLossIsToldWhileAFlushBlocks(t *testing.T) {
	const lease = 4 * time.Second
	c := startCluster(t, 3, maxLease(lease))
	servers := c.Servers()
	p := proxied(t, servers[0])
	nc := connect(t, "nats://"+p.Addr())
	a := newLocker(t, nc, qlock.WithName("a"))
	b := client(t, "b", urls(servers[1:]...))
	held := lock(t, a, "name")
	p.Block(testproxy.Both)
	var noise sync.WaitGroup
	quit := make(chan struct{})
	noise.Go(func() { // the program publishes much on the same connection
		data := make([]byte, 64<<10)
		for {
			select {
			case <-quit:
				return
			default:
				_ = nc.Publish("noise", data)
			}
		}
	})
	standsStill(t, lease, a, held, b)
	close(quit)
	p.Cut()
	p.Heal()
	noise.Wait()
	await(t, "the connection is back", nc.IsConnected)
	unlock(t, lock(t, a, "name"))
}
