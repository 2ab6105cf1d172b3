package partition

import (
	"cmp"
	"slices"
)

// Assign computes who should own which partition: the i-th element is the id of the owner
// of partition i. It depends on the set of ids and on the number of partitions alone, so
// all who know the members agree. With no ids, all owners are empty.
//
// It is rendezvous hashing with a limit: each pair of a member and a partition has a
// weight, and the heaviest pairs come first. A member has P/n partitions, rounded up or
// down. It takes time in proportion to the number of pairs.
func Assign(ids []string, partitions int) []string {
	owners := make([]string, max(partitions, 0))
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 0 || partitions <= 0 {
		return owners
	}
	type pair struct {
		weight            uint64
		member, partition int32
	}
	pairs := make([]pair, 0, len(ids)*partitions)
	for m, id := range ids {
		h := hash(id)
		for p := range partitions {
			pairs = append(pairs, pair{mix(h ^ mix(uint64(p)+0x9e3779b97f4a7c15)), int32(m), int32(p)})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.member, b.member), cmp.Compare(a.partition, b.partition))
	})
	// Without the limit, members would differ by the square root of what they have: with
	// 256 partitions and 8 members by half. With it, some partitions more move.
	share, more := partitions/len(ids), partitions%len(ids)
	load, taken := make([]int, len(ids)), make([]bool, partitions)
	for _, c := range pairs {
		switch {
		case taken[c.partition], load[c.member] > share, load[c.member] == share && more == 0:
			continue
		case load[c.member] == share:
			more--
		}
		load[c.member]++
		taken[c.partition] = true
		owners[c.partition] = ids[c.member]
	}
	return owners
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
