package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/hold"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// EpochLockers counts what clients of production did in worlds of epochs.
type EpochLockers struct {
	Held, Passed    int // locks had, and of these passed on within a client
	Lost, Evicted   int
	Departed        int // evictions reported as done
	Found, Moved    int // configurations taken at the start, and later
	Carried         int // locks held at a move that continued the client's record
	Abroad, Strange int // reconnects to the other cluster, and configurations taken that did not continue the own
}

func (r *EpochLockers) add(o EpochLockers) {
	r.Held += o.Held
	r.Passed += o.Passed
	r.Lost += o.Lost
	r.Evicted += o.Evicted
	r.Departed += o.Departed
	r.Found += o.Found
	r.Moved += o.Moved
	r.Carried += o.Carried
	r.Abroad += o.Abroad
	r.Strange += o.Strange
}

// epochLocker is a client of production: the machines of packages client, hold and members,
// driven as internal/driver drives them. It learns the list of nodes from the nodes, shares
// and keeps claims, stands still, sleeps, and reconnects to another cluster of the same names.
type epochLocker struct {
	w        *epochWorld
	name     string
	life     int // counts its processes
	clock    hostClock
	side     int // the cluster that it is connected to
	paused   bool
	backlog  []func()
	instance uuid.UUID
	lease    time.Duration

	core    *client.Client // nil until it knows the nodes
	table   *hold.Table
	members *members.Machine
	out     hold.Out
	timer   int
	asking  int
}

// epochJob is a goroutine of a client that wants a lock.
type epochJob struct {
	locker      *epochLocker
	life        int
	name        string
	mode        quorum.Mode
	use         *hold.Hold
	side        int // the cluster in which its claim became held
	held, ended bool
	until       time.Duration // it holds the lock until then
}

// newLockers makes the clients, and in some worlds the other cluster.
func (w *epochWorld) newLockers(n int, spread time.Duration) {
	for i := range n {
		l := &epochLocker{w: w, name: fmt.Sprint("p", i), clock: hostClock{
			rate: 1 + (w.rng.Float64()*2-1)*0.002, offset: w.between(0, spread/2+1), asleep: -1,
		}}
		w.lockers = append(w.lockers, l)
		l.begin()
		for range 1 + w.rng.IntN(3) {
			w.at(w.between(0, 2*time.Second), l.loop)
		}
	}
	if w.batches = w.rng.IntN(2) == 0; n > 0 && !w.quiet && w.rng.IntN(3) == 0 {
		w.newForeign()
	}
}

// newForeign makes a cluster with the same name and the same names of nodes, which is another
// one, and may be at the same epoch.
func (w *epochWorld) newForeign() {
	r := &epoch.Record{Cluster: "test", CID: w.id(), Epoch: uint64(1 + 2*w.rng.IntN(3)), Prev: w.base.Digest(), MaxTTL: epochTTL, Skew: epochSkew}
	for _, name := range w.base.Nodes {
		r.Nodes = append(r.Nodes, wire.Member{Name: name, ID: w.id()})
	}
	links := []wire.Link{{Epoch: 0, Digest: w.base.Digest()}}
	if r.Epoch > 1 {
		r.Prev = wire.Config{Nodes: []string{"z"}, MaxTTL: epochTTL, Skew: epochSkew}.Digest()
		links = append(links, wire.Link{Epoch: r.Epoch - 1, Digest: r.Prev})
	}
	if err := r.Check(); err != nil {
		w.fail("the record of the other cluster: %v", err)
		return
	}
	links = append(links, wire.Link{Epoch: r.Epoch, Digest: r.Digest()})
	for _, m := range r.Nodes {
		nd := &epochNode{w: w, name: m.Name, offset: w.between(0, 100*time.Millisecond), disk: epochDisk{id: m.ID}, peers: &w.foreign, asleep: -1}
		nd.write(&epoch.State{ID: m.ID, Record: r, Links: links})
		w.foreign = append(w.foreign, nd)
	}
	for _, nd := range w.foreign {
		nd.start()
	}
}

func (l *epochLocker) now() wire.Now {
	now := l.clock.read(l.w.now)
	now.Wall += epochWall - baseWall
	return now
}

func (l *epochLocker) epoch() uint64 {
	if l.core == nil {
		return 0
	}
	cfg := l.core.Cluster()
	return cfg.Epoch()
}

