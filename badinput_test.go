package qlock_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/wire"
)

// stage is a cluster with a lock that is held and one that is waited for, and a
// stranger on the same NATS who sees everything and publishes what it likes.
type stage struct {
	*world
	a, b     *qlock.Locker
	lock     *qlock.Lock // a's, on x
	next     *waiter     // b's, on x
	stranger *nats.Conn
	seen     *observer

	mu    sync.Mutex // guards inbox
	inbox []*nats.Msg
}

func newStage(t *testing.T) *stage {
	s := &stage{world: newWorld(t, 3, setup{server: func(o *server.Options) { o.MaxPayload = 4 << 20 }})}
	s.seen = s.observe()
	s.stranger = s.connect().Conn
	_, err := s.stranger.Subscribe("_INBOX.>", func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inbox = append(s.inbox, m)
	})
	if err != nil {
		t.Fatal(err)
	}
	settle()
	s.a, s.b = s.client("a"), s.client("b")
	s.lock = mustLock(t, s.a, "x")
	time.Sleep(time.Millisecond)
	s.next = waitFor(t.Context(), s.b.Lock, "x")
	return s
}

// unharmed checks that nothing came of it all.
func (s *stage) unharmed(t *testing.T) {
	t.Helper()
	settle()
	if err := context.Cause(s.lock.Context()); err != nil {
		t.Fatalf("the held lock has ended: %v", err)
	}
	if s.next.over() {
		t.Fatalf("the waiter does not wait any more: %v", s.next.err)
	}
}

// exit checks that the lock is still handed on, and that all is gone then.
func (s *stage) exit(t *testing.T) {
	t.Helper()
	s.unharmed(t)
	mustUnlock(t, s.lock)
	if !s.next.over() {
		t.Error("the waiter does not get the lock")
	}
	mustUnlock(t, s.next.held(t))
	time.Sleep(testLease + time.Second)
	s.noClaims()
}

// answers are what the nodes sent to the inbox of the named client.
func (s *stage) answers(client string) (inbox string, out []*nats.Msg) {
	inbox = s.seen.messages("lock.default.node.acquire." + client)[0].Reply
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.inbox {
		if m.Subject == inbox {
			out = append(out, m)
		}
	}
	return inbox, out
}

// answer is a node's first answer about a claim of the named client.
func (s *stage) answer(t *testing.T, client string) *wire.Answer {
	t.Helper()
	_, answers := s.answers(client)
	for _, m := range answers {
		a, err := wire.DecodeAnswer(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if a.Kind != wire.Informed {
			return a
		}
	}
	t.Fatalf("%s has no answer", client)
	return nil
}

func (s *stage) publish(t *testing.T, subject, reply string, body []byte) {
	t.Helper()
	if err := s.stranger.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: body}); err != nil {
		t.Fatalf("publish on %s: %v", subject, err)
	}
}

const (
	someID  = `"instance":"11111111-2222-4333-8444-555555555555"`
	maxInt  = uint64(wire.MaxInt) // an int may have 32 bits
	acquire = "lock.default.node.acquire."
	batch   = "lock.default.node.s"
)

func TestNodesIgnoreBadRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		valid := fmt.Sprintf(`{%s,"seq":1,"beat":1000000,"mode":"exclusive","at":1,"ttl_ms":1000,"digest":"00"}`, someID)
		with := func(old, new string) string {
			if !strings.Contains(valid, old) {
				t.Fatalf("%s is not in %s", old, valid)
			}
			return strings.Replace(valid, old, new, 1)
		}
		var runs []string
		for i := range wire.MaxRuns + 1 {
			runs = append(runs, fmt.Sprintf("[%d,%d]", 2*i+1, 2*i+1))
		}
		refresh := func(lo, hi int, live string) string {
			return fmt.Sprintf(`{%s,"beat":1000000,"lo":%d,"hi":%d,"live":[%s]}`, someID, lo, hi, live)
		}
		inBatch := func(verb, name string) string {
			return "[" + string(wire.AppendToBatch(nil, wire.Verb(verb), name, []byte(valid))) + "]"
		}
		const inbox = "_INBOX.stranger"
		bad := []struct{ what, subject, reply, body string }{
			{"nothing", acquire + "s.y", inbox, ""},
			{"no JSON", acquire + "s.y", inbox, "lock, please"},
			{"half a JSON", acquire + "s.y", inbox, valid[:40]},
			{"two JSONs", acquire + "s.y", inbox, valid + valid},
			{"null", acquire + "s.y", inbox, "null"},
			{"a list", acquire + "s.y", inbox, "[" + valid + "]"},
			{"a string for a number", acquire + "s.y", inbox, with(`"seq":1`, `"seq":"1"`)},
			{"a fraction", acquire + "s.y", inbox, with(`"seq":1`, `"seq":1.5`)},
			{"binary", acquire + "s.y", inbox, "\x00\xff\xfe{}"},
			{"deep", acquire + "s.y", inbox, strings.Repeat("[", 100_000)},
			{"no id", acquire + "s.y", inbox, with(someID, `"instance":"me"`)},
			{"no seq", acquire + "s.y", inbox, with(`"seq":1,`, "")},
			{"a negative seq", acquire + "s.y", inbox, with(`"seq":1`, `"seq":-1`)},
			{"no beat", acquire + "s.y", inbox, with(`"beat":1000000,`, "")},
			{"a beat beyond all", acquire + "s.y", inbox, with("1000000", fmt.Sprint(uint64(maxInt)+1))},
			{"a beat beyond 64 bits", acquire + "s.y", inbox, with("1000000", "99999999999999999999")},
			{"a mode of its own", acquire + "s.y", inbox, with("exclusive", "both")},
			{"a negative age", acquire + "s.y", inbox, with(`"at":1`, `"at":-1`)},
			{"no lease", acquire + "s.y", inbox, with(`"ttl_ms":1000,`, "")},
			{"a lease without end", acquire + "s.y", inbox, with("1000,", "86400001,")},
			{"a digest with quotes", acquire + "s.y", inbox, with(`"00"`, `"\"}"`)},
			{"a foreign verb", "lock.default.node.steal.s.y", inbox, valid},
			{"a verb of capitals", "lock.default.node.ACQUIRE.s.y", inbox, valid},
			{"no client", "lock.default.node.acquire", inbox, valid},
			{"a batch that is no list", batch, inbox, valid},
			{"a batch of nobody", "lock.default.node.s$", inbox, inBatch("acquire", "y")},
			{"a batch of a verb unknown", batch, inbox, inBatch("steal", "y")},
			{"a batch of another's verb", batch, inbox, inBatch("evict", "y")},
			{"a batch that breaks off", batch, inbox, strings.TrimSuffix(inBatch("acquire", "y"), "]") + ","},
			{"a batch with rubbish at its end", batch, inbox, strings.TrimSuffix(inBatch("acquire", "y"), "]") + ",x]"},
			{"a field in capitals", acquire + "s.y", inbox, with(`"seq"`, `"SEQ"`)},
			{"a field that folds", acquire + "s.y", inbox, with(`"seq"`, `"\u017feq"`)},
			{"a field twice", acquire + "s.y", inbox, with(`"seq":1`, `"seq":1,"seq":1`)},
			{"a field of nothing", acquire + "s.y", inbox, with(`"seq":1`, `"seq":1,"want":null`)},
			{"text that is none", acquire + "s.y", inbox, with(`"seq":1`, `"seq":1,"note":"`+"\xff"+`"`)},
			{"half a character", acquire + "s.y", inbox, with(`"seq":1`, `"seq":1,"note":"\ud800"`)},
			{"a batch of half an escape", batch, inbox, inBatch("acquire", "%4")},
			{"a batch of no name", batch, inbox, inBatch("acquire", "")},
			{"a batch of a refresh", batch, inbox, "[" + string(wire.AppendToBatch(nil, wire.Refresh, "", []byte(refresh(1, 1, "")))) + "]"},
			{"a batch with a negative age", batch, inbox, strings.Replace(inBatch("acquire", "y"), `"at":1`, `"at":-1`, 1)},
			{"an oversize batch", batch, inbox, inBatch("acquire", "y") + strings.Repeat(" ", wire.MaxBatchBody)},
			{"an answer to a batch into a request", batch, "lock.default.node.release.a.x", inBatch("acquire", "y")},
			{"no resource", acquire + "s", inbox, valid},
			{"a resource too much", "lock.default.node.refresh.s.y", inbox, refresh(1, 1, "")},
			{"a client of no name", acquire + "s$.y", inbox, valid},
			{"a wildcard for a client", acquire + "*.y", inbox, valid},
			{"a wildcard for a resource", acquire + "s.*", inbox, valid},
			{"all resources", acquire + "s.>", inbox, valid},
			{"half an escape", acquire + "s.%4", inbox, valid},
			{"a needless escape", acquire + "s.%61", inbox, valid},
			{"an overlong resource", acquire + "s." + strings.Repeat("a", 1025), inbox, valid},
			{"a release of nothing", "lock.default.node.release.s.y", inbox, "{}"},
			{"a yield to nobody", "lock.default.node.yield.s.y", inbox, fmt.Sprintf(`{%s,"seq":1,"beat":1}`, someID)},
			{"a long nonce", "lock.default.node.info.s", inbox, `{"nonce":"` + strings.Repeat("n", wire.MaxText+1) + `"}`},
			{"too many runs", "lock.default.node.refresh.s", inbox, refresh(1, 2*len(runs), strings.Join(runs, ","))},
			{"runs that overlap", "lock.default.node.refresh.s", inbox, refresh(1, 9, "[1,5],[5,6]")},
			{"runs in disorder", "lock.default.node.refresh.s", inbox, refresh(1, 9, "[5,6],[1,2]")},
			{"a run outside", "lock.default.node.refresh.s", inbox, refresh(2, 9, "[1,2]")},
			{"a run backwards", "lock.default.node.refresh.s", inbox, refresh(1, 9, "[5,4]")},
			{"oversize", acquire + "s.y", inbox, valid + strings.Repeat(" ", wire.MaxBody)},
			{"an answer into a request", acquire + "s.y", "lock.default.node.release.a.x", valid},
			{"an answer into an event", acquire + "s.y", "lock.default.event.lost.a.x", valid},
			{"an answer into JetStream", acquire + "s.y", "$JS.API.STREAM.DELETE.orders", valid},
			{"an answer into the system", "lock.default.node.info.s", "$SYS.REQ.SERVER.PING", `{"nonce":"n"}`},
		}
		replies, err := s.stranger.SubscribeSync("$*.>")
		if err != nil {
			t.Fatal(err)
		}
		settle()
		s.seen.take()
		for _, m := range bad {
			before := s.nodes[0].Stats()
			s.publish(t, m.subject, m.reply, []byte(m.body))
			s.unharmed(t)
			after := s.nodes[0].Stats()
			if after.Malformed != before.Malformed+1 || after.Requests != before.Requests+1 {
				t.Errorf("%s: %d requests, %d of them malformed, want one", m.what, after.Requests-before.Requests, after.Malformed-before.Malformed)
			}
			if after.Claims != before.Claims {
				t.Errorf("%s made %d claims", m.what, after.Claims-before.Claims)
			}
		}
		if n := len(s.inboxOf(inbox)); n != 0 {
			t.Errorf("%d answers to bad requests", n)
		}
		if n, _, err := replies.Pending(); n != 0 || err != nil {
			t.Errorf("%d answers under $, %v", n, err)
		}
		total := 0
		for _, n := range s.seen.take() {
			total += n
		}
		if total != len(bad) {
			t.Errorf("%d messages under lock. for %d bad requests: some were answers", total, len(bad))
		}
		s.exit(t)
	})
}

