//go:build unix

package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// deed is what a worker did to one lock. A worker holds one lock at a time, so that
// its number tells who holds; holdings are numbered from 1.
type deed struct {
	kind   deedKind
	worker int
	holder int
	token  uint64
	state  locked // resuming
}

type deedKind uint8

const (
	locking deedKind = iota
	rlocking
	ending   // by unlocking, loss or death
	resuming // the first of a piece of history: how the piece before it ended
)

const maxWorkers = clients * workers

// locked is the state of the model: who holds, and what tokens there were.
type locked struct {
	writer    int // 0: nobody
	readers   [maxWorkers]int
	exclusive uint64 // highest token of a writer
	any       uint64 // highest token of anybody
}

// model is a lock for many readers or one writer, with tokens: a writer's is above
// all before it, a reader's not below those of the writers before it.
var model = porcupine.Model{
	Init: func() any { return locked{} },
	Step: func(state, input, _ any) (bool, any) {
		s, d := state.(locked), input.(deed)
		switch d.kind {
		case resuming:
			return true, d.state
		case ending:
			switch d.holder {
			case s.writer:
				s.writer = 0
			case s.readers[d.worker]:
				s.readers[d.worker] = 0
			default:
				return false, s
			}
			return true, s
		case rlocking:
			if s.writer != 0 || s.readers[d.worker] != 0 || d.token < s.exclusive {
				return false, s
			}
			s.readers[d.worker] = d.holder
			s.any = max(s.any, d.token)
			return true, s
		}
		if s.writer != 0 || s.readers != [maxWorkers]int{} || d.token <= s.any {
			return false, s
		}
		s.writer, s.exclusive, s.any = d.holder, d.token, d.token
		return true, s
	},
	DescribeOperation: func(input, _ any) string {
		d := input.(deed)
		switch d.kind {
		case resuming:
			return fmt.Sprintf("%d holds, from before", d.state.writer)
		case ending:
			return fmt.Sprintf("%d ends", d.holder)
		case rlocking:
			return fmt.Sprintf("%d reads, token %d", d.holder, d.token)
		}
		return fmt.Sprintf("%d writes, token %d", d.holder, d.token)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%+v", state) },
}

// tenure is a holding as the model sees it.
type tenure struct {
	worker, holder   int
	shared           bool
	token            uint64
	called, returned int64
	end              span // it may have ended from then on, and had by then
}

func (t *tenure) deeds() (begin, end porcupine.Operation) {
	d := deed{kind: locking, worker: t.worker, holder: t.holder, token: t.token}
	if t.shared {
		d.kind = rlocking
	}
	begin = porcupine.Operation{ClientId: t.worker, Input: d, Call: t.called, Return: t.returned}
	d.kind = ending
	end = porcupine.Operation{ClientId: t.worker, Input: d, Call: t.end.from, Return: t.end.to}
	return begin, end
}

// pieces cuts the history of one lock, so that the cost of checking it grows with
// its length and not with the square: the pieces are linearizable if and only if
// the whole is.
//
// It cuts only at moments at which a writer holds for certain, because its call had
// returned and its end had not begun. Every linearization of the whole has that
// writer hold then, and nobody else, with the highest token so far: that is the
// state to go on from. So a call that is under way and will be granted is granted
// after the cut, for its end comes later still; an end that is under way came
// before the writer began. The one exception is a holding that may have ended
// before its call returned, since its process was stopped in between: within that
// time there is no cut.
func pieces(tenures []tenure, size int) [][]porcupine.Operation {
	var unsure []span
	for _, t := range tenures {
		if t.end.from < t.returned {
			unsure = append(unsure, span{t.end.from, t.returned})
		}
	}
	tenures = slices.Clone(tenures)
	slices.SortFunc(tenures, func(a, b tenure) int { return cmp.Compare(a.returned, b.returned) })
	type cut struct {
		at     int64
		writer *tenure
	}
	var cuts []cut
	last := 0
	for i := range tenures {
		t := &tenures[i]
		at := t.returned + (t.end.from-t.returned)/2
		switch {
		case t.shared, t.end.from-t.returned < 8, i-last < size:
		case len(cuts) > 0 && at-4 <= cuts[len(cuts)-1].at: // two at once, which the pieces will show
		case slices.ContainsFunc(unsure, func(s span) bool { return s.from <= at && at <= s.to }):
		default:
			cuts = append(cuts, cut{at, t})
			last = i
		}
	}
	out := make([][]porcupine.Operation, len(cuts)+1)
	for i, c := range cuts {
		s := locked{writer: c.writer.holder, exclusive: c.writer.token, any: c.writer.token}
		out[i+1] = append(out[i+1], porcupine.Operation{
			ClientId: c.writer.worker, Input: deed{kind: resuming, state: s}, Call: c.at - 2, Return: c.at - 1,
		})
	}
	// piece is the number of cuts before a moment.
	piece := func(at int64) int {
		n, _ := slices.BinarySearchFunc(cuts, at, func(c cut, at int64) int { return cmp.Compare(c.at, at) })
		return n
	}
	for i := range tenures {
		begin, end := tenures[i].deeds()
		n := piece(begin.Return)
		if n > 0 {
			begin.Call = max(begin.Call, cuts[n-1].at)
		}
		out[n] = append(out[n], begin)
		n = piece(end.Call)
		if n < len(cuts) {
			end.Return = min(end.Return, cuts[n].at)
		}
		out[n] = append(out[n], end)
	}
	return out
}

// linearizable checks the history of one lock. A piece that is not, or that could
// not be decided in time, is returned.
func linearizable(tenures []tenure, deadline time.Time) (porcupine.CheckResult, []porcupine.Operation) {
	for _, ops := range pieces(tenures, 200) {
		left := time.Until(deadline)
		if left <= 0 {
			return porcupine.Unknown, ops
		}
		if result := porcupine.CheckOperationsTimeout(model, ops, left); result != porcupine.Ok {
			return result, ops
		}
	}
	return porcupine.Ok, nil
}
