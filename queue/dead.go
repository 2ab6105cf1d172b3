package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DeadLetter is an item that failed for good.
type DeadLetter struct {
	Seq      uint64 // in the stream of dead letters
	Key      string
	Data     []byte
	Header   nats.Header
	ID       string
	Reason   string // the error of the last attempt; "" if the item left no room for it
	Attempts int
	Died     time.Time
}

// Dead lists the dead letters, oldest first, one question to the stream for each. It ends
// after an error.
func (q *Queue) Dead(ctx context.Context) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for next := uint64(1); ; {
			m, err := q.dead.GetMsg(ctx, next, jetstream.WithGetMsgSubject(q.subject(deadSubject, "*")))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(DeadLetter{}, fmt.Errorf("queue: dead letters of %s: %w", q.cfg.Name, because(ctx, err)))
				return
			}
			next = m.Sequence + 1
			if d, err := q.deadLetter(m); err == nil && !yield(d, nil) {
				return
			}
		}
	}
}

func (q *Queue) deadLetter(m *jetstream.RawStreamMsg) (DeadLetter, error) {
	key, err := keyOf(strings.TrimPrefix(m.Subject, q.subject(deadSubject, "")))
	attempts, _ := strconv.Atoi(m.Header.Get(HeaderAttempts)) // somebody else's may have none
	return DeadLetter{
		Seq: m.Sequence, Key: key, Data: m.Data, Header: m.Header, ID: m.Header.Get(HeaderID),
		Reason: m.Header.Get(HeaderReason), Attempts: attempts, Died: m.Time,
	}, err
}

// Revive puts a dead letter back, at the end of the items of its key, with its attempts
// forgotten. If Revive fails in between, the item may be both, and another Revive may store it
// once more if it was done meanwhile.
//
// Errors: ErrNotFound, and those of JetStream.
func (q *Queue) Revive(ctx context.Context, seq uint64) error {
	fail := func(err error) error {
		return fmt.Errorf("queue: revive dead letter %d of %s: %w", seq, q.cfg.Name, because(ctx, err))
	}
	m, err := q.dead.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fail(ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	again := nats.NewMsg(q.subject(itemSubject, strings.TrimPrefix(m.Subject, q.subject(deadSubject, ""))))
	again.Data = m.Data
	for name, values := range m.Header {
		if lower := strings.ToLower(name); !strings.HasPrefix(lower, "nats-") && (!strings.HasPrefix(lower, "qlock-") || name == HeaderID) {
			again.Header[name] = values
		}
	}
	// Not with the item's id, which the stream may remember, nor with one that WithID allows. The
	// time tells the dead letter from one of an earlier stream, which was deleted.
	id := fmt.Sprintf("revived-%d-%0*d", seq, maxID, m.Time.UnixNano())
	again.Header.Set(jetstream.MsgIDHeader, id)
	ack, err := q.js.PublishMsg(ctx, again)
	if err == nil && ack.Duplicate {
		// By a call before this one, or by somebody who writes to the stream by himself.
		there, missing := q.items.GetMsg(ctx, ack.Sequence)
		switch {
		case missing == nil && there.Subject == again.Subject && there.Header.Get(jetstream.MsgIDHeader) == id:
		case missing == nil || errors.Is(missing, jetstream.ErrMsgNotFound):
			again.Header.Set(jetstream.MsgIDHeader, id+"-"+uuid.NewString())
			_, err = q.js.PublishMsg(ctx, again)
		default:
			err = missing
		}
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		again.Header.Del(jetstream.MsgIDHeader) // as in bury
		_, err = q.js.PublishMsg(ctx, again)
	}
	if err != nil {
		return fail(err)
	}
	if err := q.dead.DeleteMsg(ctx, seq); err != nil {
		return fail(err)
	}
	return nil
}

// bury makes an item a dead letter. If it is as large as the server takes, there is no place
// for what Qlock adds: it is then left out, as the items behind it would otherwise wait for ever.
func (q *Queue) bury(ctx context.Context, it *Item, reason string) error {
	m := nats.NewMsg(q.subject(deadSubject, tokenOf(it.Key)))
	m.Data = it.Data
	for name, values := range it.Header {
		if !strings.HasPrefix(strings.ToLower(name), "nats-") {
			m.Header[name] = values
		}
	}
	added := map[string]string{
		HeaderReason:   oneLine(reason),
		HeaderAttempts: strconv.Itoa(it.Attempt),
		HeaderSeq:      strconv.FormatUint(it.Seq, 10),
		// A worker may die between this and the end of the item. The time tells the item from one
		// of an earlier stream, which was deleted.
		jetstream.MsgIDHeader: fmt.Sprintf("%d-%d", it.Seq, it.Enqueued.UnixNano()),
	}
	for name, value := range added {
		m.Header.Set(name, value)
	}
	_, err := q.js.PublishMsg(ctx, m)
	if errors.Is(err, nats.ErrMaxPayload) {
		m.Header.Del(HeaderReason)
		_, err = q.js.PublishMsg(ctx, m)
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		for name := range added {
			m.Header.Del(name)
		}
		_, err = q.js.PublishMsg(ctx, m)
	}
	return because(ctx, err)
}

func oneLine(s string) string {
	const most = 1024
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return strings.NewReplacer("\r", " ", "\n", " ").Replace(s)
}
