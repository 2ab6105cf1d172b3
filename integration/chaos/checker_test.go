//go:build unix

package chaos

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// ms is a moment of a record that is made up.
func ms(n int64) int64 { return n * 1e6 }

// sample is a record without fault, in milliseconds: w1 wrote, then w2 and w3 while
// their processes were stopped or told, two readers, w4 was killed, and w5 wrote.
func sample() *record {
	hold := func(id, process string, slot int, token uint64, called, returned, releasing, released int64) *holding {
		return &holding{
			id: id, process: process, slot: slot, name: "x", token: token,
			called: ms(called), returned: ms(returned), releasing: ms(releasing), released: ms(released),
		}
	}
	r := &record{
		lives: map[string]*life{
			"p": {alive: ms(90_000)},
			"q": {alive: ms(90_000), gaps: []span{{ms(2300), ms(5000)}}, stops: []span{{ms(2301), ms(4999)}}},
			"k": {alive: ms(9000), killed: span{ms(9010), ms(9020)}},
		},
		holdings: []*holding{
			hold("w1", "p", 0, 10, 900, 1000, 2000, 2001),
			hold("w2", "q", 1, 20, 1000, 2100, 5020, 5021), // stopped, refused, then told
			hold("w3", "p", 0, 30, 2500, 4000, 6500, 6501), // told, and rude
			hold("r1", "p", 2, 41, 6000, 7000, 7200, 7201),
			hold("r2", "q", 3, 40, 6000, 7010, 7190, 7191),
			hold("w4", "k", 4, 50, 7000, 8000, 0, 0),
			hold("w5", "p", 5, 60, 8000, 10_000, 10_100, 10_101),
		},
	}
	r.holding("w1").wrote = 1
	r.holding("w5").wrote = 3
	w2, w3 := r.holding("w2"), r.holding("w3")
	w2.lost, w2.told = true, ms(5010)
	w3.lost, w3.told, w3.rude = true, ms(6000), true
	r.holding("r1").shared, r.holding("r2").shared = true, true
	use := func(at int64, id string, write bool, value int, refused bool) {
		h := r.holding(id)
		r.accesses = append(r.accesses, access{ms(at), "x", id, h.token, h.shared, write, value, refused})
	}
	use(1100, "w1", false, 0, false)
	use(1200, "w1", true, 1, false)
	use(2200, "w2", false, 1, false)
	use(4100, "w3", false, 1, false)
	use(5005, "w2", true, 2, true) // it went on, and was told only then
	use(6400, "w3", true, 2, false)
	use(7005, "r1", false, 2, false)
	use(7015, "r2", false, 2, false)
	use(7100, "r1", false, 2, false)
	use(8001, "w4", false, 2, false)
	use(10_001, "w5", false, 2, false)
	use(10_002, "w3", true, 3, true) // long after it was told
	use(10_003, "w5", true, 3, false)
	return r
}

func (r *record) holding(id string) *holding {
	return r.holdings[slices.IndexFunc(r.holdings, func(h *holding) bool { return h.id == id })]
}

// at is the access of a holder at a moment.
func (r *record) at(n int64) *access {
	return &r.accesses[slices.IndexFunc(r.accesses, func(a access) bool { return a.at == ms(n) })]
}

