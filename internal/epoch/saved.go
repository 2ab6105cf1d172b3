package epoch

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/wire"
)

// savedState is a State on disk, but for the id. The form has its own names, so that a
// change of the types in memory does not change what the next version reads. A change here
// is a new version of package statedir's file.
type savedState struct {
	Record   json.RawMessage `json:"record,omitempty"` // as in messages
	Links    []savedLink     `json:"links,omitempty"`
	Promised *savedBallot    `json:"promised,omitempty"`
	Accepted *savedBallot    `json:"accepted,omitempty"`
	Proposal json.RawMessage `json:"proposal,omitempty"`
	Had      int64           `json:"had_ms,omitempty"`
}

type savedLink struct {
	Epoch  uint64 `json:"epoch"`
	Digest string `json:"digest"`
}

type savedBallot struct {
	N   uint64    `json:"n"`
	Run uuid.UUID `json:"run"`
}

// Encode returns the state for the node's directory, but for the id, which is beside it.
// The result is nil if there is nothing that must not be forgotten: the node is at epoch 0,
// or waits to join, and has promised nothing.
func (s *State) Encode() ([]byte, error) {
	if s.Record == nil && s.Promised == (wire.Ballot{}) {
		return nil, nil
	}
	f := savedState{
		Record: saveRecord(s.Record), Promised: saveBallot(s.Promised), Accepted: saveBallot(s.Accepted),
		Proposal: saveRecord(s.Proposal), Had: s.Had.Milliseconds(), // rounded down: at least so long (E5)
	}
	for _, l := range s.Links {
		f.Links = append(f.Links, savedLink(l))
	}
	return json.Marshal(f)
}

func saveRecord(r *Record) json.RawMessage {
	if r == nil {
		return nil
	}
	return wire.AppendEpochRecord(nil, r)
}

func saveBallot(b wire.Ballot) *savedBallot {
	if b == (wire.Ballot{}) {
		return nil
	}
	return &savedBallot{b.N, b.Run}
}

// DecodeState returns the state of the node with this id from what Encode returned. It
// fails if that cannot be such a state. Then the node must not start: it does not know what
// it has promised.
func DecodeState(id uuid.UUID, b []byte) (State, error) {
	s := State{ID: id}
	if len(b) == 0 {
		return s, nil
	}
	var f savedState
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	err := dec.Decode(&f)
	if !json.Valid(b) {
		err = errors.New("it is not one value of JSON")
	}
	if err == nil {
		s.Record, err = loadRecord(f.Record)
	}
	if err == nil {
		s.Proposal, err = loadRecord(f.Proposal)
	}
	if err == nil {
		s.Promised, s.Accepted = f.Promised.load(), f.Accepted.load()
		s.Had = time.Duration(f.Had) * time.Millisecond
		for _, l := range f.Links {
			s.Links = append(s.Links, wire.Link(l))
		}
		err = s.check(f.Had)
	}
	if err != nil {
		return State{ID: id}, fmt.Errorf("what the node knows of the cluster's configuration: %w", err)
	}
	return s, nil
}

// check says why this cannot be the state of a node.
func (s *State) check(hadMs int64) error {
	const mostHad = int64(1<<63-1) / int64(time.Millisecond)
	switch {
	case hadMs < 0 || hadMs > mostHad:
		return fmt.Errorf("it has had its record for %d ms", hadMs)
	case s.Record == nil && (len(s.Links) > 0 || hadMs > 0 && s.Promised == wire.Ballot{}):
		return errors.New("there is a history without a record")
	case (s.Proposal == nil) != (s.Accepted == wire.Ballot{}):
		return errors.New("there is a record that was accepted without a ballot, or the reverse")
	case s.Promised.Compare(s.Accepted) < 0:
		return fmt.Errorf("what was accepted has a higher ballot (%d) than what was promised (%d)", s.Accepted.N, s.Promised.N)
	case len(s.Links) > wire.MaxLinks:
		return fmt.Errorf("the history has %d links, %d are kept", len(s.Links), wire.MaxLinks)
	}
	for i, l := range s.Links {
		if i > 0 && s.Links[i-1].Epoch >= l.Epoch {
			return fmt.Errorf("epoch %d follows epoch %d in the history", l.Epoch, s.Links[i-1].Epoch)
		}
	}
	if s.Record != nil {
		if n := len(s.Links); n == 0 || s.Links[n-1] != (wire.Link{Epoch: s.Record.Epoch, Digest: s.Record.Digest()}) {
			return fmt.Errorf("the history does not end with the record of epoch %d", s.Record.Epoch)
		}
	}
	switch p := s.Proposal; {
	case p == nil:
	case s.Record != nil:
		if err := Follows(s.Record, p); err != nil {
			return fmt.Errorf("accepted: %w", err)
		}
	default:
		if err := begins(p.Cluster, p); err != nil {
			return fmt.Errorf("accepted: %w", err)
		}
	}
	return nil
}

func loadRecord(b json.RawMessage) (*Record, error) {
	if b == nil {
		return nil, nil
	}
	return wire.DecodeEpochRecord(b)
}

func (f *savedBallot) load() wire.Ballot {
	if f == nil {
		return wire.Ballot{}
	}
	return wire.Ballot{N: f.N, Run: f.Run}
}
