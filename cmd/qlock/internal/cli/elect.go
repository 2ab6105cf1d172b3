package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/internal/printable"
)

func (a *app) elect() *cobra.Command {
	o := &runOptions{}
	var once bool
	cmd := &cobra.Command{
		Use:     "elect NAME [flags] -- COMMAND [ARGUMENT...]",
		Short:   "Run a command while this program is the leader",
		GroupID: groupLocks,
		Long: `Campaign in an election, and run a command while this program is its leader. Run the
same on several machines: one of them leads, and the others wait. When the leader's
command ends, or the leader dies or is cut off, the candidate that has waited longest
leads. qlock leader shows who does.

The command finds QLOCK_NAME and QLOCK_TOKEN in its environment. The token is the
term: greater than that of every leader before. Send it with each write, and let the
system that receives it reject a token that is lower than the highest it has seen.

--value is what others see of the leader, such as its address, up to 200 bytes.
Without it, they see the user, the host, the process and the command's name.

If leadership is lost, the command is ended as --on-loss says (see qlock run --help,
which says what else there is to know about the command's processes, signals and
terminal). Then this program campaigns again, and starts the command again when it
leads; with --once it exits. It also exits when the command ends by itself, and when it
is told to by a signal.

Exit status: that of qlock run. 122 is only returned with --once, or after a signal.`,
		Example: `  qlock elect scheduler -- ./scheduler
  qlock elect scheduler --value 10.0.0.7:8080 --lease 3s -- ./scheduler
  qlock elect scheduler --wait 1m --once -- ./scheduler`,
		Args: runArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, argv := runWords(cmd, args)
			if !cmd.Flags().Changed("value") {
				o.noteOf(argv[0], cmd.Flags())
				o.note = strings.ToValidUTF8(clipped(o.note, election.MaxValue/3), "")
			}
			o.what = fmt.Sprintf("leadership in %q", name)
			acquire := func(ctx context.Context, l *qlock.Locker, p *progress) (holding, []string, error) {
				e, err := election.New(l, name, election.WithWaitFunc(p.tell))
				if err != nil {
					return nil, nil, err
				}
				k, err := e.Campaign(ctx, o.note)
				if err != nil {
					return nil, nil, err
				}
				return leadership{k}, nil, nil
			}
			a.supervise()
			for {
				err := a.runCommand(cmd.Context(), o, "elect", name, argv, acquire)
				if exitOf(err) != exitLost || once || o.ended {
					return err
				}
				if o.wait == 0 {
					// The fault that ended the leadership may also keep this program from the
					// server. The program must then wait until the server is back.
					o.wait = aLifetime
				}
				_ = a.status(err) // reported; the loop continues
				if !o.quiet {
					fmt.Fprintf(a.err, "qlock: campaigning again\n")
				}
			}
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.note, "value", "", "what others see of the leader, up to 200 bytes; default: user@host, process and command")
	env(fs, "value", "QLOCK_VALUE")
	fs.BoolVar(&once, "once", false, "exit when leadership is lost, instead of campaigning again")
	durationFlag(fs, &o.wait, "wait", 0, time.Millisecond, "time to wait for leadership, and for a NATS server; default: no limit for leadership, no wait for a server")
	durationFlag(fs, &o.lease, "lease", 0, 10*time.Millisecond, "how long the others wait if this program dies; default 10s, or less if the nodes allow less")
	env(fs, "lease", "QLOCK_LEASE")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "print only errors")
	o.flags(fs, []string{onLossTerm, onLossKill})
	o.connection.flags(fs)
	return cmd
}

// aLifetime is longer than any program waits.
const aLifetime = 100 * 365 * 24 * time.Hour

func clipped(s string, most int) string { return s[:min(len(s), most)] }

