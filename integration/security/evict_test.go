package security

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/permissions"
)

// evicts lets an operator see a lock that svc-b holds, and end it.
func evicts(t *testing.T, w *world, operator string) {
	t.Helper()
	held := mustLock(t, w.locker("svc-b"), "orders.1")
	ops := w.locker(operator)
	all, err := ops.Locks(deadline(t), "")
	must(t, err)
	if len(all) != 1 || all[0].Name != "orders.1" || len(all[0].Answered) != 3 {
		t.Errorf("%s lists %+v", operator, all)
	}
	info, err := ops.Inspect(deadline(t), "orders.1")
	must(t, err)
	if len(info.Holders) != 1 || info.Holders[0].Client != "svc-b" {
		t.Fatalf("%s sees %+v", operator, info)
	}
	must(t, ops.Evict(deadline(t), "orders.1", info.Holders[0], "a test"))
	<-held.Context().Done()
	if cause := context.Cause(held.Context()); !errors.Is(cause, qlock.ErrEvicted) || !strings.Contains(cause.Error(), "by "+operator+": a test") {
		t.Errorf("svc-b learns %v", cause)
	}
	await(t, "the nodes forget", func() bool { return w.claims() == "[0 0 0]" })
}

func TestOperators(t *testing.T) {
	w := static(t)
	evicts(t, w, "ops")
	evicts(t, w, "ops-orders")
}

// Who may not list, inspect or evict is told so at once: the server's word is enough,
// and no wait for answers.
func TestInspectionIsForThoseWhoMay(t *testing.T) {
	w := static(t)
	b := w.locker("svc-b")
	orders, billing := mustLock(t, b, "orders.1"), mustLock(t, b, "billing.1")
	claims := map[string]qlock.ClaimInfo{}
	for _, name := range []string{"orders.1", "billing.1"} {
		info, err := w.locker("look").Inspect(deadline(t), name)
		must(t, err)
		claims[name] = info.Holders[0]
	}
	for user, may := range map[string]string{
		"svc-a":      "",
		"svc-b":      "",
		"look":       "list inspect.orders.1 inspect.billing.1",
		"ops-orders": "list inspect.orders.1",
	} {
		l := w.locker(user)
		for verb, ask := range map[string]func(context.Context) error{
			"list":              func(ctx context.Context) error { _, err := l.Locks(ctx, ""); return err },
			"inspect.orders.1":  func(ctx context.Context) error { _, err := l.Inspect(ctx, "orders.1"); return err },
			"inspect.billing.1": func(ctx context.Context) error { _, err := l.Inspect(ctx, "billing.1"); return err },
			"evict.orders.1":    func(ctx context.Context) error { return l.Evict(ctx, "orders.1", claims["orders.1"], "") },
			"evict.billing.1":   func(ctx context.Context) error { return l.Evict(ctx, "billing.1", claims["billing.1"], "") },
		} {
			if user == "ops-orders" && verb == "evict.orders.1" {
				continue // it may: see TestOperators
			}
			err := ask(deadline(t))
			allowed := false
			for _, m := range strings.Fields(may) {
				allowed = allowed || m == verb
			}
			if allowed {
				if err != nil {
					t.Errorf("%s, %s: %v", user, verb, err)
				}
				continue
			}
			first, rest, _ := strings.Cut(verb, ".")
			wantRefused(t, user+", "+verb, err, strings.TrimSuffix("lock.prod.admin."+first+"."+user+"."+rest, "."))
		}
	}
	for _, user := range []string{"look", "ops"} {
		_, err := w.locker(user).Lock(deadline(t), "orders.2")
		wantRefused(t, "a lock for "+user, err, "lock.prod.node.acquire."+user+".orders.2")
	}
	for _, k := range []*qlock.Lock{orders, billing} {
		if err := k.Context().Err(); err != nil {
			t.Errorf("%s is gone: %v", k.Name(), err)
		}
		mustUnlock(t, k)
	}
}

// An operator may be in another account than the nodes, and in another than those
// whom it evicts.
func TestOperatorOfAnotherAccount(t *testing.T) {
	made := func(u permissions.User, err error) permissions.User {
		t.Helper()
		must(t, err)
		return u
	}
	var nodes []permissions.User
	for _, n := range nodeNames {
		nodes = append(nodes, made(permissions.NewNode("prod", n)))
	}
	text, err := permissions.Accounts("LOCKS", nodes,
		permissions.Account{Name: "SERVICES", Users: []permissions.User{made(permissions.NewClient("prod", "svc-b"))}},
		permissions.Account{Name: "OPS", Users: []permissions.User{made(permissions.NewOperator("prod", "ops")), made(permissions.NewInspector("prod", "look"))}})
	must(t, err)
	srv := run(t, options(t, text))
	w := start(t, func(user string) *nats.Conn { return dial(t, srv.ClientURL(), user) })
	evicts(t, w, "ops")
	_, err = w.locker("look").Locks(deadline(t), "")
	must(t, err)
}
