//go:build unix

package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	nodes   = 5
	clients = 7
	workers = 4 // of each client

	// lease is that of the clients and the longest of the nodes. It is short, so that
	// locks are lost and quarantines over many times in a run. Below a second the
	// ordinary pauses of a busy machine would cost more locks than the faults do.
	lease = time.Second

	// recovery is how long a node that forgot its votes is good for nothing after its
	// start: it starts, listens for another of its name, and gives no votes for a
	// lease and two per cent.
	recovery = lease + time.Second
)

// fault is one entry of the schedule: something is done at a moment after the
// start, and undone later.
type fault struct {
	at, lasts time.Duration
	kind      string
	form      form   // of a fault of links
	nodes     []int  // that are down, or cut off
	clients   []int  // likewise
	links     []link // that are cut
	majority  bool   // so that there is no quorum
}

func (f fault) until() time.Duration { return f.at + f.lasts }

// link is between two nodes, the lower first.
type link struct{ a, b int }

const (
	killNode        = "node killed"
	wipeNode        = "node killed, its state wiped"
	restartNode     = "node restarted cleanly"
	stopNode        = "node stopped beyond the lease"
	harmMinority    = "minority's routes harmed"
	harmRoute       = "one route harmed"
	slowRoutes      = "all routes slow"
	killClient      = "client killed"
	restartClient   = "client restarted cleanly"
	stopClient      = "client stopped beyond the lease"
	pauseClient     = "client stopped within the lease"
	harmClient      = "client's links harmed"
	killMajority    = "majority killed"
	wipeMajority    = "majority killed, their state wiped"
	restartMajority = "majority restarted cleanly"
	stopMajority    = "majority stopped"
	harmMajority    = "routes harmed, no majority anywhere"
)

// form is what is done to a link.
type form string

const (
	blackhole form = "black hole"
	refusing  form = "refused" // connections are reset, and new ones as soon as they come
	reset     form = "reset"   // once
	delayed   form = "delayed"
	mute      form = "nothing out"
	deaf      form = "nothing back"
)

var forms = []form{blackhole, refusing, reset, delayed, mute, deaf}

// deck is what happens how often. It is dealt out, but for a rest, before the next
// is shuffled, so that also a short run has some of most.
var deck = []string{
	killNode, killNode, wipeNode, restartNode, restartNode, stopNode, stopNode, harmMinority, harmMinority, harmMinority,
	harmRoute, harmRoute, harmRoute, harmRoute, slowRoutes,
	killClient, killClient, killClient, restartClient, stopClient, stopClient, stopClient, stopClient, stopClient, pauseClient,
	harmClient, harmClient, harmClient, harmClient, harmClient, harmClient,
}

func (f fault) String() string {
	var whom []string
	for _, n := range f.nodes {
		whom = append(whom, nodeName(n))
	}
	for _, c := range f.clients {
		whom = append(whom, clientName(c))
	}
	if len(whom) == 0 && f.kind != slowRoutes {
		for _, l := range f.links {
			whom = append(whom, nodeName(l.a)+"-"+nodeName(l.b))
		}
	}
	text := f.kind
	if f.form != "" {
		text += ", " + string(f.form)
	}
	if len(whom) > 0 {
		text += ": " + strings.Join(whom, " ")
	}
	if f.lasts > 0 {
		text += fmt.Sprintf(", for %v", f.lasts.Round(time.Millisecond))
	}
	return text
}

func nodeName(i int) string   { return fmt.Sprintf("n%d", i+1) }
func clientName(i int) string { return fmt.Sprintf("c%d", i+1) }

// planner makes a schedule. It keeps a quorum of nodes in order most of the time,
// for otherwise nobody would hold the locks that faults are to find held: two nodes
// of five are down, stopped, recovering or cut off at once, and now and then, for a
// short time, a majority.
type planner struct {
	*rand.Rand
	length  time.Duration
	nodes   [nodes]time.Duration // until when each is in a fault's hands, or recovers
	clients [clients]time.Duration
	links   map[link]time.Duration
	spare   bool // no more faults of nodes until all are in order and a majority can fail
	out     []fault
}

