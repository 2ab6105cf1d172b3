package script

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/client"
	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/members"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// What stories need for the records of a cluster whose list of nodes changes (E1 to E18). The
// operator's command is the host ops. A story has it send its steps one by one.

const clusterName = "test"

// directory returns the id of a node's state directory, of which it has had others before.
func directory(name string, before byte) uuid.UUID {
	u := id(name, before)
	u[14] = 1
	return u
}

// lastRecord is the latest record that was made, decided or not.
func (w *world) lastRecord() *wire.EpochRecord { return w.records[len(w.records)-1] }

// decidedRecord is the latest one that nodes were told as decided.
func (w *world) decidedRecord() *wire.EpochRecord { return w.records[w.decided-1] }

// links is the history up to the record of an epoch, its own link included.
func (w *world) links(epoch uint64) []wire.Link {
	all := []wire.Link{{Epoch: 0, Digest: w.cluster.Digest()}}
	for _, r := range w.records[:epoch] {
		all = append(all, wire.Link{Epoch: r.Epoch, Digest: r.Digest()})
	}
	return all
}

// begin makes the first record, which all nodes have from the beginning.
func (w *world) begin() {
	r := &wire.EpochRecord{Cluster: clusterName, CID: id("cluster", 0), Epoch: 1, Prev: w.cluster.Digest(), MaxTTL: w.cluster.MaxTTL, Skew: w.cluster.Skew}
	for _, name := range slices.Sorted(slices.Values(w.cluster.Nodes)) {
		r.Nodes = append(r.Nodes, wire.Member{Name: name, ID: directory(name, 0)})
	}
	w.must(r.Check())
	w.records, w.decided = append(w.records, r), 1
}

// stateOf returns what the directory of h has about records.
func (w *world) stateOf(h *host) epoch.State {
	s, err := epoch.DecodeState(directory(h.id, h.directories), h.state)
	w.must(err)
	return s
}

// digestOf returns the digest by which a mark of h serves.
func (w *world) digestOf(h *host) string {
	if len(h.state) > 0 {
		if s := w.stateOf(h); s.Record != nil {
			return s.Record.Digest()
		}
	}
	return h.config.Digest()
}

// written does what a node wants to be on disk before anything is sent.
func (w *world) written(h *host, out *voter.Out) {
	if out.Write == nil {
		return
	}
	var err error
	h.state, err = out.Write.Encode()
	w.must(err)
	if out.Write.Record != nil {
		h.ttl = max(h.ttl, out.Write.Record.Longest())
	}
	h.node.Written(w.read(h), out)
}

// saveRecord writes what a clean stop writes about records.
func (w *world) saveRecord(h *host) (err error) {
	if s := h.node.Configuration(w.read(h)); s != nil {
		h.state, err = s.Encode()
	}
	return err
}

func (w *world) epochOf(digest string) string {
	for _, r := range w.records {
		if r.Digest() == digest {
			return fmt.Sprintf("epoch %d", r.Epoch)
		}
	}
	if digest == w.cluster.Digest() {
		return "epoch 0"
	}
	return "no epoch"
}

func namesOf(list []wire.Member) string {
	var all []string
	for _, m := range list {
		all = append(all, m.Name)
	}
	return strings.Join(all, " ")
}

func recordText(r *wire.EpochRecord) string {
	text := fmt.Sprintf("epoch %d, %s", r.Epoch, namesOf(r.Nodes))
	if r.Joint() {
		text += " and " + namesOf(r.Next)
	}
	if r.Floor > 0 {
		text += fmt.Sprintf(", floor %d", r.Floor)
	}
	return text
}

