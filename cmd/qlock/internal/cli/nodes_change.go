package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/nodes"
)

// nodesCommand makes a command that changes the list of nodes. Each of them may be interrupted
// and run again.
func (a *app) nodesCommand(use, short, long string, args cobra.PositionalArgs, run func(context.Context, *nats.Conn, []string, ...nodes.Option) error) (*cobra.Command, *[]nodes.Option) {
	c, more := &connection{}, &[]nodes.Option{}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: args,
		RunE: func(cmd *cobra.Command, names []string) error {
			l, err := c.connect("nodes", 10*time.Second)
			if err != nil {
				return err
			}
			defer l.Close()
			ctx, done := interrupted(cmd.Context())
			defer done()
			// A command that waits for a cluster that is not there would say nothing.
			if m, err := l.members(ctx, l.patience()); err != nil {
				return err
			} else if len(m.Nodes) == 0 {
				return nobody(l)
			}
			opts := append([]nodes.Option{nodes.Cluster(l.cluster), nodes.Name(l.client), nodes.Progress(changeProgress(a.err))}, *more...)
			err = run(ctx, l.Conn, names, opts...)
			if err != nil && ctx.Err() != nil {
				return fmt.Errorf("interrupted; what the nodes have decided stays, and the same command goes on from there: %w", err)
			}
			return err
		},
	}
	c.flags(cmd.Flags())
	return cmd, more
}

// waitPause is the least time between two lines that say the same, but for how long it still takes.
const waitPause = 5 * time.Second

// changeProgress returns a function that writes what an operator should know.
func changeProgress(out io.Writer) func(string) {
	var said string
	var at time.Time
	return func(s string) {
		// The time that is left changes every second.
		what, now := s, time.Now()
		if left, rest, ok := strings.Cut(s, ": "); ok && strings.HasPrefix(left, "waiting for ") && !strings.Contains(left, "node") {
			what = rest
		}
		if what == said && now.Sub(at) < waitPause {
			return
		}
		said, at = what, now
		fmt.Fprintln(out, printable.Text(s))
	}
}

// addOption adds an option if a flag is set.
func addOption(cmd *cobra.Command, more *[]nodes.Option, name, use string, option nodes.Option) {
	on := cmd.Flags().Bool(name, false, use)
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *on {
			*more = append(*more, option)
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}

const endsWhenDone = `
It may be interrupted at any moment and run again, also on another machine. It says
on standard error what it waits for, and for how long.

Exit status: 0 done, 1 not done, 2 bad flags.`

// longestLease is what nodes.MaxLease and nodes.MaxSkew take at most. Here it is known before there
// is a connection.
const longestLease = 24 * time.Hour

func (a *app) nodesChange() *cobra.Command {
	var maxLease, maxSkew time.Duration
	var gone []string
	cmd, more := a.nodesCommand("change NODE... [flags]", "Change the list of nodes while the cluster runs",
		`Change the list of nodes to the given one. Locks that are held stay held, waiters keep
their places, and tokens rise. Any list may follow any other.

The nodes decide twice: first locks need a quorum of the old and of the new list, then
of the new one. Between the two lie the longest lease and two per cent. Nodes that are
only in the old list may be stopped when the command has ended with status 0.

Start new nodes first, with qlock node --join. Every node needs a state directory.
Update all clients to version 0.2 first: older ones acquire no locks afterwards.
`+endsWhenDone,
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("%s takes the names of all nodes of the new list, separated by spaces", cmd.CommandPath())
			}
			for i, n := range args {
				switch {
				case !subject.IsToken(n) && strings.Contains(n, ","):
					return usage("%q: separate the names by spaces: %s", n, strings.Join(strings.FieldsFunc(n, func(r rune) bool { return r == ',' }), " "))
				case !subject.IsToken(n):
					return usage("%q: %s", n, subject.TokenRule)
				case slices.Contains(args[:i], n):
					return usage("%s is named twice", n)
				}
			}
			return nil
		},
		func(ctx context.Context, nc *nats.Conn, names []string, opts ...nodes.Option) error {
			if maxLease > 0 {
				opts = append(opts, nodes.MaxLease(maxLease))
			}
			if maxSkew > 0 {
				opts = append(opts, nodes.MaxSkew(maxSkew))
			}
			return nodes.Change(ctx, nc, names, append(opts, nodes.Gone(gone...))...)
		})
	cmd.Example = `  qlock nodes change n1 n2 n4                       # n4 replaces n3
  qlock nodes change n1 n2 n3 n4 n5                 # grow
  qlock nodes change n1 n2 n3 --max-lease 1m        # the list stays`
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case maxLease > longestLease:
			return usage("--max-lease %v: use at most %v", short(maxLease), short(longestLease))
		case maxSkew > longestLease:
			return usage("--max-skew %v: use at most %v", short(maxSkew), short(longestLease))
		case maxLease > 0 && maxSkew > maxLease:
			return usage("--max-skew %v is more than --max-lease %v", short(maxSkew), short(maxLease))
		}
		return nil
	}
	fs := cmd.Flags()
	durationFlag(fs, &maxLease, "max-lease", 0, 10*time.Millisecond, "new longest lease; default: as it is")
	durationFlag(fs, &maxSkew, "max-skew", 0, time.Millisecond, "new limit of how far a client's clock may be ahead; default: as it is, or half of a lower --max-lease if that is less")
	fs.StringSliceVar(&gone, "gone", nil, "nodes that are dead for good, if this is the first change of the cluster")
	addOption(cmd, more, "no-wait", "end when locks need both lists; then run finish or rollback", nodes.StayJoint())
	addOption(cmd, more, "now", "do not wait for clients to follow the last change; held locks may be lost", nodes.Hurry())
	addOption(cmd, more, "majority", "do not wait for all new nodes to vote, a majority of them is enough", nodes.Majority())
	return cmd
}

