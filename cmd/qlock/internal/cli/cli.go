// Package cli is the qlock command, with one file for each of its commands. Shared code is
// in these files: cli.go has the frame and the exit statuses, flags.go the flags and their
// environment variables, connect.go the connection to NATS, members.go what nodes report
// about themselves, text.go safe and tidy output to a terminal, look.go the display of
// locks, and wait.go what a person sees while a command waits for a lock.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	groups "github.com/qlock/qlock/members"
)

// The exit statuses. Those of qlock run itself are in a range that commands seldom use:
// below the shell's 126 and 127, and different from timeout's 124.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitHeld      = 120
	exitNoQuorum  = 121
	exitLost      = 122
	exitRefused   = 123
	exitSelf      = 125
	exitCannotRun = 126
	exitNotFound  = 127
	exitSignal    = 128 // plus the signal's number
)

// app is one run of the command.
type app struct {
	in, out *os.File
	err     *diagnostics
}

func newApp(in, out, err *os.File) *app { return &app{in, out, newDiagnostics(err)} }

// Main runs the command line args, without the name of the program, and returns the exit
// status.
func Main(args []string, in, out, err *os.File) int {
	if len(args) == 1 && args[0] == guardArgument {
		return guard(in, out, err)
	}
	reapOrphans()
	a := newApp(in, out, err)
	defer a.err.end()
	root := a.root()
	root.SetArgs(append([]string{}, dashed(args)...)) // nil would mean the arguments of the process
	return a.status(root.Execute())
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "qlock COMMAND",
		Short: "Distributed locks over NATS",
		Long: `Run nodes that vote on locks, run commands under a lock, and observe locks.

Flags take precedence over environment variables, and these over a node's
configuration file or the selected NATS context.`,
		Example: `  qlock demo                                 three nodes and some traffic, to try the other commands
  qlock run nightly -- ./backup.sh           one backup at a time, in the whole cluster
  qlock ls                                   the locks and their holders
  qlock nodes                                the nodes, and which of them vote
  qlock check                                problems, and what to do about them`,
		Args:                       noArgs,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
		DisableFlagsInUseLine:      true,
		SilenceErrors:              true,
		SilenceUsage:               true,
		PersistentPreRunE:          func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { help(cmd.OutOrStdout(), cmd) })
	root.AddGroup(
		&cobra.Group{ID: groupNodes, Title: "Nodes:"},
		&cobra.Group{ID: groupLocks, Title: "Locks:"},
		&cobra.Group{ID: groupSee, Title: "Observe and measure:"},
	)
	root.AddCommand(
		a.demo(), a.node(), a.gateway(), a.permissions(),
		a.run(), a.elect(), a.lock(), a.unlock(), a.store(),
		a.ls(), a.info(), a.leader(), a.group(), a.watch(), a.nodes(), a.check(), a.bench(),
		a.version(),
	)
	root.SetHelpCommand(&cobra.Command{Hidden: true, Use: "help [COMMAND]", Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := cmd.Root().Find(args)
			if err != nil || c == cmd.Root() && len(args) > 0 {
				return noArgs(cmd.Root(), args)
			}
			return c.Help()
		}})
	root.InitDefaultCompletionCmd()
	return root
}

const (
	groupNodes = "nodes"
	groupLocks = "locks"
	groupSee   = "see"
)

// statusError is an error with an exit status of its own. If err is nil, no message is
// written.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// usage returns an error in the use of the command line.
func usage(format string, args ...any) error {
	return &statusError{exitUsage, fmt.Errorf(format, args...)}
}

// status writes the error and returns the exit status for it.
func (a *app) status(err error) int {
	if err == nil {
		return 0
	}
	status, said := exitFailed, err
	var own *statusError
	if errors.As(err, &own) {
		status, said = own.status, own.err
	}
	if said != nil {
		fmt.Fprintf(a.err, "qlock: error: %s\n", printableLines(plain(said)))
	}
	return status
}

// plain returns an error's text without the prefixes of the packages that it came through.
// The line already begins with the program's name.
func plain(err error) string {
	s := err.Error()
	for _, p := range []string{"qlock: ", "store: ", "qlock/embedded: ", "New: ", "StartNode: ", "permissions: ", "election: ", "semaphore: ", "members: "} {
		s = strings.TrimPrefix(s, p)
	}
	return strings.ReplaceAll(s, ": qlock: ", ": ")
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usage("there is no command %q%s; %s --help lists them", strings.Join(append(strings.Fields(cmd.CommandPath())[1:], args[0]), " "), similar(cmd, args[0]), cmd.CommandPath())
	}
	return usage("%s takes no arguments, got %q", cmd.CommandPath(), args[0])
}

