//go:build unix

package chaos

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/integration/internal/child"
	"github.com/qlock/qlock/internal/testproxy"
	changes "github.com/qlock/qlock/nodes"
)

const (
	progress = "progress" // of an operator: what it should read
	over     = "over"     // of an operator: its end; Text is its error

	lostInAChange = "kept lock lost, though every process ran"
	atOnce        = "all nodes replaced at once"
	wrongList     = "the list is not the one that was decided"
)

// operatorRole is a process that changes the list of nodes.
type operatorRole struct {
	URLs string
	Do   string // enable, change, stay, finish or rollback
	List []string
	Gone []string
}

// run does what the operator is for. It may be killed at any moment.
func (r *operatorRole) run() error {
	out := child.NewJournal(os.Stdout)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		words := bufio.NewScanner(os.Stdin)
		for words.Scan() {
		}
		cancel() // the supervisor is dead
	}()
	nc, err := nats.Connect(r.URLs, nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.IgnoreDiscoveredServers())
	if err != nil {
		return err
	}
	defer nc.Close()
	opts := []changes.Option{changes.Name("operator"), changes.Gone(r.Gone...), changes.Progress(func(s string) { out.Write(line{Kind: progress, At: now(), Text: s}) })}
	switch r.Do {
	case "stay":
		err = changes.Change(ctx, nc, r.List, append(opts, changes.StayJoint())...)
	case "enable":
		err = changes.Enable(ctx, nc, opts...)
	case "finish":
		err = changes.Finish(ctx, nc, opts...)
	case "rollback":
		err = changes.RollBack(ctx, nc, opts...)
	default:
		err = changes.Change(ctx, nc, r.List, opts...)
	}
	end := line{Kind: over, At: now()}
	if err != nil {
		end.Text = err.Error()
	}
	out.Write(end)
	return nil
}

// fleet is a world whose nodes come and go: the list of nodes changes under load.
type fleet struct {
	*world
	rand     *rand.Rand
	alive    []string // names of the nodes that run, in the order of their starts
	list     []string // of the cluster, as the last command left it
	seats    map[string]*nodeSeat
	dead     []string // nodes that were killed, and will not come back
	made     int
	done     map[string]int
	operated int
	machine  life               // the supervisor's own pauses, and those of nodes
	proxies  []*testproxy.Proxy // all that there ever were; of the goroutine of the test
	links    links
	harms    []span         // when links were harmed
	forms    map[string]int // how, and how often; of the goroutine that does it
}

// TestLists changes the list of nodes while clients work: it grows, a node that was killed is
// replaced, all are replaced one after the other and at once, it shrinks. Operators are killed in
// the middle of it, and others go on. What is checked is what TestChaos checks. Besides, no lock that
// a client keeps all the time may be lost, but when links are harmed, which they are in half of the
// changes.
func TestLists(t *testing.T) {
	length := time.Second // the first change alone
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "chaos.for" {
			length = *runFor
		}
	})
	t.Logf("seed %d, for %v", *seed, length)
	f := newFleet(t, *seed)
	began := time.Now()
	f.rec.zero = now()
	f.first()
	if time.Since(began) >= length {
		f.finish()
		f.judge(time.Since(began))
		return
	}
	for steps := []func(){f.replaceAtOnce, f.replaceKilled, f.replaceAll, f.shrink, f.undo, f.grow}; ; {
		for _, step := range steps {
			step()
			if time.Since(began) >= length || t.Failed() {
				f.finish()
				f.judge(time.Since(began))
				return
			}
		}
		f.rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	}
}

func newFleet(t *testing.T, seed uint64) *fleet {
	t.Helper()
	f := &fleet{
		world: &world{t: t, dir: t.TempDir(), holdings: map[string]*holding{}, denied: map[string]int{}, evicted: map[string]int{}, changed: make(chan struct{})},
		rand:  rand.New(rand.NewPCG(seed, 3)), seats: map[string]*nodeSeat{}, done: map[string]int{},
		links: links{all: map[between]*testproxy.Proxy{}}, forms: map[string]int{},
	}
	f.record()
	// To the end, and when all processes are dead: a port that is given up may be that of another
	// test's server at once, and a node tries its routes for ever. It would find another cluster there.
	t.Cleanup(func() {
		for _, p := range f.proxies {
			_ = p.Close()
		}
	})
	t.Cleanup(func() {
		for _, s := range f.seats {
			if s.proc != nil {
				s.proc.Kill()
			}
		}
		for _, s := range f.clients {
			if s != nil && s.proc != nil {
				s.proc.Kill()
			}
		}
	})
	f.list = []string{"n1", "n2", "n3"}
	for range f.list {
		f.add(f.list)
	}
	f.votes(f.list)
	for i := range 3 {
		s := &clientSeat{role: clientRole{
			Name: clientName(i), Store: f.store.listener.Addr().String(), Lease: lease, Names: resources[:8],
			Workers: workers, Seed: seed, Keep: true, KeepShared: i == 1,
		}}
		var urls []string
		for range 2 {
			p := f.proxy("")
			s.proxies = append(s.proxies, p)
			urls = append(urls, "nats://"+p.Addr())
		}
		s.role.URLs = strings.Join(urls, ",")
		f.clients[i] = s
	}
	f.lead()
	for i := range 3 {
		must(t, f.startClient(i))
	}
	must(t, f.works(now(), true))
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		f.watch(ctx)
	}()
	t.Cleanup(func() { stop(); <-stopped })
	return f
}

