package qlocktest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Store is a fenced store: it refuses a token lower than one that it has seen.
type Store struct {
	mu     sync.Mutex
	values map[string]string
	token  uint64
}

func NewStore() *Store { return &Store{values: map[string]string{}} }

func (s *Store) Get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

func (s *Store) Set(key, value string, token uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.token {
		return errors.New("stale token")
	}
	s.values[key], s.token = value, token
	return nil
}

// run runs a test that is no test of this package: an example, or one that must fail.
func run(f func(t testing.TB)) {
	t := runTest(f)
	if t.failed {
		fmt.Print(t.text())
	}
}

// fake is a testing.TB that keeps what it is told.
type fake struct {
	testing.TB // what is not below must not be used
	ctx        context.Context
	cancel     context.CancelFunc

	mu       sync.Mutex // guards what follows
	failed   bool
	said     []string
	cleanups []func()
}

func runTest(f func(t testing.TB)) *fake {
	t := &fake{}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	do := func(f func()) {
		done := make(chan struct{})
		go func() { // which FailNow ends
			defer close(done)
			f()
		}()
		<-done
	}
	do(func() { f(t) })
	t.cancel()
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		f := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		do(f)
	}
	return t
}

func (t *fake) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintln(slices.Clone(t.said))
}

func (t *fake) say(failed bool, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said = append(t.said, text)
	t.failed = t.failed || failed
}

func (t *fake) Helper()                           {}
func (t *fake) Name() string                      { return "TestExample" }
func (t *fake) Context() context.Context          { return t.ctx }
func (t *fake) Logf(format string, args ...any)   { t.say(false, fmt.Sprintf(format, args...)) }
func (t *fake) Errorf(format string, args ...any) { t.say(true, fmt.Sprintf(format, args...)) }
func (t *fake) Fatal(args ...any)                 { t.say(true, fmt.Sprint(args...)); runtime.Goexit() }
func (t *fake) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}
func (t *fake) FailNow() { t.say(true, "FailNow"); runtime.Goexit() }

func (t *fake) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *fake) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *fake) TempDir() string {
	dir, err := os.MkdirTemp("", "qlocktest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
