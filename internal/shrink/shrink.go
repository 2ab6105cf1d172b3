// Package shrink gives back the memory of tables that were once large. Go's maps
// and slices keep the room that they ever needed: a node that once saw a million
// names at a time would carry them for ever.
package shrink

// few is how many entries are not worth a copy.
const few = 1024

// Map is to be called after each delete, with the same peak for the same map. It
// returns m, or when three quarters of the most that m had since the last copy are
// gone a copy of the right size: so that each delete pays for a third of an entry's
// copy at most.
func Map[M ~map[K]V, K comparable, V any](m M, peak *int) M {
	*peak = max(*peak, len(m)+1)
	if *peak < few || len(m) > *peak/4 {
		return m
	}
	small := make(M, len(m))
	for k, v := range m {
		small[k] = v
	}
	*peak = len(m)
	return small
}

// Slice returns s, or when three quarters of its capacity are unused a copy with
// half of that.
func Slice[S ~[]E, E any](s S) S {
	if cap(s) < few || len(s) > cap(s)/4 {
		return s
	}
	return append(make(S, 0, cap(s)/2), s...)
}
