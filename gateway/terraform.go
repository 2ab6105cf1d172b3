package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/store"
)

// The backend "http" of Terraform and OpenTofu. They never renew a lock, and hold it for as
// long as an apply takes. So the lock of a state is not a lease: it is a record beside the
// state, in a bucket of package store, and no gateway need live for it. Each change is one
// transaction that depends on the record, so whoever no longer has the lock cannot write.

// The keys of a state, behind its name. The last token tells them apart, whatever the name is.
const (
	stateKey = ".state"
	lockKey  = ".lock"
	partKey  = ".part." // and the id of the version, and the number of the part
)

const (
	stateInline   = 512 << 10        // bytes, compressed, that stand in the state's own key
	stateTime     = time.Minute      // for a state to arrive
	stateVersions = 20               // whose parts are kept
	stateTries    = 20               // of a change that others come between
	stateWait     = 20 * time.Second // for the server, all in all
	openTime      = 3 * time.Second  // to look at the bucket
	statesAtOnce  = 32               // requests: states are large, and the gateway has them in memory
	statesOfOne   = 8                // requests of one address
)

// stateRecord is the first line of a state's key. The compressed state follows it, or stands
// in parts: in keys of their own that are written before and never again.
type stateRecord struct {
	Size    int         `json:"size"`
	SHA256  string      `json:"sha256"`
	Serial  json.Number `json:"serial,omitempty"` // for people, and not judged
	Lineage string      `json:"lineage,omitempty"`
	Part    string      `json:"part,omitempty"` // id of the parts; empty: the state follows
	Parts   int         `json:"parts,omitempty"`
	Old     []oldParts  `json:"old,omitempty"` // versions in parts, newest first
}

type oldParts struct {
	Part  string `json:"part"`
	Parts int    `json:"parts"`
}

// states is the state that a request is about.
type states struct {
	g     *Gateway
	ctx   context.Context
	who   *principal
	store *store.Store
	max   int    // bytes of a part
	name  string // as the caller has it
	key   string // what its keys begin with
}

// lockInfo is what the gateway reads of the lock info of a client. It keeps all of it.
type lockInfo struct {
	ID  string `json:"ID"`
	Who string `json:"Who"`
}

func lockIDOf(body []byte) string {
	var info lockInfo
	_ = json.Unmarshal(body, &info) // what is no lock info has no ID
	return info.ID
}

// terraform serves the backend.
func (g *Gateway) terraform(mux *http.ServeMux) {
	const path = "/v1/stores/{bucket}/terraform/{name}"
	for pattern, serve := range map[string]func(*states, *exchange, *http.Request){
		"GET " + path:              (*states).get,
		"POST " + path:             (*states).put,
		"PUT " + path:              (*states).put,
		"DELETE " + path:           (*states).remove,
		"LOCK " + path:             (*states).lock,
		"UNLOCK " + path:           (*states).unlock,
		"LOCK " + path + "/lock":   (*states).lock,
		"POST " + path + "/lock":   (*states).lock,
		"PUT " + path + "/lock":    (*states).lock,
		"UNLOCK " + path + "/lock": (*states).unlock,
		"DELETE " + path + "/lock": (*states).unlock,
		"POST " + path + "/unlock": (*states).unlock,
		"PUT " + path + "/unlock":  (*states).unlock,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { g.serveState(exchangeOf(w), r, serve) })
	}
}

func (g *Gateway) serveState(e *exchange, r *http.Request, serve func(*states, *exchange, *http.Request)) {
	e.operation = "terraform"
	e.Header().Set("Cache-Control", "no-store")
	key, p := stateKeyOf(r.PathValue("name"))
	if p != nil {
		e.fail(p)
		return
	}
	who, leave, p := g.principalOf(r)
	if p != nil {
		e.fail(p)
		return
	}
	defer leave()
	if p := g.enterState(addressOf(r)); p != nil {
		e.fail(p)
		return
	}
	defer g.leaveState(addressOf(r))
	ctx, cancel := context.WithTimeout(r.Context(), stateTime+stateWait)
	defer cancel()
	bucket, err := who.open(ctx, r.PathValue("bucket"))
	if err != nil {
		e.fail(stateProblem(err))
		return
	}
	s := &states{g: g, ctx: ctx, who: who, name: r.PathValue("name"), key: key, max: min(stateInline, int(who.nc.MaxPayload())/2), store: bucket}
	serve(s, e, r)
}

// enterState admits a request about a state, which leaveState ends.
func (g *Gateway) enterState(address string) *Problem {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := 0
	for _, n := range g.states {
		all += n
	}
	if all >= statesAtOnce || g.states[address] >= statesOfOne {
		return problem("too-many", "too many requests about Terraform states are being served: %d of one address and %d in all are the limits", statesOfOne, statesAtOnce)
	}
	g.states[address]++
	return nil
}

