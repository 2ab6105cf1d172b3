package gateway

import (
	"time"
)

// What requests about the store and their answers look like, at both doors.

// Operation is one operation of a transaction.
type Operation struct {
	Op          string  `json:"op" enum:"get,unchanged,put,create,update,delete,add" doc:"unchanged reads as get does, and the transaction is done only while the key is as it was read, also under a lease; create fails with conflict if there is such a key, update if the key does not have the revision"`
	Key         string  `json:"key" doc:"letters, digits and -/_= in tokens that are separated by dots"`
	Value       *string `json:"value,omitempty" doc:"put, create, update: the value, as text"`
	ValueBase64 *string `json:"value_base64,omitempty" doc:"the value as base64, in place of value"`
	Revision    uint64  `json:"revision,omitempty" doc:"update: that the key must have; delete: as well, if it is given"`
	TTL         string  `json:"ttl,omitempty" format:"go-duration" doc:"put, create, update: how long the value lives, at least 1s; default: for ever"`
	By          *int64  `json:"by,omitempty" doc:"add: to the number that the key has, or to 0; default: 1"`
}

// TransactionLock is the lock that a transaction takes.
type TransactionLock struct {
	Name    string `json:"name,omitempty"`
	Encoded string `json:"encoded,omitempty" doc:"the name as it stands in NATS subjects, in place of name"`
	Mode    string `json:"mode,omitempty" enum:"exclusive,shared" doc:"default: exclusive. A shared lock only reads"`
	Wait    string `json:"wait,omitempty" format:"go-duration" doc:"how long to wait for the lock; default: what Prefer: wait= says, or 0s"`
	Lease   string `json:"lease,omitempty" format:"go-duration" doc:"how long the lease lives without a renewal; default: 10s"`
	Note    string `json:"note,omitempty" maxLength:"256" doc:"for people"`
}

// TransactionRequest asks for operations that are all done, or none.
type TransactionRequest struct {
	Bucket  string           `json:"bucket,omitempty" doc:"over HTTP it stands in the path"`
	Ops     []Operation      `json:"ops" doc:"in their order: a get sees what a put before it has written"`
	Once    string           `json:"once,omitempty" doc:"an id: a transaction with an id that was used before is not done again, and has the first one's answer. Needed with lock"`
	OnceTTL string           `json:"once_ttl,omitempty" format:"go-duration" doc:"how long the id is remembered, at least 1s; default: 1h"`
	Lease   string           `json:"lease,omitempty" doc:"the id of a held lease: the server refuses the transaction once its lock has a newer holder"`
	Lock    *TransactionLock `json:"lock,omitempty" doc:"acquire this lock first, in place of lease"`
	Unlock  *bool            `json:"unlock,omitempty" doc:"with lock: release it before the answer; default: true. If it is false, the answer has the lease"`
}

// OperationResult is what an operation of a transaction has come to.
type OperationResult struct {
	Op          string  `json:"op"`
	Key         string  `json:"key"`
	Found       *bool   `json:"found,omitempty" doc:"get, unchanged: whether the key has a value"`
	Revision    uint64  `json:"revision,omitempty" doc:"of the key; left out of a duplicate's writes"`
	Value       *string `json:"value,omitempty" doc:"get, unchanged: the value, if it is UTF-8"`
	ValueBase64 *string `json:"value_base64,omitempty" doc:"get, unchanged: the value, if it is not UTF-8"`
	Number      *int64  `json:"number,omitempty" doc:"add: the sum"`
}

// TransactionAnswer is the answer to a TransactionRequest that was done, now or before.
type TransactionAnswer struct {
	Bucket    string            `json:"bucket"`
	Revision  uint64            `json:"revision" doc:"of the last message of the bucket that is taken into account"`
	Duplicate bool              `json:"duplicate" doc:"it was done before, with the same once: the results are the first one's, and nothing was done now"`
	Results   []OperationResult `json:"results" doc:"of the operations, in their order"`
	Token     uint64            `json:"token,omitempty" doc:"the fencing token under which it was done"`
	Lease     *Lease            `json:"lease,omitempty" doc:"of the lock, if unlock is false"`
	Gateway   string            `json:"gateway"`
	Request   string            `json:"request"`
}

// Entry is a key with its value.
type Entry struct {
	Bucket      string  `json:"bucket"`
	Key         string  `json:"key"`
	Revision    uint64  `json:"revision"`
	Value       *string `json:"value,omitempty" doc:"if it is UTF-8"`
	ValueBase64 *string `json:"value_base64,omitempty" doc:"if it is not UTF-8"`
	Token       uint64  `json:"token,omitempty" doc:"the fencing token under which it was read"`
	Gateway     string  `json:"gateway"`
	Request     string  `json:"request"`

	bytes []byte
}

// Written is the answer to a write of one key.
type Written struct {
	Bucket   string `json:"bucket"`
	Key      string `json:"key"`
	Revision uint64 `json:"revision,omitempty" doc:"of the value; left out if the key was deleted"`
	Number   *int64 `json:"number,omitempty" doc:"add: the sum"`
	Token    uint64 `json:"token,omitempty" doc:"the fencing token under which it was written"`
	Gateway  string `json:"gateway"`
	Request  string `json:"request"`
}