// watch notes when the supervisor itself did not run: then nor did others, perhaps.
func (f *fleet) watch(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for last := now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t := now()
		if t-last > (beat + tardy).Nanoseconds() {
			f.mu.Lock()
			f.machine.gaps = append(f.machine.gaps, span{last, t})
			f.mu.Unlock()
		}
		last = t
	}
}

// add starts a node: with a list, as one of a new cluster, else so that it joins.
func (f *fleet) add(list []string) string {
	f.t.Helper()
	name := nodeName(f.made)
	f.made++
	s := &nodeSeat{role: nodeRole{Pulse: true, Config: qlock.NodeConfig{
		Name: name, Nodes: list, Join: list == nil, StateDir: filepath.Join(f.dir, "state-"+name), MaxLease: lease, ProbeWait: 50 * time.Millisecond,
	}}}
	if list != nil {
		must(f.t, qlock.Bootstrap(s.role.Config))
	}
	for _, other := range f.alive {
		s.role.Routes = append(s.role.Routes, f.route(name, other))
	}
	p, err := launch(f.dir, name, role{Node: &s.role}, func(l line) {
		if l.Kind == late {
			f.mu.Lock()
			f.machine.gaps = append(f.machine.gaps, span{l.From, l.At})
			f.mu.Unlock()
			return
		}
		f.hearNode(s, name, l)
	})
	must(f.t, err)
	s.proc = p
	f.seats[name] = s
	must(f.t, f.await(name+" serves", func() bool { return s.at.Client != "" }))
	f.alive = append(f.alive, name)
	return name
}

func (f *fleet) votes(list []string) {
	f.t.Helper()
	must(f.t, f.await(fmt.Sprintf("nodes %v vote", list), func() bool {
		return !slices.ContainsFunc(list, func(n string) bool { return !f.seats[n].votes })
	}))
}

// lead leads the clients to nodes that run. Connections that there are stay.
func (f *fleet) lead() {
	for i, s := range f.clients {
		if s == nil || len(f.alive) == 0 {
			continue
		}
		for k, p := range s.proxies {
			u, err := url.Parse(f.seats[f.alive[(i+k)%len(f.alive)]].at.Client)
			must(f.t, err)
			p.SetTarget(u.Host)
		}
	}
}

// gone is after a node's end.
func (f *fleet) gone(name string) {
	f.alive = slices.DeleteFunc(f.alive, func(n string) bool { return n == name })
	f.unlink(name)
	f.lead()
}

// retire stops the nodes that the list does not have, at the same time.
func (f *fleet) retire() {
	f.t.Helper()
	var all sync.WaitGroup
	for _, name := range slices.Clone(f.alive) {
		if slices.Contains(f.list, name) {
			continue
		}
		f.gone(name)
		all.Go(func() {
			if err := f.seats[name].proc.End(wordEnd, patience); err != nil {
				f.violate(brokenProcess, "%v", err)
			}
		})
	}
	all.Wait()
}

// operate runs one operator. If limit is not 0, it is killed then, if it has not ended.
func (f *fleet) operate(do string, list []string, limit time.Duration) (text string, ended bool) {
	f.t.Helper()
	f.operated++
	name := fmt.Sprintf("operator.%d", f.operated)
	var urls []string
	for _, n := range f.alive {
		urls = append(urls, f.seats[n].at.Client)
	}
	said := make(chan line, 100)
	p, err := launch(f.dir, name, role{Operator: &operatorRole{URLs: strings.Join(urls, ","), Do: do, List: list, Gone: f.dead}}, func(l line) {
		switch l.Kind {
		case over:
			said <- l
		case progress:
			f.logf("%s: %s", name, l.Text)
		case broken:
			f.violate(brokenProcess, "%s: %s", name, l.Text)
		}
	})
	must(f.t, err)
	defer p.Kill()
	p.MayEnd()
	timer := time.NewTimer(patience)
	if limit > 0 {
		timer.Reset(limit)
	}
	defer timer.Stop()
	f.logf("%s: %s %v", name, do, list)
	select {
	case l := <-said:
		return l.Text, true
	case <-timer.C:
		f.logf("%s is killed", name)
		return "killed", false
	case <-p.Done:
		select {
		case l := <-said:
			return l.Text, true
		default:
		}
		f.violate(brokenProcess, "%s ended by itself: %s", name, p.LastWords())
		return "dead", false
	}
}

