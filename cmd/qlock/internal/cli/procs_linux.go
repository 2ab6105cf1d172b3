package cli

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// proc is a process of this machine.
type proc struct {
	pid, parent, group int
	state              byte
	name               string
}

// procs returns all processes, or false where the system does not list them.
func procs() ([]proc, bool) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, false
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, false
	}
	var out []proc
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			if p, ok := procOf(pid); ok { // otherwise the process has ended
				out = append(out, p)
			}
		}
	}
	return out, len(out) > 0
}

func procOf(pid int) (proc, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return proc{}, false
	}
	// The name may contain any character, including parentheses.
	from, to := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return proc{}, false
	}
	f := strings.Fields(string(stat[to+1:]))
	if len(f) < 3 {
		return proc{}, false
	}
	p := proc{pid: pid, state: f[0][0], name: string(stat[from+1 : to])}
	var errs [2]error
	p.parent, errs[0] = strconv.Atoi(f[1])
	p.group, errs[1] = strconv.Atoi(f[2])
	return p, errs[0] == nil && errs[1] == nil
}
