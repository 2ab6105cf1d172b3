//go:build unix

package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// violation is something that must never be.
type violation struct{ kind, text string }

const (
	twoByClock     = "two holders at once, by the clock"
	twoByStore     = "two holders at once, by the store's record"
	lostUpdate     = "lost update"
	unseenWrite    = "write confirmed and not recorded"
	unexplained    = "holder refused that was not told"
	tokenFell      = "token fell at the store"
	tokenTwice     = "token of two writers"
	valueChanged   = "value changed under a reader"
	lateWork       = "unlocked a lock that was lost"
	noEnd          = "holding without an end"
	stranger       = "store used by a stranger"
	notLinear      = "history not linearizable"
	undecided      = "history not checked in time"
	brokenProcess  = "process broken"
	noProgress     = "no progress after healing"
	claimsRemained = "claims left at a node"
)

// refusals counts what the store refused of one kind, by why its holder did not
// know better.
type refusals struct {
	told    int // it did: it had been told of its loss
	stopped int // its process was stopped
	starved int // its process did not run, though nobody had stopped it
}

func (r refusals) all() int { return r.told + r.stopped + r.starved }

// figures are what the record amounts to.
type figures struct {
	exclusive, shared int // locks granted
	unlocked          int
	lost              int // holders told of their loss
	killed            int // holders that died with their lock
	written, read     int // accesses that the store took
	writes, reads     refusals
	operations        int // in the histories given to porcupine
	checked           time.Duration
	silence           time.Duration // longest time without a grant
	handed            int           // lost locks that another had next, while the process of the loser ran
	notice            time.Duration // shortest time, of those, from the loser being told to the next grant
	tardiest          time.Duration // longest time for which a client did not run unless stopped
}

// check looks for violations in a record. illegal is a piece of history that is
// not linearizable, if there is one.
func (r *record) check() (found []violation, f figures, illegal []porcupine.Operation) {
	report := func(kind, format string, args ...any) {
		found = append(found, violation{kind, fmt.Sprintf(format, args...)})
	}
	byID := map[string]*holding{}
	ends := map[string]span{}
	byName := map[string][]*holding{}
	for _, h := range r.holdings {
		byID[h.id] = h
		end, ok := r.ending(h)
		if !ok {
			report(noEnd, "neither unlocked nor told of its loss, and its process was not killed: %s", r.say(h))
			continue
		}
		ends[h.id] = end
		byName[h.name] = append(byName[h.name], h)
		if h.told != 0 && h.released != 0 && !h.lost {
			report(lateWork, "Unlock returned nil, though the lock's context had ended by loss: %s", r.say(h))
		}
	}
	r.count(&f, ends)
	r.checkAccesses(byID, ends, &f, report)

	began := time.Now()
	deadline := began.Add(2 * time.Minute)
	for _, name := range sortedKeys(byName) {
		holdings := byName[name]
		slices.SortStableFunc(holdings, func(a, b *holding) int { return cmp.Compare(a.returned, b.returned) })
		var sure []tenancy
		var tenures []tenure
		writers := map[uint64]*holding{}
		for i, h := range holdings {
			end := ends[h.id]
			if end.from > h.returned {
				sure = append(sure, tenancy{h, h.returned, end.from})
			}
			tenures = append(tenures, tenure{h.slot, i + 1, h.shared, h.token, h.called, h.returned, end})
			if h.shared {
				continue
			}
			if other := writers[h.token]; other != nil {
				report(tokenTwice, "%s and %s", r.say(other), r.say(h))
			}
			writers[h.token] = h
		}
		r.notices(holdings, &f)
		for _, two := range conflicts(sure) {
			report(twoByClock, "%s, for certain until %s; %s", r.say(two[0].h), r.moment(two[0].to), r.say(two[1].h))
		}
		f.operations += 2 * len(tenures)
		switch result, ops := linearizable(tenures, deadline); result {
		case porcupine.Illegal:
			report(notLinear, "of %s, amid %d operations", name, len(ops))
			illegal = ops
		case porcupine.Unknown:
			report(undecided, "of %s, %d operations", name, 2*len(tenures))
		}
	}
	f.checked = time.Since(began)
	return found, f, illegal
}

// say describes a holding for a person.
func (r *record) say(h *holding) string {
	mode, end := "writer", "never ended"
	if h.shared {
		mode = "reader"
	}
	if h.rude {
		mode = "rude " + mode
	}
	switch l := r.lives[h.process]; {
	case h.told != 0:
		end = "told of its loss " + r.moment(h.told)
	case h.lost:
		end = "told of its loss by Unlock " + r.moment(h.released)
	case h.released != 0:
		end = "unlocked " + r.moment(h.releasing)
	case l.killed.from != 0:
		end = "killed " + r.moment(l.killed.from)
	}
	return fmt.Sprintf("%s %s of %s (token %d, granted %s, %s)", mode, h.id, h.name, h.token, r.moment(h.returned), end)
}

// moment is a time for a person: since the schedule began, as in its log.
func (r *record) moment(at int64) string { return fmt.Sprintf("%+.3fs", float64(at-r.zero)/1e9) }

