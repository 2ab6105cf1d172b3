package voter

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// From the reference implementation: key 00 01 … 0f, input 00 01 … of each length.
func TestSipHash(t *testing.T) {
	key := [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	var in []byte
	for i, want := range map[int]string{
		0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 7: "37d1018bf50002ab", 8: "6224939a79f5f593", 15: "e545be4961ca29a1", 63: "724506eb4c328a95",
	} {
		in = in[:0]
		for b := range i {
			in = append(in, byte(b))
		}
		if got := fmt.Sprintf("%x", binary.LittleEndian.AppendUint64(nil, sipHash(key, string(in)))); got != want {
			t.Errorf("of %d bytes: %s, want %s", i, got, want)
		}
	}
}

// Whichever names collide, no name's floor is below what was noted of it (N3), also after
// a mark (N8).
func TestFloorsAreNeverTooLow(t *testing.T) {
	for _, size := range []int{1, 2, 64, 1000, manyFloors} {
		rng := rand.New(rand.NewPCG(uint64(size), 1))
		f := newFloors([16]byte{byte(size)}, size)
		want := map[string]uint64{}
		for range 3000 {
			name := fmt.Sprintf("r%d", rng.IntN(1000))
			floor := 1_800_000_000_000_000 + rng.Uint64N(1e9)
			f.raise(f.of(name), floor)
			want[name] = max(want[name], floor)
		}
		for _, written := range []bool{false, true} {
			if written {
				b, err := json.Marshal(f.save())
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d floors: %d bytes", f.size, len(b))
				s := new(SavedFloors)
				if err := json.Unmarshal(b, s); err != nil {
					t.Fatal(err)
				}
				f = newFloors([16]byte{9, 9}, 7)
				f.restore(s)
			}
			exact := 0
			for name, floor := range want {
				got := f.get(f.of(name))
				if got < floor {
					t.Errorf("%d floors, written %v: the floor of %s is %d, below %d", size, written, name, got, floor)
				}
				if got == floor {
					exact++
				}
			}
			if size == manyFloors && exact < len(want)*99/100 {
				t.Errorf("only %d of %d names have their own floor", exact, len(want))
			}
		}
	}
}

// Which names share places differs between nodes, and nobody else knows it.
func TestFloorsHaveAKey(t *testing.T) {
	a, b := newFloors([16]byte{1}, 0), newFloors([16]byte{2}, 0)
	same := 0
	for i := range 1000 {
		if name := fmt.Sprint(i); a.of(name) == b.of(name) {
			same++
		}
	}
	if same > 1 {
		t.Errorf("%d of 1000 names have the same places under two keys", same)
	}
}

// An incomplete table is not used: the node waits (N8).
func TestSavedFloorsAreWhole(t *testing.T) {
	f := newFloors([16]byte{1}, 1<<10)
	for i := range 500 {
		f.raise(f.of(fmt.Sprint(i)), 1_800_000_000_000_000+uint64(i)<<20)
	}
	good, err := json.Marshal(f.save())
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*savedFloors)) string {
		var s savedFloors
		if err := json.Unmarshal(good, &s); err != nil {
			t.Fatal(err)
		}
		f(&s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for what, bad := range map[string]string{
		"no key":             change(func(s *savedFloors) { s.Key = nil }),
		"half a key":         change(func(s *savedFloors) { s.Key = s.Key[:8] }),
		"no size":            change(func(s *savedFloors) { s.Size = 0 }),
		"a negative size":    change(func(s *savedFloors) { s.Size = -8 }),
		"an odd size":        change(func(s *savedFloors) { s.Size = 1000 }),
		"a giant size":       change(func(s *savedFloors) { s.Size = 1 << 30 }),
		"too small a table":  change(func(s *savedFloors) { s.Size = 16 }),
		"half a number":      change(func(s *savedFloors) { s.Floors = s.Floors[:len(s.Floors)-1] }),
		"no floor at a gap":  change(func(s *savedFloors) { s.Floors = append(s.Floors, 1) }),
		"a gap without end":  change(func(s *savedFloors) { s.Floors = binary.AppendUvarint(s.Floors, 1<<63) }),
		"a floor too high":   change(func(s *savedFloors) { s.Lowest = wire.MaxInt }),
		"a least too high":   change(func(s *savedFloors) { s.Least = 1 << 60 }),
		"what is no object":  "[]",
		"what is no base 64": strings.Replace(string(good), `"key":"`, `"key":"*`, 1),
	} {
		if err := json.Unmarshal([]byte(bad), new(SavedFloors)); err == nil {
			t.Errorf("%s is read", what)
		}
	}
}

func (c *crowd) claim(name string, seq uint64, at int64) uint64 {
	c.node.Handle(c.now, &wire.Request{
		Verb: wire.Acquire, Client: "orders", Resource: name, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq}, SentAt: seq,
		Mode: quorum.Exclusive, At: at, TTL: 30 * time.Second, Digest: c.node.digest,
	}, "_INBOX.orders", &c.out)
	defer c.out.Reset()
	fence := c.out.Answers[0].Answer.Fence
	c.node.Handle(c.now, &wire.Request{
		Verb: wire.Release, Client: "orders", Resource: name, Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: seq},
	}, "", &c.out)
	return fence
}

