package driver

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// silentConn is a connection on which nobody answers, and that may stand still.
type silentConn struct {
	mu    sync.Mutex
	still chan struct{} // nil: it moves; else every call waits for it
	first []byte        // the first request
	gone  int           // number of releases
}

func (c *silentConn) pass() {
	c.mu.Lock()
	still := c.still
	c.mu.Unlock()
	if still != nil {
		<-still
	}
}

func (c *silentConn) Publish(on string, _ []byte) error {
	c.pass()
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(on, ".release.") {
		c.gone++
	}
	return nil
}

func (c *silentConn) PublishRequest(_, _ string, body []byte) error {
	c.pass()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		c.first = slices.Clone(body)
	}
	return nil
}
func (c *silentConn) MaxPayload() int64 { c.pass(); return 1 << 20 }
func (c *silentConn) LastError() error  { c.pass(); return nil }
func (c *silentConn) IsClosed() bool    { c.pass(); return false }

func newTestClient(conn *silentConn) (*Client, chan nats.Status) {
	cluster := wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: 5 * time.Second}
	c := NewClient(conn, "inbox", nil, Config{
		Cluster: "default", Name: "a", Lease: 10 * time.Second, Log: natsio.NewLog(slog.New(slog.DiscardHandler)),
	}, NewMembership("inbox", cluster))
	status := make(chan nats.Status, 8)
	c.Run(status, func() error { return nil })
	return c, status
}

// A lock can be asked for without waiting for it. Whoever gives it up, or closes the
// client, ends the wait of all who look at it.
func TestStartDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newTestClient(&silentConn{})
		var given, closed Hold
		request := Request{Name: "x", Resource: "x", Mode: quorum.Exclusive}
		c.Start(context.Background(), &given, request)
		c.Start(context.Background(), &closed, request)
		synctest.Wait()
		for _, h := range []*Hold{&given, &closed} {
			select {
			case <-h.Ready():
				t.Fatal("it is over before anybody answered")
			default:
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		f := given.Wait(ctx, nil)
		if f == nil || f.Reason != ErrNoQuorum || !errors.Is(f.Cause, context.DeadlineExceeded) {
			t.Fatalf("given up: %+v", f)
		}
		<-given.Ready()
		if given.Failure() != f || given.Context().Err() == nil {
			t.Errorf("others see %+v, and the context ended with %v", given.Failure(), given.Context().Err())
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		<-closed.Ready()
		if f := closed.Failure(); f == nil || f.Reason != ErrClosed {
			t.Errorf("closed: %+v", f)
		}
		var after Hold
		c.Start(context.Background(), &after, request)
		if f := after.Wait(context.Background(), nil); f == nil || f.Reason != ErrClosed || after.Context().Err() == nil {
			t.Errorf("asked for after Close: %+v", f)
		}
		if s := c.Stats(); s.Waiting != 0 || s.Held != 0 || s.Failed != (Failures{NoQuorum: 1, Closed: 1}) {
			t.Errorf("%+v", s.Counts)
		}
	})
}

// The loop goes on reading its clock while the connection stands still, whatever that
// says of itself: no call on it stands between the clock and the end of a lock's context.
func TestLoopDoesNotTouchTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &silentConn{}
		c, status := newTestClient(conn)
		still := make(chan struct{})
		conn.mu.Lock()
		conn.still = still
		conn.mu.Unlock()
		var h Hold
		c.Start(context.Background(), &h, Request{Name: "x", Resource: "x", Mode: quorum.Exclusive})
		for _, s := range []nats.Status{nats.RECONNECTING, nats.CONNECTED, nats.CLOSED} {
			status <- s
		}
		time.Sleep(time.Minute)
		c.machine.mu.Lock()
		late := time.Until(c.machine.wakeAt)
		c.machine.mu.Unlock()
		if late < 0 {
			t.Errorf("the loop was to look at the machine %v ago", -late)
		}
		close(still)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// grant makes nodes vote for the client's first claim.
