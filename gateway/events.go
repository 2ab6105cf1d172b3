package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
)

// EventMessage is the data of a server-sent event. Clients publish events at most once:
// they may be lost, and do not show who holds a lock.
type EventMessage struct {
	Kind      string  `json:"kind" enum:"acquired,released,lost"`
	Client    string  `json:"client"`
	Name      string  `json:"name,omitempty"`
	Encoded   string  `json:"encoded"`
	Mode      string  `json:"mode" enum:"exclusive,shared"`
	Token     uint64  `json:"token"`
	Votes     int     `json:"votes,omitempty"`
	Nodes     int     `json:"nodes,omitempty"`
	WaitedMS  float64 `json:"waited_ms"`
	HeldMS    float64 `json:"held_ms,omitempty"`
	Note      string  `json:"note,omitempty"`
	EvictedBy string  `json:"evicted_by,omitempty"`
}

const (
	ringEvents     = 4096      // that a stream can be behind
	ringBytes      = 256 << 10 // or as much text
	ringKept       = time.Minute
	eventHeartbeat = 15 * time.Second
)

var eventKinds = []string{string(qlock.EventAcquired), string(qlock.EventReleased), string(qlock.EventLost)}

// ring has the last events that one principal heard for one pattern. All its streams read
// from it, each at its own place, so a slow reader costs no memory of its own: it misses what
// the ring has forgotten, and is told how much that was. A ring is kept for a while after its
// last stream, for callers that reconnect.
type ring struct {
	id  string // begins the ids of its events, with the name of the gateway
	sub *nats.Subscription

	mu      sync.Mutex // guards what follows
	events  []event    // the last ones
	next    int        // the number of the next event
	bytes   int
	changed chan struct{} // closed at the next event
	closed  bool          // with its connection

	streams int // guarded by g.mu
	idle    *time.Timer
}

type event struct {
	kind string
	data []byte
}

type ringKey struct{ principal, subject string }

// ringOf is the ring of a principal for a subject, which it subscribes to.
func (g *Gateway) ringOf(ctx context.Context, who *principal, subject string) (*ring, *Problem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, problem("draining", "the gateway has stopped")
	}
	if who.streams >= g.limits.Streams {
		return nil, problem("too-many", "%d streams are open, which is the limit", g.limits.Streams)
	}
	who.streams++
	key := ringKey{who.name, subject}
	r := g.rings[key]
	if r != nil && r.isClosed() {
		g.dropRing(key, r)
		r = nil
	}
	if r != nil {
		r.streams++
		if r.idle != nil {
			r.idle.Stop()
			r.idle = nil
		}
		return r, nil
	}
	g.mu.Unlock()
	made, p := g.listen(ctx, who, subject)
	g.mu.Lock()
	if p == nil && g.closed {
		_ = made.sub.Unsubscribe()
		p = problem("draining", "the gateway has stopped")
	}
	if p != nil {
		who.streams--
		return nil, p
	}
	if r = g.rings[key]; r != nil && !r.isClosed() { // another stream was faster
		_ = made.sub.Unsubscribe()
	} else {
		g.rings[key], r = made, made
	}
	r.streams++
	if r.idle != nil {
		r.idle.Stop()
		r.idle = nil
	}
	return r, nil
}

// leaveRing is for the end of a stream.
func (g *Gateway) leaveRing(who *principal, subject string, r *ring) {
	g.mu.Lock()
	defer g.mu.Unlock()
	who.streams--
	key := ringKey{who.name, subject}
	if r.streams--; r.streams > 0 || g.rings[key] != r {
		return
	}
	// Those of principals with connections of their own would keep these open.
	if who != g.only || len(g.rings) > g.limits.Streams || g.closed {
		g.dropRing(key, r)
		return
	}
	r.idle = time.AfterFunc(ringKept, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if r.streams == 0 && g.rings[key] == r {
			g.dropRing(key, r)
		}
	})
}

