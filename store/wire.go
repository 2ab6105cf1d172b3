package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/natsio"
)

const (
	headerTTL    = "Nats-TTL"
	headerMarker = "Nats-Marker-Reason"
	headerKVOp   = "KV-Operation"
	headerRollup = "Nats-Rollup"

	headerBatch       = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"

	headerUpTo    = "Nats-UpTo-Sequence"
	headerPending = "Nats-Num-Pending"
	headerSubject = "Nats-Subject"
	headerSeq     = "Nats-Sequence"
	headerTime    = "Nats-Time-Stamp"

	// headerID marks the single message of a transaction, as Nats-Batch-Id does in a batch.
	headerID     = "Qlock-Id"
	headerClient = "Qlock-Client"
	headerMode   = "Qlock-Mode"
	headerWriter = "Qlock-Writer"
)

// item is a message of the stream.
type item struct {
	seq  uint64
	time time.Time
	data []byte
	hdr  nats.Header
}

// gone reports whether the message says that there is no value.
func (i *item) gone() bool { return i == nil || i.op() != jetstream.KeyValuePut }

func (i *item) revision() uint64 {
	if i == nil {
		return 0
	}
	return i.seq
}

// op is what package jetstream takes the message for, so that all clients see the same: a
// KV-Operation that it does not know is that of a value.
func (i *item) op() jetstream.KeyValueOp {
	if len(i.hdr) == 0 {
		return jetstream.KeyValuePut
	}
	switch op, marker := i.hdr.Get(headerKVOp), i.hdr.Get(headerMarker); {
	case op == "DEL", op == "" && marker == "Remove":
		return jetstream.KeyValueDelete
	case op == "PURGE", op == "" && marker != "":
		return jetstream.KeyValuePurge
	}
	return jetstream.KeyValuePut
}

// answer is what a replica has at one moment: of each subject that was asked for, the last
// message up to a sequence. upTo is 0 if it has none of them: then it does not say.
type answer struct {
	upTo  uint64
	items map[string]*item
}

// refused is the server's answer "wrong last sequence: N": a condition did not hold.
// Nothing was stored. seq is the last sequence of the subject of that condition, 0 if it
// has none.
type refused struct{ seq uint64 }

func (e *refused) Error() string { return fmt.Sprintf("wrong last sequence: %d", e.seq) }

var (
	// errBusy: nothing was stored, and the server cannot say yet whether it may be.
	errBusy = errors.New("the server is busy with other writes")
	// errSilent: no answer came. The message may be stored, now or later.
	errSilent = errors.New("no answer from the server")
)

// wire is what the store needs of NATS. Tests stand in for it to lose and delay messages.
type wire interface {
	// send stores one message, or several as an atomic batch with the given id, and
	// returns the sequence of the last. Errors are *refused, errBusy, errSilent, or any
	// other if nothing was stored.
	send(ctx context.Context, id string, msgs []*nats.Msg) (uint64, error)
	// read asks any replica.
	read(ctx context.Context, subjects []string) (answer, error)
	// since asks any replica for what it has of the whole stream from a sequence on.
	since(ctx context.Context, from uint64) (page, error)
}

// page is a part of the stream, in its order.
type page struct {
	items    []*item
	subjects []string // of the items
	last     uint64   // sequence up to which that is all
	more     bool     // there are later ones
}

// newID names a batch or a transaction.
func newID() string { return rand.Text() }

type natsWire struct {
	nc     *nats.Conn
	prefix string // of published subjects, for a JetStream domain
	stream string
	get    string // the subject of direct gets
	quiet  time.Duration
	most   atomic.Int64                    // bytes of a message that the bucket takes, with its headers; 0: no limit
	look   func(ctx context.Context) error // asks for that limit
}

func (w *natsWire) tooMuch(bytes int64) bool {
	most := w.most.Load()
	return most > 0 && bytes > most
}

// lookAgain asks for the bucket's limit. Without an answer it stays as it was known.
func (w *natsWire) lookAgain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, w.quiet)
	defer cancel()
	_ = w.look(ctx)
}

