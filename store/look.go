package store

import (
	"context"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Check returns why a bucket whose stream has this configuration cannot have fences: nil, a
// *NotPreparedError, or ErrUnsupported. It asks no server, and Open makes the same check.
func Check(c jetstream.StreamConfig) error {
	bucket := strings.TrimPrefix(c.Name, names{}.stream())
	if err := checkBucket(bucket); err != nil {
		return err
	}
	if err := unfit(bucket, c); err != nil {
		return err
	}
	if missing := lacks(bucket, c); len(missing) > 0 {
		return &NotPreparedError{bucket, missing}
	}
	return nil
}

// Repeat looks whether a transaction with this id of Once was done, and changes nothing. If it
// was, the result and the error are those of a repeat: the first one's Result, and a
// *DuplicateError. If no such transaction was done before the call, the error is nil.
func (s *Store) Repeat(ctx context.Context, id string) (_ Result, err error) {
	defer func() { err = because(ctx, err) }()
	t, err := s.transaction([]Op{Once(id, 0)})
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	floor, err := s.barrier(ctx)
	if err != nil {
		return Result{}, err
	}
	a, err := s.readFrom(ctx, floor, []string{s.guard(), t.marker})
	if err != nil {
		return Result{}, err
	}
	it := a.items[t.marker]
	if it.gone() {
		return Result{}, nil
	}
	at := &attempt{result: Result{Snapshot: Snapshot{revision: a.upTo, entries: map[string]*entry{}}, numbers: map[string]int64{}, written: map[string]uint64{}}}
	err = s.duplicate(t, at, it)
	if d, ok := err.(*duplicateOf); ok {
		return d.result, d.err
	}
	return Result{}, err
}

// NamedFence is the fence of a lock.
type NamedFence struct {
	Lock string // its name, encoded as in subjects
	Fence
}

// Fences returns the fences of all locks of the store's cluster, by name. They are read from
// any replica, and may be behind. It fails with ErrInvalid if there are more than 1,023, as
// many as the server gives in an answer.
func (s *Store) Fences(ctx context.Context) (_ []NamedFence, err error) {
	defer func() { err = because(ctx, err) }()
	ctx, cancel := s.bound(ctx)
	defer cancel()
	prefix := s.fences() + s.opt.cluster + "."
	a, err := s.readFrom(ctx, 0, []string{s.guard(), prefix + ">"})
	if err != nil {
		return nil, err
	}
	var out []NamedFence
	for subject, i := range a.items {
		lock, ok := strings.CutPrefix(subject, prefix)
		if !ok {
			continue
		}
		f, _ := parseFence(i) // one that somebody else wrote has no token
		out = append(out, NamedFence{lock, Fence{Token: f.token, Shared: f.shared, Client: f.client, Revision: i.seq, Moved: i.time}})
	}
	slices.SortFunc(out, func(a, b NamedFence) int { return strings.Compare(a.Lock, b.Lock) })
	return out, nil
}
