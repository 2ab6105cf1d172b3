package qlock_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
)

// However little the NATS server takes in a message (max_payload), and however long
// notes, reasons and lists are: locks are taken, kept, listed, inspected and evicted.
func TestSmallPayload(t *testing.T) {
	for _, payload := range []int32{1 << 10, 2 << 10, 8 << 10, 32 << 10} {
		t.Run(fmt.Sprint(payload), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const many = 300
				w := newWorld(t, 3, setup{server: func(o *server.Options) { o.MaxPayload = payload }})
				a, b, ops := w.client("a", qlock.WithNote(strings.Repeat("<", 256))), w.client("b", qlock.WithNote(strings.Repeat("\u2028", 80))), w.client("ops")
				events := w.observe()
				var all []*qlock.Lock
				for i := range many {
					all = append(all, mustLock(t, []*qlock.Locker{a, b}[i%2], fmt.Sprint("many.", i)))
				}
				time.Sleep(time.Second)
				if got := events.take(); got["acquired"] != many {
					t.Errorf("%d events of %d locks", got["acquired"], many)
				}
				for i := 0; i < many; i += 2 { // lists of claims become long
					mustUnlock(t, all[i])
				}
				time.Sleep(2 * testLease)
				for i := 1; i < many; i += 2 {
					if all[i].Context().Err() != nil {
						t.Errorf("lock %d is lost", i)
					}
				}
				locks, err := ops.Locks(t.Context(), "")
				if err != nil || len(locks) != many/2 {
					t.Fatalf("%d locks are listed, want %d: %v", len(locks), many/2, err)
				}
				for _, l := range locks {
					if len(l.Holders) != 1 || l.Holders[0].Client != "b" || len(l.Silent) > 0 {
						t.Fatalf("%+v", l)
					}
				}
				info, err := ops.Inspect(t.Context(), "many.1")
				if err != nil || len(info.Holders) != 1 {
					t.Fatalf("%+v, %v", info, err)
				}
				if err := ops.Evict(t.Context(), "many.1", info.Holders[0], strings.Repeat("<", 512)); err != nil {
					t.Error(err)
				}
				if all[1].Context().Err() == nil {
					t.Error("who was evicted was not told")
				}
				for _, words := range [][]string{{"not sent"}, {"publish failed"}, {"ignored"}} {
					if lines := w.log.find(words...); len(lines) != 0 {
						t.Errorf("logged %q", lines)
					}
				}
			})
		})
	}
}

// A question that is too long for the server is an error, and not a wait.
func TestQuestionLongerThanThePayload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, setup{server: func(o *server.Options) { o.MaxPayload = 1 << 10 }})
		a := w.client("a")
		start := time.Now()
		_, err := a.Locks(t.Context(), strings.Repeat("a.", 700)+">")
		wantText(t, err, "the NATS server accepts 1024 (max_payload)")
		if d := time.Since(start); d != 0 {
			t.Errorf("it failed after %v", d)
		}
	})
}

// Another server may take less than the one before.
func TestPayloadOfAnotherServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		opts := setup{server: func(o *server.Options) { o.MaxPayload = 64 << 10 }}
		w := newWorld(t, 3, opts)
		a, nc := w.clientOn("a")
		ops := w.client("ops")
		var all []*qlock.Lock
		for i := range 600 {
			all = append(all, mustLock(t, a, fmt.Sprint("many.", i)))
		}
		for i := 0; i < 600; i += 2 {
			mustUnlock(t, all[i]) // 300 runs in a refresh
		}
		// With nothing half written: a mutex that is held meanwhile stops virtual time.
		settle()
		lower := opts.options()
		lower.MaxPayload = 2 << 10
		if err := w.srv.ReloadOptions(lower); err != nil {
			t.Fatal(err)
		}
		// Who is connected is not told, and would be disconnected for what is longer.
		for _, l := range []*link{nc, w.nodes[0].link, w.nodes[1].link, w.nodes[2].link} {
			l.cut()
			l.mend()
		}
		time.Sleep(3 * testLease)
		for i := 1; i < 600; i += 2 {
			if all[i].Context().Err() != nil {
				t.Fatalf("lock %d is lost: %q", i, w.log.find(""))
			}
		}
		if locks, err := ops.Locks(t.Context(), ""); err != nil || len(locks) != 300 {
			t.Errorf("%d locks are listed: %v", len(locks), err)
		}
	})
}
