package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// look has the flags of commands that display locks, once or repeatedly.
type look struct {
	connection
	json, watch bool
	interval    time.Duration
}

func (o *look) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.json, "json", "j", false, "write JSON; with --watch one line each time")
	fs.BoolVarP(&o.watch, "watch", "w", false, "repeat until Ctrl-C")
	durationFlag(fs, &o.interval, "interval", 2*time.Second, 100*time.Millisecond, "interval of --watch")
	o.connection.flags(fs)
}

const lookStatuses = `Exit status: 0; 121 no quorum; 123 refused by NATS permissions (the role inspector is
needed); 1 another failure; 2 bad flags. --watch continues when there is no quorum.`

// view is the result of one look, for people or for a program.
type view struct {
	text func(width int) string
	json any
}

// inspector returns a Locker for queries to the nodes. The caller must call leave when it
// is done.
func (c *connection) inspector(ctx context.Context, role string) (locker *qlock.Locker, leave func(), err error) {
	l, err := c.connect(role, 10*time.Second)
	if err != nil {
		return nil, nil, err
	}
	// No log: the errors say the same.
	locker, err = l.locker(ctx, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		l.Close()
		return nil, nil, lookError(err)
	}
	return locker, func() { _ = locker.Close(); l.Close() }, nil
}

// run calls f once or repeatedly, as the flags say, and displays the result.
func (o *look) run(ctx context.Context, a *app, role string, f func(context.Context, *qlock.Locker) (*view, error)) error {
	ctx, stop := interrupted(ctx)
	defer stop()
	// A second signal ends a program that is blocked by the reader of its output.
	context.AfterFunc(ctx, stop)
	locker, leave, err := o.inspector(ctx, role)
	if err != nil {
		return err
	}
	defer leave()
	once := func() (*view, error) {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		v, err := f(ctx, locker)
		return v, lookError(err)
	}
	if !o.watch {
		v, err := once()
		if err != nil {
			return err
		}
		return o.write(a, v, "  ")
	}
	next := time.NewTicker(o.interval)
	defer next.Stop()
	for {
		v, err := once()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && exitOf(err) != exitNoQuorum:
			return err
		case o.json || !terminal(a.out):
			if err != nil {
				_ = a.status(err) // reported; the loop continues
			} else if err := o.write(a, v, ""); err != nil {
				return err
			}
		default:
			if err := o.redraw(a.out, v, err); err != nil {
				return err
			}
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *look) write(a *app, v *view, indent string) error {
	var b []byte
	var err error
	if o.json {
		b, err = jsonText(v.json, indent)
	} else {
		width, _ := size(a.out)
		b = []byte(v.text(width))
	}
	if err == nil {
		_, err = a.out.Write(b)
	}
	return err
}

// redraw replaces the previous view by the current one, without flicker, and shows no more
// of it than fits.
func (o *look) redraw(out *os.File, v *view, fault error) error {
	width, height := size(out)
	head := fmt.Sprintf("%s, every %s, Ctrl-C ends it", time.Now().Format("15:04:05"), short(o.interval))
	lines := []string{paint(out, head, text.Faint), ""}
	if fault != nil {
		lines = append(lines, strings.Split(paint(out, wrapped(printableLines(plain(fault)), width), text.FgRed), "\n")...)
	} else {
		lines = append(lines, strings.Split(strings.TrimSuffix(v.text(width), "\n"), "\n")...)
	}
	if most := height - 1; most > 1 && len(lines) > most {
		hidden := len(lines) - most + 1
		lines = append(lines[:most-1], paint(out, fmt.Sprintf("… %d more lines", hidden), text.Faint))
	}
	var b bytes.Buffer
	b.WriteString("\x1b[H")
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	_, err := out.Write(b.Bytes())
	return err
}

// lookError adds what the user can do about the error.
func lookError(err error) error {
	if err == nil {
		return nil
	}
	status := lockStatus(err)
	switch status {
	case exitNoQuorum:
		err = fmt.Errorf("%w; qlock nodes shows which nodes answer, and qlock check finds problems", err)
	case exitRefused:
		err = fmt.Errorf("%w; qlock permissions inspector:NAME or operator:NAME writes the permissions that are needed", err)
	case exitSelf:
		status = exitFailed
	}
	return &statusError{status, err}
}

// claimReport is a claim in JSON.
type claimReport struct {
	ID      string   `json:"claim"`
	Client  string   `json:"client"`
	Note    string   `json:"note"`
	Mode    string   `json:"mode"`
	Held    bool     `json:"held"`
	MayHold bool     `json:"may_hold,omitempty"`
	Token   uint64   `json:"token,omitempty"`
	For     int64    `json:"for_ms"`
	Lease   int64    `json:"lease_left_ms,omitempty"`
	Asked   string   `json:"asked"`
	Kept    bool     `json:"kept,omitempty"`
	Evicted bool     `json:"evicted,omitempty"`
	Voted   []string `json:"voted"`
	Queued  []string `json:"queued"`
}

// lockReport is a lock in JSON.
type lockReport struct {
	Name string `json:"name"`
	Use  *use   `json:"use,omitempty"` // of locks that recipes make
	// The name in the form that permissions are written with, which no text encoding changes.
	Encoded  string        `json:"encoded"`
	Holding  int           `json:"holding"`
	Waiting  int           `json:"waiting"`
	Holders  []claimReport `json:"holders"`
	Queue    []claimReport `json:"queue"`
	Answered []string      `json:"answered"`
	Waits    []string      `json:"recovering"`
	Silent   []string      `json:"silent"`
}

// lookReport has the fields that all reports have in common.
type lookReport struct {
	Time    string       `json:"time"`
	Cluster string       `json:"cluster"`
	Locks   []lockReport `json:"locks"`
}

type infoReport struct {
	Time    string `json:"time"`
	Cluster string `json:"cluster"`
	lockReport
}

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }

