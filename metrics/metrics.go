// Package metrics exports the statistics of qlock's nodes and clients, and the events that
// clients publish, to Prometheus. Register the collectors that you need with your own
// registry:
//
//	reg.MustRegister(metrics.NewLocker(locker))
//	reg.MustRegister(metrics.NewNode(node, "prod"))
//
// The qlock command serves those of a node at /metrics. docs/operations.md recommends
// alerts.
package metrics

import (
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qlock/qlock"
)

// states has all states of a node, so that each has a series from the start.
var states = []qlock.NodeState{qlock.NodeProbing, qlock.NodeRecovering, qlock.NodeVoting, qlock.NodeStopped, qlock.NodeJoining, qlock.NodeRetired}

type node struct {
	node *qlock.Node

	info, started, state, recovering            *prometheus.Desc
	claims, waiting, resources, clients, ahead  *prometheus.Desc
	reqs, wrong                                 *prometheus.Desc
	granted, refused, recalls, expired, evicted *prometheus.Desc
	dropped                                     *prometheus.Desc
	epoch, changing, longest                    *prometheus.Desc
}

// NewNode returns a collector of a node's statistics. cluster is a label of all its
// metrics.
func NewNode(n *qlock.Node, cluster string) prometheus.Collector {
	labels := prometheus.Labels{"cluster": cluster, "node": n.Name()}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, variable, labels)
	}
	return &node{
		node:       n,
		info:       desc("qlock_node_info", "Always 1; the version of the node.", "version"),
		started:    desc("qlock_node_start_time_seconds", "Time when the node started."),
		state:      desc("qlock_node_state", "1 for the state that the node is in, 0 for the others.", "state"),
		recovering: desc("qlock_node_recovering_seconds", "Time until the node votes again."),
		claims:     desc("qlock_node_claims", "Claims at the node, held and waiting."),
		waiting:    desc("qlock_node_claims_waiting", "Claims that wait for this node's vote."),
		resources:  desc("qlock_node_resources", "Lock names with claims."),
		clients:    desc("qlock_node_clients", "Client names with claims."),
		ahead:      desc("qlock_node_tokens_ahead_seconds", "How far the highest token that the node has given is ahead of its clock."),
		reqs:       desc("qlock_node_requests_total", "Requests received."),
		wrong:      desc("qlock_node_malformed_requests_total", "Requests ignored because they could not be decoded."),
		granted:    desc("qlock_node_votes_granted_total", "Votes given."),
		refused:    desc("qlock_node_claims_refused_total", "Claims refused.", "reason"),
		recalls:    desc("qlock_node_recalls_total", "Messages to clients that other clients wait for their locks."),
		expired:    desc("qlock_node_leases_expired_total", "Claims that expired because their client fell silent."),
		evicted:    desc("qlock_node_claims_evicted_total", "Claims evicted by an operator."),
		dropped:    desc("qlock_node_log_lines_dropped_total", "Log lines dropped because the logger did not accept them in time."),
		epoch:      desc("qlock_node_epoch", "Number of decisions about the list of nodes that the node knows; 0: it goes by the list that it was started with."),
		changing:   desc("qlock_node_list_change_seconds", "For how long the list of nodes has been changing; 0 if it is not."),
		longest:    desc("qlock_node_longest_lease_seconds", "Longest lease that the cluster allows; 0 while the node waits to be added to the list."),
	}
}

func (c *node) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.info, c.started, c.state, c.recovering, c.claims, c.waiting, c.resources, c.clients, c.ahead,
		c.reqs, c.wrong, c.granted, c.refused, c.recalls, c.expired, c.evicted, c.dropped,
		c.epoch, c.changing, c.longest,
	} {
		ch <- d
	}
}

// to returns two functions that send a metric to ch.
func to(ch chan<- prometheus.Metric) (gauge func(*prometheus.Desc, float64, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	return func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}, func(d *prometheus.Desc, v uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
		}
}

