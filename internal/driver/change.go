package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// Change runs the operator's command that changes the list of nodes, until it is done or ctx ends
// (E11). note is told what the operator should read, on the goroutine that called Change.
func Change(ctx context.Context, nc *nats.Conn, cluster, client string, wish epoch.Wish, note func(string)) error {
	// The connection may stand still, and then so may a call to it. Notes must still come from the
	// caller's goroutine, so they cross a channel.
	notes := make(chan string)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		done <- natsio.Call(ctx, func() error { return change(ctx, nc, cluster, client, wish, notes) }, func() {})
	}()
	for {
		select {
		case text := <-notes:
			note(text)
		case err := <-done:
			if errors.Is(err, natsio.ErrStandsStill) {
				return fmt.Errorf("%w: the nodes of cluster %q could not be asked: %w", ErrNoQuorum, cluster, err)
			}
			return err
		}
	}
}

func change(ctx context.Context, nc *nats.Conn, cluster, client string, wish epoch.Wish, notes chan<- string) error {
	if nc.IsClosed() {
		return closedError(nc)
	}
	wish.CID = uuid.New()
	before := nc.LastError()
	inbox, answers := nc.NewInbox(), make(chan *nats.Msg, 1024)
	sub, err := nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return fmt.Errorf("qlock: subscribe to answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	subjects := map[wire.Verb]string{}
	for _, verb := range []wire.Verb{wire.Info, wire.Configure} {
		subjects[verb] = subject.Request(cluster, string(verb), client, "")
	}
	// A step that cannot be sent is repeated, and why it cannot is told at the end.
	var last error
	publish := func(r wire.Request) {
		r.Client = client
		if err := nc.PublishRequest(subjects[r.Verb], inbox, wire.AppendRequest(nil, &r)); err != nil {
			last = err
		}
	}

	op, start, nonce, said := epoch.NewOperator(cluster, wish, uuid.New()), time.Now(), uuid.NewString(), ""
	timer := time.NewTimer(0)
	defer timer.Stop()
	heard := false
	for {
		var want epoch.Want
		now := time.Since(start)
		timer.Reset(max(op.Deadline()-now, 0))
		select {
		case <-ctx.Done():
			return changeError(cluster, said, heard, last, natsio.ContextError(ctx))
		case <-timer.C:
			op.Tick(time.Since(start), &want)
		case m := <-answers:
			if natsio.NobodyHears(m) {
				continue // nodes may be about to start
			}
			a, err := wire.DecodeAnswer(m.Data)
			if err != nil {
				continue // of a node of another version
			}
			heard = true
			switch now = time.Since(start); {
			case a.Kind == wire.Configured && a.Nonce == nonce:
				op.Hear(now, a.Node, a.Step, &want)
			case a.Kind == wire.Informed && a.Info.Config == nil:
				op.Show(now, a.Info.Nonce, shownBy(a), &want)
			case a.Kind == wire.Informed:
				s := shownBy(a)
				c := a.Info.Config
				s.ID, s.Record, s.Links, s.Joining, s.Had = c.ID, c.Record, c.Links, c.Joining, c.Had
				op.Show(now, a.Info.Nonce, s, &want)
			}
		}
		for _, on := range subjects {
			if err := deniedSince(nc, before, on, inbox); err != nil {
				return err
			}
		}
		if want.Ask != "" {
			publish(wire.Request{Verb: wire.Info, Nonce: want.Ask, ShowConfig: true})
		}
		for i := range want.Steps {
			publish(wire.Request{Verb: wire.Configure, Nonce: nonce, Step: &want.Steps[i]})
		}
		if want.Note != "" {
			said = want.Note
			select {
			case notes <- said:
			case <-ctx.Done():
			}
		}
		if want.Done {
			if want.Err != nil {
				return fmt.Errorf("qlock: %w", want.Err)
			}
			// The last step tells all nodes. What was only buffered would be lost with the process.
			flush, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return nc.FlushWithContext(flush)
		}
	}
}

func shownBy(a *wire.Answer) epoch.Shown {
	return epoch.Shown{
		Node: a.Node, Votes: a.Info.State == wire.Voting, Recovering: a.Recovering,
		Base: wire.Config{Nodes: a.Info.Nodes, MaxTTL: a.Info.MaxTTL, Skew: a.Info.Skew},
	}
}

func changeError(cluster, said string, heard bool, last, cause error) error {
	text := fmt.Sprintf("the change of cluster %q is not done", cluster)
	switch {
	case !heard:
		text += ": no node answered; is one running with this cluster name, on this NATS, in this account?"
	case said != "":
		text += ": " + said
	}
	if last != nil {
		text += fmt.Sprintf(" (last error of publishing: %v)", last)
	}
	return fmt.Errorf("%w: %s: %w", ErrNoQuorum, text, cause)
}
