package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
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
	eventBuffer    = 256
	eventHeartbeat = 15 * time.Second
)

var eventKinds = []string{string(qlock.EventAcquired), string(qlock.EventReleased), string(qlock.EventLost)}

// serveEvents sends events as they come. A caller that shows a state opens the stream first
// and reads the state then, and reads it again at each event "reset" and "gap".
func (g *Gateway) serveEvents(w http.ResponseWriter, r *http.Request) {
	e := exchangeOf(r)
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
	if !g.openStream(who) {
		e.fail(problem("too-many", "%d streams are open, which is the limit", g.limits.Streams))
		return
	}
	defer g.closeStream(who)
	heard := make(chan *nats.Msg, eventBuffer)
	sub, err := who.nc.ChanSubscribe(subject, heard)
	if err != nil {
		e.fail(problem("unreachable", "%v", err))
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	flush, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	err = who.nc.FlushWithContext(flush) // whoever reads a state after hello misses nothing
	cancel()
	if err != nil {
		e.fail(problem("unreachable", "NATS did not take the subscription: %v", err))
		return
	}
	reconnects := who.nc.StatusChanged(nats.RECONNECTING)
	defer who.nc.RemoveStatusListener(reconnects)

	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	s := &stream{w: e, control: http.NewResponseController(e), prefix: g.name + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	s.send("retry: 2000\n")
	if r.Header.Get("Last-Event-ID") != "" { // nothing is kept of what came meanwhile
		s.event("reset", map[string]string{"reason": "restart"})
	}
	s.event("hello", map[string]string{"gateway": g.name})
	beat := time.NewTicker(eventHeartbeat)
	defer beat.Stop()
	dropped := 0
	for s.err == nil {
		select {
		case m := <-heard:
			if now, err := sub.Dropped(); err == nil && now > dropped {
				s.event("gap", map[string]int{"dropped": now - dropped})
				dropped = now
			}
			if ev, err := qlock.ParseEvent(m.Subject, m.Data); err == nil && slices.Contains(kinds, string(ev.Kind)) {
				encoded, _ := encodeName(ev.Name) // it comes from a subject
				s.event(string(ev.Kind), EventMessage{
					Kind: string(ev.Kind), Client: ev.Client, Name: shown(ev.Name), Encoded: encoded, Mode: ev.Mode, Token: ev.Token, Votes: ev.Votes,
					Nodes: ev.Nodes, WaitedMS: ev.Waited, HeldMS: ev.Held, Note: ev.Note, EvictedBy: ev.EvictedBy,
				})
			}
		case _, open := <-reconnects:
			if !open {
				return // the connection was closed
			}
			s.event("gap", map[string]int{"dropped": -1}) // nobody knows how many
		case <-beat.C:
			s.send(": still here\n\n")
		case <-r.Context().Done():
			return
		case <-g.draining:
			s.event("reset", map[string]string{"reason": "draining"})
			return
		}
	}
}

func (g *Gateway) openStream(who *principal) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if who.streams >= g.limits.Streams {
		return false
	}
	who.streams++
	return true
}

func (g *Gateway) closeStream(who *principal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	who.streams--
}

type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	prefix  string
	n       int
	err     error
}

func (s *stream) event(kind string, data any) {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	s.n++
	s.send(fmt.Sprintf("id: %s-%d\nevent: %s\ndata: %s\n\n", s.prefix, s.n, kind, text))
}

func (s *stream) send(text string) {
	if s.err != nil {
		return
	}
	if _, s.err = s.w.Write([]byte(text)); s.err == nil { // within Limits.WriteTime
		s.err = s.control.Flush()
	}
}
