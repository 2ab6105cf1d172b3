package gateway

import (
	"net/http"
	"strings"

	"github.com/nats-io/nats.go"
)

// trace is the W3C trace context of a request. The gateway takes no part in the trace: it
// logs the context, and passes it on to the gateway that a request is forwarded to.
type trace struct{ parent, state string }

const (
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"
)

// traceOf reads it. What is not as the recommendation has it is left out: it goes into logs
// and into messages.
func traceOf(values func(header string) []string) trace {
	all := values(headerTraceParent)
	if len(all) != 1 || !isTraceParent(all[0]) {
		return trace{}
	}
	t := trace{parent: all[0], state: strings.Join(values(headerTraceState), ",")}
	if len(t.state) > 512 || strings.ContainsFunc(t.state, func(c rune) bool { return c < ' ' || c > '~' }) {
		t.state = ""
	}
	return t
}

// traceOfRequest is for requests over HTTP, of which few have one.
func traceOfRequest(r *http.Request) trace {
	if r.Header["Traceparent"] == nil {
		return trace{}
	}
	return traceOf(r.Header.Values)
}

// isTraceParent accepts version 00, and what a later version has in the same places.
func isTraceParent(s string) bool {
	if len(s) < 55 || len(s) > 128 || s[2] != '-' || s[35] != '-' || s[52] != '-' || len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return false
	}
	for _, part := range []string{s[:2], s[3:35], s[36:52], s[53:55]} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return false
		}
	}
	rest := s[min(len(s), 56):]
	return s[:2] != "ff" && strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != "" && (rest == "" || isToken(rest, 72))
}

// natsValues reads headers of messages, whose names NATS does not normalize.
func natsValues(h nats.Header) func(string) []string {
	return func(name string) (out []string) {
		for key, values := range h {
			if strings.EqualFold(key, name) {
				out = append(out, values...)
			}
		}
		return out
	}
}

func (t trace) header() nats.Header {
	if t.parent == "" {
		return nil
	}
	h := nats.Header{headerTraceParent: {t.parent}}
	if t.state != "" {
		h[headerTraceState] = []string{t.state}
	}
	return h
}

// args are what a log has of it.
func (t trace) args() []any {
	if t.parent == "" {
		return nil
	}
	return []any{headerTraceParent, t.parent}
}
