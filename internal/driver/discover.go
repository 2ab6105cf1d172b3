package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// survey collects what the nodes say of themselves.
type survey struct {
	nonce   string
	answers map[string]*proto.Answer // by node
	began   time.Time
	took    map[string]time.Duration // from then to the first answer, by node
}

// agreed returns the configuration that a quorum of its own nodes gave, and more
// nodes than gave any other: one node that was told a list of its own must not
// draw clients to it. everybody reports that no node is left, of all that anybody
// named, who might still object.
func (s *survey) agreed() (cfg proto.Config, found, everybody bool) {
	count := map[string]int{}
	of := map[string]*proto.NodeInfo{}
	named := map[string]bool{}
	for name, a := range s.answers {
		for _, n := range a.Info.Nodes {
			named[n] = true
		}
		if slices.Contains(a.Info.Nodes, name) {
			count[a.Digest]++
			of[a.Digest] = a.Info
		}
	}
	for digest, n := range count {
		i := of[digest]
		c := proto.Config{Nodes: i.Nodes, MaxTTL: i.MaxTTL, Skew: i.Skew}
		// A digest is counted only if it is the configuration's: a node that tells
		// one and shows another is broken.
		if 2*n > len(s.answers) && n >= quorum.Size(len(i.Nodes), quorum.Exclusive) && c.Digest() == digest {
			cfg, found = c, true
		}
	}
	return cfg, found, len(s.answers) >= len(named)
}

func (s *survey) String() string {
	if len(s.answers) == 0 {
		return "nobody answered"
	}
	var parts []string
	for name, a := range s.answers {
		parts = append(parts, fmt.Sprintf("%s (%s, configuration %s with nodes %s)", name, a.Info.State, a.Digest, strings.Join(a.Info.Nodes, " ")))
	}
	slices.Sort(parts)
	return "answers came from " + strings.Join(parts, ", ")
}

// surveyTime is how long all nodes may take to say who they are before a quorum
// of answers is enough.
const surveyTime = 250 * time.Millisecond

// Membership is what a client knows of who the nodes are. It has no lock of its own: that
// of the discovery guards it, and then the machine's.
type Membership struct {
	client, inbox string

	config  proto.Config             // that the nodes agreed on last
	took    map[string]time.Duration // how long they took to answer when they did so first
	survey  *survey                  // nil: none is under way
	surveys int
	asked   time.Time // of the last survey, but for the first
}

// NewMembership makes one that knows no nodes yet; config is for tests, which do.
func NewMembership(client, inbox string, config proto.Config) *Membership {
	return &Membership{client: client, inbox: inbox, config: config}
}

func (m *Membership) begin() {
	m.surveys++
	m.survey = &survey{nonce: fmt.Sprintf("%s/%d", m.inbox, m.surveys), answers: map[string]*proto.Answer{}, began: time.Now(), took: map[string]time.Duration{}}
}

// request asks the nodes who they are, during a survey.
func (m *Membership) request() proto.Request {
	return proto.Request{Verb: proto.Info, Client: m.client, Nonce: m.survey.nonce}
}

// ask starts a survey because a node showed another configuration, at most one a second.
// It reports whether it did: request must be sent then.
func (m *Membership) ask(t time.Time) bool {
	if t.Sub(m.asked) < time.Second {
		return false
	}
	m.asked = t
	m.begin()
	return true
}

// hear takes a node's answer. It reports whether the nodes have agreed on config.
func (m *Membership) hear(t time.Time, a *proto.Answer) (found bool) {
	if m.survey == nil || a.Info.Nonce != m.survey.nonce {
		return false
	}
	m.survey.answers[a.Node] = a
	if _, ok := m.survey.took[a.Node]; !ok {
		m.survey.took[a.Node] = t.Sub(m.survey.began)
	}
	_, _, everybody := m.survey.agreed()
	return everybody && m.conclude()
}

