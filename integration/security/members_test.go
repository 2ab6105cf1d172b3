package security

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
)

// A member of a group joins it, sees who else does, and owns its partitions, with the
// permissions that docs/security.md has for it. It can lock and evict nothing else. A client
// without the role cannot list, and an inspector cannot join.
func TestMembersOfAGroup(t *testing.T) {
	w := static(t)
	nc := w.dial("worker")
	l, err := qlock.New(deadline(t), nc, qlock.WithCluster("prod"), qlock.WithName("worker"))
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	g, err := partition.New(l, "workers", 4, partition.WithEvents(nc))
	must(t, err)
	owns := make(chan int, 4)
	me, err := g.Join(deadline(t), "a", "", func(ctx context.Context, a partition.Assignment) {
		owns <- a.Partition
		select {
		case <-ctx.Done():
		case <-a.Moving:
		}
	})
	must(t, err)
	for range 4 {
		select {
		case <-owns:
		case <-deadline(t).Done():
			t.Fatal("it does not own all partitions")
		}
	}
	o, err := g.Owner(deadline(t), "some key")
	if err != nil || o.ID != "a" || o.Client != "worker" {
		t.Errorf("owner %+v: %v", o, err)
	}

	// Watch learns of a change from its event. The interval is longer than the test.
	hour, err := members.New(l, "workers", members.WithEvents(nc), members.WithInterval(patience*100))
	must(t, err)
	var second *members.Member
	for u, err := range hour.Watch(deadline(t)) {
		must(t, err)
		ids := make([]string, 0, 2)
		for _, m := range u.Members {
			ids = append(ids, m.ID)
		}
		if slices.Equal(ids, []string{"a", "b"}) {
			break
		}
		if second == nil {
			second, err = hour.Join(deadline(t), "b", "meta")
			must(t, err)
		}
	}
	if second == nil {
		t.Fatal("the members were not seen")
	}
	must(t, second.SetMeta(deadline(t), "more"))
	must(t, second.Leave(deadline(t)))
	must(t, me.Leave(deadline(t)))

	if _, err := l.Lock(deadline(t), "orders.1"); !errors.Is(err, qlock.ErrRefused) {
		t.Errorf("a member of a group locked something else: %v", err)
	}
	if _, err := l.Lock(deadline(t), "qlock.members.others.x"); !errors.Is(err, qlock.ErrRefused) {
		t.Errorf("a member of a group joined another: %v", err)
	}
	b := w.locker("svc-b")
	held := mustLock(t, b, "qlock.members.workers.c")
	if err := l.Evict(deadline(t), held.Name(), qlock.ClaimInfo{Client: "svc-b"}, ""); err == nil {
		t.Error("a member of a group evicted another")
	}
	mustUnlock(t, held)
	raw := w.raw("worker")
	for _, subject := range []string{"lock.prod.admin.evict.worker.qlock.members.workers.a", "lock.prod.admin.list.look", "lock.prod.node.worker", "lock.prod.node.acquire.svc-b.orders.1"} {
		if raw.send(subject, "", body{}) {
			t.Errorf("a member may publish to %s", subject)
		}
	}
	if raw.listen("lock.prod.event.>", "", func(*nats.Msg) {}) {
		t.Error("a member receives the events of all locks")
	}

	plain, err := members.New(b, "workers")
	must(t, err)
	if _, err := plain.List(deadline(t)); !errors.Is(err, qlock.ErrRefused) {
		t.Errorf("a client without the role lists members: %v", err)
	}
}
