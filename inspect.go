package qlock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// LockInfo describes a lock, assembled from the answers of all nodes. The nodes do not answer at
// the same moment, so a change in between may show at some of them only. A claim counts as held by
// the rule that its client uses: a quorum of votes that agree on the token, or a quorum of any
// votes if the claim was held before. A node that lost its state, and does not vote yet, counts for
// a claim if the claim's client has told it since that it holds the claim.
type LockInfo struct {
	Name string

	// Holders are the claims that have a quorum of votes: one writer, or readers. Locks lists at
	// most eight of them; Holding counts all.
	Holders []ClaimInfo
	Holding int

	// Queue are the waiting claims in order, beginning with those that have the vote of some node.
	// Locks lists only those with a vote; Waiting counts all.
	Queue   []ClaimInfo
	Waiting int

	Answered   []string // nodes that answered
	Recovering []string // those of Answered that may have forgotten votes, and do not vote yet
	Silent     []string // nodes that did not answer; claims that only these know are missing

	// Lists is set while the list of nodes changes: the names of the old list, and then those of the
	// new one. A claim then needs a quorum of each.
	Lists [][]string

	joint *wire.Config // set while the list of nodes changes
}

// Complete reports whether only the claims listed here can hold the lock. This is so when a quorum
// of nodes that vote have answered.
func (i *LockInfo) Complete() bool {
	if i.joint != nil {
		voting := slices.DeleteFunc(slices.Clone(i.Answered), func(n string) bool { return slices.Contains(i.Recovering, n) })
		return i.joint.Need(exclusive).Met(i.joint.Counts(voting))
	}
	return len(i.Answered)-len(i.Recovering) >= quorum.Size(len(i.Answered)+len(i.Silent), exclusive)
}

// ClaimInfo describes a claim according to the nodes: a lock that is held, kept (WithRetention), or
// waited for. Goroutines of one Locker may share a claim.
type ClaimInfo struct {
	ID     string // identifies the claim; never used again for another one
	Client string
	Note   string // the client's description (WithNote, ContextWithNote, Note)
	Shared bool   // whether it is a reader

	Held bool // whether it has a quorum of votes, as its client counts them
	// Token is the fencing token, if it is held. When the client passes the claim on among its
	// goroutines, the nodes hear of it later: the token may be that of a former holder, and is not
	// above that of the present one. While nodes that voted with different tokens settle on one, it
	// may be higher for a moment (rule C3 in docs/protocol.md).
	Token uint64
	// MayHold is set for a claim that is not Held if the votes that it has could be a quorum
	// together with votes of nodes that are silent or recovering.
	MayHold bool
	Lease   time.Duration // how long the claim outlives a client that falls silent
	For     time.Duration // how long it has had its votes, or waited
	Asked   time.Time     // when it was requested, by its client's clock; older claims go first

	Kept    bool // its client passes it on among its goroutines, or retains it
	Evicted bool // somebody asked for its end: see Locker.Evict

	Voted, Queued []string // nodes that vote for it, and nodes that queue it
}

// Locks lists the locks that are held or waited for, sorted by name. pattern selects names as NATS
// selects subjects, for example orders.> or *.42, in the form that names have in subjects
// (docs/wire.md). An empty pattern, or >, selects all names. Locks asks the nodes page by page.
// Each page costs the nodes about as much as a few locks.
//
// Locks returns when all nodes have answered, or when a quorum have and the others have been silent
// for half a second. If ctx has no deadline, it gives up after 5 s.
//
// Errors: ErrInvalidName if the pattern is invalid; ErrNoQuorum with the context's error;
// ErrRefused if NATS does not let this client ask (list has a permission of its own:
// docs/security.md); ErrClosed if the Locker or its connection is closed.
func (l *Locker) Locks(ctx context.Context, pattern string) ([]LockInfo, error) {
	if pattern != "" && !subject.IsPattern(pattern) {
		return nil, fmt.Errorf("%w: the pattern %s: use names with * for one token, and > at the end for all that follow; other characters as in subjects",
			ErrInvalidName, quote(pattern))
	}
	return l.inspect(ctx, wire.Request{Verb: wire.List, Query: pattern})
}