// due ends a survey whose time is over. It reports whether the nodes have agreed on config.
func (m *Membership) due(t time.Time) (found bool) {
	if m.survey == nil || t.Sub(m.asked) < surveyTime {
		return false
	}
	found = m.conclude()
	m.survey = nil
	return found
}

func (m *Membership) conclude() (found bool) {
	cfg, found, _ := m.survey.agreed()
	if found {
		m.config, m.took = cfg, m.survey.took
	}
	return found
}

func (m *Membership) trips() map[string]time.Duration { return m.took }

// discovery is a membership before there is a machine. The subscription's goroutine calls
// receive, that of Open the rest.
type discovery struct {
	log   *natsio.Log
	found chan struct{} // closed when the nodes are known, under mu

	mu         sync.Mutex // guards the membership until found is closed
	membership *Membership
}

// discover asks until a quorum of nodes has given the same configuration. It may stand
// still with the connection.
func discover(ctx context.Context, nc *nats.Conn, inbox string, lastError error, cfg *Config) (*Membership, error) {
	d := &discovery{log: cfg.Log, found: make(chan struct{}), membership: NewMembership(cfg.Name, inbox, proto.Config{})}
	d.membership.begin()
	question := d.membership.request()
	on := subject.Request(cfg.Cluster, subject.Info, cfg.Name, "")
	sub, err := nc.Subscribe(inbox, d.receive)
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	again := time.NewTicker(surveyTime)
	defer again.Stop()
	var last error
	for {
		if err := nc.PublishRequest(on, inbox, proto.AppendRequest(nil, &question)); err != nil {
			last = err
			if errors.Is(err, nats.ErrConnectionClosed) {
				return nil, closedError(nc)
			}
		}
		select {
		case <-d.found:
		case <-again.C:
			// Who has not answered by now is not waited for, if a quorum has.
			d.conclude()
		case <-ctx.Done():
		}
		switch {
		case d.isFound():
			return d.membership, nil
		case ctx.Err() != nil:
			return nil, d.notFound(nc, cfg.Cluster, on, natsio.ContextError(ctx), last)
		}
		if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != lastError {
			if s, ok := natsio.DeniedSubject(err); ok && (s == on || s == inbox) {
				return nil, fmt.Errorf("%w: %w", ErrRefused, natsio.PermissionError(s, err))
			}
		}
	}
}

func (d *discovery) receive(m *nats.Msg) {
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return // the server says that no node hears: that is silence, not an answer
	}
	a, err := proto.DecodeAnswer(m.Data)
	if err != nil {
		d.log.Line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(m.Data))
		return
	}
	if a.Kind != proto.Informed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isFound() && d.membership.hear(time.Now(), a) {
		d.end()
	}
}

func (d *discovery) conclude() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isFound() && d.membership.conclude() {
		d.end()
	}
}

// end keeps the membership for the machine. Call with d.mu held.
func (d *discovery) end() {
	d.membership.survey = nil
	close(d.found)
}

func (d *discovery) isFound() bool {
	select {
	case <-d.found:
		return true
	default:
		return false
	}
}

func (d *discovery) notFound(nc *nats.Conn, cluster, on string, cause, last error) error {
	status := nc.Status()
	d.mu.Lock()
	defer d.mu.Unlock()
	text := fmt.Sprintf("asked the nodes of cluster %q on %s: %s", cluster, on, d.membership.survey)
	if len(d.membership.survey.answers) > 0 {
		text += "; a quorum of one list is needed"
	} else {
		text += "; is a node running with this cluster name, on this NATS, in this account?"
	}
	if last != nil {
		text += fmt.Sprintf(" (last error of publishing: %v)", last)
	}
	if status != nats.CONNECTED {
		text += fmt.Sprintf(" (the NATS connection is %v)", status)
	}
	return fmt.Errorf("%w: %s: %w", ErrNoQuorum, text, cause)
}
