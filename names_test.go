package qlock_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock"
)

// Any 1 to 1,024 bytes name a resource from one end to the other: at the nodes,
// across a clean restart, in events, and in errors.
func TestResourceNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		a, b := w.client("a"), w.client("b")
		o := w.observe()
		names := []string{
			"orders", "orders.42", "a b", " ", "\t\r\n", "*", ">", "a.*", "a.>", "%", "%20", "a%20b", ".", "..", ".a", "a.", "a..b",
			"größe", "注文.四十二", "🔒", `"quoted"`, `back\slash`, "\x00", "\xff\xfe", "$SYS.>", "lock.default.node.release.a.orders", "_INBOX.x",
			strings.Repeat("a", 1024), strings.Repeat(".", 1024), strings.Repeat("\xff", 1024), strings.Repeat("ü ", 341),
		}
		held := map[string]*qlock.Lock{}
		for _, name := range names {
			k := mustLock(t, a, name)
			if k.Name() != name {
				t.Errorf("the lock on %q is named %q", name, k.Name())
			}
			held[name] = k
		}
		if len(held) != len(names) {
			t.Fatalf("%d names are %d locks", len(names), len(held))
		}
		check := func() {
			t.Helper()
			for _, name := range names {
				_, err := b.TryLock(t.Context(), name)
				var e *qlock.LockError
				if !errors.As(err, &e) || e.Reason != qlock.ErrHeld || e.Name != name {
					t.Errorf("%q is free for another: %v", name, err)
				}
				if err := context.Cause(held[name].Context()); err != nil {
					t.Errorf("%q is lost: %v", name, err)
				}
			}
		}
		check()
		w.each((*testNode).stop)
		w.each((*testNode).start)
		check()
		time.Sleep(3 * testLease)
		check()
		if n := w.nodes[0].Stats(); n.Resources != len(names) || n.Malformed != 0 {
			t.Errorf("a node has %d resources, want %d, and saw %d malformed messages", n.Resources, len(names), n.Malformed)
		}
		for _, name := range names {
			mustUnlock(t, held[name])
		}
		if got := len(o.messages("lock.default.event.released.a.")); got != len(names) {
			t.Errorf("%d events of release, want %d", got, len(names))
		}
		w.noClaims()
	})
}

func TestInvalidResourceNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		o := w.observe()
		o.take()
		for _, tt := range []struct {
			name string
			want []string
		}{
			{"", []string{"the resource name is empty", "1 to 1024 bytes"}},
			{strings.Repeat("x", 1025), []string{"has 1025 bytes", "the limit is 1024"}},
			{strings.Repeat("ü", 513), []string{"has 1026 bytes", "the limit is 1024"}},
		} {
			type lock = func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error)
			for _, f := range []lock{a.Lock, a.RLock, a.TryLock, a.TryRLock} {
				k, err := f(t.Context(), tt.name)
				if k != nil {
					t.Errorf("a lock on %q", tt.name)
				}
				wantIs(t, err, qlock.ErrInvalidName)
				wantText(t, err, append(tt.want, "qlock: ")...)
				if len(err.Error()) > 400 {
					t.Errorf("an error of %d bytes", len(err.Error()))
				}
			}
			err := a.Do(t.Context(), tt.name, func(context.Context) error { t.Error("called without a lock"); return nil })
			wantIs(t, err, qlock.ErrInvalidName)
			func() {
				defer func() {
					err, ok := recover().(error)
					if !ok {
						t.Fatalf("RWMutex(%.10q...) did not panic with an error", tt.name)
					}
					wantIs(t, err, qlock.ErrInvalidName)
					wantText(t, err, tt.want...)
				}()
				a.RWMutex(tt.name)
			}()
		}
		if got := o.take(); len(got) != 0 {
			t.Errorf("published %v", got)
		}
	})
}

// Names are told apart as they are written: no two of them are one lock.
func TestSimilarNamesAreSeparateLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.client("a")
		var held []*qlock.Lock
		for _, name := range []string{"a", "A", "a.", ".a", "a..", "%61", "a%", "a ", " a", "\u00e1", "a\u0301", "a\x00"} {
			k, err := a.TryLock(t.Context(), name)
			if err != nil {
				t.Fatalf("%q is taken: %v", name, err)
			}
			held = append(held, k)
		}
		if got := w.nodes[0].Stats(); got.Resources != len(held) {
			t.Errorf("%d resources for %d names", got.Resources, len(held))
		}
		for _, k := range held {
			mustUnlock(t, k)
		}
		w.noClaims()
	})
}
