package natsio

import (
	"strings"
	"testing"
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// A loss says so if it happened because the wall clock was set or the machine slept. A loss
// for another reason does not.
func TestLossByTheWallClockIsExplained(t *testing.T) {
	const lease = 10 * time.Second
	at := func(mono, ahead time.Duration) wire.Now {
		return wire.Now{Mono: mono, Wall: 1_800_000_000_000_000 + (mono + ahead).Microseconds()}
	}
	for _, tt := range []struct {
		name   string
		later  wire.Now
		then   time.Duration // and lost so much after that
		asleep time.Duration // of it, where the machine tells
		tells  bool
		want   string
	}{
		{"set", at(2*time.Second, time.Hour), 0, 0, true, "this machine's wall clock was set ahead by 1h0m0s"},
		{"slept", at(2*time.Second, time.Hour), 0, time.Hour, true, "this machine slept for 1h0m0s"},
		{"not told", at(2*time.Second, time.Hour), 0, 0, false, "went ahead by 1h0m0s: it was set, or the machine slept"},
		{"long ago", at(2*time.Second, time.Hour), 11 * time.Second, 0, true, ""},
		{"too little", at(2*time.Second, time.Second), 0, 0, true, ""},
		{"set back", at(2*time.Second, -time.Hour), 0, 0, true, ""},
		{"slewed", at(2*time.Second, 10*time.Millisecond), 0, 0, true, ""},
	} {
		var w Leaps
		w.Read(at(time.Second, 0))
		w.Read(tt.later)
		w.asleep, w.tells = tt.asleep, tt.tells
		now := tt.later
		now.Mono += tt.then
		now.Wall += tt.then.Microseconds()
		w.Read(now)
		if got := w.Explain(now, lease); got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
