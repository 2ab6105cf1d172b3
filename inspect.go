package qlock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// LockInfo is a lock as the nodes have it, put together from what each of them
// says. They do not say it at the same moment: what changes meanwhile may show with the
// votes of some nodes only. A claim is held if its client counts it as held: by a quorum
// of votes that agree on the token, or of any votes when it was held before. A node that
// lost its state, and waits, counts for a claim when that claim's client has told it since
// that it holds.
type LockInfo struct {
	Name string

	// Holders have a quorum of votes: one writer, or readers. Locks lists at most
	// eight of them, and Holding counts them all.
	Holders []ClaimInfo
	Holding int

	// Queue is who waits, in order, those first who have some node's vote. Locks has
	// only these, and Waiting counts them all.
	Queue   []ClaimInfo
	Waiting int

	Answered   []string // nodes
	Recovering []string // of these, those that give no votes yet: they may have forgotten some
	Silent     []string // nodes that did not answer: what only these know is missing
}

// Complete reports whether nobody but the claims in it can hold the lock: of the nodes that
// vote a quorum has answered.
func (i *LockInfo) Complete() bool {
	return len(i.Answered)-len(i.Recovering) >= quorum.Size(len(i.Answered)+len(i.Silent), exclusive)
}

// ClaimInfo is a claim as the nodes have it: a lock held, kept (WithRetention), or
// waited for. Goroutines of one Locker may share a claim.
type ClaimInfo struct {
	ID     string // names the claim for ever
	Client string
	Note   string // its client's (WithNote, ContextWithNote)
	Shared bool   // a reader's

	Held  bool   // with the votes of a quorum, as its client counts them
	Token uint64 // its fencing token, if it is held
	// MayHold is whether a claim that is not Held, as far as the nodes tell that have it,
	// may be held with the votes of nodes that are silent, or recovering.
	MayHold bool
	Lease   time.Duration // how long it would outlive a client that falls silent
	For     time.Duration // since it has its votes, or waits
	Asked   time.Time     // by its client's clock: older goes first

	Kept    bool // its client passes it on among its goroutines, or retains it
	Evicted bool // it is to end: see Locker.Evict

	Voted, Queued []string // nodes where it has the vote, and where it waits
}

// Locks lists what is locked and waited for, by name. pattern selects names as
// NATS selects subjects: orders.> or *.42, written as in subjects (docs/wire.md);
// empty, or >, is all. It asks the nodes, page by page, and each page costs them
// about as much as a few locks do.
//
// It returns when all nodes have answered, or a quorum has and the others have been
// silent for half a second. Without a deadline in ctx it gives up after 5 s.
//
// Errors: ErrNoQuorum with the context's error; ErrRefused if NATS does not let this
// client ask (the permission for list is one of its own: docs/security.md);
// ErrClosed if the Locker or its connection is closed.
func (l *Locker) Locks(ctx context.Context, pattern string) ([]LockInfo, error) {
	if pattern != "" && !subject.IsPattern(pattern) {
		return nil, fmt.Errorf("%w: the pattern %s: use names with * for one token, and > at the end for all that follow; other characters as in subjects",
			ErrInvalidName, quote(pattern))
	}
	return l.inspect(ctx, wire.Request{Verb: wire.List, Query: pattern})
}

// Inspect tells all that the nodes have on one name. If nobody holds it or waits for
// it, the info has no claims. Errors and time are those of Locks; the permission is
// that for inspect.
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
	return nil, fmt.Errorf("qlock: inspect %s: the nodes answered about other names", quote(name)) // not these nodes
}

// Evict ends a claim that Inspect or Locks showed, whether it is held or waits. Its
// client learns of it at once: the context of what it holds ends, with ErrLost and
// ErrEvicted for errors.Is; what waits fails with ErrEvicted. why is for it to read,
// at most 512 bytes.
//
// A lock is never taken away before its holder knows. The nodes keep the votes until
// they are given back, and extend the lease no more: a client that is dead, or cut
// off, keeps the lock until the lease is over, and no longer.
//
// Evict returns when a quorum of nodes that vote has the claim no more. A node that came
// back without its state does not vote for MaxLease, and may have forgotten the claim:
// its word does not count. Without a deadline in ctx it waits for the longest lease that
// the cluster allows. Errors are those of Inspect, ErrHeld with the context's error if the
// claim is still there, and ErrNoQuorum if too few nodes vote to tell; the permission is
// that for evict.
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

