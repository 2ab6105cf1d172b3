package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
)

// What errors.Is finds in the errors of this package.
var (
	// ErrFenced: the claim may no longer read or write. Another holder has moved the fence,
	// or the lock's context has ended. Nothing was written. See FencedError.
	ErrFenced = errors.New("store: fenced")
	// ErrUnknown: the answer to a write is lost, and it cannot be learned whether the write
	// was done. It may have been done, or be done later: a message that is on its way may come
	// after a read that does not show it. After ErrUnknown of a View, the next call of that view
	// decides, as long as its lock is held: it moves the fence, and a write that has not come by
	// then is refused. So does the next holder of the lock, with its first call. After ErrUnknown
	// of a Store, repeating the transaction with the same Once decides. The first call of another
	// process that works under the same lock decides like the next call of the view. See
	// UnknownError.
	ErrUnknown = errors.New("store: the outcome is unknown")
	// ErrConflict: a key is not as Create, Insert or Update demands. Nothing was written. See
	// ConflictError.
	ErrConflict = errors.New("store: conflict")
	// ErrDuplicate: a transaction with the same id was done before. Nothing was written. See
	// DuplicateError.
	ErrDuplicate = errors.New("store: duplicate")
	// ErrNotPrepared: the bucket lacks what fences need. See NotPreparedError.
	ErrNotPrepared = errors.New("store: the bucket is not prepared")
	// ErrFull: the bucket has reached its limit (max_bytes), or the account has reached that
	// of its storage. Nothing was written. A bucket with replicas refuses every write then,
	// also one that makes it smaller, and no new holder can move a fence.
	ErrFull = errors.New("store: the bucket is full")
	// ErrTooLarge: a value, or the note that Once stores, is larger than the bucket or the server
	// allows for a message. Its headers count too. Nothing was written.
	ErrTooLarge = errors.New("store: too large")
	// ErrUnsupported: the NATS server is too old, or the bucket is of a kind that cannot have
	// fences.
	ErrUnsupported = errors.New("store: not supported")
	// ErrShared: a write under a shared lock.
	ErrShared = errors.New("store: a shared lock only reads")
	// ErrNoLock: In was called with a context that has no View.
	ErrNoLock = errors.New("store: no lock")
	// ErrNotNumber: Add on a key whose value is not a decimal number, or a sum that is out of
	// the range of int64.
	ErrNotNumber = errors.New("store: not a number")
	// ErrInvalid: arguments that can never work, such as a key that NATS does not allow.
	ErrInvalid = errors.New("store: invalid")
)

// FencedError says who has the fence. errors.Is finds ErrFenced in it, and also
// qlock.ErrLost, unless the lock was unlocked.
type FencedError struct {
	Lock   string // the name of the lock
	Token  uint64 // of this claim
	Newer  uint64 // the token at the fence; 0 if the fence was not read
	Client string // who moved the fence, if known
	Cause  error  // why the lock's context has ended, if it has, or that the bucket was replaced
}

// errReplaced: the bucket gives sequences that it gave before.
var errReplaced = fmt.Errorf("another bucket is in its place: it was restored from a backup, or was made anew: %w", jetstream.ErrBucketNotFound)

func (e *FencedError) Error() string {
	what := fmt.Sprintf("store: fenced: lock %q, token %d: ", e.Lock, e.Token)
	switch {
	case errors.Is(e.Cause, errReplaced):
		return what + e.Cause.Error() + ": open it again, and acquire the lock again"
	case e.Cause != nil:
		return what + "the lock is no longer held, so nothing was sent: " + e.Cause.Error()
	case e.Newer == 0:
		return what + "the fence is gone: an operator removed it, or the bucket was made anew: acquire the lock again"
	case e.Newer <= e.Token:
		return what + fmt.Sprintf("the fence has token %d%s: a reader has it, or an operator set it back: acquire the lock again", e.Newer, e.by())
	}
	return what + fmt.Sprintf("a newer holder with token %d%s has the lock: this claim's time is over, acquire the lock again", e.Newer, e.by())
}

