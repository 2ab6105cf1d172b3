package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

func (a *app) watch() *cobra.Command {
	c := &connection{anyCluster: true}
	var asJSON, events bool
	var count int
	cmd := &cobra.Command{
		Use:     "watch [PATTERN] [flags]",
		Short:   "Show events of locks as they happen",
		GroupID: groupSee,
		Long: `Show which clients acquire locks, wait for them, release them and lose them, as it
happens. PATTERN limits this to some locks, written as in NATS subjects: orders.> or
stock.*.count. --cluster '*' shows all clusters. Names, notes and other text from
clients are shown without anything that could confuse a terminal.

  acquired   a client now holds the lock
  waiting    a client asked for the lock and did not get it at once
  recalled   a node takes its vote back from a younger request, for an older one
  released   the lock was released
  lost       too few nodes confirmed the lock in time, or it was evicted

Waiting and recalled are seen in the requests, which need the role auditor. With the
role observer these lines are missing.`,
		Example: `  qlock watch
  qlock watch 'orders.>' --json
  qlock watch --count 10`,
		Args: onePattern,
		RunE: func(cmd *cobra.Command, args []string) error {
			pattern := ">"
			if len(args) == 1 {
				pattern = args[0]
			}
			ctx, stop := interrupted(cmd.Context())
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends a program that waits for who reads its output
			// What goes on while there is no connection is not seen, and whoever watches
			// must know.
			log, _ := (&logs{level: "info", format: "text"}).logger(a.err)
			l, err := c.connect("watch", 10*time.Second, connectionLogs(log)...)
			if err != nil {
				return err
			}
			defer l.Close()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			w := newWatcher(a.out, asJSON, c.cluster)
			w.limit, w.enough = count, cancel
			if err := w.listen(l, pattern, !events); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "Locks of cluster %s on %s, Ctrl-C ends it.\n", c.cluster, serverURL(l.Conn))
			select {
			case <-ctx.Done():
			case <-l.closed:
				return errors.Join(l.lostForEver(), w.close())
			}
			return w.close()
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&asJSON, "json", "j", false, "write one line of JSON per event")
	fs.BoolVar(&events, "events", false, "use events only; do not show waiting clients")
	countFlag(fs, &count, "count", 0, 1, 1<<31-1, "exit after this many events; default: no limit")
	c.flags(fs)
	return cmd
}

func onePattern(_ *cobra.Command, args []string) error {
	switch {
	case len(args) > 1:
		return usage("one pattern is needed, got %d: quote * and > for the shell", len(args))
	case len(args) == 1 && !subject.IsPattern(args[0]):
		return usage("PATTERN %q: write it as in NATS subjects, such as orders.> or stock.*.count, with %%20 for a blank", args[0])
	}
	return nil
}

// watcher prints what it hears.
type watcher struct {
	out     *os.File
	json    bool
	cluster string
	pattern string // of the names wanted from messages whose subjects have none
	limit   int
	enough  func()

	mu      sync.Mutex // guards what follows, and out
	printed int
	asks    map[string]*ask      // not granted yet
	early   map[askKey]time.Time // granted before the request was heard

	done, doneBefore map[string]struct{} // requests that may be heard again, and mean nothing
	err              error
}

// ask is a request for a lock that may turn out to wait.
type ask struct {
	entry
	made  time.Time
	timer *time.Timer
}

// askKey is what a request and the event that it ends with have in common.
type askKey struct{ cluster, client, name string }

// entry is one thing that was seen.
type entry struct {
	Time     time.Time `json:"time"`
	What     string    `json:"what"`
	Cluster  string    `json:"cluster"`
	Client   string    `json:"client"`
	Name     string    `json:"name"`
	Encoded  string    `json:"encoded"` // what no encoding of text changes
	Mode     string    `json:"mode,omitempty"`
	Token    uint64    `json:"token,omitempty"`
	Votes    int       `json:"votes,omitempty"`
	Nodes    int       `json:"nodes,omitempty"`
	WaitedMS float64   `json:"waited_ms,omitempty"`
	HeldMS   float64   `json:"held_ms,omitempty"`
	Node     string    `json:"node,omitempty"`
	Note     string    `json:"note,omitempty"`

	EvictedBy string `json:"evicted_by,omitempty"`
}

