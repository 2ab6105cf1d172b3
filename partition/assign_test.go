package partition_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/qlock/qlock/partition"
)

func TestAssign(t *testing.T) {
	for _, p := range []int{1, 7, 256, 1000} {
		for _, n := range []int{1, 2, 3, 5, 8, 10, 16, 40} {
			var ids []string
			for i := range n {
				ids = append(ids, fmt.Sprint("worker-", i))
			}
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
	const p, tries = 256, 20
	for _, n := range []int{2, 5, 8, 16} {
		moved := 0
		for try := range tries {
			var ids []string
			for i := range n + 1 {
				ids = append(ids, fmt.Sprintf("w%d-%d", try, i))
			}
			a, b := partition.Assign(ids[:n], p), partition.Assign(ids, p)
			for i := range p {
				if a[i] != b[i] {
					moved++
				}
			}
		}
		ratio := float64(moved) / tries / (p / float64(n+1))
		t.Logf("%d members and one more: %.2f times P/n move", n, ratio)
		if ratio > 1.7 {
			t.Errorf("%d members: %.2f times P/n move", n, ratio)
		}
	}
}

// Members of different versions must agree.
func TestAssignNeverChanges(t *testing.T) {
	got := fmt.Sprint(partition.Assign([]string{"a", "b", "c"}, 16))
	if want := "[c c c b b a b c c b b a b a a a]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func BenchmarkAssign(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) {
			var ids []string
			for i := range n {
				ids = append(ids, fmt.Sprint("worker-", i))
			}
			for b.Loop() {
				partition.Assign(ids, 256)
			}
		})
	}
}