// leaderReport is a leader in JSON.
type leaderReport struct {
	Time       string            `json:"time"`
	Cluster    string            `json:"cluster"`
	Election   string            `json:"election"`
	Leader     *leading          `json:"leader"` // null: there is no leader
	Candidates []candidateReport `json:"candidates"`
}

type leading struct {
	candidateReport
	Term uint64 `json:"term"`
}

type candidateReport struct {
	Client string `json:"client"`
	Value  string `json:"value"`
	For    int64  `json:"for_ms"`
	Claim  string `json:"claim"`
}

func (a *app) leader() *cobra.Command {
	o := &look{}
	var value bool
	cmd := &cobra.Command{
		Use:     "leader NAME [flags]",
		Short:   "Show the leader of an election",
		GroupID: groupSee,
		Long: `Ask the nodes who leads in an election: the client, its value and its term, and who
campaigns, in the order in which they will lead. --value writes the leader's value and
nothing else, for scripts.

Exit status: 0; 1 nobody leads, or another failure; 121 no quorum; 123 refused by NATS
permissions (the role inspector is needed); 2 bad flags. --watch continues when nobody
leads, and when there is no quorum.`,
		Example: `  qlock leader scheduler
  qlock leader scheduler --value                    only its value, such as its address
  qlock leader scheduler --watch --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usage("the name of the election is missing: %s", cmd.UseLine())
			case value && (o.json || o.watch):
				return usage("--value writes the value alone: give it without --json and --watch")
			}
			return oneName(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, "leader", func(ctx context.Context, l *qlock.Locker) (*view, error) {
				e, err := election.New(l, args[0])
				if err != nil {
					return nil, err
				}
				leader, err := e.Leader(ctx)
				if err != nil && (!errors.Is(err, election.ErrNoLeader) || !o.watch && !o.json) {
					return nil, err
				}
				if value {
					return &view{text: func(int) string { return leader.Value + "\n" }}, nil
				}
				candidates, err := e.Candidates(ctx)
				if err != nil {
					return nil, err
				}
				return &view{
					func(width int) string { return leaderText(args[0], l.Cluster(), leader, candidates, width) },
					reportLeader(args[0], l.Cluster(), leader, candidates),
				}, nil
			})
		},
	}
	cmd.Flags().BoolVar(&value, "value", false, "write only the leader's value")
	o.flags(cmd.Flags())
	return cmd
}

func reportLeader(name, cluster string, leader election.Leader, candidates []election.Candidate) leaderReport {
	r := leaderReport{Time: now(), Cluster: cluster, Election: name, Candidates: []candidateReport{}}
	if leader.Term > 0 {
		r.Leader = &leading{candidateReport{leader.Client, leader.Value, leader.For.Milliseconds(), leader.Claim}, leader.Term}
	}
	for _, c := range candidates {
		r.Candidates = append(r.Candidates, candidateReport{c.Client, c.Value, c.For.Milliseconds(), c.Claim})
	}
	return r
}

func leaderText(name, cluster string, leader election.Leader, candidates []election.Candidate, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Election %s of cluster %s\n\n", lockNamed(name), cluster)
	line := func(key, value string) {
		if width > 20 {
			value = strings.ReplaceAll(wrapped(value, width-14), "\n", "\n             ")
		}
		fmt.Fprintf(&b, "%11s  %s\n", key, value)
	}
	if leader.Term == 0 {
		line("Leader", "nobody leads")
	} else {
		line("Leader", printable.Text(leader.Client))
		line("Value", printable.Text(leader.Value))
		line("Term", fmt.Sprint(leader.Term))
		line("Leads for", age(leader.For))
	}
	for i, c := range candidates {
		key := ""
		if i == 0 {
			key = "Candidates"
		}
		if i == mostShown {
			line(key, fmt.Sprintf("and %d more", len(candidates)-i))
			break
		}
		line(key, fmt.Sprintf("%s  %s  for %s", printable.Text(c.Client), printable.Text(c.Value), age(c.For)))
	}
	return b.String()
}