// inboxOf is what came to an inbox of the stranger's.
func (s *stage) inboxOf(inbox string) []*nats.Msg {
	settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*nats.Msg
	for _, m := range s.inbox {
		if m.Subject == inbox {
			out = append(out, m)
		}
	}
	return out
}

// Requests that are well formed and mean nothing, or mean what their sender has no
// right to: whose claim it is stands in the subject.
func TestNodesIgnoreForeignRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		before := s.nodes[0].Stats().Malformed
		req := s.seen.messages("lock.default.node.acquire.a.x")[0]
		var real struct {
			Instance string
			Seq      uint64
		}
		if err := json.Unmarshal(req.Data, &real); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf(`"instance":%q,"seq":%d`, real.Instance, real.Seq)
		for _, m := range []struct{ what, subject, body string }{
			{"a release in another's name", "lock.default.node.release.b.x", `{` + id + `,"now":1}`},
			{"a release of another resource", "lock.default.node.release.a.y", `{` + id + `,"now":1}`},
			{"a release of a claim unknown", "lock.default.node.release.a.x", `{` + someID + `,"seq":1,"now":1}`},
			{"a yield in another's name", "lock.default.node.yield.b.x", fmt.Sprintf(`{%s,"beat":%d,"node":"n1"}`, id, maxInt)},
			{"a yield to a node unknown", "lock.default.node.yield.a.x", fmt.Sprintf(`{%s,"beat":%d,"node":"n9"}`, id, maxInt)},
			{"a refresh in another's name", "lock.default.node.refresh.b", fmt.Sprintf(`{"instance":%q,"beat":%d,"lo":1,"hi":%d,"live":[]}`, real.Instance, maxInt, maxInt)},
			{"a refresh of all numbers", "lock.default.node.refresh.s", fmt.Sprintf(`{%s,"beat":%d,"lo":1,"hi":%d,"live":[[1,%d]]}`, someID, maxInt, maxInt, maxInt)},
			{"a refresh of no numbers", "lock.default.node.refresh.s", fmt.Sprintf(`{%s,"beat":1,"lo":5,"hi":4,"live":[]}`, someID)},
			{"an age far ahead", acquire + "s.x", fmt.Sprintf(`{%s,"seq":1,"beat":1,"mode":"exclusive","at":%d,"ttl_ms":1000,"digest":"00"}`, someID, maxInt)},
			{"another configuration", acquire + "s.x", fmt.Sprintf(`{%s,"seq":1,"beat":%d,"mode":"shared","at":1,"ttl_ms":1000,"want":%d,"held":true,"digest":"00"}`, someID, maxInt, maxInt)},
			{"fields unknown", "lock.default.node.info.s", `{"nonce":"n","later":{"versions":["have","more"]}}`},
		} {
			for range 2 {
				s.publish(t, m.subject, "_INBOX.stranger", []byte(m.body))
			}
			s.unharmed(t)
			if got := s.nodes[0].Stats(); got.Malformed != before || got.Claims != 2 {
				t.Errorf("%s: %d malformed, %d claims", m.what, got.Malformed-before, got.Claims)
			}
		}
		// Asked for with the right configuration, an age in the past and a fence at the
		// end of the range, the vote goes to nobody and has a fence within reach (N3, N7).
		digest := strings.Split(strings.Split(string(req.Data), `"digest":"`)[1], `"`)[0]
		s.publish(t, acquire+"s.z", "_INBOX.stranger", fmt.Appendf(nil,
			`{%s,"seq":1,"beat":1,"mode":"exclusive","at":1,"ttl_ms":1000,"want":%d,"digest":%q}`, someID, maxInt, digest))
		if got := s.inboxOf("_INBOX.stranger"); !bytes.Contains(got[len(got)-1].Data, []byte(`"fence":1,"most":`)) {
			t.Errorf("a fence at the end of the range is answered with %s", got[len(got)-1].Data)
		}
		time.Sleep(5 * testLease)
		s.exit(t)
	})
}

