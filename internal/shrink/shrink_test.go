package shrink

import (
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMap(t *testing.T) {
	m, peak := map[int]int{}, 0
	want := map[int]int{}
	copies := 0
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 100_000 {
		m[i], want[i] = i, i
	}
	for len(m) > 0 {
		for k := range m {
			delete(m, k)
			delete(want, k)
			break
		}
		before := peak
		if m = Map(m, &peak); peak < before {
			copies++
		}
		if r.IntN(50) == 0 && len(m) != len(want) {
			t.Fatalf("%d entries, want %d", len(m), len(want))
		}
	}
	if copies < 3 || copies > 10 {
		t.Errorf("%d copies on the way from 100,000 entries to none", copies)
	}
	for k := range want {
		if m[k] != want[k] {
			t.Fatalf("%d is lost", k)
		}
	}
}

func TestSlice(t *testing.T) {
	s := make([]int, 0, 1<<16)
	s = append(s, 1, 2, 3)
	for cap(s) >= few {
		before := cap(s)
		if s = Slice(s); cap(s) != before/2 || len(s) != 3 || s[2] != 3 {
			t.Fatalf("%v with room for %d, from %d", s, cap(s), before)
		}
	}
	full := make([]int, few)
	if got := Slice(full); &got[0] != &full[0] {
		t.Error("a full slice was copied")
	}
}