// change has the list changed: by one operator, or by two of which the first one is killed. Links are
// harmed meanwhile, or are not.
func (f *fleet) change(what string, list []string) {
	f.t.Helper()
	// Where no node is in both lists, nothing but the rules of changes keeps two from one lock.
	if what == atOnce && f.done[what]%2 == 0 || f.done["first change"] > 0 && f.rand.IntN(2) == 0 {
		f.amidFaults(list, func() { f.operators(list) })
	} else {
		f.operators(list)
	}
	f.done[what]++
	f.list = list
	f.retire()
}

func (f *fleet) operators(list []string) {
	f.t.Helper()
	if first := f.done["first change"] == 0; first || f.rand.IntN(2) == 0 {
		limit := time.Millisecond + time.Duration(f.rand.Int64N(int64(lease*3/2)))
		if text, ended := f.operate("change", list, limit); ended && text != "" {
			f.violate(brokenProcess, "change to %v: %s", list, text)
		} else if !ended {
			f.done["operators killed"]++
		}
	}
	if f.rand.IntN(3) == 0 {
		f.restartClient()
	}
	if text, ended := f.operate("change", list, 0); !ended || text != "" {
		f.violate(brokenProcess, "change to %v: %s", list, text)
		f.t.FailNow()
	}
}

// restartClient kills a client, and starts it again while the list changes.
func (f *fleet) restartClient() {
	f.t.Helper()
	i := f.rand.IntN(3)
	p := f.clients[i].proc
	before := now()
	p.Kill()
	f.mu.Lock()
	f.rec.lives[p.Name].killed = span{before, now()}
	f.mu.Unlock()
	f.logf("%s is killed, and started again", p.Name)
	must(f.t, f.startClient(i))
}

// first is the first change, from 3 to 5, with one of the three dead and replaced by another name.
func (f *fleet) first() {
	f.operate("enable", nil, 0)
	dead := f.list[f.rand.IntN(3)]
	f.logf("%s is killed", dead)
	f.seats[dead].proc.Kill()
	f.gone(dead)
	f.dead = []string{dead} // the first change would wait for it
	list := slices.Clone(f.alive)
	for len(list) < 5 {
		list = append(list, f.add(nil))
	}
	f.change("first change", list)
}

func (f *fleet) grow() {
	list := slices.Clone(f.list)
	for len(list) < 5 {
		list = append(list, f.add(nil))
	}
	f.change("grown to 5", list)
}

func (f *fleet) shrink() {
	list := slices.Clone(f.list)
	f.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	f.change("shrunk to 3", list[:3])
}

// replaceKilled replaces a node that was killed by one of another name.
func (f *fleet) replaceKilled() {
	i := f.rand.IntN(len(f.list))
	dead := f.list[i]
	f.logf("%s is killed", dead)
	f.seats[dead].proc.Kill()
	f.gone(dead)
	list := slices.Clone(f.list)
	list[i] = f.add(nil)
	f.change("killed node replaced", list)
}

func (f *fleet) replaceAll() {
	for i := range f.list {
		list := slices.Clone(f.list)
		list[i] = f.add(nil)
		f.change("running node replaced", list)
	}
}

func (f *fleet) replaceAtOnce() {
	var list []string
	for range f.list {
		list = append(list, f.add(nil))
	}
	f.change(atOnce, list)
}

// undo begins a change and has two operators end it at the same time, one by going on and one by
// going back. One of them has its way.
func (f *fleet) undo() {
	list := append(slices.Clone(f.list)[1:], f.add(nil))
	if text, ended := f.operate("stay", list, 0); !ended || text != "" {
		f.violate(brokenProcess, "change to %v: %s", list, text)
		f.t.FailNow()
	}
	finish, _ := f.operate("finish", nil, time.Millisecond+time.Duration(f.rand.Int64N(int64(lease*3/2))))
	if text, ended := f.operate("rollback", nil, 0); !ended || text != "" {
		f.violate(brokenProcess, "rollback: %s", text)
	}
	f.done["finished against roll back"]++
	got := f.members()
	switch {
	case slices.Equal(got.Config.Nodes, slices.Sorted(slices.Values(list))):
		f.list = list
	case finish == "": // it said that it is done
		f.violate(wrongList, "finished to %v, and then it is %v", list, got.Config.Nodes)
	}
	f.retire()
}

