package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock/internal/printable"
)

// fence is what the message of a fence says.
type fence struct {
	rev    uint64 // its sequence; 0: there is none
	token  uint64
	shared bool
	writer uint64 // shared: the token of the last exclusive holder before
	client string
}

func parseFence(i *item) (fence, error) {
	if i.gone() {
		return fence{rev: i.revision()}, nil
	}
	token, err := strconv.ParseUint(string(i.data), 10, 64)
	if err != nil {
		return fence{}, fmt.Errorf("%w: the fence has the value %.40q, which is no token: somebody else wrote it", ErrInvalid, i.data)
	}
	f := fence{rev: i.seq, token: token, shared: i.hdr.Get(headerMode) == "shared", client: clientIn(i.hdr)}
	if f.shared {
		if f.writer, err = strconv.ParseUint(i.hdr.Get(headerWriter), 10, 64); err != nil {
			f.writer = token // the lock of a reader is fenced off rather than let pass
		}
	}
	return f, nil
}

// clientIn is who moved a fence. Whoever may move one can put anything there, and people read
// it in errors.
func clientIn(h nats.Header) string {
	client := h.Get(headerClient)
	return printable.Text(client[:min(len(client), 256)])
}

// fenceMsg moves a fence whose last message is at seq. A seq of 0 is right here alone, on the
// fence's own subject: as a condition of another message it would hold for every subject
// that is misspelled or gone.
func fenceMsg(subject string, f fence, seq uint64) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: strconv.AppendUint(nil, f.token, 10), Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(seq, 10)},
		// Else an age limit of the bucket would remove it, and any former holder could take it.
		headerTTL: {"never"},
	}}
	if f.client != "" {
		m.Header[headerClient] = []string{f.client}
	}
	if f.shared {
		m.Header[headerMode] = []string{"shared"}
		m.Header[headerWriter] = []string{strconv.FormatUint(f.writer, 10)}
	}
	return m
}

type claimKey struct {
	lock   string
	token  uint64
	shared bool
	held   <-chan struct{} // shared: of the lock's context, as several readers have the same token
}

// claim is the state that the views of one claim share.
type claim struct {
	s       *Store
	lock    Lock
	subject string // of the fence
	token   uint64
	shared  bool
	client  string
	invalid error // the lock's name cannot be a subject, or it has no token

	taking chan struct{} // one goroutine at a time moves the fence
	turn   chan struct{} // see View.put

	mu        sync.Mutex  // guards what follows
	rev       uint64      // of the fence's message; 0: not taken
	moved     bool        // this claim has moved the fence
	writes    int         // since it was moved
	suspect   uint64      // a write that depends on this message of the fence may still come
	floor     uint64      // a read counts from here
	header    nats.Header // of a put without other headers, whose condition is headerRev
	headerRev uint64
	fenced    *FencedError
	waiting   []*put
	doing     bool          // a transaction that writes is running
	puts      int           // that are running without the turn
	drained   chan struct{} // closed when there are none; nil: nobody waits for that
}

// enter lets a put run beside others, unless a transaction is running: the fence does not tell
// them apart, and the transaction would overwrite what it has not read. exit follows it.
func (c *claim) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doing {
		return false
	}
	c.puts++
	return true
}

func (c *claim) exit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.puts--; c.puts == 0 && c.drained != nil {
		close(c.drained)
		c.drained = nil
	}
}

// alone waits until no put runs, and keeps others out until done is called. The caller has the
// turn.
func (c *claim) alone(ctx context.Context) (done func(), err error) {
	c.mu.Lock()
	c.doing = true
	var drained chan struct{}
	if c.puts > 0 {
		drained = make(chan struct{})
		c.drained = drained
	}
	c.mu.Unlock()
	done = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.doing, c.drained = false, nil
	}
	if drained == nil {
		return done, nil
	}
	select {
	case <-drained:
		return done, nil
	case <-ctx.Done():
		done()
		return nil, ctx.Err()
	}
}

func (c *claim) ended(f fence, cause error) *FencedError {
	e := &FencedError{Lock: c.lock.Name(), Token: c.token, Newer: f.token, Client: f.client, Cause: cause}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fenced == nil {
		c.fenced = e
	}
	return c.fenced
}

