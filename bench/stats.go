package main

import (
	"math"
	"slices"
	"time"
)

// percentiles returns percentiles by the nearest rank, in nanoseconds, or NaN if there are
// no samples. It sorts samples.
func percentiles(samples []time.Duration, wanted ...float64) []float64 {
	slices.Sort(samples)
	var out []float64
	for _, p := range wanted {
		if len(samples) == 0 {
			out = append(out, math.NaN())
			continue
		}
		rank := int(math.Ceil(p / 100 * float64(len(samples))))
		out = append(out, float64(samples[max(rank-1, 0)]))
	}
	return out
}

// jain returns Jain's index of fairness: 1 if all shares are equal, 1/n if one has
// everything.
func jain(shares []float64) float64 {
	var sum, squares float64
	for _, x := range shares {
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return math.NaN()
	}
	return sum * sum / (float64(len(shares)) * squares)
}

// spreadOf is a median with the number and range of its values.
type spreadOf struct {
	median, min, max float64
	n                int
}

func summarize(values []float64) spreadOf {
	if len(values) == 0 {
		return spreadOf{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	mid := len(v) / 2
	s := spreadOf{median: v[mid], min: v[0], max: v[len(v)-1], n: len(v)}
	if len(v)%2 == 0 {
		s.median = (v[mid-1] + v[mid]) / 2
	}
	return s
}
