// Package dice turns the input of a fuzz test into choices, and into messages that are
// well formed but otherwise arbitrary. They stand for what a machine may receive from a
// network that repeats, reorders and delays messages, from other versions, and from
// anybody who may publish.
package dice

import (
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

// Dice is a sequence of bytes, one of which each choice consumes. When none is left,
// every choice is the first. It is not safe for concurrent use.
type Dice struct{ bytes []byte }

// New returns dice of the input of a fuzz test.
func New(bytes []byte) *Dice { return &Dice{bytes} }

// Left reports whether bytes are left.
func (d *Dice) Left() bool { return len(d.bytes) > 0 }

// N returns a number from 0 to n-1; n must be from 1 to 256.
func (d *Dice) N(n int) int {
	if len(d.bytes) == 0 {
		return 0
	}
	b := d.bytes[0]
	d.bytes = d.bytes[1:]
	return int(b) % n
}

// Odds returns true in about one of n cases; n must be from 1 to 256.
func (d *Dice) Odds(n int) bool { return d.N(n) == n-1 }

// Of returns one of several values, at least one and at most 256.
func Of[T any](d *Dice, all ...T) T { return all[d.N(len(all))] }

// Pass returns a time to let pass: usually a short one, sometimes a lease or more.
func (d *Dice) Pass(lease time.Duration) time.Duration {
	if d.N(8) > 0 {
		return Of(d, 0, time.Microsecond, time.Millisecond, 30*time.Millisecond)
	}
	return Of(d, lease/12, lease/3, lease/2, lease, 4*lease)
}

// World lists the participants and subjects of messages.
type World struct {
	Cluster   wire.Config
	Nodes     []string // that answer; some may not be in the cluster
	Clients   []string
	Instances []uuid.UUID
	Resources []string
	Lease     time.Duration
	Beat      uint64 // about the highest that was sent
	Seq       uint64 // about the highest that was given out
	// Wall is the wall clock in microseconds.
	Wall int64
}

func (d *Dice) beat(w *World) uint64 {
	step := uint64(time.Second / time.Microsecond)
	return min(max(Of(d, w.Beat, w.Beat, w.Beat-1, w.Beat+1, 1, w.Beat+step, w.Beat-min(step, w.Beat), wire.MaxInt), 1), wire.MaxInt)
}

func (d *Dice) seq(w *World) uint64 {
	return min(max(uint64(1+d.N(int(min(w.Seq, 200))+1)), 1), wire.MaxInt)
}

func (d *Dice) mode() quorum.Mode { return Of(d, quorum.Exclusive, quorum.Shared) }

func (d *Dice) fence(w *World) uint64 {
	wall := uint64(max(w.Wall, 1))
	return Of(d, wall, wall+1, wall+2, 1, wall+uint64(w.Lease.Microseconds()), wire.MaxInt-1)
}

func (d *Dice) digest(w *World) string {
	if d.Odds(32) {
		return "0123456789abcdef"
	}
	return w.Cluster.Digest()
}

// runs returns some of the numbers from lo to hi.
func (d *Dice) runs(lo, hi uint64) wire.Runs {
	var out wire.Runs
	at := lo
	for range 6 {
		if at > hi {
			break
		}
		to := min(at+uint64(d.N(4)), hi)
		if d.N(3) > 0 {
			out = append(out, wire.Run{Lo: at, Hi: to})
		}
		at = to + 1 + uint64(d.N(3))
	}
	return out
}

func (d *Dice) span(w *World) (lo, hi uint64) {
	return Of(d, 1, d.seq(w)), Of(d, w.Seq, d.seq(w), w.Seq+3, wire.MaxInt)
}

// Request returns an arbitrary request that a decoder accepts.
func (d *Dice) Request(w *World) wire.Request {
	r := wire.Request{
		Verb:   Of(d, wire.Acquire, wire.Acquire, wire.Acquire, wire.Release, wire.Yield, wire.Refresh, wire.Info, wire.List, wire.Inspect, wire.Evict),
		Client: Of(d, w.Clients...),
	}
	claim := wire.ClaimID{Instance: Of(d, w.Instances...), Seq: d.seq(w)}
	switch r.Verb {
	case wire.Acquire, wire.Release, wire.Yield, wire.Inspect, wire.Evict:
		r.Resource = Of(d, w.Resources...)
	}
	switch r.Verb {
	case wire.Acquire:
		r.Claim, r.SentAt, r.Mode, r.TTL, r.Digest = claim, d.beat(w), d.mode(), w.Lease, d.digest(w)
		r.At = Of(d, w.Wall, w.Wall-1, w.Wall+1, 0, w.Wall+time.Hour.Microseconds(), wire.MaxInt)
		if d.Odds(3) {
			r.MinFence = d.fence(w)
		}
		r.Held, r.Try, r.SuppressQueued = d.Odds(4), d.Odds(4), d.Odds(4)
		if r.Keep = d.Odds(3); r.Keep {
			r.RangeSize = Of(d, uint64(0), 1, 64, wire.MaxSpan)
		}
		r.Node, r.Check = Of(d, append([]string{"", "", ""}, w.Nodes...)...), d.Odds(2)
	case wire.Release:
		r.Claim, r.Now = claim, Of(d, w.Wall, 0, w.Wall+time.Hour.Microseconds(), wire.MaxInt)
	case wire.Yield:
		r.Claim, r.SentAt, r.Node = claim, d.beat(w), Of(d, w.Nodes...)
	case wire.Refresh:
		r.Claim.Instance, r.SentAt = claim.Instance, d.beat(w)
		r.Lo, r.Hi = d.span(w)
		r.Live = d.runs(r.Lo, r.Hi)
	case wire.Info:
		switch d.N(4) {
		case 0:
			r.Nonce = "n"
		case 1: // a node asks about claims
			r.Client, r.Digest = Of(d, w.Nodes...), d.digest(w)
			r.Over, r.Recalled = d.claims(w), d.claims(w)
		default:
			r.Nonce = "n"
			r.Node = Of(d, w.Nodes...)
			r.Client = Of(d, r.Node, r.Client)
			r.Incarnation, r.Started, r.Voted = uuid.UUID{byte(d.N(4))}, Of(d, 0, w.Wall, wire.MaxInt), d.Odds(2)
		}
	case wire.List, wire.Inspect:
		r.After, r.Node = Of(d, 0, 1, w.Seq, wire.MaxInt), Of(d, append([]string{""}, w.Nodes...)...)
	case wire.Evict:
		r.Claim, r.Holder, r.Query = claim, Of(d, w.Clients...), "why"
	}
	return r
}

// claims returns some claims that another node may name.
func (d *Dice) claims(w *World) []wire.ClaimOf {
	var out []wire.ClaimOf
	for range d.N(4) {
		out = append(out, wire.ClaimOf{Client: Of(d, w.Clients...), Claim: wire.ClaimID{Instance: Of(d, w.Instances...), Seq: d.seq(w)}})
	}
	return out
}

// Grants returns votes of all nodes of the cluster for one claim, as honest nodes give
// them.
func (d *Dice) Grants(w *World, client string, claim wire.ClaimID, beat uint64) []wire.Answer {
	var all []wire.Answer
	fence := uint64(max(w.Wall, 1)) + uint64(d.N(3))
	span := Of(d, uint64(0), 64, 4096)
	for _, name := range w.Cluster.Nodes {
		all = append(all, wire.Answer{
			Kind: wire.Granted, Node: name, Incarnation: uuid.UUID{1}, Digest: w.Cluster.Digest(), Client: client,
			Claim: claim, SentAt: beat, Fence: fence, RangeSize: span,
		})
	}
	return all
}

// lives returns incarnations whose memory a node may have.
func (d *Dice) lives() []uuid.UUID {
	if d.Odds(2) {
		return nil
	}
	return []uuid.UUID{{byte(1 + d.N(3))}}
}

// Answer returns an arbitrary answer that a decoder accepts.
func (d *Dice) Answer(w *World) wire.Answer {
	return d.AnswerOf(w, Of(d, wire.Granted, wire.Granted, wire.Granted, wire.Queued, wire.Refused, wire.Recall,
		wire.Refreshed, wire.Evicted, wire.Informed, wire.Listed, wire.Evicting, wire.Over))
}

// AnswerOf returns such an answer of the given kind.
func (d *Dice) AnswerOf(w *World, kind wire.Kind) wire.Answer {
	a := wire.Answer{Kind: kind, Node: Of(d, w.Nodes...), Digest: d.digest(w), Client: Of(d, w.Clients...)}
	if a.Incarnation = (uuid.UUID{1}); d.Odds(32) {
		a.Incarnation = uuid.UUID{byte(2 + d.N(2))}
	}
	claim := wire.ClaimID{Instance: Of(d, w.Instances...), Seq: d.seq(w)}
	switch a.Kind {
	case wire.Granted, wire.Queued, wire.Refused, wire.Recall, wire.Evicted:
		a.Claim, a.SentAt = claim, d.beat(w)
	}
	switch a.Kind {
	case wire.Granted:
		a.Fence, a.RangeSize, a.Behind, a.Late = d.fence(w), Of(d, uint64(0), 2, 64), d.Odds(4), d.Odds(4)
		if d.Odds(4) {
			a.Most = d.fence(w)
		}
		a.Continues = d.lives()
	case wire.Queued:
		a.Place, a.Recovering, a.Again = d.N(4), Of(d, 0, w.Lease), Of(d, 0, 0, 1, 2)
		if d.Odds(2) {
			a.Blocker = &wire.Blocker{
				Claim: wire.ClaimID{Instance: uuid.UUID{9}, Seq: 1}, Client: "other", Mode: d.mode(),
				Voted: d.Odds(2), Ahead: d.Odds(2), For: time.Second,
			}
		}
	case wire.Refused:
		a.Reason, a.Text, a.Retryable = Of(d, wire.ReasonAge, wire.ReasonClaims, "later"), "no", d.Odds(2)
	case wire.Recall:
		if a.Behind = d.Odds(2); !a.Behind {
			a.For = Of(d, append([]string{""}, w.Nodes...)...)
		}
	case wire.Evicted:
		a.By, a.Text = "ops", "why"
	case wire.Refreshed:
		a.Claim.Instance, a.SentAt = claim.Instance, d.beat(w)
		a.Lo, a.Hi = d.span(w)
		a.Waiting, a.Unknown, a.Continues = d.runs(a.Lo, a.Hi), d.runs(a.Lo, a.Hi), d.lives()
	case wire.Over:
		a.Over = d.claims(w)
		for _, c := range d.claims(w) {
			a.Yielded = append(a.Yielded, wire.YieldOf{ClaimOf: c, SentAt: d.beat(w)})
		}
	case wire.Informed:
		a.Info = &wire.NodeInfo{
			Nonce: "n", Nodes: w.Cluster.Nodes, MaxTTL: w.Cluster.MaxTTL, Skew: w.Cluster.Skew, State: wire.Voting,
			Started: Of(d, 0, w.Wall, wire.MaxInt), Voted: d.Odds(2),
		}
	case wire.Listed:
		a.Nonce, a.List = "n", &wire.Page{After: Of(d, uint64(0), 1, wire.MaxInt), Next: Of(d, uint64(0), 1, wire.MaxInt)}
		for range d.N(3) {
			rec := wire.Record{Name: Of(d, w.Resources...), Votes: d.N(3), Waiting: d.N(3)}
			for range d.N(3) {
				voted := d.Odds(2)
				c := wire.ClaimRecord{Claim: claim, Client: a.Client, Mode: d.mode(), At: max(w.Wall, 0), Voted: voted, Evicted: d.Odds(4)}
				if voted {
					c.Fence = d.fence(w)
				}
				rec.Claims = append(rec.Claims, c)
			}
			a.List.Locks = append(a.List.Locks, rec)
		}
	case wire.Evicting:
		a.Nonce, a.Known = "n", d.Odds(2)
	}
	return a
}