func (a *app) nodesFinish() *cobra.Command {
	cmd, more := a.nodesCommand("finish [flags]", "End a change that is under way by the new list",
		`Go on with the new list of a change that is under way. It needs a majority of the old
nodes. Without a change, the command does nothing.
`+endsWhenDone, noArgs,
		func(ctx context.Context, nc *nats.Conn, _ []string, opts ...nodes.Option) error {
			return nodes.Finish(ctx, nc, opts...)
		})
	cmd.Example = "  qlock nodes finish"
	addOption(cmd, more, "majority", "do not wait for all new nodes to vote, a majority of them is enough", nodes.Majority())
	return cmd
}

func (a *app) nodesRollback() *cobra.Command {
	cmd, _ := a.nodesCommand("rollback [flags]", "End a change that is under way by the old list",
		`Go back to the old list of a change that is under way. It needs a majority of the old
nodes, and none of the new ones. Without a change, the command does nothing.
`+endsWhenDone, noArgs,
		func(ctx context.Context, nc *nats.Conn, _ []string, opts ...nodes.Option) error {
			return nodes.RollBack(ctx, nc, opts...)
		})
	cmd.Example = "  qlock nodes rollback"
	return cmd
}

func (a *app) nodesEnable() *cobra.Command {
	cmd, _ := a.nodesCommand("enable [flags]", "Prepare a cluster for changes of its list of nodes",
		`Give the nodes ids, by which they decide on changes. All nodes must be up. The first
qlock nodes change does it by itself. Run it after the bootstrap of a new cluster.

Clients of versions before 0.2 acquire no locks after that, and it cannot be undone.
`+endsWhenDone, noArgs,
		func(ctx context.Context, nc *nats.Conn, _ []string, opts ...nodes.Option) error {
			return nodes.Enable(ctx, nc, opts...)
		})
	cmd.Example = "  qlock nodes enable"
	return cmd
}

// changeText says which change is under way, and when it can be finished.
func changeText(m *qlock.Members) string {
	c := m.Change
	s := "A change of the list of nodes to " + strings.Join(c.Nodes, " ")
	if slices.Equal(c.Nodes, m.Config.Nodes) {
		s = fmt.Sprintf("A change to a longest lease of %s and an allowed skew of %s", short(c.MaxLease), short(c.MaxSkew))
	}
	s += " is under way"
	if c.For > 0 {
		s += fmt.Sprintf(" for %v", c.For.Round(time.Second))
	}
	var when []string
	if c.Wait > 0 {
		when = append(when, fmt.Sprintf("in %v", (c.Wait+time.Second-1).Truncate(time.Second)))
	}
	if silent := notVoting(m, c.Nodes); len(silent) > 0 {
		when = append(when, fmt.Sprintf("when %s %s", strings.Join(silent, " "), verb(len(silent), "votes", "vote")))
	}
	back := "now"
	if need := m.Config.WriteQuorum(); votingOf(m, m.Config.Nodes) < need {
		back = fmt.Sprintf("when %d of the old nodes vote", need)
		when = append(when, back)
	}
	if len(when) == 0 {
		when = []string{"now"}
	}
	return s + fmt.Sprintf(". It can be finished %s (qlock nodes finish), and rolled back %s (qlock nodes rollback).", strings.Join(when, ", and "), back)
}

// notVoting lists the nodes of a list that do not vote.
func notVoting(m *qlock.Members, list []string) (out []string) {
	for _, name := range list {
		if votingOf(m, []string{name}) == 0 {
			out = append(out, name)
		}
	}
	return out
}