// begin starts a process that knows no node.
func (l *epochLocker) begin() {
	w := l.w
	l.life++
	l.timer++
	l.asking++
	l.core, l.table, l.out, l.instance = nil, nil, hold.Out{}, w.id()
	l.lease = w.between(epochTTL/4, epochTTL).Truncate(time.Millisecond)
	l.members = members.New(fmt.Sprintf("%s.%d", l.name, l.life))
	l.learn(l.members.Query)
}

// crash ends the process, and begins another one.
func (l *epochLocker) crash() {
	l.w.tracef("%s crashes", l.name)
	l.w.died = l.w.now
	for _, list := range l.w.jobs {
		for _, j := range slices.Clone(list) {
			if j.locker == l {
				j.end()
			}
		}
	}
	l.clock.wake(l.w.now)
	l.paused, l.backlog = false, nil
	l.begin()
}

// do calls f in this process, now or when it goes on.
func (l *epochLocker) do(f func()) {
	if !l.paused {
		f()
		return
	}
	life := l.life
	l.backlog = append(l.backlog, func() {
		if l.life == life {
			f()
		}
	})
}

func (l *epochLocker) pause(d time.Duration, machine bool) {
	if l.paused {
		return
	}
	l.w.tracef("%s stands still for %v, its machine sleeps: %v", l.name, d, machine)
	if l.paused = true; machine {
		l.clock.asleep = l.w.now
	}
	life := l.life
	l.w.at(d, func() {
		if l.life == life {
			l.resume()
		}
	})
}

func (l *epochLocker) resume() {
	if !l.paused {
		return
	}
	l.w.tracef("%s goes on", l.name)
	l.paused = false
	l.clock.wake(l.w.now)
	backlog := l.backlog
	l.backlog = nil
	l.w.rng.Shuffle(len(backlog), func(i, k int) { backlog[i], backlog[k] = backlog[k], backlog[i] })
	for _, f := range backlog {
		l.do(f)
	}
	l.tick()
}

// reconnect connects the client to a cluster. It learns of that a little later (C13).
func (l *epochLocker) reconnect(side int) {
	if l.side == side || len(l.w.foreign) == 0 {
		return
	}
	l.w.tracef("%s reconnects, to cluster %d", l.name, side)
	life := l.life
	step := func(f func(*hold.Table)) {
		l.do(func() {
			if l.life == life && l.table != nil {
				f(l.table)
				l.flush()
			}
		})
	}
	step(func(t *hold.Table) { t.Disconnected(l.now(), &l.out) })
	if l.side = side; side != 0 {
		l.w.res.Full.Abroad++
	}
	l.w.at(l.w.between(0, 20*time.Millisecond), func() {
		step(func(t *hold.Table) { t.Reconnected(l.now(), &l.out) })
	})
}

// publish sends requests to all nodes of the cluster that the client is connected to.
func (l *epochLocker) publish(list []wire.Request) {
	w := l.w
	life, side, nodes := l.life, l.side, w.nodes
	if side != 0 {
		nodes = w.foreign
	}
	answer := func(a *wire.Answer) {
		if side != l.side || l.life != life {
			return
		}
		l.do(func() { l.hear(a) })
	}
	var batch []wire.Request
	for _, r := range list {
		if w.batches && r.Verb.InBatch() && len(batch) < wire.MaxBatch {
			batch = append(batch, r)
			continue
		}
		w.askAll(nodes, l.name, r, answer)
	}
	switch len(batch) {
	case 0:
	case 1:
		w.askAll(nodes, l.name, batch[0], answer)
	default:
		w.askBatch(nodes, l.name, batch, answer)
	}
}

// askBatch carries several requests in one message.
func (w *epochWorld) askBatch(nodes []*epochNode, from string, list []wire.Request, answer func(*wire.Answer)) {
	var body []byte
	for i := range list {
		name, err := subject.EncodeName(list[i].Resource)
		if err != nil {
			w.fail("%s: %v", from, err)
			return
		}
		body = wire.AppendToBatch(wire.AppendSeparator(body), list[i].Verb, name, wire.AppendRequest(nil, &list[i]))
	}
	body = append(body, ']')
	for _, nd := range nodes {
		w.send(from, nd.name, func() {
			got, err := wire.DecodeBatch(nil, from, slices.Clone(body))
			if err != nil {
				w.fail("%s sends %s: %v", from, body, err)
				return
			}
			core := nd.core
			nd.do(func() {
				if core == nil || nd.core != core {
					return
				}
				nd.boxes[from] = &epochInbox{from, answer}
				nd.step(func(out *voter.Out) {
					now := nd.clock()
					for i := range got {
						core.Handle(now, &got[i], from, out)
					}
				})
			})
		})
	}
}

