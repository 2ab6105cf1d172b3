package election_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/qlocktest"
)

// candidates are elections of as many clients of a cluster of three, on connections of
// their own.
func candidates(b *testing.B, n int, opts ...qlock.Option) (*qlocktest.Cluster, []*election.Election, []func()) {
	c := qlocktest.StartCluster(b, 3, qlocktest.WithLease(2*time.Second))
	var es []*election.Election
	var cut []func()
	for range n {
		nc := c.Connect(b)
		e, err := election.New(c.LockerOn(b, nc, opts...), "scheduler")
		if err != nil {
			b.Fatal(err)
		}
		es = append(es, e)
		cut = append(cut, func() { c.Disconnect(b, nc) })
	}
	return c, es, cut
}

func campaigning(e *election.Election, ctx context.Context) <-chan *election.Leadership {
	elected := make(chan *election.Leadership, 1)
	go func() {
		l, err := e.Campaign(ctx, "")
		if err == nil {
			elected <- l
		}
		close(elected)
	}()
	return elected
}

// BenchmarkResign is the time from Resign to the next leader, in round trips: one of these
// is a TryLock of a name that nobody else wants.
func BenchmarkResign(b *testing.B) {
	c, es, _ := candidates(b, 2)
	ctx := b.Context()
	now, err := es[0].Campaign(ctx, "")
	if err != nil {
		b.Fatal(err)
	}
	var total, trips time.Duration
	probe := c.Locker(b)
	n := 0
	for b.Loop() {
		n++
		next := campaigning(es[n%2], ctx)
		for list := []election.Candidate(nil); len(list) == 0; list, _ = es[0].Candidates(ctx) {
		}
		began := time.Now()
		k, err := probe.TryLock(ctx, fmt.Sprintf("probe.%d", n))
		trips += time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		_ = k.Unlock(ctx)
		began = time.Now()
		_ = now.Resign(ctx)
		now = <-next
		total += time.Since(began)
		if now == nil {
			b.Fatal("not elected")
		}
	}
	_ = now.Resign(ctx)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(total.Microseconds())/float64(n), "µs/handover")
	b.ReportMetric(float64(total)/float64(trips), "roundtrips/handover")
}

// BenchmarkDeath is the time from the moment when a leader is cut off, as kill -9 or a cable
// does, to the next leader, in leases. Its bound is one lease and 2 %.
func BenchmarkDeath(b *testing.B) {
	var total, most time.Duration
	n := 0
	lease := 2 * time.Second
	for b.Loop() {
		n++
		_, es, cut := candidates(b, 2)
		if _, err := es[0].Campaign(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
		next := campaigning(es[1], b.Context())
		for list := []election.Candidate(nil); len(list) == 0; list, _ = es[1].Candidates(b.Context()) {
		}
		time.Sleep(time.Duration(n) * lease / 10) // at any time between two refreshes
		began := time.Now()
		cut[0]()
		l := <-next
		d := time.Since(began)
		if l == nil {
			b.Fatal("not elected")
		}
		total, most = total+d, max(most, d)
		_ = l.Resign(b.Context())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(total)/float64(n)/float64(lease), "leases")
	b.ReportMetric(float64(most)/float64(lease), "leases-at-most")
}
