package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/semaphore"
)

// What callers look at: lists, a lock, nodes, members, elections, semaphores. An ETag is the digest of
// what is shown, without the times in it, which change all the while. A caller that gives the
// ETag back, and Prefer: wait=, waits for a change. All who wait for one view share one
// watcher, which looks again after events, and every two seconds.

// view is something to look at.
type view struct {
	key     string // the same view for all requests of a principal that have it
	pattern string // of events that may change it
	quiet   bool   // no event tells of its changes

	noLocker bool // it looks at no locks
	look     func(ctx context.Context, locker *qlock.Locker) (shown any, p *Problem)
}

// stable is what views have whose answers contain times.
type stable interface{ withoutTimes() any }

// changed returns a copy of a list, with f called for each element of the copy.
func changed[T any](list []T, f func(*T)) []T {
	out := make([]T, len(list))
	copy(out, list)
	for i := range out {
		f(&out[i])
	}
	return out
}

const (
	watchEvery  = 2 * time.Second
	watchPause  = 50 * time.Millisecond // after an event: others follow it
	looksAtOnce = 8                     // they cost memory, at the nodes too
)

type seen struct {
	body any
	etag string
}

func (g *Gateway) see(ctx context.Context, who *principal, v *view) (*seen, *Problem) {
	select {
	case g.looks <- struct{}{}:
	case <-ctx.Done():
		return nil, problem("too-many", "%d requests list locks", looksAtOnce)
	}
	defer func() { <-g.looks }()
	var locker *qlock.Locker
	if !v.noLocker {
		var err error
		if locker, err = who.locker(ctx, 0); err != nil {
			return nil, problemOf(err)
		}
	}
	body, p := v.look(ctx, locker)
	if p != nil && p.Kind() == "unreachable" && g.isDraining() { // its Locker was closed
		return nil, problem("draining", "the gateway is stopping: ask another one")
	}
	if p != nil {
		return nil, p
	}
	var same any = body
	if s, ok := body.(stable); ok {
		same = s.withoutTimes()
	}
	text, err := json.Marshal(same)
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(text)
	return &seen{body, hex.EncodeToString(sum[:8])}, nil
}

// watchKey is what requests wait for together.
type watchKey struct {
	who  *principal
	view string
}

type watcher struct {
	stop    context.CancelFunc
	waiters int // guarded by g.mu

	mu      sync.Mutex // guards what follows
	last    *seen
	changed chan struct{} // closed at the next change
}

func (w *watcher) now() (*seen, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.changed
}

// serveView answers a request to look, or waits until what there is to see changes.
func (g *Gateway) serveView(c *call, in *input, v *view) (*output, *Problem) {
	known := strings.Trim(strings.TrimPrefix(in.header.Get("If-None-Match"), "W/"), `"`)
	deadline := c.received.Add(c.block)
	s, p := g.see(c.ctx, c.principal, v)
	if p != nil {
		return nil, p
	}
	if known == s.etag && c.block > 0 {
		if s, p = g.watch(c, v, s, deadline); p != nil {
			return nil, p
		}
	}
	out := (&output{status: 200, body: s.body, etag: s.etag}).set("Cache-Control", "no-cache")
	if known == s.etag {
		out.status, out.body = 304, nil
	}
	return out, nil
}

// watch waits until something else is seen than s, or the deadline.
func (g *Gateway) watch(c *call, v *view, s *seen, deadline time.Time) (*seen, *Problem) {
	if p := g.enterStream(c.address); p != nil {
		return nil, p
	}
	defer g.leaveStream(c.address)
	w, leave, p := g.join(c.principal, v, s)
	if p != nil {
		return nil, p
	}
	defer leave()
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	for {
		last, changed := w.now()
		if last.etag != s.etag {
			return last, nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return s, nil
		case <-c.ctx.Done():
			return s, nil
		case <-g.draining:
			return nil, problem("draining", "the gateway is stopping: ask another one")
		}
	}
}

