//go:build unix

package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock/internal/version"
)

func lockThread() { runtime.LockOSThread() }

// call runs a command in this process, which is equivalent for commands that do not
// connect.
func call(t *testing.T, args ...string) result {
	t.Helper()
	file := func() *os.File {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	in, out, errs := file(), file(), file()
	status := Main(args, in, out, errs)
	read := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		return string(b)
	}
	_ = in.Close()
	return result{read(out), read(errs), status}
}

func allCommands(t *testing.T) []*cobra.Command {
	t.Helper()
	root := newApp(os.Stdin, os.Stdout, os.Stderr).root()
	list := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "completion" {
			list = append(list, c)
		}
	}
	return list
}

// withSubcommands is allCommands and the commands below them.
func withSubcommands(t *testing.T) (list []*cobra.Command) {
	t.Helper()
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		list = append(list, c)
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				add(sub)
			}
		}
	}
	for _, c := range allCommands(t) {
		if c.HasParent() {
			add(c)
		} else {
			list = append(list, c)
		}
	}
	return list
}

// helpFile is where the help of a command stands: of qlock store put in store-put.txt.
func helpFile(c *cobra.Command) string {
	name := c.Name()
	if c.HasParent() {
		_, path, _ := strings.Cut(c.CommandPath(), " ")
		name = strings.ReplaceAll(path, " ", "-")
	}
	return filepath.Join("testdata", "help", name+".txt")
}

// The files in testdata/help have the output of --help, so that a review shows each change
// of it.
func TestHelp(t *testing.T) {
	for _, c := range withSubcommands(t) {
		var b bytes.Buffer
		help(&b, c)
		file := helpFile(c)
		if *update {
			if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s --help is not %s (-update writes it):\n%s", c.CommandPath(), file, b.String())
		}
		if n := strings.Count(b.String(), "Exit status"); n > 1 {
			t.Errorf("%s --help has the exit status %d times", c.CommandPath(), n)
		}
		for _, line := range strings.Split(b.String(), "\n") {
			if len(line) > 125 {
				t.Errorf("%s --help: a line of %d bytes: %s", c.Name(), len(line), line)
			}
		}
	}
}

// Every example of a help text is a valid command line.
func TestExamples(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash to take the examples apart")
	}
	seen := 0
	for _, c := range withSubcommands(t) {
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		text := continued.ReplaceAllString(c.Example, " ")
		for _, line := range strings.Split(text, "\n") {
			before, line, ok := strings.Cut(line, "qlock ")
			if !ok {
				continue
			}
			if strings.Contains(before, "(") {
				line, _, _ = strings.Cut(line, ")")
			}
			if i := strings.Index(line, "   "); i >= 0 {
				line = line[:i] // what follows is for the reader
			}
			checkLine(t, shell, line)
			seen++
		}
	}
	if seen < 20 {
		t.Errorf("only %d examples were found", seen)
	}
}