func newWatcher(out *os.File, asJSON bool, cluster string) *watcher {
	return &watcher{out: out, json: asJSON, cluster: cluster, pattern: ">", asks: map[string]*ask{}, early: map[askKey]time.Time{}, done: map[string]struct{}{}, enough: func() {}}
}

// listen subscribes, and returns when it is in force.
func (w *watcher) listen(l *link, pattern string, requests bool) error {
	subjects := []string{subject.Event(l.cluster, subject.Any, subject.Any, pattern)}
	if requests {
		more, err := qlock.RequestSubjects(l.cluster, pattern)
		if err != nil {
			return err
		}
		subjects = append(subjects, more...)
	}
	w.pattern = pattern
	for i, s := range subjects {
		before := len(l.denials())
		if _, err := l.Subscribe(s, func(m *nats.Msg) { w.hear(m.Subject, m.Data) }); err != nil {
			return fmt.Errorf("watch %s: %w", s, err)
		}
		if err := l.FlushTimeout(l.timeout); err != nil {
			return fmt.Errorf("watch %s: %w", s, err)
		}
		if d := l.denials(); i == 0 && len(d) > before {
			return fmt.Errorf("the user of this connection may not receive events; see qlock permissions observer:NAME: %w", d[before])
		}
	}
	return nil
}

func (w *watcher) hear(on string, body []byte) {
	p, ok := subject.Split(on)
	switch {
	case !ok:
	case p.Family == subject.FamilyEvent:
		w.event(p, body)
	default:
		list, _ := qlock.ParseRequests(on, body) // what could not be read is not shown
		for i := range list {
			if r := &list[i]; qlock.MatchName(w.pattern, r.Name) {
				w.request(entry{Time: time.Now(), Cluster: r.Cluster, Client: r.Client, Name: r.Name, Encoded: r.Encoded}, r)
			}
		}
	}
}

func (w *watcher) event(p subject.Subject, body []byte) {
	var e qlock.Event
	if p.Resource == "" || json.Unmarshal(body, &e) != nil {
		return
	}
	s := entry{Time: time.Now(), Cluster: p.Cluster, Client: p.Client, Name: p.Resource, Encoded: p.Resource}
	if name, err := subject.DecodeName(p.Resource); err == nil { // else it is none of package qlock's, and stays as it is
		s.Name = name
	}
	s.What, s.Mode, s.Token, s.Votes, s.Nodes, s.WaitedMS, s.HeldMS = p.Verb, e.Mode, e.Token, e.Votes, e.Nodes, e.Waited, e.Held
	s.Note, s.EvictedBy = e.Note, e.EvictedBy
	if s.What == subject.Acquired {
		w.served(s)
	}
	w.show(s)
}

func (w *watcher) request(s entry, r *qlock.Request) {
	switch r.Kind {
	case qlock.RequestYield:
		s.What, s.Node = "recalled", r.Node
		w.show(s)
	case qlock.RequestAcquire:
		s.Mode, s.Note = "exclusive", r.Note
		if r.Shared {
			s.Mode = "shared"
		}
		w.asked(s, r)
	case qlock.RequestRelease:
		w.mu.Lock()
		w.end(r.Claim)
		w.mu.Unlock()
	}
}

// longWait is when a request that was not served is told of as one that waits.
const longWait = 250 * time.Millisecond

// maxAsks bounds what is remembered of requests; what goes beyond is not told of.
const maxAsks = 10_000

// asked notes a request. Events do not say which request they end, so the oldest of
// the same client for the same lock is taken for it; and since they come by other ways,
// an event may be heard first.
func (w *watcher) asked(s entry, r *qlock.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Held || w.asks[r.Claim] != nil || len(w.asks) >= maxAsks || w.isDone(r.Claim) {
		return
	}
	key := askKey{s.Cluster, s.Client, s.Name}
	granted, known := w.early[key]
	delete(w.early, key)
	if known && time.Since(granted) < longWait {
		w.end(r.Claim)
		return
	}
	a := &ask{entry: s, made: r.Since}
	w.asks[r.Claim] = a
	a.timer = time.AfterFunc(max(longWait-time.Since(a.made), 0), func() { w.waits(r.Claim) })
}

