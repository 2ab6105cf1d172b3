//go:build unix

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/loopback"
	"github.com/qlock/qlock/internal/subject"
)

// roleVariable makes this test's own program the qlock command.
const roleVariable = "QLOCK_CLI_TEST"

// otherRoles are what this program may be before it is the qlock command.
var otherRoles = map[string]func(){}

// patience bounds every wait for something that must come. Only a test that fails waits for so
// long, and a machine that runs all packages at once, with the race detector, may need long.
const patience = 2 * time.Minute

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if other := otherRoles[role]; other != nil {
			other()
		}
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	// The settings of the machine must not affect the tests.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "QLOCK_") || strings.HasPrefix(name, "NATS_") {
			_ = os.Unsetenv(name)
		}
	}
	dir, err := os.MkdirTemp("", "qlock-cli-")
	if err == nil {
		err = os.Setenv("XDG_CONFIG_HOME", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// nohup and shells without job control start programs with these ignored, and
	// the commands under test would inherit that. A handler is not inherited.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	// These tests wait for other processes more than they compute.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "8")
	}
	goleak.VerifyTestMain(&tests{m, dir})
}

// tests stops what the tests share, before the check for leftovers.
type tests struct {
	*testing.M
	dir string
}

func (m *tests) Run() int {
	status := m.M.Run()
	if shared != nil {
		// A node that ended, or did not answer, is seen by tests that do not know of it.
		for _, name := range shared.names {
			if p := shared.proc(nil, name); p != nil && status != 0 {
				fmt.Printf("%s of the cluster that tests share:\n%s\n", name, p.err)
			}
		}
		shared.stop()
	}
	_ = os.RemoveAll(m.dir)
	return status
}

// output is what a process has written so far.
type output struct {
	mu      sync.Mutex // guards what follows
	b       bytes.Buffer
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// process is a qlock that runs.
type process struct {
	t        testing.TB
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err *output
	done     chan struct{}
	status   int // read it when done is closed
}

type result struct {
	out, err string
	status   int
}

func command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, args...)
	// Else the race detector lets every process wait for a second at its end.
	cmd.Env = append(os.Environ(), roleVariable+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, unhurried(args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	cmd.WaitDelay = 20 * time.Second // for those that left a child with our pipes
	return cmd
}

// Nodes and commands of these tests are processes, which may get no processor time for many
// seconds while other packages are tested. Only a test about the end of a lease has a short one.
const (
	testMaxLease = "2m"
	testLease    = "1m"
)

// servers has the addresses of the tests' servers, with true for those whose nodes allow
// testMaxLease.
var servers sync.Map

// unhurried returns variables for commands whose arguments have such addresses, or for a script
// that runs such commands. Flags take precedence.
func unhurried(args ...string) (env []string) {
	servers.Range(func(addr, long any) bool {
		if !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, addr.(string)) }) {
			return true
		}
		env = []string{"NATS_TIMEOUT=" + testLease}
		if long.(bool) {
			env = append(env, "QLOCK_LEASE="+testLease)
		}
		return false
	})
	return env
}

// connect connects this process to a server of another one.
func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append(opts, nats.Timeout(patience))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// patient is a context for what must be done.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// launch starts qlock with args. It does not outlive the test.
func launch(t testing.TB, args ...string) *process { return launchWith(t, nil, args...) }

func launchWith(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p, err := launchCommand(t, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("qlock %s: status %d\n%s%s", strings.Join(args, " "), p.status, p.out, p.err)
		}
	})
	return p
}

// launchShell has a script start qlock, which is its $0, with args, its $@.
func launchShell(t testing.TB, script string, args ...string) *process {
	t.Helper()
	cmd := command(args...)
	cmd.Args = append([]string{"sh", "-c", script, cmd.Path}, args...)
	cmd.Env = append(cmd.Env, unhurried(script)...)
	cmd.Path = "/bin/sh"
	p, err := launchCmd(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func launchCommand(t testing.TB, env []string, args ...string) (*process, error) {
	cmd := command(args...)
	cmd.Env = append(cmd.Env, env...)
	return launchCmd(t, cmd)
}

func launchCmd(t testing.TB, cmd *exec.Cmd) (*process, error) {
	p := &process{t: t, cmd: cmd, out: newOutput(), err: newOutput(), done: make(chan struct{})}
	if p.cmd.Stdout == nil {
		p.cmd.Stdout = p.out
	}
	if p.cmd.Stderr == nil {
		p.cmd.Stderr = p.err
	}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.in = in
	started := make(chan error)
	go func() { // whose thread must live as long as the child: dieWithParent
		lockThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.status = exitStatus(p.cmd.Wait())
		close(p.done)
	}()
	return p, <-started
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return -int(ws.Signal())
		}
		return exit.ExitCode()
	}
	return -1000
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
	_ = p.in.Close()
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("signal %v: %v", s, err)
	}
}

