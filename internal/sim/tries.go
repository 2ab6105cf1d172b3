package sim

import (
	"slices"
	"time"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// mostTry bounds how long a try may take if every message arrives within 5 ms. It asks.
// Younger claims that are not held are asked to yield, and yield or say that they are
// held. Each change of what is in its way is told (N5, C10). These delays follow each
// other, and one round trip more if a refresh overtook the acquire. The bound is below
// the time after which a try asks again, which would hide a change that was not told.
const mostTry = 100 * time.Millisecond

// quiet is how long a name must have been unused to count as free. In that time all
// messages arrive, and late votes are swept (C9).
const quiet = 100 * time.Millisecond

// begin notes whether a try finds the lock free. For all others on that name, it is no
// longer free.
func (j *job) begin() {
	s := j.client.sim
	for _, o := range s.jobs[j.res] {
		o.free = false
	}
	kept := slices.ContainsFunc(s.kept, func(o *job) bool { return o.res == j.res })
	j.free = j.try && !kept && s.world == sound && s.operator == nil && len(s.jobs[j.res]) == 0 && s.now > time.Second &&
		s.now > s.ended[j.res]+quiet && s.isFree(j.client, j.res)
}

// isFree reports whether nobody but c has or waits for anything on a name. What c keeps
// itself does not count.
func (s *Sim) isFree(c *simClient, res string) bool {
	for _, o := range s.clients {
		for _, cl := range o.core.All() {
			if o != c && cl.Resource() == res {
				return false
			}
		}
	}
	free := true
	for _, nd := range s.nodes {
		nd.core.Handle(nd.clock.read(s.now), &wire.Request{Verb: wire.Inspect, Client: "sim", Resource: res}, "sim", &nd.out)
		var others []voter.Send
		for _, a := range nd.out.Answers {
			if a.To != "sim" {
				others = append(others, a)
				continue
			}
			for _, rec := range a.Answer.List.Locks {
				for _, claim := range rec.Claims {
					free = free && claim.Claim.Instance == c.instance
				}
			}
		}
		nd.out.Answers = others
		nd.flush()
	}
	return free
}

// decided checks how a try ended, and after how long.
func (j *job) decided(failed bool) {
	s := j.client.sim
	// In the first second, nodes may not vote yet.
	if !j.try || s.world != sound || j.asked < time.Second {
		return
	}
	took := s.now - j.asked
	s.res.TriedLongest = max(s.res.TriedLongest, took)
	if took > mostTry {
		s.fail("%s #%d on %s is a try and took %v (failed: %v)", j.client.name, j.id(), j.res, took, failed)
	}
	if j.free {
		s.res.TriedFree++
		if failed {
			s.fail("%s #%d on %s is a try on a free lock and failed", j.client.name, j.id(), j.res)
		}
	}
}

// checkKnows checks that a job that gives up its wait knows who is in its way, if another
// has held the lock for long enough (C4). Its claim is its own, and so as old as the job.
func (j *job) checkKnows() {
	s := j.client.sim
	before := s.now - mostTry
	if s.world != sound || j.claim == nil || j.client.copied || j.asked > before || before < time.Second {
		return
	}
	for _, o := range s.jobs[j.res] {
		if !o.holds() || o.heldAt > before || !quorum.Conflicts(o.mode, j.mode) {
			continue
		}
		s.res.Knew++
		if r := j.client.core.Report(j.client.clock.read(s.now), j.claim); r.Blocker == nil {
			s.fail("%s #%d on %s gives up after %v and does not know that %s holds it: %+v", j.client.name, j.id(), j.res, s.now-j.asked, o.client.name, r)
		}
		return
	}
}