// schedule is a function of its arguments: the same seed gives the same faults at
// the same times.
func schedule(seed uint64, length time.Duration) []fault {
	p := &planner{Rand: rand.New(rand.NewPCG(seed, 1)), length: length, links: map[link]time.Duration{}}
	var hand []string
	next := p.between(3*time.Second, 6*time.Second) // when a majority fails
	for at := p.between(0, 500*time.Millisecond); at < length; at += p.between(100*time.Millisecond, 700*time.Millisecond) {
		p.spare = at >= next
		if p.spare && p.majority(at) {
			next = at + p.between(5*time.Second, 10*time.Second)
			continue
		}
		if len(hand) <= len(deck)/4 { // not empty: what is left of it may be impossible now
			more := slices.Clone(deck)
			p.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
			hand = append(hand, more...)
		}
		for i, kind := range hand { // the first that is possible now
			if p.deal(at, kind) {
				hand = slices.Delete(hand, i, i+1)
				break
			}
		}
	}
	return p.out
}

func (p *planner) between(low, high time.Duration) time.Duration {
	return low + time.Duration(p.Int64N(int64(high-low)))
}

// idle lists those that no fault has in its hands.
func idle(until []time.Duration, at time.Duration) (out []int) {
	for i, u := range until {
		if u <= at {
			out = append(out, i)
		}
	}
	return out
}

// deal puts a fault of a kind into the schedule, if there is somebody for it.
func (p *planner) deal(at time.Duration, kind string) bool {
	f := fault{at: at, kind: kind}
	after := time.Duration(0) // for which a node is not in order when the fault is over
	switch kind {
	case killNode, wipeNode:
		f.lasts, after = p.between(100*time.Millisecond, 2*time.Second), recovery
	case restartNode:
		f.lasts, after = p.between(50*time.Millisecond, 800*time.Millisecond), lease/2
	case stopNode, stopClient:
		f.lasts = p.between(lease*5/4, lease*5/2)
	case pauseClient:
		f.lasts = p.between(lease/5, lease*4/5)
	case killClient, restartClient:
		f.lasts = p.between(50*time.Millisecond, 2*time.Second)
	default:
		f.lasts = p.between(200*time.Millisecond, lease*2)
	}
	switch kind {
	case harmMinority, harmRoute, harmClient:
		if f.form = forms[p.IntN(len(forms))]; f.form == reset {
			f.lasts = 0
		}
	}
	if f.until() > p.length {
		return false
	}
	free := idle(p.nodes[:], at)
	if p.spare {
		free = nil
	}
	switch kind {
	case killNode, wipeNode, restartNode, stopNode:
		if len(free) < nodes-1 {
			return false
		}
		f.nodes = []int{free[p.IntN(len(free))]}
	case harmMinority:
		if len(free) < nodes-1 {
			return false
		}
		p.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
		f.nodes = slices.Sorted(slices.Values(free[:1+p.IntN(len(free)-3)]))
		f.links = across(f.nodes, nil)
	case harmRoute:
		a, b := p.IntN(nodes), p.IntN(nodes-1)
		if b >= a {
			b++
		}
		f.links = []link{{min(a, b), max(a, b)}}
	case slowRoutes:
		f.form = delayed
		f.links = across([]int{0}, []int{1}, []int{2}, []int{3}, []int{4})
	case killClient, restartClient, stopClient, pauseClient, harmClient:
		free := idle(p.clients[:], at)
		if len(free) < clients-1 {
			return false
		}
		f.clients = []int{free[p.IntN(len(free))]}
	}
	if slices.ContainsFunc(f.links, func(l link) bool { return p.links[l] > at }) {
		return false
	}
	p.take(f, after)
	return true
}

