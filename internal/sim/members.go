package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// membership is a world in which clients learn the list of nodes from the nodes, as in
// production (M1 to M5), under faults made for that. Single nodes have lists of their
// own. A few nodes of another cluster answer as well. Two processes of one name
// contradict each other. The operator renames the whole cluster: all nodes stop, and
// start with another list or another longest lease.
type membership struct {
	sim *Sim
	// With quiet, every message arrives within 5 ms each way, and machines are well.
	quiet bool
	// rights maps the digest of each configuration to 0 if it was the cluster's, else to a
	// number of its own.
	rights map[string]int
	lives  []*life
	serial int
}

// life is a node process with one configuration.
type life struct {
	nd     *simNode
	core   *voter.Node
	name   string
	digest string
	// from and until are when it was first and last seen alive.
	from, until time.Duration
}

// heardOf is a configuration that a name showed to a client.
type heardOf struct{ name, digest string }

// memory is for how long after its question an answer may count, plus an allowance for
// clocks.
const memory = 10*time.Second + time.Second

// newMembership returns such a world.
func newMembership(opt Options) *Sim {
	s := emptySim(opt)
	m := &membership{sim: s, quiet: opt.Seed%3 == 0, rights: map[string]int{}}
	s.members, s.world = m, rough
	r := s.rng
	n := 1 + r.IntN(5)
	s.cluster = wire.Config{MaxTTL: maxTTL, Skew: skew}
	for i := range n {
		s.cluster.Nodes = append(s.cluster.Nodes, fmt.Sprintf("n%d", i+1))
	}
	m.rights[s.cluster.Digest()] = 0
	if !m.quiet {
		s.loss = [...]float64{0, 0.05, 0.25}[r.IntN(3)]
		s.dup = [...]float64{0, 0.02, 0.2}[r.IntN(3)]
		s.late = [...]float64{0, 0.02, 0.1}[r.IntN(3)]
	}
	s.codec = r.IntN(4) == 0
	s.shared = r.IntN(2) == 0
	for _, name := range s.cluster.Nodes {
		nd := m.newNode(name, s.cluster)
		nd.dir.save(nd, &voter.Saved{})
		s.at(s.between(0, 50*time.Millisecond), nd.start)
	}
	for i := range 2 + r.IntN(4) {
		c := &simClient{sim: s, id: i, name: fmt.Sprintf("c%d", i), user: fmt.Sprintf("c%d", i), clock: s.newClock(time.Second)}
		s.clients = append(s.clients, c)
		s.at(s.between(0, 3*time.Second), func() {
			if c.members == nil { // otherwise it has crashed already
				c.begin()
			}
		})
		for range 1 + r.IntN(2) {
			s.at(s.between(0, 3*time.Second), func() { c.want(2) })
		}
	}
	s.res.Nodes, s.res.Clients, s.res.Resources = n, len(s.clients), 2
	if opt.Owners {
		s.newOwners()
	}
	s.at(s.between(0, 5*time.Second), m.play)
	s.at(0, m.look)
	s.at(faulty, s.calmDown)
	s.at(faulty+20*time.Second, m.lastWants)
	return s
}

func (m *membership) newNode(name string, cfg wire.Config) *simNode {
	s := m.sim
	nd := &simNode{sim: s, name: name, cfg: cfg, clock: s.newClock(2 * time.Second), inbox: "node." + name, claims: 1000, queue: 1000, dir: s.newDir()}
	s.nodes = append(s.nodes, nd)
	return nd
}

