package qlock

import (
	"fmt"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// The subjects of requests and events contain the client and the resource. So NATS permissions can
// refer to both, and people can read them with "nats sub":
//
//	lock.<cluster>.node.<verb>.<client>.<resource>
//	lock.<cluster>.admin.<verb>.<client>.<resource>
//	lock.<cluster>.event.<kind>.<client>.<resource>
//
// Package internal/subject builds and parses subjects. The functions below are for observers.

// Subject holds the parts of the subject of a qlock message.
type Subject struct {
	Cluster string
	Family  string // "node", "admin" or "event"; "api" is reserved
	Verb    string // of a request, or the kind of an event; empty if there are several requests
	Client  string
	Name    string // of the lock; empty if the message is not about a single lock
	Encoded string // Name as it is in the subject: without blanks and control characters
}

// ParseSubject splits the subject of a message that was received on a ClusterSubject or an
// EventSubject. Any client that may publish there can choose the subject, so ParseSubject returns
// an error for subjects that qlock does not use.
func ParseSubject(s string) (Subject, error) {
	p, name, err := subject.Parse(s)
	if err != nil {
		return Subject{}, fmt.Errorf("qlock: %w", err)
	}
	return Subject{p.Cluster, p.Family, p.Verb, p.Client, name, p.Resource}, nil
}

// ClusterSubject returns the NATS subject that matches everything that the clients of a cluster
// publish: requests and events. It does not match the answers of nodes, which go to inboxes. The
// cluster * stands for all clusters. The error is ErrInvalidName if the cluster's name is invalid.
func ClusterSubject(cluster string) (string, error) {
	if err := checkClusters(cluster); err != nil {
		return "", err
	}
	return subject.Cluster(cluster), nil
}

// EventSubject returns the NATS subject that matches a cluster's events of locks whose names match
// the pattern. The pattern has names in the form that they have in subjects (docs/wire.md), * for
// one token, and > at the end for all tokens that follow. An empty pattern matches all names. The
// cluster * stands for all clusters. The error is ErrInvalidName if the cluster's name or the
// pattern is invalid.
func EventSubject(cluster, pattern string) (string, error) {
	if err := checkClusters(cluster); err != nil {
		return "", err
	}
	if pattern == "" {
		pattern = subject.Rest
	}
	if !subject.IsPattern(pattern) {
		return "", fmt.Errorf("%w: the pattern %s", ErrInvalidName, quote(pattern))
	}
	return subject.Event(cluster, subject.Any, subject.Any, pattern), nil
}

func (s Subject) isEvent() bool { return s.Family == subject.FamilyEvent }

func checkClusters(cluster string) error {
	if cluster == subject.Any {
		return nil
	}
	return subject.CheckToken("cluster", cluster)
}

func quote(s string) string { return printable.Quote(s) }
