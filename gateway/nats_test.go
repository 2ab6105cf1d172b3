package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/qlocktest"
)

// Each operation that has a verb is at the NATS door, and no other.
func TestVerbs(t *testing.T) {
	var table, door []string
	for _, op := range operations {
		if op.verb != "" {
			table = append(table, op.verb)
		}
	}
	for _, v := range verbs {
		door = append(door, v.name)
	}
	slices.Sort(table)
	slices.Sort(door)
	if !slices.Equal(table, door) {
		t.Errorf("the table has %v, the door %v", table, door)
	}
}

func TestNATSDoor(t *testing.T) {
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second))
	nc := c.Servers()[0].Conn()
	g, err := New(t.Context(), Config{Conn: nc, Client: "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := g.ServeNATS(); err != nil {
		t.Fatal(err)
	}
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(verb, body string, status int) *reply {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		m, err := nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: "lock.default.api." + verb, Data: []byte(body), Header: nats.Header{"X-Request-Id": {"r1"}}})
		if err != nil {
			t.Fatalf("%s %s: %v", verb, body, err)
		}
		out := &reply{body: m.Data}
		code := m.Header.Get("Status")
		if e := m.Header.Get("Nats-Service-Error-Code"); e != "" {
			code = e
			if err := json.Unmarshal(m.Data, &out.fault); err != nil {
				t.Error(err)
			}
			checkBody(t, &http.Request{Method: verb}, &reply{body: m.Data}, doc.Components.Schemas["Problem"].Value)
		} else if len(m.Data) > 0 {
			_ = json.Unmarshal(m.Data, &out.lease)
			for _, op := range operations {
				if op.verb == verb {
					name := op.answers[0].body
					if _, ok := name.(Lease); ok {
						checkBody(t, &http.Request{Method: verb}, &reply{body: m.Data}, doc.Components.Schemas["Lease"].Value)
					}
				}
			}
		}
		if code != strconv.Itoa(status) {
			t.Fatalf("%s %s: want %d, got %s %s", verb, body, status, code, m.Data)
		}
		return out
	}
	a := ask("acquire", `{"name":"nightly","lease":"28s"}`, 201)
	if a.lease.Request != "r1" || a.lease.Token == 0 {
		t.Errorf("%s", a.body)
	}
	ask("acquire", `{"name":"nightly"}`, 409)
	id := uuid.NewString()
	w := ask("acquire", `{"id":"`+id+`","name":"nightly","wait":"1s"}`, 409)
	if w.fault.Blocker == nil {
		t.Errorf("%s", w.body)
	}
	ask("renew", `{"id":"`+a.lease.ID+`"}`, 200)
	ask("poll", `{"id":"`+a.lease.ID+`"}`, 200)
	ask("release", `{"id":"`+a.lease.ID+`"}`, 204)
	ask("poll", `{"id":"`+a.lease.ID+`"}`, 410)
	ask("renew", `{"id":"nobody's"}`, 404)
	ask("acquire", `{"id":"`+id+`","name":"nightly","wait":"1m","lease":"28s"}`, 201)
	ask("release", `{"name":"nightly"}`, 428)
	ask("locks", ``, 200)
	ask("lock", `{"name":"nightly"}`, 200)
	ask("nodes", `{}`, 200)
	ask("acquire", `{"name":"x","name":"y"}`, 400)
	ask("acquire", `{"nom":"x"}`, 422)
	if i, err := nc.RequestWithContext(t.Context(), "$SRV.INFO.qlock-api", nil); err != nil || !strings.Contains(string(i.Data), g.Name()) {
		t.Errorf("the service: %v", err)
	}
	// An answer must not become a request to a node.
	spy, err := nc.SubscribeSync("lock.default.node.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest("lock.default.api.nodes", "lock.default.node.acquire.evil.x", nil); err != nil {
		t.Fatal(err)
	}
	ask("locks", ``, 200) // one of another subject may overtake; the next is of the same
	ask("nodes", ``, 200)
	if m, err := spy.NextMsg(10 * time.Millisecond); err == nil && strings.Contains(m.Subject, "evil") {
		t.Errorf("published %s", m.Subject)
	}
	ask("release", `{"id":"`+id+`"}`, 204)
}