// recordCommand runs the commands about records.
func (w *world) recordCommand(verb string, args []string, opts map[string]string) error {
	if verb != "join" && len(w.records) == 0 {
		return fmt.Errorf("the cluster has no records: make it with epoch=1")
	}
	switch verb {
	case "join":
		for _, name := range args {
			h := &host{name: name, id: name, isNode: true, joins: true, fresh: true, config: wire.Config{MaxTTL: w.cluster.MaxTTL, Skew: w.cluster.Skew}}
			if err := w.addHost(h); err != nil {
				return err
			}
			w.startNode(h)
		}
		return nil
	case "record":
		return w.nextRecord(args, opts)
	case "learn":
		r := w.lastRecord()
		w.decided = len(w.records)
		links := w.links(r.Epoch)
		return w.sendStep(args, wire.Step{Kind: wire.Learn, Epoch: r.Epoch, Record: r, Links: links[:len(links)-1]}, "learn "+recordText(r))
	}
	if len(args) == 0 {
		return fmt.Errorf("at which ballot?")
	}
	n, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	ballot := wire.Ballot{N: n, Run: id("run", byte(n))}
	if verb == "prepare" {
		w.promised = 0
		r := w.decidedRecord()
		return w.sendStep(args[1:], wire.Step{Kind: wire.Prepare, Epoch: r.Epoch + 1, Prev: r.Digest(), Ballot: ballot}, fmt.Sprintf("prepare epoch %d, ballot %d", r.Epoch+1, n))
	}
	r := w.lastRecord()
	return w.sendStep(args[1:], wire.Step{Kind: wire.Accept, Epoch: r.Epoch, Record: r, Ballot: ballot}, fmt.Sprintf("accept %s, ballot %d", recordText(r), n))
}

// nextRecord makes the record after the last one that is decided. That of a finish has the floor of the promises
// that came since the last prepare (E7).
func (w *world) nextRecord(args []string, opts map[string]string) error {
	if len(args) == 0 {
		return fmt.Errorf("which record?")
	}
	last := w.decidedRecord()
	r := *last
	r.Epoch, r.Prev = last.Epoch+1, last.Digest()
	r.Next, r.NextMaxTTL, r.NextSkew = nil, 0, 0
	switch args[0] {
	case "joint":
		cfg, err := w.configWith(wire.Config{MaxTTL: last.MaxTTL, Skew: last.Skew}, opts)
		if err != nil {
			return err
		}
		r.NextMaxTTL, r.NextSkew = cfg.MaxTTL, min(cfg.Skew, cfg.MaxTTL)
		for _, name := range slices.Sorted(slices.Values(args[1:])) {
			h, err := w.host(name, true)
			if err != nil {
				return err
			}
			r.Next = append(r.Next, wire.Member{Name: name, ID: directory(h.id, h.directories)})
		}
	case "finish":
		r.Nodes, r.MaxTTL, r.Skew = last.Next, last.NextMaxTTL, last.NextSkew
		r.Floor = max(r.Floor, w.promised)
	case "back":
	default:
		return fmt.Errorf("there is no record %s", args[0])
	}
	if err := epoch.Follows(last, &r); err != nil {
		return err
	}
	w.records = append(w.records[:w.decided], &r)
	return nil
}

// sendStep has the operator's command send a step to some nodes; none named: to all.
func (w *world) sendStep(to []string, s wire.Step, text string) error {
	if w.hosts[ops] == nil {
		w.must(w.addHost(&host{name: ops}))
	}
	if len(to) == 0 {
		for _, name := range w.order {
			if w.hosts[name].isNode {
				to = append(to, name)
			}
		}
	}
	r := wire.Request{Verb: wire.Configure, Client: ops, Nonce: "1", Step: &s}
	back, err := wire.DecodeRequest(r.Verb, r.Client, "", wire.AppendRequest(nil, &r))
	if err != nil {
		return err
	}
	for _, name := range to {
		if _, err := w.host(name, true); err != nil {
			return err
		}
		w.flight = append(w.flight, &message{from: ops, to: name, kind: string(s.Kind), text: text, deliver: func(h *host) {
			var out voter.Out
			h.node.Handle(w.read(h), back, ops, &out)
			w.nodeDid(h, out)
		}})
	}
	w.printf("%s -> %s: %s%s", ops, strings.Join(to, " "), text, w.cutOff(len(to)))
	return nil
}

// ops is the host of the operator's command.
const ops = "ops"

func stepText(a *wire.StepAnswer) string {
	ballot := fmt.Sprintf(" at ballot %d", a.Ballot.N)
	if a.Kind == wire.Learn {
		ballot = ""
	}
	if a.Why != wire.WhyNone {
		text := fmt.Sprintf("%s%s refused: %s, I have epoch %d", a.Kind, ballot, a.Why, a.Epoch)
		if a.Left > 0 {
			text += fmt.Sprintf(", %v left", a.Left)
		}
		return text
	}
	text := fmt.Sprintf("%s%s done, I have epoch %d", a.Kind, ballot, a.Epoch)
	if a.Kind == wire.Prepare {
		text += fmt.Sprintf(", floor %d", a.Floor)
	}
	if a.Record != nil {
		text += fmt.Sprintf(", accepted before at ballot %d: %s", a.Accepted.N, recordText(a.Record))
	}
	if a.Kind == wire.Prepare && a.Left > 0 {
		text += fmt.Sprintf(", no finish for %v", a.Left)
	}
	return text
}