func similar(cmd *cobra.Command, word string) string {
	if s := cmd.SuggestionsFor(word); len(s) > 0 {
		return fmt.Sprintf(", did you mean %s?", strings.Join(s, " or "))
	}
	return ""
}

// flagError names the flag and the values that it accepts.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		name := invalid.GetFlag().Name
		return usage("--%s%s: %w", name, quoted(name, invalid.GetValue()), cause(err))
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && (strings.HasPrefix(cmd.Use, cmd.Name()+" NAME") || strings.HasPrefix(cmd.Use, cmd.Name()+" [PATTERN]")) {
		return usage("%w; a name that begins with - goes after --: %s", err, dashedName(cmd))
	}
	if errors.As(err, &unknown) && strings.Contains(cmd.Use, " BUCKET ") {
		return usage("%w; a value that begins with - goes after --: %s [flags] -- %s", err, cmd.CommandPath(), strings.TrimSuffix(strings.TrimPrefix(cmd.Use, cmd.Name()+" "), " [flags]"))
	}
	return usage("%w", err)
}

// dashedName returns the usage for a name that looks like a flag.
func dashedName(cmd *cobra.Command) string {
	if cmd.Name() == "run" || cmd.Name() == "elect" {
		return cmd.CommandPath() + " [flags] -- -name -- COMMAND"
	}
	return cmd.CommandPath() + " [flags] -- -name"
}

// interrupted returns a context that ends with the signals that end a program.
func interrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

// terminal reports whether f is a terminal.
func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// paint colours s if f is a terminal whose owner has not asked for plain text
// (no-color.org).
func paint(f *os.File, s string, c ...text.Color) string {
	if !terminal(f) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return s
	}
	text.EnableColors()
	return text.Colors(c).Sprint(s)
}

// help writes a command's help. The flags of the connection are listed separately, since
// they are the same for all commands.
func help(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "%s\n\n", strings.TrimSpace(orElse(cmd.Long, cmd.Short)))
	fmt.Fprintf(w, "Usage:\n  %s\n", cmd.UseLine())
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
	}
	subcommands(w, cmd)
	var own, connection, others pflag.FlagSet
	cmd.InitDefaultHelpFlag()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		switch {
		case f.Hidden:
		case len(f.Annotations[annotationGroup]) > 0:
			connection.AddFlag(f)
		case f.Name == "help":
			others.AddFlag(f)
		default:
			own.AddFlag(f)
		}
	})
	own.AddFlagSet(&others)
	fmt.Fprintf(w, "\nFlags:\n%s", own.FlagUsagesWrapped(110))
	if connection.HasFlags() {
		fmt.Fprintf(w, "\nNATS connection:\n%s", connection.FlagUsagesWrapped(110))
	}
}

func subcommands(w io.Writer, cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	list := func(title, group string) {
		fmt.Fprintf(w, "\n%s\n", title)
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.GroupID == group {
				fmt.Fprintf(w, "  %-12s %s\n", c.Name(), c.Short)
			}
		}
	}
	for _, g := range cmd.Groups() {
		list(g.Title, g.ID)
	}
	list(map[bool]string{true: "Other:", false: "Commands:"}[len(cmd.Groups()) > 0], "")
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// lockStatus returns the exit status for a lock that could not be acquired, or was lost.
func lockStatus(err error) int {
	switch {
	case errors.Is(err, qlock.ErrHeld):
		return exitHeld
	case errors.Is(err, qlock.ErrLost):
		return exitLost
	case errors.Is(err, qlock.ErrRefused), errors.Is(err, qlock.ErrEvicted):
		return exitRefused
	case errors.Is(err, qlock.ErrNoQuorum):
		return exitNoQuorum
	case errors.Is(err, qlock.ErrInvalidName), errors.Is(err, qlock.ErrInvalidLease), errors.Is(err, election.ErrInvalidValue), errors.Is(err, groups.ErrInvalid):
		return exitUsage
	}
	return exitSelf
}