// All that was ever sent comes again, in any order: the past is the past (N1, C2,
// C9).
func TestDuplicatesAndLateMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		for range 5 { // some history, with a recall or two in it
			k := mustLock(t, s.a, "y")
			early := waitFor(t.Context(), s.b.RLock, "y")
			mustUnlock(t, k)
			mustUnlock(t, early.held(t))
		}
		time.Sleep(2 * testLease)
		replay := func() {
			t.Helper()
			requests := s.seen.messages("lock.default.node.")
			_, answersA := s.answers("a")
			_, answersB := s.answers("b")
			var all []*nats.Msg
			for _, m := range slices.Concat(requests, answersA, answersB) {
				switch verb := strings.Split(m.Subject, "."); {
				case len(verb) > 3 && (verb[3] == "release" || verb[3] == "info"):
					// A release is final, and true; a probe is for the nodes to judge.
				default:
					all = append(all, m)
				}
			}
			for _, m := range all {
				s.publish(t, m.Subject, m.Reply, m.Data)
			}
			s.unharmed(t)
			slices.Reverse(all)
			for _, m := range all {
				s.publish(t, m.Subject, m.Reply, m.Data)
				s.publish(t, m.Subject, m.Reply, m.Data)
			}
			s.unharmed(t)
		}
		replay()
		// Claims on y that were over came to life at the nodes, and were swept away.
		time.Sleep(testLease / 10)
		for i := range s.nodes {
			if n := s.claims(i); n != 2 {
				t.Errorf("%s has %d claims, want 2", s.nodes[i].Name(), n)
			}
		}
		time.Sleep(3 * testLease)
		s.exit(t)
	})
}

func TestClientsIgnoreBadAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		for _, client := range []string{"a", "b"} {
			inbox, _ := s.answers(client)
			real := s.answer(t, client)
			body := string(wire.AppendAnswer(nil, real))
			for _, body := range []string{
				"", "{", "null", "[]", "granted", "\xff", strings.Repeat("[", 100_000), `{"answer":"granted"}`,
				strings.Replace(body, `"answer":"`, `"answer":"un`, 1),
				strings.Replace(body, real.Node, "n 1", 1),
				body + strings.Repeat(" ", wire.MaxBody),
				"[null]", `[{"answer":"granted"}]`, "[" + body, "[[" + body + "]]",
				"[" + strings.Replace(body, real.Node, "n 1", 1) + "]",
				"[" + body + "]" + strings.Repeat(" ", wire.MaxBody),
			} {
				s.publish(t, inbox, "", []byte(body))
				s.unharmed(t)
			}
			if n := len(s.log.find("WARN", "malformed answer ignored")); n == 0 {
				t.Error("nothing of that in the log")
			}
			time.Sleep(time.Second)

			// Well formed, and from nobody who may say so.
			kinds := []wire.Kind{wire.Granted, wire.Queued, wire.Refused, wire.Recall, wire.Refreshed}
			for _, kind := range kinds {
				for _, forge := range []struct {
					what string
					by   func(*wire.Answer)
				}{
					{"a node unknown", func(a *wire.Answer) { a.Node = "n9" }},
					{"another configuration", func(a *wire.Answer) { a.Digest = "0123456789abcdef" }},
					{"a node unknown of another configuration", func(a *wire.Answer) { a.Node, a.Digest = "n9", "00" }},
					{"another client's claim", func(a *wire.Answer) { a.Claim.Instance = uuid.UUID{1} }},
					{"a claim to come", func(a *wire.Answer) { a.Claim.Seq, a.Lo, a.Hi = 1000, 1000, 2000 }},
					{"a claim at the end of the range", func(a *wire.Answer) { a.Claim.Seq, a.Lo, a.Hi = maxInt, maxInt, maxInt }},
					{"a beat to come, of a node unknown", func(a *wire.Answer) { a.Node, a.SentAt = "n9", maxInt }},
					{"a beat to come, of another configuration", func(a *wire.Answer) { a.Digest, a.SentAt = "0123456789abcdef", maxInt }},
					{"a beat to come, to another client", func(a *wire.Answer) { a.Client, a.SentAt = "other", maxInt }},
					{"a beat long gone", func(a *wire.Answer) { a.SentAt = 1 }},
				} {
					if kind == wire.Recall && forge.what == "a beat long gone" {
						continue // a recall is honoured whenever it comes (C5)
					}
					a := *real
					a.Kind, a.Fence = kind, real.Fence+1
					a.Reason, a.Text, a.Info = wire.ReasonLease, "because", nil
					a.Lo, a.Hi, a.Unknown, a.Waiting, a.Blocker = 1, 1, wire.Runs{{Lo: 1, Hi: 1}}, nil, nil
					forge.by(&a)
					if kind == wire.Refreshed && a.Lo > 1 {
						a.Unknown = wire.Runs{{Lo: a.Lo, Hi: a.Hi}}
					}
					body := string(wire.AppendAnswer(nil, &a))
					for range 3 {
						s.publish(t, inbox, "", []byte(body))
					}
					s.publish(t, inbox, "", []byte("["+body+","+body+"]"))
					settle()
					if err := context.Cause(s.lock.Context()); err != nil || s.next.over() {
						t.Fatalf("to %s: %s from %s: %v, %v", client, kind, forge.what, err, s.next.err)
					}
				}
			}
			// Three nodes of a configuration that there is not.
			for _, node := range []string{"n1", "n2", "n3"} {
				a := *real
				a.Kind, a.Node, a.SentAt = wire.Informed, node, 0
				a.Info = &wire.NodeInfo{Nonce: "guessed", Nodes: []string{"n1", "n2", "n3"}, MaxTTL: time.Second, Skew: time.Second, State: wire.Voting}
				s.publish(t, inbox, "", wire.AppendAnswer(nil, &a))
			}
			s.unharmed(t)
		}
		time.Sleep(3 * testLease)
		if got := fmt.Sprint(s.a.Nodes()); got != "[n1 n2 n3]" {
			t.Errorf("nodes %s", got)
		}
		s.exit(t)
	})
}

