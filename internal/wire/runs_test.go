package wire

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Runs against a dumb set, for random sets that are dense, sparse and mixed.
func TestRunsAgainstDumbSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		in := map[uint64]bool{}
		width := 1 + r.Uint64N(200)
		for range r.IntN(150) {
			in[1+r.Uint64N(width)] = true
		}
		var runs Runs
		var sorted []uint64
		for seq := uint64(1); seq <= width; seq++ {
			if in[seq] {
				sorted = append(sorted, seq)
			}
		}
		for _, seq := range sorted {
			runs = runs.Add(seq)
		}
		if got := runs.Len(); got != uint64(len(in)) {
			t.Fatalf("round %d: Len %d, the set has %d", round, got, len(in))
		}
		for seq := uint64(0); seq <= width+2; seq++ {
			if runs.Has(seq) != in[seq] {
				t.Fatalf("round %d: Has(%d) is %v in %v", round, seq, runs.Has(seq), runs)
			}
		}
		hi := r.Uint64N(width + 2)
		upTo, after := runs.Cut(hi)
		for seq := uint64(0); seq <= width+2; seq++ {
			if upTo.Has(seq) != (in[seq] && seq <= hi) || after.Has(seq) != (in[seq] && seq > hi) {
				t.Fatalf("round %d: %v cut after %d is %v and %v", round, runs, hi, upTo, after)
			}
		}
		_ = append(upTo, Run{}) // does not write into the rest
		var back []uint64
		for i, run := range runs {
			if run.Lo > run.Hi {
				t.Fatalf("round %d: run %v is empty", round, run)
			}
			if i > 0 && runs[i-1].Hi+1 >= run.Lo {
				t.Fatalf("round %d: %v and %v touch or overlap", round, runs[i-1], run)
			}
			for seq := run.Lo; seq <= run.Hi; seq++ {
				back = append(back, seq)
			}
		}
		if !slices.Equal(back, sorted) {
			t.Fatalf("round %d: %v is not %v", round, runs, sorted)
		}
	}
}

func TestRunsAtTheEnds(t *testing.T) {
	var none Runs
	if none.Has(0) || none.Has(1) || none.Len() != 0 {
		t.Error("the empty list is not empty")
	}
	runs := Runs(nil).Add(1).Add(MaxInt - 1).Add(MaxInt)
	if len(runs) != 2 || !runs.Has(1) || runs.Has(2) || !runs.Has(MaxInt) || runs.Has(MaxInt+1) || runs.Len() != 3 {
		t.Errorf("%v", runs)
	}
}
