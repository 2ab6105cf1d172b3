package sim

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/voter"
)

// simDir is a state directory. It stands for what the driver does with a real one: a mark
// is valid only where it was written (N8).
type simDir struct {
	sim  *Sim
	disk []byte // the clean mark; nil: none
	// written tells where, and in which directory, the mark was written. A copy contains the
	// mark but is another place.
	written string
	place   int
	digest  string
	longest time.Duration
	runs    []uuid.UUID
	user    *simNode // the node that has it locked
}

func (s *Sim) newDir() *simDir {
	s.dirs++
	return &simDir{sim: s, place: s.dirs}
}

// copied returns a copy, such as cp -a makes.
func (d *simDir) copied() *simDir {
	c := *d
	c.user = nil
	d.sim.dirs++
	c.place = d.sim.dirs
	c.runs = slices.Clone(d.runs)
	return &c
}

// take does what a node does with its directory when it starts.
func (d *simDir) take(nd *simNode, run uuid.UUID) (saved *voter.Saved, longest time.Duration, past []uuid.UUID) {
	if d == nil {
		return nil, nd.previous, nil
	}
	d.user = nd
	here := fmt.Sprintf("%s in %d", nd.host(), d.place)
	if d.disk != nil && d.written == here && d.digest == nd.cfg.Digest() {
		saved = new(voter.Saved)
		if err := json.Unmarshal(d.disk, saved); err != nil {
			d.sim.fail("clean mark: %v", err)
		}
	}
	longest = max(d.longest, nd.previous)
	d.disk = nil // it serves once
	d.longest = max(d.longest, nd.cfg.MaxTTL)
	if d.written == here {
		past = slices.Clone(d.runs)
	}
	d.runs, d.written = append(past, run), here
	return saved, longest, past
}

// save writes a clean mark.
func (d *simDir) save(nd *simNode, saved *voter.Saved) {
	d.disk, _ = json.Marshal(saved)
	d.longest, d.digest = nd.cfg.MaxTTL, nd.cfg.Digest()
	d.written = fmt.Sprintf("%s in %d", nd.host(), d.place)
}

// newTwin returns another machine under the name of nd.
func (s *Sim) newTwin(nd *simNode, dir *simDir) *simNode {
	s.twins++
	s.res.Twins++
	twin := &simNode{
		sim: s, name: nd.name, cfg: s.cluster, clock: s.newClock(2 * time.Second), inbox: fmt.Sprintf("%s'%d", nd.inbox, s.twins),
		claims: nd.claims, queue: nd.queue, twin: fmt.Sprintf("'%d", s.twins), dir: dir, previous: nd.previous,
	}
	s.nodes = append(s.nodes, twin)
	return twin
}

// names is a world in which machines take each other's names. Nodes are cut off, asleep,
// stopped or killed. Others replace them meanwhile, with directories of their own, with
// copies, or with none. These end in turn, and the first ones come back. All orders occur
// that the bounds in docs/protocol.md allow.
type names struct {
	sim   *Sim
	keeps bool // the first machines have state directories
	// With oneWay, of two machines of one name one does not hear the other: if it is 1, the
	// first one, and if 2, the second one.
	oneWay int
}

// newNames chooses such a world and returns how many nodes it has.
func (s *Sim) newNames() int {
	s.names = &names{sim: s, keeps: s.rng.IntN(4) > 0}
	if s.rng.IntN(4) == 0 {
		s.names.oneWay = 1 + s.rng.IntN(2)
	}
	return [...]int{1, 1, 2, 3, 3, 3, 4, 5}[s.rng.IntN(8)]
}

// settle limits the other faults of the world, to leave room for these.
func (m *names) settle() {
	s := m.sim
	s.world = rough
	s.loss = [...]float64{0, 0, 0.01, 0.1}[s.rng.IntN(4)]
	s.late = [...]float64{0, 0, 0.01}[s.rng.IntN(3)]
}

// How a node goes away.
const (
	stays = iota
	paused
	asleep
	stopped
	killed
	cutOff
	ways
)

// leave takes nd away and returns what brings it back.
func (m *names) leave(nd *simNode, way int) (back func()) {
	s := m.sim
	if nd.core == nil {
		return nd.start
	}
	s.tracef("%s leaves: %s", nd.host(), [...]string{"stays", "paused", "asleep", "stopped", "killed", "cut off"}[way])
	switch way {
	case paused, asleep:
		if nd.paused {
			break
		}
		s.res.Pauses++
		nd.paused = true
		if way == asleep {
			nd.clock.asleep = s.now
		}
		return nd.resume
	case stopped, killed:
		nd.stop(way == stopped)
		return nd.start
	case cutOff:
		s.res.Cuts++
		in, out := s.rng.IntN(4) > 0, s.rng.IntN(4) > 0
		if !in && !out {
			in, out = true, true
		}
		s.deaf[nd.host()], s.deaf[nd.inbox], s.mute[nd.host()] = in, in, out
		return func() {
			s.tracef("%s is reached again", nd.host())
			s.deaf[nd.host()], s.deaf[nd.inbox], s.mute[nd.host()] = false, false, false
		}
	}
	return func() {}
}