func (w *natsWire) limit(c jetstream.StreamConfig) { w.most.Store(int64(max(0, c.MaxMsgSize))) }

// tooLarge says which message of a write is larger than what is allowed, and why.
func (w *natsWire) tooLarge(id string, msgs []*nats.Msg, why error) error {
	m, extra := msgs[0], int64(0)
	for i, other := range msgs {
		if i == 0 || size(other) > size(m) {
			m, extra = other, batchHeader(id, i+1, len(msgs))
		}
	}
	limit, name := w.nc.MaxPayload(), "the server's limit is %d (max_payload)"
	if !errors.Is(why, nats.ErrMaxPayload) {
		limit, name = w.most.Load(), "the bucket's limit was %d (max_msg_size, MaxValueSize) when it was last looked at"
	}
	headers := size(m) + extra - int64(len(m.Data))
	return fmt.Errorf("%w: %s: the value has %d bytes, the headers that come with it have %d, and "+name+": %w", ErrTooLarge, m.Subject, len(m.Data), headers, limit, why)
}

func (w *natsWire) send(ctx context.Context, id string, msgs []*nats.Msg) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if w.nc.IsClosed() {
		return 0, nats.ErrConnectionClosed
	}
	if len(msgs) > 1 {
		// A batch that ends in the middle blocks one of the 50 that a stream may have open, for ten
		// seconds. So nothing of it is sent if a message is too large.
		// The server gives no answer to that either, where it is the bucket's limit.
		var largest int64
		for i, m := range msgs {
			largest = max(largest, size(m)+batchHeader(id, i+1, len(msgs)))
		}
		if largest > w.nc.MaxPayload() {
			return 0, w.tooLarge(id, msgs, nats.ErrMaxPayload)
		}
		if w.tooMuch(largest) {
			w.lookAgain(ctx) // it may have been raised
			if w.tooMuch(largest) {
				return 0, w.tooLarge(id, msgs, errTooLarge)
			}
		}
	}
	before := w.nc.LastError()
	var name []string
	if len(msgs) > 1 {
		name = []string{id}
	}
	for i, m := range msgs {
		out := m
		if w.prefix != "" || len(msgs) > 1 {
			out = &nats.Msg{Subject: w.prefix + m.Subject, Header: m.Header, Data: m.Data}
		}
		if len(msgs) > 1 {
			out.Header = make(nats.Header, len(m.Header)+3)
			out.Header[headerBatch], out.Header[headerBatchSeq] = name, []string{strconv.Itoa(i + 1)}
			for k, v := range m.Header {
				out.Header[k] = v
			}
		}
		if i < len(msgs)-1 {
			// Without the commit nothing of a batch is stored, so that this failure is final.
			if err := w.nc.PublishMsg(out); err != nil {
				return 0, err
			}
			continue
		}
		if len(msgs) > 1 {
			out.Header[headerBatchCommit] = []string{"1"}
		}
		wait, cancel := context.WithTimeout(ctx, w.quiet)
		reply, err := w.nc.RequestMsgWithContext(wait, out)
		cancel()
		if err == nil {
			if seq := ackOf(w.stream, reply.Data); seq > 0 {
				return seq, nil
			}
		}
		seq, err := stored(reply, err)
		if api := (*jetstream.APIError)(nil); errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.ErrorCode == codeTooLarge {
			if api != nil {
				w.lookAgain(ctx) // for the error
			}
			return 0, w.tooLarge(id, msgs, err)
		}
		if errors.Is(err, errSilent) || errors.Is(err, errBusy) {
			for _, m := range msgs {
				if denied := w.denied(before, w.prefix+m.Subject); denied != nil {
					return 0, fmt.Errorf("%w: %w", err, denied)
				}
			}
		}
		return seq, err
	}
	return 0, fmt.Errorf("%w: nothing to store", ErrInvalid)
}

// denied says that NATS has denied a publish on the subject since before was the connection's
// last error. The server gives no answer to such a message. The publish may have been another
// goroutine's: so this says why there is no answer, and not that nothing was stored.
func (w *natsWire) denied(before error, subject string) error { return denied(w.nc, before, subject) }

