// Package gatewaymetrics has a Prometheus collector for a gateway.
package gatewaymetrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qlock/qlock/gateway"
)

type collector struct {
	g *gateway.Gateway

	leases, kept, polls, streams, users, gateways, tombstones *prometheus.Desc
	granted, ended, requests, forwarded, answered             *prometheus.Desc
	refused, panics                                           *prometheus.Desc
	keyWaits, store                                           *prometheus.Desc
}

// New returns a collector of a gateway's statistics. Their label is the cluster.
func New(g *gateway.Gateway) prometheus.Collector {
	labels := prometheus.Labels{"cluster": g.Cluster()}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("qlock_gateway_"+name, help, variable, labels)
	}
	return &collector{
		g:          g,
		leases:     desc("leases", "Leases that are held or wait.", "state"),
		kept:       desc("leases_kept", "Leases that are over, and whose locks are kept because a caller may still believe that it holds them."),
		polls:      desc("polls", "Requests that wait for a lease."),
		streams:    desc("streams", "Event streams and requests that wait for a list to change."),
		users:      desc("users", "NATS users whose credentials requests brought, with a connection each."),
		gateways:   desc("others", "Other gateways of the cluster that this one hears."),
		tombstones: desc("tombstones", "Leases that are over and still known."),
		granted:    desc("leases_granted_total", "Leases that were granted."),
		ended:      desc("leases_ended_total", "Leases that are over.", "cause"),
		requests:   desc("requests_total", "Requests that were answered.", "door", "operation", "status"),
		forwarded:  desc("forwarded_total", "Requests that were forwarded to other gateways."),
		answered:   desc("answered_total", "Requests of other gateways that were answered."),
		refused:    desc("credentials_refused_total", "Connections whose credentials NATS did not accept."),
		keyWaits:   desc("key_waits", "Requests that wait for a key of the store to change."),
		store:      desc("store_operations_total", "Reads, writes and transactions of the store.", "operation", "outcome"),
		panics:     desc("panics_total", "Requests that failed because of a fault of the gateway."),
	}
}

// Describe sends the descriptions of all metrics.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.leases, c.kept, c.polls, c.streams, c.users, c.gateways, c.tombstones, c.granted, c.ended, c.requests, c.forwarded, c.answered, c.refused, c.panics, c.keyWaits, c.store,
	} {
		ch <- d
	}
}

// Collect sends all metrics.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.g.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	send(c.leases, prometheus.GaugeValue, float64(s.Held), "held")
	send(c.leases, prometheus.GaugeValue, float64(s.Waiting), "waiting")
	for d, v := range map[*prometheus.Desc]int{c.kept: s.Kept, c.polls: s.Polls, c.streams: s.Streams, c.users: s.Users, c.gateways: s.Gateways, c.tombstones: s.Tombstones, c.keyWaits: s.KeyWaits} {
		send(d, prometheus.GaugeValue, float64(v))
	}
	for d, v := range map[*prometheus.Desc]uint64{c.granted: s.Granted, c.forwarded: s.Forwarded, c.answered: s.Answered, c.refused: s.Refused, c.panics: s.Panics} {
		send(d, prometheus.CounterValue, float64(v))
	}
	for cause, v := range s.Ended {
		send(c.ended, prometheus.CounterValue, float64(v), cause)
	}
	for o, v := range s.Store {
		send(c.store, prometheus.CounterValue, float64(v), o.Operation, o.Outcome)
	}
	for r, v := range s.Requests {
		send(c.requests, prometheus.CounterValue, float64(v), r.Door, r.Operation, strconv.Itoa(r.Status))
	}
}