// departureRound is how long the answers may take that are put together. Were they of
// moments far apart, the claim could be gone from each node when it was asked, and be
// held all the same.
const departureRound = time.Second

// askDeparture asks all nodes once whether they have a claim yet that is to end.
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
		err = nil // in the next round, perhaps
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
		return fmt.Errorf("%w: unknown whether %s has released %s: %s: %w", ErrNoQuorum, holder, quote(name), strings.Join(why, "; "), cause)
	}
	return fmt.Errorf("%w: %s was told to release %s and has not done so yet, according to %s; its lease is not extended: %w",
		ErrHeld, holder, quote(name), strings.Join(d.Having, " "), cause)
}

// clip keeps a text to what its reader takes.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}

// Flush waits until a quorum of nodes has heard what this Locker told them before, for
// one round trip. Unlock does not wait for the nodes: who tells another, after it, to go
// ahead with TryLock, flushes in between, or the other may be told that the lock is
// held. (Lock would wait for a moment.) Errors are those of Inspect; it needs no
// permission of its own.
func (l *Locker) Flush(ctx context.Context) error {
	heard, need := 0, quorum.Size(len(l.Nodes()), exclusive)
	_, _, err := l.client.Query(ctx, wire.Request{Verb: wire.Info}, func(*wire.Answer) (next uint64, done bool) {
		heard++
		return 0, heard >= need
	})
	return err
}

// inspect puts together what the nodes have.
func (l *Locker) inspect(ctx context.Context, r wire.Request) ([]LockInfo, error) {
	names, waiting := map[string]*views{}, map[string]bool{}
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
	all := make([]LockInfo, 0, len(names))
	for name, v := range names {
		info := v.info(answered, recovering, silent)
		info.Name = name
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b LockInfo) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

type claimKey struct {
	client string
	id     wire.ClaimID
}

// views is what the nodes have on one name, by claim.
type views struct {
	claims  map[claimKey]*view
	votes   int // the most that any node gave
	waiting int // the most that any node has, with and without a vote
}

type view struct {
	info   ClaimInfo
	id     wire.ClaimID
	at     int64
	mode   quorum.Mode
	token  uint64 // as its client said
	fences []uint64
	leases []time.Duration
	nodes  []string // whose fences these are
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
			continue // it moved while the node was asked page by page: one node has one word
		}
		if c.Voted {
			w.info.Voted = append(w.info.Voted, node)
		} else {
			w.info.Queued = append(w.info.Queued, node)
		}
		// Of a claim that its client holds, a node that waits has no vote to show, but its
		// vote from before stands.
		if c.Voted || c.Token > 0 && recovering {
			w.fences = append(w.fences, c.Fence)
			w.leases = append(w.leases, c.Lease)
			w.nodes = append(w.nodes, node)
		}
	}
}

func (v *views) info(answered, recovering, silent []string) LockInfo {
	nodes, missing := len(answered)+len(silent), slices.Concat(recovering, silent)
	all := make([]*view, 0, len(v.claims))
	for _, w := range v.claims {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *view) int {
		return cmp.Or(cmp.Compare(a.at, b.at), a.id.Compare(b.id), cmp.Compare(a.info.Client, b.info.Client))
	})
	info := LockInfo{Answered: answered, Recovering: recovering, Silent: silent}
	var voted, waiting []ClaimInfo
	for _, w := range all {
		slices.Sort(w.info.Voted)
		slices.Sort(w.info.Queued)
		need := quorum.Size(nodes, w.mode)
		outcome, token := quorum.Held(w.fences, need, w.token /*plant:seen-token*/)
		if outcome != quorum.Won && len(w.fences) > 0 {
			more := slices.DeleteFunc(slices.Clone(missing), func(n string) bool { return slices.Contains(w.nodes, n) })
			w.info.MayHold = len(more) > 0 && len(w.fences)+len(more) >= need
		}
		switch {
		case outcome == quorum.Won:
			slices.Sort(w.leases)
			w.info.Held, w.info.Token, w.info.Lease = true, token, w.leases[len(w.leases)-need]
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
		info.Holding = max(info.Holding, v.votes) // readers, of which not all were listed
	}
	info.Waiting = max(v.waiting-info.Holding, len(info.Queue))
	return info
}