func (c *node) Collect(ch chan<- prometheus.Metric) {
	s := c.node.Stats()
	gauge, counter := to(ch)
	gauge(c.info, 1, qlock.Version())
	gauge(c.started, float64(s.Started.UnixMilli())/1000)
	for _, state := range states {
		gauge(c.state, truth(s.State == state), string(state))
	}
	gauge(c.recovering, s.Recovering.Seconds())
	gauge(c.claims, float64(s.Claims))
	gauge(c.waiting, float64(s.Waiting))
	gauge(c.resources, float64(s.Resources))
	gauge(c.clients, float64(s.Clients))
	gauge(c.ahead, s.TokensAhead.Seconds())
	gauge(c.epoch, float64(s.Epoch))
	gauge(c.changing, s.Changing.Seconds())
	gauge(c.longest, s.LongestLease.Seconds())
	counter(c.reqs, s.Requests)
	counter(c.wrong, s.Malformed)
	counter(c.granted, s.Granted)
	counter(c.refused, s.Refused.Config, "config")
	counter(c.refused, s.Refused.Lease, "lease")
	counter(c.refused, s.Refused.Age, "age")
	counter(c.refused, s.Refused.Fence, "fence")
	counter(c.refused, s.Refused.Claims, "claims")
	counter(c.refused, s.Refused.Queue, "queue")
	counter(c.refused, s.Refused.Copy, "copy")
	counter(c.recalls, s.Recalls)
	counter(c.expired, s.LeasesExpired)
	counter(c.evicted, s.Evicted)
	counter(c.dropped, s.LogDropped)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Peer is the state of one node of the cluster as another node sees it.
type Peer struct {
	Name        string
	Heard       bool
	Votes       bool // its votes count
	Clash       bool // two nodes answer under its name
	OtherConfig bool // its configuration differs from that of the node that asks
	RoundTrip   time.Duration

	// Lists are the lists of nodes that have it: OldList, NewList or both. Nil is OldList alone.
	Lists []string
}

// The lists of nodes that a cluster has. NewList exists only while the list changes.
const (
	OldList = "old"
	NewList = "new"
)

type peers struct {
	ask                                func() []Peer
	up, votes, clash, other, roundTrip *prometheus.Desc
	nodes, voting, needed              *prometheus.Desc
}

// NewPeers returns a collector of the states of the nodes as this node sees them. It calls
// ask at each collection, possibly from several goroutines at once.
func NewPeers(ask func() []Peer) prometheus.Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"peer"}, nil)
	}
	perList := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"list"}, nil)
	}
	return &peers{
		ask:       ask,
		up:        desc("qlock_peer_up", "1 if the node answered."),
		votes:     desc("qlock_peer_votes", "1 if the node votes and its votes count."),
		clash:     desc("qlock_peer_name_clash", "1 if two nodes answer under this name."),
		other:     desc("qlock_peer_other_configuration", "1 if the node's configuration differs from this node's."),
		roundTrip: desc("qlock_peer_round_trip_seconds", "Time from a query to the node's answer."),
		nodes:     perList("qlock_list_nodes", "Nodes of the list."),
		voting:    perList("qlock_list_votes", "Nodes of the list whose votes count."),
		needed:    perList("qlock_list_votes_needed", "Nodes of the list whose votes an exclusive lock needs."),
	}
}

func (c *peers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.votes, c.clash, c.other, c.roundTrip, c.nodes, c.voting, c.needed} {
		ch <- d
	}
}

func (c *peers) Collect(ch chan<- prometheus.Metric) {
	nodes, voting := map[string]int{}, map[string]int{}
	for _, p := range c.ask() {
		lists := p.Lists
		if lists == nil {
			lists = []string{OldList}
		}
		for _, l := range lists {
			nodes[l]++
			if p.Votes {
				voting[l]++
			}
		}
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, p.Name)
		}
		gauge(c.up, truth(p.Heard))
		gauge(c.votes, truth(p.Votes))
		gauge(c.clash, truth(p.Clash))
		gauge(c.other, truth(p.OtherConfig))
		if p.Heard {
			gauge(c.roundTrip, p.RoundTrip.Seconds())
		}
	}
	for l, n := range nodes {
		gauge := func(d *prometheus.Desc, v int) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), l)
		}
		gauge(c.nodes, n)
		gauge(c.voting, voting[l])
		gauge(c.needed, n/2+1)
	}
}

// NewConnection returns a collector of the state of a NATS connection.
func NewConnection(nc *nats.Conn) prometheus.Collector {
	return group{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "qlock_nats_connected", Help: "1 while connected to NATS."},
			func() float64 { return truth(nc.IsConnected()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "qlock_nats_reconnects_total", Help: "Times that the connection was lost and restored."},
			func() float64 { return float64(nc.Stats().Reconnects) }),
	}
}

// Server has the methods of a nats-server in this process that NewServer uses. A
// *server.Server of the nats-server module has these methods, and embedded.Server.NATS
// returns one. Server is an interface so that a program that only exports metrics does not
// link nats-server.
type Server interface {
	NumClients() int
	NumRoutes() int
	NumSlowConsumers() int64
}

// NewServer returns a collector of the statistics of a nats-server in this process.
func NewServer(s Server) prometheus.Collector {
	return group{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "qlock_server_clients", Help: "Clients connected to this server."},
			func() float64 { return float64(s.NumClients()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "qlock_server_routes", Help: "Connections to servers of other nodes."},
			func() float64 { return float64(s.NumRoutes()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "qlock_server_slow_consumers_total", Help: "Clients disconnected because they read too slowly."},
			func() float64 { return float64(s.NumSlowConsumers()) }),
	}
}

// group combines several collectors into one.
type group []prometheus.Collector

func (g group) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range g {
		c.Describe(ch)
	}
}

func (g group) Collect(ch chan<- prometheus.Metric) {
	for _, c := range g {
		c.Collect(ch)
	}
}
