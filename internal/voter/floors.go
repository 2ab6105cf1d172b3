package voter

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

const (
	manyFloors = 1 << 16 // default number of entries in the table
	mostFloors = 1 << 20 // most entries that a clean mark may have
	pageFloors = 1 << 8  // entries allocated at a time; most nodes see few names
)

// floors remembers the highest fence given for each name that has no record (N3). A keyed
// hash maps a name to two places in a table of fixed size. The floor of a forgotten
// record is noted at both places, and the floor of a name is the lower of the two. So a
// floor is never too low. It is too high only if other names share both places. That
// costs only a higher fence, and a second round trip if that fence lies ahead of a
// claim's age.
//
// Clients must not be able to predict which names share a place: a client that could
// would raise the floors of names that it is not allowed to lock. That is why the hash
// has a key. Each node has a key of its own, so names that collide at one node do not at
// the others.
type floors struct {
	key   [2]uint64
	pages [][]uint64 // a nil page holds zeros
	size  int        // a power of two

	// least is a lower bound of all floors. It is above 0 only if a mark of a version before
	// 0.2 set it.
	least uint64
	// highest is the highest fence that the node remembers, for names with a record or
	// without.
	highest uint64

	// forgot is above every fence from before that the node does not remember (N8), and
	// forgotAt is the monotonic time at which the wall clock showed it.
	forgot   uint64
	forgotAt time.Duration
}

func newFloors(key [16]byte, size int) floors {
	if size <= 0 {
		size = manyFloors
	}
	size = 1 << bits.Len(uint(min(size, mostFloors)-1)) // rounded up to a power of two //plant:floors
	return floors{
		key:   [2]uint64{binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])},
		pages: make([][]uint64, (size+pageFloors-1)/pageFloors),
		size:  size,
	}
}

// places are the two entries of the table that belong to a name.
type places [2]uint32

func (f *floors) of(name string) places {
	h, mask := sipHash(f.key /*plant:floor-key*/, name), uint32(f.size-1)
	return places{uint32(h) & mask, uint32(h>>32) & mask}
}

// get returns the floor of the names that have these places.
func (f *floors) get(p places) uint64 {
	return max(f.least, min(f.at(p[0]), f.at(p[1])))
}

func (f *floors) at(place uint32) uint64 {
	if page := f.pages[place/pageFloors]; page != nil {
		return page[place%pageFloors]
	}
	return 0
}

func (f *floors) raise(p places, floor uint64) {
	for _, place := range p {
		f.raiseAt(place, floor) //plant:floor-places
	}
}

func (f *floors) raiseAt(place uint32, floor uint64) {
	page := &f.pages[place/pageFloors]
	if *page == nil {
		*page = make([]uint64, min(f.size, pageFloors))
	}
	(*page)[place%pageFloors] = max((*page)[place%pageFloors], floor)
}

// ahead returns by how many microseconds the highest fence that the node remembers lies
// ahead of its wall clock, or 0 if it does not.
func (f *floors) ahead(now wire.Now) int64 {
	return max(int64(f.highest)-max(now.Wall, 0), 0)
}

// SavedFloors is the table of floors as a clean mark stores it (N8).
type SavedFloors struct {
	key   [2]uint64
	pages [][]uint64
	size  int
	least uint64
}

func (f *floors) save() *SavedFloors {
	return &SavedFloors{key: f.key, pages: f.pages, size: f.size, least: f.least}
}

func (f *floors) restore(s *SavedFloors) {
	f.key, f.size, f.least = s.key, s.size, s.least
	f.pages = make([][]uint64, len(s.pages))
	f.highest = max(f.highest, s.least)
	for i, page := range s.pages {
		f.pages[i] = append([]uint64(nil), page...)
		for _, floor := range page {
			f.highest = max(f.highest, floor)
		}
	}
}

// highest returns the highest floor in the table.
func (s *SavedFloors) highest() uint64 {
	f := floors{}
	f.restore(s)
	return f.highest
}

// savedFloors is the JSON form of SavedFloors. Each floor that is not zero is written as
// two varints: the number of zeros before it, and its distance from the lowest such
// floor. A full table takes some 600 KB, and that of a node that saw few names a few
// hundred bytes.
type savedFloors struct {
	Key    []byte `json:"key"`
	Size   int    `json:"size"`
	Least  uint64 `json:"least,omitempty"`
	Lowest uint64 `json:"lowest,omitempty"`
	Floors []byte `json:"floors,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (s *SavedFloors) MarshalJSON() ([]byte, error) {
	out := savedFloors{Size: s.size, Least: s.least}
	out.Key = binary.LittleEndian.AppendUint64(out.Key, s.key[0])
	out.Key = binary.LittleEndian.AppendUint64(out.Key, s.key[1])
	for _, page := range s.pages {
		for _, floor := range page {
			if floor > 0 && (out.Lowest == 0 || floor < out.Lowest) {
				out.Lowest = floor
			}
		}
	}
	zeros := uint64(0)
	for _, page := range s.pages {
		if page == nil {
			zeros += pageFloors
		}
		for _, floor := range page {
			if floor == 0 {
				zeros++
				continue
			}
			out.Floors = binary.AppendUvarint(out.Floors, zeros)
			out.Floors = binary.AppendUvarint(out.Floors, floor-out.Lowest)
			zeros = 0
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler. It returns an error for any table that is
// not complete and consistent: a node that believed half of one would give tokens a
// second time.
func (s *SavedFloors) UnmarshalJSON(b []byte) error {
	var in savedFloors
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if len(in.Key) != 16 {
		return fmt.Errorf("floors: the key has %d bytes, want 16", len(in.Key))
	}
	if in.Size < 1 || in.Size > mostFloors || bits.OnesCount(uint(in.Size)) != 1 {
		return fmt.Errorf("floors: the table has %d entries, want a power of two up to %d", in.Size, mostFloors)
	}
	if in.Least > wire.MaxInt || in.Lowest > wire.MaxInt {
		return errors.New("floors: a floor is above the highest possible fence")
	}
	f := newFloors([16]byte(in.Key), in.Size)
	place := uint64(0)
	for rest := in.Floors; len(rest) > 0; place++ {
		zeros, n := binary.Uvarint(rest)
		if n <= 0 {
			return errors.New("floors: the list is cut off")
		}
		above, m := binary.Uvarint(rest[n:])
		if m <= 0 {
			return errors.New("floors: the list is cut off")
		}
		rest = rest[n+m:]
		if zeros >= uint64(in.Size)-place {
			return errors.New("floors: the list is longer than the table")
		}
		place += zeros
		if above > wire.MaxInt-in.Lowest {
			return errors.New("floors: a floor is above the highest possible fence")
		}
		f.raiseAt(uint32(place), in.Lowest+above)
		if place+1 == uint64(in.Size) && len(rest) > 0 {
			return errors.New("floors: the list is longer than the table")
		}
	}
	*s = SavedFloors{key: f.key, pages: f.pages, size: f.size, least: in.Least}
	return nil
}

// sipHash is SipHash-2-4, a keyed hash for tables whose keys come from untrusted clients.
// The standard library's hash/maphash does not serve, because its seeds cannot be stored
// in a mark.
func sipHash(key [2]uint64, s string) uint64 {
	v0 := key[0] ^ 0x736f6d6570736575
	v1 := key[1] ^ 0x646f72616e646f6d
	v2 := key[0] ^ 0x6c7967656e657261
	v3 := key[1] ^ 0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(s)) << 56
	for ; len(s) >= 8; s = s[8:] {
		m := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	for i := range len(s) {
		last |= uint64(s[i]) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	round()
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}
