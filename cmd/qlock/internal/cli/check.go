package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/nats-io/nuid"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/subject"
)

func (a *app) check() *cobra.Command {
	c := &connection{}
	var asJSON, strict bool
	var name string
	cmd := &cobra.Command{
		Use:     "check [flags]",
		Short:   "Find problems, and say what to do about them",
		GroupID: groupSee,
		Long: `Connect, query the nodes, compare their answers, measure their clocks, acquire a
lock, look at it as qlock ls and qlock info do, and release it. Then report what is
wrong and what to do about it.

If the user may list locks, look for deadlocks as well: clients that wait for each
other in a circle, each for a lock that the next one holds. A qlock run in the command
of another counts as a part of it. A script that holds a lock by qlock lock can export
QLOCK_NAME and QLOCK_TOKEN to the same effect. Programs that hold some permits of a
semaphore while they wait for more may be deadlocked or merely busy: that is a warning.

The lock has a random name under qlock.check. If your user may only acquire other
locks, give one with --lock.

Exit status: 0 if locks can be acquired, 1 if they cannot or if something threatens
them, 2 for bad flags. With --strict, warnings count as problems.`,
		Example: `  qlock check
  qlock check --cluster prod --strict --json
  qlock check --lock orders.check`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := &findings{}
			a.examine(cmd.Context(), c, name, r)
			if len(r.list) > 0 && r.list[0].err != nil && exitOf(r.list[0].err) == exitUsage {
				return r.list[0].err
			}
			if asJSON {
				if err := a.json(r.report()); err != nil {
					return err
				}
			} else {
				a.tell(r)
			}
			if r.count(problem) > 0 || strict && r.count(warning) > 0 {
				return &statusError{exitFailed, nil}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&asJSON, "json", "j", false, "write JSON")
	fs.BoolVar(&strict, "strict", false, "count warnings as problems")
	fs.StringVar(&name, "lock", "", "lock to acquire and release; default: a random one under qlock.check")
	c.flags(fs)
	return cmd
}

type grade string

const (
	fine    grade = "ok"
	warning grade = "warning"
	problem grade = "problem"
)

// finding is the result of one check.
type finding struct {
	Grade grade  `json:"grade"`
	About string `json:"about"` // a word for programs
	Text  string `json:"text"`
	Help  string `json:"help,omitempty"`
	err   error
}

type findings struct{ list []finding }

func (r *findings) add(g grade, about, text, help string) {
	r.list = append(r.list, finding{Grade: g, About: about, Text: text, Help: help})
}

func (r *findings) count(g grade) int {
	n := 0
	for _, f := range r.list {
		if f.Grade == g {
			n++
		}
	}
	return n
}

type checkReport struct {
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Findings []finding `json:"findings"`
}

func (r *findings) report() checkReport {
	return checkReport{r.count(problem), r.count(warning), append([]finding{}, r.list...)}
}

func (a *app) tell(r *findings) {
	color := map[grade]text.Color{fine: text.FgGreen, warning: text.FgYellow, problem: text.FgRed}
	for _, f := range r.list {
		fmt.Fprintf(a.out, "%s  %s\n", paint(a.out, fmt.Sprintf("%-7s", f.Grade), color[f.Grade]), printableLines(f.Text))
		if f.Help != "" {
			fmt.Fprintf(a.out, "         %s\n", f.Help)
		}
	}
	problems, warnings := r.count(problem), r.count(warning)
	if problems+warnings == 0 {
		fmt.Fprintln(a.out, "\nNo problems found.")
		return
	}
	fmt.Fprintf(a.out, "\n%s, %s.\n", several(problems, "problem"), several(warnings, "warning"))
}

func several(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// examine runs the checks one after the other, and stops where the remaining ones would be
// meaningless.
func (a *app) examine(ctx context.Context, c *connection, name string, r *findings) {
	l, err := c.connect("check", 10*time.Second)
	if err != nil {
		r.list = append(r.list, finding{Grade: problem, About: "connection", Text: plain(err), err: err})
		return
	}
	defer l.Close()
	r.add(fine, "connection", fmt.Sprintf("connected to NATS at %s as client %s, round trip %s", serverURL(l.Conn), l.client, roundTrip(l)), "")
	checkPayload(l, r)
	m, err := l.members(ctx, l.patience())
	if err != nil {
		r.add(problem, "permissions", plain(err), "qlock permissions client:"+l.client+" writes the permissions that are needed")
		return
	}
	switch {
	case len(m.Nodes) == 0:
		r.add(problem, "nodes", plain(nobody(l)), "start one with qlock node")
		return
	case !found(m):
		r.add(problem, "nodes", "no node that answered has a list of nodes", listHelp)
		checkMembers(m, r)
		return
	}
	checkMembers(m, r)
	checkClocks(m, r)
	checkAhead(m, r)
	// Otherwise it would fail for a reason that is known already.
	if canLock(m) {
		l.checkLock(ctx, name, r)
	}
}

func roundTrip(l *link) string {
	d, err := l.RTT()
	if err != nil {
		return "unknown"
	}
	return round(d).String()
}

// canLock reports whether enough nodes vote for an exclusive lock.
func canLock(m *qlock.Members) bool {
	enough := func(list []string) bool {
		return votingOf(m, list) >= (qlock.ClusterConfig{Nodes: list}).WriteQuorum()
	}
	return enough(m.Config.Nodes) && (m.Change == nil || enough(m.Change.Nodes))
}

// votingOf counts the nodes of a list that vote.
func votingOf(m *qlock.Members, list []string) (n int) {
	for i := range m.Nodes {
		if m.Nodes[i].Votes() && slices.Contains(list, m.Nodes[i].Name) {
			n++
		}
	}
	return n
}

func checkQuorum(m *qlock.Members, list []string, what string, r *findings) {
	need, voting := (qlock.ClusterConfig{Nodes: list}).WriteQuorum(), votingOf(m, list)
	summary := fmt.Sprintf("%d of %d %s vote, %d are needed", voting, len(list), what, need)
	switch {
	case voting < need:
		r.add(problem, "quorum", summary+": no lock can be acquired", "")
	case voting < len(list) && voting == need:
		r.add(warning, "quorum", summary+": no further node may fail", "")
	default:
		r.add(fine, "quorum", summary, "")
	}
}

// checkChange says that the list of nodes is being changed. That works for as long as one
// likes, but needs a majority of each list, so it should not stay so.
func checkChange(m *qlock.Members, r *findings) {
	c := m.Change
	checkQuorum(m, c.Nodes, "nodes of the new list", r)
	grade := fine
	if c.For > 2*max(c.MaxLease, m.Config.MaxLease) {
		grade = warning
	}
	r.add(grade, "change", strings.TrimSuffix(changeText(m), "."), "locks need a majority of both lists until then; any node of the old list may be needed to go back, so stop none of them")
}

func checkMembers(m *qlock.Members, r *findings) {
	switch {
	case m.Change != nil:
		checkQuorum(m, m.Config.Nodes, "nodes of the old list", r)
		checkChange(m, r)
	case found(m):
		checkQuorum(m, m.Config.Nodes, "nodes", r)
	}
	clashes := map[string]bool{}
	versions := map[string][]string{}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if !n.Answered {
			r.add(warning, "unreachable", fmt.Sprintf("node %s does not answer", n.Name), "check that it runs, and that its server has routes to the others")
			continue
		}
		switch n.Conflict {
		case qlock.ConflictName:
			if !clashes[n.Name] {
				r.add(problem, "name-clash", fmt.Sprintf("two nodes answer as %s, and clients count the votes of neither", n.Name), "stop one of them, and give each node a name of its own")
			}
			clashes[n.Name] = true
		case qlock.ConflictConfig:
			r.add(problem, "configuration", fmt.Sprintf("node %s has nodes %s, longest lease %s and skew %s; most have %s, %s and %s",
				n.Name, strings.Join(n.Config.Nodes, " "), short(n.Config.MaxLease), short(n.Config.MaxSkew),
				strings.Join(m.Config.Nodes, " "), short(m.Config.MaxLease), short(m.Config.MaxSkew)),
				"--nodes, --max-lease and --max-skew must be the same at every node; its votes do not count")
		case qlock.ConflictBehind:
			r.add(warning, "record", fmt.Sprintf("node %s does not know yet what the cluster has decided, epoch %d; it has epoch %d, and its votes do not count", n.Name, m.Config.Epoch, n.Config.Epoch),
				"it learns that from the other nodes by itself; if it does not, check that it reaches them")
		case qlock.ConflictAhead:
			r.add(fine, "record", fmt.Sprintf("node %s is the first to have epoch %d", n.Name, n.Config.Epoch), "")
		case qlock.ConflictUnlisted:
			r.add(problem, "configuration", fmt.Sprintf("node %s answers, but is not among the nodes of the cluster", n.Name), "")
		case qlock.ConflictDigest:
			r.add(problem, "configuration", fmt.Sprintf("node %s tells a configuration that is not the one by which it counts: its votes do not count", n.Name), "stop it")
		default:
			switch n.State {
			case qlock.NodeVoting:
			case qlock.NodeJoining, qlock.NodeRetired:
				switch {
				case lostDirectory(m, n):
					r.add(warning, "directory", fmt.Sprintf("node %s has another state directory than the node of that name in the list: it gives no votes", n.Name),
						fmt.Sprintf("change %s out of the list and then in again, or start it under another name", n.Name))
				case n.State == qlock.NodeJoining:
					r.add(fine, "joining", fmt.Sprintf("node %s waits until a change of the list adds it", n.Name), "")
				default:
					r.add(fine, "retired", fmt.Sprintf("node %s is in no list any more and can be stopped", n.Name), "")
				}
			case qlock.NodeRecovering:
				r.add(warning, "recovering", fmt.Sprintf("node %s may have forgotten votes, and gives none for %v", n.Name, n.Recovering.Round(100*time.Millisecond)),
					"it crashed, or its state is new: it recovers by itself")
			default:
				r.add(warning, "state", fmt.Sprintf("node %s is %s", n.Name, n.State), "")
			}
		}
		versions[n.Version] = append(versions[n.Version], n.Name)
	}
	checkVersions(versions, qlock.Version(), r)
}

// lostDirectory reports whether a node gives no votes though the list has its name: its state
// directory was lost, or copied, since it became a node, so it is another node now.
func lostDirectory(m *qlock.Members, n *qlock.Member) bool {
	return (n.State == qlock.NodeJoining || n.State == qlock.NodeRetired) && n.Conflict == "" && m.Config.Epoch > 0 &&
		(slices.Contains(m.Config.Nodes, n.Name) || m.Change != nil && slices.Contains(m.Change.Nodes, n.Name))
}

func checkVersions(versions map[string][]string, mine string, r *findings) {
	same := true
	for _, v := range slices.Sorted(maps.Keys(versions)) {
		if v == mine {
			continue
		}
		names := versions[v]
		runs := fmt.Sprintf("%s %s version %s, this program is ", strings.Join(names, ", "), verb(len(names), "runs", "run"), v)
		switch {
		case unreleased(v) || unreleased(mine):
			same = false
			r.add(warning, "version", runs+mine+"; which of them is newer cannot be told, as one is no release", "run the same release everywhere")
		case compareVersions(v, mine) < 0:
			same = false
			r.add(warning, "version", runs+mine, "upgrade the nodes one after the other, see docs/operations.md")
		case compareVersions(v, mine) > 0:
			same = false
			r.add(warning, "version", runs+"only "+mine, "upgrade this program")
		}
	}
	if same {
		r.add(fine, "version", "all nodes run version "+mine, "")
	}
}

// unreleased reports whether v is the version of a working copy whose history does not show
// the last release. Go numbers such a build v0.0.0 with a commit, and qlock numbers it
// 0.0.0 without one.
func unreleased(v string) bool { return strings.HasPrefix(strings.TrimPrefix(v, "v"), "0.0.0-") }

func verb(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// compareVersions compares versions such as 1.2.3 and 1.2.4, and ignores what follows a -
// or +.
func compareVersions(a, b string) int {
	numbers := func(s string) []int {
		s = strings.TrimPrefix(s, "v")
		if i := strings.IndexAny(s, "-+"); i >= 0 {
			s = s[:i]
		}
		var out []int
		for _, p := range strings.Split(s, ".") {
			n, _ := strconv.Atoi(p)
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(numbers(a), numbers(b))
}

// checkAhead checks whether tokens of nodes are still ahead because a clock was ahead.
func checkAhead(m *qlock.Members, r *findings) {
	var far []*qlock.Member
	rest := 0
	for i := range m.Nodes {
		switch n := &m.Nodes[i]; {
		case farAhead(m, n):
			far = append(far, n)
		case n.Votes():
			rest++
		}
	}
	if len(far) == 0 {
		return
	}
	grade, outcome := warning, "the other nodes that vote are a quorum without it"
	if need := m.Config.WriteQuorum(); rest < need {
		grade, outcome = problem, fmt.Sprintf("only %d of the other nodes vote, %d are needed: names locked while its clock was ahead may not be locked again until then", rest, need)
	}
	for _, n := range far {
		r.add(grade, "tokens", fmt.Sprintf("node %s gave tokens up to %v ahead of its clock, which was set back since; %s", n.Name, n.TokensAhead.Round(time.Second), outcome),
			"keep the other nodes running until then, or see \"A clock that was ahead\" in docs/operations.md")
	}
}

func checkClocks(m *qlock.Members, r *findings) {
	off := map[string]time.Duration{}
	for i := range m.Nodes {
		if n := &m.Nodes[i]; n.Answered && n.Conflict == "" {
			off[n.Name] = n.ClockOffset
		}
	}
	maxLease, skew := m.Config.MaxLease, m.Config.MaxSkew
	if c := m.Change; c != nil { // Config has the shorter lease and the larger skew of both
		maxLease, skew = c.MaxLease, c.MaxSkew
	}
	checkOffsets(off, maxLease, skew, r)
}

// checkOffsets compares the nodes' clocks with this machine's, and with each other.
func checkOffsets(off map[string]time.Duration, maxLease, skew time.Duration, r *findings) {
	before := len(r.list)
	var first, last string
	for _, n := range slices.Sorted(maps.Keys(off)) {
		if first == "" || off[n] < off[first] {
			first = n
		}
		if last == "" || off[n] > off[last] {
			last = n
		}
		switch d := off[n]; {
		case -d > skew:
			r.add(problem, "clocks", fmt.Sprintf("the clock of this machine is %v ahead of node %s, %s is allowed: that node refuses locks requested here", round(-d), n, short(skew)), "set the clocks")
		case -d > skew/2 || d > skew:
			r.add(warning, "clocks", fmt.Sprintf("the clocks of this machine and of node %s differ by %v", n, round(d.Abs())), "set the clocks: a client whose clock is slow jumps ahead in every queue")
		}
	}
	spread, most := off[last]-off[first], maxLease-skew
	switch {
	case spread > most:
		r.add(problem, "clocks", fmt.Sprintf("the clocks of nodes %s and %s differ by %v, %s is allowed: tokens may decrease when nodes lose their state", first, last, round(spread), short(most)), "set the clocks")
	case len(r.list) == before:
		r.add(fine, "clocks", fmt.Sprintf("clocks agree within %v (this machine's and those of %d nodes)", round(max(spread, off[last].Abs(), off[first].Abs())), len(off)), "")
	}
}

// checkLock acquires and releases a lock.
func (l *link) checkLock(parent context.Context, name string, r *findings) {
	if name == "" {
		name = "qlock.check." + nuid.Next()
	}
	ctx, cancel := context.WithTimeout(parent, l.timeout)
	defer cancel()
	locker, err := l.locker(ctx, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		r.add(problem, "lock", plain(err), "")
		return
	}
	defer func() { _ = locker.Close() }()
	before := len(l.denials())
	began := time.Now()
	// Uses the longest note that is possible: a longer one is cut.
	lock, err := locker.TryLock(qlock.ContextWithNote(ctx, strings.Repeat("<", 1<<10)), name)
	took := time.Since(began)
	switch {
	case errors.Is(err, qlock.ErrHeld):
		r.add(fine, "lock", fmt.Sprintf("lock %s is held by another client, so locks can be acquired", name), "")
		return
	case errors.Is(err, qlock.ErrRefused) && len(l.denials()) > before:
		r.add(problem, "permissions", plain(err), "qlock permissions client:"+l.client+" writes the permissions that are needed; or use --lock with a lock that this user may acquire")
		return
	case err != nil:
		r.add(problem, "lock", plain(err), "")
		return
	}
	l.checkLook(parent, locker, name, r)
	err = lock.Unlock(ctx)
	_ = l.FlushTimeout(l.timeout) // so that denials by NATS are known
	// Inspecting locks needs a separate permission, which few users have.
	admin := strings.TrimSuffix(subject.Family(l.cluster, subject.FamilyAdmin), subject.Rest)
	looking := func(err error) bool { return strings.Contains(err.Error(), `"`+admin) }
	switch d := slices.DeleteFunc(l.denials(), looking); {
	case err != nil:
		r.add(problem, "lock", plain(err), "")
	case len(d) > before:
		r.add(warning, "permissions", "a lock was acquired, but some messages could not be published: "+plain(d[before]), "qlock permissions client:"+l.client+" writes what is needed")
	default:
		r.add(fine, "lock", fmt.Sprintf("a lock was acquired in %v and released", round(took)), "")
	}
}

// checkLook does what the commands that display locks need.
func (l *link) checkLook(ctx context.Context, locker *qlock.Locker, name string, r *findings) {
	// Silent nodes are waited for twice.
	ctx, cancel := context.WithTimeout(ctx, max(l.timeout, 3*time.Second))
	defer cancel()
	began := time.Now()
	all, err := locker.Locks(ctx, "")
	what := "qlock ls"
	if err == nil {
		what = "qlock info"
		_, err = locker.Inspect(ctx, name)
	}
	switch {
	case errors.Is(err, qlock.ErrRefused):
		r.add(fine, "list", "this user may not list locks", "")
	case err != nil:
		r.add(problem, "list", "locks cannot be shown ("+what+"): "+plain(err), "the log of a node says why it does not answer; --timeout waits longer")
	default:
		r.add(fine, "list", fmt.Sprintf("%s shown in %v", several(len(all), "lock"), round(time.Since(began))), "")
		checkDeadlocks(ctx, locker, all, r)
	}
}

// checkPayload checks how long messages may be on this connection. A node's own server may
// have a lower limit.
func checkPayload(l *link, r *findings) {
	const enough, least = 8 << 10, 1 << 10
	switch most := l.MaxPayload(); {
	case most < least:
		r.add(problem, "payload", fmt.Sprintf("the NATS server accepts messages of %d bytes, and many messages of qlock are longer", most), fmt.Sprintf("set its max_payload to %d or more", enough))
	case most < enough:
		r.add(warning, "payload", fmt.Sprintf("the NATS server accepts messages of %d bytes: long notes are left out, and long names may not fit", most), fmt.Sprintf("set its max_payload to %d or more", enough))
	}
}
