package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	otherRoles["subreaper"] = func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
	otherRoles["root"] = func() {
		// As sudo: a program of root's that others may start and may not signal.
		if err := syscall.Setuid(0); err != nil {
			fmt.Println("no root", err)
			os.Exit(1)
		}
		fmt.Println(os.Getpid(), "ready")
		for in := make([]byte, 1); ; {
			if _, err := os.Stdin.Read(in); err != nil {
				if len(os.Args) > 1 { // it does not end with its input
					time.Sleep(patience)
				}
				os.Exit(0)
			}
		}
	}
}

// The first process of a container reaps orphans, but not its own children.
func TestReapOrphans(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	p := launchWith(t, []string{roleVariable + "=subreaper"}, "run", lockName(t), "-s", c.url(), "--", "sh", "-c",
		`sh -c 'sleep 0.2 & echo $! ready'; read x; exit 6`)
	orphan, err := strconv.Atoi(strings.Fields(p.says(p.out, "ready"))[0])
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if q, ok := procOf(orphan); ok {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	_ = p.in.Close()
	p.wait().want(t, 6)
}

// Processes that this user may not signal are reported, and never said to be killed.
func TestRunOtherUsersCommand(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can make a program of root's")
	}
	c := sharedCluster(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	qlock, root := filepath.Join(dir, "qlock"), filepath.Join(dir, "root")
	self := command().Path
	copyProgram(t, self, qlock, 0o755)
	copyProgram(t, self, root, 0o755|os.ModeSetuid)
	start := func(t *testing.T, args ...string) (*process, int) {
		t.Helper()
		cmd := command(args...)
		cmd.Path = qlock
		cmd.Env = append(cmd.Env, "HOME=/", "XDG_CONFIG_HOME=/nonexistent", "ROOT="+roleVariable+"=root "+root)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{}}
		p, err := launchCmd(t, cmd)
		if err != nil {
			t.Skip("no process as another user: ", err)
		}
		t.Cleanup(p.kill)
		eventually(t, func() error {
			if out := p.out.String(); !strings.Contains(out, "ready") && !strings.Contains(out, "no root") {
				return fmt.Errorf("%s%s", out, p.err)
			}
			return nil
		})
		if strings.Contains(p.out.String(), "no root") {
			t.Skip("programs of another user's are not allowed here: ", p.out)
		}
		pid, err := strconv.Atoi(strings.Fields(p.says(p.out, "ready"))[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		return p, pid
	}
	lives := func(t *testing.T, pid int) {
		t.Helper()
		if !alive(pid) {
			t.Error("the command is dead")
		}
	}
	for _, how := range []string{onLossTerm, onLossKill} {
		for _, what := range []string{"exec env $ROOT", "env $ROOT; true"} {
			t.Run("lost "+how+" "+what, func(t *testing.T) {
				t.Parallel()
				name := lockName(t)
				p, pid := start(t, "run", name, "-s", c.url(), "--on-loss", how, "--grace", "50ms", "--until", "group", "--", "sh", "-c", what)
				qlockCmd(t, "unlock", name, "-s", c.url(), "--force", "--yes", "--wait", patience.String()).want(t, 0)
				p.says(p.err, fmt.Sprintf("cannot be killed: process %d (root): operation not permitted: it continues without the lock", pid))
				lives(t, pid)
				_ = p.in.Close()
				if r := p.wait(); r.status != exitLost || strings.Contains(r.err, "is killed") || strings.Contains(r.err, "and killed after") {
					t.Errorf("status %d\n%s", r.status, r.err)
				}
			})
		}
	}
	t.Run("left behind", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p, pid := start(t, "run", name, "-s", c.url(), "--on-loss", "term", "--grace", "1h", "--", "sh", "-c", "env $ROOT; true")
		qlockCmd(t, "unlock", name, "-s", c.url(), "--force", "--yes", "--wait", patience.String()).want(t, 0)
		p.says(p.err, fmt.Sprintf("the command has ended, but processes that it started cannot be killed: process %d (root): operation not permitted", pid))
		lives(t, pid)
	})
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p, pid := start(t, "run", name, "-s", c.url(), "--until", "group", "--", "sh", "-c", "env $ROOT; true")
		p.signal(syscall.SIGTERM)
		p.says(p.err, fmt.Sprintf(`the signal "terminated" did not reach all processes of the command: process %d (root): operation not permitted`, pid))
		inTime(t, "--wait", []string{"run", name, "-s", c.url(), "--", "true"}, exitHeld)
		lives(t, pid)
		_ = p.in.Close()
		p.wait().want(t, exitSignal+int(syscall.SIGTERM))
		qlockCmd(t, "run", name, "-s", c.url(), "--wait", patience.String(), "--", "true").want(t, 0)
	})
	t.Run("guard", func(t *testing.T) {
		t.Parallel()
		name := lockName(t)
		p, pid := start(t, "run", name, "-s", c.url(), "--", "sh", "-c", "env $ROOT stay; true")
		_ = p.cmd.Process.Kill()
		said := fmt.Sprintf("qlock has ended before the command, and this cannot be killed: process %d (root): operation not permitted", pid)
		eventually(t, func() error {
			if !strings.Contains(p.err.String(), said) {
				return fmt.Errorf("%s", p.err)
			}
			return nil
		})
		lives(t, pid)
	})
}
