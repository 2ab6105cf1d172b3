package driver

import (
	"errors"
	"testing"
)

func TestLossesThatAreExplainedAreLosses(t *testing.T) {
	if err := error(&leaptError{"x"}); !errors.Is(err, ErrLost) || errors.Is(err, ErrEvicted) {
		t.Error("a leap: the error is not ErrLost, or is ErrEvicted")
	}
	if err := error(&evictedError{}); !errors.Is(err, ErrLost) || !errors.Is(err, ErrEvicted) {
		t.Error("an eviction: the error is not ErrLost and ErrEvicted")
	}
}