func (g *Gateway) leaveState(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.states[address]--; g.states[address] == 0 {
		delete(g.states, address)
	}
}

// stateKeyOf is the name of a state as it stands in keys, in one way only: what a key cannot
// have is =XX.
func stateKeyOf(name string) (string, *Problem) {
	if name == "" || len(name) > 256 {
		return "", invalid("the name of a state has 1 to 256 bytes")
	}
	var b strings.Builder
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		case c == '.' && i > 0 && i < len(name)-1 && name[i-1] != '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String(), nil
}

// stateProblem is an error of the store for Terraform, which takes 404 for a state that does not
// exist yet, and would make everything anew. So neither a bucket nor a part that is missing is 404.
// It gives up at 501, and repeats the request after other answers of 500 and above.
func stateProblem(err error) *Problem {
	switch p := storeProblem(err); p.Kind() {
	case "no-bucket":
		return problem("not-prepared", "%s", p.Detail)
	case "unknown-outcome":
		return problem("unknown-outcome", "the answer of the server is lost, and it may or may not have been done: repeat the request")
	case "no-key":
		return problem("internal", "a part of the state is missing in the bucket")
	default:
		return p
	}
}

// fail answers with an error of the store.
func (s *states) fail(e *exchange, err error) {
	s.who.failed(s.store, err)
	p := stateProblem(err)
	if p.Kind() == "internal" {
		s.g.log.Warn("a request about a Terraform state failed", "request", e.id, "bucket", s.store.Bucket(), "state", s.name, "error", err)
	}
	e.fail(p)
}

// again repeats a change for as long as others come between. f reads first.
func (s *states) again(f func() error) error {
	for range stateTries {
		err := f()
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
	}
	return problem("state-conflict", "others changed the lock of the state %d times in a row: repeat the request", stateTries)
}

