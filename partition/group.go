package partition

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/members"
)

// MaxPartitions is the limit of New.
const MaxPartitions = 4096

var (
	// ErrInvalid: a number of partitions, a name or an id that cannot be one.
	ErrInvalid = errors.New("partition: invalid argument")
	// ErrMismatch: members of the group have different numbers of partitions.
	ErrMismatch = errors.New("partition: the members have different numbers of partitions")
	// ErrLeft is the cause with which a Worker's context ends after Leave.
	ErrLeft = errors.New("partition: the worker left the group")
	// ErrMoved is the cause with which the context of a handler ends that did not return
	// within the drain time while its partition was to be handed over.
	ErrMoved = errors.New("partition: the partition is to be handed over, and the drain time is over")
	// ErrNoOwner: the partition has no owner at this moment.
	ErrNoOwner = errors.New("partition: no owner")
)

// Group is a group of members that own partitions. It holds no resources. Its methods may
// be called from several goroutines.
type Group struct {
	locker     *qlock.Locker
	members    *members.Group
	name       string
	partitions int
	drain      time.Duration

	watch []members.Option
}

// Option changes how a Group works.
type Option func(*Group) error

// WithEvents makes workers learn of joining and leaving members from the events that
// Lockers publish: see members.WithEvents.
func WithEvents(nc *nats.Conn) Option {
	return func(g *Group) error {
		g.watch = append(g.watch, members.WithEvents(nc))
		return nil
	}
}

// WithInterval sets how often workers ask the nodes for the members: see
// members.WithInterval.
func WithInterval(d time.Duration) Option {
	return func(g *Group) error {
		g.watch = append(g.watch, members.WithInterval(d))
		return nil
	}
}

// WithDrain sets how long a handler may take to return when its partition is to be handed
// over (Assignment.Moving). After that its context ends, with cause ErrMoved. The default is
// 10 s.
func WithDrain(d time.Duration) Option {
	return func(g *Group) error {
		if d < 0 {
			return fmt.Errorf("%w: WithDrain: %v is negative", ErrInvalid, d)
		}
		g.drain = d
		return nil
	}
}

// New makes a Group with a number of partitions, 1 to 4096, that all members have in
// common. It sends nothing. The name has 1 to 64 letters, digits, _ and -. For an even
// spread take many more partitions than there will be members. Errors are ErrInvalid and
// members.ErrInvalid.
func New(l *qlock.Locker, group string, partitions int, opts ...Option) (*Group, error) {
	if partitions < 1 || partitions > MaxPartitions {
		return nil, fmt.Errorf("%w: %d partitions, allowed are 1 to %d", ErrInvalid, partitions, MaxPartitions)
	}
	g := &Group{locker: l, name: group, partitions: partitions, drain: 10 * time.Second}
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o(g); err != nil {
			return nil, err
		}
	}
	var err error
	if g.members, err = members.New(l, group, g.watch...); err != nil {
		return nil, fmt.Errorf("partition: group %q: %w", group, err)
	}
	return g, nil
}

// Name is the name of the group.
func (g *Group) Name() string { return g.name }

// Partitions is the number of partitions.
func (g *Group) Partitions() int { return g.partitions }

// Members is the group of members that the partitions are spread over. Their metadata
// begins with the number of partitions, as in "partitions=256 zone=b".
func (g *Group) Members() *members.Group { return g.members }

// Partition is the partition of a key: the same in all versions and on all machines.
func (g *Group) Partition(key string) int { return partitionOf(key, g.partitions) }

// Owner is who owns a partition, as the nodes know it.
type Owner struct {
	Partition int
	ID        string // of the member; empty if the partition has no owner
	Client    string // the name of its Locker
	Token     uint64
	Lease     time.Duration // how long the ownership would outlive its process
}

// Owner asks the nodes who owns the partition of a key. It costs about as much as a lock,
// and needs the permission to inspect locks. The owner may change at any moment: send it
// the token, so that it can refuse what was meant for another.
//
// For many keys take the owners from Owners, or from Assign and members.Group.Watch, and
// ask again when the owner refuses.
//
// Errors are ErrNoOwner and those of qlock.Locker.Inspect.
func (g *Group) Owner(ctx context.Context, key string) (Owner, error) {
	p := g.Partition(key)
	info, err := g.locker.Inspect(ctx, g.lock(p))
	if err != nil {
		return Owner{}, fmt.Errorf("partition: owner of partition %d of group %s: %w", p, g.name, err)
	}
	o := ownerOf(p, info)
	if o.ID == "" {
		return o, fmt.Errorf("%w: partition %d of group %s, for the key %q", ErrNoOwner, p, g.name, key)
	}
	return o, nil
}

// Owners asks the nodes for the owners of all partitions, in their order. Partitions
// without an owner have an empty ID. Errors are those of qlock.Locker.Locks.
func (g *Group) Owners(ctx context.Context) ([]Owner, error) {
	locks, err := g.locker.Locks(ctx, prefix+g.name+".*")
	if err != nil {
		return nil, fmt.Errorf("partition: owners of group %s: %w", g.name, err)
	}
	out := make([]Owner, g.partitions)
	for p := range out {
		out[p].Partition = p
	}
	for i := range locks {
		if group, p, ok := ParseName(locks[i].Name); ok && group == g.name && p < g.partitions {
			out[p] = ownerOf(p, &locks[i])
		}
	}
	return out, nil
}

func ownerOf(p int, info *qlock.LockInfo) Owner {
	if len(info.Holders) == 0 || info.Holders[0].Shared {
		return Owner{Partition: p}
	}
	h := &info.Holders[0]
	return Owner{Partition: p, ID: h.Note, Client: h.Client, Token: h.Token, Lease: h.Lease}
}

const prefix = "qlock.partition."

func (g *Group) lock(p int) string { return prefix + g.name + "." + strconv.Itoa(p) }

// ParseName splits the name of the lock of a partition, such as qlock.partition.orders.17,
// for those who show locks. It reports false for other names.
func ParseName(lock string) (group string, partition int, ok bool) {
	rest, ok := strings.CutPrefix(lock, prefix)
	if !ok {
		return "", 0, false
	}
	group, number, ok := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	if !ok || group == "" || err != nil || n < 0 || n >= MaxPartitions || strconv.Itoa(n) != number {
		return "", 0, false
	}
	return group, n, true
}

// The metadata of a worker says how many partitions it knows of.
const countKey = "partitions="

func metaOf(partitions int, meta string) string {
	return strings.TrimSuffix(countKey+strconv.Itoa(partitions)+" "+meta, " ")
}

// countIn is the number of partitions in a member's metadata; 0: it is no worker.
func countIn(meta string) int {
	rest, ok := strings.CutPrefix(meta, countKey)
	number, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 1 {
		return 0
	}
	return n
}

func checkID(id string) error {
	if id == "" || len(id) > members.MaxID {
		return fmt.Errorf("%w: the id of a worker has 1 to %d bytes, got %d", ErrInvalid, members.MaxID, len(id))
	}
	// It is also the note of the worker's locks.
	for i, r := range id {
		if !strconv.IsPrint(r) || r == '\uFFFD' && !strings.HasPrefix(id[i:], "\uFFFD") {
			return fmt.Errorf("%w: the id %q has a character that is not printable", ErrInvalid, id)
		}
	}
	return nil
}
