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
	manyFloors = 1 << 16 // numbers in the table of floors, unless Config says otherwise
	mostFloors = 1 << 20 // that a mark may have
	pageFloors = 1 << 8  // numbers that are made at a time: most nodes see few names
)

// floors remembers the fences of names without a record (N3). Each name has two of a
// fixed number of places, by a hash; what is remembered of it is noted at both, and
// the lower of the two is its floor. So a floor is never too low, and too high only
// where other names came to both places, which costs no more than a higher fence: a
// second round if it lies ahead of a claim's age.
//
// Which names share a place must be unknown to clients: who knew it could raise the
// floors of names that he may not lock. So the hash has a key. No other node has the
// same one: names that meet here are strangers there.
type floors struct {
	key   [2]uint64
	pages [][]uint64 // nil: of zeros
	size  int        // a power of two

	least   uint64 // no floor is below it; only a mark of an earlier version has one
	highest uint64 // of all fences that the node remembers, also those of records

	forgot   uint64        // above every fence of earlier lives that it does not remember (N8)
	forgotAt time.Duration // when its clock showed that, by the other one
}

func newFloors(key [16]byte, size int) floors {
	if size <= 0 {
		size = manyFloors
	}
	size = 1 << bits.Len(uint(min(size, mostFloors)-1)) // rounded up //plant:floors
	return floors{
		key:   [2]uint64{binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])},
		pages: make([][]uint64, (size+pageFloors-1)/pageFloors),
		size:  size,
	}
}

// places are where a name is in the table.
type places [2]uint32

func (f *floors) of(name string) places {
	h, mask := sipHash(f.key /*plant:floor-key*/, name), uint32(f.size-1)
	return places{uint32(h) & mask, uint32(h>>32) & mask}
}

// get is the floor of all names with these places.
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

// ahead is how far the highest fence that the node remembers lies ahead of its clock,
// in microseconds.
func (f *floors) ahead(now wire.Now) int64 {
	return max(int64(f.highest)-max(now.Wall, 0), 0)
}

// SavedFloors is the table in a clean mark (N8).
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

// highest is the highest floor in the table.
func (s *SavedFloors) highest() uint64 {
	f := floors{}
	f.restore(s)
	return f.highest
}

// savedFloors is SavedFloors in JSON. Floors are written as what each lies above the
// lowest that is not zero, behind the number of zeros before it, both as varints: a
// full table is some 600 KB, and that of a node that saw few names a few hundred bytes.
type savedFloors struct {
	Key    []byte `json:"key"`
	Size   int    `json:"size"`
	Least  uint64 `json:"least,omitempty"`
	Lowest uint64 `json:"lowest,omitempty"`
	Floors []byte `json:"floors,omitempty"`
}

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

// UnmarshalJSON reads a table, or fails: a node that believes half of one would give
// tokens a second time.
func (s *SavedFloors) UnmarshalJSON(b []byte) error {
	var in savedFloors
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if len(in.Key) != 16 {
		return fmt.Errorf("floors: the key has %d bytes, want 16", len(in.Key))
	}
	if in.Size < 1 || in.Size > mostFloors || bits.OnesCount(uint(in.Size)) != 1 {
		return fmt.Errorf("floors: there are %d, want a power of two up to %d", in.Size, mostFloors)
	}
	if in.Least > wire.MaxInt || in.Lowest > wire.MaxInt {
		return errors.New("floors: one is above all fences")
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
			return errors.New("floors: one is above all fences")
		}
		f.raiseAt(uint32(place), in.Lowest+above)
		if place+1 == uint64(in.Size) && len(rest) > 0 {
			return errors.New("floors: the list is longer than the table")
		}
	}
	*s = SavedFloors{key: f.key, pages: f.pages, size: f.size, least: in.Least}
	return nil
}

// sipHash is SipHash-2-4, which is made for tables whose keys come from strangers.
// What the standard library has for them, hash/maphash, has seeds that cannot be kept
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
