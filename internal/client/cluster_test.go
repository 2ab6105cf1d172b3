package client

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/quorum"
	"github.com/qlock/qlock/internal/wire"
)

var (
	oneConfig     = wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 12 * time.Second, Skew: time.Second}
	anotherConfig = wire.Config{Nodes: []string{"n1", "n2", "n3"}, MaxTTL: 6 * time.Second, Skew: time.Second}
)

// waitingClient returns a client that has asked once and waits.
func waitingClient() (c *Client, cl *Claim, now wire.Now, asked uint64) {
	now = wire.Now{Mono: time.Second, Wall: 1_000_000}
	c = New(Config{Name: "a", Instance: uuid.UUID{1}, TTL: 5 * time.Second, MaxRuns: 4, Cluster: oneConfig}, now)
	var out Out
	cl = c.Claim(now, Request{Resource: "r", Mode: quorum.Exclusive}, &out)
	return c, cl, now, out.Requests[0].SentAt
}

func answerOf(node string, cfg wire.Config, k wire.Kind, sentAt uint64) *wire.Answer {
	return &wire.Answer{
		Kind: k, Node: node, Incarnation: uuid.UUID{node[1]}, Digest: cfg.Digest(), Client: "a",
		Claim: wire.ClaimID{Instance: uuid.UUID{1}, Seq: 1}, SentAt: sentAt, Fence: 7, Retryable: true,
	}
}

// A refusal because of the old configuration may arrive after the client has taken the
// new one.
func TestLateRefusalOfTheOldConfiguration(t *testing.T) {
	c, cl, now, asked := waitingClient()
	var out Out
	c.SetCluster(now, anotherConfig, &out)
	for _, node := range oneConfig.Nodes {
		c.Handle(now, answerOf(node, anotherConfig, wire.Refused, asked), &out)
	}
	if cl.State() != Waiting {
		t.Fatal("the claim failed by refusals of a configuration that its client has no more")
	}
	for _, node := range oneConfig.Nodes[:2] {
		c.Handle(now, answerOf(node, anotherConfig, wire.Granted, cl.sentAt), &out)
	}
	if cl.State() != Holding {
		t.Error("votes that answer the new acquire do not count")
	}
}

// A configuration that comes back does not bring back votes that were yielded in it
// (C2).
func TestYieldOutlivesAChangeOfConfiguration(t *testing.T) {
	c, cl, now, asked := waitingClient()
	var out Out
	c.Handle(now, answerOf("n1", oneConfig, wire.Recall, asked), &out)
	if r := out.Requests[len(out.Requests)-1]; r.Verb != wire.Yield {
		t.Fatalf("a recall is answered with %v", r.Verb)
	}
	c.SetCluster(now, anotherConfig, &out)
	c.SetCluster(now, oneConfig, &out)
	c.Handle(now, answerOf("n1", oneConfig, wire.Granted, asked), &out)
	if n := c.Votes(cl); n != 0 {
		t.Errorf("%d votes stand, one of which was given back", n)
	}
}
