package partition

import (
	"cmp"
	"container/heap"
	"slices"
)

// Assign computes who should own which partition: the i-th element is the id of the owner
// of partition i. It depends on the set of ids and on the number of partitions alone, so
// all who know the members agree. With no ids, all owners are empty.
//
// It is rendezvous hashing with a limit: each pair of a member and a partition has a
// weight, and the heaviest pairs come first. A member has P/n partitions, rounded up or
// down. When a member joins or leaves, about P/n partitions move if there are many more
// partitions than members: a quarter more than P/n with 256 partitions and 8 members, twice
// as many with 4096 and 100. With 4096 partitions and 1000 members some 25 move. Assign takes
// time in proportion to the number of pairs, some 3 ns for each.
func Assign(ids []string, partitions int) []string {
	owners := make([]string, max(partitions, 0))
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 0 || partitions <= 0 {
		return owners
	}
	// Without the limit, members would differ by the square root of what they have: with
	// 256 partitions and 8 members by half. With it, some partitions more move.
	share, more := partitions/len(ids), partitions%len(ids)
	load := make([]int, len(ids))
	full := func(member int32) bool {
		return load[member] > share || load[member] == share && more == 0
	}
	open := make([]candidate, len(ids)) // the members that are not full, in any order
	for m, id := range ids {
		open[m] = candidate{hash(id), int32(m)}
	}
	// The heaviest pair of all is the first of these: they have the heaviest pair of each
	// partition that has no owner, as a heap. A member that was full when its pair came never
	// has room again, so the partition then needs another one.
	best := make(pairs, partitions)
	for p := range best {
		best[p] = heaviest(open, int32(p))
	}
	heap.Init(&best)
	for len(best) > 0 {
		c := best[0]
		if full(c.member) {
			best[0] = heaviest(open, c.partition)
			heap.Fix(&best, 0)
			continue
		}
		if load[c.member] == share {
			more--
		}
		load[c.member]++
		owners[c.partition] = ids[c.member]
		heap.Pop(&best)
		if full(c.member) { // and others, if it was the last that may have one more
			open = slices.DeleteFunc(open, func(o candidate) bool { return full(o.member) })
		}
	}
	return owners
}

// candidate is a member that may get more partitions.
type candidate struct {
	hash   uint64
	member int32
}

// pair is a member and a partition that it may get.
type pair struct {
	weight            uint64
	member, partition int32
}

// heaviest returns the heaviest pair of a partition. There is a candidate, since the members
// have room for all partitions.
func heaviest(open []candidate, partition int32) pair {
	salt := mix(uint64(partition) + 0x9e3779b97f4a7c15)
	best := pair{mix(open[0].hash ^ salt), open[0].member, partition}
	for _, o := range open[1:] {
		// Members whose ids have the same hash have the same weight everywhere.
		if w := mix(o.hash ^ salt); w > best.weight || w == best.weight && o.member < best.member {
			best.weight, best.member = w, o.member
		}
	}
	return best
}

// pairs is a heap whose first is the heaviest.
type pairs []pair

func (h pairs) Len() int      { return len(h) }
func (h pairs) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h pairs) Less(i, j int) bool {
	a, b := &h[i], &h[j]
	if a.weight != b.weight {
		return a.weight > b.weight
	}
	return cmp.Or(cmp.Compare(a.member, b.member), cmp.Compare(a.partition, b.partition)) < 0
}

func (h *pairs) Push(x any) { *h = append(*h, x.(pair)) }

// Pop returns nothing, for the pair is known.
func (h *pairs) Pop() any {
	*h = (*h)[:len(*h)-1]
	return nil
}

// partitionOf is the partition of a key.
func partitionOf(key string, partitions int) int {
	return int(mix(hash(key)) % uint64(partitions))
}

// hash is FNV-1a. Members of different versions must agree on it: it never changes.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix is the finalizer of SplitMix64: each bit of x changes half of the result's.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
