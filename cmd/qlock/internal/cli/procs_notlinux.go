//go:build unix && !linux

package cli

// proc is a process of this machine.
type proc struct {
	pid, parent, group int
	state              byte
	name               string
}

// procs returns false because this system does not list processes.
func procs() ([]proc, bool) { return nil, false }

func procOf(int) (proc, bool) { return proc{}, false }
