package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nuid"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
)

// member is a node of a cluster as it was found: by its answer, or by its silence
// where others list it.
type member struct {
	name        string
	heard       bool
	incarnation uuid.UUID
	digest      string
	info        proto.NodeInfo
	recovering  time.Duration
	roundTrip   time.Duration
	clock       time.Duration // by how much its clock is ahead of this machine's, to half a round trip
	clash       bool          // another answered under the same name
	other       bool          // its configuration is not that of most
}

func (m *member) state() string {
	switch {
	case !m.heard:
		return "unreachable"
	case m.clash:
		return "name clash"
	case m.other:
		return "other configuration"
	case m.info.State == proto.Recovering:
		return fmt.Sprintf("recovering, %v left", m.recovering.Round(100*time.Millisecond))
	}
	return string(m.info.State)
}

// votes reports whether clients count its votes now.
func (m *member) votes() bool {
	return m.heard && !m.clash && !m.other && m.info.State == proto.Voting
}

// census is what the nodes of a cluster said of themselves.
type census struct {
	cluster string
	members []*member // by name; two of one name follow each other
	config  *proto.Config
	digest  string
}

// need is the number of votes for a lock.
func (c *census) need(m quorum.Mode) int {
	if c.config == nil {
		return 0
	}
	return quorum.Size(len(c.config.Nodes), m)
}

func (c *census) voting() int {
	n := 0
	for _, m := range c.members {
		if m.votes() {
			n++
		}
	}
	return n
}

// infoSubject is where this client asks nodes who they are.
func (l *link) infoSubject() string {
	return subject.Request(l.cluster, subject.Info, l.client, "")
}

// survey asks all nodes who they are. It waits for those that others list, for the
// time that it has, and when all have answered a moment more: a second node of the
// same name is heard by a second answer only.
func (l *link) survey(ctx context.Context, patience time.Duration) (*census, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	inbox := l.NewInbox()
	sub, err := l.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()

	ask := proto.Request{Verb: proto.Info, Client: l.client, Nonce: nuid.Next()}
	subject := l.infoSubject()
	began := time.Now()
	if err := l.PublishRequest(subject, inbox, proto.AppendRequest(nil, &ask)); err != nil {
		return nil, fmt.Errorf("ask the nodes on %s: %w", subject, err)
	}
	found := map[uuid.UUID]*member{}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			break
		}
		if m.Header.Get("Status") == "503" {
			break // nobody listens on that subject
		}
		a, err := proto.DecodeAnswer(m.Data)
		if err != nil || a.Info == nil || a.Info.Nonce != ask.Nonce || found[a.Incarnation] != nil {
			continue
		}
		trip := time.Since(began)
		found[a.Incarnation] = &member{
			name: a.Node, heard: true, incarnation: a.Incarnation, digest: a.Digest,
			info: *a.Info, recovering: a.Recovering, roundTrip: trip, clock: time.UnixMicro(a.Info.Now).Sub(began.Add(trip / 2)),
		}
		if complete(found) {
			settle, stop := context.WithTimeout(ctx, max(2*time.Since(began), 30*time.Millisecond))
			defer stop()
			ctx = settle
		}
	}
	for _, err := range l.denials() {
		return nil, fmt.Errorf("%w: the user of this connection may not publish on %s, or not receive the answer: %w", qlock.ErrRefused, subject, err)
	}
	return newCensus(l.cluster, found), nil
}

// complete reports whether everybody has answered whom anybody lists.
func complete(found map[uuid.UUID]*member) bool {
	heard := map[string]bool{}
	for _, m := range found {
		heard[m.name] = true
	}
	for _, m := range found {
		for _, n := range m.info.Nodes {
			if !heard[n] {
				return false
			}
		}
	}
	return true
}

func newCensus(cluster string, found map[uuid.UUID]*member) *census {
	c := &census{cluster: cluster}
	count, names := map[string]int{}, map[string]int{}
	for _, m := range found {
		c.members = append(c.members, m)
		count[m.digest]++
		names[m.name]++
	}
	// Most answers, and among equals the same one at every look.
	for digest, n := range count {
		if c.digest == "" || n > count[c.digest] || n == count[c.digest] && digest < c.digest {
			c.digest = digest
		}
	}
	for _, m := range c.members {
		m.clash = names[m.name] > 1
		m.other = m.digest != c.digest
		if !m.other && c.config == nil {
			c.config = &proto.Config{Nodes: m.info.Nodes, MaxTTL: m.info.MaxTTL, Skew: m.info.Skew}
		}
	}
	if c.config != nil {
		for _, n := range c.config.Nodes {
			if names[n] == 0 {
				c.members = append(c.members, &member{name: n})
			}
		}
	}
	slices.SortFunc(c.members, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.name, b.name), slices.Compare(a.incarnation[:], b.incarnation[:]))
	})
	return c
}

// patience of a survey: nodes that do not answer within it are silent.
func (l *link) patience() time.Duration { return min(l.timeout, time.Second) }

// maxLease is the longest lease that the cluster allows, by the first node that
// answers; otherwise is for when none does.
func (l *link) maxLease(ctx context.Context, otherwise time.Duration) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, l.patience())
	defer cancel()
	ask := proto.Request{Verb: proto.Info, Client: l.client, Nonce: nuid.Next()}
	m, err := l.RequestWithContext(ctx, l.infoSubject(), proto.AppendRequest(nil, &ask))
	if err != nil {
		return otherwise
	}
	a, err := proto.DecodeAnswer(m.Data)
	if err != nil || a.Info == nil {
		return otherwise
	}
	return a.Info.MaxTTL
}
