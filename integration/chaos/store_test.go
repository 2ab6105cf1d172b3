//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// request is what a client asks of the store, reply what it gets: JSON over TCP,
// one after the other.
type request struct {
	Name   string `json:"name"`
	Holder string `json:"holder"`
	Token  uint64 `json:"token"`
	Shared bool   `json:"shared"`
	Write  bool   `json:"write"`
	Value  int    `json:"value"`
}

type reply struct {
	Value   int  `json:"value"`
	Refused bool `json:"refused"`
}

// store is what the locks protect: counters, fenced by tokens, and a record of
// every access in the order in which the store took them.
type store struct {
	listener net.Listener
	work     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	counters map[string]*counter
	accesses []access
	conns    map[net.Conn]struct{}
	closed   bool
}

type counter struct {
	value int
	fence fence
}

// fence is what a resource remembers of tokens.
//
// One number would not do. A reader's token may be that of the writer before it,
// and of two readers that hold together the one that comes to the store first may
// have the higher one. So readers are measured by the writers only; writers by
// both, since a writer's token is above that of all readers before it.
type fence struct {
	writer uint64 // the highest token of a writer, and whose it is
	owner  string
	reader uint64 // the highest token of a reader
}

// admit reports whether an access is not from the past, and remembers it.
func (f *fence) admit(r *request) bool {
	if r.Shared {
		if r.Token < f.writer {
			return false
		}
		f.reader = max(f.reader, r.Token)
		return true
	}
	// Equal to a reader's: that reader had the lock after this writer. Equal to
	// another writer's: one of them is wrong, and the record shows it.
	if r.Token < f.writer || r.Token <= f.reader || r.Token == f.writer && r.Holder != f.owner {
		return false
	}
	f.writer, f.owner = r.Token, r.Holder
	return true
}

func (s *store) access(r *request) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counters[r.Name]
	if c == nil {
		c = &counter{}
		s.counters[r.Name] = c
	}
	ok := c.fence.admit(r)
	a := access{
		at: now(), name: r.Name, holder: r.Holder, token: r.Token,
		shared: r.Shared, write: r.Write, value: r.Value, refused: !ok,
	}
	if ok && r.Write {
		c.value = r.Value
	}
	if !r.Write {
		a.value = c.value
	}
	s.accesses = append(s.accesses, a)
	return reply{Value: c.value, Refused: !ok}
}

func startStore() (*store, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &store{listener: l, counters: map[string]*counter{}, conns: map[net.Conn]struct{}{}}
	s.work.Go(s.accept)
	return s, nil
}

func (s *store) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // closed; anything else shows as clients that cannot work
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.conns[conn] = struct{}{}
		s.mu.Unlock()
		s.work.Go(func() {
			s.serve(conn)
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
			_ = conn.Close()
		})
	}
}

func (s *store) serve(conn net.Conn) {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var r request
		if in.Decode(&r) != nil { // the client is gone, or killed amid a request
			return
		}
		if out.Encode(s.access(&r)) != nil {
			return
		}
	}
}

func (s *store) close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	_ = s.listener.Close()
	s.work.Wait()
}

// storeClient is a worker's connection to the store.
type storeClient struct {
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

func dialStore(addr string) (*storeClient, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	return &storeClient{conn, json.NewDecoder(conn), json.NewEncoder(conn)}, nil
}

// ask has a limit only so that nothing hangs for ever: no fault is put on the
// store.
func (c *storeClient) ask(r request) (reply, error) {
	var p reply
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return p, err
	}
	if err := c.out.Encode(r); err != nil {
		return p, fmt.Errorf("ask the store: %w", err)
	}
	if err := c.in.Decode(&p); err != nil {
		return p, fmt.Errorf("hear the store: %w", err)
	}
	return p, nil
}
