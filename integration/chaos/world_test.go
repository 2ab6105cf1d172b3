//go:build unix

package chaos

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/integration/internal/child"
	"github.com/qlock/qlock/internal/testproxy"
)

// world is the supervisor: it has all processes, proxies and records.
type world struct {
	t     *testing.T
	dir   string
	store *store

	nodes   [nodes]*nodeSeat
	clients [clients]*clientSeat
	routes  [nodes][nodes]*testproxy.Proxy // what the first dials to reach the second
	links   map[link]*sync.Mutex           // held by the fault of a link

	mu       sync.Mutex // guards what follows, and the seats' own
	rec      record
	holdings map[string]*holding
	found    []violation
	illegal  []porcupine.Operation
	faults   map[string]int // by kind
	harm     map[string]int // those of links, by form
	denied   map[string]int // locks not granted, by reason
	evicted  map[string]int // claims to be evicted, by what came of it
	changed  chan struct{}  // closed and made anew when something was heard
}

// nodeSeat is the place of a node, and clientSeat that of a client, which one
// process after another has.
type nodeSeat struct {
	hands  sync.Mutex // held by the fault that has it in its hands; guards proc
	proc   *child.Process
	role   nodeRole
	count  int
	at     line // where it serves; guarded by world.mu, as what follows
	votes  bool
	claims int // the last answer, -1 while it is outstanding
}

type clientSeat struct {
	hands   sync.Mutex
	proc    *child.Process
	role    clientRole
	count   int
	proxies []*testproxy.Proxy // to its nodes
	last    [workers]int64     // when the last grant of each worker was asked for; guarded by world.mu
}

var resources = strings.Split("abcdefghijklmnopqrstuvwx", "")

// record starts what the world is judged by: the journal of its processes and the store. A test
// that failed keeps them.
func (w *world) record() {
	w.t.Helper()
	w.rec.lives = map[string]*life{}
	w.t.Cleanup(func() { // when all processes are dead
		if w.t.Failed() {
			w.keep()
		}
	})
	var err error
	w.store, err = startStore()
	must(w.t, err)
	w.t.Cleanup(w.store.close)
}

// start makes the world: all nodes vote and all clients work when it returns.
func start(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, dir: t.TempDir(), links: map[link]*sync.Mutex{}, holdings: map[string]*holding{},
		faults: map[string]int{}, harm: map[string]int{}, denied: map[string]int{}, evicted: map[string]int{}, changed: make(chan struct{}),
	}
	w.record()
	proxy := func() *testproxy.Proxy {
		p, err := testproxy.New("", seed)
		must(t, err)
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	for i := range nodes {
		for j := range nodes {
			if i < j {
				w.links[link{i, j}] = new(sync.Mutex)
			}
			if i != j {
				w.routes[i][j] = proxy()
			}
		}
	}
	var names []string
	for i := range nodes {
		names = append(names, nodeName(i))
	}
	for i := range nodes {
		s := &nodeSeat{role: nodeRole{Config: qlock.NodeConfig{
			Name: names[i], Nodes: names, StateDir: w.stateDir(i),
			MaxLease: lease, ProbeWait: 50 * time.Millisecond,
		}}}
		for j := range nodes {
			if i != j {
				s.role.Routes = append(s.role.Routes, "nats-route://"+w.routes[i][j].Addr())
			}
		}
		w.nodes[i] = s
		// Here and nowhere else: a node that was wiped must wait.
		must(t, qlock.Bootstrap(s.role.Config))
	}
	for i := range clients {
		s := &clientSeat{role: clientRole{
			Name: clientName(i), Store: w.store.listener.Addr().String(), Lease: lease, Names: resources,
			Workers: workers, Seed: seed,
		}}
		// One, two or three nodes each, and another first.
		var urls []string
		for range 1 + i%3 {
			p := proxy()
			s.proxies = append(s.proxies, p)
			urls = append(urls, "nats://"+p.Addr())
		}
		s.role.URLs = strings.Join(urls, ",")
		w.clients[i] = s
	}

	t.Cleanup(func() { // before the proxies close
		for _, s := range w.nodes {
			if s.proc != nil {
				s.proc.Kill()
			}
		}
		for _, s := range w.clients {
			if s.proc != nil {
				s.proc.Kill()
			}
		}
	})
	var starts sync.WaitGroup
	errs := make([]error, nodes)
	for i := range nodes {
		starts.Go(func() { errs[i] = w.startNode(i) })
	}
	starts.Wait()
	must(t, errors.Join(errs...))
	must(t, w.await("all nodes vote", func() bool {
		return !slices.ContainsFunc(w.nodes[:], func(s *nodeSeat) bool { return !s.votes })
	}))
	for i := range clients {
		must(t, w.startClient(i))
	}
	must(t, w.progress(now()))
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) stateDir(i int) string { return filepath.Join(w.dir, "state-"+nodeName(i)) }