// The record without fault passes, and its figures are right; each doctored one is
// found out, by the check that is there for it.
func TestCheck(t *testing.T) {
	t.Parallel()
	found, f, _ := sample().check()
	if len(found) != 0 {
		t.Errorf("in a record without fault: %v", found)
	}
	f.checked, f.silence, f.tardiest = 0, 0, 0
	if want := (figures{
		exclusive: 5, shared: 2, unlocked: 4, lost: 2, killed: 1, written: 3, read: 8,
		writes: refusals{told: 1, stopped: 1}, operations: 14, handed: 1, notice: time.Second,
	}); f != want {
		t.Errorf("the figures are %+v, want %+v", f, want)
	}

	for _, c := range []struct {
		name   string
		doctor func(r *record)
		want   []string // kinds, sorted
	}{
		{"two writers hold at once", func(r *record) {
			r.holding("w1").releasing, r.holding("w1").released = ms(2150), ms(2151)
		}, []string{twoByClock, notLinear}},
		{"a writer beside a reader", func(r *record) {
			r.holding("r1").releasing, r.holding("r1").released = ms(8100), ms(8101)
		}, []string{twoByClock, notLinear}},
		{"a reader beside a writer", func(r *record) {
			h := r.holding("w3")
			h.lost, h.told, h.releasing, h.released = false, 0, ms(7008), ms(7009)
		}, []string{twoByClock, notLinear}},
		{"a process that ran is told too late", func(r *record) {
			r.lives["q"].gaps = nil
		}, []string{twoByClock, notLinear}},
		{"a process that ran is refused, and told later", func(r *record) {
			h := r.holding("w2")
			h.told, h.releasing, h.released = ms(5200), ms(5220), ms(5221)
		}, []string{unexplained, twoByClock, twoByStore, notLinear}},
		{"a process was not stopped for long enough", func(r *record) {
			r.lives["q"].gaps[0].from = ms(4500)
		}, []string{twoByClock, notLinear}},
		{"a killed process had just shown that it lived", func(r *record) {
			r.lives["k"].killed = span{ms(10_090), ms(10_095)}
			r.lives["k"].alive = ms(10_080)
		}, []string{twoByClock, notLinear}},
		{"an access before the lock was asked for", func(r *record) {
			r.holding("r2").called, r.holding("r2").returned = ms(7016), ms(7017)
		}, []string{stranger}},
		{"a holder interleaves at the store", func(r *record) {
			a := *r.at(1200)
			a.at = ms(1999)
			r.accesses = slices.DeleteFunc(r.accesses, func(b access) bool { return b.at == ms(1200) })
			r.accesses = slices.Insert(r.accesses, 2, a) // after w2's first
		}, []string{tokenFell, twoByStore}},
		{"an update is lost", func(r *record) { r.at(6400).value = 1 }, []string{lostUpdate, lostUpdate}},
		{"a polite holder is refused", func(r *record) { r.at(10_003).refused = true }, []string{unexplained, unseenWrite}},
		{"a reader is refused", func(r *record) { r.at(7100).refused = true }, []string{unexplained}},
		{"the token falls at the store", func(r *record) {
			r.holding("w5").token, r.at(10_001).token, r.at(10_003).token = 29, 29, 29
		}, []string{notLinear, tokenFell, tokenFell}},
		{"two writers have one token", func(r *record) {
			r.holding("w5").token, r.at(10_001).token, r.at(10_003).token = 50, 50, 50
		}, []string{notLinear, tokenTwice}},
		{"a reader has a token of the past", func(r *record) {
			r.holding("r2").token, r.at(7015).token = 29, 29
		}, []string{notLinear}},
		{"the value changes under a reader", func(r *record) { r.at(7100).value = 3 }, []string{valueChanged}},
		{"a confirmed write is not there", func(r *record) { r.holding("w4").wrote = 3 }, []string{unseenWrite}},
		{"a lost lock is unlocked", func(r *record) {
			r.holding("w2").lost = false
		}, []string{lateWork, unexplained, twoByClock, twoByStore, notLinear}},
		{"a lock never ends", func(r *record) {
			h := r.holding("w5")
			h.released, h.wrote = 0, 0
		}, []string{noEnd}},
		{"nobody's access", func(r *record) { r.at(7015).holder = "nobody" }, []string{stranger}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := sample()
			c.doctor(r)
			found, _, _ := r.check()
			var kinds []string
			for _, v := range found {
				kinds = append(kinds, v.kind)
			}
			slices.Sort(kinds)
			slices.Sort(c.want)
			if !slices.Equal(kinds, c.want) {
				t.Errorf("found %q, want %q: %q", kinds, c.want, found)
			}
		})
	}
}

// What a process may have missed goes back over the times in which it did not run.
func TestUnheard(t *testing.T) {
	t.Parallel()
	l := &life{gaps: []span{{ms(1000), ms(3000)}, {ms(3010), ms(3100)}, {ms(4000), ms(4100)}}}
	s := slop.Milliseconds()
	for _, c := range []struct{ end, want int64 }{
		{900, 900 - s},
		{1001, 1000 - s}, // said in the same moment in which it went on
		{3001, 1000 - s},
		{3100 + s, 1000 - s},
		{3100 + s + 1, 3100 + 1},
		{3900, 3900 - s},
		{4110, 4000 - s},
	} {
		if got := l.unheard(ms(c.end)); got != ms(c.want) {
			t.Errorf("told at %d ms it may have missed it from %v on, want %d ms", c.end, time.Duration(got), c.want)
		}
	}
	dead := &life{alive: ms(1000), killed: span{ms(1040), ms(1050)}}
	if got := dead.unheard(ms(1040)); got != ms(1000-s) {
		t.Errorf("killed at 1040 ms, it may have missed it from %v on", time.Duration(got))
	}
}

