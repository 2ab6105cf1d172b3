package qlock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/local"
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

// discover asks until a quorum of nodes has given the same configuration.
func (l *Locker) discover(ctx context.Context) error {
	l.mu.Lock()
	l.survey = l.newSurvey()
	l.mu.Unlock()
	again := time.NewTicker(surveyTime)
	defer again.Stop()
	var last error
	for {
		select {
		case <-l.found:
			return l.checkLease()
		default:
		}
		if err := l.publishInfo(); err != nil {
			last = err
			if errors.Is(err, nats.ErrConnectionClosed) {
				return closedError(l.nc)
			}
		}
		select {
		case <-l.found:
			continue
		case <-again.C:
			// Who has not answered by now is not waited for, if a quorum has.
			l.step(l.conclude)
		case <-ctx.Done():
			return l.notFound(contextError(ctx), last)
		}
		if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != l.denial {
			if s, ok := deniedSubject(err); ok && (s == l.infoSubject() || s == l.inbox) {
				return fmt.Errorf("%w: %w", ErrRefused, permissionError(s, err))
			}
		}
	}
}

func (l *Locker) notFound(cause, last error) error {
	status := l.nc.Status()
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf("asked the nodes of cluster %q on %s: %s", l.opt.cluster, l.infoSubject(), l.survey)
	if len(l.survey.answers) > 0 {
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

func (l *Locker) infoSubject() string {
	return subject.Request(l.opt.cluster, subject.Info, l.opt.name, "")
}

func (l *Locker) newSurvey() *survey {
	l.surveys++
	return &survey{nonce: fmt.Sprintf("%s/%d", l.inbox, l.surveys), answers: map[string]*proto.Answer{}, began: time.Now(), took: map[string]time.Duration{}}
}

// infoRequest asks the nodes who they are. Call with l.mu held, during a survey.
func (l *Locker) infoRequest() proto.Request {
	return proto.Request{Verb: proto.Info, Client: l.opt.name, Nonce: l.survey.nonce}
}

// publishInfo asks before there is an outbox that runs: New has nothing to lose.
func (l *Locker) publishInfo() error {
	l.mu.Lock()
	if l.survey == nil { // it is over already
		l.mu.Unlock()
		return nil
	}
	r := l.infoRequest()
	l.mu.Unlock()
	return l.nc.PublishRequest(l.infoSubject(), l.inbox, proto.AppendRequest(nil, &r))
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

// askAgain starts a survey because a node showed another configuration, at most
// one a second. Call with l.mu held.
func (l *Locker) askAgain() bool {
	if l.closed || time.Since(l.asked) < time.Second {
		return false
	}
	l.asked = time.Now()
	l.survey = l.newSurvey()
	return true
}

// informed takes a node's answer to info.
func (l *Locker) informed(a *proto.Answer) {
	l.step(func(now proto.Now, out *local.Out) {
		if l.closed || l.survey == nil || a.Info.Nonce != l.survey.nonce {
			return
		}
		l.survey.answers[a.Node] = a
		if _, ok := l.survey.took[a.Node]; !ok {
			l.survey.took[a.Node] = time.Since(l.survey.began)
		}
		if _, _, everybody := l.survey.agreed(); everybody {
			l.conclude(now, out)
		}
	})
}

// conclude takes the configuration that the survey found, if it found one. Call
// with l.mu held.
func (l *Locker) conclude(now proto.Now, out *local.Out) {
	cfg, found, _ := l.survey.agreed()
	switch {
	case !found:
	case l.core == nil:
		if l.opt.lease == 0 {
			l.opt.lease = min(DefaultLease, cfg.MaxTTL)
		}
		instance := newInstance()
		l.core = client.New(client.Config{
			Name: l.opt.name, Instance: instance, TTL: l.opt.lease,
			MaxRuns: proto.RunsIn(l.out.fits()), Seed: binary.BigEndian.Uint64(instance[8:]), Trips: l.survey.took, Cluster: cfg,
		}, now)
		l.table = local.New(l.core, l.opt.retention)
		l.table.PassOn(l.opt.passMost, l.opt.passWithin)
		close(l.found)
	case cfg.Digest() != l.core.Digest():
		out.Notes = append(out.Notes, "the configuration of the nodes has changed: held locks are lost, waiting claims continue")
		l.table.SetCluster(now, cfg, out)
	}
}
