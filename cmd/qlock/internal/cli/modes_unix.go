//go:build unix

package cli

import (
	"os"

	"golang.org/x/term"
)

// terminalModes are whether a terminal shows what is typed, and such things.
type terminalModes struct{ state *term.State }

func modesOf(tty *os.File) *terminalModes {
	s, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil
	}
	return &terminalModes{s}
}

func (m *terminalModes) set(tty *os.File) { _ = term.Restore(int(tty.Fd()), m.state) } // it may be gone
