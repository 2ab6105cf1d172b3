package sat

import (
	"math"
	"math/big"
	"testing"
	"time"
)

var edges = []int64{
	math.MinInt64, math.MinInt64 + 1, math.MinInt64 / 2, math.MinInt64/1000 - 1, math.MinInt64 / 1000, -1000, -2, -1, 0, 1, 2, 3, 1000,
	math.MaxInt64 / 1000, math.MaxInt64/1000 + 1, math.MaxInt64 / 2, math.MaxInt64/2 + 1, math.MaxInt64 - 1, math.MaxInt64,
}

// clamp is the expected result.
func clamp(x *big.Int) int64 {
	switch {
	case x.IsInt64():
		return x.Int64()
	case x.Sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

func TestAtTheEnds(t *testing.T) {
	for _, a := range edges {
		for _, b := range edges {
			if want, got := clamp(new(big.Int).Add(big.NewInt(a), big.NewInt(b))), Add(a, b); got != want {
				t.Errorf("Add(%d, %d) = %d, want %d", a, b, got, want)
			}
			if b < 0 {
				continue
			}
			if want, got := clamp(new(big.Int).Mul(big.NewInt(a), big.NewInt(b))), Mul(a, b); got != want {
				t.Errorf("Mul(%d, %d) = %d, want %d", a, b, got, want)
			}
		}
		if want, got := clamp(new(big.Int).Mul(big.NewInt(a), big.NewInt(1000))), Micros(a); int64(got) != want {
			t.Errorf("Micros(%d) = %d, want %d", a, got, want)
		}
	}
}

func TestOtherTypes(t *testing.T) {
	if got := Mul(math.MaxInt, 2); got != math.MaxInt {
		t.Errorf("Mul(MaxInt, 2) = %d", got)
	}
	if got := Add(math.MinInt, -1); got != math.MinInt {
		t.Errorf("Add(MinInt, -1) = %d", got)
	}
	if got := Add(time.Duration(math.MaxInt64), time.Second); got != math.MaxInt64 {
		t.Errorf("Add(MaxInt64, 1s) = %v", got)
	}
}
