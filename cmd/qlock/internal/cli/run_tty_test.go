//go:build linux

package cli

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shellOn is an interactive shell on a terminal, with the variables of env. $qlock is
// the command.
func shellOn(t *testing.T, env ...string) *screen {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash: ", err)
	}
	cmd := command()
	cmd.Env = append(append(cmd.Env, "qlock="+cmd.Path, "PS1=ready> ", "HOME="+t.TempDir(), "QLOCK_LEASE="+testLease, "NATS_TIMEOUT="+testLease), env...)
	cmd.Path, cmd.Args = bash, []string{"bash", "--norc", "--noprofile", "--noediting", "-i"}
	s := onTerminalCmd(t, 200, cmd)
	// Stopped processes do not end with their terminal.
	t.Cleanup(func() { killSession(s.cmd.Process.Pid) })
	s.says(s.out, "ready> ")
	s.key("stty -echo\n")
	s.after(func() {}, "ready> ", "ready> ")
	return s
}

// killSession ends what a test's shell has started: all of its session.
func killSession(leader int) {
	all, _ := procs()
	for _, p := range all {
		if sid, _ := sessionOf(p.pid); sid == leader && p.pid != leader {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
}

func sessionOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 4 {
		return 0, fmt.Errorf("%q", stat)
	}
	return strconv.Atoi(f[3])
}

// after does f, and waits until the terminal says these, one after the other, of which
// the first may have been said before.
func (s *screen) after(f func(), words ...string) string {
	s.t.Helper()
	f()
	deadline := time.After(patience)
	for {
		next := s.out.next()
		all := s.out.String()
		rest, ok := all, true
		for _, w := range words {
			var found bool
			if _, rest, found = strings.Cut(rest, w); !found {
				ok = false
			}
		}
		if ok {
			return rest
		}
		select {
		case <-next:
		case <-s.done:
			s.t.Fatalf("the shell ended and did not say %q: %q", words, all)
		case <-deadline:
			list, _ := exec.Command("ps", "-s", strconv.Itoa(s.cmd.Process.Pid), "-o", "pid,ppid,pgid,tpgid,stat,args").CombinedOutput()
			s.t.Fatalf("the terminal does not say %q: %q\n%s", words, all, list)
		}
	}
}

// inState waits until a process is in one of these states.
func inState(t *testing.T, pid int, want string) {
	t.Helper()
	eventually(t, func() error {
		p, ok := procOf(pid)
		if !ok || !strings.ContainsRune(want, rune(p.state)) {
			return fmt.Errorf("process %d: %+v, want a state of %s", pid, p, want)
		}
		return nil
	})
}

// pidAfter returns the number that follows a word on the terminal.
func (s *screen) pidAfter(word string) int {
	s.t.Helper()
	rest := s.after(func() {}, word)
	for !strings.Contains(rest, ".") {
		rest = s.after(func() {}, word)
	}
	n, _, _ := strings.Cut(rest, ".")
	pid, err := strconv.Atoi(n)
	if err != nil {
		s.t.Fatalf("%q: %v", rest, err)
	}
	return pid
}

// A command can read the terminal, whatever its standard input is, and wherever the shell
// has put the job. Afterwards the shell has the terminal again.
func TestRunReadsTerminal(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	const ask = `printf as''ks. >/dev/tty; read a </dev/tty; echo "got $a."`
	for _, tt := range []struct{ name, line string }{
		{"input is a pipe", `echo data | "$qlock" run NAME -s URL -- sh -c 'ASK'`},
		{"output is a pipe", `"$qlock" run NAME -s URL -- sh -c 'ASK' | cat`},
		{"nothing is the terminal", `echo data | "$qlock" run NAME -s URL -- sh -c 'ASK' 2>&1 | cat`},
		{"in a script", `sh -c 'echo data | "$qlock" run NAME -s URL -- sh -c "$ask"'`},
		{"all is the terminal", `"$qlock" run NAME -s URL -- sh -c 'ASK'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := shellOn(t, "ask="+ask)
			line := strings.NewReplacer("NAME", lockName(t), "URL", c.url(), "ASK", ask).Replace(tt.line)
			s.key(line + "; echo status $?.\n")
			s.after(func() {}, "asks.")
			s.after(func() { s.key("hello\n") }, "asks.", "got hello.", "status 0.", "ready> ")
			// The shell, too, is in front again.
			s.after(func() { s.key("read b; echo then $b.\n"); s.key("more\n") }, "then more.")
		})
	}
	t.Run("from the background", func(t *testing.T) {
		t.Parallel()
		s := shellOn(t)
		s.key(fmt.Sprintf(`"$qlock" run %s -s %s -- sh -c 'echo star''ted.; read a; echo "got $a."' &`+"\n", lockName(t), c.url()))
		s.after(func() {}, "started.")
		// A shell that has not noticed yet that a job stopped takes that for another stop after fg.
		s.after(func() { s.key("until jobs | grep -q Stopped; do sleep 0.05; done; fg\n"); s.key("hello\n") }, "started.", "got hello.")
	})
}

// In a pipeline the terminal is left to others until the command asks for it.
//
// The command has a trap for SIGINT. Without one, dash (0.5.12) loses a SIGINT that comes while
// it starts a program: its handler only notes the signal then, in the memory that vfork shares,
// and dash waits for the program, which runs without having received anything.
func TestRunLeavesTerminalToPager(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	s := shellOn(t)
	s.key(fmt.Sprintf(`"$qlock" run %s -s %s -- sh -c 'trap "exit 3" INT; echo page; while :; do sleep 0.1; done' | sh -c 'read p; printf "mo""re?"; read a </dev/tty; echo "got $a."'`+"\n", lockName(t), c.url()))
	s.after(func() {}, "more?")
	s.after(func() { s.key("yes\n") }, "got yes.")
	s.after(func() { s.key("\x03") }, "got yes.", "ready> ") // Ctrl-C reaches the command, too
}

// suspended is a shell with a job that was stopped with Ctrl-Z, and the numbers of
// qlock and its command.
func suspended(t *testing.T, line string) (s *screen, qlock, command int) {
	t.Helper()
	c := sharedCluster(t)
	s = shellOn(t, "script="+`trap 'echo cont.' CONT; echo "parent:$PPID."; echo "command:$$."; while :; do read a && echo "got $a."; done`)
	s.key(strings.NewReplacer("NAME", lockName(t), "URL", c.url()).Replace(line) + "\n")
	qlock, command = s.pidAfter("parent:"), s.pidAfter("command:")
	inState(t, command, "S") // it reads, and qlock waits for it
	inState(t, qlock, "S")
	s.after(func() { s.key("\x1a") }, "command:", "Stopped", "ready> ")
	inState(t, qlock, "T")
	inState(t, command, "T")
	return s, qlock, command
}

// Ctrl-Z stops command and qlock, the shell has the terminal, and both go on.
func TestRunSuspended(t *testing.T) {
	t.Parallel()
	sharedCluster(t)
	for name, line := range map[string]string{
		"terminal": `"$qlock" run NAME -s URL -- sh -c "$script"`,
		"pipeline": `"$qlock" run NAME -s URL -- sh -c "$script" | cat`,
		"script":   `sh -c '"$qlock" run NAME -s URL -- sh -c "$script"; true'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _, _ := suspended(t, line)
			s.after(func() { s.key("fg\n"); s.key("again\n") }, "ready> ", "got again.")
			// In the background it does not have the terminal.
			s.after(func() { s.key("\x1a") }, "got again.", "Stopped", "ready> ")
			s.after(func() { s.key("bg; read b; echo shell $b.\n"); s.key("mine\n") }, "got again.", "shell mine.")
			// It reads the terminal there, and is stopped as any job is.
			s.after(func() {
				s.key(`f=$(mktemp); for i in {1..300}; do jobs >$f; grep -q Stopp $f && break; sleep 0.1; done; cat $f; rm $f` + "\n")
			}, "shell mine.", "Stopped")
			s.after(func() { s.key("fg\n"); s.key("last\n") }, "shell mine.", "got last.")
			s.after(func() { s.key("\x03") }, "got last.", "ready> ")
			s.after(func() { s.key("read b; echo end $b.\n"); s.key("mine\n") }, "got last.", "end mine.")
		})
	}
}

