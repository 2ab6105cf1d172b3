package partition_test

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/qlock/qlock/partition"
)

func TestAssign(t *testing.T) {
	for _, p := range []int{1, 7, 256, 1000} {
		for _, n := range []int{1, 2, 3, 5, 8, 10, 16, 40} {
			ids := workers("worker-", n)
			owners := partition.Assign(ids, p)
			load := map[string]int{}
			for _, o := range owners {
				load[o]++
			}
			for _, id := range ids {
				if l := load[id]; l < p/n || l > (p+n-1)/n {
					t.Errorf("%d partitions, %d members: %s has %d", p, n, id, l)
				}
			}
			// Neither the order nor repetitions matter.
			slices.Reverse(ids)
			if !slices.Equal(owners, partition.Assign(append(ids, ids...), p)) {
				t.Errorf("%d partitions, %d members: another order, other owners", p, n)
			}
		}
	}
	if got := partition.Assign(nil, 2); !slices.Equal(got, []string{"", ""}) {
		t.Errorf("%q", got)
	}
	if got := partition.Assign([]string{"a"}, -1); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// About P/n partitions move when a member comes or goes, and few between others.
func TestAssignMovesLittle(t *testing.T) {
	for _, c := range []struct {
		n, p int
		most float64
	}{{2, 256, 1.7}, {5, 256, 1.7}, {8, 256, 1.7}, {16, 256, 1.9}, {100, 4096, 3}, {1000, 4096, 8}} {
		n, p, moved := c.n, c.p, 0
		tries := max(20*256/p, 2) // they take time in proportion to it
		for try := range tries {
			ids := workers(fmt.Sprintf("w%d-", try), n+1)
			a, b := partition.Assign(ids[:n], p), partition.Assign(ids, p)
			for i := range p {
				if a[i] != b[i] {
					moved++
				}
			}
		}
		ratio := float64(moved) / float64(tries) / (float64(p) / float64(n+1))
		t.Logf("%d partitions, %d members and one more: %.2f times P/n move", p, n, ratio)
		if ratio > c.most {
			t.Errorf("%d members: %.2f times P/n move", n, ratio)
		}
	}
}

// With the same members and partitions, whatever their numbers, the assignment is the one that
// its definition says: all pairs, sorted by weight. It is balanced, and what moves when a member
// joins moves to it, or makes up for what did.
func TestAssignProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 4))
	for try := range 100 {
		n, p := 1+r.IntN(60), 1+r.IntN(300)
		if try%10 == 0 {
			n = p + r.IntN(10) // some have none
		}
		ids := workers(fmt.Sprintf("w%d-", try), n)
		r.Shuffle(n, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		owners := partition.Assign(ids, p)
		if want := byDefinition(ids, p); !slices.Equal(owners, want) {
			t.Fatalf("%d members and %d partitions:\n%v, want\n%v", n, p, owners, want)
		}
		load := map[string]int{}
		for _, o := range owners {
			load[o]++
		}
		for _, id := range ids {
			if l := load[id]; l != p/n && l != (p+n-1)/n {
				t.Errorf("%d members and %d partitions: %s has %d", n, p, id, l)
			}
		}
		// The same from the other side: who has left has nothing, and the rest is balanced as if
		// it had never been there.
		if n > 1 {
			if left := partition.Assign(ids[1:], p); slices.Contains(left, ids[0]) {
				t.Errorf("%d members and %d partitions: %s has left, and owns some", n, p, ids[0])
			}
		}
	}
}

// byDefinition is what Assign computes, in the plainest way.
func byDefinition(ids []string, partitions int) []string {
	mix := func(x uint64) uint64 { // the finalizer of SplitMix64
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	type pair struct {
		weight    uint64
		member    string
		partition int
	}
	var pairs []pair
	for _, id := range ids {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id)) // a hash does not fail
		for p := range partitions {
			pairs = append(pairs, pair{mix(h.Sum64() ^ mix(uint64(p)+0x9e3779b97f4a7c15)), id, p})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.member, b.member), cmp.Compare(a.partition, b.partition))
	})
	share, more := partitions/len(ids), partitions%len(ids)
	load, owners := map[string]int{}, make([]string, partitions)
	for _, c := range pairs {
		if owners[c.partition] != "" || load[c.member] > share || load[c.member] == share && more == 0 {
			continue
		}
		if load[c.member] == share {
			more--
		}
		load[c.member]++
		owners[c.partition] = c.member
	}
	return owners
}

// Members of different versions must agree.
func TestAssignNeverChanges(t *testing.T) {
	got := fmt.Sprint(partition.Assign([]string{"a", "b", "c"}, 16))
	if want := "[c c c b b a b c c b b a b a a a]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func BenchmarkAssign(b *testing.B) {
	for _, c := range []struct{ members, partitions int }{{10, 256}, {100, 256}, {100, 4096}, {1000, 4096}} {
		b.Run(fmt.Sprintf("members=%d,partitions=%d", c.members, c.partitions), func(b *testing.B) {
			ids := workers("worker-", c.members)
			b.ReportAllocs()
			for b.Loop() {
				partition.Assign(ids, c.partitions)
			}
		})
	}
}

func workers(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, i)
	}
	return ids
}
