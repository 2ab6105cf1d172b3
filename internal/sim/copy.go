package sim

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// A snapshot of a client's machine is taken while it runs, and comes to life later beside
// it. Then two processes have one instance, one inbox, and the same claims (C15).

// snapshot is the state of a client at one moment.
type snapshot struct {
	of    *simClient
	copy  *simClient
	jobs  []*job
	taken time.Duration
}

func (s *Sim) take(c *simClient) *snapshot {
	snap := &snapshot{of: c, taken: s.now, copy: &simClient{
		sim: s, id: c.id, name: c.name, user: c.user, clock: c.clock, inbox: c.inbox, instance: c.instance, paused: true,
		// Otherwise the two machines would wake in the same microsecond each time.
		slack: c.slack + 5*time.Microsecond,
	}}
	done := map[unsafe.Pointer]reflect.Value{unsafe.Pointer(c): reflect.ValueOf(snap.copy)}
	for _, list := range s.jobs {
		for _, j := range list {
			if j.client == c && !j.ended {
				other := &job{client: snap.copy, made: j.made, mode: j.mode, res: j.res, asked: j.asked, try: j.try, terms: j.terms, held: j.held, side: j.side}
				other.core, other.word = nil, 0
				done[unsafe.Pointer(j)] = reflect.ValueOf(other)
				snap.jobs = append(snap.jobs, other)
			}
		}
	}
	for p, v := range done {
		if other, ok := v.Interface().(*job); ok {
			j := (*job)(p)
			other.claim, other.use = deepCopy(j.claim, done), deepCopy(j.use, done)
		}
	}
	snap.copy.core, snap.copy.table = deepCopy(c.core, done), deepCopy(c.table, done)
	slices.SortFunc(snap.jobs, func(a, b *job) int { return int(a.made - b.made) })
	return snap
}

// revive brings a snapshot to life. Its monotonic clock stood still. Its wall clock is
// right, or if frozen is set, stood still too.
func (s *Sim) revive(snap *snapshot, frozen bool, resources int, r *rand.Rand) {
	c := snap.copy
	c.clock.stopped += s.now - snap.taken
	if frozen {
		c.clock.offset -= s.now - snap.taken
	}
	s.res.Copies++
	s.tracef("%s is there twice, as it was at %.6f s, clocks stood still: %v", c.name, snap.taken.Seconds(), frozen)
	snap.of.copied, c.copied = true, true
	s.clients = append(s.clients, c)
	first, core := s.inboxes[c.inbox], c.core
	second := c.hear(core)
	s.inboxes[c.inbox] = func(a *wire.Answer) {
		if first != nil {
			same := *a
			first(&same)
		}
		second(a)
	}
	for _, cl := range c.core.All() {
		for _, o := range s.jobs[cl.Resource()] {
			o.free = false // the copy requests what it had, and may have asked first
		}
	}
	for _, j := range snap.jobs {
		// It could not be answered in the meantime.
		j.asked = s.now
		s.jobs[j.res] = append(s.jobs[j.res], j)
		if j.held {
			j.timer = s.at(time.Duration(r.Int64N(int64(ttl))), func() { c.do(j.release) })
		}
	}
	s.at(time.Duration(r.Int64N(int64(time.Second))), func() { c.want(resources) })
	c.resume()
}

// copyLater takes snapshots and revives each after more than a lease, with clocks that
// show it. No promise may be broken: the copy has nothing any more, and takes nothing
// from the original.
func (s *Sim) copyLater(resources int) {
	r := rand.New(rand.NewPCG(s.opt.Seed, 0x636f7079))
	for range 1 + r.IntN(3) {
		s.at(time.Duration(r.Int64N(int64(faulty-3*ttl))), func() {
			c := s.clients[r.IntN(len(s.clients))]
			if c.paused || c.copied {
				return
			}
			snap := s.take(c)
			s.at(ttl+ttl/20+time.Duration(r.Int64N(int64(ttl))), func() { s.revive(snap, false, resources, r) })
		})
	}
}

// copyWithinLease revives a snapshot at once, or so soon that its locks are still valid.
// For some time both copies hold, and each may take locks from the other. That ends when
// one of them has heard an answer to the other, after a third of a lease, and the votes
// from before have expired. Then all promises must hold again.
func (s *Sim) copyWithinLease(resources int) {
	r := rand.New(rand.NewPCG(s.opt.Seed, 0x636f7079))
	// It may be overtaken.
	s.world = rough
	s.loss, s.late = 0, 0
	s.at(time.Second+time.Duration(r.Int64N(int64(faulty/2))), func() {
		c := s.clients[r.IntN(len(s.clients))]
		snap := s.take(c)
		s.at(time.Duration(r.Int64N(int64(ttl/2))), func() {
			s.lenient = s.now + ttl/3 + ttl + ttl/10
			s.revive(snap, r.IntN(2) == 0, resources, r)
		})
	})
}

// nextInstance returns another instance for a client that may have copies. It draws no
// random numbers, which would change the world.
func (c *simClient) nextInstance() uuid.UUID {
	c.sim.uuids++
	return uuid.NewSHA1(c.instance, []byte{byte(c.sim.uuids), byte(c.sim.uuids >> 8), byte(c.sim.uuids >> 16)})
}

// deepCopy copies everything that p leads to, except what done maps to copies already.
func deepCopy[T any](p *T, done map[unsafe.Pointer]reflect.Value) *T {
	to := reflect.New(reflect.TypeFor[*T]()).Elem()
	copyInto(to, reflect.ValueOf(&p).Elem(), done)
	return to.Interface().(*T)
}

func copyInto(to, from reflect.Value, done map[unsafe.Pointer]reflect.Value) {
	switch from.Kind() {
	case reflect.Pointer:
		if from.IsNil() {
			return
		}
		if known, ok := done[from.UnsafePointer()]; ok && known.Type() == from.Type() {
			to.Set(known)
			return
		}
		made := reflect.New(from.Type().Elem())
		done[from.UnsafePointer()] = made
		copyInto(made.Elem(), from.Elem(), done)
		to.Set(made)
	case reflect.Interface:
		if !from.IsNil() {
			made := reflect.New(from.Elem().Type()).Elem()
			addressable := reflect.New(from.Elem().Type()).Elem()
			addressable.Set(from.Elem())
			copyInto(made, addressable, done)
			to.Set(made)
		}
	case reflect.Struct:
		for i := range from.NumField() {
			copyInto(open(to.Field(i)), open(from.Field(i)), done)
		}
	case reflect.Array:
		for i := range from.Len() {
			copyInto(to.Index(i), from.Index(i), done)
		}
	case reflect.Slice:
		if !from.IsNil() {
			made := reflect.MakeSlice(from.Type(), from.Len(), from.Len())
			for i := range from.Len() {
				copyInto(made.Index(i), from.Index(i), done)
			}
			to.Set(made)
		}
	case reflect.Map:
		if !from.IsNil() {
			made := reflect.MakeMap(from.Type())
			for it := from.MapRange(); it.Next(); {
				value, addressable := reflect.New(from.Type().Elem()).Elem(), reflect.New(from.Type().Elem()).Elem()
				addressable.Set(it.Value())
				copyInto(value, addressable, done)
				made.SetMapIndex(it.Key(), value)
			}
			to.Set(made)
		}
	default:
		to.Set(from)
	}
}

// open gives access to a field that is not exported.
func open(v reflect.Value) reflect.Value {
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}
