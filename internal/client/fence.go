package client

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/quorum"
)

// mostLowered bounds how often a claim asks at once for a lower fence than before. Each
// answer may change which fence to ask for, and that must end.
const mostLowered = 8

// wants notes the fence to ask for next in last, and reports whether to ask at once.
func (cl *Claim) wants(last *uint64, fence uint64) bool {
	switch {
	case fence == *last:
		return false
	case fence < *last:
		if cl.lowered == mostLowered {
			return false
		}
		cl.lowered++
	}
	*last = fence
	return true
}

// attainable returns the fence that a claim with different fences should ask for (C3):
// the highest that a quorum of nodes may come to give. A node gives none below the fence
// of its vote. Some nodes do not go beyond a limit that they stated, if their clocks are
// behind, or if the node with the highest fence had its clock ahead at some time (N3). If
// no fence is left, the result is the highest of all.
//
// wait is how long it takes until a quorum can give that fence, by the limits that nodes
// stated; 0 if they can give it now or stated none.
func (c *Client) attainable(cl *Claim, highest uint64) (fence uint64, wait time.Duration) {
	if !slices.ContainsFunc(cl.votes, func(v vote) bool { return v.most > 0 }) {
		return highest, 0
	}
	need := c.need(cl)
	for i := range cl.votes {
		if v := &cl.votes[i]; v.until > c.now && v.fence > fence && need.Met(c.able(cl, v.fence)) /*plant:able*/ {
			fence = v.fence
		}
	}
	if fence == 0 {
		fence = highest
	}
	for list, in := range [...]quorum.In{quorum.InNodes, quorum.InNext} {
		if need[list] == 0 {
			continue
		}
		c.untils = c.untils[:0]
		for i := range cl.votes {
			if v := &cl.votes[i]; v.until > c.now && v.fence <= fence && c.nodes[i].in&in != 0 {
				c.untils = append(c.untils, v.reaches(fence, c.now))
			}
		}
		if len(c.untils) < need[list] {
			return fence, 0
		}
		slices.Sort(c.untils)
		wait = max(wait, c.untils[need[list]-1])
	}
	return fence, wait
}

// able returns how many nodes may come to give the fence, as far as is known.
func (c *Client) able(cl *Claim, fence uint64) (able quorum.Count) {
	for i := range cl.votes {
		v := &cl.votes[i]
		if above := v.until > c.now && v.fence > fence; !above && v.reaches(fence, c.now) == 0 {
			able.Add(c.nodes[i].in)
		}
	}
	return able
}

// reaches returns how long it takes until the node can give the fence, by the limit that
// it stated last.
func (v *vote) reaches(fence uint64, now time.Duration) time.Duration {
	if v.most == 0 || fence <= v.fence {
		return 0
	}
	short := int64(fence) - int64(v.most) // both are below 2^53
	return max(time.Duration(short)*time.Microsecond-(now-v.mostAt), 0)
}
