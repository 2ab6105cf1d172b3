package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qlock/qlock"
)

type locker struct {
	locker *qlock.Locker

	held, waiting, claims                     *prometheus.Desc
	granted, passedOn, failed, unlocked, lost *prometheus.Desc
	recalls, yields, copies, dropped          *prometheus.Desc
	wait, roundTrip, heard                    *prometheus.Desc
}

// NewLocker returns a collector of a Locker's statistics. Its labels are the cluster and
// the name of the Locker. A registry accepts only one of several Lockers that have both in
// common.
func NewLocker(l *qlock.Locker) prometheus.Collector {
	labels := prometheus.Labels{"cluster": l.Cluster(), "client": l.Name()}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, variable, labels)
	}
	return &locker{
		locker:    l,
		held:      desc("qlock_client_locks_held", "Locks currently held."),
		waiting:   desc("qlock_client_locks_waiting", "Calls that currently wait for a lock."),
		claims:    desc("qlock_client_claims", "Claims at the nodes: held, waiting or retained."),
		granted:   desc("qlock_client_locks_granted_total", "Locks granted."),
		passedOn:  desc("qlock_client_locks_passed_on_total", "Locks granted without a message: a claim of the same Locker was shared, passed on or retained."),
		failed:    desc("qlock_client_locks_failed_total", "Calls that failed to acquire a lock.", "reason"),
		unlocked:  desc("qlock_client_locks_unlocked_total", "Locks released."),
		lost:      desc("qlock_client_locks_lost_total", "Locks lost."),
		recalls:   desc("qlock_client_recalls_total", "Messages from nodes that other clients wait."),
		yields:    desc("qlock_client_yields_total", "Votes returned in favor of older claims."),
		copies:    desc("qlock_client_copies_total", "Times that another process was found to use the same client instance."),
		dropped:   desc("qlock_client_log_lines_dropped_total", "Log lines dropped because the logger did not accept them in time."),
		wait:      desc("qlock_client_wait_seconds", "Time from requesting a lock to holding it."),
		roundTrip: desc("qlock_client_node_round_trip_seconds", "Time from a request to the node's answer, smoothed.", "node"),
		heard:     desc("qlock_client_node_last_answer_timestamp_seconds", "Time of the node's last answer.", "node"),
	}
}

func (c *locker) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.held, c.waiting, c.claims, c.granted, c.passedOn, c.failed, c.unlocked, c.lost,
		c.recalls, c.yields, c.copies, c.dropped, c.wait, c.roundTrip, c.heard,
	} {
		ch <- d
	}
}

func (c *locker) Collect(ch chan<- prometheus.Metric) {
	s := c.locker.Stats()
	gauge, counter := to(ch)
	gauge(c.held, float64(s.Held))
	gauge(c.waiting, float64(s.Waiting))
	gauge(c.claims, float64(s.Claims))
	counter(c.granted, s.Granted)
	counter(c.passedOn, s.PassedOn)
	counter(c.failed, s.Failed.Held, "held")
	counter(c.failed, s.Failed.NoQuorum, "no_quorum")
	counter(c.failed, s.Failed.Refused, "refused")
	counter(c.failed, s.Failed.Closed, "closed")
	counter(c.failed, s.Failed.Evicted, "evicted")
	counter(c.unlocked, s.Unlocked)
	counter(c.lost, s.Lost)
	counter(c.recalls, s.Recalls)
	counter(c.yields, s.Yields)
	counter(c.copies, s.Copies)
	counter(c.dropped, s.LogDropped)
	buckets := make(map[float64]uint64, len(s.Wait.Buckets))
	for _, b := range s.Wait.Buckets {
		buckets[b.UpTo.Seconds()] = b.Count
	}
	ch <- prometheus.MustNewConstHistogram(c.wait, s.Wait.Count, s.Wait.Sum.Seconds(), buckets)
	for _, n := range s.Nodes {
		if n.RoundTrip > 0 {
			gauge(c.roundTrip, n.RoundTrip.Seconds(), n.Node)
		}
		if !n.LastHeard.IsZero() {
			gauge(c.heard, float64(n.LastHeard.UnixMilli())/1000, n.Node)
		}
	}
}
