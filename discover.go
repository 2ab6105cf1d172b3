package qlock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/local"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/subject"
)

// Which nodes there are, and which configuration counts, is decided by internal/members
// (M1 to M5). Here it is given the clock and the connection.

// discover asks until the machine has found the configuration to begin with.
func (l *Locker) discover(ctx context.Context) error {
	var last error
	f := l.members.Query
	for {
		var out members.Out
		var wait time.Duration
		l.step(func(now proto.Now, lo *local.Out) {
			f(now, &out)
			l.found(now, &out, lo)
			wait, _ = l.members.Wait(now)
		})
		f = l.members.Tick
		if out.Ask != "" { // before there is an outbox that runs: New has nothing to lose
			r := l.infoRequest(out.Ask)
			if err := l.nc.PublishRequest(l.infoSubject(), l.inbox, proto.AppendRequest(nil, &r)); err != nil {
				last = err
				if errors.Is(err, nats.ErrConnectionClosed) {
					return closedError(l.nc)
				}
			}
		}
		if err := l.discovered(ctx, wait, last); !errors.Is(err, errLook) {
			return err
		}
	}
}

// errLook: the machine must be looked at again.
var errLook = errors.New("time has passed, or a node has answered")

// discovered waits for the machine to find something, for a time at most.
func (l *Locker) discovered(ctx context.Context, wait time.Duration, last error) error {
	due := time.NewTimer(wait)
	defer due.Stop()
	select {
	case <-l.ready:
		return l.checkLease()
	case <-l.wake:
	case <-due.C:
	case <-ctx.Done():
		return l.notFound(contextError(ctx), last)
	}
	if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != l.denial {
		if s, ok := deniedSubject(err); ok && (s == l.infoSubject() || s == l.inbox) {
			return fmt.Errorf("%w: %w", ErrRefused, permissionError(s, err))
		}
	}
	return errLook
}

func (l *Locker) notFound(cause, last error) error {
	l.mu.Lock()
	m := newMembers(l.opt.cluster, l.members.Membership(l.at(time.Now())))
	l.mu.Unlock()
	return noMembers(m, l.infoSubject(), l.nc.Status, last, cause)
}

func (l *Locker) infoSubject() string { return infoSubject(l.opt) }

func infoSubject(opt options) string {
	return subject.Request(opt.cluster, subject.Info, opt.name, "")
}

func (l *Locker) infoRequest(nonce string) proto.Request {
	return proto.Request{Verb: proto.Info, Client: l.opt.name, Nonce: nonce}
}

// checkLease fits the lease to what the nodes allow.
func (l *Locker) checkLease() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if longest := l.core.Cluster().MaxTTL; l.opt.lease > longest {
		return fmt.Errorf("%w: the lease of %v is longer than the %v that cluster %q allows (NodeConfig.MaxLease)", ErrInvalidLease, l.opt.lease, longest, l.opt.cluster)
	}
	return nil
}

// learn lets f work on the machine that knows the nodes, and does what comes of it. Call
// with l.mu held, when the outbox runs.
func (l *Locker) learn(now proto.Now, out *local.Out, f func(proto.Now, *members.Out)) {
	if l.closed {
		return
	}
	var m members.Out
	f(now, &m)
	l.found(now, &m, out)
	if m.Ask != "" {
		out.Requests = append(out.Requests, l.infoRequest(m.Ask))
	}
}

// informed takes a node's answer to info.
func (l *Locker) informed(a *proto.Answer) {
	begins := false
	l.step(func(now proto.Now, out *local.Out) {
		l.learn(now, out, func(now proto.Now, m *members.Out) { l.members.Hear(now, a, m) })
		begins = l.core == nil
	})
	if begins { // the machine may have something to do sooner
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// found has the client count by the configuration that the machine found, if it found
// one. Call with l.mu held.
func (l *Locker) found(now proto.Now, m *members.Out, out *local.Out) {
	switch {
	case m.Found == nil:
	case l.core == nil:
		if l.opt.lease == 0 {
			l.opt.lease = min(DefaultLease, m.Found.MaxTTL)
		}
		instance := newInstance()
		l.core = client.New(client.Config{
			Name: l.opt.name, Instance: instance, TTL: l.opt.lease,
			MaxRuns: proto.RunsIn(l.out.fits()), Seed: binary.BigEndian.Uint64(instance[8:]), Trips: m.Trips, Cluster: *m.Found,
		}, now)
		l.table = local.New(l.core, l.opt.retention)
		l.table.PassOn(l.opt.passMost, l.opt.passWithin)
		close(l.ready)
	default:
		out.Notes = append(out.Notes, "the nodes have another configuration now: locks held are lost, waiting goes on")
		l.table.SetCluster(now, *m.Found, out)
	}
}