// play applies one fault to the cluster, and schedules the next.
func (m *membership) play() {
	s := m.sim
	if !s.working {
		return
	}
	r := s.rng
	s.at(s.between(0, 10*time.Second), m.play)
	var ours []*simNode
	for _, nd := range s.nodes {
		if nd.twin == "" && slices.Contains(s.cluster.Nodes, nd.name) {
			ours = append(ours, nd)
		}
	}
	nd, c := ours[r.IntN(len(ours))], s.clients[r.IntN(len(s.clients))]
	kind := r.IntN(10)
	if m.quiet && kind > 5 {
		kind = r.IntN(5)
	}
	switch kind {
	case 0: // a node is started with a list of its own, and later with the right one
		m.stray(nd)
	case 1: // a few nodes of another cluster answer on the same subjects
		m.foreign(1 + r.IntN(2))
	case 2: // all nodes start with another list, or another longest lease
		m.rename()
	case 3, 4, 5: // a client process ends, and another begins
		c.crash()
	case 6: // a node is down for a time
		nd.stop(r.IntN(2) == 0)
		s.at(s.downFor(), func() { m.start(nd) })
	case 7: // a client is cut off from some nodes
		s.res.Cuts++
		until := s.now + s.between(0, 2*ttl)
		for _, o := range s.nodes {
			if r.IntN(3) > 0 {
				s.cuts[[2]string{c.name, o.host()}], s.cuts[[2]string{o.host(), c.inbox}] = until, until
				s.cuts[[2]string{o.host(), c.queryInbox}] = until
			}
		}
	case 8: // a node pauses
		if nd.core != nil && !nd.paused {
			s.res.Pauses++
			nd.paused = true
			s.at(s.between(0, ttl), nd.resume)
		}
	case 9: // a second process of the same name, with another list
		if nd.core != nil {
			twin := s.newTwin(nd, nil)
			twin.cfg = m.other([]string{nd.name, "n9"}, maxTTL)
			twin.start()
			s.at(s.between(0, 2*ttl), func() { twin.stop(false) })
		}
	}
}

// other returns a configuration that is not the cluster's.
func (m *membership) other(nodes []string, longest time.Duration) wire.Config {
	cfg := wire.Config{Nodes: slices.Compact(slices.Sorted(slices.Values(nodes))), MaxTTL: longest, Skew: skew}
	if _, known := m.rights[cfg.Digest()]; !known {
		m.rights[cfg.Digest()] = len(m.rights) + 1
	}
	return cfg
}

func (m *membership) stray(nd *simNode) {
	s := m.sim
	if len(s.cluster.Nodes) == 1 {
		return
	}
	s.res.WrongConfig++
	right := s.cluster
	nd.stop(s.rng.IntN(2) == 0)
	nd.cfg = m.other([]string{nd.name}, s.cluster.MaxTTL)
	if s.rng.IntN(3) == 0 {
		nd.cfg = m.other([]string{nd.name, s.cluster.Nodes[s.rng.IntN(len(s.cluster.Nodes))], "n8"}, s.cluster.MaxTTL)
	}
	s.tracef("%s has a list of its own: %v", nd.host(), nd.cfg.Nodes)
	s.at(s.downFor(), nd.start)
	s.at(s.between(0, 3*maxTTL), func() {
		// Otherwise the cluster was renamed since.
		if s.working && s.cluster.Digest() == right.Digest() && nd.twin == "" {
			nd.stop(false)
			nd.cfg = right
			s.at(s.downFor(), func() { m.start(nd) })
		}
	})
}

// foreign makes n nodes of another cluster answer for a time.
func (m *membership) foreign(n int) {
	s := m.sim
	s.res.WrongConfig++
	m.serial++
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("x%d-%d", m.serial, i))
	}
	cfg := m.other(names, maxTTL)
	for _, name := range names {
		nd := m.newNode(name, cfg)
		nd.dir.save(nd, &voter.Saved{})
		s.at(s.between(0, 50*time.Millisecond), func() {
			if s.working {
				nd.start()
			}
		})
		s.at(s.between(time.Second, 3*ttl), func() { nd.stop(false) })
	}
}

// rename stops all nodes, and starts all with the new list, as docs/operations.md says.
func (m *membership) rename() {
	s := m.sim
	r := s.rng
	s.res.WrongConfig++
	old := s.cluster
	var names []string
	for _, name := range old.Nodes { // some stay
		if r.IntN(3) > 0 {
			names = append(names, name)
		}
	}
	for range 1 + r.IntN(3) {
		names = append(names, fmt.Sprintf("n%d", 10+m.serial))
		m.serial++
	}
	longest := old.MaxTTL
	if r.IntN(4) == 0 {
		names, longest = old.Nodes, 2*maxTTL
	}
	s.cluster = m.other(names, longest)
	m.rights[s.cluster.Digest()] = 0
	s.tracef("the cluster is %v from now on, longest lease %v", s.cluster.Nodes, longest)
	for _, nd := range s.nodes {
		if nd.twin != "" {
			continue
		}
		if slices.Contains(old.Nodes, nd.name) {
			nd.stop(r.IntN(2) == 0)
			nd.previous = max(nd.previous, old.MaxTTL)
		}
	}
	for _, name := range s.cluster.Nodes {
		i := slices.IndexFunc(s.nodes, func(nd *simNode) bool { return nd.twin == "" && nd.name == name })
		var nd *simNode
		if i >= 0 {
			nd = s.nodes[i]
			nd.cfg = s.cluster
		} else {
			nd = m.newNode(name, s.cluster)
			nd.previous = old.MaxTTL
		}
		s.at(s.between(0, time.Second), func() { m.start(nd) })
	}
}