// alive fails once the claim is over. It is asked before everything that is sent.
func (c *claim) alive() error {
	c.mu.Lock()
	e := c.fenced
	c.mu.Unlock()
	if e != nil {
		return e
	}
	if ctx := c.lock.Context(); ctx.Err() != nil {
		return c.ended(fence{}, context.Cause(ctx))
	}
	return nil
}

func (c *claim) state() (rev, floor uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev, c.floor
}

func (c *claim) raise(floor uint64) {
	c.mu.Lock()
	c.floor = max(c.floor, floor)
	c.mu.Unlock()
}

// wrote says that a write which depended on the fence's message rev is stored at seq.
//
// The server looks up the fence's message for each write. On a file-based bucket that takes
// longer the more messages that came after it have been replaced: after 30,000 of them,
// half the time of a put. So a claim that writes much moves its fence again, to the same
// token, and one that writes little does not: moving costs a read and a put.
func (c *claim) wrote(seq, rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor = max(c.floor, seq)
	if c.rev != rev {
		return
	}
	if c.writes++; c.writes >= fenceWrites && seq >= rev+fenceAge {
		c.leaveFence(rev)
	}
}

// A fence is moved again after so many writes of its claim and messages of the bucket.
const (
	fenceWrites = 250
	fenceAge    = 10_000
)

func (c *claim) adopt(rev uint64) {
	c.mu.Lock()
	c.rev, c.writes, c.moved = rev, 0, true
	c.floor = max(c.floor, rev)
	c.mu.Unlock()
}

// follow adopts the fence that another program has moved under the same lock. If this claim has
// left its fence meanwhile, take decides: the message may be the one that is suspect.
func (c *claim) follow(rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rev == 0 || rev <= c.rev {
		return
	}
	c.rev, c.writes = rev, 0
	c.floor = max(c.floor, rev)
}

// doubt says that a write which depends on the fence's message rev has no answer. It may be
// stored later, even after other writes of this claim. Moving the fence shuts it out (S5).
func (c *claim) doubt(rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaveFence(rev)
}

// leaveFence lets the next call move the fence again. It is called with mu held.
func (c *claim) leaveFence(rev uint64) {
	c.suspect = max(c.suspect, rev)
	if c.rev == rev {
		c.rev = 0
	}
}

// own reports whether a fence is this claim's, and fails if it is over.
func (c *claim) own(f fence) (bool, error) {
	switch {
	case !c.shared && (f.token > c.token || f.token == c.token && f.shared):
		// A reader's token may be equal to that of the writer before it.
		return false, c.ended(f, nil)
	case !c.shared:
		return f.token == c.token, nil
	case !f.shared && f.token > c.token, f.shared && f.writer > c.token:
		return false, c.ended(f, nil)
	}
	// A writer whose token lies between may not have used the store yet. It is shut out only
	// by a fence of a reader that came after it.
	return f.shared && f.token >= c.token, nil
}

