package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	groups "github.com/qlock/qlock/members"
)

// groupMember is a member of a group in JSON.
type groupMember struct {
	ID        string `json:"id"`
	Client    string `json:"client"`
	Meta      string `json:"meta"`
	Token     uint64 `json:"token,omitempty"`
	For       int64  `json:"for_ms"`
	Lease     int64  `json:"lease_left_ms"`
	Uncertain bool   `json:"uncertain,omitempty"`
}

type groupReport struct {
	Time    string        `json:"time"`
	Cluster string        `json:"cluster"`
	Group   string        `json:"group"`
	Members []groupMember `json:"members"`
}

func (a *app) group() *cobra.Command {
	o := &look{}
	cmd := &cobra.Command{
		Use:     "members GROUP [flags]",
		Short:   "List the live members of a group",
		GroupID: groupSee,
		Long: `Ask the nodes which members of a group are alive: programs that joined it with the Go
package members, or as workers with the package partition. A member is listed until it
leaves, or until its lease has ended. For the nodes of the cluster see qlock nodes.

` + lookStatuses,
		Example: `  qlock members workers
  qlock members workers --watch
  qlock members workers --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("the name of the group is missing: %s", cmd.UseLine())
			}
			return oneName(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, "members", func(ctx context.Context, l *qlock.Locker) (*view, error) {
				g, err := groups.New(l, args[0])
				if err != nil {
					return nil, err
				}
				list, err := g.List(ctx)
				if err != nil {
					return nil, err
				}
				r := groupReport{Time: now(), Cluster: l.Cluster(), Group: args[0], Members: []groupMember{}}
				for _, m := range list {
					r.Members = append(r.Members, groupMember{m.ID, m.Client, m.Meta, m.Token, m.For.Milliseconds(), m.Lease.Milliseconds(), m.Uncertain})
				}
				return &view{func(width int) string { return groupText(args[0], l.Cluster(), list, width) }, r}, nil
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func groupText(group, cluster string, list []groups.Info, width int) string {
	if len(list) == 0 {
		return wrapped(fmt.Sprintf("Group %s of cluster %s has no members.", group, cluster), width) + "\n"
	}
	g := &grid{title: fmt.Sprintf("Members of group %s of cluster %s", group, cluster), columns: []column{
		{title: "Member", least: 12, end: true}, {title: "Client", least: 12, drop: 2}, {title: "For", right: true},
		{title: "Lease left", right: true, drop: 3}, {title: "Token", right: true, drop: 4}, {title: "Metadata", least: 20, drop: 1},
	}}
	uncertain := 0
	for _, m := range list {
		token := fmt.Sprint(m.Token)
		if m.Uncertain {
			uncertain++
			token = "not known"
		}
		g.rows = append(g.rows, []string{lockNamed(m.ID), printable.Text(m.Client), age(m.For), age(m.Lease), token, printable.Text(m.Meta)})
	}
	table, _ := g.render(width)
	say := several(len(list), "member") + "."
	if uncertain > 0 {
		say += fmt.Sprintf(" Unknown whether alive: %d, as too few nodes answer.", uncertain)
	}
	return table + wrapped(say, width) + "\n"
}
