// Package sat is saturating arithmetic for times and limits that users choose: if a
// result is out of range, it is the end of the range. Users often say "for ever" with the
// greatest value of a type, and that must not overflow to the least. Its functions are
// safe for concurrent use.
package sat

import "time"

// Signed is the constraint of what is counted and measured in.
type Signed interface{ ~int | ~int64 }

// Add returns a + b.
func Add[T Signed](a, b T) T {
	sum := a + b
	switch {
	case a > 0 && b > 0 && sum < 0:
		return greatest[T]()
	case a < 0 && b < 0 && sum >= 0:
		return -greatest[T]() - 1
	}
	return sum
}

// Mul returns a * n; n must not be negative.
func Mul[T Signed](a, n T) T {
	product := a * n
	if n == 0 || product/n == a && (product < 0) == (a < 0) {
		return product
	}
	if a < 0 {
		return -greatest[T]() - 1
	}
	return greatest[T]()
}

// Micros returns n microseconds, the unit of messages and wall clocks.
func Micros(n int64) time.Duration { return Mul(time.Duration(n), time.Microsecond) }

// greatest returns the greatest value of T, which for int depends on the machine.
func greatest[T Signed]() T {
	most := T(1)
	for most<<1 > most {
		most <<= 1
	}
	return most - 1 + most
}