// Inspect returns everything that the nodes know about one name. If no claim holds it or waits for
// it, the LockInfo has no claims. Inspect takes as long, and fails with the same errors, as Locks.
// It needs the permission for inspect.
func (l *Locker) Inspect(ctx context.Context, name string) (*LockInfo, error) {
	resource, err := subject.EncodeName(name)
	if err != nil {
		return nil, err
	}
	all, err := l.inspect(ctx, wire.Request{Verb: wire.Inspect, Resource: resource})
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == name {
			return &all[i], nil
		}
	}
	// A node of qlock answers about the name that it was asked about.
	return nil, fmt.Errorf("qlock: inspect %s: the nodes answered about other names", quote(name))
}

// Evict ends a claim that Inspect or Locks listed, held or waiting. The client of the claim learns
// of it at once. If it holds the lock, the lock's context ends with a cause that is both ErrLost
// and ErrEvicted for errors.Is; if it waits, its call fails with ErrEvicted. why is a text for the
// people who run that client; at most 512 bytes of it are sent.
//
// Evict never takes a lock away before its holder knows. The nodes keep the votes until the holder
// returns them, but no longer extend the lease. So a client that is dead or cut off keeps the lock
// until its lease ends, and no longer.
//
// Evict returns nil when a quorum of nodes that vote no longer have the claim. A node that came
// back without its state does not vote for MaxLease, and may have forgotten the claim, so its
// answer does not count. If ctx has no deadline, Evict waits for the longest lease that the cluster
// allows. Errors: those of Inspect; ErrHeld with the context's error if the claim is still there;
// ErrNoQuorum if too few nodes vote to decide. Evict needs the permission for evict.
func (l *Locker) Evict(ctx context.Context, name string, claim ClaimInfo, why string) error {
	resource, err := subject.EncodeName(name)
	if err != nil {
		return err
	}
	id, err := wire.ParseClaimID(claim.ID)
	if err != nil {
		return fmt.Errorf("qlock: evict %s: %w", quote(name), err)
	}
	if err := subject.CheckToken("client", claim.Client); err != nil {
		return fmt.Errorf("qlock: evict %s: %w", quote(name), err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.client.Cluster().MaxTTL+5*time.Second)
		defer cancel()
	}
	r := wire.Request{Verb: wire.Evict, Resource: resource, Holder: claim.Client, Claim: id, Query: clip(why, wire.MaxText)}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		d, err := l.askDeparture(ctx, r)
		if err != nil || d.Over() {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return departureError(name, claim.Client, d, natsio.ContextError(ctx))
		}
	}
}

// departureRound limits the time between answers that are combined. If they came from moments far
// apart, the claim could be absent from each node at the moment when that node was asked, and still
// be held throughout.
const departureRound = time.Second

// askDeparture asks all nodes once whether they still have a claim that is to end.
func (l *Locker) askDeparture(ctx context.Context, r wire.Request) (*client.Departure, error) {
	round, cancel := context.WithTimeout(ctx, departureRound)
	defer cancel()
	r.Nonce = uuid.NewString()
	d := client.NewDeparture(l.client.Cluster(), r.Nonce)
	_, _, err := l.client.Query(round, r, func(a *wire.Answer) (next uint64, enough bool) {
		d.Hear(a)
		return 0, d.Decided()
	})
	if errors.Is(err, ErrNoQuorum) && ctx.Err() == nil {
		err = nil // the next round may succeed
	}
	return d, err
}

