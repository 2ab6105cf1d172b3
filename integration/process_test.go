package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/qlocktest"
)

// A test that needs another process runs this test's own program again, with
// what it is to be in the environment.
const roleVariable = "QLOCK_INTEGRATION_ROLE"

var (
	rounds = flag.Int("integration.rounds", 1, "how often the tests under load go through their faults")
	seed   = flag.Uint64("integration.seed", 1, "of the order and the times of these faults")
)

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		os.Exit(run(text))
	}
	// These tests wait far more than they compute.
	flag.Parse()
	parallel := "8"
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "test.parallel" {
			parallel = f.Value.String()
		}
	})
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(watched{m})
}

// watched are tests during which delays are measured.
type watched struct{ *testing.M }

func (m watched) Run() int {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		delays.watch(stop)
	}()
	defer func() {
		close(stop)
		<-done
	}()
	return m.M.Run()
}

// role is what a process is told to be: a node, or a client that holds a lock.
type role struct {
	Node     *qlock.NodeConfig // its Logger is nil
	Port     int
	Route    int
	Routes   []string
	URLs     string
	Name     string
	Resource string
	Shared   bool
	Lease    time.Duration
}

// report is the one line that a process writes when it is what it was told to be.
type report struct {
	Client, Route string
	Token         uint64
}

func run(text string) int {
	var r role
	err := json.Unmarshal([]byte(text), &r)
	if err == nil && r.Node != nil {
		err = r.serve()
	} else if err == nil {
		err = r.hold()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r *role) serve() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := embedded.Start(ctx, embedded.Config{
		Node: *r.Node, Port: r.Port, RoutePort: r.Route, Routes: r.Routes,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return untilTold(report{Client: s.ClientURL(), Route: s.RouteURL()}, s.Close)
}

func (r *role) hold() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, err := nats.Connect(r.URLs)
	if err != nil {
		return err
	}
	defer nc.Close()
	l, err := qlock.New(ctx, nc, qlock.WithName(r.Name), qlock.WithLease(r.Lease))
	if err != nil {
		return err
	}
	call := l.Lock
	if r.Shared {
		call = l.RLock
	}
	k, err := call(ctx, r.Resource)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return untilTold(report{Token: k.Token()}, l.Close)
}

// untilTold reports and waits for the word to end cleanly. Standard input that
// ends without it means that the test has died: so does this process.
func untilTold(r report, end func() error) error {
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	word, err := io.ReadAll(os.Stdin)
	if err != nil || string(word) != "end" {
		return fmt.Errorf("not told to end but %q, %v", word, err)
	}
	return end()
}

// process is a process that runs, or ran.
type process struct {
	report
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer
	ended  bool
}

// launch starts a process and waits until it is what it was told to be.
func launch(t *testing.T, r role) *process {
	t.Helper()
	text, err := json.Marshal(r)
	must(t, err)
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	p.cmd.Stderr = &p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	forking.Lock()
	err = p.cmd.Start()
	forking.Unlock()
	must(t, err)
	t.Cleanup(func() { p.kill(t) })
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.report)
	}
	if err != nil {
		p.kill(t)
		t.Fatalf("a process did not start: %v: %s", err, p.stderr.String())
	}
	return p
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if p.ended {
		return
	}
	p.ended = true
	if err := p.cmd.Process.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	_ = p.cmd.Wait() // "signal: killed"
	_ = p.stdin.Close()
	if t.Failed() {
		t.Logf("standard error of a process:\n%s", p.stderr.String())
	}
}

// end lets the process end cleanly.
func (p *process) end(t *testing.T) {
	t.Helper()
	p.ended = true
	_, err := io.WriteString(p.stdin, "end")
	must(t, err)
	must(t, p.stdin.Close())
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("a process did not end cleanly: %v: %s", err, p.stderr.String())
	}
}

// port is the port in a URL, for the next start at the same place.
func port(t *testing.T, addr string) int {
	t.Helper()
	u, err := url.Parse(addr)
	must(t, err)
	n, err := strconv.Atoi(u.Port())
	must(t, err)
	return n
}

// Three processes, each a nats-server with a node in it, are a cluster by the
// routes they are given. One is killed: the work goes on. Two are: nothing is
// granted, nothing held outlives its lease, and errors say so in time. They come
// back, and so does the work.
func TestProcesses(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	names := []string{"n1", "n2", "n3"}
	roles := make([]role, 3)
	nodes := make([]*process, 3)
	var all []string
	for i, name := range names {
		cfg := &qlock.NodeConfig{
			Name: name, Nodes: names, StateDir: filepath.Join(t.TempDir(), name),
			MaxLease: lease, ProbeWait: 100 * time.Millisecond,
		}
		must(t, qlock.Bootstrap(*cfg))
		// Each is given the routes to those that already run: that is the whole
		// mesh.
		roles[i] = role{Node: cfg, Port: qlocktest.FreePort(t), Route: qlocktest.FreePort(t)}
		for _, p := range nodes[:i] {
			roles[i].Routes = append(roles[i].Routes, p.Route)
		}
		nodes[i] = launch(t, roles[i])
		all = append(all, nodes[i].Client)
	}
	for i, p := range nodes { // for later starts
		roles[i].Port, roles[i].Route = port(t, p.Client), port(t, p.Route)
		roles[i].Routes = []string{nodes[0].Route, nodes[1].Route, nodes[2].Route}
	}
	nc := connect(t, strings.Join(all, ","))
	a := newLocker(t, nc, qlock.WithName("a"), qlock.WithLease(lease))
	b := client(t, "b", strings.Join([]string{all[1], all[2], all[0]}, ","), qlock.WithLease(lease))
	var s store
	confirmed := 0
	work := func(l *qlock.Locker) {
		t.Helper()
		must(t, s.increment(t.Context(), lock(t, l, "counter")))
		confirmed++
	}
	work(a)
	work(b)

	// One of three: nobody notices, not even the client that was connected to it.
	held := lock(t, b, "held")
	nodes[0].kill(t)
	work(a)
	work(b)
	stays(t, held, lease+lease/2)
	work(a)

	// Two of three.
	nodes[1].kill(t)
	killed := time.Now()
	await(t, "a is connected to the last one", func() bool { return nc.ConnectedUrl() == nodes[2].Client })
	detail, err := noQuorum(t, a.Lock, "counter", 2)
	if detail.Need != 2 || len(detail.Nodes) != 3 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock with one node of three: %v", err)
	}
	lostBy(t, held, killed.Add(lease))
	isOver(t, held)

	// Both again, after a death that saved nothing: they wait until what they
	// forgot has run out.
	token := s.highest("counter")
	again := time.Now()
	for i := range 2 {
		nodes[i] = launch(t, roles[i])
	}
	work(a)
	if d := time.Since(again); d < lease {
		t.Errorf("a quorum voted %v after two of three had forgotten their votes, the longest lease is %v", d, lease)
	}
	work(b)
	if now := s.highest("counter"); now <= token {
		t.Errorf("the token went from %d to %d", token, now)
	}

	// And once more each, in a clean way, with a lock held all the while.
	held = lock(t, b, "held")
	for i := range nodes {
		nodes[i].end(t)
		nodes[i] = launch(t, roles[i])
		work(a)
	}
	unlock(t, held)
	s.check(t, map[string]int{"counter": confirmed})
	for _, p := range nodes {
		p.end(t)
	}
}