func (w *watcher) waits(id string) {
	w.mu.Lock()
	a := w.asks[id]
	told := a == nil || a.What != ""
	if !told {
		a.Time, a.What, a.WaitedMS = time.Now(), "waiting", ms(time.Since(a.made))
	}
	w.mu.Unlock()
	if !told {
		w.show(a.entry)
	}
}

// end forgets a request. Call with w.mu held.
func (w *watcher) end(id string) {
	if a := w.asks[id]; a != nil {
		a.timer.Stop()
		delete(w.asks, id)
	}
	if len(w.done) >= maxAsks {
		w.done, w.doneBefore = map[string]struct{}{}, w.done
	}
	w.done[id] = struct{}{}
}

func (w *watcher) isDone(id string) bool {
	_, now := w.done[id]
	_, before := w.doneBefore[id]
	return now || before
}

func (w *watcher) served(s entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var oldest *ask
	var id string
	for i, a := range w.asks {
		if a.Client == s.Client && a.Name == s.Name && a.Cluster == s.Cluster && (oldest == nil || a.made.Before(oldest.made)) {
			id, oldest = i, a
		}
	}
	if oldest != nil {
		w.end(id)
		return
	}
	if len(w.early) >= maxAsks {
		clear(w.early)
	}
	w.early[askKey{s.Cluster, s.Client, s.Name}] = s.Time
}

var colorOf = map[string]text.Colors{
	subject.Acquired: {text.FgGreen}, "waiting": {text.FgYellow}, "recalled": {text.FgMagenta},
	subject.Released: {text.Faint}, subject.Lost: {text.FgRed, text.Bold},
}

func (w *watcher) show(s entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit > 0 && w.printed >= w.limit || w.err != nil {
		return
	}
	w.printed++
	if w.json {
		var line []byte
		if line, w.err = jsonText(s, ""); w.err == nil {
			_, w.err = w.out.Write(line)
		}
	} else {
		_, w.err = fmt.Fprintln(w.out, w.line(s))
	}
	if w.printed == w.limit || w.err != nil {
		w.enough()
	}
}

func (w *watcher) line(s entry) string {
	client := s.Client
	if s.Cluster != w.cluster {
		client = s.Cluster + "/" + client
	}
	waited, held := round(time.Duration(s.WaitedMS*1e6)), round(time.Duration(s.HeldMS*1e6))
	details := ""
	switch s.What {
	case subject.Acquired:
		details = fmt.Sprintf("%s, token %d, %d of %d votes, waited %v", s.Mode, s.Token, s.Votes, s.Nodes, waited)
	case subject.Released, subject.Lost:
		details = fmt.Sprintf("%s, token %d, held %v", s.Mode, s.Token, held)
	case "waiting":
		details = fmt.Sprintf("%s, for %v", s.Mode, waited)
	case "recalled":
		details = fmt.Sprintf("%s moves its vote to an older request", s.Node)
	}
	if s.EvictedBy != "" {
		details = strings.TrimPrefix(details+", evicted by "+s.EvictedBy, ", ")
	}
	if s.Note != "" {
		details += ": " + s.Note
	}
	what := paint(w.out, fmt.Sprintf("%-8s", printable.Text(s.What)), colorOf[s.What]...)
	stamp, who, details := s.Time.Format("15:04:05.000"), fmt.Sprintf("%-14s  %-20s", printable.Text(client), lockNamed(s.Name)), printable.Text(details)
	// What does not fit goes below the client, where it does not hide the next line.
	const indent = len("15:04:05.000  acquired  ")
	if width, _ := size(w.out); width > 2*indent && indent+text.StringWidthWithoutEscSequences(who+"  "+details) > width {
		return stamp + "  " + what + "  " + strings.ReplaceAll(wrapped(who, width-indent)+"\n"+wrapped(details, width-indent), "\n", "\n"+strings.Repeat(" ", indent))
	}
	return stamp + "  " + what + "  " + who + "  " + details
}

// close says whether all could be written.
func (w *watcher) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.asks {
		a.timer.Stop()
	}
	return w.err
}
