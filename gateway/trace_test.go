package gateway

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestTraceContext(t *testing.T) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for text, ok := range map[string]bool{
		good: true, "": false, "x": false, strings.ToUpper(good): false, good + "-x": false, good[:54]: false,
		"ff" + good[2:]: false, "01" + good[2:] + "-more": true, "01" + good[2:] + "more": false, "01" + good[2:] + "-a\nb": false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"01" + good[2:] + "-" + strings.Repeat("a", 200):          false,
	} {
		if isTraceParent(text) != ok {
			t.Errorf("%q: %v", text, !ok)
		}
	}
	h := http.Header{"Traceparent": {good}, "Tracestate": {"a=1", "b=2"}}
	if got := traceOf(h.Values); got != (trace{good, "a=1,b=2"}) {
		t.Errorf("%v", got)
	}
	h.Set("Tracestate", "a=\x7f")
	if got := traceOf(h.Values); got != (trace{good, ""}) {
		t.Errorf("%v", got)
	}
	h.Add("Traceparent", good)
	if got := traceOf(h.Values); got != (trace{}) {
		t.Errorf("two of them: %v", got)
	}
	if traceOf(natsValues(nats.Header{"traceparent": {good}})).parent != good || traceOf(natsValues(nats.Header{"Traceparent": {good}})).parent != good {
		t.Error("the headers of messages are not read")
	}
}

// The trace context of a request goes along when it is forwarded, and into the logs of both
// gateways.
func TestTraceIsPassedOn(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 3)
		var log bytes.Buffer
		logged := func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		a, b := w.gateway(logged), w.gateway()
		time.Sleep(time.Second)
		sub, err := w.connect().SubscribeSync("lock.default.gw.to.>")
		if err != nil {
			t.Fatal(err)
		}
		settle()
		path := ask(t, a, "POST", "/v1/locks/x", "").want(t, 201, "").header.Get("Location")
		ask(t, b, "GET", path, "", "traceparent", parent, "tracestate", "a=1").want(t, 200, "")
		settle()
		m, err := sub.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("traceparent") != parent || m.Header.Get("tracestate") != "a=1" {
			t.Errorf("%v", m.Header)
		}
		settle()
		if !strings.Contains(log.String(), "request of another gateway") || !strings.Contains(log.String(), parent) {
			t.Errorf("%s", log.String())
		}
		// What is no trace context goes nowhere.
		ask(t, b, "GET", path, "", "traceparent", "x y").want(t, 200, "")
		settle()
		if m, err = sub.NextMsg(time.Second); err != nil || m.Header != nil {
			t.Errorf("%v %v", m, err)
		}
		if err := a.ServeNATS(); err != nil {
			t.Fatal(err)
		}
		settle()
		r := nats.NewMsg("lock.default.api.nodes")
		r.Header.Set("traceparent", strings.Replace(parent, "4bf9", "beef", 1))
		if _, err := w.connect().RequestMsg(r, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		settle()
		if !strings.Contains(log.String(), "beef") {
			t.Errorf("%s", log.String())
		}
	})
}