func departureError(name, holder string, d *client.Departure, cause error) error {
	if len(d.Having) == 0 {
		var why []string
		if len(d.Unsure) > 0 {
			why = append(why, strings.Join(d.Unsure, " ")+" may have forgotten the claim, and must vote again before that counts")
		}
		if silent := d.Silent(); len(silent) > 0 {
			why = append(why, "no answer from "+strings.Join(silent, " "))
		}
		if text := d.Near(); text != "" {
			why = append(why, text)
		}
		return fmt.Errorf("%w: unknown whether %s has released %s: %s: %w", ErrNoQuorum, holder, quote(name), strings.Join(why, "; "), cause)
	}
	return fmt.Errorf("%w: %s was told to release %s and has not done so yet, according to %s; its lease is not extended: %w",
		ErrHeld, holder, quote(name), strings.Join(d.Having, " "), cause)
}

// clip shortens a text to the bytes that its receiver accepts.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}

// Flush waits until a quorum of nodes has received what this Locker sent before. This takes one
// round trip. Unlock does not wait for the nodes: if one program tells another, after Unlock, that
// it can call TryLock, it should call Flush in between. Otherwise TryLock may report that the lock
// is held. (Lock would only wait for a moment.) Errors are those of Inspect. Flush needs no
// permission of its own.
func (l *Locker) Flush(ctx context.Context) error {
	cluster, heard := l.client.Cluster(), []string(nil)
	need := cluster.Need(exclusive)
	_, _, err := l.client.Query(ctx, wire.Request{Verb: wire.Info}, func(a *wire.Answer) (next uint64, done bool) {
		heard = append(heard, a.Node)
		return 0, need.Met(cluster.Counts(heard))
	})
	return err
}

