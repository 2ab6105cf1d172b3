package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/quorum"
)

// With Options.Owners, jobs use what a program may ask for with a lock: they watch what
// they wait for, ask to be told when others want the lock, bound how long they hold, and
// release what they lost themselves. They also give their word that nobody else has the
// lock for as long as it stands without a message, as a gateway does to its callers.

// terms are what a job asks for, and what has become of that.
type terms struct {
	manual          bool          // it releases a lost lock itself
	asks            bool          // it asked to be told when somebody else waits
	atLeast, atMost time.Duration // bounds for how long it has the lock
	since           time.Duration // the grant, by the client's monotonic clock
	expired         bool          // it was told that its time is over
	left            bool          // it lost the lock, and has yet to release it

	core  *client.Client // the process
	word  time.Duration  // nobody else has the lock before that time; 0: it gave no word
	given *client.Claim  // of which claim
	until time.Duration  // it is unlocked, and its claim stays until then
}

// ends is how much longer than a word, or than its time, a job takes to act.
const ends = 50 * time.Millisecond

func (s *Sim) upTo(d time.Duration) time.Duration {
	return time.Duration(s.owners.Int64N(int64(d) + 1))
}

// newOwners makes the jobs of this world do so.
func (s *Sim) newOwners() {
	s.owners = rand.New(rand.NewPCG(s.opt.Seed, 0x6f776e72))
	// A copy would have the wrong clock for good.
	if s.world == rough && !s.opt.Copy && s.opt.Seed%4 != 1 {
		s.at(s.upTo(5*time.Second), s.leap)
	}
}

// draw chooses what the job asks for.
func (j *job) draw() (watch bool) {
	s := j.client.sim
	watch, j.manual = s.owners.IntN(3) == 0, s.owners.IntN(2) == 0
	if j.client.table != nil && s.owners.IntN(4) == 0 {
		j.atLeast = 1 + s.upTo(ttl/time.Duration(1+len(s.clients)/5)) // all must have their turn in the end
	}
	if j.client.table != nil && s.owners.IntN(4) == 0 {
		j.atMost = 1 + s.upTo([]time.Duration{ends, ttl}[s.owners.IntN(2)])
	}
	return watch
}

// own makes a job that got the lock, and is to hold it for that long, use its terms.
func (j *job) own(hold time.Duration) {
	c, s := j.client, j.client.sim
	j.core, j.since = c.core, c.clock.read(s.now).Mono
	if j.manual {
		if j.claim != nil {
			j.claim.LeaveRelease()
		}
		j.giveWord()
	}
	if c.table == nil || s.owners.IntN(2) == 0 {
		return
	}
	s.at(s.upTo(hold), func() {
		c.do(func() {
			if j.ended || c.core != j.core {
				return
			}
			j.asks = true
			c.table.Wanted(c.clock.read(s.now), j.use, &c.out)
			c.flush()
		})
	})
}

// claimNow returns the claim that the job uses.
func (j *job) claimNow() *client.Claim {
	if j.use != nil {
		return j.use.Claim()
	}
	return j.claim
}

// giveWord gives the job's word now, and again from time to time.
func (j *job) giveWord() {
	c, s := j.client, j.client.sim
	if j.ended || j.expired || c.core != j.core {
		return
	}
	s.at(s.upTo(3*time.Second), func() { c.do(j.giveWord) })
	var d time.Duration
	if now := c.clock.read(s.now); j.use != nil {
		d = c.table.Stands(now, j.use)
	} else {
		d = c.core.Stands(now, j.claim)
	}
	if d <= 0 {
		return
	}
	if j.word == 0 {
		s.words = append(s.words, j)
	}
	j.word, j.given = max(j.word, s.now+d-d/50), j.claimNow() // two per cent for clocks that run at another rate
}

// takeBack ends the job's word: it releases the lock of its own will.
func (j *job) takeBack() {
	if j.word > 0 && !j.expired {
		j.word = 0
		s := j.client.sim
		s.words = slices.DeleteFunc(s.words, func(o *job) bool { return o == j })
	}
}

// checkWord checks that a job gets a lock of which nobody else has given the word.
func (s *Sim) checkWord(j *job) {
	s.words = slices.DeleteFunc(s.words, func(o *job) bool { return s.now >= o.word })
	for _, o := range s.words {
		if o != j && o.res == j.res && o.side == j.side && quorum.Conflicts(o.mode, j.mode) && s.now >= s.lenient {
			s.fail("%s #%d has %s, but %s #%d gave its word that nobody else has it for %v more", j.client.name, j.id(), j.res, o.client.name, o.id(), o.word-s.now)
		}
	}
}