func (l *epochLocker) hear(a *wire.Answer) {
	w := l.w
	if a.Kind == wire.Informed {
		if !w.slow || w.calm || w.rng.IntN(4) == 0 {
			l.learn(func(now wire.Now, out *members.Out) { l.members.Hear(now, a, out) })
			l.flush()
		}
		return
	}
	if l.table != nil && a.Kind != wire.Evicting {
		l.table.Handle(l.now(), a, &l.out)
		l.flush()
	}
}

// learn calls f with the machine that knows the nodes, and does what it wants done.
func (l *epochLocker) learn(f func(wire.Now, *members.Out)) {
	w, now := l.w, l.now()
	var out members.Out
	if l.core != nil && l.core.Shown() {
		l.members.Shown()
	}
	f(now, &out)
	if out.Found != nil {
		l.take(now, *out.Found)
	}
	if out.Ask != "" {
		l.publish([]wire.Request{{Verb: wire.Info, Client: l.name, Nonce: out.Ask, ShowConfig: true}})
	}
	l.asking++
	if wait, ok := l.members.Wait(now); ok {
		asking := l.asking
		w.at(time.Duration(float64(wait)/l.clock.rate)+time.Microsecond, func() {
			l.do(func() {
				if l.asking == asking {
					l.learn(l.members.Tick)
					l.flush()
				}
			})
		})
	}
}

// take counts by another configuration from now on.
func (l *epochLocker) take(now wire.Now, cfg wire.Config) {
	w := l.w
	w.tracef("%s counts by epoch %d, %v, from now on", l.name, cfg.Epoch(), cfg.Nodes)
	if w.records[cfg.Digest()] == nil && cfg.Digest() != w.base.Digest() && len(w.foreign) == 0 {
		w.fail("%s counts by %v, epoch %d, which no node has", l.name, cfg.Nodes, cfg.Epoch())
	}
	if l.core == nil {
		w.res.Full.Found++
		l.core = client.New(client.Config{
			Name: l.name, Instance: l.instance, TTL: min(l.lease, cfg.MaxTTL), MaxRuns: 2, Seed: uint64(w.rng.IntN(2)) * w.rng.Uint64(), Cluster: cfg,
		}, now)
		l.members.SetLease(min(l.lease, cfg.MaxTTL))
		l.table = hold.New(l.core, []time.Duration{0, 300 * time.Millisecond, 4 * time.Second}[w.rng.IntN(3)])
		if w.rng.IntN(3) == 0 {
			l.table.PassOn(w.rng.IntN(3), w.between(0, time.Second))
		}
		return
	}
	before := l.core.Cluster()
	var held []*epochJob
	for _, list := range w.jobs {
		for _, j := range list {
			if j.locker == l && j.held {
				held = append(held, j)
			}
		}
	}
	l.table.SetCluster(now, cfg, &l.out)
	switch {
	case cfg.Continues(&before):
		w.res.Full.Moved++
		w.movesAlone(l.name, cfg.Record)
		w.movesUnheard(l)
		for _, j := range held {
			if j.use.State() == hold.Holding {
				w.res.Full.Carried++
			}
		}
		return
	case before.Record != nil && (cfg.Record == nil || cfg.Record.CID == before.Record.CID && cfg.Epoch() <= before.Epoch()):
		w.fail("%s goes from epoch %d back to epoch %d", l.name, before.Epoch(), cfg.Epoch())
	}
	w.res.Full.Strange++
	for _, j := range held {
		if j.use.State() == hold.Holding {
			w.fail("%s keeps %s, and counts by a configuration that does not continue its own", l.name, j.name)
		}
	}
}

func (l *epochLocker) tick() {
	if l.table != nil {
		l.table.Tick(l.now(), &l.out)
		l.flush()
	}
}

// flush does what the machines want done.
func (l *epochLocker) flush() {
	if l.table == nil {
		return
	}
	w, now := l.w, l.now()
	if l.out.Renew { // before anything is sent (C15)
		l.instance = w.id()
		l.table.Renew(now, l.instance, &l.out)
	}
	out := l.out
	l.out = hold.Out{}
	for _, note := range out.Notes {
		w.tracef("%s: %s", l.name, note)
	}
	for _, e := range out.Holds {
		if j, ok := e.Hold.User.(*epochJob); ok {
			j.event(e)
		}
	}
	if out.AskNow {
		l.learn(l.members.QueryNow)
	} else if out.AskInfo {
		l.learn(l.members.Query)
	}
	l.publish(out.Requests)
	l.timer++
	wait, ok := l.table.Wait(now)
	if l.core.Claims() > 0 {
		if !ok || wait > time.Second {
			wait, ok = time.Second, true // it notices that it slept (C8)
		}
	}
	if ok {
		timer := l.timer
		w.at(time.Duration(float64(wait)/l.clock.rate)+time.Microsecond, func() {
			l.do(func() {
				if l.timer == timer {
					l.tick()
				}
			})
		})
	}
}

