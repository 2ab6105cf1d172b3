// Package quorum decides when votes make a lock. It is the only place that knows how many
// votes a quorum needs.
//
// Like the quorum package of etcd-io/raft, it knows nothing of time, messages, or who the
// voters are. Its functions are pure, and safe for concurrent use.
package quorum

// Mode is the mode of a claim.
type Mode uint8

const (
	// Exclusive claims conflict with every other claim.
	Exclusive Mode = iota
	// Shared claims conflict only with exclusive ones.
	Shared
)

// String returns "exclusive" or "shared".
func (m Mode) String() string {
	if m == Shared {
		return "shared"
	}
	return "exclusive"
}

// Conflicts reports whether claims of modes a and b cannot both hold the same lock.
func Conflicts(a, b Mode) bool { return a == Exclusive || b == Exclusive }

// Size returns how many votes a claim of mode m needs among n nodes.
//
// An exclusive quorum is a majority, so any two of them have a node in common. A shared
// quorum needs a node in common with every exclusive one only. For that n+1-q nodes
// suffice, where q is the exclusive quorum. For even n that is one node less than a
// majority.
func Size(n int, m Mode) int {
	q := n/2 + 1
	if m == Shared {
		return n + 1 - q //plant:shared-size
	}
	return q
}

// Outcome is what a set of standing votes amounts to.
type Outcome uint8

const (
	// Pending: there are fewer votes than a quorum.
	Pending Outcome = iota
	// Split: there is a quorum, but no quorum agrees on one fence.
	Split
	// Won: a quorum of votes makes the claim held.
	Won
)

// String returns the outcome in lower case.
func (o Outcome) String() string { return [...]string{"pending", "split", "won"}[o] }

// Held returns whether a claim is held by the votes that stand now, and its token. fences
// are the fences of these votes, one per node, and need is the size of a quorum. Both the
// client that has the claim and outside observers use this function.
//
// token is the token with which the claim is already held, as far as is known, or 0. To
// become held, a claim needs a quorum of votes that agree (C3). To stay held, any quorum
// suffices, because a node that came back without its state gives another fence (C7).
func Held(fences []uint64, need int, token uint64) (Outcome, uint64) {
	if token > 0 && len(fences) >= need {
		return Won, token
	}
	return Tally(fences, need)
}

// Tally evaluates the fences of the standing votes, one per node, against a quorum of
// need votes.
//
// Won: need votes have the same fence, which is returned. It is the token. A whole quorum
// of nodes has it as floor, so every later exclusive quorum includes such a node.
//
// Split: there are need votes, but no need of them agree. The highest fence is returned,
// for the claim to ask for at all nodes (C3). Taking the highest, or the need-th highest,
// as token at once would be wrong: another node could vote below it later.
//
// Pending: there are fewer votes. The fence is 0.
//
// If need is a majority, at most one fence can win. A shared quorum may be half of the
// nodes, so two fences may win. Either is safe; the higher one is returned, so that the
// result does not depend on the order of the votes.
func Tally(fences []uint64, need int) (Outcome, uint64) {
	if len(fences) < need {
		return Pending, 0
	}
	var best, highest uint64
	won := false
	// The loop is quadratic, but there are at most a few dozen nodes, and it usually ends
	// after one pass. A map or a sort would cost more and allocate.
	for i, f := range fences {
		highest = max(highest, f)
		if won && f <= best {
			continue
		}
		same := 1
		for _, g := range fences[i+1:] {
			if g == f {
				same++
			}
		}
		if same >= need {
			won, best = true, f
		}
	}
	if won {
		return Won, best
	}
	return Split, highest //plant:split
}