// An error in a command line names the flag and the values that it accepts, and the exit
// status is 2.
func TestBadUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		env  string
		want []string
	}{
		{"rum", "", []string{`there is no command "rum"`, "did you mean run?"}},
		{"run", "", []string{"the name of the lock is missing"}},
		{"run -- true", "", []string{"the name of the lock is missing"}},
		{"run a", "", []string{"the command goes after --"}},
		{"run a --", "", []string{"the command"}},
		{"run a b -- true", "", []string{"one name is needed before --"}},
		{"run a --on-loss explode -- true", "", []string{`--on-loss "explode"`, "term, kill, ignore"}},
		{"run a --wait soon -- true", "", []string{`--wait "soon"`, "500ms, 10s or 2m"}},
		{"run a --lease 1ms -- true", "", []string{`--lease "1ms"`, "at least 10ms"}},
		{"run a --try --wait 1s -- true", "", []string{"--try", "--wait"}},
		{"run a --nonsense -- true", "", []string{"--nonsense"}},
		{"run a --wait", "", []string{"--wait"}},
		{"run a --slots 0 -- true", "", []string{`--slots "0"`, "from 1 to 1024"}},
		{"run a --slots 2 --shared -- true", "", []string{"--slots", "--shared"}},
		{"elect", "", []string{"the name", "is missing"}},
		{"elect a", "", []string{"the command goes after --: qlock elect a -- COMMAND"}},
		{"elect a --on-loss ignore -- true", "", []string{`--on-loss "ignore"`, "term, kill"}},
		{"elect -- a --", "", []string{"qlock elect -- a -- COMMAND"}},
		{"leader", "", []string{"the name of the election is missing"}},
		{"leader a b", "", []string{"one name is needed"}},
		{"leader a --value --json", "", []string{"--value"}},
		{"run -- a --", "", []string{"the command after the second -- is missing"}},
		{"run -name -- true", "", []string{"a name that begins with - goes after --", "qlock run [flags] -- -name -- COMMAND"}},
		{"watch -name", "", []string{"a name that begins with - goes after --", "qlock watch [flags] -- -name"}},
		{"lock -name", "", []string{"a name that begins with - goes after --", "qlock lock [flags] -- -name"}},
		{"lock a --until then", "", []string{`--until "then"`, "input, parent, signal"}},
		{"run a -- true", "QLOCK_LEASE=long", []string{"QLOCK_LEASE", "--lease", `"long"`, "500ms, 10s or 2m"}},
		{"run a --client no.dots -- true", "", []string{"--client", "A-Z a-z 0-9 _ -"}},
		{"run a --password x -- true", "", []string{"--password", "--user"}},
		{"run a --tlscert x -- true", "", []string{"--tlscert", "--tlskey"}},
		{"run a --creds /nonexistent -- true", "", []string{"--creds", "/nonexistent", "no such file"}},
		{"run a --cluster * -- true", "", []string{`--cluster "*"`, "A-Z a-z 0-9 _ -"}},
		{"nodes --cluster a.b", "", []string{`--cluster "a.b"`}},
		{"node --name a.b --nodes a.b", "", []string{"--nodes", `"a.b"`, "A-Z a-z 0-9 _ -"}},
		{"node --name a --nodes a --cluster a.b", "", []string{`--cluster "a.b"`}},
		{"lock", "", []string{"the name of the lock is missing"}},
		{"lock a b", "", []string{"one name is needed"}},
		{"lock a --log-level loud", "", []string{`--log-level "loud"`, "debug, info, warn, error"}},
		{"lock a --log-format xml", "", []string{`--log-format "xml"`, "text, json"}},
		{"nodes extra", "", []string{`there is no command "nodes extra"`, "qlock nodes --help"}},
		{"nodes chang a", "", []string{`there is no command "nodes chang"`, "did you mean change?"}},
		{"nodes change a b a", "", []string{"a is named twice"}},
		{"nodes change a,b", "", []string{"a b"}},
		{"nodes change a --max-lease 48h", "", []string{"--max-lease", "24h"}},
		{"nodes change a --max-lease 1s --max-skew 2s", "", []string{"--max-skew 2s", "--max-lease 1s"}},
		{"nodes change", "", []string{"takes the names of all nodes"}},
		{"nodes change a a.b", "", []string{`"a.b"`}},
		{"nodes change a --max-lease 1us", "", []string{"--max-lease", "10ms"}},
		{"nodes finish a", "", []string{"takes no arguments"}},
		{"nodes rollback --now", "", []string{"--now"}},
		{"watch a b", "", []string{"one pattern is needed"}},
		{"watch .a", "", []string{"PATTERN", "orders.>"}},
		{"ls a b", "", []string{"one pattern is needed"}},
		{"ls a*", "", []string{`PATTERN "a*"`, "orders.>", "%20"}},
		{"ls --interval 1ms", "", []string{`--interval "1ms"`, "at least 100ms"}},
		{"ls --interval now", "", []string{`--interval "now"`, "500ms, 10s or 2m"}},
		{"info", "", []string{"the name of the lock is missing"}},
		{"info a b", "", []string{"one name is needed"}},
		{"info " + strings.Repeat("x", 1025), "", []string{"NAME", "1024"}},
		{"unlock", "", []string{"the name of the lock is missing"}},
		{"unlock a", "", []string{"is released by the process that holds it", "qlock info a", "--force"}},
		{"unlock a --yes", "", []string{"--force"}},
		{"unlock a --force", "", []string{"--yes", "not a terminal"}},
		{"unlock a --force --yes --claim x --holder y", "", []string{"--claim", "--holder", "one or the other"}},
		{"unlock a --force --yes --wait 0s", "", []string{`--wait "0s"`, "at least 1ms"}},
		{"unlock " + strings.Repeat("x", 1025) + " --force --yes", "", []string{"NAME", "1024"}},
		{"watch --count none", "", []string{`--count "none"`, "whole number"}},
		{"bench warm", "", []string{`"warm"`, "alone, spread, hot"}},
		{"bench --clients 0", "", []string{"--clients", "1 to 10000"}},
		{"demo --port 70000", "", []string{"--port", "0 to 65535"}},
		{"permissions", "", []string{"client, member, observer, auditor, monitor, inspector, operator, administrator, node"}},
		{"permissions king:a", "", []string{`no role "king"`, "client, member, observer, auditor, monitor, inspector, operator, administrator, node"}},
		{"permissions client", "", []string{"ROLE:NAME"}},
		{"permissions node:a=x", "", []string{"only clients, members, inspectors and operators can be limited"}},
		{"permissions client:a=x..y", "", []string{"empty token"}},
		{"permissions client:a client:a", "", []string{`two users are named "a"`}},
		{"permissions --format yaml client:a", "", []string{"--format", "users, certificates, signing-keys, json"}},
		{"permissions --format signing-keys client:a", "", []string{"write client"}},
		{"node", "", []string{"--name is missing"}},
		{"node --name a", "", []string{"--nodes is missing"}},
		{"node --name a --nodes b,c", "", []string{"--name", "--nodes b,c"}},
		{"node --name a --nodes a,b", "", []string{"--cluster-listen", "--routes", "--server"}},
		{"node --name a --nodes a --max-lease 1s --max-skew 2s", "", []string{"--max-skew 2s", "--max-lease 1s"}},
		{"node --name a --nodes a --join --state-dir x", "", []string{"--join and --nodes"}},
		{"node --name a --join", "", []string{"--join needs --state-dir"}},
		{"node --name a --join --state-dir x --bootstrap", "", []string{"--join and --bootstrap"}},
		{"node --name a --join --state-dir x", "", []string{"would be alone"}},
		{"node --name a --nodes a --bootstrap", "", []string{"--bootstrap", "--state-dir"}},
		{"node --name a --nodes a --listen here", "", []string{`--listen "here"`, "0.0.0.0:4222"}},
		{"node --name a --nodes a", "QLOCK_LISTEN=1:2:3", []string{"QLOCK_LISTEN", "--listen", "0.0.0.0:4222"}},
		{"node --name a --nodes a --server x --routes nats://y", "", []string{"--server", "--routes"}},
		{"node --name a --nodes a --routes y", "", []string{`--routes "y"`, "nats://n1.example.com:6222"}},
		{"node --name a --nodes a --route-tlscert y", "", []string{"--route-tlscert, --route-tlskey and --route-tlsca"}},
		{"node --name a --nodes a --creds " + os.DevNull, "", []string{"--creds", "--server"}},
		{"node --name a --nodes a --max-claims 0", "", []string{"--max-claims", "1 to"}},
		{"node --config /nonexistent.yaml", "", []string{"--config", "no such file"}},
	} {
		t.Run(strings.ReplaceAll(c.args, "/", "|"), func(t *testing.T) {
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			r := call(t, strings.Fields(c.args)...)
			r.want(t, exitUsage, c.want...)
			if !strings.HasPrefix(r.err, "qlock: error: ") {
				t.Errorf("the line begins otherwise: %s", r.err)
			}
			if r.out != "" {
				t.Errorf("standard output: %s", r.out)
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown", "name: a\nmax_leese: 3s\n", "node.yaml:2: max_leese: there is no such setting, did you mean max-lease?"},
		{"far off", "colour: red\n", "node.yaml:1: colour: there is no such setting; settings are named like the flags of qlock node"},
		{"value", "name: a\n\nmax-lease: soon\n", `node.yaml:3: max-lease: "soon": use a duration such as`},
		{"choice", "log-level: loud\n", `node.yaml:1: log-level: "loud": allowed are debug, info, warn, error`},
		{"twice", "name: a\nname: b\n", "name"},
		{"nested", "nodes:\n  a: b\n", "node.yaml:1: nodes: use a word or a list"},
		{"list", "name: [a, b]\n", "node.yaml:1: name: it takes one value, not a list"},
		{"bootstrap", "bootstrap: true\n", "node.yaml:1: bootstrap: there is no such setting"},
		{"indent", "name: a\n nodes: b\n", "node.yaml: not YAML"},
		{"list at top", "- a\n", "node.yaml:1: use lines such as"},
		{"two", "name: a\n---\nname: b\n", "several documents"},
		{"all at once", "nam: a\nlisten: x\n", "listen: \"x\": use an address"},
		{"empty", "", "--name is missing"},
		{"comment", "# nothing\n", "--name is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "node.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			call(t, "node", "--config", file).want(t, exitUsage, c.want)
		})
	}
}

// Flags take precedence over the environment, and the environment over the file.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.yaml")
	text := "name: file\nnodes:\n  - one # the first\n  - two\ncluster: file\nmax-lease: 7s\nprevious-max-lease: 1m\nmax-claims: 12\nobserve: true\nroute-user: \"x: y\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("QLOCK_NODE_NAME", "env")
	t.Setenv("QLOCK_CLUSTER", "env")
	o := &nodeOptions{}
	cmd := &cobra.Command{}
	o.flags(cmd.Flags())
	if err := cmd.ParseFlags([]string{"--name", "flag"}); err != nil {
		t.Fatal(err)
	}
	if err := fromEnvironment(cmd.Flags()); err != nil {
		t.Fatal(err)
	}
	f, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.apply(cmd.Flags()); err != nil {
		t.Fatal(err)
	}
	if o.node.Name != "flag" || o.cluster != "env" || o.node.MaxLease.String() != "7s" || o.node.PreviousMaxLease.String() != "1m0s" || o.node.MaxClaims != 12 || !o.observe || o.routeUser != "x: y" {
		t.Errorf("name %s, cluster %s, lease %v, before %v, claims %d, observe %v, route user %q", o.node.Name, o.cluster, o.node.MaxLease, o.node.PreviousMaxLease, o.node.MaxClaims, o.observe, o.routeUser)
	}
	if got := strings.Join(o.node.Nodes, " "); got != "one two" {
		t.Errorf("nodes %s", got)
	}
}

func TestVersion(t *testing.T) {
	call(t, "version").want(t, 0, "qlock "+version.String(), "go1.")
	v := decode[map[string]any](t, call(t, "version", "--json"))
	if v["version"] != version.String() || v["go"] == "" {
		t.Error(v)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		r := call(t, "completion", shell)
		r.want(t, 0, "qlock")
		path, err := exec.LookPath(shell)
		if err != nil || shell == "powershell" {
			continue
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(r.out)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	call(t, "__complete", "run", "a", "--on").want(t, 0, "--on-loss")
}

func TestHelpOfCommands(t *testing.T) {
	call(t).want(t, 0, "Usage:", "demo", "watch")
	call(t, "help", "run").want(t, 0, "QLOCK_TOKEN", "120  another client holds the lock")
	call(t, "run", "--help").want(t, 0, "QLOCK_TOKEN", "NATS connection:")
	call(t, "help", "rum").want(t, exitUsage, "rum")
}
