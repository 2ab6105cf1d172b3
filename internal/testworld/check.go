package testworld

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// Within returns the test's context with a deadline.
func Within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// WantIs checks that errors.Is finds targets in an error.
func WantIs(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error is not %q: %v", target, err)
		}
	}
}

// WantText checks that there is an error, and that its text contains words.
func WantText(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not say %q: %v", w, err)
		}
	}
}

// WantError is WantIs and WantText in one.
func WantError(t testing.TB, err, target error, words ...string) {
	t.Helper()
	WantIs(t, err, target)
	if len(words) > 0 {
		WantText(t, err, words...)
	}
}