// dropRing ends a ring. g.mu is held.
func (g *Gateway) dropRing(key ringKey, r *ring) {
	delete(g.rings, key)
	if r.idle != nil {
		r.idle.Stop()
	}
	_ = r.sub.Unsubscribe() // it fails on a closed connection
}

// closeRings ends all rings. New ones are no longer made.
func (g *Gateway) closeRings() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, r := range g.rings {
		g.dropRing(key, r)
	}
}

// listen subscribes to events. When it returns, NATS has the subscription: whoever reads a
// state after that misses nothing.
func (g *Gateway) listen(ctx context.Context, who *principal, subject string) (*ring, *Problem) {
	r := &ring{id: strconv.FormatInt(time.Now().UnixNano(), 36), changed: make(chan struct{}), next: 1}
	sub, err := who.nc.SubscribeSync(subject)
	if err == nil {
		err = sub.SetPendingLimits(ringEvents, 4*ringBytes)
	}
	if err != nil {
		return nil, problem("unreachable", "%v", err)
	}
	r.sub = sub
	flush, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := who.nc.FlushWithContext(flush); err != nil {
		_ = sub.Unsubscribe()
		return nil, problem("unreachable", "NATS did not take the subscription: %v", err)
	}
	m, err := sub.NextMsg(time.Nanosecond)
	if errors.Is(err, nats.ErrPermissionViolation) {
		_ = sub.Unsubscribe()
		return nil, problem("forbidden", "NATS does not let this user subscribe to %s", subject)
	}
	if err == nil {
		r.hear(m)
	}
	reconnects := who.nc.StatusChanged(nats.RECONNECTING)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		dropped := 0
		for {
			m, err := sub.NextMsgWithContext(context.Background())
			if now, err := sub.Dropped(); err == nil && now > dropped {
				r.add("gap", map[string]int{"dropped": now - dropped})
				dropped = now
			}
			switch {
			case err == nil:
				r.hear(m)
			case errors.Is(err, nats.ErrSlowConsumer):
			default:
				r.close() // it was unsubscribed, or its connection is closed
				return
			}
		}
	}()
	go func() {
		defer who.nc.RemoveStatusListener(reconnects)
		for {
			select {
			case _, open := <-reconnects:
				if !open {
					return
				}
				r.add("gap", map[string]int{"dropped": -1}) // nobody knows how many
			case <-ended:
				return
			}
		}
	}()
	return r, nil
}

func (r *ring) hear(m *nats.Msg) {
	ev, err := qlock.ParseEvent(m.Subject, m.Data)
	if err != nil {
		return
	}
	encoded, _ := encodeName(ev.Name) // it comes from a subject
	r.add(string(ev.Kind), EventMessage{
		Kind: string(ev.Kind), Client: ev.Client, Name: shown(ev.Name), Encoded: encoded, Mode: ev.Mode, Token: ev.Token, Votes: ev.Votes,
		Nodes: ev.Nodes, WaitedMS: ev.Waited, HeldMS: ev.Held, Note: ev.Note, EvictedBy: ev.EvictedBy,
	})
}

func (r *ring) add(kind string, data any) {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{kind, text})
	r.next++
	r.bytes += len(text)
	for len(r.events) > ringEvents || r.bytes > ringBytes {
		r.bytes -= len(r.events[0].data)
		r.events[0] = event{}
		r.events = r.events[1:]
	}
	r.tell()
}

// tell wakes all streams. r.mu is held.
func (r *ring) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.tell()
	}
}

func (r *ring) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// after has what follows the event with the number n: the events, the number of the first of
// them, how many are forgotten, and a channel that is closed when there are more.
func (r *ring) after(n int) (list []event, first, forgotten int, more <-chan struct{}, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := r.next - len(r.events)
	first = max(n+1, oldest)
	forgotten = first - (n + 1)
	list = r.events[min(first-oldest, len(r.events)):]
	return list[:min(len(list), 256):min(len(list), 256)], first, forgotten, r.changed, r.closed
}