// await waits for what processes say. ok is called with w.mu held.
func (w *world) await(what string, ok func() bool) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		w.mu.Lock()
		done, changed := ok(), w.changed
		w.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return fmt.Errorf("waited %v in vain: %s", patience, what)
		}
	}
}

// progress waits until each worker of each client was granted a lock that it
// asked for after a moment.
func (w *world) progress(since int64) error {
	var missing []string
	err := w.await("every worker has a lock", func() bool {
		missing = nil
		for i, s := range w.clients {
			for k, at := range s.last {
				if at <= since {
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

// logf writes to the test's log with the time since the schedule began.
func (w *world) logf(format string, args ...any) {
	w.t.Logf("%9s  %s", w.rec.moment(now()), fmt.Sprintf(format, args...))
}

func (w *world) violate(kind, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found = append(w.found, violation{kind, fmt.Sprintf(format, args...)})
}

// startNode starts a node's process, and leads the proxies to it.
func (w *world) startNode(i int) error {
	s := w.nodes[i]
	w.mu.Lock()
	s.at, s.votes = line{}, false
	w.mu.Unlock()
	s.count++
	name := fmt.Sprintf("%s.%d", nodeName(i), s.count)
	p, err := launch(w.dir, name, role{Node: &s.role}, func(l line) { w.hearNode(s, name, l) })
	if err != nil {
		return err
	}
	s.proc = p
	var at line
	if err := w.await(name+" serves", func() bool { at = s.at; return at.Client != "" }); err != nil {
		return err
	}
	return w.lead(i, at.Client, at.Route)
}

// lead leads all proxies to a node: to nowhere if the addresses are empty, since
// its ports may be anybody's while it is down.
func (w *world) lead(i int, client, route string) error {
	c, err := url.Parse(client)
	if err != nil {
		return err
	}
	r, err := url.Parse(route)
	if err != nil {
		return err
	}
	for j := range nodes {
		if j != i {
			w.routes[j][i].SetTarget(r.Host)
		}
	}
	for k, s := range w.clients {
		for n, p := range s.proxies {
			if (k+n)%nodes == i {
				p.SetTarget(c.Host)
			}
		}
	}
	return nil
}

func (w *world) hearNode(s *nodeSeat, name string, l line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch l.Kind {
	case serving:
		s.at = l
	case voting:
		s.votes = true
	case claims:
		s.claims = l.Claims
	case broken:
		w.found = append(w.found, violation{brokenProcess, name + ": " + l.Text})
	}
	w.wake()
}

// wake is called with w.mu held.
func (w *world) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) startClient(i int) error {
	s := w.clients[i]
	s.count++
	s.role.Process, s.role.Sequence = fmt.Sprintf("%s.%d", clientName(i), s.count), uint64(i)<<16|uint64(s.count)
	l := &life{alive: now()}
	w.mu.Lock()
	w.rec.lives[s.role.Process] = l
	w.mu.Unlock()
	name := s.role.Process
	var err error
	s.proc, err = launch(w.dir, name, role{Client: &s.role}, func(l line) { w.hearClient(i, name, l) })
	return err
}

func (w *world) hearClient(i int, process string, l line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	of := w.rec.lives[process]
	of.alive = max(of.alive, l.At)
	h := w.holdings[l.Holder]
	switch l.Kind {
	case granted:
		h = &holding{
			id: l.Holder, process: process, slot: i*workers + l.Worker, name: l.Name, shared: l.Shared, rude: l.Rude,
			token: l.Token, called: l.Called, returned: l.At,
		}
		w.holdings[h.id] = h
		w.rec.holdings = append(w.rec.holdings, h)
		w.clients[i].last[l.Worker] = l.Called
		w.wake()
	case told:
		h.told = l.At
	case releasing:
		h.releasing = l.At
	case released:
		h.released, h.lost, h.wrote = l.At, l.Lost, l.Wrote
	case failed:
		w.denied[l.Text]++
	case evicted:
		w.evicted[l.Text]++
	case late:
		of.gaps = append(of.gaps, span{l.From, l.At})
	case broken:
		w.found = append(w.found, violation{brokenProcess, process + ": " + l.Text})
		w.wake()
	}
}

// play puts the schedule into effect. A fault that comes when another has still
// something in its hands, because a process was slow to start, waits for that.
func (w *world) play(faults []fault) {
	w.rec.zero = now()
	began := time.Now()
	var all sync.WaitGroup
	for _, f := range faults {
		time.Sleep(time.Until(began.Add(f.at)))
		all.Go(func() { w.commit(f) })
	}
	all.Wait()
}

// commit does what a fault says, and undoes it.
func (w *world) commit(f fault) {
	var hands []*sync.Mutex // always in this order: nodes, clients, links
	if f.form == "" {
		for _, n := range f.nodes {
			hands = append(hands, &w.nodes[n].hands)
		}
	}
	for _, c := range f.clients {
		hands = append(hands, &w.clients[c].hands)
	}
	for _, l := range f.links {
		hands = append(hands, w.links[l])
	}
	for _, m := range hands {
		m.Lock()
		defer m.Unlock()
	}
	w.logf("%v (planned for %v)", f, f.at.Round(time.Millisecond))
	w.mu.Lock()
	w.faults[f.kind]++
	if f.form != "" {
		w.harm[string(f.form)]++
	}
	w.mu.Unlock()

	undo, err := w.inflict(f)
	if err == nil {
		time.Sleep(f.lasts)
		err = undo()
	}
	if err != nil {
		w.violate(brokenProcess, "%v: %v", f, err)
		return
	}
	w.logf("over: %v", f)
}

func (w *world) inflict(f fault) (undo func() error, err error) {
	switch f.kind {
	case killNode, wipeNode, restartNode, killMajority, wipeMajority, restartMajority:
		return w.takeDown(f)
	case stopNode, stopMajority:
		var all []*child.Process
		for _, n := range f.nodes {
			all = append(all, w.nodes[n].proc)
		}
		return stop(all)
	case killClient:
		i := f.clients[0]
		p := w.clients[i].proc
		before := now()
		p.Kill()
		w.mu.Lock()
		w.rec.lives[p.Name].killed = span{before, now()}
		w.mu.Unlock()
		return func() error { return w.startClient(i) }, nil
	case restartClient:
		i := f.clients[0]
		return func() error { return w.startClient(i) }, w.clients[i].proc.End(wordEnd, patience)
	case stopClient, pauseClient:
		p := w.clients[f.clients[0]].proc
		before := now()
		undo, err := stop([]*child.Process{p})
		return func() error {
			err := undo()
			w.mu.Lock()
			defer w.mu.Unlock()
			l := w.rec.lives[p.Name]
			l.stops = append(l.stops, span{before, now()})
			return err
		}, err
	case harmClient:
		proxies := w.clients[f.clients[0]].proxies
		for _, p := range proxies {
			harm(p, f.form, testproxy.Out)
		}
		return func() error { heal(proxies); return nil }, nil
	}
	// Routes. Out is the way from the first of a link, or, if a group is cut off, from
	// who is in it.
	var proxies []*testproxy.Proxy
	for _, l := range f.links {
		out := testproxy.Out
		if !slices.Contains(f.nodes, l.a) && slices.Contains(f.nodes, l.b) {
			out = testproxy.Back
		}
		there, back := w.routes[l.a][l.b], w.routes[l.b][l.a]
		harm(there, f.form, out)
		harm(back, f.form, testproxy.Both&^out)
		proxies = append(proxies, there, back)
	}
	return func() error { heal(proxies); return nil }, nil
}

// takeDown ends nodes, one way or the other, to start them again.
func (w *world) takeDown(f fault) (undo func() error, err error) {
	var all sync.WaitGroup
	errs := make([]error, len(f.nodes))
	for i, n := range f.nodes {
		all.Go(func() {
			p := w.nodes[n].proc
			if f.kind == restartNode || f.kind == restartMajority {
				errs[i] = p.End(wordEnd, patience)
			} else {
				p.Kill()
			}
			errs[i] = errors.Join(errs[i], w.lead(n, "", ""))
			if f.kind == wipeNode || f.kind == wipeMajority {
				errs[i] = errors.Join(errs[i], os.RemoveAll(w.stateDir(n)))
			}
		})
	}
	all.Wait()
	return func() error {
		var starts sync.WaitGroup
		for i, n := range f.nodes {
			starts.Go(func() { errs[i] = w.startNode(n) })
		}
		starts.Wait()
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

func stop(all []*child.Process) (undo func() error, err error) {
	for _, p := range all {
		err = errors.Join(err, p.Signal(syscall.SIGSTOP))
	}
	return func() error {
		var err error
		for _, p := range all {
			err = errors.Join(err, p.Signal(syscall.SIGCONT))
		}
		return err
	}, err
}

func harm(p *testproxy.Proxy, f form, out testproxy.Direction) {
	switch f {
	case blackhole:
		p.Block(testproxy.Both)
	case refusing:
		p.Cut()
	case reset:
		p.Reset()
	case delayed:
		p.Delay(testproxy.Both, 20*time.Millisecond, 60*time.Millisecond)
	case mute:
		p.Block(out)
	case deaf:
		p.Block(testproxy.Both &^ out)
	}
}

func heal(all []*testproxy.Proxy) {
	for _, p := range all {
		p.Heal()
	}
}

// finish is after the last fault: everybody must come on, and when the clients are
// gone nothing may be left of them.
func (w *world) finish() (recovered time.Duration) {
	healed := now()
	if err := w.progress(healed); err != nil {
		w.violate(noProgress, "%v", err)
	}
	recovered = time.Duration(now() - healed)
	if err := w.await("all nodes vote", func() bool {
		return !slices.ContainsFunc(w.nodes[:], func(s *nodeSeat) bool { return !s.votes })
	}); err != nil {
		w.violate(noProgress, "%v", err)
	}
	var ends sync.WaitGroup
	for _, s := range w.clients {
		ends.Go(func() {
			if err := s.proc.End(wordEnd, patience); err != nil {
				w.violate(brokenProcess, "%v", err)
			}
		})
	}
	ends.Wait()
	for i, s := range w.nodes {
		if err := w.empty(s); err != nil {
			w.violate(claimsRemained, "%s: %v", nodeName(i), err)
		}
	}
	for _, s := range w.nodes {
		ends.Go(func() {
			if err := s.proc.End(wordEnd, patience); err != nil {
				w.violate(brokenProcess, "%v", err)
			}
		})
	}
	ends.Wait()
	return recovered
}

// empty waits until a node has no claims left: the clients have given back what
// they had, and the leases of those that were killed run out.
func (w *world) empty(s *nodeSeat) error {
	for deadline := time.Now().Add(patience); ; {
		w.mu.Lock()
		s.claims = -1
		w.mu.Unlock()
		if err := s.proc.Tell(wordClaims); err != nil {
			return err
		}
		if err := w.await("the number of claims", func() bool { return s.claims >= 0 }); err != nil {
			return err
		}
		if s.claims == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d claims %v after the last client ended", s.claims, patience)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// logs looks through what the processes wrote to standard error for what a program
// writes there when it breaks.
func (w *world) logs() {
	files, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	must(w.t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(w.t, err)
		for _, sign := range []string{"DATA RACE", "panic: ", "fatal error: "} {
			if at := strings.Index(string(text), sign); at >= 0 {
				w.violate(brokenProcess, "%s: %s", filepath.Base(f), text[at:min(len(text), at+4000)])
			}
		}
	}
}
