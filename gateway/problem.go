package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/qlock/qlock"
)

// ProblemBase is what the types of all problems begin with. docs/gateway.md has one section
// for each.
const ProblemBase = "https://qlock.dev/problems/"

// Problem is the body of every answer that reports an error (RFC 9457).
type Problem struct {
	Type      string   `json:"type" doc:"identifies the kind of problem, and never changes"`
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail,omitempty" doc:"for people"`
	Request   string   `json:"request,omitempty" doc:"the id of the request"`
	Retryable bool     `json:"retryable" doc:"repeating the same request may succeed"`
	Cause     string   `json:"cause,omitempty" doc:"of 410: why the lease is over"`
	By        string   `json:"by,omitempty" doc:"of 410 with the cause evicted: the client that evicted the lease, as NATS knows it"`
	Reason    string   `json:"reason,omitempty" doc:"of 410 with the cause evicted: what that client gave as the reason"`
	Token     uint64   `json:"token,omitempty" doc:"of 410 and fenced: the fencing token that the lease has or had"`
	Blocker   *Blocker `json:"blocker,omitempty" doc:"who is in the way"`
	Nodes     []Vote   `json:"nodes,omitempty" doc:"what each node said"`
	Lists     []Quorum `json:"lists,omitempty" doc:"while the list of nodes changes: the votes of the old list, then those of the new one"`

	Key        string   `json:"key,omitempty" doc:"conflict: which key"`
	Revision   uint64   `json:"revision,omitempty" doc:"conflict: which revision the key has; left out if there is no such key. no-key: that of the deletion, if it is known"`
	NewerToken uint64   `json:"newer_token,omitempty" doc:"fenced: the fencing token of the newer holder"`
	Client     string   `json:"client,omitempty" doc:"fenced: the newer holder, as it says"`
	Missing    []string `json:"missing,omitempty" doc:"not-prepared: what the bucket lacks"`
	Command    string   `json:"command,omitempty" doc:"not-prepared: what mends it"`

	retryAfter time.Duration
	owner      string // the gateway that has the lease in place of this one
	allow      string
}

// Error makes a Problem an error.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Title + ": " + p.Detail
}

// isFinal reports whether the id of a lease that ended so can never be used again. A lease
// that never was held may be asked for again, unless its caller gave it up.
func (p *Problem) isFinal() bool {
	return p.Status == http.StatusGone && (p.Token > 0 || p.Cause != causeDraining)
}

// Kind is the last part of the type.
func (p *Problem) Kind() string { return strings.TrimPrefix(p.Type, ProblemBase) }

// Blocker is who is in the way of a lease.
type Blocker struct {
	Client string `json:"client"`
	Note   string `json:"note,omitempty"`
	Mode   string `json:"mode" enum:"exclusive,shared"`
	Held   bool   `json:"held" doc:"it holds the lock; otherwise it is ahead in the queue"`
	ForMS  int64  `json:"for_ms"`
}

// Vote is what a node said of a lease.
type Vote struct {
	Node   string `json:"node"`
	Answer string `json:"answer" enum:"voted,queued,refused,recovering,silent"`
	Detail string `json:"detail,omitempty"`
}

// Quorum is how near a request came to the votes that it needs of one list of nodes.
type Quorum struct {
	Nodes []string `json:"nodes" doc:"the names of the list"`
	Votes int      `json:"votes"`
	Need  int      `json:"need"`
}

