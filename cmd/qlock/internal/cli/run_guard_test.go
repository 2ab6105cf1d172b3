//go:build unix

package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// When a wait is over, the program's file may be removed or replaced.
func TestRunProgramReplaced(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for name, replace := range map[string]func(string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			other := path + ".new"
			if err := os.WriteFile(other, []byte("an upgrade, half done"), 0o644); err != nil {
				return err
			}
			return os.Rename(other, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lock := lockName(t)
			h := hold(t, c, lock)
			cmd := command("run", lock, "-s", c.url(), "--", "echo", "mine")
			copied := filepath.Join(t.TempDir(), "qlock")
			copyProgram(t, cmd.Path, copied, 0o755)
			cmd.Path = copied
			p, err := launchCmd(t, cmd)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.kill)
			p.says(p.err, "waiting for")
			if err := replace(copied); err != nil {
				t.Fatal(err)
			}
			_ = h.in.Close()
			p.wait().want(t, 0, "mine")
		})
	}
}

func copyProgram(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	// Not by this process: a file that is open for writing cannot be executed, and a child
	// process that is started now would inherit the open file.
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(to, mode); err != nil {
		t.Fatal(err)
	}
}

// The shell runs a script that does not name its interpreter, as with env or nice.
func TestRunScriptWithoutInterpreter(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	dir := t.TempDir()
	script, binary := filepath.Join(dir, "script"), filepath.Join(dir, "binary")
	for file, text := range map[string]string{script: `echo "$1 $QLOCK_NAME"; exit 3` + "\n", binary: "\x7fELF\x00\x00 of another machine"} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	name := lockName(t)
	qlockCmd(t, "run", name, "-s", c.url(), "--", script, "argument").want(t, 3, "argument "+name)
	qlockCmd(t, "run", name, "-s", c.url(), "--", binary).want(t, exitCannotRun, "exec format error")
}

// A guard that was killed during the wait is replaced.
func TestRunGuardKilled(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	name := lockName(t)
	h := hold(t, c, name)
	p := launch(t, "run", name, "-s", c.url(), "--on-loss", "kill", "--", "sh", "-c", stubborn)
	p.says(p.err, "waiting for")
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,args=").Output()
	if err != nil {
		t.Skip("no ps: ", err)
	}
	killed := false
	for line := range strings.Lines(string(out)) {
		var pid, parent int
		if _, err := fmt.Sscan(line, &pid, &parent); err == nil && parent == p.cmd.Process.Pid && strings.Contains(line, guardArgument) {
			killed = syscall.Kill(pid, syscall.SIGKILL) == nil
		}
	}
	if !killed {
		t.Fatalf("there is no guard:\n%s", out)
	}
	_ = h.in.Close()
	pids := family(t, p)
	_ = p.cmd.Process.Kill() // it is the guard's to kill the second of these
	gone(t, pids...)
}

// A stopped guard does not block qlock.
func TestRunGuardStopped(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	p := launch(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", `group=$(ps -o pgid= -p $$); kill -STOP $group; echo stopped`)
	p.wait().want(t, 0, "stopped")
	// Nor does a pipe that the guard does not read.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	g := &guardian{pipe: w}
	for range 100_000 {
		g.tell(guardBeat)
	}
}

// With --until group the lock is held as long as anything of the command's group lives.
func TestRunUntilGroup(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	const parent = `(trap 'echo usr; exit' USR1; echo inside; while :; do sleep 0.02; done) & exit 4`
	name := lockName(t)
	p := launch(t, "run", name, "-s", c.url(), "--until", "group", "--", "sh", "-c", parent)
	p.says(p.out, "inside")
	inTime(t, "--wait", []string{"run", name, "-s", c.url(), "--", "true"}, exitHeld)
	p.signal(syscall.SIGUSR1) // what is left gets signals, too
	p.wait().want(t, 4, "usr")
	qlockCmd(t, "run", name, "-s", c.url(), "--wait", patience.String(), "--", "true").want(t, 0)

	// It ends when the lock is lost.
	p = launch(t, "run", name, "-s", c.url(), "--until", "group", "--grace", "100ms", "--", "sh", "-c", `trap '' TERM; sleep 1000 & echo $$ $! ready; exit 4`)
	pids := family(t, p)
	gone(t, pids[0])
	qlockCmd(t, "unlock", name, "-s", c.url(), "--force", "--yes", "--wait", patience.String()).want(t, 0)
	gone(t, pids...)
	p.wait().want(t, exitLost)
}
