package main

import (
	"context"
	"sync"
	"time"
)

// lease is how long a lock outlives its silent holder, with every rival. It determines how
// much work it is to keep locks, and affects no other measurement.
const lease = 10 * time.Second

// rival is a kind of lock, in one of the ways to run it.
type rival struct {
	name      string // as in the tables; the first word is its family
	transport string // between the clients and the servers or nodes
	floor     string // the name of the floor that its ratios refer to
	absent    func() string
	start     func(ctx context.Context, s setup) (service, error)
}

// setup is what a workload requires of a rival.
type setup struct {
	turns bool // the floor makes its clients take turns
}

// service is a running rival.
type service interface {
	// connect makes a client with a connection of its own, as one process of a fleet would
	// have.
	connect(ctx context.Context) (client, error)
	close() error
}

// client is one process's access to the locks. It is safe for concurrent use, also for one
// key.
type client interface {
	lock(ctx context.Context, key string) (hold, error)
	close() error
}

// sharer is a client whose rival has shared locks.
type sharer interface {
	rlock(ctx context.Context, key string) (hold, error)
}

// hold is a lock that is held.
type hold interface {
	token() uint64 // the fencing token, 0 if there is none
	unlock(ctx context.Context) error
}

// extender is a hold that expires unless its holder extends it.
type extender interface {
	extend(ctx context.Context) error
}

// traffic counts what went through NATS servers: into one of them, from a client or from
// another server, and out.
type traffic struct{ inMsgs, outMsgs, inBytes, outBytes int64 }

func (t traffic) sub(u traffic) traffic {
	return traffic{t.inMsgs - u.inMsgs, t.outMsgs - u.outMsgs, t.inBytes - u.inBytes, t.outBytes - u.outBytes}
}

// metered is a service whose messages can be counted.
type metered interface{ traffic() (traffic, error) }

// outsider is a service in processes of its own: measurements of this process do not
// include what they use.
type outsider interface {
	usage(ctx context.Context) (cpu time.Duration, memory int64, err error)
}

// turns makes goroutines of this process take turns with a key, in the order of their
// arrival.
type turns struct {
	mu   sync.Mutex // guards keys and every turn's users
	keys map[string]*turn
}

type turn struct {
	users int
	free  chan struct{} // holds one token; receivers of a channel are served in order
}

func (t *turns) take(ctx context.Context, key string) error {
	t.mu.Lock()
	if t.keys == nil {
		t.keys = map[string]*turn{}
	}
	k := t.keys[key]
	if k == nil {
		k = &turn{free: make(chan struct{}, 1)}
		k.free <- struct{}{}
		t.keys[key] = k
	}
	k.users++
	t.mu.Unlock()
	select {
	case <-k.free:
		return nil
	case <-ctx.Done():
		t.leave(key, k)
		return context.Cause(ctx)
	}
}

func (t *turns) give(key string) {
	t.mu.Lock()
	k := t.keys[key]
	t.mu.Unlock()
	k.free <- struct{}{}
	t.leave(key, k)
}

func (t *turns) leave(key string, k *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(t.keys, key)
	}
}
