package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// entry is a jetstream.KeyValueEntry.
type entry struct {
	bucket  string
	key     string
	value   []byte
	rev     uint64
	created time.Time
	op      jetstream.KeyValueOp
}

func (e *entry) Bucket() string                  { return e.bucket }
func (e *entry) Key() string                     { return e.key }
func (e *entry) Value() []byte                   { return e.value }
func (e *entry) Revision() uint64                { return e.rev }
func (e *entry) Created() time.Time              { return e.created }
func (e *entry) Delta() uint64                   { return 0 }
func (e *entry) Operation() jetstream.KeyValueOp { return e.op }

// Snapshot is what several keys were at one moment.
type Snapshot struct {
	revision uint64
	entries  map[string]*entry
}

// Revision is the sequence of the last message of the bucket that the snapshot takes into
// account. Nothing in the snapshot is newer.
func (s Snapshot) Revision() uint64 { return s.revision }

// Get returns the entry of a key that was asked for. Its error is
// jetstream.ErrKeyNotFound if there was none, or it was deleted.
func (s Snapshot) Get(key string) (jetstream.KeyValueEntry, error) {
	if e := s.entries[key]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("store: key %q: %w", key, jetstream.ErrKeyNotFound)
}

// Keys lists the keys that were there.
func (s Snapshot) Keys() []string { return slices.Sorted(maps.Keys(s.entries)) }

// Result is what a transaction has done.
type Result struct {
	Snapshot // the answers to Get

	numbers map[string]int64
	written map[string]uint64
}

// Number is the sum that an Add has made.
func (r Result) Number(key string) int64 { return r.numbers[key] }

// Written is the new revision of a key that the transaction wrote. It is 0 for other keys,
// and in the result of a duplicate.
func (r Result) Written(key string) uint64 { return r.written[key] }
