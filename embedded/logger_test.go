package embedded

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The lines are those of nats-server for a peer that is down, a peer that refuses, and a
// stranger that connects repeatedly. None of them fills the log, and each is repeated after
// a while.
func TestServerLogIsNotFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := newLogger(slog.New(slog.NewTextHandler(&b, nil)), make(chan error, 1))
		const minutes = 10
		for i := range minutes * 60 {
			l.Errorf("Error trying to connect to route (attempt %v): %v", i+1, "dial tcp 10.0.0.2:6222: connect: connection refused")
			l.Errorf("Error trying to connect to route (attempt %v): %v", i+1, "dial tcp 10.0.0.3:6222: connect: connection refused")
			l.Errorf(fmt.Sprintf("10.0.0.4:%d - rid:%d - authentication error", 40000+i, i))
			l.Warnf(fmt.Sprintf("10.0.0.4:6222 - rid:%d - %s", i, "read tcp 10.0.0.1:%d->10.0.0.4:6222: reset"), 40000+i)
			time.Sleep(time.Second)
		}
		for _, about := range []string{"10.0.0.2", "10.0.0.3", "authentication error", "reset"} {
			n := strings.Count(b.String(), about)
			if n < minutes || n > sayTimes*minutes {
				t.Errorf("%s: %d lines in %d minutes", about, n, minutes)
			}
		}
		if !strings.Contains(b.String(), "repeated=57") {
			t.Errorf("it is not said how often a line was left out:\n%s", b.String())
		}
		if len(l.said) != 4 {
			t.Errorf("%d kinds of lines are remembered: %v", len(l.said), l.said)
		}
	})
}

// The memory for repeated lines is bounded, whatever strangers do.
func TestServerLogMemory(t *testing.T) {
	l := newLogger(slog.New(slog.DiscardHandler), make(chan error, 1))
	for i := range 3 * maxSaid {
		l.Errorf("fault %d of its own", i)
	}
	if len(l.said) > maxSaid {
		t.Errorf("%d lines are remembered", len(l.said))
	}
}

func TestServerLogHasNoPasswords(t *testing.T) {
	var b bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})), make(chan error, 1))
	for _, f := range []func(string, ...any){l.Noticef, l.Warnf, l.Errorf, l.Fatalf} {
		f("route %q is wrong", "nats-route://route:S3cret@10.0.0.2:6222")
	}
	if err := <-l.failed; strings.Contains(b.String()+err.Error(), "S3cret") || strings.Count(b.String(), "nats-route://10.0.0.2:6222") != 4 {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestRouteErrorsHaveNoPasswords(t *testing.T) {
	for _, r := range []string{"route:S3cret@10.0.0.2:6222", "nats://route:S3cret/x@10.0.0.2:6222", "nats://route:S3cret%zz@10.0.0.2:6222", "nats://route:S3cret@", "nats://route:12/S3cret@10.0.0.2:6222", "nats://route:x@S3cret#x@10.0.0.2:6222"} {
		_, err := (&Config{Routes: []string{r}}).options()
		if err == nil || strings.Contains(err.Error(), "S3cret") {
			t.Errorf("%s: %v", r, err)
		}
	}
}
