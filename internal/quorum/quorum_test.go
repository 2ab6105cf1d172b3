package quorum

import "testing"

// Every exclusive quorum has a node in common with every other quorum, and no smaller
// number of votes would suffice.
func TestSizesIntersect(t *testing.T) {
	for n := 1; n <= 64; n++ {
		q, r := Size(n, Exclusive), Size(n, Shared)
		if q < 1 || r < 1 || q > n || r > n {
			t.Fatalf("n=%d: q=%d r=%d out of range", n, q, r)
		}
		if q+q <= n {
			t.Errorf("n=%d: two exclusive quorums of %d need not meet", n, q)
		}
		if q+r <= n {
			t.Errorf("n=%d: an exclusive quorum of %d and a shared one of %d need not meet", n, q, r)
		}
		if q+(r-1) > n {
			t.Errorf("n=%d: a shared quorum of %d is one larger than it must be", n, r)
		}
		if r > q {
			t.Errorf("n=%d: shared quorum %d above exclusive %d", n, r, q)
		}
	}
}

// dumbTally counts with a map and without shortcuts.
func dumbTally(fences []uint64, need int) (Outcome, uint64) {
	count := map[uint64]int{}
	var highest, winner uint64
	won := false
	for _, f := range fences {
		count[f]++
		if f > highest {
			highest = f
		}
	}
	for f, k := range count {
		if k >= need && (!won || f > winner) {
			won, winner = true, f
		}
	}
	switch {
	case won:
		return Won, winner
	case len(fences) >= need:
		return Split, highest
	}
	return Pending, 0
}

// Every vector of votes for up to seven nodes, each node silent or with one of
// four fences (zero among them), for both modes.
func TestTallyAgainstDumbTwin(t *testing.T) {
	const values = 5 // silent, or fence 0, 1, 2, 3
	checked := 0
	for n := 1; n <= 7; n++ {
		total := 1
		for range n {
			total *= values
		}
		for v := range total {
			var fences []uint64
			for i, rest := 0, v; i < n; i, rest = i+1, rest/values {
				if f := rest % values; f > 0 {
					fences = append(fences, uint64(f-1))
				}
			}
			for _, m := range []Mode{Exclusive, Shared} {
				need := Size(n, m)
				o, f := Tally(fences, need)
				wantO, wantF := dumbTally(fences, need)
				if o != wantO || f != wantF {
					t.Fatalf("n=%d %v need=%d fences=%v: %v %d, the twin says %v %d", n, m, need, fences, o, f, wantO, wantF)
				}
				checked++
			}
		}
	}
	if checked < 100_000 {
		t.Fatalf("only %d vectors checked", checked)
	}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		a, b Mode
		want bool
	}{{Exclusive, Exclusive, true}, {Exclusive, Shared, true}, {Shared, Exclusive, true}, {Shared, Shared, false}} {
		if Conflicts(c.a, c.b) != c.want {
			t.Errorf("%v against %v: %v", c.a, c.b, !c.want)
		}
	}
}

func BenchmarkTally(b *testing.B) {
	fences := []uint64{7, 7, 7, 7, 7, 7, 7, 7, 7}
	b.ReportAllocs()
	for b.Loop() {
		if o, _ := Tally(fences, 9); o != Won {
			b.Fatal(o)
		}
	}
}

// A held claim stays held by any votes, and one that is not held yet needs votes that
// agree.
func TestHeld(t *testing.T) {
	for _, tt := range []struct {
		fences  []uint64
		token   uint64
		outcome Outcome
		want    uint64
	}{
		{[]uint64{7, 7}, 0, Won, 7},
		{[]uint64{7, 9}, 0, Split, 9},
		{[]uint64{7}, 0, Pending, 0},
		{[]uint64{8, 9}, 7, Won, 7},
		{[]uint64{9, 9}, 7, Won, 7},
		{[]uint64{0, 9}, 7, Won, 7},
		{[]uint64{7}, 7, Pending, 0},
		{nil, 7, Pending, 0},
	} {
		if outcome, token := Held(tt.fences, 2, tt.token); outcome != tt.outcome || token != tt.want {
			t.Errorf("%v, token %d: %v, %d, want %v, %d", tt.fences, tt.token, outcome, token, tt.outcome, tt.want)
		}
	}
}
