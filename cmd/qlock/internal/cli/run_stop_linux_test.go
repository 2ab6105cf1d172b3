package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { otherRoles["hasty shell"] = hastyShell }

// hastyShell runs the script $hasty as a job in the foreground, and continues it as soon as it
// is stopped.
func hastyShell() {
	runtime.LockOSThread() // the affinity is that of a thread
	signal.Ignore(syscall.SIGTTOU)
	// On one processor, whoever has the better priority runs at once when it can: this program
	// and the script, when qlock, which has the lowest, stops the script.
	var cpus, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err == nil {
		for i := range len(cpus) * 64 {
			if cpus.IsSet(i) {
				one.Set(i)
				break
			}
		}
		_ = unix.SchedSetaffinity(0, &one)
	}
	cmd := exec.Command("sh", "-c", os.Getenv("hasty"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: true}
	dieWithParent(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	for stops := 0; ; {
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			os.Exit(1)
		case ws.Stopped():
			stops++
			fmt.Printf("stop %d.\n", stops)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGCONT)
		default:
			os.Exit(0)
		}
	}
}

// A shell may continue the job before qlock has stopped itself: the shell sees only the script
// that qlock runs in, which stops first. Nothing is left stopped then, as such a shell believes
// that the job runs, and will not continue it again. Nor does anything of that continuation come
// so late that it undoes the next Ctrl-Z.
func TestRunContinuedAtOnce(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	cmd := command()
	cmd.Env = append(cmd.Env, roleVariable+"=hasty shell", "qlock="+cmd.Path,
		"hasty="+`nice -n 19 env `+roleVariable+`=1 "$qlock" run `+lockName(t)+` -s `+c.url()+` --lease `+testMaxLease+` -- sh -c "$script"; true`,
		"script="+`echo started.; while :; do read a && echo "got $a."; done`)
	s := onTerminalCmd(t, 200, cmd)
	s.says(s.out, "started.")
	for i := range 8 {
		// What is typed after Ctrl-Z stays for whoever reads next, and only the command reads.
		s.key("\x1a")
		s.key(fmt.Sprintf("key %d\n", i))
		s.says(s.out, fmt.Sprintf("got key %d.", i))
		s.says(s.out, fmt.Sprintf("stop %d.", i+1))
	}
}
