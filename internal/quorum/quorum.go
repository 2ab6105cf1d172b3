// Package quorum is the one place where votes become a lock: it knows how many
// nodes make a quorum and when a set of votes is one, and nothing else.
//
// It follows etcd-io/raft's quorum package in knowing nothing of time, of
// messages, or of who the voters are.
package quorum

// Mode says which other claims a claim tolerates beside it.
type Mode uint8

const (
	Exclusive Mode = iota // conflicts with every other claim
	Shared                // conflicts with exclusive claims only
)

func (m Mode) String() string {
	if m == Shared {
		return "shared"
	}
	return "exclusive"
}

// Conflicts reports whether claims of modes a and b cannot hold together.
func Conflicts(a, b Mode) bool { return a == Exclusive || b == Exclusive }

// Size is the number of votes that a claim of the given mode needs among n nodes.
//
// Exclusive quorums are majorities, so any two of them meet in a node. A shared
// quorum only has to meet every exclusive one: n+1-q nodes do, which for even n
// is one node fewer than a majority.
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
	Pending Outcome = iota // fewer votes than a quorum
	Split                  // a quorum, but no quorum agrees on one fence
	Won                    // a quorum, all with the same fence
)

func (o Outcome) String() string { return [...]string{"pending", "split", "won"}[o] }

// Held tells whether a claim holds with the votes that stand now, and with which token. It
// is the one answer to that, for the client that has the claim and for whoever looks at
// it from outside.
//
// token is the one that the claim holds with already, 0 if it does not yet, as far as is
// known. It takes a quorum of votes that agree to become held (C3), and then any quorum of
// votes to stay so: a node that came back without its state gives another fence (C7).
func Held(fences []uint64, need int, token uint64) (Outcome, uint64) {
	if token > 0 && len(fences) >= need {
		return Won, token
	}
	return Tally(fences, need)
}

// Tally judges the fences of the votes that stand now, one per node, against a
// quorum of need votes.
//
// Won: need votes carry the same fence, which is returned; it is the token, and
// a whole quorum of nodes has it as its floor, so that every later exclusive
// quorum meets it in a node. Split: there are need votes, but no need of them
// agree; the highest fence is returned, for the claim to ask for everywhere
// (rule C3). Were the highest, or the need-th highest, taken as token at once,
// a node outside could later vote below it.
//
// At most one fence can win when need is a majority. A shared quorum may be half
// of the nodes, and then two fences may have one each; the higher is returned:
// both are safe, and the choice must not depend on the order of the votes.
func Tally(fences []uint64, need int) (Outcome, uint64) {
	if len(fences) < need {
		return Pending, 0
	}
	var best, highest uint64
	won := false
	// Quadratic, but over at most a few dozen nodes, and usually left after the
	// first round: a map or a sort would cost more and allocate.
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
