package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine is where a run was made, as far as it matters and names nobody.
type Machine struct {
	CPU      string   `json:"cpu,omitempty"`
	Cores    int      `json:"cores"`
	System   string   `json:"system"`
	Go       string   `json:"go"`
	Versions []string `json:"versions"`
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

// cpuModel is the processor's name where the system tells it as text.
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
	return b.String()
}
