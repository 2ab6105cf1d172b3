package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

type unlockOptions struct {
	connection
	force, yes            bool
	claim, holder, reason string
	wait                  time.Duration
}

func (a *app) unlock() *cobra.Command {
	o := &unlockOptions{}
	cmd := &cobra.Command{
		Use:     "unlock NAME --force [flags]",
		Short:   "End a lock that another process holds",
		GroupID: groupLocks,
		Long: `Evict who holds a lock. A lock belongs to the process that holds it, and is given
back by it: qlock lock does so when its input closes, qlock run when its command
ends. --force is for when that does not happen.

The holder learns of it at once: in a program its lock's context ends, and qlock run
deals with its command as --on-loss says. A lock is never taken away before its
holder knows. A holder that is dead, or cut off, keeps it until its lease is over,
which is extended no more; nobody else has the lock until then. Nothing keeps whom
you evict from asking for the lock again.

All holders are evicted, of which a shared lock may have several; --holder NAME is
for those of one client, and --claim ID for one claim, as qlock info shows them,
whether it holds or waits. It asks before it does so, unless there is --yes.

Exit status: 0 if the nodes have the claim no more, or nobody holds the lock; 120 if its
client has been told and has not given it up within --wait; 121 no quorum, or too few
nodes that vote to know who holds it; 123 refused by NATS permissions
(those of an operator are needed); 1 another failure; 2 bad flags.`,
		Example: `  qlock unlock nightly --force --reason "its disk is full"
  qlock unlock nightly --force --yes --wait 30s
  qlock unlock catalog --force --holder billing
  qlock unlock nightly --force --claim 0f2a91c7/3`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := lockNamed(args[0])
			if !o.force {
				return usage("a lock belongs to the process that holds it, and is given back by that: close the input of qlock lock, or end what qlock run runs (qlock info %s shows whose it is); --force evicts whoever holds it", name)
			}
			if _, err := subject.EncodeName(args[0]); err != nil {
				return usage("NAME: %w", err)
			}
			if o.claim != "" && o.holder != "" {
				return usage("--claim names one claim, --holder those of a client: give one or the other")
			}
			if !o.yes && !terminal(a.in) {
				return usage("--yes is missing: unlock --force asks before it evicts, and standard input is no terminal")
			}
			return a.evict(cmd.Context(), o, args[0])
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.force, "force", false, "evict who holds it")
	fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	fs.StringVar(&o.holder, "holder", "", "evict only holders that are clients of this name")
	fs.StringVar(&o.claim, "claim", "", "evict this claim, whether it holds or waits: its id, or how that begins")
	fs.StringVar(&o.reason, "reason", "", "for the evicted to read")
	durationFlag(fs, &o.wait, "wait", 2*time.Second, time.Millisecond, "how long to wait until it is given up")
	o.connection.flags(fs)
	return cmd
}

func (a *app) evict(ctx context.Context, o *unlockOptions, name string) error {
	locker, leave, err := o.inspector(ctx, "unlock")
	if err != nil {
		return err
	}
	defer leave()
	inspect := func() (*qlock.LockInfo, error) {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		info, err := locker.Inspect(ctx, name)
		return info, lookError(err)
	}
	info, err := inspect()
	if err != nil {
		return err
	}
	claims, err := pick(info, o.claim, o.holder)
	if why := unclear(info); len(claims) == 0 && o.claim == "" && why != nil {
		return notKnown(name, info, why)
	}
	if err != nil {
		return err
	}
	if len(claims) == 0 {
		fmt.Fprintf(a.out, "Nobody holds %s.%s\n", lockNamed(name), map[bool]string{true: " --claim evicts one who waits."}[len(info.Queue) > 0])
		return nil
	}
	if !o.yes && !a.confirm(name, claims) {
		return &statusError{exitFailed, errors.New("nobody was evicted")}
	}
	// Not before the question: there Ctrl-C ends the program, as nothing is begun.
	ctx, stop := interrupted(ctx)
	defer stop()
	errs := make([]error, len(claims))
	var all sync.WaitGroup
	for i := range claims {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, o.wait)
			defer cancel()
			errs[i] = locker.Evict(ctx, name, claims[i], o.reason)
		})
	}
	all.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return errors.Is(err, qlock.ErrRefused) }); i >= 0 {
		return lookError(errs[i])
	}
	// Whatever kept an eviction from its end, what counts is what the nodes have now.
	if errors.Join(errs...) != nil {
		if info, err = inspect(); err != nil {
			return err
		}
	}
	left, unsure := 0, 0
	for i := range claims {
		c := &claims[i]
		var still *qlock.ClaimInfo
		if errs[i] != nil {
			still = has(info, c)
		}
		who := fmt.Sprintf("%s %s", printable.Text(c.Client), shortID(c.ID))
		switch {
		case still == nil && errs[i] != nil && !info.Complete():
			fmt.Fprintf(a.out, "Not known whether %s has given up %s: of the nodes that answered too few give votes, and the others may have forgotten the claim. Try again.\n", who, lockNamed(name))
			unsure++
			continue
		case still == nil:
			fmt.Fprintf(a.out, "%s is evicted: no node has its claim on %s any more.\n", who, lockNamed(name))
			continue
		case !still.Evicted:
			fmt.Fprintf(a.out, "%s is not evicted: no node that answers was told. Try again.\n", who)
		case still.Held:
			fmt.Fprintf(a.out, "%s has not given %s up yet. Its lease ends in %s and is extended no more; until then nobody else has the lock.\n", who, lockNamed(name), age(still.Lease))
		default:
			fmt.Fprintf(a.out, "%s has not left the queue of %s yet. It does so when its lease ends, which is extended no more.\n", who, lockNamed(name))
		}
		left++
	}
	switch {
	case left > 0:
		return &statusError{exitHeld, nil}
	case unsure > 0:
		return &statusError{exitNoQuorum, nil}
	}
	return nil
}

// notKnown says that nobody is evicted, because it is not known who holds the lock.
func notKnown(name string, info *qlock.LockInfo, why error) error {
	err := fmt.Errorf("nobody was evicted, as it is not known who holds %s: %w", lockNamed(name), why)
	if c := mayHold(info); c != nil {
		err = fmt.Errorf("%w; --claim %s evicts it in any case", err, shortID(c.ID))
	}
	return &statusError{exitNoQuorum, err}
}

// confirm asks whether these are meant.
func (a *app) confirm(name string, claims []qlock.ClaimInfo) bool {
	fmt.Fprintf(a.err, "To be evicted from %s:\n", lockNamed(name))
	for i := range claims {
		c := &claims[i]
		what := "waiting"
		if c.Held {
			what = "holding it"
		}
		fmt.Fprintf(a.err, "  %s %s, %s, %s for %s", printable.Text(c.Client), shortID(c.ID), modeOf(c), what, age(c.For))
		if c.Note != "" {
			fmt.Fprintf(a.err, ": %s", printable.Text(c.Note))
		}
		fmt.Fprintln(a.err)
	}
	fmt.Fprintf(a.err, "%s Go on? [y/N] ", verb(len(claims), "It is told at once, in the midst of its work.", "They are told at once, in the midst of their work."))
	answer, _ := bufio.NewReader(a.in).ReadString('\n') // no answer is no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}