// loop is a goroutine that wants locks, one after the other.
func (l *epochLocker) loop() {
	w := l.w
	if w.calm {
		return
	}
	w.at(w.between(0, 1500*time.Millisecond), l.loop)
	l.do(func() {
		if mine := l.jobs(); l.table != nil && len(mine) < 4 {
			l.want(w.names[w.rng.IntN(len(w.names))])
		}
	})
}

func (l *epochLocker) jobs() (mine []*epochJob) {
	for _, name := range l.w.names {
		for _, j := range l.w.jobs[name] {
			if j.locker == l {
				mine = append(mine, j)
			}
		}
	}
	return mine
}

func (l *epochLocker) want(name string) {
	w := l.w
	j := &epochJob{locker: l, life: l.life, name: name}
	r := hold.Request{Resource: name, Try: w.rng.IntN(6) == 0, Manual: w.rng.IntN(6) == 0, Watch: w.rng.IntN(6) == 0, User: j}
	if w.rng.IntN(3) == 0 {
		j.mode = quorum.Shared
	}
	r.Mode = j.mode
	if w.calm {
		r.Try = false
	}
	w.tracef("%s wants %s (%s), try %v", l.name, name, j.mode, r.Try)
	w.jobs[name] = append(w.jobs[name], j)
	j.use = l.table.Lock(l.now(), r, &l.out)
	if !w.calm && w.rng.IntN(4) == 0 {
		w.at(w.between(0, 5*time.Second), func() {
			l.do(func() {
				if !j.held {
					j.release()
				}
			})
		})
	}
	l.flush()
}

// holds reports whether the client believes that it has the lock. One that stands still finds
// out when it looks at its clocks.
func (j *epochJob) holds() bool {
	l := j.locker
	return j.held && !j.ended && (!l.paused || l.table.HeldAt(l.now(), j.use))
}

func (j *epochJob) event(e hold.Event) {
	l, w := j.locker, j.locker.w
	if j.ended || j.life != l.life {
		return
	}
	switch e.Kind {
	case hold.Held:
		j.held = true
		if e.First {
			w.won[j.use.Claim()] = l.side
		}
		j.side = w.won[j.use.Claim()]
		w.res.Full.Held++
		if !e.First {
			w.res.Full.Passed++
		}
		w.tracef("%s holds %s (%s) with token +%v at epoch %d, cluster %d", l.name, j.name, j.mode, time.Duration(int64(j.use.Token())-epochWall)*time.Microsecond, l.epoch(), j.side)
		w.checkAlone(j, fmt.Sprintf("%s at epoch %d", l.name, l.epoch()), j.name, j.mode, j.side)
		if j.side == 0 {
			w.checkToken(l.name, j.name, j.mode, j.use.Token())
		}
		d := w.between(0, 300*time.Millisecond)
		if !w.calm && w.rng.IntN(3) == 0 {
			d = w.between(0, 6*time.Second)
		}
		j.until = w.now + d
		j.releaseLater()
	case hold.Lost:
		w.tracef("%s has lost %s, evicted %v, its owner releases it: %v", l.name, j.name, e.Eviction != nil, e.Left)
		if e.Eviction == nil {
			w.res.Full.Lost++
			w.lostFor(l.name, j.name)
		} else {
			w.res.Full.Evicted++
		}
		j.end()
		if e.Left {
			w.at(w.between(0, 2*epochTTL), func() { l.do(j.unlock) })
		}
	case hold.Failed:
		w.tracef("%s does not get %s", l.name, j.name)
		j.end()
	}
}

func (j *epochJob) releaseLater() {
	j.locker.w.at(j.until-j.locker.w.now, func() {
		j.locker.do(func() {
			if j.ended || j.life != j.locker.life {
				return
			}
			if j.locker.w.now < j.until {
				j.releaseLater()
				return
			}
			j.release()
		})
	})
}

// release ends the job: it unlocks, or gives up.
func (j *epochJob) release() {
	if j.ended || j.life != j.locker.life {
		return
	}
	j.locker.w.tracef("%s ends %s, held %v", j.locker.name, j.name, j.held)
	j.end()
	j.unlock()
}

