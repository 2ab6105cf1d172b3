package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/internal/printable"
	groups "github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/queue"
	"github.com/qlock/qlock/semaphore"
)

// use is the purpose of a lock that a recipe made, according to its name.
type use struct {
	Kind string `json:"kind"` // a word for programs
	Of   string `json:"of"`   // the name that the recipe was given
	text string
}

// useOf returns the purpose of a lock, or nil if it is an ordinary lock. Each recipe has a
// few lines here.
func useOf(lock string) *use {
	if name, leader, ok := election.ParseName(lock); ok {
		if leader {
			return &use{"leader", name, "leader"}
		}
		return &use{"leader-value", name, "leader's value"}
	}
	if name, permit, ok := semaphore.ParseName(lock); ok {
		if permit == 0 {
			return &use{"semaphore-queue", name, "semaphore, queue"}
		}
		return &use{"permit", name, fmt.Sprintf("permit %d", permit)}
	}
	if group, id, ok := groups.ParseName(lock); ok {
		if lock == "qlock.members."+group+"."+id {
			return &use{"member", group, "member " + printable.Text(id)}
		}
		return &use{"member-metadata", group, "metadata of " + printable.Text(id)}
	}
	if group, number, ok := partition.ParseName(lock); ok {
		return &use{"partition", group, fmt.Sprintf("partition %d", number)}
	}
	if name, _, ok := queue.ParseName(lock); ok {
		return &use{"queue-key", name, "queue, a key"}
	}
	return nil
}

// usesOf returns texts for the purposes of locks, or nil if all of them are ordinary locks.
func usesOf(locks []qlock.LockInfo) map[string]string {
	var uses map[string]string
	for i := range locks {
		if u := useOf(locks[i].Name); u != nil {
			if uses == nil {
				uses = map[string]string{}
			}
			uses[locks[i].Name] = u.text
		}
	}
	return uses
}

// permit is one permit of a semaphore.
type permit struct{ *semaphore.Permits }

func (p permit) Token() uint64                    { return p.Permits.Token(p.Numbers()[0]) }
func (p permit) Unlock(ctx context.Context) error { return p.Release(ctx) }

func (o *runOptions) acquirePermit(name string) acquisition {
	return func(ctx context.Context, l *qlock.Locker, p *progress) (holding, []string, error) {
		s, err := semaphore.New(l, name, o.slots, semaphore.WithWaitFunc(p.tell))
		if err != nil {
			return nil, nil, err
		}
		ask := s.Acquire
		if o.try {
			ask = s.TryAcquire
		}
		permits, err := ask(ctx, 1)
		if err != nil {
			return nil, nil, err
		}
		return permit{permits}, []string{"QLOCK_PERMIT=" + strconv.Itoa(permits.Numbers()[0])}, nil
	}
}

// leadership is the leadership of an election.
type leadership struct{ *election.Leadership }

func (l leadership) Unlock(ctx context.Context) error { return l.Resign(ctx) }
