package security

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/qlocktest"
)

// A permission that was missing and is given at last counts: an old complaint of the
// server does not refuse what it now lets through.
func TestPermissionGivenLater(t *testing.T) {
	text := printed(t, "users")
	opts := options(t, text)
	opts.Port = qlocktest.FreePort(t)
	srv := run(t, opts)
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) })
	a, b := w.locker("svc-a"), w.locker("svc-b")
	_, err := a.Lock(deadline(t), "billing.1")
	wantRefused(t, "before", err, "lock.prod.node.acquire.svc-a.billing.1")

	held := mustLock(t, b, "billing.1")
	more := options(t, strings.ReplaceAll(text, ".svc-a.orders.>", ".svc-a.>"))
	more.Port, more.ConfigFile = opts.Port, opts.ConfigFile
	must(t, srv.ReloadOptions(more))
	got := make(chan error, 1)
	go func() {
		k, err := a.Lock(deadline(t), "billing.1")
		if err == nil {
			err = k.Unlock(t.Context())
		}
		got <- err
	}()
	select {
	case err := <-got:
		if errors.Is(err, qlock.ErrRefused) {
			t.Errorf("after the permission was given: %v", err)
		} else {
			t.Errorf("not waited for svc-b: %v", err)
		}
	case <-within(t, 5*quiet).Done(): // it waits: more than one look at the connection's errors
		mustUnlock(t, held)
		if err := <-got; err != nil {
			t.Errorf("after svc-b gave it back: %v", err)
		}
		return
	}
	mustUnlock(t, held)
}