func (j *epochJob) unlock() {
	if l := j.locker; j.life == l.life {
		l.table.Unlock(l.now(), j.use, &l.out)
		l.flush()
	}
}

func (j *epochJob) end() {
	j.ended = true
	w := j.locker.w
	w.jobs[j.name] = slices.DeleteFunc(slices.Clone(w.jobs[j.name]), func(o *epochJob) bool { return o == j })
}

// keepOn makes the client hold what it has for longer, and reports whether it has anything.
func (l *epochLocker) keepOn(until time.Duration) (any bool) {
	for _, j := range l.jobs() {
		if j.held {
			any, j.until = true, max(j.until, until)
		}
	}
	return any
}

// playLocker has something happen to a client of production now and then.
func (w *epochWorld) playLocker() {
	l := w.lockers[w.rng.IntN(len(w.lockers))]
	kind := w.rng.IntN(10)
	if w.quiet && kind > 1 {
		kind = 9
	}
	switch kind {
	case 0:
		w.depart(l)
	case 1:
		l.crash()
	case 2, 3:
		l.pause(w.between(0, 2*epochTTL), kind == 3)
	case 4: // its wall clock is set: not while it sleeps (see Bounds in docs/protocol.md)
		if !l.paused {
			l.tick()
			l.clock.offset = w.between(0, epochSkew/2)
			l.tick()
		}
	case 5, 6:
		l.reconnect(w.rng.IntN(2))
	}
}

// depart evicts a claim of a client, as an operator whose own record may be an earlier one, and
// looks whether it is over when enough nodes say so (N10, E15).
func (w *epochWorld) depart(l *epochLocker) {
	by := w.lockers[w.rng.IntN(len(w.lockers))]
	if l.core == nil || by.core == nil || l.core.Claims() == 0 || l.side != 0 {
		return
	}
	all := l.core.All()
	claim := all[w.rng.IntN(len(all))]
	if side, ok := w.won[claim]; ok && side != 0 {
		return
	}
	id := wire.ClaimID{Instance: l.instance, Seq: claim.Seq()}
	held := claim.State() == client.Holding
	w.tracef("%s of %s on %s is to be evicted, by epoch %d", id, l.name, claim.Resource(), by.epoch())
	rounds := 1 + w.rng.IntN(8)
	var ask func()
	over := false
	ask = func() {
		if over || rounds == 0 || w.calm || by.core == nil {
			return
		}
		rounds--
		w.at(w.between(300*time.Millisecond, time.Second), ask)
		w.ids++
		nonce := fmt.Sprint("d", w.ids)
		d := client.NewDeparture(by.core.Cluster(), nonce)
		r := wire.Request{Verb: wire.Evict, Client: "ops", Resource: claim.Resource(), Nonce: nonce, Query: "simulated", Holder: l.name, Claim: id}
		w.ask("ops", r, func(a *wire.Answer) {
			if a.Kind != wire.Evicting {
				return
			}
			if d.Hear(a); !d.Over() || over {
				return
			}
			over = true
			w.res.Full.Departed++
			w.tracef("%s of %s is over according to enough nodes", id, l.name)
			for _, j := range w.jobs[claim.Resource()] {
				if held && j.holds() && j.use.Claim() == claim {
					w.fail("%s still holds %s, though its eviction is reported as done", l.name, j.name)
				}
			}
		})
	}
	ask()
}

// settleLockers looks whether all clients of production get a lock, and follow the cluster.
func (w *epochWorld) settleLockers() {
	if w.err != nil || len(w.lockers) == 0 {
		return
	}
	known := func() bool {
		return !slices.ContainsFunc(w.lockers, func(l *epochLocker) bool { return l.core == nil })
	}
	if !w.await(10*time.Second, known) {
		w.fail("a client has not learned who the nodes are")
		return
	}
	var mine []*epochJob
	for _, l := range w.lockers {
		for _, name := range w.names {
			l.want(name)
		}
		mine = append(mine, l.jobs()...)
	}
	if !w.await(30*time.Second, func() bool { return !slices.ContainsFunc(mine, func(j *epochJob) bool { return !j.ended }) }) && w.err == nil {
		for _, j := range mine {
			if !j.ended {
				w.fail("%s still wants %s after 30 s in which all was well, held: %v", j.locker.name, j.name, j.held)
			}
		}
	}
	last := w.last()
	for _, l := range w.lockers {
		if cfg := l.core.Cluster(); w.err == nil && last != nil && l.core.Digest() != last.Digest() {
			w.fail("%s counts by epoch %d, and the cluster is at epoch %d", l.name, cfg.Epoch(), last.Epoch)
		}
	}
}