// heardByOps is an answer to the operator's command.
func (w *world) heardByOps(a *wire.Answer) {
	if a.Step != nil && a.Step.Kind == wire.Prepare && a.Step.Why == wire.WhyNone {
		w.promised = max(w.promised, a.Step.Floor)
	}
}

// ---- clients that learn the list from the nodes

// learns gives a client the machine that learns the list of nodes. It knows the present one.
func (w *world) learns(h *host, ttl time.Duration) error {
	h.members = members.New(h.name)
	now := w.read(h)
	var out members.Out
	h.members.Query(now, &out)
	for _, name := range w.order {
		n := w.hosts[name]
		if !n.isNode || n.node == nil {
			continue
		}
		var got voter.Out
		n.node.Handle(w.read(n), &wire.Request{Verb: wire.Info, Client: h.name, Nonce: out.Ask, ShowConfig: true}, "x", &got)
		for i := range got.Answers {
			a, err := wire.DecodeAnswer(wire.AppendAnswer(nil, &got.Answers[i].Answer))
			if err != nil {
				return err
			}
			h.members.Hear(now, a, &out)
		}
	}
	now.Mono += members.Patience
	h.members.Tick(now, &out)
	if out.Found == nil || out.Found.Digest() != h.client.Digest() {
		return fmt.Errorf("the nodes do not show what the client counts by")
	}
	h.members.SetLease(ttl)
	return nil
}

// learn calls f with that machine, and does what it wants done.
func (w *world) learn(h *host, f func(wire.Now, *members.Out)) {
	var out members.Out
	if h.client.Shown() {
		h.members.Shown()
	}
	f(w.read(h), &out)
	if out.Found != nil {
		w.printf("%s counts by %s from now on", h.name, w.epochOf(out.Found.Digest()))
		var did client.Out
		h.client.SetCluster(w.read(h), *out.Found, &did)
		w.clientDid(h, did)
	}
	if out.Ask != "" {
		w.must(w.publish(h, wire.Request{Verb: wire.Info, Client: h.of, Nonce: out.Ask, ShowConfig: true}))
	}
	w.schedule(h)
}

// schedule sets when a client has something to do.
func (w *world) schedule(h *host) {
	wait, ok := h.client.Wait(w.read(h))
	if !ok || wait > time.Second {
		wait = time.Second // C8: at least one reading a second
	}
	if h.members != nil {
		if again, ok := h.members.Wait(w.read(h)); ok {
			wait = min(wait, again)
		}
	}
	h.due = w.now + wait
}

// recordOf returns the configuration of the record of an epoch.
func (w *world) recordOf(number string) (wire.Config, error) {
	n, err := strconv.ParseUint(number, 10, 8)
	if err != nil || n < 1 || int(n) > len(w.records) {
		return wire.Config{}, fmt.Errorf("there is no epoch %s", number)
	}
	return wire.RecordConfig(w.records[n-1], w.links(n)), nil
}

// loseDirectory gives a node an empty directory.
func (h *host) loseDirectory() {
	h.mark, h.known, h.ttl, h.state = nil, h.lives, 0, nil
	h.directories++
	h.fresh = true
}

// startState gives a node what its directory has about records.
func (w *world) startState(h *host, cfg *voter.Config) {
	if len(w.records) == 0 && !h.joins {
		return
	}
	cfg.Cluster, cfg.State, cfg.Fresh = clusterName, w.stateOf(h), h.fresh
	h.fresh = false
}

// firstState is what the directory of a node has whose cluster begins at epoch 1.
func (w *world) firstState(h *host) (err error) {
	s := epoch.State{ID: directory(h.id, 0), Record: w.records[0], Links: w.links(1)}
	h.state, err = s.Encode()
	h.marked = w.records[0].Digest()
	h.mark, _ = json.Marshal(&voter.Saved{})
	return err
}