// resume is the number of the last event that a caller has, by its Last-Event-ID, or why it
// must begin anew. Without an id it begins with the next event.
func (r *ring) resume(gateway, last string) (n int, reset string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.next - 1
	if last == "" {
		return now, ""
	}
	of, rest, _ := strings.Cut(last, "-")
	id, number, _ := strings.Cut(rest, "-")
	n, err := strconv.Atoi(number)
	switch {
	case of != gateway:
		return now, "other-gateway"
	case id != r.id || err != nil || n < 0 || n > now:
		return now, "restart"
	case n < now-len(r.events):
		return now, "too-old"
	}
	return n, ""
}

// serveEvents sends events as they come. A caller that shows a state opens the stream first
// and reads the state then, and reads it again at each event "reset" and "gap".
func (g *Gateway) serveEvents(w http.ResponseWriter, r *http.Request) {
	e := exchangeOf(w)
	e.operation = "events"
	if hasBody(r) { // the server would not notice that the caller leaves
		e.fail(problem("malformed", "a request for events has no body"))
		return
	}
	query := r.URL.Query()
	subject, err := qlock.EventSubject(g.cfg.Cluster, query.Get("pattern"))
	if err != nil {
		e.fail(problemOf(err))
		return
	}
	kinds := eventKinds
	if k := query.Get("kinds"); k != "" {
		kinds = strings.Split(k, ",")
		if slices.ContainsFunc(kinds, func(k string) bool { return !slices.Contains(eventKinds, k) }) {
			e.fail(invalid("kinds are " + strings.Join(eventKinds, ", ")))
			return
		}
	}
	who, leave, p := g.principalOf(r)
	if p != nil {
		e.fail(p)
		return
	}
	defer leave()
	if p := g.enterStream(r.RemoteAddr); p != nil {
		e.fail(p)
		return
	}
	defer g.leaveStream(r.RemoteAddr)
	events, p := g.ringOf(r.Context(), who, subject)
	if p != nil {
		e.fail(p)
		return
	}
	defer g.leaveRing(who, subject, events)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	s := &stream{w: e, control: http.NewResponseController(e), prefix: g.name + "-" + events.id}
	s.send("retry: 2000\n")
	last, reset := events.resume(g.name, r.Header.Get("Last-Event-ID"))
	if reset != "" {
		s.event(last, "reset", []byte(`{"reason":"`+reset+`"}`))
	}
	s.event(last, "hello", []byte(`{"gateway":"`+g.name+`"}`))
	beat := time.NewTicker(eventHeartbeat)
	defer beat.Stop()
	for s.err == nil {
		list, first, forgotten, more, closed := events.after(last)
		if forgotten > 0 {
			s.event(first-1, "gap", fmt.Appendf(nil, `{"dropped":%d}`, forgotten))
		}
		for i, ev := range list {
			if !slices.Contains(eventKinds, ev.kind) || slices.Contains(kinds, ev.kind) {
				s.event(first+i, ev.kind, ev.data)
			}
		}
		last = first + len(list) - 1
		switch {
		case len(list) > 0:
			continue
		case closed && !g.isDraining():
			s.event(last, "reset", []byte(`{"reason":"restart"}`))
			return
		}
		select {
		case <-more:
		case <-beat.C:
			s.send(": still here\n\n")
		case <-r.Context().Done():
			return
		case <-g.draining:
			s.event(last, "reset", []byte(`{"reason":"draining"}`))
			return
		}
	}
}

type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	prefix  string
	err     error
}

// event sends an event. n is the number of the last event of the ring that the caller has
// then.
func (s *stream) event(n int, kind string, data []byte) {
	s.send(fmt.Sprintf("id: %s-%d\nevent: %s\ndata: %s\n\n", s.prefix, n, kind, data))
}

func (s *stream) send(text string) {
	if s.err != nil {
		return
	}
	if _, s.err = s.w.Write([]byte(text)); s.err == nil { // within Limits.WriteTime
		s.err = s.control.Flush()
	}
	// Over HTTP/2 the deadline would end the stream also if nothing is to be written.
	_ = s.control.SetWriteDeadline(time.Time{})
}