// take moves the fence unless this claim has it, and returns its sequence (S1, S5).
func (c *claim) take(ctx context.Context) (uint64, error) {
	if err := c.alive(); err != nil {
		return 0, err
	}
	if rev, _ := c.state(); rev != 0 {
		return rev, nil
	}
	select {
	case c.taking <- struct{}{}:
		defer func() { <-c.taking }()
	case <-ctx.Done():
		return 0, fmt.Errorf("store: %w while another goroutine moves the fence of lock %q", ctx.Err(), c.lock.Name())
	}
	var p pause
	for {
		if err := c.alive(); err != nil {
			return 0, err
		}
		c.mu.Lock()
		rev, suspect, floor, moved := c.rev, c.suspect, c.floor, c.moved
		c.mu.Unlock()
		if rev != 0 {
			return rev, nil
		}
		// Any replica may be asked: if it is behind, the move is refused, and the refusal
		// tells how far.
		a, err := c.readFrom(ctx, floor, []string{c.subject})
		if err != nil {
			return 0, err
		}
		f, err := parseFence(a.items[c.subject])
		if err != nil {
			return 0, err
		}
		mine, err := c.own(f)
		if err != nil {
			return 0, err
		}
		// A fence with this token that is there already is of another process under the same lock,
		// such as an earlier command of a script. A write of it may have no answer, and this claim
		// knows nothing of that. So a claim that may write moves the fence once in any case.
		if mine && (moved || c.shared) /*plant:store-others-fence*/ && f.rev > suspect /*plant:store-suspect*/ {
			c.adopt(f.rev)
			return f.rev, nil
		}
		if !mine && suspect != 0 { //plant:store-taken-again
			// It was this claim's before. Only an operator or a loss of data sets it back, and
			// another holder may have had it meanwhile.
			return 0, c.ended(f, nil)
		}
		if err := c.alive(); err != nil { // the read took its time
			return 0, err
		}
		next := fence{token: c.token, shared: c.shared, client: c.client}
		if c.shared {
			next.writer = f.token
			if f.shared {
				next.writer = f.writer
			}
		}
		seq, err := c.s.wire.send(ctx, "", []*nats.Msg{fenceMsg(c.subject, next, f.rev)})
		switch r := (*refused)(nil); {
		case err == nil && seq <= floor:
			return 0, c.ended(fence{}, errReplaced)
		case err == nil:
			c.adopt(seq)
			return seq, nil
		case errors.As(err, &r):
			c.raise(r.seq)
		case forbidden(err):
			return 0, fmt.Errorf("store: move the fence of lock %q: %w", c.lock.Name(), err)
		case errors.Is(err, errBusy), errors.Is(err, errSilent):
			// Whether it was stored shows in the next read. If it comes later, its condition
			// no longer holds.
			if err := c.s.stuck(ctx, p.tries, err); err != nil {
				return 0, err
			}
		default:
			return 0, fmt.Errorf("store: move the fence of lock %q: %w", c.lock.Name(), err)
		}
		if err := p.wait(ctx, err); err != nil {
			return 0, err
		}
	}
}

// readFrom is that of the store. The claim is over if the bucket was replaced.
func (c *claim) readFrom(ctx context.Context, floor uint64, subjects []string) (answer, error) {
	a, err := c.s.readFrom(ctx, floor, subjects)
	if errors.Is(err, errReplaced) {
		return a, c.ended(fence{}, errReplaced)
	}
	return a, err
}

// read reads subjects under the fence (S2), and returns the sequence of the fence as well.
func (c *claim) read(ctx context.Context, subjects []string) (answer, uint64, error) {
	if _, err := c.take(ctx); err != nil { //plant:store-first-read
		return answer{}, 0, err
	}
	_, floor := c.state()
	a, err := c.readFrom(ctx, floor, append([]string{c.subject}, subjects...))
	if err != nil {
		return answer{}, 0, err
	}
	f, err := parseFence(a.items[c.subject])
	if err != nil {
		return answer{}, 0, err
	}
	mine, err := c.own(f)
	if err != nil {
		return answer{}, 0, err
	}
	if !mine { //plant:store-not-mine
		// It was this claim's before. Only an operator or a loss of data sets it back.
		return answer{}, 0, c.ended(f, nil)
	}
	c.follow(f.rev)
	if err := c.alive(); err != nil {
		return answer{}, 0, err
	}
	return a, f.rev, nil
}

// carry is the message of a write that depends on the fence's message rev.
func (c *claim) carry(w *write, rev uint64) *nats.Msg {
	if !w.plain() {
		m := w.msg()
		condition(m, c.subject, rev)
		return m
	}
	// The header is the same for all such writes, and nobody changes it.
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headerRev != rev {
		m := &nats.Msg{}
		condition(m, c.subject, rev)
		c.header, c.headerRev = m.Header, rev
	}
	return &nats.Msg{Subject: w.subject, Data: w.data, Header: c.header}
}

// condition lets a message depend on the last message of a subject.
func condition(m *nats.Msg, subject string, seq uint64) {
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(seq, 10)}
	if subject != m.Subject {
		m.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{subject}
	}
}