func denied(nc *nats.Conn, before error, subject string) error {
	err := nc.LastError()
	if err == before || !errors.Is(err, nats.ErrPermissionViolation) {
		return nil
	}
	on, ok := natsio.DeniedSubject(err)
	inbox := nc.Opts.InboxPrefix
	if inbox == "" {
		inbox = nats.InboxPrefix[:len(nats.InboxPrefix)-1]
	}
	switch {
	case !ok:
		return nil
	case strings.HasPrefix(on, inbox+".") && strings.Contains(err.Error(), "Subscription"):
		return fmt.Errorf("%w: answers come to this inbox: connect with nats.CustomInboxPrefix, and a prefix to which the user may subscribe", natsio.PermissionError(on, err))
	case on == subject, strings.HasSuffix(subject, ".") && strings.HasPrefix(on, subject):
		return natsio.PermissionError(on, err)
	}
	return nil
}

// unanswered adds to the error of a request to JetStream why there is no answer, if that is known.
// before is the connection's last error before the request. A subject that ends with a dot stands
// for all that begin with it.
func unanswered(nc *nats.Conn, before error, subject string, err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: is JetStream enabled on the server, and for this account?", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, nats.ErrTimeout):
		if why := denied(nc, before, subject); why != nil {
			return fmt.Errorf("%w: %w", err, why)
		}
	}
	return err
}

// forbidden reports whether an error of wire says that a permission is missing.
func forbidden(err error) bool { return errors.Is(err, nats.ErrPermissionViolation) }

// lapsed reports whether a message that was sent some time ago may have been stored and have
// expired since. Then its absence does not tell that it was not stored. The clocks of client
// and server need not run alike, and a server counts in seconds: so half the lifetime is taken.
func (s *Store) lapsed(m *nats.Msg, sent time.Time) bool {
	life := s.maxAge
	switch text := m.Header.Get(headerTTL); text {
	case "":
	case "never":
		return false
	default:
		var err error
		if life, err = time.ParseDuration(text); err != nil {
			return true
		}
	}
	if life > 0 && time.Since(sent) >= life/2 { //plant:store-lapsed
		return true
	}
	return false
}

// size is what a message counts against the server's max_payload.
func size(m *nats.Msg) int64 {
	n := len("NATS/1.0\r\n\r\n") + len(m.Data)
	for k, vs := range m.Header {
		for _, v := range vs {
			n += len(k) + len(": ") + len(v) + len("\r\n")
		}
	}
	return int64(n)
}

// batchHeader is what the headers of a batch add to the nth of its messages.
func batchHeader(id string, n, of int) int64 {
	if of == 1 {
		return 0
	}
	const colon, line = len(": "), len("\r\n")
	bytes := len(headerBatch) + colon + len(id) + line + len(headerBatchSeq) + colon + line
	for rest := n; rest > 0; rest /= 10 {
		bytes++
	}
	if n == of {
		bytes += len(headerBatchCommit) + colon + len("1") + line
	}
	return int64(bytes)
}

// errTooLarge is what the server says to a single message.
var errTooLarge = errors.New("message size exceeds maximum allowed")

// ackOf reads the sequence in the answer to a message that was stored, as the server writes
// it for the stream. For every other answer it returns 0. Package json reads those, which
// takes several times as long.
func ackOf(stream string, data []byte) uint64 {
	rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok || !bytes.HasPrefix(rest, []byte(stream)) {
		return 0
	}
	if rest, ok = bytes.CutPrefix(rest[len(stream):], []byte(`","seq":`)); !ok {
		return 0
	}
	if rest, ok = bytes.CutSuffix(rest, []byte("}")); !ok || len(rest) == 0 || len(rest) > 19 || rest[0] == '0' {
		return 0
	}
	var seq uint64
	for _, c := range rest {
		if c < '0' || c > '9' {
			return 0
		}
		seq = seq*10 + uint64(c-'0')
	}
	return seq
}

