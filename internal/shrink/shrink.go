// Package shrink frees the memory of tables that were once large. Go's maps and slices
// keep all memory that they ever needed, so a node that once had a million names would
// keep it for ever. Its functions are as safe for concurrent use as their arguments.
package shrink

// few is a number of entries that are not worth a copy.
const few = 1024

// Map must be called after each delete from m, always with the same peak for the same
// map. If three quarters of the largest number of entries since the last copy are gone,
// it returns a smaller copy, and else m. So a delete costs the copy of at most a third of
// an entry on average.
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

// Slice returns s, or a copy with half the capacity if three quarters of the capacity are
// unused.
func Slice[S ~[]E, E any](s S) S {
	if cap(s) < few || len(s) > cap(s)/4 {
		return s
	}
	return append(make(S, 0, cap(s)/2), s...)
}
