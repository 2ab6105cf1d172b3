package cli

import (
	"log/slog"

	"github.com/spf13/pflag"
)

// logs has the flags for the log of a command.
type logs struct{ level, format string }

func (l *logs) flags(fs *pflag.FlagSet, level string) {
	choiceFlag(fs, &l.level, "log-level", level, []string{"debug", "info", "warn", "error"}, "lowest level to log")
	env(fs, "log-level", "QLOCK_LOG_LEVEL")
	choiceFlag(fs, &l.format, "log-format", "text", []string{"text", "json"}, "format of log lines")
	env(fs, "log-format", "QLOCK_LOG_FORMAT")
}

// logger returns a logger that writes to d, and its level, which can be changed at any
// time.
func (l *logs) logger(d *diagnostics) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(parseLevel(l.level))
	opts := &slog.HandlerOptions{Level: level}
	if l.format == "json" {
		d.mu.Lock()
		d.json = true
		d.mu.Unlock()
		return slog.New(slog.NewJSONHandler(d, opts)), level
	}
	return slog.New(slog.NewTextHandler(d, opts)), level
}

func parseLevel(s string) slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(s)) // the flag accepts only valid levels
	return l
}