// A command that is stopped ends when it is told to.
func TestRunStoppedCommandEnds(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p := launch(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", `echo $$ ready; kill -STOP $$; sleep 1000`)
			pid, err := strconv.Atoi(strings.Fields(p.says(p.out, "ready"))[0])
			if err != nil {
				t.Fatal(err)
			}
			inState(t, pid, "T")
			p.signal(sig)
			p.wait().want(t, exitSignal+int(sig))
		})
	}
}

// Without a shell, nothing would continue a stopped job: it continues at once, or gets a
// signal to end.
func TestRunWithoutShell(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	t.Run("Ctrl-Z", func(t *testing.T) {
		t.Parallel()
		s := onTerminal(t, "run", lockName(t), "-s", c.url(), "--", "sh", "-c", `trap 'echo cont.' CONT; echo started.; while :; do read a && echo "got $a."; done`)
		s.says(s.out, "started.")
		s.key("\x1a")
		s.says(s.out, "cont.")
		s.key("more\n")
		s.says(s.out, "got more.")
		s.key("\x03")
		s.wait().want(t, exitSignal+int(syscall.SIGINT))
	})
	t.Run("terminal of others", func(t *testing.T) {
		t.Parallel()
		s := shellOn(t)
		// The shell in between ends, so nothing can bring the job to the foreground.
		s.key(fmt.Sprintf(`(set -m; "$qlock" run %s -s %s -- sh -c 'sleep 1; read a </dev/tty; echo never' &) ; sleep 1000`+"\n", lockName(t), c.url()))
		s.after(func() {}, "needs a terminal that this job does not have")
	})
}

// The command is continued, but qlock is not, so qlock cannot notice that its lock is lost:
// the guard does.
func TestRunCommandGoesOnAlone(t *testing.T) {
	t.Parallel()
	name := lockName(t)
	_, qlock, command := suspended(t, `"$qlock" run `+name+` -s URL --lease 8s --on-loss kill -- sh -c "trap '' TTIN; $script"`)
	// While all processes are stopped, nothing happens, even if another client has the lock.
	qlockCmd(t, "run", name, "-s", sharedCluster(t).url(), "--wait", patience.String(), "--", "true").want(t, 0)
	inState(t, qlock, "T")
	inState(t, command, "T")
	if err := syscall.Kill(command, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	gone(t, command)
}

// A command that is killed cannot restore the terminal.
func TestRunTerminalModes(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	s := shellOn(t)
	s.key("stty echo\n")
	s.key(fmt.Sprintf(`sh -c '"$qlock" run %s -s %s -- sh -c "stty -echo; kill -9 \$\$"; stty -a | grep -o "[-]*echo " | tr " " .'`+"\n", lockName(t), c.url()))
	if out := s.after(func() {}, "ready> ", "echo.\r"); strings.Contains(s.out.String(), "-echo.") {
		t.Errorf("the terminal does not show what is typed: %q", out)
	}
}