// read reads the lock and the state as they are at one moment, and not before the request.
// What is not there is nil.
func (s *states) read() (lock, state jetstream.KeyValueEntry, _ error) {
	got, err := s.store.Do(s.ctx, store.Get(s.key+lockKey), store.Get(s.key+stateKey))
	if err != nil {
		return nil, nil, err
	}
	if lock, err = got.Get(s.key + lockKey); errors.Is(err, jetstream.ErrKeyNotFound) {
		lock, err = nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if state, err = got.Get(s.key + stateKey); errors.Is(err, jetstream.ErrKeyNotFound) {
		state, err = nil, nil
	}
	return lock, state, err
}

// free and mine are the parts of a transaction that let it happen only if there is no lock, or
// if the lock's record is still the one that was read.
func (s *states) free() []store.Op {
	return []store.Op{store.Insert(s.key+lockKey, nil), store.Delete(s.key + lockKey)}
}

func (s *states) mine(lock jetstream.KeyValueEntry) []store.Op {
	return []store.Op{store.Update(s.key+lockKey, lock.Value(), lock.Revision())}
}

// body reads a body, and checks its digest. It answers if it returns false.
func (s *states) body(e *exchange, r *http.Request, limit int64) ([]byte, bool) {
	if kind := r.Header.Get("Content-Type"); kind != "" && kind != "application/json" {
		e.fail(problem("media-type", "send the body as application/json, as Terraform and OpenTofu do"))
		return nil, false
	}
	within := s.g.limits.BodyTime
	if limit > s.g.limits.Body {
		within = stateTime
	}
	body, p := s.g.readAll(e, r, limit, within)
	if p == nil {
		p = checkMD5(r.Header.Get("Content-MD5"), body)
	}
	if p != nil {
		e.fail(p)
	}
	return body, p == nil
}

func checkMD5(want string, body []byte) *Problem {
	if want == "" {
		return nil
	}
	if sum := md5.Sum(body); want != base64.StdEncoding.EncodeToString(sum[:]) {
		return problem("malformed", "the body is not the one that Content-MD5 is of")
	}
	return nil
}

// locked answers with the info of whoever has the lock: its client shows it to people.
func (s *states) locked(e *exchange, status int, lock jetstream.KeyValueEntry) {
	e.Header().Set("Content-Type", "application/json")
	e.WriteHeader(status)
	_, _ = e.Write(lock.Value()) // who asked may have gone
}

// lock makes the record of a lock. Clients repeat requests without an answer, so the one that
// has it already gets it.
func (s *states) lock(e *exchange, r *http.Request) {
	maxAge := time.Duration(0)
	if text := r.URL.Query().Get("max_age"); text != "" {
		var p *Problem
		if maxAge, p = duration("max_age", text, time.Minute, 10*365*24*time.Hour); p != nil {
			e.fail(p)
			return
		}
	}
	body, ok := s.body(e, r, s.g.limits.Body)
	if !ok {
		return
	}
	id := lockIDOf(body)
	if id == "" {
		e.fail(invalid("the body is not the lock info of Terraform: it has no ID"))
		return
	}
	var other jetstream.KeyValueEntry
	err := s.again(func() error {
		_, err := s.store.Do(s.ctx, store.Insert(s.key+lockKey, body))
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		var lock jetstream.KeyValueEntry
		lock, _, readErr := s.read()
		switch {
		case readErr != nil:
			return readErr
		case lock == nil:
			return err // it was given back meanwhile
		case lockIDOf(lock.Value()) == id:
			return nil
		case maxAge > 0 && time.Since(lock.Created()) > maxAge:
			s.g.log.Warn("an old lock of a Terraform state was replaced", "bucket", s.store.Bucket(), "state", s.name, "lock", lockIDOf(lock.Value()), "age", time.Since(lock.Created()).Round(time.Second).String())
			_, err := s.store.Do(s.ctx, store.Update(s.key+lockKey, body, lock.Revision()))
			return err
		}
		other = lock
		return nil
	})
	switch {
	case err != nil:
		s.fail(e, err)
	case other != nil:
		s.locked(e, http.StatusLocked, other)
	default:
		e.WriteHeader(http.StatusOK)
	}
}

// unlock removes the record. Without lock info it is force-unlock, which sends nothing.
func (s *states) unlock(e *exchange, r *http.Request) {
	body, ok := s.body(e, r, s.g.limits.Body)
	if !ok {
		return
	}
	id, force := lockIDOf(body), len(bytes.TrimSpace(body)) == 0
	if id == "" && !force {
		e.fail(invalid("the body is not the lock info of Terraform: it has no ID"))
		return
	}
	if force {
		if p := s.mayForce(); p != nil {
			e.fail(p)
			return
		}
	}
	var other jetstream.KeyValueEntry
	err := s.again(func() error {
		lock, _, err := s.read()
		switch {
		case err != nil:
			return err
		case lock == nil: // an earlier request did it
			return nil
		case !force && lockIDOf(lock.Value()) != id:
			other = lock
			return nil
		}
		_, err = s.store.Do(s.ctx, append(s.mine(lock), store.Delete(s.key+lockKey))...)
		if err == nil && force {
			s.g.log.Warn("the lock of a Terraform state was removed by force", "bucket", s.store.Bucket(), "state", s.name, "lock", lockIDOf(lock.Value()), "request", e.id)
		}
		return err
	})
	switch {
	case err != nil:
		s.fail(e, err)
	case other != nil:
		s.locked(e, http.StatusConflict, other)
	default:
		e.WriteHeader(http.StatusOK)
	}
}

// mayForce asks the nodes for what needs the permission to evict: there is no claim of that
// name, so nothing happens.
func (s *states) mayForce() *Problem {
	locker, err := s.who.locker(s.ctx, 0)
	if err != nil {
		return problemOf(err)
	}
	err = locker.Evict(s.ctx, "terraform."+s.key, qlock.ClaimInfo{ID: uuid.NewString() + "/1", Client: "terraform"}, "force-unlock of a state")
	if err != nil {
		return problemOf(err)
	}
	return nil
}

// get answers with the state.
func (s *states) get(e *exchange, _ *http.Request) {
	var body []byte
	for range 3 { // its parts may be removed meanwhile, if 20 newer versions come
		_, entry, err := s.read()
		if err != nil {
			s.fail(e, err)
			return
		}
		if entry == nil {
			e.WriteHeader(http.StatusNoContent)
			return
		}
		if body, err = s.content(entry.Value()); err == nil {
			break
		} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
			s.fail(e, err)
			return
		}
	}
	if body == nil {
		s.fail(e, jetstream.ErrKeyNotFound)
		return
	}
	sum := md5.Sum(body)
	h := e.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	e.WriteHeader(http.StatusOK)
	_, _ = e.Write(body) // who asked may have gone
}

// recordOf splits the value of a state's key.
func recordOf(value []byte) (r stateRecord, rest []byte, _ error) {
	head, rest, ok := bytes.Cut(value, []byte("\n"))
	if err := json.Unmarshal(head, &r); err != nil || !ok || r.SHA256 == "" {
		return r, nil, problem("internal", "the value of the state's key is not one that a gateway wrote")
	}
	return r, rest, nil
}