// wait waits for the end of the process.
func (p *process) wait() result {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("it runs still: %s\n%s%s", strings.Join(p.cmd.Args[1:], " "), p.out, p.err)
	}
	return result{p.out.String(), p.err.String(), p.status}
}

// says waits until the process has written text to o.
func (p *process) says(o *output, text string) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		next := o.next()
		if s := o.String(); strings.Contains(s, text) {
			return s
		}
		select {
		case <-next:
		case <-p.done:
			if s := o.String(); strings.Contains(s, text) {
				return s
			}
			p.t.Fatalf("it ended with %d and did not say %q:\n%s%s", p.status, text, p.out, p.err)
		case <-deadline:
			p.t.Fatalf("it does not say %q:\n%s%s", text, p.out, p.err)
		}
	}
}

// qlockCmd runs qlock to its end.
func qlockCmd(t testing.TB, args ...string) result {
	t.Helper()
	p := launch(t, args...)
	_ = p.in.Close()
	return p.wait()
}

// want checks a result's status, and its text on standard output and error.
func (r result) want(t testing.TB, status int, words ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d\n%s%s", r.status, status, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.out+r.err, w) {
			t.Errorf("it does not say %q:\n%s%s", w, r.out, r.err)
		}
	}
}

// sees runs a command until it ends with this status and says these words. A node that gets no
// processor time knows later than others of what happened a moment ago, and a command that looks
// does not wait for a node that is silent while the others answer.
func sees(t testing.TB, args []string, status int, words ...string) (r result) {
	t.Helper()
	eventually(t, func() error {
		if r = qlockCmd(t, args...); r.status != status {
			return fmt.Errorf("exit status %d, want %d\n%s%s", r.status, status, r.out, r.err)
		}
		for _, w := range words {
			if !strings.Contains(r.out+r.err, w) {
				return fmt.Errorf("it does not say %q:\n%s%s", w, r.out, r.err)
			}
		}
		return nil
	})
	return r
}

// inTime runs a command with a short limit of time, and with twice the limit for as long as that
// was too short for the command to come so far that it ends with this status and says these words.
func inTime(t testing.TB, limit string, args []string, status int, words ...string) (r result) {
	t.Helper()
	for most := 500 * time.Millisecond; ; most *= 2 {
		r = qlockCmd(t, slices.Insert(slices.Clone(args), 1, limit, most.String())...)
		said := !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(r.out+r.err, w) })
		if r.status == status && said || most > patience/4 {
			r.want(t, status, words...)
			return r
		}
	}
}

// eventually waits until f returns no error.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nodes is a cluster of qlock node processes.
type nodeCluster struct {
	dir   string
	names []string
	ports []*loopback.Port
	addr  map[string][3]string // clients, servers, HTTP
	extra []string

	mu    sync.Mutex // guards procs
	procs map[string]*process
}

var (
	sharedOnce sync.Once
	shared     *nodeCluster
	sharedErr  error
)