// members is what the nodes say of their list.
func (f *fleet) members() *qlock.Members {
	f.t.Helper()
	nc, err := nats.Connect(f.seats[f.alive[0]].at.Client, nats.Timeout(patience))
	must(f.t, err)
	defer nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := qlock.QueryMembers(ctx, nc, qlock.WithName("operator"))
	must(f.t, err)
	return m
}

// works waits until each worker has a lock that it asked for after a moment. Those that keep one need
// to have it.
func (f *fleet) works(since int64, keepers bool) error {
	var missing []string
	err := f.await("every worker has a lock", func() bool {
		missing = nil
		for i, s := range f.clients {
			for k := range workers {
				if s != nil && s.last[k] <= since && (k < workers-1 || keepers && s.last[k] == 0) {
					missing = append(missing, fmt.Sprintf("%s/w%d", clientName(i), k))
				}
			}
		}
		return len(missing) == 0
	})
	if err != nil {
		return fmt.Errorf("%w; without one are %v", err, missing)
	}
	return nil
}

// finish is after the last change: everybody works, the list is as the operators were told, and when
// the clients are gone nothing is left of them.
func (f *fleet) finish() {
	if err := f.works(now(), false); err != nil {
		f.violate(noProgress, "%v", err)
	}
	var m *qlock.Members
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		m = f.members() // a node that was behind learns the list by itself
		if want := slices.Sorted(slices.Values(f.list)); slices.Equal(m.Config.Nodes, want) && m.Change == nil && m.Voting() == len(want) {
			break
		}
		if time.Now().After(end) {
			f.violate(wrongList, "it should be %v: %v, change %v", f.list, m, m.Change)
			break
		}
	}
	f.done["epoch at the end"] = int(m.Config.Epoch)
	var ends sync.WaitGroup
	for _, s := range f.clients {
		if s == nil {
			continue
		}
		ends.Go(func() {
			if err := s.proc.End(wordEnd, patience); err != nil {
				f.violate(brokenProcess, "%v", err)
			}
		})
	}
	ends.Wait()
	for _, n := range f.list {
		if err := f.empty(f.seats[n]); err != nil {
			f.violate(claimsRemained, "%s: %v", n, err)
		}
	}
	f.list = nil
	f.retire()
}

// judge checks the records.
func (f *fleet) judge(took time.Duration) {
	f.t.Helper()
	f.logs()
	f.store.close()
	f.rec.accesses = f.store.accesses
	found, figures, illegal := f.rec.check()
	f.illegal = illegal
	found = append(f.found, found...)
	starved, cut := 0, 0
	for _, h := range f.rec.holdings {
		if !strings.HasPrefix(h.name, kept) || h.told == 0 && !h.lost {
			continue
		}
		at := max(h.told, h.released)
		if f.cut(at-2*lease.Nanoseconds(), at) {
			cut++
			continue
		}
		if f.starved(at-2*lease.Nanoseconds(), at) {
			starved++
			continue
		}
		found = append(found, violation{lostInAChange, f.rec.say(h)})
	}
	f.t.Logf("in %v: %d exclusive and %d shared locks, %d lost, %d with their client killed; kept ones lost when links were harmed: %d, when a process was late: %d; %v; links %v; denied %v; %d operations checked in %v, longest time without a grant %v",
		took.Round(time.Millisecond), figures.exclusive, figures.shared, figures.lost, figures.killed, cut, starved, f.done, f.forms, f.denied, figures.operations, figures.checked.Round(time.Millisecond), figures.silence)
	for i, v := range found {
		if i == 20 {
			f.t.Errorf("and %d violations more", len(found)-i)
			break
		}
		f.t.Errorf("%s: %s", v.kind, v.text)
	}
	if figures.exclusive == 0 || figures.shared == 0 {
		f.t.Error("nothing was granted: the run shows nothing")
	}
	if f.t.Failed() {
		f.t.Logf("to run it again: go test ./integration/chaos -run '^TestLists$' -v -chaos.for=%v -chaos.seed=%d", took.Round(time.Second), *seed)
	}
}

// starved reports whether processes did not run for a part of that time, by the machine's load: one
// of them for a while, or all together for longer. A lock may be lost then without a fault of qlock.
func (f *fleet) starved(from, to int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := int64(0)
	late := func(gaps []span) bool {
		for _, g := range gaps {
			if g.from < to && from < g.to {
				all += g.to - g.from
				if g.to-g.from > lease.Nanoseconds()/40 {
					return true
				}
			}
		}
		return all > lease.Nanoseconds()/10
	}
	for _, l := range f.rec.lives {
		if late(l.gaps) {
			return true
		}
	}
	return late(f.machine.gaps)
}
