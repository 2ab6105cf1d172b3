package qlock_test

import (
	"errors"
	"testing"

	"github.com/qlock/qlock"
)

func TestSubjectsOfObservers(t *testing.T) {
	for _, tt := range []struct {
		make func() (string, error)
		want string
	}{
		{func() (string, error) { return qlock.ClusterSubject("prod") }, "lock.prod.>"},
		{func() (string, error) { return qlock.ClusterSubject("*") }, "lock.*.>"},
		{func() (string, error) { return qlock.ClusterSubject(">") }, ""},
		{func() (string, error) { return qlock.ClusterSubject("") }, ""},
		{func() (string, error) { return qlock.EventSubject("*", "") }, "lock.*.event.*.*.>"},
		{func() (string, error) { return qlock.EventSubject("prod", "orders.*") }, "lock.prod.event.*.*.orders.*"},
		{func() (string, error) { return qlock.EventSubject("a.*", "") }, ""},
	} {
		got, err := tt.make()
		if got != tt.want || (tt.want == "") != errors.Is(err, qlock.ErrInvalidName) {
			t.Errorf("%q, %v, want %q", got, err, tt.want)
		}
	}
}

func TestParseSubject(t *testing.T) {
	for s, want := range map[string]qlock.Subject{
		"lock.prod.node.acquire.a.price%20list": {Cluster: "prod", Family: "node", Verb: "acquire", Client: "a", Name: "price list", Encoded: "price%20list"},
		"lock.prod.admin.list.a":                {Cluster: "prod", Family: "admin", Verb: "list", Client: "a"},
		"lock.prod.node.a":                      {Cluster: "prod", Family: "node", Client: "a"},
		"lock.prod.event.lost.a.x.y":            {Cluster: "prod", Family: "event", Verb: "lost", Client: "a", Name: "x.y", Encoded: "x.y"},
	} {
		if got, err := qlock.ParseSubject(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "lock.prod.node", "lock.prod.node.acquire.a", "lock.prod.node.acquire.a.%61", "orders.new"} {
		if got, err := qlock.ParseSubject(s); err == nil || got != (qlock.Subject{}) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}
