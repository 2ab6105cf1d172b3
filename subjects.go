package qlock

import (
	"fmt"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// The subjects of requests and events carry the client and the resource, so that NATS
// permissions can be written in terms of them and people can read them with "nats sub":
//
//	lock.<cluster>.node.<verb>.<client>.<resource>
//	lock.<cluster>.admin.<verb>.<client>.<resource>
//	lock.<cluster>.event.<kind>.<client>.<resource>
//
// Package internal/subject builds and parses them. What follows is for observers.

// Subject is what the subject of a qlock message says.
type Subject struct {
	Cluster string
	Family  string // "node", "admin" or "event"; "api" is reserved
	Verb    string // of a request, or the kind of an event; empty if the message has several requests
	Client  string
	Name    string // of the lock; empty if the message concerns no single one
	Encoded string // the same as it is in the subject: without blanks, or what a terminal would obey
}

// ParseSubject reads the subject of a message that came for a ClusterSubject or an
// EventSubject. Messages may come from anybody who may publish there; a subject that
// qlock does not use is an error.
func ParseSubject(s string) (Subject, error) {
	p, name, err := subject.Parse(s)
	if err != nil {
		return Subject{}, fmt.Errorf("qlock: %w", err)
	}
	return Subject{p.Cluster, p.Family, p.Verb, p.Client, name, p.Resource}, nil
}

// ClusterSubject is the NATS subject of everything that a cluster's clients publish:
// requests and events. The answers of nodes go to inboxes, and are not among them. The
// cluster * stands for all clusters.
func ClusterSubject(cluster string) (string, error) {
	if err := checkClusters(cluster); err != nil {
		return "", err
	}
	return subject.Cluster(cluster), nil
}

// EventSubject is the NATS subject of a cluster's events of locks whose names match
// the pattern: names as they stand in subjects (docs/wire.md), * for one token, and
// > at the end for all that follow. An empty pattern is all. The cluster * stands for
// all clusters.
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