// keep notes that the claim of a job that is about to unlock it must stay.
func (j *job) keep() {
	c, s := j.client, j.client.sim
	if j.atLeast == 0 || j.claimNow() == nil || j.claimNow().Eviction() != nil {
		return
	}
	if rest := j.since + j.atLeast - c.clock.read(s.now).Mono; rest > time.Millisecond {
		s.res.Kept++
		j.until = s.now + time.Duration(float64(rest)/c.clock.rate) - time.Millisecond
		s.kept = append(s.kept, j)
	}
}

// lost notes that a job has lost its lock. If left is set, the job has yet to release it.
func (j *job) lost(left bool) {
	c, s := j.client, j.client.sim
	kept := slices.Contains(s.kept, j)
	s.kept = slices.DeleteFunc(s.kept, func(o *job) bool { return o == j })
	if !left {
		return
	}
	if j.ended {
		if kept && j.use.State() != hold.Over { // otherwise it released it in this step
			s.fail("%s #%d on %s is unlocked and lost, and its claim stays", c.name, j.id(), j.res)
		}
		return
	}
	if !j.held || !j.manual || j.left {
		s.fail("%s #%d on %s is to release what it lost, but did not ask for that or does not hold", c.name, j.id(), j.res)
	}
	j.left = true
	s.res.Left++
	if j.claimNow().Eviction() != nil {
		s.res.EvictedLate++
	}
	after := s.upTo(2 * ttl)
	switch s.owners.IntN(4) {
	case 0: // it never does
		return
	case 1, 2: // it keeps its word
		after = max(j.word-s.now, 0) + s.upTo(ends)
	}
	s.at(after, func() {
		c.do(func() {
			if c.core != j.core {
				return
			}
			s.tracef("%s releases %s #%d, which it lost", c.name, j.res, j.id())
			j.takeBack()
			c.end(j)
			c.flush()
		})
	})
}

// expire notes that the job's time is over. It ends what runs under the lock, and then
// releases it.
func (j *job) expire() {
	c, s := j.client, j.client.sim
	now := c.clock.read(s.now)
	if !j.held || j.ended || j.expired || j.atMost == 0 || now.Mono < j.since+j.atMost {
		s.fail("%s #%d on %s is told that its time is over after %v, and it is to have %v", c.name, j.id(), j.res, now.Mono-j.since, j.atMost)
	}
	s.res.Expired++
	s.tracef("the time of %s #%d on %s is over", c.name, j.id(), j.res)
	j.expired = true
	s.at(s.upTo(ends), func() { c.do(j.release) })
}

// checkOwners checks that all have a lock for as long as they asked to have it.
func (s *Sim) checkOwners() {
	for _, list := range s.jobs {
		for _, j := range list {
			if !j.held || j.atMost == 0 || j.expired || j.client.paused {
				continue
			}
			if had := j.client.clock.read(s.now).Mono - j.since; had > j.atMost+time.Millisecond {
				s.fail("%s #%d on %s has had it for %v, and is to have it for %v", j.client.name, j.id(), j.res, had, j.atMost)
			}
		}
	}
	s.kept = slices.DeleteFunc(s.kept, func(j *job) bool { return s.now >= j.until || j.client.core != j.core })
	for _, k := range s.kept {
		c, claim := k.client, k.claimNow()
		switch {
		case k.use.State() != hold.Kept:
			s.fail("%s #%d on %s is unlocked, and was to stay for %v more", c.name, k.id(), k.res, k.until-s.now)
		case claim.Eviction() != nil:
			s.fail("%s #%d on %s is unlocked, evicted, and stays", c.name, k.id(), k.res)
		case !c.core.HeldAt(c.clock.read(s.now), claim):
			continue // the client will notice that it lost it
		}
		for _, j := range s.jobs[k.res] {
			if j.holds() && quorum.Conflicts(k.mode, j.mode) && k.side == j.side && s.now >= s.lenient {
				s.fail("%s #%d has %s, but that of %s #%d was to stay for %v more", j.client.name, j.id(), j.res, c.name, k.id(), k.until-s.now)
			}
		}
	}
}

// leap sets a client's wall clock ahead, by up to two leases, and soon back. To the client
// it looks as if the machine had slept (C8).
func (s *Sim) leap() {
	if !s.working {
		return
	}
	s.at(s.upTo(20*time.Second), s.leap)
	c := s.clients[s.owners.IntN(len(s.clients))]
	if c.core == nil || c.paused || c.copied || c.clock.ahead > 0 {
		return
	}
	s.res.Leaps++
	c.setAhead(s.upTo(2 * ttl))
	s.at(s.upTo(3*time.Second), c.setBack)
}

func (c *simClient) setBack() {
	if c.paused { // not in the same second as a sleep: see Sim.fault
		c.sim.at(time.Second, c.setBack)
		return
	}
	c.setAhead(0)
}

func (c *simClient) setAhead(by time.Duration) {
	if c.core != nil {
		c.tick()
	}
	c.sim.tracef("%s has its wall clock %v ahead", c.name, by)
	if c.clock.ahead = by; c.core != nil {
		c.tick()
		c.flush()
	}
}
