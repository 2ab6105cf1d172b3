package qlock_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
)

// Nodes are found by `nats micro ls`, info and stats. These are in real time: a
// service ends with Drain, which leaves a timer in a pool that is for all bubbles.
func withService(t *testing.T, n int) *world {
	t.Cleanup(func() { goleak.VerifyNone(t) }) // last, when all else is closed
	return newWorld(t, n, setup{real: true, node: func(_ int, c *qlock.NodeConfig) {
		c.NoService, c.ProbeWait = false, 20*time.Millisecond
	}})
}

// ask publishes a request and returns the first n answers to it.
func ask(t *testing.T, nc *nats.Conn, subject string, n int) []*nats.Msg {
	t.Helper()
	out, err := tryAsk(t, nc, subject, n)
	if err != nil {
		t.Fatalf("%d answers on %s, want %d: %v", len(out), subject, n, err)
	}
	return out
}

func tryAsk(t *testing.T, nc *nats.Conn, subject string, n int) ([]*nats.Msg, error) {
	t.Helper()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		t.Fatal(err)
	}
	var out []*nats.Msg
	for range n {
		m, err := sub.NextMsgWithContext(timeout(t, patience))
		if err != nil {
			return out, err
		}
		out = append(out, m)
	}
	return out, nil
}

func TestNodesAreServices(t *testing.T) {
	w := withService(t, 3)
	nc := w.connect()
	a := w.client("a")
	k := mustLock(t, a, "x")
	for i := range w.nodes { // two of them were enough for the lock
		for end := time.Now().Add(patience); w.claims(i) != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("node %d has %d claims", i, w.claims(i))
			}
		}
	}

	var names []string
	for _, m := range ask(t, nc.Conn, "$SRV.INFO.qlock", 3) {
		var info micro.Info
		if err := json.Unmarshal(m.Data, &info); err != nil {
			t.Fatal(err)
		}
		if info.Name != "qlock" || info.Version != qlock.Version() || info.Metadata["cluster"] != "default" || info.Metadata["nodes"] != "n1 n2 n3" {
			t.Errorf("info %+v", info)
		}
		// No queue group: every node hears every request.
		if len(info.Endpoints) != 1 || info.Endpoints[0].Subject != "lock.default.node.>" || info.Endpoints[0].QueueGroup != "" {
			t.Errorf("endpoints %+v", info.Endpoints)
		}
		names = append(names, info.Metadata["node"])
	}
	slices.Sort(names)
	if fmt.Sprint(names) != "[n1 n2 n3]" {
		t.Errorf("nodes %v", names)
	}

	for _, m := range ask(t, nc.Conn, "$SRV.STATS.qlock", 3) {
		var stats micro.Stats
		if err := json.Unmarshal(m.Data, &stats); err != nil {
			t.Fatal(err)
		}
		var data qlock.NodeStats
		if len(stats.Endpoints) != 1 {
			t.Fatalf("stats %s", m.Data)
		}
		if err := json.Unmarshal(stats.Endpoints[0].Data, &data); err != nil {
			t.Fatal(err)
		}
		if data.State != "voting" || data.Claims != 1 || data.Requests == 0 || data.Malformed != 0 || stats.Endpoints[0].NumErrors != 0 {
			t.Errorf("stats %s", m.Data)
		}
	}

	// A held lock is an ordinary answer, no endpoint error.
	_, err := w.client("b").TryLock(t.Context(), "x")
	wantIs(t, err, qlock.ErrHeld)
	mustUnlock(t, k)

	for _, tn := range w.nodes {
		tn.stop()
		if err := tn.link.FlushWithContext(timeout(t, patience)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tryAsk(t, nc.Conn, "$SRV.PING.qlock", 1); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a stopped node answers: %v", err)
	}
	w.nodes[0].start()
	ask(t, nc.Conn, "$SRV.PING.qlock", 1)

	// And without the connection.
	w.nodes[0].link.Close()
	w.nodes[0].stop()
}

func TestNoService(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3) // with NoService
		if _, err := tryAsk(t, w.connect().Conn, "$SRV.PING", 1); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("a node is a service: %v", err)
		}
	})
}