// start starts a node, unless the cluster was renamed since the start was planned. An
// operator who went on to start nodes with the old list would have two clusters of one
// name.
func (m *membership) start(nd *simNode) {
	if digest := nd.cfg.Digest(); m.rights[digest] == 0 && digest != m.sim.cluster.Digest() {
		return
	}
	nd.start()
}

// belongs reports whether a node must run after all faults have ended.
func (m *membership) belongs(nd *simNode) bool {
	return m == nil || slices.Contains(m.sim.cluster.Nodes, nd.name)
}

// lastWants makes each client request a lock when all faults have ended. It must have
// learned the list of nodes, or do so now.
func (m *membership) lastWants() {
	for _, c := range m.sim.clients {
		c.wantOnce(2)
	}
}

// look notes, again and again, which nodes run with which configuration.
func (m *membership) look() {
	s := m.sim
	s.at(10*time.Millisecond, m.look)
	m.note()
}

func (m *membership) note() {
	s := m.sim
	for _, nd := range s.nodes {
		if nd.core == nil {
			continue
		}
		i := slices.IndexFunc(m.lives, func(l *life) bool { return l.nd == nd && l.core == nd.core })
		if i < 0 {
			i, m.lives = len(m.lives), append(m.lives, &life{nd: nd, core: nd.core, name: nd.name, digest: nd.cfg.Digest(), from: s.now})
		}
		m.lives[i].until = s.now
	}
	m.lives = slices.DeleteFunc(m.lives, func(l *life) bool { return l.until < s.now-2*memory })
}

// running returns how many names of nodes ran with the configuration at some time since
// then.
func (m *membership) running(digest string, since time.Duration) int {
	names := map[string]bool{}
	for _, l := range m.lives {
		if l.digest == digest && l.until >= since {
			names[l.name] = true
		}
	}
	return len(names)
}

// found checks the configuration that a client's machine found.
func (m *membership) found(c *simClient, cfg wire.Config) {
	s := m.sim
	m.note()
	digest := cfg.Digest()
	s.tracef("%s counts by %v %s from now on", c.name, cfg.Nodes, digest)
	need := quorum.Size(len(cfg.Nodes), quorum.Exclusive)
	if n := m.running(digest, s.now-memory); n < need {
		s.fail("%s takes the configuration with nodes %v, which only %d of them have, or had lately; a quorum is %d", c.name, cfg.Nodes, n, need)
	}
	if c.core == nil {
		s.res.Found++
		if m.quiet {
			m.checkFirst(c, digest)
		}
		return
	}
	s.res.Moved++
	m.checkMove(c, digest)
}

// checkFirst checks the first configuration of a client where every message arrives. It
// must be the one of most nodes that ran all the time.
func (m *membership) checkFirst(c *simClient, digest string) {
	s := m.sim
	names := map[string]map[string]bool{} // what each name showed meanwhile
	all := map[string]int{}
	for _, l := range m.lives {
		if l.until < c.began {
			continue
		}
		if names[l.name] == nil {
			names[l.name] = map[string]bool{}
		}
		names[l.name][l.digest] = true
		if l.from >= c.began || l.until < s.now {
			names[l.name]["came or went"] = true
		}
	}
	for _, shown := range names {
		for d := range shown {
			if len(shown) == 1 {
				all[d]++
			}
		}
	}
	for d, n := range all {
		if d != digest && 2*n > len(names) && d == s.cluster.Digest() && n >= quorum.Size(len(s.cluster.Nodes), quorum.Exclusive) {
			s.fail("%s begins with %s, though %d of %d nodes have %s", c.name, digest, n, len(names), d)
		}
	}
}