// majority takes the quorum away, if the nodes are in order. Those that are killed
// come back at once, within the lease: if they gave votes then that they gave
// before to others, two would hold. Else it is for as long as the lease, more or
// less, so that what is held is lost or nearly so.
func (p *planner) majority(at time.Duration) bool {
	f := fault{at: at, majority: true, lasts: p.between(lease/2, lease*3/2)}
	f.kind = []string{killMajority, wipeMajority, killMajority, restartMajority, stopMajority, harmMajority}[p.IntN(6)]
	after := time.Duration(0)
	switch f.kind {
	case killMajority, wipeMajority:
		f.lasts, after = p.between(0, lease/4), recovery
	case restartMajority:
		f.lasts, after = p.between(0, lease/4), lease/2
	}
	if f.until() > p.length || len(idle(p.nodes[:], at)) < nodes {
		return false
	}
	order := p.Perm(nodes)
	// As a rule just a majority: the two that stay have routes to the others as soon as
	// these are back, while two that start at once find each other after a second, when
	// a server tries again, and that is too late for anything to go wrong.
	down := nodes/2 + 1
	if p.IntN(4) == 0 {
		down = nodes - p.IntN(2)
	}
	f.nodes = slices.Sorted(slices.Values(order[:down]))
	if f.kind == harmMajority {
		f.nodes = nil
		f.form = []form{blackhole, refusing, mute, deaf}[p.IntN(4)]
		f.links = across(order[:1], order[1:3], order[3:])
		if slices.ContainsFunc(f.links, func(l link) bool { return p.links[l] > at }) {
			return false
		}
	}
	p.take(f, after)
	for i := range p.nodes { // the others are spared as well
		p.nodes[i] = f.until() + after
	}
	return true
}

// across lists the links between groups of nodes. A group that is nil is all that
// are in no other.
func across(groups ...[]int) (out []link) {
	group := [nodes]int{}
	for i, g := range groups {
		for _, n := range g {
			group[n] = i + 1
		}
	}
	for a := range nodes {
		for b := a + 1; b < nodes; b++ {
			if group[a] != group[b] {
				out = append(out, link{a, b})
			}
		}
	}
	return out
}

func (p *planner) take(f fault, after time.Duration) {
	for _, n := range f.nodes {
		p.nodes[n] = f.until() + after
	}
	for _, c := range f.clients {
		p.clients[c] = f.until()
	}
	for _, l := range f.links {
		p.links[l] = f.until()
	}
	p.out = append(p.out, f)
}

// The schedule is the seed's; no two faults have the same thing in their hands; a
// quorum is in order but for the faults that say otherwise; all is undone at the
// end; and nothing is left out.
func TestSchedule(t *testing.T) {
	t.Parallel()
	const length = time.Minute
	ever := map[string]int{}
	for seed := range uint64(100) {
		faults := schedule(seed, length)
		if again := schedule(seed, length); !slices.EqualFunc(faults, again, func(a, b fault) bool { return a.at == b.at && a.String() == b.String() }) {
			t.Fatalf("seed %d gives two schedules", seed)
		}
		if !slices.IsSortedFunc(faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) }) {
			t.Errorf("seed %d: not in the order of time", seed)
		}
		until := map[string]time.Duration{}
		take := func(what string, f fault) {
			if until[what] > f.at {
				t.Errorf("seed %d: at %v %s has another fault already: %v", seed, f.at, what, f)
			}
			until[what] = f.until()
		}
		for i, f := range faults {
			ever[f.kind]++
			ever[string(f.form)]++
			if f.until() > length {
				t.Errorf("seed %d: %v at %v goes on after the end", seed, f, f.at)
			}
			for _, n := range f.nodes {
				take(nodeName(n), f)
			}
			for _, c := range f.clients {
				take(clientName(c), f)
			}
			for _, l := range f.links {
				take(fmt.Sprint(l), f)
			}
			down := map[int]bool{}
			for _, g := range faults[:i+1] {
				if g.until() > f.at && !g.majority {
					for _, n := range g.nodes {
						down[n] = true
					}
				}
			}
			if len(down) > (nodes-1)/2 {
				t.Errorf("seed %d: at %v %d nodes are down", seed, f.at, len(down))
			}
		}
	}
	for _, kind := range append(slices.Clone(deck), killMajority, wipeMajority, restartMajority, stopMajority, harmMajority) {
		if ever[kind] == 0 {
			t.Errorf("there is never a fault of the kind %q", kind)
		}
	}
	for _, form := range forms {
		if ever[string(form)] == 0 {
			t.Errorf("there is never a fault of the form %q", form)
		}
	}
}
