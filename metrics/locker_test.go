package metrics_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/metrics"
	"github.com/qlock/qlock/qlocktest"
)

// What a Locker and a node say of the same locks.
func TestLocker(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(qlock.DefaultMaxLease))
	s := c.Servers()[0]
	locker := c.LockerOn(t, s.Conn(), qlock.WithName("test"))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(metrics.NewLocker(locker), metrics.NewNode(s.Node(), "default"))

	if n, err := testutil.GatherAndCount(reg, "qlock_client_node_round_trip_seconds", "qlock_client_node_last_answer_timestamp_seconds"); err != nil || n != 0 {
		t.Errorf("%d metrics of a node that was not asked: %v", n, err)
	}
	for range 2 {
		lock, err := locker.Lock(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := locker.Lock(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := locker.TryLock(ctx, "a"); !errors.Is(err, qlock.ErrHeld) {
		t.Fatal(err)
	}
	drain(ctx, t, s.Conn())

	want := `
# HELP qlock_client_claims Claims at the nodes: held, waiting or retained.
# TYPE qlock_client_claims gauge
qlock_client_claims{client="test",cluster="default"} 1
# HELP qlock_client_copies_total Times that another process was found to use the same client instance.
# TYPE qlock_client_copies_total counter
qlock_client_copies_total{client="test",cluster="default"} 0
# HELP qlock_client_locks_failed_total Calls that failed to acquire a lock.
# TYPE qlock_client_locks_failed_total counter
qlock_client_locks_failed_total{client="test",cluster="default",reason="closed"} 0
qlock_client_locks_failed_total{client="test",cluster="default",reason="evicted"} 0
qlock_client_locks_failed_total{client="test",cluster="default",reason="held"} 1
qlock_client_locks_failed_total{client="test",cluster="default",reason="no_quorum"} 0
qlock_client_locks_failed_total{client="test",cluster="default",reason="refused"} 0
# HELP qlock_client_locks_granted_total Locks granted.
# TYPE qlock_client_locks_granted_total counter
qlock_client_locks_granted_total{client="test",cluster="default"} 3
# HELP qlock_client_locks_held Locks currently held.
# TYPE qlock_client_locks_held gauge
qlock_client_locks_held{client="test",cluster="default"} 1
# HELP qlock_client_locks_lost_total Locks lost.
# TYPE qlock_client_locks_lost_total counter
qlock_client_locks_lost_total{client="test",cluster="default"} 0
# HELP qlock_client_locks_passed_on_total Locks granted without a message: a claim of the same Locker was shared, passed on or retained.
# TYPE qlock_client_locks_passed_on_total counter
qlock_client_locks_passed_on_total{client="test",cluster="default"} 0
# HELP qlock_client_locks_unlocked_total Locks released.
# TYPE qlock_client_locks_unlocked_total counter
qlock_client_locks_unlocked_total{client="test",cluster="default"} 2
# HELP qlock_client_locks_waiting Calls that currently wait for a lock.
# TYPE qlock_client_locks_waiting gauge
qlock_client_locks_waiting{client="test",cluster="default"} 0
# HELP qlock_client_recalls_total Messages from nodes that other clients wait.
# TYPE qlock_client_recalls_total counter
qlock_client_recalls_total{client="test",cluster="default"} 0
# HELP qlock_client_yields_total Votes returned in favor of older claims.
# TYPE qlock_client_yields_total counter
qlock_client_yields_total{client="test",cluster="default"} 0
# HELP qlock_node_claims_evicted_total Claims evicted by an operator.
# TYPE qlock_node_claims_evicted_total counter
qlock_node_claims_evicted_total{cluster="default",node="n1"} 0
# HELP qlock_node_claims_refused_total Claims refused.
# TYPE qlock_node_claims_refused_total counter
qlock_node_claims_refused_total{cluster="default",node="n1",reason="age"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="claims"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="config"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="copy"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="fence"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="lease"} 0
qlock_node_claims_refused_total{cluster="default",node="n1",reason="queue"} 0
# HELP qlock_node_claims_waiting Claims that wait for this node's vote.
# TYPE qlock_node_claims_waiting gauge
qlock_node_claims_waiting{cluster="default",node="n1"} 0
# HELP qlock_node_clients Client names with claims.
# TYPE qlock_node_clients gauge
qlock_node_clients{cluster="default",node="n1"} 1
# HELP qlock_node_leases_expired_total Claims that expired because their client fell silent.
# TYPE qlock_node_leases_expired_total counter
qlock_node_leases_expired_total{cluster="default",node="n1"} 0
# HELP qlock_node_recalls_total Messages to clients that other clients wait for their locks.
# TYPE qlock_node_recalls_total counter
qlock_node_recalls_total{cluster="default",node="n1"} 0
# HELP qlock_node_recovering_seconds Time until the node votes again.
# TYPE qlock_node_recovering_seconds gauge
qlock_node_recovering_seconds{cluster="default",node="n1"} 0
# HELP qlock_node_votes_granted_total Votes given.
# TYPE qlock_node_votes_granted_total counter
qlock_node_votes_granted_total{cluster="default",node="n1"} 3
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), typed(want)...); err != nil {
		t.Error(err)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	stats := locker.Stats()
	seen := map[string]bool{}
	for _, f := range all {
		m := f.GetMetric()[0]
		seen[f.GetName()] = true
		switch f.GetName() {
		case "qlock_client_wait_seconds":
			h := m.GetHistogram()
			if h.GetSampleCount() != 3 || h.GetSampleSum() != stats.Wait.Sum.Seconds() || len(h.GetBucket()) != len(stats.Wait.Buckets) {
				t.Errorf("waits %v, want %+v", h, stats.Wait)
			}
			for i, b := range h.GetBucket() {
				if w := stats.Wait.Buckets[i]; b.GetUpperBound() != w.UpTo.Seconds() || b.GetCumulativeCount() != w.Count {
					t.Errorf("bucket %v, want %+v", b, w)
				}
			}
		case "qlock_client_node_round_trip_seconds":
			if got := m.GetGauge().GetValue(); got <= 0 || got > 20 {
				t.Errorf("a round trip of %v seconds", got)
			}
		case "qlock_client_node_last_answer_timestamp_seconds":
			if got := m.GetGauge().GetValue(); got > float64(time.Now().UnixMilli())/1000 || got < float64(s.Node().Stats().Started.UnixMilli())/1000 {
				t.Errorf("an answer at %v", got)
			}
		case "qlock_node_start_time_seconds":
			if got := m.GetGauge().GetValue(); got != float64(s.Node().Stats().Started.UnixMilli())/1000 {
				t.Errorf("started at %v, want %v", got, s.Node().Stats().Started)
			}
		}
	}
	for _, name := range []string{
		"qlock_client_wait_seconds", "qlock_client_node_round_trip_seconds", "qlock_client_node_last_answer_timestamp_seconds", "qlock_node_start_time_seconds",
	} {
		if !seen[name] {
			t.Errorf("no %s", name)
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