// content is a state, checked. Its error finds jetstream.ErrKeyNotFound if a part is missing.
func (s *states) content(value []byte) ([]byte, error) {
	record, packed, err := recordOf(value)
	if err != nil {
		return nil, err
	}
	if record.Part != "" {
		packed = nil
		for i := range record.Parts {
			key := s.part(record.Part, i)
			got, err := s.store.Do(s.ctx, store.Get(key))
			if err != nil {
				return nil, err
			}
			one, err := got.Get(key)
			if err != nil {
				return nil, err
			}
			packed = append(packed, one.Value()...)
		}
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(z, s.g.limits.State+1))
	}
	sum := sha256.Sum256(body)
	if err != nil || hex.EncodeToString(sum[:]) != record.SHA256 {
		return nil, problem("internal", "the state in the bucket is damaged: its digest is another")
	}
	return body, nil
}

func (s *states) part(id string, n int) string {
	return fmt.Sprintf("%s%s%s.%d", s.key, partKey, id, n)
}

// put stores a state.
func (s *states) put(e *exchange, r *http.Request) {
	body, ok := s.body(e, r, s.g.limits.State)
	if !ok {
		return
	}
	if len(body) == 0 {
		e.fail(invalid("the body has no state"))
		return
	}
	sum := sha256.Sum256(body)
	record := stateRecord{Size: len(body), SHA256: hex.EncodeToString(sum[:])}
	var known struct {
		Serial  json.Number `json:"serial"`
		Lineage string      `json:"lineage"`
	}
	if json.Unmarshal(body, &known) == nil && len(known.Lineage) <= 256 {
		record.Serial, record.Lineage = known.Serial, known.Lineage
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(body) // a buffer takes all
	_ = z.Close()
	inline := packed.Bytes()
	if len(inline) > s.max {
		inline = nil
		if err := s.putParts(&record, packed.Bytes()); err != nil {
			s.dropParts(oldParts{record.Part, record.Parts})
			s.fail(e, err)
			return
		}
	}
	s.change(e, r, record, func(r stateRecord) (store.Op, error) {
		head, err := json.Marshal(r)
		return store.Put(s.key+stateKey, append(append(head, '\n'), inline...)), err
	})
}

// putParts stores a state that is too large for one message.
func (s *states) putParts(record *stateRecord, packed []byte) error {
	record.Part = strings.ToLower(rand.Text())
	for len(packed) > 0 {
		n := min(len(packed), s.max)
		if _, err := s.store.Do(s.ctx, store.Insert(s.part(record.Part, record.Parts), packed[:n])); err != nil {
			return err
		}
		record.Parts++
		packed = packed[n:]
	}
	return nil
}

// dropParts removes parts that nothing names any more. It is no harm if some stay.
func (s *states) dropParts(list ...oldParts) {
	for _, o := range list {
		for i := range o.Parts {
			if err := s.store.KeyValue().Purge(s.ctx, s.part(o.Part, i)); err != nil {
				s.g.log.Warn("a part of an old Terraform state could not be removed", "bucket", s.store.Bucket(), "state", s.name, "error", err)
				return
			}
		}
	}
}

// remove deletes a state.
func (s *states) remove(e *exchange, r *http.Request) {
	s.change(e, r, stateRecord{}, func(stateRecord) (store.Op, error) { return store.Delete(s.key + stateKey), nil })
}

// change changes the state, if the request has the ID of the lock, or if there is no lock.
func (s *states) change(e *exchange, r *http.Request, record stateRecord, write func(stateRecord) (store.Op, error)) {
	id, own := r.URL.Query().Get("ID"), oldParts{record.Part, record.Parts}
	var dropped []oldParts
	err := s.again(func() error {
		lock, entry, err := s.read()
		if err != nil {
			return err
		}
		var ops []store.Op
		switch {
		case lock == nil && id == "":
			ops = s.free()
		case lock == nil:
			return problem("state-conflict", "the lock of this ID is gone: somebody removed it")
		case id == "":
			return problem("state-locked", "the state is locked, and the request has no ID of a lock")
		case lockIDOf(lock.Value()) != id:
			return problem("state-conflict", "the state is locked under another ID")
		default:
			ops = s.mine(lock)
		}
		record.Old, dropped = nil, nil
		if entry != nil {
			old, _, err := recordOf(entry.Value())
			if err != nil {
				return err
			}
			if old.Part != "" {
				record.Old = append(record.Old, oldParts{old.Part, old.Parts})
			}
			record.Old = append(record.Old, old.Old...)
		}
		if keep := stateVersions; record.SHA256 == "" {
			dropped, record.Old = record.Old, nil // the state is removed
		} else if len(record.Old) > keep {
			dropped, record.Old = record.Old[keep:], record.Old[:keep]
		}
		op, err := write(record)
		if err != nil {
			return err
		}
		_, err = s.store.Do(s.ctx, append(ops, op)...)
		return err
	})
	if err != nil {
		if !errors.Is(err, store.ErrUnknown) { // else they may be the state's
			s.dropParts(own)
		}
		s.fail(e, err)
		return
	}
	s.dropParts(dropped...)
	e.WriteHeader(http.StatusOK)
}
