package quorum

import "testing"

// dumbJoint counts with maps, list by list.
func dumbJoint(votes []JointVote, need Joint) (Outcome, uint64) {
	count := map[uint64]*[2]int{}
	var total [2]int
	var highest, winner uint64
	won := false
	for _, v := range votes {
		if count[v.Fence] == nil {
			count[v.Fence] = &[2]int{}
		}
		for list, in := range []In{InNodes, InNext} {
			if v.In&in != 0 {
				count[v.Fence][list]++
				total[list]++
			}
		}
		highest = max(highest, v.Fence)
	}
	for f, c := range count {
		if c[0] >= need[0] && (need[1] == 0 || c[1] >= need[1]) && (!won || f > winner) {
			won, winner = true, f
		}
	}
	switch {
	case won:
		return Won, winner
	case total[0] >= need[0] && (need[1] == 0 || total[1] >= need[1]):
		return Split, highest
	}
	return Pending, 0
}

// votesOf makes votes of a number: each node is silent or has one of some fences.
func votesOf(in []In, v, values int) (votes []JointVote) {
	for _, i := range in {
		if f := v % values; f > 0 {
			votes = append(votes, JointVote{uint64(f - 1), i})
		}
		v /= values
	}
	return votes
}

// Every vector of votes for up to six nodes in every way in which they can be in two lists.
func TestTallyJointAgainstDumbTwin(t *testing.T) {
	checked := 0
	for n := 1; n <= 6; n++ {
		values := 4 // silent, or fence 0, 1, 2
		if n > 5 {
			values = 3
		}
		for ways, all := 0, power(3, n); ways < all; ways++ {
			in := make([]In, n)
			var size Count
			for i, w := 0, ways; i < n; i, w = i+1, w/3 {
				in[i] = In(1 + w%3)
				size.Add(in[i])
			}
			if size[0] == 0 {
				continue
			}
			for v, all := 0, power(values, n); v < all; v++ {
				votes := votesOf(in, v, values)
				for _, m := range []Mode{Exclusive, Shared} {
					need := JointSize(size[0], size[1], m)
					o, f := TallyJoint(votes, need)
					if wantO, wantF := dumbJoint(votes, need); o != wantO || f != wantF {
						t.Fatalf("need=%v votes=%v: %v %d, the twin says %v %d", need, votes, o, f, wantO, wantF)
					}
					if held, f := HeldJoint(votes, need, 9); o == Pending && held != Pending || o != Pending && (held != Won || f != 9) {
						t.Fatalf("need=%v votes=%v: held with 9: %v %d, tally says %v", need, votes, held, f, o)
					}
					checked++
				}
			}
		}
	}
	if checked < 1_000_000 {
		t.Fatalf("only %d vectors checked", checked)
	}
}

// By one list the joint tally is the tally.
func TestTallyJointOfOneList(t *testing.T) {
	for n := 1; n <= 6; n++ {
		in := make([]In, n)
		for i := range in {
			in[i] = InNodes
		}
		for v, all := 0, power(4, n); v < all; v++ {
			votes := votesOf(in, v, 4)
			var fences []uint64
			for _, x := range votes {
				fences = append(fences, x.Fence)
			}
			for _, m := range []Mode{Exclusive, Shared} {
				o, f := TallyJoint(votes, JointSize(n, 0, m))
				if wantO, wantF := Tally(fences, Size(n, m)); o != wantO || f != wantF {
					t.Fatalf("n=%d %v %v: %v %d, Tally says %v %d", n, m, fences, o, f, wantO, wantF)
				}
			}
		}
	}
}

func power(base, n int) int {
	p := 1
	for range n {
		p *= base
	}
	return p
}

// What the argument for a change of the list rests on, for all pairs of lists of up to four
// of five nodes: quorums of a joint record meet those of each of its lists in that list, and
// each other in both. A majority of the old list meets every quorum of it, so that nothing
// is left of the old list's votes once a majority has none.
func TestJointQuorumsMeet(t *testing.T) {
	const nodes = 5
	size := func(set int) (n int) {
		for ; set > 0; set &= set - 1 {
			n++
		}
		return n
	}
	met := func(set, old, next int, m Mode) bool {
		var c Count
		for i := range nodes {
			var in In
			if old>>i&1 == 1 {
				in |= InNodes
			}
			if next>>i&1 == 1 {
				in |= InNext
			}
			if set>>i&1 == 1 {
				c.Add(in)
			}
		}
		return JointSize(size(old), size(next), m).Met(c)
	}
	checked := 0
	for old := 1; old < 1<<nodes; old++ {
		for next := range 1 << nodes {
			if size(old) > 4 || size(next) > 4 {
				continue
			}
			for a := range 1 << nodes {
				if !met(a, old, next, Exclusive) {
					continue
				}
				for b := range 1 << nodes {
					for _, m := range []Mode{Exclusive, Shared} {
						if met(b, old, next, m) && (a&b&old == 0 || next > 0 && a&b&next == 0) {
							t.Fatalf("%05b and %05b are quorums (%v) of %05b and %05b, and do not meet in each list", a, b, m, old, next)
						}
						if met(b, old, 0, m) && a&b&old == 0 {
							t.Fatalf("%05b is a joint quorum, %05b one (%v) of the old list %05b, and they do not meet", a, b, m, old)
						}
						if next > 0 && met(b, next, 0, m) && a&b&next == 0 {
							t.Fatalf("%05b is a joint quorum, %05b one (%v) of the new list %05b, and they do not meet", a, b, m, next)
						}
						checked++
					}
				}
			}
		}
	}
	if checked < 100_000 {
		t.Fatalf("only %d pairs checked", checked)
	}
}

// No quorum is left without a majority of one list, however many nodes the other one has.
func TestJointLost(t *testing.T) {
	for old := 1; old <= 6; old++ {
		for next := 0; next <= 6; next++ {
			for _, m := range []Mode{Exclusive, Shared} {
				need := JointSize(old, next, m)
				for a := 0; a <= old; a++ {
					for b := 0; b <= next; b++ {
						left := Count{old - a, next - b}
						if got := need.Lost(Count{a, b}, Count{old, next}); got == need.Met(left) {
							t.Errorf("%v lists of %d and %d, without %d and %d: lost %v, met %v", m, old, next, a, b, got, need.Met(left))
						}
					}
				}
			}
		}
	}
}