// One message may grant a claim, and end it, in any order and more than once: whoever
// asked for it gets it, and learns that it is lost.
func TestContradictingAnswersInOneMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		inbox, _ := s.answers("b")
		wait := s.answer(t, "b")
		of := func(kind wire.Kind, node string) string {
			a := *wait
			a.Kind, a.Node, a.Fence, a.By, a.Text = kind, node, uint64(time.Now().UnixMicro()), "ops", "because"
			a.Blocker, a.Reason = nil, wire.ReasonLease
			a.Incarnation = uuid.UUID{}
			if kind == wire.Refreshed {
				a.Lo, a.Hi, a.Unknown = 1, 1, wire.Runs{{Lo: 1, Hi: 1}}
			}
			return string(wire.AppendAnswer(nil, &a))
		}
		granted := []string{of(wire.Granted, "n1"), of(wire.Granted, "n2"), of(wire.Granted, "n3")}
		list := slices.Concat(granted, []string{
			of(wire.Recall, "n1"), of(wire.Queued, "n2"), of(wire.Refreshed, "n3"), of(wire.Refused, "n1"),
			of(wire.Evicted, "n3"), of(wire.Evicted, "n2"),
		}, granted)
		s.publish(t, inbox, "", []byte("["+strings.Join(list, ",")+"]"))
		settle()
		_, cause := died(t, s.next.held(t).Context())
		wantIs(t, cause, qlock.ErrLost)
		wantIs(t, cause, qlock.ErrEvicted)
		if err := context.Cause(s.lock.Context()); err != nil {
			t.Errorf("the other client's lock has ended: %v", err)
		}
		if got := s.b.Stats(); got.Granted != 1 || got.Lost != 1 || got.Held != 0 || got.Waiting != 0 {
			t.Errorf("%+v", got)
		}
		mustUnlock(t, s.lock)
		mustUnlock(t, mustLock(t, s.b, "x"))
		time.Sleep(testLease + time.Second)
		s.noClaims()
	})
}

// A copy of a's process, which was a snapshot, asks for what they both have. Its
// messages tell a, by the nodes' answers, that there are two (C15): what is held is lost,
// but not given back, since the other may hold it; what waits goes on under an instance
// of its own.
func TestCopyOfALocker(t *testing.T) {
	for name, say := range map[string]func(instance string, beat uint64) (verb, body string){
		"a refresh": func(instance string, beat uint64) (string, string) {
			return "refresh.a", fmt.Sprintf(`{"instance":%q,"beat":%d,"lo":1,"hi":1,"live":[[1,1]]}`, instance, beat)
		},
		"an acquire of its own": func(instance string, beat uint64) (string, string) { // a's second claim is on another name
			return "acquire.a.other", fmt.Sprintf(`{"instance":%q,"seq":2,"beat":%d,"mode":"exclusive","at":7,"ttl_ms":10000,"digest":"00"}`, instance, beat)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newStage(t)
				other := mustLock(t, s.b, "y")
				waits := waitFor(t.Context(), s.a.Lock, "y")
				inbox, _ := s.answers("a")
				sent := s.seen.messages("lock.default.node.acquire.a.y")
				var mine struct {
					Instance string
					Beat     uint64
				}
				if err := json.Unmarshal(sent[len(sent)-1].Data, &mine); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				start := time.Now()
				verb, body := say(mine.Instance, mine.Beat+1_500_000)
				s.publish(t, "lock.default.node."+verb, inbox, []byte(body))
				settle()
				if _, cause := died(t, s.lock.Context()); cause != qlock.ErrLost || time.Since(start) > 0 {
					t.Errorf("the lock ends after %v: %v", time.Since(start), cause)
				}
				if lines := s.log.find("ERROR", "another process uses the same client instance"); len(lines) != 1 {
					t.Errorf("the log has %q", lines)
				}
				if got := s.a.Stats(); got.Copies != 1 || got.Lost != 1 || got.Waiting != 1 {
					t.Errorf("%+v", got)
				}
				for _, m := range s.seen.messages("lock.default.node.release.a") {
					t.Errorf("it gives back what may be the other's: %s", m.Data)
				}
				if s.next.over() {
					t.Error("the next has what the other copy may hold")
				}
				mustUnlock(t, other)
				mustUnlock(t, waits.held(t))
				sent = s.seen.messages("lock.default.node.acquire.a.y")
				if last := sent[len(sent)-1]; strings.Contains(string(last.Data), mine.Instance) {
					t.Errorf("it goes on under the old instance: %s", last.Data)
				}
				time.Sleep(testLease + time.Second)
				mustUnlock(t, s.next.held(t))
				time.Sleep(testLease + time.Second)
				s.noClaims()
			})
		})
	}
}

