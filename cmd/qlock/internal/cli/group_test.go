//go:build unix

package cli

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/qlock/qlock"
	groups "github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/queue"
)

func TestMembers(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	group := strings.NewReplacer("/", "-", ".", "-").Replace(lockName(t))
	l, err := qlock.New(patient(t), connect(t, c.url()), qlock.WithName("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	qlockCmd(t, "members", group, "-s", c.url()).want(t, 0, "Group "+group+" of cluster default has no members.")
	if r := decode[groupReport](t, qlockCmd(t, "members", group, "-s", c.url(), "--json")); r.Members == nil || r.Group != group {
		t.Errorf("%+v", r)
	}
	g, err := groups.New(l, group)
	if err != nil {
		t.Fatal(err)
	}
	m, err := g.Join(t.Context(), "host 1", "zone=a")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.SetMeta(t.Context(), "zone=ü"); err != nil {
		t.Fatal(err)
	}
	spread, err := partition.New(l, group, 1)
	if err != nil {
		t.Fatal(err)
	}
	owns := make(chan struct{}, 1)
	w, err := spread.Join(t.Context(), "worker", "", func(ctx context.Context, a partition.Assignment) {
		owns <- struct{}{}
		select {
		case <-a.Moving:
		case <-ctx.Done():
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	<-owns
	if err := l.Flush(patient(t)); err != nil {
		t.Fatal(err)
	}
	sees(t, []string{"members", group, "-s", c.url()}, 0, "Members of group "+group, "host 1", "zone=ü", "worker", "partitions=1", "service", "2 members.")
	report := decode[groupReport](t, sees(t, []string{"members", group, "-s", c.url(), "--json"}, 0, "zone=ü", `"worker"`))
	if len(report.Members) != 2 || report.Members[0].ID != "host 1" || report.Members[0].Meta != "zone=ü" || report.Members[0].Token != m.Token() ||
		report.Members[0].Lease <= 0 || report.Members[0].Client != "service" {
		t.Errorf("%+v", report)
	}
	sees(t, []string{"ls", "qlock.members." + group + ".>", "-s", c.url()}, 0, "Use", "member host 1", "metadata of host 1")
	sees(t, []string{"ls", "qlock.partition." + group + ".*", "-s", c.url()}, 0, "partition 0", "worker")
	if err := w.Leave(patient(t)); err != nil {
		t.Error(err)
	}
	qlockCmd(t, "members", "a.b", "-s", c.url()).want(t, exitUsage, `"a.b"`, "letters, digits")
}

func TestUsesOfGroups(t *testing.T) {
	for lock, want := range map[string]use{
		"qlock.members.workers.7":       {"member", "workers", "member 7"},
		"qlock.members.workers.@12.3.7": {"member-metadata", "workers", "metadata of 7"},
		"qlock.partition.orders.17":     {"partition", "orders", "partition 17"},
		"qlock.queue.mail.customer 42":  {"queue-key", "mail", "queue, a key"},
	} {
		if got := useOf(lock); got == nil || *got != want {
			t.Errorf("%s: %+v, want %+v", lock, got, want)
		}
	}
	a := newApp(os.Stdin, os.Stdout, os.Stderr)
	out := a.listing("prod", []qlock.LockInfo{{Name: "qlock.queue.mail.k"}}, 0)
	if _, _, ok := queue.ParseName("qlock.queue.mail.k"); !ok || !strings.Contains(out, "queue, a key") {
		t.Error(out)
	}
	text := groupText("g", "prod", []groups.Info{{ID: "a", Uncertain: true}}, 0)
	if !strings.Contains(text, "not known") || !strings.Contains(text, "Unknown whether alive: 1") {
		t.Error(text)
	}
}
