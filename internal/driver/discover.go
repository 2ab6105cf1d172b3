package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// internal/members decides which nodes there are and which configuration counts (M1 to M5). The
// code below connects it to the clock and the connection until there is a client machine, which
// then takes it over.

// Membership is what a client knows about the nodes when it starts. It has no mutex of its own. The
// mutex of the discovery guards it, and later that of the machine.
type Membership struct {
	members *members.Machine
	start   time.Time // zero of the monotonic clock readings
	config  wire.Config
	trips   map[string]time.Duration // round trips of nodes, as far as they are known
}

// NewMembership makes the Membership of a client that is told its nodes, for tests. The nonces of
// its questions begin with prefix.
func NewMembership(prefix string, config wire.Config) *Membership {
	return &Membership{members: members.New(prefix), start: time.Now(), config: config}
}

// discovery asks the nodes who they are. The subscription's goroutine calls receive; the goroutine
// that opens the client calls the rest.
type discovery struct {
	log   *natsio.Log
	heard chan struct{} // signals that an answer was heard; has room for one

	mu         sync.Mutex // guards the fields below
	membership *Membership
	found      bool
}

// discover asks until the machine has found a configuration to start with. It blocks if the
// connection does.
func discover(ctx context.Context, nc *nats.Conn, inbox string, lastError error, cfg *Config) (*Membership, error) {
	d := &discovery{log: cfg.Log, heard: make(chan struct{}, 1), membership: NewMembership(inbox, wire.Config{})}
	on := infoSubject(cfg.Cluster, cfg.Name)
	sub, err := nc.Subscribe(inbox, d.receive)
	if err != nil {
		return nil, fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	due := time.NewTimer(natsio.Idle)
	defer due.Stop()
	var last error
	f := d.membership.members.Query
	for {
		nonce, wait, found := d.step(f)
		f = d.membership.members.Tick
		switch {
		case found:
			return d.membership, nil
		case ctx.Err() != nil:
			return nil, d.notFound(cfg.Cluster, on, nc.Status, last, natsio.ContextError(ctx))
		}
		if nonce != "" {
			r := infoRequest(cfg.Name, nonce)
			if err := nc.PublishRequest(on, inbox, wire.AppendRequest(nil, &r)); err != nil {
				last = err
				if errors.Is(err, nats.ErrConnectionClosed) {
					return nil, closedError(nc)
				}
			}
		}
		due.Reset(wait)
		select {
		case <-d.heard:
		case <-due.C:
		case <-ctx.Done():
		}
		if err := deniedSince(nc, lastError, on, inbox); err != nil {
			return nil, err
		}
	}
}

// deniedSince returns an error if, after the error before, NATS denied the client to ask who the
// nodes are or to receive the answers.
func deniedSince(nc *nats.Conn, before error, on, inbox string) error {
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != before {
		if s, ok := natsio.DeniedSubject(err); ok && (s == on || s == inbox) {
			return fmt.Errorf("%w: %w", ErrRefused, natsio.PermissionError(s, err))
		}
	}
	return nil
}

func infoSubject(cluster, client string) string {
	return subject.Request(cluster, subject.Info, client, "")
}

func infoRequest(client, nonce string) wire.Request {
	return wire.Request{Verb: wire.Info, Client: client, Nonce: nonce, ShowConfig: true}
}

// step calls f with the members machine. It returns the nonce of the question to send, if any, and
// how long nothing is due unless an answer arrives.
func (d *discovery) step(f func(wire.Now, *members.Out)) (nonce string, wait time.Duration, found bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.membership
	now := clocks(m.start, time.Now())
	if d.found {
		return "", 0, true
	}
	var out members.Out
	f(now, &out)
	d.take(&out)
	wait, _ = m.members.Wait(now)
	return out.Ask, wait, d.found
}

// take stores the configuration that the machine found. The caller holds d.mu.
func (d *discovery) take(out *members.Out) {
	if out.Found != nil {
		d.found, d.membership.config, d.membership.trips = true, *out.Found, out.Trips
	}
}

func (d *discovery) receive(m *nats.Msg) {
	if natsio.NobodyHears(m) {
		return // the server reports that no node listens; that is silence, not an answer
	}
	a, err := wire.DecodeAnswer(m.Data)
	if err != nil {
		d.log.Line(slog.LevelWarn, "malformed answer ignored", "error", err, "bytes", len(m.Data))
		return
	}
	if a.Kind != wire.Informed {
		return
	}
	d.hear(a)
	select {
	case d.heard <- struct{}{}:
	default:
	}
}

func (d *discovery) hear(a *wire.Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.found {
		var out members.Out
		d.membership.members.Hear(clocks(d.membership.start, time.Now()), a, &out)
		d.take(&out)
	}
}

func (d *discovery) notFound(cluster, on string, status func() nats.Status, last, cause error) error {
	d.mu.Lock()
	m := d.membership.members.Membership(clocks(d.membership.start, time.Now()))
	d.mu.Unlock()
	return noMembers(cluster, &m, on, status, last, cause)
}