func (e *FencedError) by() string {
	if e.Client == "" {
		return ""
	}
	return fmt.Sprintf(" (%s)", e.Client)
}

// Unwrap is for errors.Is and errors.As.
func (e *FencedError) Unwrap() []error {
	switch {
	case e.Cause == nil:
		return []error{ErrFenced, qlock.ErrLost}
	case errors.Is(e.Cause, errReplaced):
		return []error{ErrFenced, qlock.ErrLost, e.Cause}
	default:
		return []error{ErrFenced, e.Cause}
	}
}

// UnknownError says which write has no known outcome. Errors.Is finds ErrUnknown in it, and
// what kept the package from finding out, such as the context's error. It never finds
// ErrFenced, ErrConflict, ErrDuplicate, ErrFull, ErrTooLarge or ErrNotNumber, which say that
// nothing was written.
type UnknownError struct {
	What  string // the keys of the write
	Cause error  // what kept the package from finding out
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("store: the outcome is unknown: %s may or may not have been written: %v: read it again, or give each request an id with Once", e.What, e.Cause)
}

// Unwrap is for errors.Is and errors.As.
func (e *UnknownError) Unwrap() []error {
	if errors.Is(e.Cause, ErrFenced) {
		return []error{ErrUnknown, qlock.ErrLost}
	}
	for _, undone := range []error{ErrConflict, ErrDuplicate, ErrFull, ErrTooLarge, ErrNotNumber} {
		if errors.Is(e.Cause, undone) {
			return []error{ErrUnknown}
		}
	}
	return []error{ErrUnknown, e.Cause}
}

// because adds to the error of a call why its context ended. The rest of the package sees the
// context's own error only: a cause is the caller's, and may have any error in it, also one that
// means something else here.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || errors.Is(err, cause) || !errors.Is(err, ctx.Err()) || errors.Is(err, ErrFenced) {
		return err
	}
	if u := (*UnknownError)(nil); errors.As(err, &u) {
		return &UnknownError{What: u.What, Cause: fmt.Errorf("%w: %w", u.Cause, cause)}
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// ConflictError says which key is not as Create, Insert or Update demands. Of a Create or Insert that found
// the key, errors.Is finds jetstream.ErrKeyExists as well.
type ConflictError struct {
	Key      string
	Revision uint64 // found; 0 if there is no such key
	Want     uint64 // demanded; 0: that there is no such key
}

func (e *ConflictError) Error() string {
	switch {
	case e.Want == 0:
		return fmt.Sprintf("store: conflict: key %q exists, with revision %d: read it, and use Update with this revision", e.Key, e.Revision)
	case e.Revision == 0:
		return fmt.Sprintf("store: conflict: there is no key %q, and revision %d was expected: it was deleted or has expired", e.Key, e.Want)
	}
	return fmt.Sprintf("store: conflict: key %q has revision %d, and %d was expected: read it again", e.Key, e.Revision, e.Want)
}

// Unwrap is for errors.Is.
func (e *ConflictError) Unwrap() []error {
	if e.Want == 0 {
		return []error{ErrConflict, jetstream.ErrKeyExists}
	}
	return []error{ErrConflict}
}

// DuplicateError says that a transaction with the same id was done before. The call that
// returns it also returns the first one's Result.
type DuplicateError struct {
	ID     string
	Answer []byte    // what the first one gave to Once
	When   time.Time // by the server's clock
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("store: duplicate: %q was done at %s: nothing was done again, and the result is the first one's", e.ID, e.When.UTC().Format(time.RFC3339))
}

// Unwrap is for errors.Is.
func (e *DuplicateError) Unwrap() error { return ErrDuplicate }

// NotPreparedError says what a bucket lacks.
type NotPreparedError struct {
	Bucket  string
	Missing []string
}

func (e *NotPreparedError) Error() string {
	return fmt.Sprintf("store: the bucket is not prepared: %s: %s: run \"qlock store prepare %s\", or call store.Prepare",
		e.Bucket, strings.Join(e.Missing, "; "), e.Bucket)
}

// Unwrap is for errors.Is.
func (e *NotPreparedError) Unwrap() error { return ErrNotPrepared }