// inspect asks the nodes and combines their answers.
func (l *Locker) inspect(ctx context.Context, r wire.Request) ([]LockInfo, error) {
	names, waiting := map[string]*views{}, map[string]bool{}
	cluster := l.client.Cluster()
	answered, silent, err := l.client.Query(ctx, r, func(a *wire.Answer) (next uint64, enough bool) {
		if a.List == nil {
			return 0, false
		}
		waiting[a.Node] = a.Recovering > 0
		for i := range a.List.Locks {
			rec := &a.List.Locks[i]
			v := names[rec.Name]
			if v == nil {
				v = &views{claims: map[claimKey]*view{}}
				names[rec.Name] = v
			}
			v.add(a.Node, a.Recovering > 0, rec)
		}
		return a.List.Next, false
	})
	if err != nil {
		return nil, err
	}
	if r.Verb == wire.Inspect && len(names) == 0 {
		name, err := subject.DecodeName(r.Resource)
		if err != nil {
			return nil, err
		}
		names[name] = &views{}
	}
	recovering := slices.DeleteFunc(slices.Clone(answered), func(n string) bool { return !waiting[n] })
	var lists [][]string
	if cluster.Record != nil && cluster.Record.Joint() {
		for _, in := range []quorum.In{quorum.InNodes, quorum.InNext} {
			lists = append(lists, slices.DeleteFunc(slices.Clone(cluster.Nodes), func(n string) bool { return cluster.In(n)&in == 0 }))
		}
	}
	all := make([]LockInfo, 0, len(names))
	for name, v := range names {
		info := v.info(&cluster, answered, recovering, silent)
		info.Name, info.Lists = name, lists
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b LockInfo) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

type claimKey struct {
	client string
	id     wire.ClaimID
}

// views holds what the nodes have on one name, by claim.
type views struct {
	claims  map[claimKey]*view
	votes   int // the highest number of votes at one node
	waiting int // the highest number of claims at one node, with and without its vote
}

type view struct {
	info   ClaimInfo
	id     wire.ClaimID
	at     int64
	mode   quorum.Mode
	token  uint64 // as its client reported
	fences []uint64
	leases []time.Duration
	nodes  []string // the nodes of these fences
}

func (v *views) add(node string, recovering bool, r *wire.Record) {
	v.votes = max(v.votes, r.Votes)
	v.waiting = max(v.waiting, r.Votes+r.Waiting)
	for i := range r.Claims {
		c := &r.Claims[i]
		key := claimKey{c.Client, c.Claim}
		w := v.claims[key]
		if w == nil {
			w = &view{id: c.Claim, at: c.At, mode: c.Mode, info: ClaimInfo{
				ID: c.Claim.Text(), Client: c.Client, Shared: c.Mode == shared, Asked: time.UnixMicro(c.At),
			}}
			v.claims[key] = w
		}
		w.info.Note = cmp.Or(w.info.Note, printable.Text(c.Note))
		w.info.Kept = w.info.Kept || c.Kept
		w.info.Evicted = w.info.Evicted || c.Evicted
		w.info.For = max(w.info.For, c.For)
		w.info.Lease = max(w.info.Lease, c.Lease)
		w.token = max(w.token, c.Token)
		if slices.Contains(w.info.Voted, node) || slices.Contains(w.info.Queued, node) {
			continue // it moved between two pages of this node, and a node counts once
		}
		if c.Voted {
			w.info.Voted = append(w.info.Voted, node)
		} else {
			w.info.Queued = append(w.info.Queued, node)
		}
		// A node that recovers gives no vote. If the client holds the claim, the vote that the node
		// gave before may still be valid.
		if c.Voted || c.Token > 0 && recovering {
			w.fences = append(w.fences, c.Fence)
			w.leases = append(w.leases, c.Lease)
			w.nodes = append(w.nodes, node)
		}
	}
}

// lease is for how long a quorum of each list has promised the claim its votes.
func (w *view) lease(cluster *wire.Config, need quorum.Joint) time.Duration {
	least := time.Duration(math.MaxInt64)
	for list, in := range [...]quorum.In{quorum.InNodes, quorum.InNext} {
		var leases []time.Duration
		for i, name := range w.nodes {
			if cluster.In(name)&in != 0 {
				leases = append(leases, w.leases[i])
			}
		}
		if slices.Sort(leases); need[list] > 0 {
			least = min(least, leases[len(leases)-need[list]])
		}
	}
	return least
}

func (v *views) info(cluster *wire.Config, answered, recovering, silent []string) LockInfo {
	missing := slices.Concat(recovering, silent)
	all := make([]*view, 0, len(v.claims))
	for _, w := range v.claims {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *view) int {
		return cmp.Or(cmp.Compare(a.at, b.at), a.id.Compare(b.id), cmp.Compare(a.info.Client, b.info.Client))
	})
	info := LockInfo{Answered: answered, Recovering: recovering, Silent: silent}
	if cluster.Record != nil && cluster.Record.Joint() {
		info.joint = cluster
	}
	var voted, waiting []ClaimInfo
	for _, w := range all {
		slices.Sort(w.info.Voted)
		slices.Sort(w.info.Queued)
		need := cluster.Need(w.mode)
		votes := make([]quorum.JointVote, len(w.fences))
		for i, fence := range w.fences {
			votes[i] = quorum.JointVote{Fence: fence, In: cluster.In(w.nodes[i])}
		}
		outcome, token := quorum.HeldJoint(votes, need, w.token /*plant:seen-token*/)
		if outcome != quorum.Won && len(w.fences) > 0 {
			more := slices.DeleteFunc(slices.Clone(missing), func(n string) bool { return slices.Contains(w.nodes, n) })
			w.info.MayHold = len(more) > 0 && need.Met(cluster.Counts(slices.Concat(w.nodes, more)))
		}
		switch {
		case outcome == quorum.Won:
			w.info.Held, w.info.Token, w.info.Lease = true, token, w.lease(cluster, need)
			info.Holders = append(info.Holders, w.info)
		case len(w.fences) > 0:
			voted = append(voted, w.info)
		default:
			waiting = append(waiting, w.info)
		}
	}
	info.Queue = append(voted, waiting...)
	info.Holding = len(info.Holders)
	if info.Holding > 1 {
		info.Holding = max(info.Holding, v.votes) // not all readers were listed
	}
	info.Waiting = max(v.waiting-info.Holding, len(info.Queue))
	return info
}