// join makes a watcher, or joins it.
func (g *Gateway) join(who *principal, v *view, s *seen) (*watcher, func(), *Problem) {
	key := watchKey{who, v.key}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return nil, nil, problem("draining", "the gateway has stopped")
	case who.streams >= g.limits.Streams:
		return nil, nil, problem("too-many", "%d streams and waiting lists are open, which is the limit", g.limits.Streams)
	}
	w := g.watchers[key]
	if w == nil {
		ctx, cancel := context.WithCancel(context.Background())
		w = &watcher{stop: cancel, last: s, changed: make(chan struct{})}
		g.watchers[key] = w
		g.serving.Go(func() { g.look(ctx, who, v, w) })
	}
	who.streams++
	w.waiters++
	return w, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		who.streams--
		if w.waiters--; w.waiters == 0 {
			w.stop()
			delete(g.watchers, key)
		}
	}, nil
}

// look looks again and again, until nobody waits any more.
func (g *Gateway) look(ctx context.Context, who *principal, v *view, w *watcher) {
	hint := make(chan struct{}, 1)
	if subject, err := qlock.EventSubject(g.cfg.Cluster, v.pattern); err == nil && !v.quiet {
		sub, err := who.nc.Subscribe(subject, func(*nats.Msg) {
			select {
			case hint <- struct{}{}:
			default:
			}
		})
		if err == nil { // without events, it looks every two seconds
			defer func() { _ = sub.Unsubscribe() }()
		}
	}
	every := time.NewTicker(watchEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-hint:
			select {
			case <-time.After(watchPause):
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
		// Events that come from now on may tell of what this look does not see.
		select {
		case <-hint:
		default:
		}
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		s, p := g.see(one, who, v)
		cancel()
		if p != nil {
			continue // who waits is answered at its deadline, and told the next time
		}
		w.mu.Lock()
		if s.etag != w.last.etag {
			w.last = s
			close(w.changed)
			w.changed = make(chan struct{})
		}
		w.mu.Unlock()
	}
}

func (l *LockList) withoutTimes() any {
	out := *l
	out.Locks = changed(l.Locks, func(r *LockReport) { *r = r.still() })
	return &out
}

func (l *LockReport) withoutTimes() any { return l.still() }

func (l *LockReport) still() LockReport {
	still := func(c *Claim) { c.ForMS, c.LeaseLeftMS = 0, 0 }
	out := *l
	out.Holders, out.Queue = changed(l.Holders, still), changed(l.Queue, still)
	return out
}

func (l *NodeList) withoutTimes() any {
	out := *l
	out.Findings = nil // they tell of states that are seen anyway, and of times
	out.Nodes = changed(l.Nodes, func(n *Node) { n.RoundTripMS, n.RecoveringMS, n.Claims = 0, 0, 0 })
	if l.Change != nil {
		change := *l.Change
		change.ForMS, change.WaitMS = 0, 0
		out.Change = &change
	}
	return &out
}

// MemberInfo is a member of a group.
type MemberInfo struct {
	ID          string `json:"id"`
	Client      string `json:"client"`
	Meta        string `json:"meta"`
	Token       uint64 `json:"token,omitempty"`
	ForMS       int64  `json:"for_ms"`
	LeaseLeftMS int64  `json:"lease_left_ms"`
	Uncertain   bool   `json:"uncertain,omitempty" doc:"too few nodes answered to tell whether it is still a member"`
}

// MemberList is the members of a group.
type MemberList struct {
	Group   string       `json:"group"`
	Members []MemberInfo `json:"members"`
}

func (l *MemberList) withoutTimes() any {
	out := *l
	out.Members = changed(l.Members, func(m *MemberInfo) { m.ForMS, m.LeaseLeftMS = 0, 0 })
	return &out
}

func membersView(group string) *view {
	return &view{key: "members " + group, pattern: "qlock.members." + group + ".>", look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		g, err := members.New(locker, group)
		if err != nil {
			return nil, invalid(plainText(err))
		}
		list, err := g.List(ctx)
		if err != nil {
			return nil, problemOf(err)
		}
		out := &MemberList{Group: group, Members: make([]MemberInfo, len(list))}
		for i, m := range list {
			out.Members[i] = MemberInfo{ID: m.ID, Client: m.Client, Meta: m.Meta, Token: m.Token, ForMS: m.For.Milliseconds(), LeaseLeftMS: m.Lease.Milliseconds(), Uncertain: m.Uncertain}
		}
		return out, nil
	}}
}

