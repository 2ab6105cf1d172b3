package client

import (
	"slices"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Departure is what the nodes say, in one round of asking, of a claim that somebody wants
// to end (N10).
//
// Only the word of a node that votes counts for its end. One that does not vote may have
// forgotten the claim while its vote stands: that it does not know it says nothing. Of one
// that votes, no vote for the claim stands if it does not know it.
type Departure struct {
	cluster       wire.Config
	digest, nonce string

	Gone   []string // nodes that vote, and do not have the claim
	Having []string // nodes that have it, and extend its lease no more
	Unsure []string // nodes that do not know it, and may have forgotten it
}

// NewDeparture is for the answers of cluster to the question with nonce.
func NewDeparture(cluster wire.Config, nonce string) *Departure {
	return &Departure{cluster: cluster, digest: cluster.Digest(), nonce: nonce}
}

// Hear takes an answer, of which the first of each node counts.
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

// Silent lists the nodes that have not answered.
func (d *Departure) Silent() []string {
	heard := slices.Concat(d.Gone, d.Having, d.Unsure)
	return slices.DeleteFunc(slices.Clone(d.cluster.Nodes), func(n string) bool { return slices.Contains(heard, n) })
}

// need is an exclusive quorum, which meets the quorum of any claim in a node.
func (d *Departure) need() int { return quorum.Size(len(d.cluster.Nodes), quorum.Exclusive) }

// Over reports that the claim holds nothing any more, and does not wait.
func (d *Departure) Over() bool { return len(d.Gone) >= d.need() }

// Decided reports that further answers say no more: it is over, or so many nodes have it
// that it is not.
func (d *Departure) Decided() bool {
	return d.Over() || len(d.Having) > len(d.cluster.Nodes)-d.need()
}