// sharedCluster is for tests that do not stop or change nodes.
func sharedCluster(t testing.TB) *nodeCluster {
	t.Helper()
	sharedOnce.Do(func() {
		dir, err := os.MkdirTemp("", "qlock-cli-nodes-")
		if err != nil {
			sharedErr = err
			return
		}
		shared = newCluster(dir, 3)
		sharedErr = shared.start()
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

// startCluster starts a cluster for one test.
func startCluster(t testing.TB, n int, extra ...string) *nodeCluster {
	t.Helper()
	c := newCluster(t.TempDir(), n, extra...)
	t.Cleanup(func() {
		c.stop()
		if t.Failed() {
			for _, name := range c.names {
				if p := c.procs[name]; p != nil {
					t.Logf("%s:\n%s", name, p.err)
				}
			}
		}
	})
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func newCluster(dir string, n int, extra ...string) *nodeCluster {
	c := &nodeCluster{dir: dir, addr: map[string][3]string{}, extra: extra, procs: map[string]*process{}}
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		c.names = append(c.names, name)
		var addr [3]string
		for k := range addr {
			p, err := loopback.Reserve()
			if err != nil {
				panic(err)
			}
			c.ports = append(c.ports, p)
			addr[k] = "127.0.0.1:" + strconv.Itoa(freePort(p))
		}
		c.addr[name] = addr
	}
	long := !slices.Contains(extra, "--max-lease")
	if long {
		c.extra = append([]string{"--max-lease", testMaxLease}, extra...)
	}
	for _, addr := range c.addr {
		servers.Store(addr[0], long)
	}
	return c
}

// freePort is a port that was reserved, or one that was free a moment ago where none
// can be reserved.
func freePort(p *loopback.Port) int {
	if p.Number != 0 {
		return p.Number
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func (c *nodeCluster) args(name string) []string {
	var routes []string
	for _, n := range c.names {
		routes = append(routes, "nats://"+c.addr[n][1])
	}
	a := c.addr[name]
	args := []string{"node", "--name", name, "--nodes", strings.Join(c.names, ","), "--state-dir", filepath.Join(c.dir, name),
		"--listen", a[0], "--http", a[2]}
	if len(c.names) > 1 {
		args = append(args, "--cluster-listen", a[1], "--routes", strings.Join(routes, ","))
	}
	return append(args, c.extra...)
}

func (c *nodeCluster) launch(name string) error {
	p, err := launchCommand(nil, nil, c.args(name)...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.procs[name] = p
	return nil
}

func (c *nodeCluster) start() error {
	for _, n := range c.names {
		p, err := launchCommand(nil, nil, append(c.args(n), "--bootstrap")...)
		if err != nil {
			return err
		}
		<-p.done
		if p.status != 0 {
			return fmt.Errorf("bootstrap of %s: status %d: %s", n, p.status, p.err)
		}
		_ = p.in.Close()
		if err := c.launch(n); err != nil {
			return err
		}
	}
	return c.ready(c.names...)
}

// ready waits until each of these nodes hears the votes of all of them.
func (c *nodeCluster) ready(names ...string) error {
	deadline := time.Now().Add(patience)
	for _, n := range names {
		for {
			err := c.hears(n, len(names))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: %w\n%s", n, err, c.procs[n].err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func (c *nodeCluster) hears(name string, votes int) error {
	nc, err := nats.Connect("nats://" + c.addr[name][0])
	if err != nil {
		return err
	}
	defer nc.Close()
	l := &link{Conn: nc, cluster: qlock.DefaultCluster, client: "test", timeout: time.Second}
	m, err := l.members(context.Background(), 100*time.Millisecond)
	if err != nil {
		return err
	}
	if m.Voting() < votes {
		return fmt.Errorf("%d nodes vote, waiting for %d", m.Voting(), votes)
	}
	return nil
}

// proc is a node's process, for a test to complain by; nil if it has none.
func (c *nodeCluster) proc(t testing.TB, name string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[name]
	if p != nil {
		p.t = t
	}
	return p
}

func (c *nodeCluster) stop() {
	for _, n := range c.names {
		if p := c.proc(nil, n); p != nil {
			p.kill()
		}
	}
	for _, p := range c.ports {
		_ = p.Close()
	}
	_ = os.RemoveAll(c.dir)
}

// url returns the addresses of all nodes' servers.
func (c *nodeCluster) url() string {
	var urls []string
	for _, n := range c.names {
		urls = append(urls, "nats://"+c.addr[n][0])
	}
	return strings.Join(urls, ",")
}

// lockName returns a name that no other test uses.
func lockName(t testing.TB) string {
	return "test." + subject.TokenFrom(t.Name()) + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// decode reads JSON that a command wrote.
func decode[T any](t testing.TB, r result) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatalf("%v:\n%s%s", err, r.out, r.err)
	}
	return v
}