// A node that answers with two incarnations by turns counts for neither (N9); the
// other two keep the lock. And however many incarnations there are, the log has
// few lines of them.
func TestNodeOfManyIncarnations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		inbox, _ := s.answers("a")
		for i := range 200 {
			mustUnlock(t, mustLock(t, s.a, "y")) // that answers may repeat new beats
			time.Sleep(time.Millisecond)
			req := s.seen.messages("lock.default.node.acquire.a.y")
			var sent struct{ Beat uint64 }
			if err := json.Unmarshal(req[len(req)-1].Data, &sent); err != nil {
				t.Fatal(err)
			}
			a := s.answer(t, "a")
			a.Kind, a.Node, a.SentAt = wire.Granted, "n1", sent.Beat
			for k := range 2 {
				a.Incarnation = uuid.UUID{byte(i / 4), byte(i / 4 >> 8), byte(k)}
				s.publish(t, inbox, "", wire.AppendAnswer(nil, a))
			}
			s.unharmed(t)
		}
		lines := s.log.find("two nodes named")
		if len(lines) == 0 || len(lines) > 2 {
			t.Errorf("%d lines of it in the log in a fifth of a second", len(lines))
		}
		time.Sleep(2 * testLease)
		s.unharmed(t)
		s.nodes[1].crash()
		if _, cause := died(t, s.lock.Context()); cause != qlock.ErrLost {
			t.Errorf("with one node dead and one that does not count: %v", cause)
		}
		_, err := s.a.Lock(timeout(t, time.Second), "z")
		wantIs(t, err, qlock.ErrNoQuorum)
		wantText(t, err, "n1 refused (two nodes answer under this name), n2 silent, n3 voted")
		s.nodes[1].start()
		s.next.held(t)
		mustUnlock(t, s.next.lock)
		time.Sleep(testLease)
		s.noClaims()
	})
}

// Whatever comes, and however fast, is logged once a second by each who hears it,
// with the number of lines left out.
func TestBadInputIsLoggedAtBoundedRate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage(t)
		inbox, _ := s.answers("a")
		probe := s.seen.messages("lock.default.node.info.n1")
		if len(probe) == 0 {
			time.Sleep(maxLease / 3)
			probe = s.seen.messages("lock.default.node.info.n1")
		}
		const seconds, each = 10, 500
		for range seconds {
			for i := range each {
				s.publish(t, fmt.Sprintf("lock.default.node.verb-%d.s.y", i), "", []byte("garbage"))
				s.publish(t, inbox, "", []byte("garbage"))
				s.publish(t, probe[0].Reply, "", []byte("garbage"))
			}
			settle()
			time.Sleep(time.Second)
		}
		for _, from := range []string{"n1", "n2", "n3"} {
			lines := s.log.find("WARN", "request ignored", "node="+from)
			if len(lines) == 0 || len(lines) > seconds+1 {
				t.Errorf("%d lines in %d seconds from %s", len(lines), seconds, from)
			}
			want := fmt.Sprintf("skipped=%d", each-1)
			if from == "n1" {
				want = fmt.Sprintf("skipped=%d", 2*each-1) // its inbox too
			}
			if len(s.log.find("node="+from, want)) != seconds-1 {
				t.Errorf("the lines of %s do not say %s: %q", from, want, lines)
			}
		}
		if lines := s.log.find("WARN", "malformed answer ignored"); len(lines) == 0 || len(lines) > seconds+1 {
			t.Errorf("%d lines in %d seconds from a client", len(lines), seconds)
		}
		if got := s.nodes[0].Stats().Malformed; got != 2*seconds*each {
			t.Errorf("%d malformed were counted, want %d", got, 2*seconds*each)
		}
		if got := s.nodes[1].Stats().Malformed; got != seconds*each {
			t.Errorf("%d malformed were counted, want %d", got, seconds*each)
		}
		s.exit(t)
	})
}