// The kinds of problems. The table is also what the OpenAPI document and a test of
// docs/gateway.md are made from.
var kinds = map[string]struct {
	status int
	title  string
	retry  bool
}{
	"malformed":          {http.StatusBadRequest, "The request cannot be read", false},
	"invalid":            {http.StatusUnprocessableEntity, "A value is not allowed", false},
	"unauthenticated":    {http.StatusUnauthorized, "Credentials are needed", false},
	"forbidden":          {http.StatusForbidden, "NATS permissions do not allow it", false},
	"cross-origin":       {http.StatusForbidden, "A page of another origin may not do this", false},
	"unknown-lease":      {http.StatusNotFound, "There is no such lease", false},
	"not-found":          {http.StatusNotFound, "There is no such resource", false},
	"method-not-allowed": {http.StatusMethodNotAllowed, "The resource does not have this method", false},
	"held":               {http.StatusConflict, "Held by another", true},
	"lease-mismatch":     {http.StatusConflict, "The lease id was used for another request", false},
	"fenced":             {http.StatusConflict, "A newer holder has the lock", false},
	"conflict":           {http.StatusPreconditionFailed, "The key is not as the request demands", false},
	"once-mismatch":      {http.StatusConflict, "The id was used for another transaction", false},
	"read-only":          {http.StatusConflict, "A shared lock only reads", false},
	"no-key":             {http.StatusNotFound, "The key has no value", false},
	"no-bucket":          {http.StatusNotFound, "There is no such bucket", false},
	"not-number":         {http.StatusUnprocessableEntity, "The value is not a number", false},
	"unsupported":        {http.StatusUnprocessableEntity, "The bucket or the server cannot have fences", false},
	"not-prepared":       {http.StatusNotImplemented, "The bucket is not prepared", false},
	"no-jetstream":       {http.StatusNotImplemented, "There is no JetStream", false},
	"store-unreachable":  {http.StatusServiceUnavailable, "JetStream does not answer", true},
	"unknown-outcome":    {http.StatusGatewayTimeout, "It is not known whether it was done", false},
	"full":               {http.StatusInsufficientStorage, "The bucket is full", false},
	"ambiguous":          {http.StatusConflict, "Several claims could be meant", false},
	"state-conflict":     {http.StatusConflict, "Another has the lock of the state", false},
	"state-locked":       {http.StatusLocked, "The state is locked", true},
	"gone":               {http.StatusGone, "The lease is over", false},
	"too-large":          {http.StatusRequestEntityTooLarge, "The body is too large", false},
	"media-type":         {http.StatusUnsupportedMediaType, "The body must be JSON", false},
	"wrong-host":         {http.StatusMisdirectedRequest, "This host name is not served here", false},
	"precondition":       {http.StatusPreconditionRequired, "Name the lease or the token", false},
	"too-many":           {http.StatusTooManyRequests, "A limit is reached", true},
	"internal":           {http.StatusInternalServerError, "The gateway failed", true},
	"refused":            {http.StatusServiceUnavailable, "Nodes refused the request", true},
	"no-quorum":          {http.StatusServiceUnavailable, "Too few nodes could vote", true},
	"unreachable":        {http.StatusServiceUnavailable, "NATS, or the gateway that has the lease, cannot be reached", true},
	"draining":           {http.StatusServiceUnavailable, "The gateway is stopping", true},
}

// typeOf is the type of each kind.
var typeOf = func() map[string]string {
	out := map[string]string{}
	for kind := range kinds {
		out[kind] = ProblemBase + kind
	}
	return out
}()

func problem(kind, format string, args ...any) *Problem {
	k, ok := kinds[kind]
	if !ok {
		panic("gateway: no such kind of problem: " + kind)
	}
	p := &Problem{Type: typeOf[kind], Title: k.title, Status: k.status, Retryable: k.retry, Detail: format}
	if len(args) > 0 || strings.Contains(format, "%") {
		p.Detail = fmt.Sprintf(format, args...)
	}
	if k.status == http.StatusServiceUnavailable || k.status == http.StatusTooManyRequests {
		p.retryAfter = time.Second
	}
	return p
}

func invalid(detail string) *Problem { return problem("invalid", "%s", detail) }

// Why a lease is over.
const (
	causeExpired     = "expired"      // not renewed
	causeAbandoned   = "abandoned"    // nobody asked whether it was granted
	causeLost        = "lost"         // too few nodes confirmed it
	causeEvicted     = "evicted"      // somebody ended it
	causeReleased    = "released"     // its caller ended it
	causeDraining    = "draining"     // the gateway stopped
	causeGatewayLost = "gateway-lost" // the gateway that had it is gone
)

var causes = []string{causeExpired, causeAbandoned, causeLost, causeEvicted, causeReleased, causeDraining, causeGatewayLost}

