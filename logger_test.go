package qlock_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// stuckHandler is a logger whose output stands still, as that of a full pipe does. All
// its methods do.
type stuckHandler struct{ stuck chan struct{} }

func (h stuckHandler) Enabled(context.Context, slog.Level) bool  { <-h.stuck; return true }
func (h stuckHandler) Handle(context.Context, slog.Record) error { <-h.stuck; return nil }
func (h stuckHandler) WithAttrs([]slog.Attr) slog.Handler        { <-h.stuck; return h }
func (h stuckHandler) WithGroup(string) slog.Handler             { <-h.stuck; return h }
func newStuckHandler(t *testing.T) stuckHandler {
	h := stuckHandler{make(chan struct{})}
	t.Cleanup(func() { close(h.stuck) }) // else its goroutine would be left: nothing can end it
	return h
}

// A logger that blocks for ever keeps no lock from being refreshed, and no loss from
// being told in time.
func TestLossIsToldWhileTheLoggerStandsStill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		w := newWorld(t, 3)
		nc := w.connect()
		a := w.locker(nc.Conn, "a", qlock.WithLogger(slog.New(stuck)))
		b := w.client("b")
		lost := mustLock(t, a, "x")
		nc.cut()
		time.Sleep(testLease + testLease/10) // x is lost, which is logged
		if cause := context.Cause(lost.Context()); cause != qlock.ErrLost {
			t.Fatalf("x: %v", cause)
		}
		nc.mend()
		time.Sleep(time.Second)
		kept := mustLock(t, a, "y")
		time.Sleep(10 * testLease)
		if err := kept.Context().Err(); err != nil {
			t.Fatalf("y is not refreshed: %v", context.Cause(kept.Context()))
		}
		nc.cut()
		next := mustLock(t, b, "y")
		if kept.Context().Err() == nil {
			t.Errorf("two holders of y, with tokens %d and %d", kept.Token(), next.Token())
		}
		mustUnlock(t, next)
		for i := range 300 { // what is logged meanwhile is kept in bounds
			_, err := a.Lock(timeout(t, time.Millisecond), fmt.Sprintf("z.%d", i))
			wantIs(t, err, context.DeadlineExceeded)
		}
		nc.mend()
		start := time.Now()
		if err := a.Close(); err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
	})
}

// Nor does it keep a node from voting, and from its clean stop.
func TestNodeWhoseLoggerStandsStill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		w := newWorld(t, 1, setup{node: func(_ int, c *qlock.NodeConfig) { c.Logger = slog.New(stuck) }})
		a, tn := w.client("a"), w.nodes[0]
		for range 1000 { // of each of which the node may say a line a second
			time.Sleep(time.Second)
			if err := a.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := tn.link.Publish("lock.default.node.acquire.a.x", []byte("{")); err != nil {
				t.Fatal(err)
			}
		}
		k := mustLock(t, a, "x")
		if s := tn.Stats(); s.LogDropped < 700 || s.LogDropped > 800 {
			t.Errorf("%d lines dropped of 1000, 256 may wait", s.LogDropped)
		}
		start := time.Now()
		tn.stop()
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("the stop took %v", d)
		}
		tn.start() // by its clean mark, at once
		if err := tn.WaitReady(timeout(t, time.Second)); err != nil {
			t.Error(err)
		}
		mustUnlock(t, k)
	})
}
