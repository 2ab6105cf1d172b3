//go:build unix

package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
)

// lasting has the examples that run until they are ended, by their first words, with the
// output that shows that they work.
var lasting = [][2]string{
	{"qlock demo", "Ctrl-C ends it"},
	{"qlock gateway", "gateway serves"},
	{"qlock watch", "Ctrl-C ends it"},
	{"qlock ls 'orders.>' --watch", "has no locks"},
	{"qlock info nightly --watch", "of cluster"},
	{"qlock leader scheduler --watch --json", `"leader":null`},
	{"qlock members workers --watch", "has no members"},
	{"qlock node --name n1 --nodes n1,n2,n3 --state-dir DIR/n1 --listen", "node serves"},
	{"qlock node --name n1 --nodes n1,n2,n3 --state-dir DIR/n1 --server", "node serves"},
	{"qlock node --config", "node serves"},
	{"qlock nodes change", "waiting for"}, // nodes that are not there
}

// endsWith has the examples that end with another status than 0 if nothing is held.
var endsWith = map[string]int{
	"qlock leader scheduler":                                exitFailed,
	"qlock leader scheduler --value":                        exitFailed,
	"qlock unlock nightly --force --claim 0f2a91c7/3 --yes": exitFailed,
	"qlock unlock catalog --force --holder billing --yes":   exitFailed,
}

// continued matches where a shell line continues on the next one.
var continued = regexp.MustCompile(`\\\n *`)

// paragraphs are the examples of a help text: lines, and several where a remark
// introduces them.
func paragraphs(example string) []string {
	var list []string
	for _, p := range strings.Split(example, "\n\n") {
		p = continued.ReplaceAllString(p, " ")
		var lines []string
		for _, line := range strings.Split(p, "\n") {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "qlock ") {
				line, _, _ = strings.Cut(line, "   ") // what follows is for the reader
				line = strings.Join(strings.Fields(line), " ")
			}
			lines = append(lines, line)
		}
		if strings.HasPrefix(lines[0], "#") {
			lines = []string{strings.Join(lines, "\n")}
		}
		list = append(list, lines...)
	}
	return list
}

// Every example of a help text works, in a shell, and on a cluster that is called prod as
// well. The addresses, directories and durations are replaced.
func TestExamplesRun(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash: ", err)
	}
	c := startCluster(t, 1)
	cfg := embedded.Config{Node: qlock.NodeConfig{Cluster: "prod", Name: "n1", Nodes: []string{"n1"}, StateDir: t.TempDir()}}
	dataDir := t.TempDir()
	cfg.Options = func(o *server.Options) { o.JetStream, o.StoreDir = true, dataDir }
	if err := qlock.Bootstrap(cfg.Node); err != nil {
		t.Fatal(err)
	}
	prod, err := embedded.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prod.Close() }()
	users := startNATS(t, func(o *server.Options) { o.Users = []*server.User{{Username: "svc", Password: "pw"}} })
	node := launch(t, bootstrapped(t, "node", "--server", users.ClientURL(), "--user", "svc", "--password", "pw", "--name", "n1", "--nodes", "n1")...)
	node.says(node.err, "ready: this node votes")
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, stub := range []string{"backup.sh", "read-catalog", "make", "render.sh", "scheduler"} {
		write(stub, "#!/bin/sh\nexit 0\n")
	}
	write("node.yaml", "name: n1\nnodes: [n1]\nlisten: 127.0.0.1:0\n")
	self := command().Path
	write("qlock", "#!/bin/sh\n"+roleVariable+`=1 exec "`+self+`" "$@"`+"\n")
	change := strings.NewReplacer(
		"/var/lib/qlock", "DIR/n1", "/etc/qlock/node.yaml", "DIR/node.yaml", "0.0.0.0:4222", "127.0.0.1:0", "0.0.0.0:6222", "127.0.0.1:0",
		"nats://n1:6222,nats://n2:6222,nats://n3:6222", "nats://127.0.0.1:1", "nats://localhost:4222", prod.ClientURL(), ":8222", "127.0.0.1:0", "127.0.0.1:9000", "127.0.0.1:0",
		"--for 10s", "--for 500ms", "qlock bench", "qlock bench --for 500ms",
		"--replicas 3", "--replicas 1",
	)
	seen := 0
	for _, cmd := range allCommands(t) {
		for _, line := range paragraphs(cmd.Example) {
			seen++
			line = change.Replace(line)
			// There is no terminal that could answer.
			if strings.HasPrefix(line, "qlock unlock") && !strings.Contains(line, "--yes") {
				line += " --yes"
			}
			// Another program may have the usual port.
			switch {
			case strings.HasPrefix(line, "qlock demo") && !strings.Contains(line, "--port"):
				line += " --port 0"
			case strings.HasPrefix(line, "qlock gateway") && !strings.Contains(line, "--http"):
				line += " --http 127.0.0.1:0"
			}
			url := c.url()
			if strings.Contains(line, "--cluster prod") {
				url = prod.ClientURL()
			}
			if strings.Contains(line, "store") { // the cluster whose server has JetStream
				url, line = prod.ClientURL(), "QLOCK_CLUSTER=prod "+line
			}
			if strings.Contains(line, "--auth nats") { // which needs a server that has users
				url = strings.Replace(users.ClientURL(), "nats://", "nats://svc:pw@", 1)
			}
			until := ""
			if i := slices.IndexFunc(lasting, func(l [2]string) bool { return strings.HasPrefix(line, l[0]) }); i >= 0 {
				until = lasting[i][1]
			}
			runExample(t, bash, dir, url, line, until)
		}
	}
	if seen < 30 {
		t.Errorf("only %d examples were found", seen)
	}
}

func runExample(t *testing.T, bash, dir, url, line, until string) {
	t.Helper()
	cmd := exec.Command(bash, "-c", strings.ReplaceAll(line, "DIR", dir))
	if until != "" {
		cmd.Args[2] = "exec " + cmd.Args[2]
	}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "NATS_URL="+url, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	cmd.WaitDelay = 20 * time.Second
	p, err := launchCmd(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	if until != "" {
		eventually(t, func() error {
			if s := p.out.String() + p.err.String(); !strings.Contains(s, until) {
				select {
				case <-p.done:
					t.Fatalf("%s\nended with %d:\n%s%s", line, p.status, p.out, p.err)
				default:
				}
				return &statusError{exitFailed, os.ErrDeadlineExceeded}
			}
			return nil
		})
		p.signal(syscall.SIGINT)
	}
	_ = p.in.Close()
	if r := p.wait(); r.status != endsWith[line] {
		t.Errorf("%s\nended with %d, want %d:\n%s%s", line, r.status, endsWith[line], r.out, r.err)
	}
}