func (r *record) count(f *figures, ends map[string]span) {
	var grants []int64
	for _, h := range r.holdings {
		grants = append(grants, h.returned)
		if h.shared {
			f.shared++
		} else {
			f.exclusive++
		}
		switch {
		case h.told != 0 || h.lost:
			f.lost++
		case h.released != 0:
			f.unlocked++
		default:
			f.killed++
		}
	}
	slices.Sort(grants)
	for i := 1; i < len(grants); i++ {
		f.silence = max(f.silence, time.Duration(grants[i]-grants[i-1]))
	}
	for _, l := range r.lives {
		for _, g := range l.gaps {
			if !l.stopped(g.from, g.to) {
				f.tardiest = max(f.tardiest, time.Duration(g.to-g.from))
			}
		}
	}
}

// notices finds how long before the next grant those were told who lost a lock
// while their process ran. The protocol's promise is that this is never negative;
// slop is what the record may be wrong by. The holdings are of one lock, in the
// order of their grants.
func (r *record) notices(holdings []*holding, f *figures) {
	for i, h := range holdings {
		if h.told == 0 || r.lives[h.process].unheard(h.told) != h.told-slop.Nanoseconds() {
			continue
		}
		for _, next := range holdings[i+1:] {
			if next.shared && h.shared {
				continue
			}
			notice := time.Duration(next.returned - h.told)
			if f.handed == 0 || notice < f.notice {
				f.notice = notice
			}
			f.handed++
			break
		}
	}
}

// tenancy is for how long a holder held, by one clock or another.
type tenancy struct {
	h        *holding
	from, to int64
}

// conflicts lists holders that held while another did and not both were readers,
// each with one that it conflicts with.
func conflicts(all []tenancy) (found [][2]tenancy) {
	slices.SortStableFunc(all, func(a, b tenancy) int { return cmp.Compare(a.from, b.from) })
	var writer, reader tenancy // of those before, that which holds longest
	for _, t := range all {
		switch {
		case writer.h != nil && writer.to > t.from:
			found = append(found, [2]tenancy{writer, t})
		case reader.h != nil && !t.h.shared && reader.to > t.from:
			found = append(found, [2]tenancy{reader, t})
		}
		if longest := &reader; t.h.shared {
			if longest.h == nil || t.to > longest.to {
				*longest = t
			}
		} else if writer.h == nil || t.to > writer.to {
			writer = t
		}
	}
	return found
}

// checkAccesses goes through the store's record.
func (r *record) checkAccesses(byID map[string]*holding, ends map[string]span, f *figures, report func(kind, format string, args ...any)) {
	type resource struct {
		value   int
		token   uint64 // highest of a writer
		holders map[string]*tenancy
	}
	resources := map[string]*resource{}
	seen := map[string]int{} // what readers saw
	wrote := map[string]int{}
	for i, a := range r.accesses {
		h := byID[a.holder]
		if h == nil || h.name != a.name || h.token != a.token || h.shared != a.shared || a.at < h.called {
			report(stranger, "%+v", a)
			continue
		}
		end, ok := ends[h.id]
		if !ok {
			continue
		}
		s := resources[a.name]
		if s == nil {
			s = &resource{holders: map[string]*tenancy{}}
			resources[a.name] = s
		}
		// By the store's order a holder holds from the first access that was taken to
		// the last that it made while it held for certain, taken or not: a refusal is no
		// proof that it had ceased to hold. Half steps make an access touch itself only.
		t := s.holders[h.id]
		if t == nil && !a.refused {
			t = &tenancy{h, int64(2 * i), int64(2*i + 1)}
			s.holders[h.id] = t
		} else if t != nil && a.at < end.from {
			t.to = int64(2*i + 1)
		}
		if a.refused {
			r.explain(a, h, end, f, report)
			continue
		}
		if !a.shared {
			if a.token < s.token {
				report(tokenFell, "of %s from %d to %d: %s", a.name, s.token, a.token, r.say(h))
			}
			s.token = max(s.token, a.token)
		}
		if !a.write {
			f.read++
			if before, again := seen[h.id]; a.shared && again && before != a.value {
				report(valueChanged, "from %d to %d: %s", before, a.value, r.say(h))
			}
			seen[h.id] = a.value
			continue
		}
		f.written++
		if a.value != s.value+1 {
			report(lostUpdate, "%s was %d and became %d: %s", a.name, s.value, a.value, r.say(h))
		}
		s.value = a.value
		wrote[h.id] = a.value
	}
	for _, name := range sortedKeys(resources) {
		var all []tenancy
		for _, id := range sortedKeys(resources[name].holders) {
			all = append(all, *resources[name].holders[id])
		}
		for _, two := range conflicts(all) {
			report(twoByStore, "%s and %s", r.say(two[0].h), r.say(two[1].h))
		}
	}
	for _, h := range r.holdings {
		if h.wrote != 0 && wrote[h.id] != h.wrote {
			report(unseenWrite, "%d by %s", h.wrote, r.say(h))
		}
	}
}

// explain finds why a holder came to the store with a token from the past.
func (r *record) explain(a access, h *holding, end span, f *figures, report func(kind, format string, args ...any)) {
	l := r.lives[h.process]
	count := &f.reads
	if a.write {
		count = &f.writes
	}
	knew := end.to
	if h.released != 0 && !h.lost {
		knew = end.from
	}
	switch {
	case a.at < end.from:
		report(unexplained, "refused %s, for certain a holder until %s: %s", r.moment(a.at), r.moment(end.from), r.say(h))
	case a.at >= knew && (h.told != 0 || h.lost):
		count.told++
	case l.stopped(h.called, end.to):
		count.stopped++
	default:
		count.starved++
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
