package driver

import (
	"errors"
	"fmt"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/natsio"
)

// These are the errors for errors.Is. Package qlock documents them.
var (
	ErrHeld         = errors.New("qlock: held by another")
	ErrNoQuorum     = errors.New("qlock: no quorum")
	ErrLost         = errors.New("qlock: lock lost")
	ErrEvicted      = errors.New("qlock: evicted")
	ErrUnlocked     = errors.New("qlock: unlocked")
	ErrHoldExpired  = errors.New("qlock: the lock has been held for as long as HoldAtMost allows")
	ErrClosed       = errors.New("qlock: closed")
	ErrInvalidLease = errors.New("qlock: invalid lease")
	ErrRefused      = errors.New("qlock: refused")
)

// evictedError is the error of a lock that was lost by eviction.
type evictedError struct{ client.Eviction }

func (e *evictedError) Error() string { return "qlock: lock lost: evicted " + e.Eviction.Error() }

func (e *evictedError) Unwrap() error { return &e.Eviction }

func (e *evictedError) Is(target error) bool { return target == ErrLost || target == ErrEvicted }

// leaptError is the error of a lost lock if a leap of the wall clock explains the loss.
type leaptError struct{ why string }

func (e *leaptError) Error() string { return "qlock: lock lost: " + e.why }

func (e *leaptError) Is(target error) bool { return target == ErrLost }

func closedError(nc natsio.Conn) error {
	return fmt.Errorf("%w: %w", ErrClosed, natsio.CloseCause(nc))
}