// checkMove checks that a minority cannot make a client change its configuration. The
// nodes whose configuration it takes must be more than the nodes of its own list that it
// has not heard from lately, unless none has shown it its own configuration for as long
// as leases last.
func (m *membership) checkMove(c *simClient, digest string) {
	s := m.sim
	own := c.core.Cluster()
	last, silent, with := time.Duration(-1<<62), 0, 0
	lately := map[string]bool{}
	for h, at := range c.heard {
		if at < s.now-memory {
			continue
		}
		lately[h.name] = true
		if h.digest == digest {
			with++
		}
	}
	for _, name := range own.Nodes {
		if at, ok := c.heardOwn[name]; ok {
			last = max(last, at)
		}
		if !lately[name] {
			silent++
		}
	}
	if with <= silent && s.now-last < own.MaxTTL {
		s.fail("%s leaves %v for %s, which %d nodes showed, while %d of its own nodes are silent and one showed its configuration %v ago",
			c.name, own.Nodes, digest, with, silent, s.now-last)
	}
}

// ---- clients that learn the nodes

// begin starts a process that knows no node, as qlock.New does.
func (c *simClient) begin() {
	s := c.sim
	c.core, c.table, c.instance = nil, nil, s.newUUID()
	c.queryInbox = fmt.Sprintf("%s.query.%s", c.name, c.instance)
	machine := members.New(c.queryInbox)
	c.members, c.began = machine, s.now
	c.heard, c.heardOwn = map[heardOf]time.Duration{}, map[string]time.Duration{}
	s.inboxes[c.queryInbox] = func(a *wire.Answer) {
		c.do(func() {
			if c.members != machine || a.Kind != wire.Informed {
				return
			}
			c.heard[heardOf{a.Node, a.Digest}] = s.now
			// Not an answer that comes after its query: it may be of any age.
			if c.core != nil && a.Digest == c.core.Digest() && queryOf(a.Info.Nonce) == c.lastQuery && s.now-c.queriedAt < members.Pause*9/10 {
				c.heardOwn[a.Node] = s.now
			}
			c.learn(func(now wire.Now, out *members.Out) { machine.Hear(now, a, out) })
		})
	}
	c.learn(machine.Query)
}

// shown notes that an answer about a claim shows the client's configuration. An answer to the
// instance that the client had before it began anew (C15) may be of any age.
func (c *simClient) shown(a *wire.Answer) {
	if c.members != nil && a.Digest == c.core.Digest() && a.Claim.Instance == c.instance {
		c.heardOwn[a.Node] = c.sim.now
	}
}

// learn calls f on the machine and performs the actions that it requests.
func (c *simClient) learn(f func(wire.Now, *members.Out)) {
	s := c.sim
	now := c.clock.read(s.now)
	var out members.Out
	if c.core != nil && c.core.Shown() {
		c.members.Shown()
	}
	f(now, &out)
	if out.Found != nil {
		s.members.found(c, *out.Found)
		if c.core == nil {
			c.start(*out.Found)
		} else if c.table != nil {
			c.table.SetCluster(now, *out.Found, &c.out)
			c.flush()
		} else {
			c.core.SetCluster(now, *out.Found, &c.out.Out)
			c.flush()
		}
	}
	if out.Ask != "" {
		if q := queryOf(out.Ask); q != c.lastQuery {
			c.lastQuery, c.queriedAt = q, s.now
		}
		s.publish(c.name, c.queryInbox, wire.Request{Verb: wire.Info, Client: c.user, Nonce: out.Ask})
	}
	s.cancel(c.asking)
	if wait, ok := c.members.Wait(now); ok {
		machine := c.members
		c.asking = s.at(time.Duration(float64(wait)/c.clock.rate)+time.Microsecond, func() {
			c.do(func() {
				if c.members == machine {
					c.learn(machine.Tick)
				}
			})
		})
	}
}

// queryOf returns the common prefix of the nonces of a query.
func queryOf(nonce string) string { return nonce[:strings.LastIndexByte(nonce, '/')+1] }

// wantOnce runs one job.
func (c *simClient) wantOnce(resources int) {
	s := c.sim
	if c.core == nil {
		s.fail("%s has not learned who the nodes are", c.name)
		return
	}
	j := &job{client: c, res: fmt.Sprintf("r%d", s.rng.IntN(resources)), asked: s.now}
	c.ask(j)
	s.jobs[j.res] = append(s.jobs[j.res], j)
	c.flush()
}

// checkEnd checks that in the end all clients have the configuration of the cluster.
func (m *membership) checkEnd() {
	s := m.sim
	for _, c := range s.clients {
		if c.core == nil || c.core.Digest() != s.cluster.Digest() {
			s.fail("%s still does not count by %v", c.name, s.cluster.Nodes)
		}
	}
}
