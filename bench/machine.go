package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Machine describes where a run was made, without identifying the machine or its owner.
type Machine struct {
	CPU      string   `json:"cpu,omitempty"`
	Cores    int      `json:"cores"`
	System   string   `json:"system"`
	Go       string   `json:"go"`
	Versions []string `json:"versions"`

	// Others is the fraction of all processor time during the run that other processes used,
	// and Stolen the fraction that the host of a virtual machine took. They are nil if not
	// known.
	Others *float64 `json:"others,omitempty"`
	Stolen *float64 `json:"stolen,omitempty"`
}

// usage is the processor time since the machine started, as far as the system provides it.
type usage struct {
	all, busy, stolen float64 // of all processors
	own               time.Duration
}

// ticks is the number of units of /proc/stat per second, on every Linux.
const ticks = 100

func machineUsage() (u usage, ok bool) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, false
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return u, false
	}
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return u, false
		}
		u.all += n / ticks
		switch i {
		case 3, 4:
		case 7:
			u.stolen += n / ticks
		default:
			u.busy += n / ticks
		}
	}
	u.own, ok = familyCPU()
	return u, ok
}

// shared records how much of the machine other processes have used since.
func (m *Machine) shared(since usage) {
	now, ok := machineUsage()
	if all := now.all - since.all; ok && all > 0 {
		others := max(0, now.busy-since.busy-(now.own-since.own).Seconds()) / all
		stolen := (now.stolen - since.stolen) / all
		m.Others, m.Stolen = &others, &stolen
	}
}

func thisMachine() Machine {
	m := Machine{CPU: cpuModel(), Cores: runtime.GOMAXPROCS(0), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	wanted := map[string]bool{
		"github.com/nats-io/nats-server/v2": true, "github.com/nats-io/nats.go": true,
		"go.etcd.io/etcd/server/v3": true, "go.etcd.io/etcd/client/v3": true,
		"github.com/go-redsync/redsync/v4": true, "github.com/redis/go-redis/v9": true,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if wanted[d.Path] {
				m.Versions = append(m.Versions, d.Path+" "+d.Version)
			}
		}
	}
	if path, err := exec.LookPath("redis-server"); err == nil {
		if out, err := exec.Command(path, "--version").Output(); err == nil {
			// Redis server v=7.0.15 sha=...
			if _, rest, ok := strings.Cut(string(out), "v="); ok {
				version, _, _ := strings.Cut(rest, " ")
				m.Versions = append(m.Versions, "redis-server "+version)
			}
		}
	}
	return m
}

// cpuModel returns the processor's name where the system provides it as text.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (r *Report) machineText() string {
	m := r.Machine
	var b strings.Builder
	cpu := ""
	if m.CPU != "" {
		cpu = " of " + m.CPU
	}
	fmt.Fprintf(&b, "- %d cores%s, %s, %s\n", m.Cores, cpu, m.System, m.Go)
	fmt.Fprintf(&b, "- %s\n", strings.Join(m.Versions, ", "))
	if m.Others != nil && m.Stolen != nil {
		fmt.Fprintf(&b, "- during the run, other processes used %.0f %% of the processor time of this machine, and its host took %.0f %%\n",
			100**m.Others, 100**m.Stolen)
	}
	return b.String()
}