// A mark of a version with one floor for all names counts for all names.
func TestOneFloorOfAnOldMark(t *testing.T) {
	c := newCrowd(10)
	old := uint64(c.now.Wall + 1000)
	saved := new(Saved)
	if err := json.Unmarshal(fmt.Appendf(nil, `{"floor":%d,"floors":{"72":%d}}`, old, old), saved); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"by the old mark", "by the new one"} {
		c.node = New(c.node.cfg, c.now, saved, 0)
		c.node.probed, c.node.heardAt, c.node.heardWall = true, c.now.Mono, c.now.Wall
		if fence := c.claim(name, 1, c.now.Wall); fence != old+1 {
			t.Errorf("%s: a fence %d above the old one's floor, want 1", name, int64(fence-old))
		}
		saved, _ = c.node.Save(c.now)
		b, err := json.Marshal(saved)
		if err != nil {
			t.Fatal(err)
		}
		if saved.Floor < old+1 {
			t.Errorf("a version that knows one floor would take %d, below the %d that was given", saved.Floor, old+1)
		}
		saved = new(Saved)
		if err := json.Unmarshal(b, saved); err != nil {
			t.Fatal(err)
		}
	}
}

// The clock of a node that forgot was ahead at the end of its wait, and was corrected
// (N8). Tokens are above all that it can have given, and no further ahead.
func TestForgottenByAWrongClock(t *testing.T) {
	for _, wrong := range []time.Duration{0, 20 * time.Second, 2 * time.Hour} {
		c := newCrowd(10)
		right := c.now.Wall
		c.now.Wall += wrong.Microseconds()
		c.node.raiseFloors(c.now) // the end of the wait
		c.now.Mono += time.Minute
		c.now.Wall = right + time.Minute.Microseconds()
		c.node.heardAt, c.node.heardWall = c.now.Mono, c.now.Wall
		// From a clock that is behind, or made earlier.
		fence := int64(c.claim("r", 1, right-1_000_000))
		if fence <= right {
			t.Errorf("%v: a fence %v below what may have been given", wrong, time.Duration(right-fence)*time.Microsecond)
		}
		if most := right + min(wrong, c.cfg.MaxTTL).Microseconds() + 1; fence > most {
			t.Errorf("%v: a fence %v ahead", wrong, time.Duration(fence-most)*time.Microsecond)
		}
		// The same applies after a mark.
		saved, _ := c.node.Save(c.now)
		if got := int64(saved.Forgot); got < right || got > right+min(wrong, c.cfg.MaxTTL).Microseconds() {
			t.Errorf("%v: the mark has %v", wrong, time.Duration(got-right)*time.Microsecond)
		}
	}
}

// The fences that a node gave while its clock was ahead remain, and it says so.
func TestAheadOfItsClock(t *testing.T) {
	c := newCrowd(10)
	if got := c.node.Ahead(c.now); got != 0 {
		t.Errorf("a new node is %v ahead", got)
	}
	c.claim("r", 1, c.now.Wall+time.Second.Microseconds())
	if got := c.node.Ahead(c.now); got != time.Second {
		t.Errorf("%v ahead, want a second", got)
	}
	c.now.Wall -= time.Hour.Microseconds()
	if got := c.node.Ahead(c.now); got != time.Hour+time.Second {
		t.Errorf("%v ahead, want an hour and a second", got)
	}
	saved, _ := c.node.Save(c.now)
	c.node = New(c.node.cfg, c.now, saved, 0)
	if got := c.node.Ahead(c.now); got != time.Hour+time.Second {
		t.Errorf("after a clean stop %v ahead, want an hour and a second", got)
	}
	c.now.Wall = 0
	if got := c.node.Ahead(c.now); got != mostAhead {
		t.Errorf("%v ahead, want the most that can be said", got)
	}
}