func claimReports(claims []qlock.ClaimInfo) []claimReport {
	out := []claimReport{}
	for i := range claims {
		c := &claims[i]
		out = append(out, claimReport{
			ID: c.ID, Client: c.Client, Note: c.Note, Mode: modeOf(c), Held: c.Held, MayHold: c.MayHold, Token: c.Token,
			For: c.For.Milliseconds(), Lease: c.Lease.Milliseconds(), Asked: c.Asked.UTC().Format(time.RFC3339Nano),
			Kept: c.Kept, Evicted: c.Evicted, Voted: append([]string{}, c.Voted...), Queued: append([]string{}, c.Queued...),
		})
	}
	return out
}

func reportOf(i *qlock.LockInfo) lockReport {
	return lockReport{
		Name: i.Name, Use: useOf(i.Name), Encoded: encoded(i.Name), Holding: i.Holding, Waiting: i.Waiting,
		Holders: claimReports(i.Holders), Queue: claimReports(i.Queue),
		Answered: append([]string{}, i.Answered...), Silent: append([]string{}, i.Silent...),
		Waits: append([]string{}, i.Recovering...),
	}
}

func modeOf(c *qlock.ClaimInfo) string {
	if c.Shared {
		return "shared"
	}
	return "exclusive"
}

func (a *app) ls() *cobra.Command {
	o := &look{}
	cmd := &cobra.Command{
		Use:     "ls [PATTERN] [flags]",
		Short:   "List the locks and their holders",
		GroupID: groupSee,
		Long: `Ask the nodes which locks exist, and combine their answers: the holder of each lock,
its note and token, how long it has held the lock, how much of the lease is left, how
many clients wait, and how many nodes voted for it. PATTERN limits this to some
locks, written as in NATS subjects: orders.> or stock.*.count.

Locks that recipes make are shown as what they are: the leader of an election, a
permit of a semaphore, a member of a group, a partition, or a key of a queue.

If fewer nodes than all voted for a lock, it may be changing hands at this moment, or
some nodes do not answer or disagree: qlock info shows the view of each node. A
terminal that is too narrow for all columns shows the more important ones.

` + lookStatuses,
		Example: `  qlock ls
  qlock ls 'orders.>' --watch
  qlock ls --json`,
		Args: onePattern,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, "ls", func(ctx context.Context, l *qlock.Locker) (*view, error) {
				locks, err := l.Locks(ctx, strings.Join(args, ""))
				if err != nil {
					return nil, err
				}
				r := lookReport{Time: now(), Cluster: l.Cluster(), Locks: []lockReport{}}
				for i := range locks {
					r.Locks = append(r.Locks, reportOf(&locks[i]))
				}
				return &view{func(width int) string { return a.listing(l.Cluster(), locks, width) }, r}, nil
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

// listing returns the table of qlock ls.
func (a *app) listing(cluster string, locks []qlock.LockInfo, width int) string {
	if len(locks) == 0 {
		return wrapped(fmt.Sprintf("Cluster %s has no locks that are held or waited for.", cluster), width) + "\n"
	}
	g := &grid{title: "Locks of cluster " + cluster, columns: []column{
		{title: "Lock", least: 20, end: true}, {title: "Mode", drop: 2}, {title: "Holder", least: 12}, {title: "Held for", right: true},
		{title: "Lease left", right: true, drop: 4}, {title: "Waiting", right: true}, {title: "Votes", drop: 3},
		{title: "Token", right: true, drop: 5}, {title: "Note", least: 20, drop: 1},
	}}
	uses := usesOf(locks)
	row := func(use string, cells ...string) {
		if uses != nil {
			cells = slices.Insert(cells, 1, use)
		}
		g.rows = append(g.rows, cells)
	}
	if uses != nil { // else the column would be empty
		g.columns = slices.Insert(g.columns, 1, column{title: "Use", drop: 6})
	}
	free, waiting, split, unclear := 0, 0, 0, 0
	for i := range locks {
		info := &locks[i]
		waiting += info.Waiting
		nodes := len(info.Answered) + len(info.Silent)
		votes := func(n int) string {
			s := fmt.Sprintf("%d/%d", n, nodes)
			if n < nodes {
				s = paint(a.out, s, text.FgYellow)
			}
			return s
		}
		name, use, wait := lockNamed(info.Name), uses[info.Name], ""
		if info.Waiting > 0 {
			wait = fmt.Sprint(info.Waiting)
		}
		most := 0
		for i := range info.Queue {
			most = max(most, len(info.Queue[i].Voted))
		}
		if most > 0 {
			split++
		}
		if len(info.Holders) == 0 {
			who := "nobody"
			if mayHold(info) != nil {
				who = "not known"
				unclear++
			} else {
				free++
			}
			row(use, name, "", paint(a.out, who, text.FgYellow), "", "", wait, votes(most), "", "")
		}
		for k := range info.Holders {
			h := &info.Holders[k]
			row(use, name, modeOf(h), a.holder(h), age(h.For), age(h.Lease), wait, votes(len(h.Voted)), fmt.Sprint(h.Token), printable.Text(h.Note))
			name, use, wait = "", "", "" // the same lock, with several holders
		}
		if more := info.Holding - len(info.Holders); more > 0 {
			row("", "", "", fmt.Sprintf("and %d more", more), "", "", "", "", "", "")
		}
	}
	table, without := g.render(width)
	say := several(len(locks), "lock") + ", nobody waits."
	if waiting > 0 {
		say = fmt.Sprintf("%s, %s %s.", several(len(locks), "lock"), several(waiting, "claim"), verb(waiting, "waits", "wait"))
	}
	if free > 0 {
		say += fmt.Sprintf(" Not held: %d.", free)
	}
	if unclear > 0 {
		say += fmt.Sprintf(" Unknown whether held: %d.", unclear)
	}
	lines := []string{wrapped(say, width)}
	if l := locks[0].Lists; len(l) == 2 && !slices.Equal(l[0], l[1]) {
		lines = append(lines, wrapped(fmt.Sprintf("The list of nodes is being changed from %s to %s: a lock needs enough votes of both.", strings.Join(l[0], " "), strings.Join(l[1], " ")), width))
	}
	if split > 0 {
		lines = append(lines, wrapped(fmt.Sprintf("The nodes disagree on %d: qlock info NAME shows the view of each node.", split), width))
	}
	if s := locks[0].Silent; len(s) > 0 {
		lines = append(lines, paint(a.out, wrapped(fmt.Sprintf("No answer from %s: what only %s would report is missing.", strings.Join(s, ", "), verb(len(s), "it", "they")), width), text.FgYellow))
	}
	if r := locks[0].Recovering; len(r) > 0 {
		lines = append(lines, paint(a.out, wrapped(waitingNodes(r), width), text.FgYellow))
	}
	if len(without) > 0 {
		slices.Reverse(without)
		lines = append(lines, paint(a.out, wrapped(fmt.Sprintf("Hidden columns, for lack of room: %s.", strings.ToLower(strings.Join(without, ", "))), width), text.Faint))
	}
	return table + strings.Join(lines, "\n") + "\n"
}

// holder returns the name of a client, with the state of its claim if that is unusual.
func (a *app) holder(c *qlock.ClaimInfo) string {
	if c.Evicted {
		return printable.Text(c.Client) + paint(a.out, " evicted", text.FgRed)
	}
	return printable.Text(c.Client)
}

func (a *app) info() *cobra.Command {
	o := &look{}
	cmd := &cobra.Command{
		Use:     "info NAME [flags]",
		Short:   "Show everything that the nodes know about one lock",
		GroupID: groupSee,
		Long: `Ask the nodes about one lock: its holders, its queue in order, and the view of each
node. Claims are shown by the first digits of their ids, as qlock unlock --claim
accepts them. --json shows the full ids, and everything that does not fit on a screen.

` + lookStatuses,
		Example: `  qlock info nightly
  qlock info 'price list' --json
  qlock info nightly --watch`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := subject.EncodeName(args[0]); err != nil {
				return usage("NAME: %w", err)
			}
			return o.run(cmd.Context(), a, "info", func(ctx context.Context, l *qlock.Locker) (*view, error) {
				info, err := l.Inspect(ctx, args[0])
				if err != nil {
					return nil, err
				}
				return &view{
					func(width int) string { return a.renderInfo(l.Cluster(), info, width) },
					infoReport{now(), l.Cluster(), reportOf(info)},
				}, nil
			})
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

// mostShown is the largest number of holders, waiters and claims of a node that text output
// shows.
const mostShown = 20

// renderInfo returns the text of qlock info.
func (a *app) renderInfo(cluster string, info *qlock.LockInfo, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Lock %s of cluster %s\n\n", paint(a.out, lockNamed(info.Name), text.Bold), cluster)
	if len(info.Holders) == 0 {
		fmt.Fprintf(&b, "%s\n\n", wrapped(noHolder(info), width))
	}
	for i := range info.Holders {
		if i == mostShown {
			fmt.Fprintf(&b, "      and  %d more\n\n", len(info.Holders)-i)
			break
		}
		h := &info.Holders[i]
		line := func(key, value string) {
			if width > 20 {
				value = strings.ReplaceAll(wrapped(value, width-12), "\n", "\n           ")
			}
			fmt.Fprintf(&b, "%9s  %s\n", key, value)
		}
		line("Holder", a.holder(h))
		line("Mode", modeOf(h))
		if h.Note != "" {
			line("Note", printable.Text(h.Note))
		}
		line("Token", fmt.Sprint(h.Token))
		line("Held for", age(h.For))
		line("Lease", fmt.Sprintf("%s left, %s", age(h.Lease), leaseGoesOn(h)))
		if h.Kept {
			line("Kept", "handed on among goroutines of its client, or retained until other clients want it")
		}
		line("Votes", votesOfLists(info, h))
		line("Claim", shortID(h.ID))
		fmt.Fprintln(&b)
	}
	if len(info.Queue) > 0 {
		b.WriteString(a.queue(info, width))
	}
	if len(info.Holders)+len(info.Queue)+len(info.Silent) > 0 {
		b.WriteString(a.views(info, width))
	}
	return b.String()
}

// votesOfLists says how many nodes vote for a claim: of each list while the list of nodes changes.
func votesOfLists(info *qlock.LockInfo, c *qlock.ClaimInfo) string {
	if len(info.Lists) < 2 {
		return fmt.Sprintf("%d of %d", len(c.Voted), len(info.Answered)+len(info.Silent))
	}
	count := func(list []string) (n int) {
		for _, name := range c.Voted {
			if slices.Contains(list, name) {
				n++
			}
		}
		return n
	}
	before, next := info.Lists[0], info.Lists[1]
	return fmt.Sprintf("%d of %d nodes of the old list, %d of %d of the new list: the list is being changed", count(before), len(before), count(next), len(next))
}

func noHolder(info *qlock.LockInfo) string {
	if err := unclear(info); err != nil {
		return "Unknown whether it is held: " + err.Error() + "."
	}
	switch {
	case len(info.Queue) == 0 && len(info.Silent) == 0:
		return "It has no holder and no waiters."
	case len(info.Queue) == 0:
		return "No node that answered knows of a holder or a waiter."
	}
	return "It has no holder: no claim has enough votes."
}

// mayHold returns a claim that may be held although too few nodes answered to be certain,
// or nil.
func mayHold(info *qlock.LockInfo) *qlock.ClaimInfo {
	for i := range info.Queue {
		if info.Queue[i].MayHold {
			return &info.Queue[i]
		}
	}
	return nil
}

// unclear returns why it is not certain whether a lock without a holder is held. It returns
// nil if the lock is certainly not held, or has holders.
func unclear(info *qlock.LockInfo) error {
	if len(info.Holders) > 0 {
		return nil
	}
	c := mayHold(info)
	if c == nil && info.Complete() {
		return nil
	}
	var why []string
	if c != nil {
		why = append(why, fmt.Sprintf("%s %s may hold it", printable.Text(c.Client), shortID(c.ID)))
	}
	if len(info.Silent) > 0 {
		why = append(why, "no answer from "+strings.Join(info.Silent, ", "))
	}
	if len(info.Recovering) > 0 {
		why = append(why, fmt.Sprintf("%s %s no votes yet, and may have forgotten", strings.Join(info.Recovering, ", "), verb(len(info.Recovering), "gives", "give")))
	}
	return errors.New(strings.Join(why, "; "))
}

func waitingNodes(nodes []string) string {
	return fmt.Sprintf("%s %s no votes yet: what %s may have forgotten is missing.", strings.Join(nodes, ", "),
		verb(len(nodes), "gives", "give"), verb(len(nodes), "it", "they"))
}

func leaseGoesOn(c *qlock.ClaimInfo) string {
	if c.Evicted {
		return "not extended any more: it was evicted"
	}
	return "extended while the client lives"
}

func (a *app) queue(info *qlock.LockInfo, width int) string {
	g := &grid{title: "Waiting, the next one first", columns: []column{
		{title: "#", right: true}, {title: "Client", least: 12}, {title: "Mode"}, {title: "Waits for", right: true, drop: 2},
		{title: "Votes", drop: 3}, {title: "Claim"}, {title: "Note", least: 12, drop: 1},
	}}
	for i := range info.Queue[:min(len(info.Queue), mostShown)] {
		q := &info.Queue[i]
		votes := fmt.Sprintf("%d/%d", len(q.Voted), len(info.Answered)+len(info.Silent))
		if len(q.Voted) > 0 {
			votes = paint(a.out, votes, text.FgYellow)
		}
		g.rows = append(g.rows, []string{fmt.Sprint(i + 1), a.holder(q), modeOf(q), age(q.For), votes, shortID(q.ID), printable.Text(q.Note)})
	}
	table, _ := g.render(width)
	if more := len(info.Queue) - mostShown; more > 0 {
		table += fmt.Sprintf("and %d more, see --json\n", more)
	}
	return table
}

// views returns a table of what each node knows by itself.
func (a *app) views(info *qlock.LockInfo, width int) string {
	g := &grid{title: "View of each node", columns: []column{{title: "Node"}, {title: "Voted for", least: 20}, {title: "Waiting", right: true}}}
	nodes := append(slices.Clone(info.Answered), info.Silent...)
	slices.Sort(nodes)
	views := map[string]int{}
	for _, n := range nodes {
		votes, waiting := "nobody", 0
		var voted []string
		for _, c := range slices.Concat(info.Holders, info.Queue) {
			if slices.Contains(c.Voted, n) {
				voted = append(voted, printable.Text(c.Client)+" "+shortID(c.ID))
			}
			if slices.Contains(c.Queued, n) {
				waiting++
			}
		}
		if len(voted) > 0 {
			votes = strings.Join(voted, ", ")
		}
		count := fmt.Sprint(waiting)
		if slices.Contains(info.Silent, n) {
			votes, count = paint(a.out, "no answer", text.FgYellow), ""
		} else {
			views[votes]++
		}
		g.rows = append(g.rows, []string{n, votes, count})
	}
	table, _ := g.render(width)
	if len(views) > 1 {
		table += wrapped("The nodes disagree. This is normal while a lock changes hands. If it persists, see qlock nodes.", width) + "\n"
	}
	return table
}

// shortID returns a short form of a claim's id for people. It has enough of the instance to
// distinguish the claims on one lock.
func shortID(id string) string {
	instance, seq, _ := strings.Cut(id, "/")
	return instance[:min(len(instance), 8)] + "/" + seq
}

// isClaim reports whether s denotes the claim id: the complete id, its beginning, or
// shortID.
func isClaim(id, s string) bool {
	instance, seq, _ := strings.Cut(id, "/")
	start, number, numbered := strings.Cut(s, "/")
	return start != "" && strings.HasPrefix(instance, start) && (!numbered || number == seq)
}

// pick returns the chosen claims: one by its id, the holders with a client's name, or all
// holders.
func pick(info *qlock.LockInfo, id, client string) ([]qlock.ClaimInfo, error) {
	name := lockNamed(info.Name)
	switch {
	case id != "":
		var found []qlock.ClaimInfo
		for _, c := range slices.Concat(info.Holders, info.Queue) {
			if isClaim(c.ID, id) {
				found = append(found, c)
			}
		}
		switch len(found) {
		case 0:
			return nil, fmt.Errorf("no claim on %s has an id that begins with %q: qlock info %s shows the claims; it may have ended already", name, id, name)
		case 1:
			return found, nil
		}
		return nil, usage("--claim %q: %d claims on %s have ids that begin like this, such as %s and %s", id, len(found), name, found[0].ID, found[1].ID)
	case client != "":
		found := slices.DeleteFunc(slices.Clone(info.Holders), func(c qlock.ClaimInfo) bool { return c.Client != client })
		if len(found) == 0 {
			return nil, fmt.Errorf("%s is not held by %s: qlock info %s shows the holders; use --claim to evict a waiter", name, printable.Text(client), name)
		}
		return found, nil
	}
	return info.Holders, nil
}

// has returns the current state of the claim at the nodes, or nil if they no longer have
// it.
func has(info *qlock.LockInfo, claim *qlock.ClaimInfo) *qlock.ClaimInfo {
	for _, c := range slices.Concat(info.Holders, info.Queue) {
		if c.ID == claim.ID && c.Client == claim.Client {
			return &c
		}
	}
	return nil
}