// play makes machines of one name, or of several names at once, replace each other.
func (m *names) play() {
	s := m.sim
	if !s.working {
		return
	}
	r := s.rng
	firsts := map[string]*simNode{}
	var all []string
	for _, nd := range s.nodes {
		if firsts[nd.name] == nil {
			all = append(all, nd.name)
		}
		if old := firsts[nd.name]; old == nil || old.core == nil && nd.core != nil {
			firsts[nd.name] = nd
		}
	}
	r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	if r.IntN(3) > 0 {
		all = all[:len(all)/2+1] // a majority is what matters
	} else {
		all = all[:1]
	}
	if r.IntN(8) == 0 {
		m.changeLease(firsts)
		s.at(s.between(maxTTL, 3*maxTTL), m.play)
		return
	}
	way, end := r.IntN(ways), r.IntN(ways)
	if m.oneWay > 0 && (way == cutOff || end == cutOff) {
		way, end = stays, stays // with a further cut nothing could be heard any more
	}
	kind := r.IntN(4)
	comes := s.between(0, 3*time.Second)
	lives := s.between(0, 5*maxTTL/2)
	returns := max(comes+lives+s.between(-maxTTL, maxTTL/2), 0)
	var over time.Duration
	for _, name := range all {
		first := firsts[name]
		jitter := s.between(0, 100*time.Millisecond)
		s.at(jitter, func() {
			back := m.leave(first, way)
			dir := s.newDir()
			switch kind {
			case 0:
				dir = nil
			case 1:
				if first.dir != nil {
					dir = first.dir.copied()
				}
			}
			var second *simNode
			s.at(comes, func() {
				if !s.working {
					return
				}
				if kind == 2 && first.dir != nil && first.dir.user == nil {
					dir = first.dir // moved
				}
				second = s.newTwin(first, dir)
				m.cutOneWay(first, second)
				second.start()
			})
			s.at(comes+lives, func() {
				if second != nil && s.working {
					again := m.leave(second, end)
					s.at(s.between(0, 2*maxTTL), again)
				}
			})
			s.at(returns, back)
		})
		over = max(over, jitter+max(comes+lives, returns))
	}
	// A client that is cut off while it holds learns nothing until its lease ends.
	if r.IntN(2) == 0 {
		at := max(comes+lives-s.between(0, 2*time.Second), 0)
		s.at(at, m.cutHolder)
	}
	s.at(over+s.between(0, 8*time.Second), m.play)
}

// changeLease makes the operator allow another longest lease, in the order that
// docs/operations.md gives. All nodes stop, and then all start with the new
// configuration. A node that keeps no state is told the old one. Clients learn of it
// later, each at its own time.
func (m *names) changeLease(firsts map[string]*simNode) {
	s := m.sim
	before := s.cluster.MaxTTL
	for s.cluster.MaxTTL == before {
		s.cluster.MaxTTL = [...]time.Duration{maxTTL / 2, maxTTL, 2 * maxTTL}[s.rng.IntN(3)]
	}
	s.tracef("the longest lease is %v from now on", s.cluster.MaxTTL)
	clean := s.rng.IntN(2) == 0
	for _, nd := range s.nodes {
		nd.stop(clean)
		nd.previous = max(nd.previous, before)
		nd.cfg = s.cluster
	}
	for _, name := range s.cluster.Nodes {
		s.at(s.between(0, time.Second), firsts[name].start)
	}
	for _, c := range s.clients {
		s.at(s.between(0, maxTTL), c.crash)
	}
}

// cutOneWay cuts one of the two directions between machines of one name, never both. No
// rule can detect two machines that cannot hear each other at all.
func (m *names) cutOneWay(first, second *simNode) {
	s := m.sim
	deaf, mute := first, second
	switch m.oneWay {
	case 0:
		return
	case 2:
		deaf, mute = second, first
	}
	s.tracef("%s does not hear %s", deaf.host(), mute.host())
	s.cuts[[2]string{mute.host(), deaf.host()}] = faulty
	s.cuts[[2]string{mute.host(), deaf.inbox}] = faulty
}

// cutHolder cuts off a client that holds from all nodes.
func (m *names) cutHolder() {
	s := m.sim
	if !s.working {
		return
	}
	for _, c := range s.clients {
		if !slices.ContainsFunc(s.jobsOf(c), func(j *job) bool { return j.held }) {
			continue
		}
		until := s.now + s.between(0, 2*ttl)
		s.tracef("%s is cut off until %v", c.name, until)
		s.res.Cuts++
		for _, nd := range s.nodes {
			s.cuts[[2]string{c.name, nd.host()}], s.cuts[[2]string{nd.host(), c.inbox}] = until, until
		}
		return
	}
}

func (s *Sim) jobsOf(c *simClient) (out []*job) {
	for _, list := range s.jobs {
		for _, j := range list {
			if j.client == c {
				out = append(out, j)
			}
		}
	}
	return out
}
