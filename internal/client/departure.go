package client

import (
	"fmt"
	"slices"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Departure collects what the nodes say, in answer to one request, of a claim that is
// being evicted (N10).
//
// Only a node that votes counts towards the end of the claim. If such a node does not
// know the claim, it has no standing vote for it. A node that does not vote may have
// forgotten the claim while its vote stands, so its not knowing the claim proves nothing.
//
// A Departure is not safe for concurrent use.
type Departure struct {
	cluster       wire.Config
	digest, nonce string

	Gone   []string // nodes that vote and do not have the claim
	Having []string // nodes that have it, and no longer extend its lease
	Unsure []string // nodes that do not know it but may have forgotten it
}

// NewDeparture returns a Departure for the answers of cluster to the request with this
// nonce.
func NewDeparture(cluster wire.Config, nonce string) *Departure {
	return &Departure{cluster: cluster, digest: cluster.Digest(), nonce: nonce}
}

// Hear takes an answer. The first answer of each node counts; all others are ignored.
func (d *Departure) Hear(a *wire.Answer) {
	if a.Kind != wire.Evicting || a.Nonce != d.nonce || a.Digest != d.digest ||
		!slices.Contains(d.Silent(), a.Node) {
		return
	}
	switch {
	case a.Known:
		d.Having = sorted(d.Having, a.Node)
	case a.Recovering > 0: //plant:unsure
		d.Unsure = sorted(d.Unsure, a.Node)
	default:
		d.Gone = sorted(d.Gone, a.Node)
	}
}

func sorted(nodes []string, node string) []string {
	nodes = append(nodes, node)
	slices.Sort(nodes)
	return nodes
}

// Silent returns the nodes that have not answered.
func (d *Departure) Silent() []string {
	heard := slices.Concat(d.Gone, d.Having, d.Unsure)
	return slices.DeleteFunc(slices.Clone(d.cluster.Nodes), func(n string) bool { return slices.Contains(heard, n) })
}

// need is an exclusive quorum of each list, which has a node in common with the quorum of any
// claim.
func (d *Departure) need() quorum.Joint {
	n := d.cluster.Lists()
	return quorum.JointSize(n[0], n[1], quorum.Exclusive)
}

func (d *Departure) count(nodes []string) (n quorum.Count) {
	for _, name := range nodes {
		n.Add(d.cluster.In(name))
	}
	return n
}

// Over reports whether the claim neither holds the lock nor waits for it any more.
func (d *Departure) Over() bool { return d.need().Met(d.count(d.Gone)) }

// Near says, while the list of nodes changes, how many voting nodes of each list do not have the claim,
// and how many are needed. It is empty while there is one list.
func (d *Departure) Near() string {
	lists, need, gone := d.cluster.Lists(), d.need(), d.count(d.Gone)
	if lists[1] == 0 {
		return ""
	}
	return fmt.Sprintf("the list of nodes is being changed: %d of %d voting nodes of the old list do not have the claim, %d are needed; %d of %d of the new list, %d are needed",
		gone[0], lists[0], need[0], gone[1], lists[1], need[1])
}

// Decided reports whether further answers cannot change the result: the claim is over, or
// too many nodes have it.
func (d *Departure) Decided() bool {
	return d.Over() || d.need().Lost(d.count(d.Having), d.cluster.Lists())
}
