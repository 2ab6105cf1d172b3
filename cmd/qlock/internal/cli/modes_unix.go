//go:build unix

package cli

import (
	"os"

	"golang.org/x/term"
)

// terminalModes has the modes of a terminal, such as whether it shows what is typed.
type terminalModes struct{ state *term.State }

func modesOf(tty *os.File) *terminalModes {
	s, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil
	}
	return &terminalModes{s}
}

// The terminal may be gone.
func (m *terminalModes) set(tty *os.File) { _ = term.Restore(int(tty.Fd()), m.state) }