func grant(t *testing.T, conn *silentConn, c *Client) {
	t.Helper()
	conn.mu.Lock()
	body := conn.first
	conn.mu.Unlock()
	r, err := wire.DecodeRequest(wire.Acquire, "a", "x", body)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"n1", "n2"} {
		a := wire.Answer{
			Kind: wire.Granted, Node: node, Incarnation: uuid.UUID{node[1]}, Digest: r.Digest, Client: "a",
			Claim: r.Claim, SentAt: r.SentAt, Fence: 7,
		}
		c.Receive(&nats.Msg{Data: wire.AppendAnswer(nil, &a)})
	}
}

// Nothing is left of those who waited for the answers to a refresh when the nodes do not answer.
func TestAwaitRefreshLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &silentConn{}
		c, _ := newTestClient(conn)
		var h Hold
		c.Start(context.Background(), &h, Request{Name: "x", Resource: "x", Mode: quorum.Exclusive})
		synctest.Wait()
		grant(t, conn, c)
		if f := h.Wait(context.Background(), nil); f != nil {
			t.Fatal(f.Reason)
		}
		time.Sleep(c.Lease() / 2)
		refreshing := func() int {
			c.machine.mu.Lock()
			defer c.machine.mu.Unlock()
			return len(c.machine.refreshes)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ended := make(chan error)
		go func() { ended <- h.AwaitRefresh(context.Background()) }()
		if err := h.AwaitRefresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := refreshing(); n != 1 {
			t.Errorf("%d refreshes are waited for", n)
		}
		if err := <-ended; !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if n := refreshing(); n != 0 {
			t.Errorf("%d refreshes are waited for, and nobody waits", n)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A lock that is lost by the clock has ended also before the loop has looked at the clock.
func TestEndedBeforeTheLoopNotices(t *testing.T) {
	for _, terms := range []*Terms{nil, {AtMost: 7 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			conn := &silentConn{}
			c, _ := newTestClient(conn)
			var h Hold
			c.Start(context.Background(), &h, Request{Name: "x", Resource: "x", Mode: quorum.Exclusive, Terms: terms})
			synctest.Wait()
			grant(t, conn, c)
			if err := h.Ended(); err != nil {
				t.Fatal(err)
			}
			c.machine.mu.Lock()
			c.machine.start = c.machine.start.Add(-8 * time.Second) // the monotonic clock goes on by that
			want := ErrHoldExpired
			if terms == nil {
				c.machine.start = c.machine.start.Add(-2 * time.Second)
				want = ErrLost
			}
			c.machine.mu.Unlock()
			if err := h.Ended(); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			if err := h.Unlock(); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A lock that is lost because the clock leapt is released at once, or by its owner if it is to be
// released by hand.
func TestReleaseAfterALeap(t *testing.T) {
	for _, manual := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			conn := &silentConn{}
			c, _ := newTestClient(conn)
			released := func() int {
				synctest.Wait()
				conn.mu.Lock()
				defer conn.mu.Unlock()
				return conn.gone
			}
			var h Hold
			c.Start(context.Background(), &h, Request{Name: "x", Resource: "x", Mode: quorum.Exclusive, Terms: &Terms{Manual: manual}})
			synctest.Wait()
			grant(t, conn, c)
			c.machine.mu.Lock()
			c.machine.start = c.machine.start.Add(1200*time.Millisecond - c.Lease()) // less than a lease until the next reading (C15)
			c.machine.mu.Unlock()
			<-h.Context().Done()
			if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) {
				t.Error(cause)
			}
			time.Sleep(c.Lease() / 2)
			if n := released(); (n == 0) != manual {
				t.Errorf("by hand: %v, and released %d times", manual, n)
			}
			if err := h.Unlock(); !errors.Is(err, ErrLost) {
				t.Error(err)
			}
			if n := released(); n == 0 {
				t.Error("it is not released")
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
