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
		Short:   "Force-release another client's lock",
		GroupID: groupLocks,
		Long: `Evict the holders of a lock. A lock belongs to the process that holds it, and that
process releases it: qlock lock when its input closes, qlock run when its command
ends. --force is for when that does not happen.

The holder is told at once: in a program the lock's context ends, and qlock run does
with its command what --on-loss says. A lock is never taken away before its holder
knows. A holder that is dead or cut off keeps the lock until its lease ends; the
lease is not extended, and no other client has the lock until then. An evicted
client may ask for the lock again.

By default all holders are evicted; a shared lock may have several. --holder NAME
evicts only the holders with that client name. --claim ID evicts one claim, held or
waiting, by the id that qlock info shows. The command asks before it evicts, unless
--yes is given.

Exit status: 0 if the nodes no longer have the claim, or if there was no holder; 120
if the client was told and has not released the lock within --wait; 121 no quorum, or
too few voting nodes to know the holder; 123 refused by NATS permissions (the role
operator is needed); 1 another failure; 2 bad flags.`,
		Example: `  qlock unlock nightly --force --reason "its disk is full"
  qlock unlock nightly --force --yes --wait 30s
  qlock unlock catalog --force --holder billing
  qlock unlock nightly --force --claim 0f2a91c7/3`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := lockNamed(args[0])
			if !o.force {
				return usage("a lock is released by the process that holds it: close the input of qlock lock, or end the command of qlock run (qlock info %s shows the holder); --force evicts the holders", name)
			}
			if _, err := subject.EncodeName(args[0]); err != nil {
				return usage("NAME: %w", err)
			}
			if o.claim != "" && o.holder != "" {
				return usage("--claim selects one claim, --holder the claims of a client: give one or the other")
			}
			if !o.yes && !terminal(a.in) {
				return usage("--yes is missing: unlock --force asks before it evicts, and standard input is not a terminal")
			}
			return a.evict(cmd.Context(), o, args[0])
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.force, "force", false, "evict the holders")
	fs.BoolVarP(&o.yes, "yes", "y", false, "evict without asking")
	fs.StringVar(&o.holder, "holder", "", "evict only holders with this client name")
	fs.StringVar(&o.claim, "claim", "", "evict this claim, held or waiting: its id, or the beginning of it")
	fs.StringVar(&o.reason, "reason", "", "reason to tell the evicted client")
	durationFlag(fs, &o.wait, "wait", 2*time.Second, time.Millisecond, "time to wait until the lock is released")
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
		fmt.Fprintf(a.out, "No client holds %s.%s\n", lockNamed(name), map[bool]string{true: " --claim evicts a waiter."}[len(info.Queue) > 0])
		return nil
	}
	if !o.yes && !a.confirm(name, claims) {
		return &statusError{exitFailed, errors.New("no claim was evicted")}
	}
	// Not before the question: there Ctrl-C ends the program, because nothing has begun.
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
	// Whatever interrupted an eviction, the current state of the nodes counts.
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
			fmt.Fprintf(a.out, "Unknown whether %s has released %s: too few of the nodes that answered vote, and the others may have forgotten the claim. Try again.\n", who, lockNamed(name))
			unsure++
			continue
		case still == nil:
			fmt.Fprintf(a.out, "%s is evicted: no node has its claim on %s any more.\n", who, lockNamed(name))
			continue
		case !still.Evicted:
			fmt.Fprintf(a.out, "%s is not evicted: no node that answers has received the eviction. Try again.\n", who)
		case still.Held:
			fmt.Fprintf(a.out, "%s has not released %s yet. Its lease ends in %s and is not extended; until then no other client has the lock.\n", who, lockNamed(name), age(still.Lease))
		default:
			fmt.Fprintf(a.out, "%s has not left the queue of %s yet. It leaves when its lease ends, which is not extended.\n", who, lockNamed(name))
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

// notKnown returns an error that says that no claim was evicted because the holder is not
// known.
func notKnown(name string, info *qlock.LockInfo, why error) error {
	err := fmt.Errorf("no claim was evicted, because the holder of %s is unknown: %w", lockNamed(name), why)
	if c := mayHold(info); c != nil {
		err = fmt.Errorf("%w; --claim %s evicts it in any case", err, shortID(c.ID))
	}
	return &statusError{exitNoQuorum, err}
}

// confirm asks the user whether to evict these claims.
func (a *app) confirm(name string, claims []qlock.ClaimInfo) bool {
	fmt.Fprintf(a.err, "These claims on %s will be evicted:\n", lockNamed(name))
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
	fmt.Fprintf(a.err, "%s Continue? [y/N] ", verb(len(claims), "Its client is told at once, while it works.", "Their clients are told at once, while they work."))
	answer, _ := bufio.NewReader(a.in).ReadString('\n') // no answer is no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}
