package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/proto"
	"github.com/qlock/qlock/internal/quorum"
)

func (a *app) nodes() *cobra.Command {
	c := &connection{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "nodes [flags]",
		Short:   "Show the nodes of a cluster",
		GroupID: groupSee,
		Long: `Query the nodes, and show their states and settings.

States: voting; recovering (it may have forgotten votes, and gives none until they
have expired); probing (it has just started); unreachable (other nodes list it, but
it did not answer); name clash (two nodes answer under one name, and clients count
neither); other configuration (it disagrees with most nodes, and clients do not
count it).

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
			found, err := l.survey(cmd.Context(), l.patience())
			if err != nil {
				return err
			}
			if asJSON {
				if err := a.json(found.report()); err != nil {
					return err
				}
			} else if found.config != nil {
				a.showNodes(found)
			}
			if found.config == nil {
				return nobody(l)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "write JSON")
	c.flags(cmd.Flags())
	return cmd
}

func nobody(l *link) error {
	return fmt.Errorf("no node of cluster %q answered on %s: check that one runs with this cluster name (--cluster), on these NATS servers, in this account",
		l.cluster, serverURL(l.Conn))
}

func (a *app) showNodes(c *census) {
	config := 4 // left out first, unless it says what is wrong
	if slices.ContainsFunc(c.members, func(m *member) bool { return m.other }) {
		config = 1
	}
	g := &grid{title: "Nodes of cluster " + c.cluster, columns: []column{
		{title: "Node"}, {title: "State"}, {title: "Version", drop: 3}, {title: "Claims", right: true}, {title: "Up", right: true},
		{title: "Round trip", right: true, drop: 2}, {title: "Configuration", drop: config, least: 16},
	}}
	for _, m := range c.members {
		color := text.FgGreen
		switch {
		case m.heard && m.info.State == proto.Recovering && !m.clash && !m.other:
			color = text.FgYellow
		case !m.votes():
			color = text.FgRed
		}
		row := []string{printable.Text(m.name), paint(a.out, printable.Text(m.state()), color), "", "", "", "", ""}
		if m.heard {
			config := m.digest
			if m.other {
				config = fmt.Sprintf("%s: %s, lease %s, skew %s", m.digest, strings.Join(m.info.Nodes, " "), short(m.info.MaxTTL), short(m.info.Skew))
			}
			copy(row[2:], []string{printable.Text(m.info.Version), fmt.Sprint(m.info.Claims), age(max(time.Since(time.UnixMicro(m.info.Started)), 0)), round(m.roundTrip).String(), printable.Text(config)})
		}
		g.rows = append(g.rows, row)
	}
	width, _ := size(a.out)
	table, _ := g.render(width) // --json has all
	fmt.Fprint(a.out, table, wrapped(fmt.Sprintf("%d of %d nodes vote; a writer needs %d votes, a reader %d. Longest lease %s, allowed skew %s.",
		c.voting(), len(c.config.Nodes), c.need(quorum.Exclusive), c.need(quorum.Shared), short(c.config.MaxTTL), short(c.config.Skew)), width), "\n")
	for _, m := range c.members {
		if c.farAhead(m) {
			fmt.Fprint(a.out, wrapped(fmt.Sprintf("Tokens of node %s are %s ahead of its clock; qlock check explains what that means.", printable.Text(m.name), short(m.info.Ahead.Round(time.Second))), width), "\n")
		}
	}
}

// farAhead reports whether m gave tokens further ahead of its clock than other nodes
// follow: that clock was ahead, and is not any more.
func (c *census) farAhead(m *member) bool {
	return m.heard && !m.other && m.info.Ahead > c.config.MaxTTL
}

// round keeps what a person reads of a duration.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// censusReport is a census in JSON.
type censusReport struct {
	Cluster   string         `json:"cluster"`
	Voting    int            `json:"voting"`
	Writer    int            `json:"votes_for_a_writer"`
	Reader    int            `json:"votes_for_a_reader"`
	MaxLease  int64          `json:"max_lease_ms,omitempty"`
	MaxSkew   int64          `json:"max_skew_ms,omitempty"`
	NodeNames []string       `json:"node_names"`
	Nodes     []memberReport `json:"nodes"`
}

type memberReport struct {
	Name       string   `json:"name"`
	State      string   `json:"state"`
	Votes      bool     `json:"votes"`
	Reachable  bool     `json:"reachable"`
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
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (c *census) report() censusReport {
	r := censusReport{
		Cluster: c.cluster, Voting: c.voting(), Writer: c.need(quorum.Exclusive), Reader: c.need(quorum.Shared),
		NodeNames: []string{}, Nodes: []memberReport{},
	}
	if c.config != nil {
		r.MaxLease, r.MaxSkew, r.NodeNames = c.config.MaxTTL.Milliseconds(), c.config.Skew.Milliseconds(), c.config.Nodes
	}
	for _, m := range c.members {
		one := memberReport{Name: m.name, State: "unreachable", Votes: m.votes(), Reachable: m.heard, Clash: m.clash, Other: m.other}
		if m.heard {
			one.State, one.Version, one.Claims, one.Digest, one.NodeNames = string(m.info.State), m.info.Version, m.info.Claims, m.digest, m.info.Nodes
			one.Recovering, one.RoundTrip, one.Ahead = ms(m.recovering), ms(m.roundTrip), ms(m.info.Ahead)
			one.Started = time.UnixMicro(m.info.Started).UTC().Format(time.RFC3339Nano)
		}
		r.Nodes = append(r.Nodes, one)
	}
	return r
}
