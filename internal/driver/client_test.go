package driver

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// silentConn is a connection on which nobody answers, and that may stand still.
type silentConn struct {
	mu    sync.Mutex
	still chan struct{} // nil: it moves; else every call waits for it
}

func (c *silentConn) pass() {
	c.mu.Lock()
	still := c.still
	c.mu.Unlock()
	if still != nil {
		<-still
	}
}

func (c *silentConn) Publish(string, []byte) error                { c.pass(); return nil }
func (c *silentConn) PublishRequest(string, string, []byte) error { c.pass(); return nil }
func (c *silentConn) MaxPayload() int64                           { c.pass(); return 1 << 20 }
func (c *silentConn) LastError() error                            { c.pass(); return nil }
func (c *silentConn) IsClosed() bool                              { c.pass(); return false }

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
