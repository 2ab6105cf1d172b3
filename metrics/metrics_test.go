package metrics_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/metrics"
	"github.com/qlock/qlock/qlocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCollectors(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(qlock.DefaultMaxLease))
	s := c.Servers()[0]
	events, err := metrics.NewEvents(s.Conn(), qlock.DefaultCluster)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(
		events, metrics.NewNode(s.Node(), "default"), metrics.NewConnection(s.Conn()), metrics.NewServer(s.NATS()),
		metrics.NewPeers(func() []metrics.Peer {
			return []metrics.Peer{{Name: "n1", Heard: true, Votes: true, RoundTrip: time.Millisecond}, {Name: "n2", Clash: true, OtherConfig: true, Lists: []string{metrics.OldList, metrics.NewList}}, {Name: "n3", Votes: true, Heard: true, Lists: []string{metrics.NewList}}}
		}),
	)
	locker := c.LockerOn(t, s.Conn(), qlock.WithName("test"))
	for _, ask := range []func(context.Context, string, ...qlock.LockOption) (*qlock.Lock, error){locker.Lock, locker.RLock, locker.RLock} {
		lock, err := ask(ctx, "a.b")
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := locker.Close(); err != nil { // and flushed
		t.Fatal(err)
	}
	for subject, body := range map[string]string{
		"lock.default.event.lost.test.a.b":     `{"mode":"exclusive","held_ms":1500}`,
		"lock.default.event.lost.test.a.c":     `{"mode":"sideways"}`,
		"lock.default.event.acquired.test.a.b": `rubbish`,
		"lock.default.event.borrowed.test.a.b": `{"mode":"shared"}`,
		"lock.other.event.lost.test.a.b":       `{"mode":"exclusive"}`,
	} {
		if err := s.Conn().Publish(subject, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	drain(ctx, t, s.Conn())
	for s.Node().Stats().Claims > 0 { // the node has a connection of its own, where the last release may be on its way
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		runtime.Gosched()
	}

	want := `
# HELP qlock_events_malformed_total Events that could not be decoded.
# TYPE qlock_events_malformed_total counter
qlock_events_malformed_total{cluster="default"} 3
# HELP qlock_list_nodes Nodes of the list.
# TYPE qlock_list_nodes gauge
qlock_list_nodes{list="new"} 2
qlock_list_nodes{list="old"} 2
# HELP qlock_list_votes Nodes of the list whose votes count.
# TYPE qlock_list_votes gauge
qlock_list_votes{list="new"} 1
qlock_list_votes{list="old"} 1
# HELP qlock_list_votes_needed Nodes of the list whose votes an exclusive lock needs.
# TYPE qlock_list_votes_needed gauge
qlock_list_votes_needed{list="new"} 2
qlock_list_votes_needed{list="old"} 2
# HELP qlock_locks_acquired_total Locks granted.
# TYPE qlock_locks_acquired_total counter
qlock_locks_acquired_total{cluster="default",mode="exclusive"} 1
qlock_locks_acquired_total{cluster="default",mode="shared"} 2
# HELP qlock_locks_lost_total Locks lost.
# TYPE qlock_locks_lost_total counter
qlock_locks_lost_total{cluster="default",mode="exclusive"} 1
qlock_locks_lost_total{cluster="default",mode="shared"} 0
# HELP qlock_locks_released_total Locks released.
# TYPE qlock_locks_released_total counter
qlock_locks_released_total{cluster="default",mode="exclusive"} 1
qlock_locks_released_total{cluster="default",mode="shared"} 2
# HELP qlock_nats_connected 1 while connected to NATS.
# TYPE qlock_nats_connected gauge
qlock_nats_connected 1
# HELP qlock_node_claims Claims at the node, held and waiting.
# TYPE qlock_node_claims gauge
qlock_node_claims{cluster="default",node="n1"} 0
# HELP qlock_node_epoch Number of decisions about the list of nodes that the node knows; 0: it goes by the list that it was started with.
# TYPE qlock_node_epoch gauge
qlock_node_epoch{cluster="default",node="n1"} 0
# HELP qlock_node_list_change_seconds For how long the list of nodes has been changing; 0 if it is not.
# TYPE qlock_node_list_change_seconds gauge
qlock_node_list_change_seconds{cluster="default",node="n1"} 0
# HELP qlock_node_longest_lease_seconds Longest lease that the cluster allows; 0 while the node waits to be added to the list.
# TYPE qlock_node_longest_lease_seconds gauge
qlock_node_longest_lease_seconds{cluster="default",node="n1"} 30
# HELP qlock_node_state 1 for the state that the node is in, 0 for the others.
# TYPE qlock_node_state gauge
qlock_node_state{cluster="default",node="n1",state="joining"} 0
qlock_node_state{cluster="default",node="n1",state="probing"} 0
qlock_node_state{cluster="default",node="n1",state="recovering"} 0
qlock_node_state{cluster="default",node="n1",state="retired"} 0
qlock_node_state{cluster="default",node="n1",state="stopped"} 0
qlock_node_state{cluster="default",node="n1",state="voting"} 1
# HELP qlock_peer_name_clash 1 if two nodes answer under this name.
# TYPE qlock_peer_name_clash gauge
qlock_peer_name_clash{peer="n1"} 0
qlock_peer_name_clash{peer="n2"} 1
qlock_peer_name_clash{peer="n3"} 0
# HELP qlock_peer_round_trip_seconds Time from a query to the node's answer.
# TYPE qlock_peer_round_trip_seconds gauge
qlock_peer_round_trip_seconds{peer="n1"} 0.001
qlock_peer_round_trip_seconds{peer="n3"} 0
# HELP qlock_peer_up 1 if the node answered.
# TYPE qlock_peer_up gauge
qlock_peer_up{peer="n1"} 1
qlock_peer_up{peer="n2"} 0
qlock_peer_up{peer="n3"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), typed(want)...); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "qlock_lock_wait_seconds", "qlock_lock_hold_seconds"); err != nil || n != 4 {
		t.Errorf("%d histograms: %v", n, err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if err := events.Close(); err != nil {
		t.Error(err)
	}
}

// typed returns the names of the metrics for which text has a TYPE line.
func typed(text string) []string {
	var names []string
	for _, line := range strings.Split(text, "\n") {
		if words := strings.Fields(line); len(words) > 2 && words[1] == "TYPE" {
			names = append(names, words[2])
		}
	}
	return names
}

// drain waits until all messages that were published before on nc have been handled: the
// subscriptions of one connection are served in the order in which messages arrive.
func drain(ctx context.Context, t *testing.T, nc *nats.Conn) {
	t.Helper()
	if err := nc.FlushWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	if err := nc.Barrier(func() { close(heard) }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heard:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
}