// A history in pieces is what it is as a whole.
func TestPieces(t *testing.T) {
	t.Parallel()
	verdicts := map[porcupine.CheckResult]int{}
	cut := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 9))
		tenures := invent(r, 12)
		if r.IntN(3) > 0 { // something wrong
			switch i, j := r.IntN(len(tenures)), r.IntN(len(tenures)); r.IntN(3) {
			case 0:
				tenures[i].token, tenures[j].token = tenures[j].token, tenures[i].token
			case 1:
				tenures[i].end.from += r.Int64N(2000)
				tenures[i].end.to = max(tenures[i].end.to, tenures[i].end.from+1)
			case 2:
				tenures[i].returned = max(tenures[i].called+1, tenures[i].returned-r.Int64N(2000))
			}
		}
		var whole []porcupine.Operation
		for i := range tenures {
			begin, end := tenures[i].deeds()
			whole = append(whole, begin, end)
		}
		want := porcupine.CheckOperationsTimeout(model, whole, patience)
		verdicts[want]++
		parts := pieces(tenures, 2)
		cut += len(parts) - 1
		got := porcupine.Ok
		for _, ops := range parts {
			if result := porcupine.CheckOperationsTimeout(model, ops, patience); result != porcupine.Ok {
				got = result
			}
		}
		if got != want {
			t.Fatalf("seed %d: in %d pieces it is %s, as a whole %s: %+v", seed, len(parts), got, want, tenures)
		}
	}
	t.Logf("%v, %d cuts", verdicts, cut)
	if verdicts[porcupine.Ok] < 200 || verdicts[porcupine.Illegal] < 200 || cut < 1000 {
		t.Errorf("%v with %d cuts: that shows little", verdicts, cut)
	}
}

// invent makes a legal history of one lock: its truth first, and then what the
// holders saw of it, earlier and later.
func invent(r *rand.Rand, n int) []tenure {
	var out []tenure
	at, token := int64(10_000), uint64(1)
	for len(out) < n {
		token += 2
		at += 20 + r.Int64N(500)
		together, shared := 1, r.IntN(3) == 0
		if shared {
			together += r.IntN(3)
		}
		last := at
		for range together {
			began := at + r.Int64N(20)
			ended := began + 100 + r.Int64N(1000)
			t := tenure{
				worker: len(out), holder: len(out) + 1, shared: shared, token: token,
				called: began - r.Int64N(3000), returned: began + 1 + r.Int64N(200),
			}
			t.end = span{ended - r.Int64N(400), ended + 1 + r.Int64N(600)}
			t.end.from = max(t.end.from, t.called)
			out = append(out, t)
			last = max(last, ended)
		}
		at = last
	}
	slices.SortStableFunc(out, func(a, b tenure) int { return cmp.Compare(a.returned, b.returned) })
	return out
}

// The fence lets in who may be the newest, and nobody of whom it knows better.
func TestFence(t *testing.T) {
	t.Parallel()
	var f fence
	for i, c := range []struct {
		holder string
		token  uint64
		shared bool
		ok     bool
	}{
		{"w1", 10, false, true},
		{"w1", 10, false, true},
		{"w2", 10, false, false}, // the token of another
		{"r1", 10, true, true},   // as high as the writer before
		{"w1", 10, false, false}, // who is over, since there is a reader
		{"r2", 12, true, true},
		{"r1", 10, true, true}, // with a lower token than the other reader
		{"w3", 12, false, false},
		{"w4", 13, false, true},
		{"r2", 12, true, false},
		{"w3", 12, false, false},
		{"r3", 13, true, true},
	} {
		if ok := f.admit(&request{Name: "x", Holder: c.holder, Token: c.token, Shared: c.shared}); ok != c.ok {
			t.Errorf("access %d, %+v: %v", i, c, ok)
		}
	}
}