// LeaderInfo is who leads.
type LeaderInfo struct {
	Client string `json:"client"`
	Value  string `json:"value"`
	Term   uint64 `json:"term"`
	ForMS  int64  `json:"for_ms"`
	Claim  string `json:"claim"`
}

// CandidateInfo is who campaigns.
type CandidateInfo struct {
	Client string `json:"client"`
	Value  string `json:"value"`
	ForMS  int64  `json:"for_ms"`
	Claim  string `json:"claim"`
}

// ElectionReport is an election.
type ElectionReport struct {
	Election   string          `json:"election"`
	Leader     *LeaderInfo     `json:"leader,omitempty" doc:"left out if nobody leads"`
	Candidates []CandidateInfo `json:"candidates" doc:"in the order in which they will lead"`
}

func (r *ElectionReport) withoutTimes() any {
	out := *r
	if r.Leader != nil {
		leader := *r.Leader
		leader.ForMS = 0
		out.Leader = &leader
	}
	out.Candidates = changed(r.Candidates, func(c *CandidateInfo) { c.ForMS = 0 })
	return &out
}

func electionView(name string) *view {
	return &view{key: "election " + name, pattern: "qlock.election." + name + ".>", look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		e, err := election.New(locker, name)
		if err != nil {
			return nil, invalid(plainText(err))
		}
		out := &ElectionReport{Election: name}
		switch l, err := e.Leader(ctx); {
		case err == nil:
			out.Leader = &LeaderInfo{l.Client, l.Value, l.Term, l.For.Milliseconds(), l.Claim}
		case !errors.Is(err, election.ErrNoLeader):
			return nil, problemOf(err)
		}
		list, err := e.Candidates(ctx)
		if err != nil {
			return nil, problemOf(err)
		}
		out.Candidates = make([]CandidateInfo, len(list))
		for i, c := range list {
			out.Candidates[i] = CandidateInfo{c.Client, c.Value, c.For.Milliseconds(), c.Claim}
		}
		return out, nil
	}}
}

// PermitInfo is a permit of a semaphore that somebody holds.
type PermitInfo struct {
	Number int    `json:"number"`
	Client string `json:"client"`
	Note   string `json:"note"`
	Token  uint64 `json:"token"`
	ForMS  int64  `json:"for_ms"`
}

// SemaphoreReport is the permits of a semaphore that are held. The nodes do not know its
// limit.
type SemaphoreReport struct {
	Semaphore string       `json:"semaphore"`
	Permits   []PermitInfo `json:"permits"`
	Waiting   int          `json:"waiting" doc:"clients that wait for their turn; the one whose turn it is may wait for permits"`
}

func (r *SemaphoreReport) withoutTimes() any {
	out := *r
	out.Permits = changed(r.Permits, func(p *PermitInfo) { p.ForMS = 0 })
	return &out
}

func semaphoreView(name string) *view {
	pattern := "qlock.semaphore." + name + ".>"
	return &view{key: "semaphore " + name, pattern: pattern, look: func(ctx context.Context, locker *qlock.Locker) (any, *Problem) {
		if _, err := semaphore.New(locker, name, 1); err != nil {
			return nil, invalid(plainText(err))
		}
		locks, err := locker.Locks(ctx, pattern)
		if err != nil {
			return nil, problemOf(err)
		}
		out := &SemaphoreReport{Semaphore: name, Permits: []PermitInfo{}}
		for i := range locks {
			l := &locks[i]
			of, number, ok := semaphore.ParseName(l.Name)
			switch {
			case !ok || of != name:
			case number == 0:
				out.Waiting = l.Holding + l.Waiting
			case len(l.Holders) > 0:
				h := &l.Holders[0]
				out.Permits = append(out.Permits, PermitInfo{number, h.Client, h.Note, h.Token, h.For.Milliseconds()})
			}
		}
		return out, nil
	}}
}

func plainText(err error) string {
	text := err.Error()
	if _, rest, ok := strings.Cut(text, ": "); ok {
		text = rest
	}
	return text
}
