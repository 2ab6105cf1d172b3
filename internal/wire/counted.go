package wire

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/quorum"
)

// RecordConfig returns the configuration by which votes are counted under a record. links is
// the history, the record's own link included.
func RecordConfig(r *EpochRecord, links []Link) Config {
	var names []string
	for _, m := range slices.Concat(r.Nodes, r.Next) {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return Config{Nodes: slices.Compact(names), MaxTTL: r.Lease(), Skew: r.AllowedSkew(), Record: r, Links: links}
}

// Epoch is that of the record, and 0 without one.
func (c *Config) Epoch() uint64 {
	if c.Record == nil {
		return 0
	}
	return c.Record.Epoch
}

// Longest is the longest lease that may stand under the configuration: waits go by it.
func (c *Config) Longest() time.Duration {
	if c.Record == nil {
		return c.MaxTTL
	}
	return c.Record.Longest()
}

// In gives the lists that the node of this name is in. Without a record there is one list.
func (c *Config) In(name string) (in quorum.In) {
	if c.Record == nil {
		if slices.Contains(c.Nodes, name) {
			in = quorum.InNodes
		}
		return in
	}
	named := func(m Member) bool { return m.Name == name }
	if slices.ContainsFunc(c.Record.Nodes, named) {
		in |= quorum.InNodes
	}
	if slices.ContainsFunc(c.Record.Next, named) {
		in |= quorum.InNext
	}
	return in
}

// Lists is the number of nodes in each list.
func (c *Config) Lists() (n quorum.Count) {
	for _, name := range c.Nodes {
		n.Add(c.In(name))
	}
	return n
}

// Continues reports whether the configuration came after another one in the history of one
// cluster (E16). What was held under that one may then be carried over.
func (c *Config) Continues(before *Config) bool {
	return c.Epoch() > before.Epoch() && (before.Record == nil || c.Record.CID == before.Record.CID /*plant:members-cid*/) &&
		slices.Contains(c.Links, Link{Epoch: before.Epoch(), Digest: before.Digest()}) /*plant:members-history*/
}

// Counts is how many of the names are in each list. A name counts once.
func (c *Config) Counts(names []string) (n quorum.Count) {
	for i, name := range names {
		if !slices.Contains(names[:i], name) {
			n.Add(c.In(name))
		}
	}
	return n
}

// Need is how many nodes of each list a claim needs.
func (c *Config) Need(m quorum.Mode) quorum.Joint {
	n := c.Lists()
	return quorum.JointSize(n[0], n[1], m)
}
