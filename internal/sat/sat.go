// Package sat computes with times and limits that somebody chose: where a sum or a
// product is out of range, the result is the end of the range. "For ever" is often
// said by the greatest value of a type, and must not come round to its least.
package sat

import "time"

// Signed is what is counted and measured in.
type Signed interface{ ~int | ~int64 }

// Add is a + b.
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

// Mul is a * n for n that is not negative.
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

// Micros is a number of microseconds, which is what messages and wall clocks count in.
func Micros(n int64) time.Duration { return Mul(time.Duration(n), time.Microsecond) }

// greatest is the greatest value of T: that of int differs between machines.
func greatest[T Signed]() T {
	most := T(1)
	for most<<1 > most {
		most <<= 1
	}
	return most - 1 + most
}