func gone(cause string, token uint64, format string, args ...any) *Problem {
	p := problem("gone", format, args...)
	p.Cause, p.Token = cause, token
	return p
}

func evicted(err error, detail string) *Problem {
	p := gone(causeEvicted, 0, "%s", detail)
	p.By, p.Reason, _ = qlock.EvictedBy(err)
	return p
}

// blockerOf is who is in the way, as the library tells it.
func blockerOf(h *qlock.Holder) *Blocker {
	if h == nil {
		return nil
	}
	return &Blocker{Client: h.Client, Mode: modeName(h.Shared), Held: h.Held, ForMS: h.For.Milliseconds()}
}

func votesOf(nodes []qlock.NodeAnswer) []Vote {
	out := make([]Vote, len(nodes))
	for i, n := range nodes {
		out[i] = Vote{n.Node, string(n.Answer), n.Detail}
	}
	return out
}

// quorumsOf is nil unless the list of nodes changes.
func quorumsOf(lists []qlock.ListVotes) (out []Quorum) {
	for _, l := range lists {
		out = append(out, Quorum(l))
	}
	return out
}

// isQueued reports whether so many nodes have queued a request that there was no lack of
// nodes: another was in the way, though the Locker was not told who.
func isQueued(e *qlock.LockError) bool {
	able, queued := map[string]bool{}, false
	for _, n := range e.Nodes {
		if n.Answer == qlock.AnswerVoted || n.Answer == qlock.AnswerQueued {
			able[n.Node] = true
			queued = queued || n.Answer == qlock.AnswerQueued
		}
	}
	for _, l := range e.Lists { // while the list of nodes changes, each has to be enough
		n := 0
		for _, name := range l.Nodes {
			if able[name] {
				n++
			}
		}
		if n < l.Need {
			return false
		}
	}
	return queued && len(able) >= e.Need
}

func modeName(shared bool) string {
	if shared {
		return "shared"
	}
	return "exclusive"
}

// problemOf is an error of the library for a caller.
func problemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var e *qlock.LockError
	hasVotes := errors.As(err, &e)
	text := withoutContext(strings.ReplaceAll(strings.TrimPrefix(err.Error(), "qlock: "), ": qlock: ", ": "))
	switch {
	case errors.Is(err, qlock.ErrInvalidName):
		return invalid(text)
	case errors.Is(err, qlock.ErrEvicted):
		return evicted(err, text)
	case errors.Is(err, qlock.ErrHeld):
		p = problem("held", "")
		if hasVotes && e.Holder != nil {
			p.Blocker = blockerOf(e.Holder)
			p.Detail = p.Blocker.text()
		}
		return p
	case hasVotes && e.Reason == qlock.ErrNoQuorum && isQueued(e):
		return problem("held", "the nodes have queued the request, and have not said yet behind whom")
	case errors.Is(err, qlock.ErrRefused) && hasVotes && slices.ContainsFunc(e.Nodes, func(n qlock.NodeAnswer) bool { return n.Answer == qlock.AnswerRefused }):
		p = problem("refused", "%s", text)
	case errors.Is(err, qlock.ErrRefused):
		p = problem("forbidden", "%s", text)
	case errors.Is(err, qlock.ErrClosed):
		return problem("unreachable", "%s", text)
	case errors.Is(err, qlock.ErrNoQuorum), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p = problem("no-quorum", "%s", text)
	default:
		return problem("internal", "%s", text)
	}
	if hasVotes {
		p.Nodes, p.Lists = votesOf(e.Nodes), quorumsOf(e.Lists)
	}
	return p
}

// withoutContext takes the end of a context from the end of an error's text. The context is one of
// the gateway's, which bounds how long it waits or asks: callers know it as that.
func withoutContext(text string) string {
	for _, ended := range []error{context.Canceled, context.DeadlineExceeded} {
		text = strings.TrimSuffix(text, ": "+ended.Error())
	}
	return text
}

func (b *Blocker) text() string {
	verb := "held by"
	if !b.Held {
		verb = "requested before by"
	}
	return fmt.Sprintf("%s %s (%s) for %v", verb, b.Client, b.Mode, (time.Duration(b.ForMS) * time.Millisecond).Round(time.Millisecond))
}
