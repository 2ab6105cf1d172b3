//go:build unix

package chaos

import (
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/qlock/qlock/internal/testproxy"
)

// between is what a node dials to reach a node that was started before it.
type between struct{ late, early string }

// links are the ways between the nodes of a fleet.
type links struct {
	mu  sync.Mutex // guards all
	all map[between]*testproxy.Proxy
}

// route makes a way from a new node to an earlier one, and returns its address.
func (f *fleet) route(name, other string) string {
	f.t.Helper()
	u, err := url.Parse(f.seats[other].at.Route)
	must(f.t, err)
	p := f.proxy(u.Host)
	f.links.mu.Lock()
	defer f.links.mu.Unlock()
	f.links.all[between{name, other}] = p
	return "nats-route://" + p.Addr()
}

// proxy makes a proxy that stays until the test ends.
func (f *fleet) proxy(target string) *testproxy.Proxy {
	f.t.Helper()
	p, err := testproxy.New(target, *seed)
	must(f.t, err)
	f.proxies = append(f.proxies, p)
	return p
}

// unlink is after a node's end. Its ports may be anybody's: the ways to it lead to nowhere now.
func (f *fleet) unlink(name string) {
	f.links.mu.Lock()
	var over []*testproxy.Proxy
	for l, p := range f.links.all {
		if l.late == name || l.early == name {
			over = append(over, p)
			delete(f.links.all, l)
		}
	}
	f.links.mu.Unlock()
	for _, p := range over {
		p.SetTarget("")
		p.Cut() // also a connection that is being made
	}
}

// pick returns the ways for which ok holds, in an order that is always the same.
func (l *links) pick(ok func(between) bool) (names []between, proxies []*testproxy.Proxy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := range l.all {
		if ok(b) {
			names = append(names, b)
		}
	}
	slices.SortFunc(names, func(a, b between) int { return slices.Compare([]string{a.late, a.early}, []string{b.late, b.early}) })
	for _, b := range names {
		proxies = append(proxies, l.all[b])
	}
	return names, proxies
}

// amidFaults makes a change to a list while links are harmed. A client that is cut off longer than
// its lease loses what it has, so nothing is said then of locks that are to be kept.
func (f *fleet) amidFaults(list []string, change func()) {
	f.t.Helper()
	rng := rand.New(rand.NewPCG(f.rand.Uint64(), 5))
	from, stop := now(), make(chan struct{})
	var faults sync.WaitGroup
	faults.Go(func() {
		// What a change must bear: a client does not hear of it, or hears the old nodes alone. In both
		// cases it holds what it has for as long as its votes are valid, and no longer.
		// The joint record comes within a lease, when clients have had the time to follow the last one.
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rng.Int64N(int64(lease * 3 / 4)))):
		}
		first := cutClient
		if rng.IntN(2) == 0 {
			first = cutOld
		}
		f.harm(rng, first, list, stop)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.Int64N(int64(lease)))):
			}
			f.harm(rng, rng.IntN(linkFaults), list, stop)
		}
	})
	defer func() {
		close(stop)
		faults.Wait()
		time.Sleep(2 * lease) // a server dials a route anew after a second
		f.harms = append(f.harms, span{from, now()})
	}()
	change()
}

const (
	cutClient  = iota // a client is cut off
	cutOld            // the routes between one old node and the new ones
	anyClient         // links of a client are harmed
	oneRoute          // one route is
	oneNode           // all routes of a node are
	slowAll           // all routes are slow
	linkFaults        // how many there are
)

// harm harms links for a while.
func (f *fleet) harm(rng *rand.Rand, kind int, list []string, stop <-chan struct{}) {
	fm := forms[rng.IntN(len(forms))]
	lasts := lease/5 + time.Duration(rng.Int64N(int64(lease*3/2)))
	names, proxies := f.links.pick(func(between) bool { return true })
	if len(names) == 0 {
		return
	}
	var whom string
	switch kind {
	case cutClient, anyClient:
		i := rng.IntN(3)
		if whom, proxies = clientName(i), f.clients[i].proxies; kind == cutClient {
			fm, lasts = blackhole, lasts+lease/2
		}
	case cutOld:
		old := f.list[rng.IntN(len(f.list))]
		isNew := func(name string) bool { return slices.Contains(list, name) && !slices.Contains(f.list, name) }
		fm, lasts, whom = blackhole, lasts+lease*3/2, old+" and the new nodes"
		_, proxies = f.links.pick(func(b between) bool { return b.early == old && isNew(b.late) })
	case oneRoute:
		i := rng.IntN(len(names))
		whom, proxies = names[i].late+" "+names[i].early, proxies[i:i+1]
	case oneNode:
		whom = names[rng.IntN(len(names))].late
		_, proxies = f.links.pick(func(b between) bool { return b.late == whom || b.early == whom })
	case slowAll:
		fm, whom = delayed, "all routes"
	}
	if fm == reset {
		lasts = 0
	}
	f.logf("%s: %s, for %v", whom, fm, lasts.Round(time.Millisecond))
	f.forms[string(fm)]++
	for _, p := range proxies {
		harm(p, fm, testproxy.Out)
	}
	select {
	case <-stop:
	case <-time.After(lasts):
	}
	heal(proxies)
}

// cut reports whether links were harmed in a part of that time.
func (f *fleet) cut(from, to int64) bool {
	return slices.ContainsFunc(f.harms, func(s span) bool { return s.from < to && from < s.to })
}