// stored reads the answer to a publish.
func stored(reply *nats.Msg, err error) (uint64, error) {
	switch {
	case err == nil:
	case errors.Is(err, nats.ErrNoResponders):
		// Nobody received it: there is no leader at the moment, or no such subject.
		return 0, fmt.Errorf("%w: %w", errBusy, err)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrHeadersNotSupported), errors.Is(err, nats.ErrConnectionDraining):
		return 0, err
	default:
		return 0, fmt.Errorf("%w: %w", errSilent, err)
	}
	var ack struct {
		Seq   uint64              `json:"seq"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Error == nil && ack.Seq == 0 {
		// The answer comes from somebody else, or is of a kind that this version does not
		// know. The message may be stored all the same.
		return 0, fmt.Errorf("%w: the answer cannot be read", errSilent)
	}
	if ack.Error == nil {
		return ack.Seq, nil
	}
	switch ack.Error.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence:
		text := ack.Error.Description
		n, err := strconv.ParseUint(text[strings.LastIndexByte(text, ' ')+1:], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: %s", errBusy, text)
		}
		return 0, &refused{n}
	case jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		// A message that the condition depends on is on its way. The server has stored
		// nothing, and does not know yet whether the condition holds.
		return 0, fmt.Errorf("%w: %w", errBusy, ack.Error) //plant:store-unsaid
	case codeBatchIncomplete, codeTooManyBatches, codeNotAvailable:
		return 0, fmt.Errorf("%w: %w", errBusy, ack.Error)
	case codeStoreFailed:
		if strings.HasPrefix(ack.Error.Description, "maximum ") {
			return 0, fmt.Errorf("%w: %w: raise its max_bytes, or remove keys if it has no replicas", ErrFull, ack.Error)
		}
	case codeAccountFull, codeServerFull, codeMemoryFull, codeStorageFull:
		return 0, fmt.Errorf("%w: %w: raise the limits of the account or the server, or remove data", ErrFull, ack.Error)
	case codeBatchDisabled, codeTTLDisabled:
		return 0, fmt.Errorf("%w: %w", ErrNotPrepared, ack.Error)
	}
	return 0, ack.Error
}

// Codes that package jetstream does not name.
const (
	codeAccountFull     jetstream.ErrorCode = 10002
	codeNotAvailable    jetstream.ErrorCode = 10008
	codeServerFull      jetstream.ErrorCode = 10023
	codeMemoryFull      jetstream.ErrorCode = 10028
	codeStorageFull     jetstream.ErrorCode = 10047
	codeStoreFailed     jetstream.ErrorCode = 10077
	codeTooLarge        jetstream.ErrorCode = 10054
	codeOverlap         jetstream.ErrorCode = 10065
	codeTTLDisabled     jetstream.ErrorCode = 10166
	codeBatchDisabled   jetstream.ErrorCode = 10174
	codeBatchIncomplete jetstream.ErrorCode = 10176
	codeTooManyBatches  jetstream.ErrorCode = 10210
)

func (w *natsWire) read(ctx context.Context, subjects []string) (answer, error) {
	body, err := json.Marshal(struct {
		MultiLast []string `json:"multi_last"`
	}{subjects})
	if err != nil {
		return answer{}, err
	}
	size := len(subjects) + 1
	for _, s := range subjects {
		if strings.HasSuffix(s, ".>") || strings.Contains(s, ".*") {
			size = maxRead + 1
		}
	}
	a := answer{items: make(map[string]*item, len(subjects))}
	err = w.ask(ctx, body, size, a.add)
	return a, err
}

// since reads a page without a condition on how new the replica is.
func (w *natsWire) since(ctx context.Context, from uint64) (page, error) {
	const most, bytes = 256, 1 << 20
	body, err := json.Marshal(struct {
		Seq   uint64 `json:"seq"`
		Batch int    `json:"batch"`
		Bytes int    `json:"max_bytes"`
	}{from, most, bytes})
	if err != nil {
		return page{}, err
	}
	p := page{last: from - 1}
	if err := w.ask(ctx, body, most+1, p.add); err != nil {
		return page{}, err
	}
	return p, nil
}

// ask sends a direct get, and gives its answers to add until one is the last. At most size can
// come.
func (w *natsWire) ask(ctx context.Context, body []byte, size int, add func(*nats.Msg) (bool, error)) error {
	// With less room, nats.go would drop some.
	ch := make(chan *nats.Msg, size)
	inbox := w.nc.NewInbox()
	sub, err := w.nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection is closed
	before := w.nc.LastError()
	if err := w.nc.PublishRequest(w.get, inbox, body); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, w.quiet)
	defer cancel()
	for {
		select {
		case <-wait.Done():
			if denied := w.denied(before, w.get); denied != nil {
				return denied
			}
			return fmt.Errorf("%w: %w", errSilent, wait.Err())
		case m, ok := <-ch:
			if !ok {
				return nats.ErrConnectionClosed
			}
			done, err := add(m)
			if n, _ := sub.Dropped(); done && err == nil && n > 0 {
				// More came than the server sends. What was dropped would look like no value.
				return fmt.Errorf("%w: the answer was not read in full", errBusy)
			}
			if done || err != nil {
				return err
			}
		}
	}
}

// maxRead is how many messages the server gives in one answer, at most.
const maxRead = 1024

func number(m *nats.Msg, header string) uint64 {
	n, err := strconv.ParseUint(m.Header.Get(header), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// itemOf reads a message of the stream in an answer, and its subject.
func itemOf(m *nats.Msg) (*item, string, error) {
	i := &item{seq: number(m, headerSeq), data: m.Data, hdr: m.Header}
	i.time, _ = time.Parse(time.RFC3339Nano, m.Header.Get(headerTime)) // for people
	subject := m.Header.Get(headerSubject)
	if i.seq == 0 || subject == "" {
		return nil, "", fmt.Errorf("%w: the answer to a read has no subject or sequence", errBusy)
	}
	return i, subject, nil
}

// add takes a message of the answer, and reports whether it is the last.
func (p *page) add(m *nats.Msg) (bool, error) {
	switch m.Header.Get("Status") {
	case "":
		i, subject, err := itemOf(m)
		if err != nil {
			return false, err
		}
		p.items, p.subjects = append(p.items, i), append(p.subjects, subject)
		p.last = max(p.last, i.seq)
		return false, nil
	case "204":
		p.more = number(m, headerPending) > 0
		return true, nil
	case "404":
		return true, nil // there is none, nor was there one on the way here
	case "503":
		return false, fmt.Errorf("%w: %w", errBusy, nats.ErrNoResponders)
	}
	return false, fmt.Errorf("%w: %s %s", errBusy, m.Header.Get("Status"), m.Header.Get("Description"))
}

// errTooMany: the answer would have more messages or bytes than the server gives at once.
var errTooMany = errors.New("ask for fewer")

// add takes a message of the answer, and reports whether it is the last.
func (a *answer) add(m *nats.Msg) (bool, error) {
	switch m.Header.Get("Status") {
	case "":
	case "204":
		if a.upTo = number(m, headerUpTo); a.upTo == 0 {
			return false, fmt.Errorf("%w: the server does not say how new its answer is: this package needs nats-server 2.12 or later", ErrUnsupported)
		}
		if left := number(m, headerPending); left > 0 {
			return false, fmt.Errorf("%w: the server left off %d values, as the answer is too large: %w", ErrInvalid, left, errTooMany)
		}
		return true, nil
	case "404":
		if m.Header.Get("Description") == "Message Not Found" {
			// It was removed while the server read it.
			return false, fmt.Errorf("%w: read again", errBusy)
		}
		return true, nil
	case "413":
		return false, fmt.Errorf("%w: more than %d keys in one read: %w", ErrInvalid, maxRead, errTooMany)
	case "503":
		return false, fmt.Errorf("%w: %w", errBusy, nats.ErrNoResponders)
	default:
		return false, fmt.Errorf("%w: %s %s", errBusy, m.Header.Get("Status"), m.Header.Get("Description"))
	}
	i, subject, err := itemOf(m)
	if err != nil {
		return false, err
	}
	if old := a.items[subject]; old == nil || old.seq < i.seq {
		a.items[subject] = i
	}
	return false, nil
}