// GetRequest asks for a value.
type GetRequest struct {
	Bucket string  `json:"bucket,omitempty"`
	Key    string  `json:"key,omitempty"`
	Lease  string  `json:"lease,omitempty" doc:"the id of a held lease: read under its fence"`
	After  *uint64 `json:"after,omitempty" doc:"with wait: wait until the key has a higher revision than this"`
	Wait   string  `json:"wait,omitempty" format:"go-duration"`
}

// PutRequest writes a value.
type PutRequest struct {
	Bucket      string  `json:"bucket,omitempty"`
	Key         string  `json:"key,omitempty"`
	Value       *string `json:"value,omitempty" doc:"the value, as text"`
	ValueBase64 *string `json:"value_base64,omitempty" doc:"the value as base64, in place of value"`
	Revision    uint64  `json:"revision,omitempty" doc:"write only if the key has this revision"`
	Create      bool    `json:"create,omitempty" doc:"write only if there is no such key"`
	TTL         string  `json:"ttl,omitempty" format:"go-duration"`
	Lease       string  `json:"lease,omitempty" doc:"the id of a held lease: the server refuses the write once its lock has a newer holder"`
}

// DeleteRequest deletes a key.
type DeleteRequest struct {
	Bucket   string `json:"bucket,omitempty"`
	Key      string `json:"key,omitempty"`
	Revision uint64 `json:"revision,omitempty" doc:"delete only if the key has this revision"`
	Lease    string `json:"lease,omitempty"`
}

// AddRequest adds to a number.
type AddRequest struct {
	Bucket string `json:"bucket,omitempty"`
	Key    string `json:"key,omitempty"`
	By     *int64 `json:"by,omitempty" doc:"default: 1"`
	Lease  string `json:"lease,omitempty"`
}

// BucketRequest names a bucket, and of its keys some.
type BucketRequest struct {
	Bucket  string `json:"bucket,omitempty"`
	Pattern string `json:"pattern,omitempty"`
}

// Bucket is a key-value bucket of JetStream.
type Bucket struct {
	Bucket   string   `json:"bucket"`
	Prepared bool     `json:"prepared" doc:"it has what fences need; otherwise it cannot be used here"`
	Missing  []string `json:"missing,omitempty" doc:"what it lacks"`
	Command  string   `json:"command,omitempty" doc:"what mends that"`
	Replicas int      `json:"replicas"`
	Storage  string   `json:"storage" enum:"file,memory"`
	History  int64    `json:"history" doc:"values that are kept of each key"`
	Messages uint64   `json:"messages" doc:"values, older ones and those of the store itself included"`
	Bytes    uint64   `json:"bytes"`
	MaxBytes int64    `json:"max_bytes,omitempty" doc:"left out if there is no limit"`
}

// BucketList is the buckets.
type BucketList struct {
	Buckets []Bucket `json:"buckets"`
	More    bool     `json:"more" doc:"there are more than the list has"`
}

// FenceInfo is the fence of a lock in a bucket: which holder was the last to use the bucket.
type FenceInfo struct {
	Name    string `json:"name,omitempty" doc:"of the lock; left out if it is not valid UTF-8"`
	Encoded string `json:"encoded"`
	Token   uint64 `json:"token" doc:"of the last holder; writes of those with a lower one are refused"`
	Client  string `json:"client,omitempty" doc:"who that was, as it says"`
	Shared  bool   `json:"shared,omitempty" doc:"it was a reader"`
	ForMS   int64  `json:"for_ms" doc:"by the clocks of gateway and server"`
}

// BucketReport is a bucket with the locks under which it was used.
type BucketReport struct {
	Bucket     Bucket      `json:"bucket"`
	Fences     []FenceInfo `json:"fences" doc:"by the name of the lock"`
	MoreFences bool        `json:"more_fences,omitempty" doc:"there are too many to list"`
}

func (r *BucketReport) withoutTimes() any {
	out := *r
	out.Fences = changed(r.Fences, func(f *FenceInfo) { f.ForMS = 0 })
	return &out
}

// KeyInfo is a key in a list.
type KeyInfo struct {
	Key      string `json:"key"`
	Revision uint64 `json:"revision"`
	ForMS    int64  `json:"for_ms" doc:"since it was written, by the clocks of gateway and server"`
}

// KeyList is the keys of a bucket.
type KeyList struct {
	Bucket string    `json:"bucket"`
	Keys   []KeyInfo `json:"keys" doc:"by name"`
	More   bool      `json:"more" doc:"there are more than the list has: give a pattern"`
}

func (l *KeyList) withoutTimes() any {
	out := *l
	out.Keys = changed(l.Keys, func(k *KeyInfo) { k.ForMS = 0 })
	return &out
}

// StoreOperation is what Stats counts requests about the store by.
type StoreOperation struct {
	Operation string // get, put, create, update, delete, add, transaction, or lock for a transaction that takes its lock
	Outcome   string // done, duplicate, or the kind of the problem
}

const (
	storeTime     = 10 * time.Second // for a transaction
	storesAtOnce  = 128              // transactions at a time
	mostBuckets   = 500              // in a list
	mostKeys      = 10_000           // as well
	onceFor       = time.Hour
	valueHeadroom = 4 << 10 // of a message, for what is not the value
)
