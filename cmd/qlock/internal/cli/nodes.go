package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
)

func (a *app) nodes() *cobra.Command {
	c := &connection{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "nodes [flags]",
		Short:   "Show and change the nodes of a cluster",
		GroupID: groupSee,
		Long: `Query the nodes, and show their states and settings.

States: voting; recovering (it may have forgotten votes, and gives none until they
have expired); probing (it has just started); unreachable (other nodes list it, but
it did not answer); name clash (two nodes answer under one name, and clients count
neither); other configuration (it disagrees with most nodes, and clients do not
count it); not in its own list, wrong digest (its answer contradicts itself);
joining (it waits for a change that adds it); retired (it can be stopped); earlier or
later record (it has not learned, or was the first to learn, what was decided).

The commands qlock nodes change, finish, rollback and enable change the list of nodes
while the cluster runs. Each has a help of its own.

Exit status: 0 if any node answered, 1 if none did, 2 for bad flags.`,
		Example: `  qlock nodes
  qlock nodes --cluster prod --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.connect("nodes", 10*time.Second)
			if err != nil {
				return err
			}
			defer l.Close()
			m, err := l.members(cmd.Context(), l.patience())
			if err != nil {
				return err
			}
			if asJSON {
				if err := a.json(membersReportOf(m)); err != nil {
					return err
				}
			} else if len(m.Nodes) > 0 {
				a.showNodes(m)
			}
			if len(m.Nodes) == 0 {
				return nobody(l)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "write JSON")
	c.flags(cmd.Flags())
	cmd.AddCommand(a.nodesChange(), a.nodesFinish(), a.nodesRollback(), a.nodesEnable())
	return cmd
}

func nobody(l *link) error {
	return fmt.Errorf("no node of cluster %q answered on %s: check that one runs with this cluster name (--cluster), on these NATS servers, in this account",
		l.cluster, serverURL(l.Conn))
}

// listHelp helps where nodes answer, and none has a list.
const listHelp = "Start the nodes of a new cluster with --nodes in place of --join. If the cluster is not new, start the nodes of its list."

func (a *app) showNodes(m *qlock.Members) {
	config := 4 // left out first, unless it shows a fault
	if slices.ContainsFunc(m.Nodes, func(n qlock.Member) bool { return n.Conflict == qlock.ConflictConfig }) {
		config = 1
	}
	g := &grid{title: "Nodes of cluster " + m.Cluster, columns: []column{
		{title: "Node"}, {title: "State"}, {title: "Version", drop: 3}, {title: "Claims", right: true}, {title: "Up", right: true},
		{title: "Round trip", right: true, drop: 2}, {title: "Configuration", drop: config, least: 16},
	}}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		color := text.FgGreen
		switch {
		case n.Answered && (n.State == qlock.NodeRecovering || n.State == qlock.NodeJoining || n.State == qlock.NodeRetired) && n.Conflict == "":
			color = text.FgYellow
		case !n.Votes():
			color = text.FgRed
		}
		state := stateOf(n)
		if lostDirectory(m, n) { // stateOf would say that it can be stopped
			state = string(n.State)
		}
		row := []string{printable.Text(n.Name), paint(a.out, printable.Text(state), color), "", "", "", "", ""}
		if n.Answered {
			config := n.Config.Digest
			if n.Conflict == qlock.ConflictConfig {
				config = fmt.Sprintf("%s: %s, lease %s, skew %s", config, strings.Join(n.Config.Nodes, " "), short(n.Config.MaxLease), short(n.Config.MaxSkew))
			}
			copy(row[2:], []string{printable.Text(n.Version), fmt.Sprint(n.Claims), age(max(time.Since(n.Started), 0)), round(n.RoundTrip).String(), printable.Text(config)})
		}
		g.rows = append(g.rows, row)
	}
	width, _ := size(a.out)
	table, _ := g.render(width) // --json has all columns
	if !found(m) {
		fmt.Fprint(a.out, table, wrapped("No node that answered has a list of nodes. "+listHelp, width), "\n")
		return
	}
	text := votesOfList(m, m.Config.Nodes, "nodes")
	if m.Change != nil {
		text = votesOfList(m, m.Config.Nodes, "nodes of the old list") + " " + votesOfList(m, m.Change.Nodes, "nodes of the new list")
	}
	text += fmt.Sprintf(" Longest lease %s, allowed skew %s.", short(m.Config.MaxLease), short(m.Config.MaxSkew))
	if m.Config.Epoch > 0 {
		text += fmt.Sprintf(" Epoch %d.", m.Config.Epoch)
	}
	fmt.Fprint(a.out, table, wrapped(text, width), "\n")
	if m.Change != nil {
		fmt.Fprint(a.out, wrapped(printable.Text(changeText(m)), width), "\n")
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if n.Answered && lostDirectory(m, n) {
			fmt.Fprint(a.out, wrapped(fmt.Sprintf("Node %s has another state directory than the node of that name in the list; qlock check explains what to do.", printable.Text(n.Name)), width), "\n")
		}
		if farAhead(m, n) {
			fmt.Fprint(a.out, wrapped(fmt.Sprintf("Tokens of node %s are %s ahead of its clock; qlock check explains what that means.", printable.Text(n.Name), short(n.TokensAhead.Round(time.Second))), width), "\n")
		}
	}
}

// votesOfList says how many nodes of a list vote, and how many have to.
func votesOfList(m *qlock.Members, list []string, what string) string {
	c := qlock.ClusterConfig{Nodes: list}
	return fmt.Sprintf("%d of %d %s vote; a writer needs %d votes, a reader %d.", votingOf(m, list), len(list), what, c.WriteQuorum(), c.ReadQuorum())
}

// round rounds a duration for people.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// membersReport is what the nodes report, in JSON.
type membersReport struct {
	Cluster   string         `json:"cluster"`
	Voting    int            `json:"voting"`
	Writer    int            `json:"votes_for_a_writer"`
	Reader    int            `json:"votes_for_a_reader"`
	MaxLease  int64          `json:"max_lease_ms,omitempty"`
	MaxSkew   int64          `json:"max_skew_ms,omitempty"`
	NodeNames []string       `json:"node_names"`
	Epoch     uint64         `json:"epoch"`
	Change    *changeReport  `json:"change,omitempty"`
	Nodes     []memberReport `json:"nodes"`
}

type changeReport struct {
	NodeNames []string `json:"node_names"`
	MaxLease  int64    `json:"max_lease_ms"`
	MaxSkew   int64    `json:"max_skew_ms"`
	For       float64  `json:"for_ms"`
	Wait      float64  `json:"wait_ms"`
	Voting    int      `json:"voting"`
	Writer    int      `json:"votes_for_a_writer"`
	Reader    int      `json:"votes_for_a_reader"`
}

type memberReport struct {
	Name       string   `json:"name"`
	State      string   `json:"state"`
	Votes      bool     `json:"votes"`
	Reachable  bool     `json:"reachable"`
	Conflict   string   `json:"conflict,omitempty"`
	Clash      bool     `json:"name_clash,omitempty"`
	Other      bool     `json:"other_configuration,omitempty"`
	Recovering float64  `json:"recovering_ms,omitempty"`
	Version    string   `json:"version,omitempty"`
	Claims     int      `json:"claims"`
	Ahead      float64  `json:"tokens_ahead_ms,omitempty"`
	Started    string   `json:"started,omitempty"`
	RoundTrip  float64  `json:"round_trip_ms,omitempty"`
	Digest     string   `json:"digest,omitempty"`
	NodeNames  []string `json:"node_names,omitempty"`
	ID         string   `json:"id,omitempty"`
	Epoch      uint64   `json:"epoch,omitempty"`
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func membersReportOf(m *qlock.Members) membersReport {
	r := membersReport{
		Cluster: m.Cluster, Voting: m.Voting(), Writer: m.Config.WriteQuorum(), Reader: m.Config.ReadQuorum(),
		NodeNames: []string{}, Nodes: []memberReport{},
	}
	if found(m) {
		r.MaxLease, r.MaxSkew, r.NodeNames = m.Config.MaxLease.Milliseconds(), m.Config.MaxSkew.Milliseconds(), m.Config.Nodes
		r.Epoch = m.Config.Epoch
	}
	if c := m.Change; c != nil {
		next := qlock.ClusterConfig{Nodes: c.Nodes}
		r.Voting = votingOf(m, m.Config.Nodes) // as the other numbers, of the old list
		r.Change = &changeReport{
			c.Nodes, c.MaxLease.Milliseconds(), c.MaxSkew.Milliseconds(), ms(c.For), ms(c.Wait), votingOf(m, c.Nodes), next.WriteQuorum(), next.ReadQuorum(),
		}
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		one := memberReport{
			Name: n.Name, State: "unreachable", Votes: n.Votes(), Reachable: n.Answered, Conflict: string(n.Conflict),
			Clash: n.Conflict == qlock.ConflictName, Other: n.Conflict == qlock.ConflictConfig,
		}
		if n.Answered {
			one.State, one.Version, one.Claims, one.Digest, one.NodeNames = string(n.State), n.Version, n.Claims, n.Config.Digest, n.Config.Nodes
			one.Recovering, one.RoundTrip, one.Ahead = ms(n.Recovering), ms(n.RoundTrip), ms(n.TokensAhead)
			one.ID, one.Epoch = n.ID, n.Config.Epoch
			one.Started = n.Started.UTC().Format(time.RFC3339Nano)
		}
		r.Nodes = append(r.Nodes, one)
	}
	return r
}
