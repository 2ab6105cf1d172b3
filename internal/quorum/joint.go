package quorum

// Joint says how many votes a claim needs while the cluster's list of nodes changes: a
// quorum of the old list and one of the new list. With one list the second size is 0.
type Joint [2]int

// JointSize is the number of votes of each list that a claim of the given mode needs, for
// lists of so many nodes; next is 0 if there is one list only.
func JointSize(nodes, next int, m Mode) Joint {
	j := Joint{Size(nodes, m), 0}
	if next > 0 {
		j[1] = Size(next, m) //plant:joint-size
	}
	return j
}

// In is the lists that a node is in.
type In uint8

const (
	InNodes In = 1 << iota // the list that the cluster has, or changes from
	InNext                 // the list that it changes to
)

// Count is the number of nodes in each list.
type Count [2]int

// Add counts one more node. A node that is in both lists counts in each.
func (c *Count) Add(in In) {
	if in&InNodes != 0 {
		c[0]++
	}
	if in&InNext != 0 {
		c[1]++ //plant:joint-counts-in-both
	}
}

// Met reports whether so many nodes are a quorum of each list.
func (j Joint) Met(c Count) bool {
	return c[0] >= j[0] && c[1] >= j[1] /*plant:joint-both*/
}

// Lost reports whether no quorum is left without so many nodes, of lists of n nodes: one
// list without a quorum is enough.
func (j Joint) Lost(without, n Count) bool {
	return n[0]-without[0] < j[0] || n[1]-without[1] < j[1]
}

// JointVote is a node's vote: its fence, and the lists that the node is in.
type JointVote struct {
	Fence uint64
	In    In
}

// TallyJoint judges votes as Tally does, by two lists. Won: votes with one fence contain a
// quorum of each list. A fence with a quorum of one list only is no token: a later quorum of
// the other list need not meet a node that knows it. Then, as where no fence has any, the
// highest fence is to be wanted everywhere.
func TallyJoint(votes []JointVote, need Joint) (Outcome, uint64) {
	var all Count
	var best, highest uint64
	won := false
	for i, v := range votes {
		all.Add(v.In)
		highest = max(highest, v.Fence)
		if won && v.Fence <= best {
			continue
		}
		var same Count
		for _, w := range votes[i:] {
			if w.Fence == v.Fence {
				same.Add(w.In)
			}
		}
		if need.Met(same) {
			won, best = true, v.Fence
		}
	}
	switch {
	case won:
		return Won, best
	case need.Met(all):
		return Split, highest
	}
	return Pending, 0
}

// HeldJoint is Held by two lists.
func HeldJoint(votes []JointVote, need Joint, token uint64) (Outcome, uint64) {
	if token > 0 {
		var all Count
		for _, v := range votes {
			all.Add(v.In)
		}
		if need.Met(all) {
			return Won, token
		}
	}
	return TallyJoint(votes, need)
}
