package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/store"
)

// Exit statuses of qlock store, beside the common ones.
const (
	exitConflict = 3
	exitNoKey    = 4
	exitUnknown  = 5
)

// What qlock run --store tells its command, beside QLOCK_NAME and QLOCK_TOKEN.
const (
	storeVariable   = "QLOCK_STORE"
	sharedVariable  = "QLOCK_SHARED"
	clusterVariable = "QLOCK_CLUSTER"

	// storeNone is the value of QLOCK_STORE for the command of a qlock run without --store that
	// runs within one with --store. No bucket can have this name.
	storeNone = "/"
)

type storeOptions struct {
	connection
	json, unfenced bool
	shared         bool // of lock
	lock           string
	fence          uint64
	given          bool // --lock or --fence, which an empty variable of a script leaves empty
	ttl            time.Duration
	create         bool
	revision       uint64
	replicas       int
	history        uint8
	memory         bool
	yes            bool
}

func (a *app) store() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "store COMMAND",
		Short:   "Keep data that only the holder of a lock can write",
		GroupID: groupLocks,
		Long: `Read and write a key-value bucket of NATS JetStream. The server refuses the writes of
a former holder of a lock. See docs/store.md.

Inside qlock run --store BUCKET, the commands get, put, rm and txn on that bucket work
under the lock: the server refuses them when another client holds it (exit status 122).
Elsewhere they work without a lock, and txn is all or nothing just the same. --lock and
--fence name a lock that was acquired in another way.

Exit status: 0 done, or done before with the same id (txn); 3 conflict: the key is not
as --create or --revision demands; 4 no such key; 5 the answer is lost, and it may or
may not have been written; 122 fenced: another client holds the lock; 1 another
failure; 2 bad flags.`,
		Example: `  qlock store create orders --replicas 3
  qlock run nightly --store orders -- sh -c 'qlock store put orders last "$(date)"'
  qlock store txn orders once pay-7 1h put order.7 paid add total 1 get rate`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.storeCreate(), a.storePrepare(), a.storeCheck(), a.storeLs(), a.storeGet(), a.storePut(), a.storeRm(), a.storeWatch(), a.storeTxn(), a.storeUnfence())
	return cmd
}

// storeCommand makes one of them. fenced: it works under a lock.
func (a *app) storeCommand(use, short string, args cobra.PositionalArgs, fenced bool) (*cobra.Command, *storeOptions) {
	o := &storeOptions{}
	cmd := &cobra.Command{Use: use, Short: short, Args: args}
	fs := cmd.Flags()
	fs.BoolVarP(&o.json, "json", "j", false, "write JSON")
	if fenced {
		fs.StringVar(&o.lock, "lock", "", "name of the lock to work under; needs --fence. Default: the lock of qlock run --store BUCKET")
		fs.Uint64Var(&o.fence, "fence", 0, "fencing token of --lock")
		fs.BoolVar(&o.shared, "shared", false, "the lock of --lock is a shared one: only read. Its token may be that of the last writer, so this must be told")
		fs.BoolVar(&o.unfenced, "unfenced", false, "work without a lock, also inside qlock run --store")
	}
	o.connection.flags(fs)
	return cmd, o
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usage("%s takes %s, got %q", cmd.CommandPath(), what, args)
		}
		return nil
	}
}

// storeStatus gives the errors of package store their exit statuses.
func storeStatus(err error) error {
	status := 0
	switch {
	case errors.Is(err, store.ErrUnknown):
		status = exitUnknown
	case errors.Is(err, store.ErrFenced):
		status = exitLost
	case errors.Is(err, store.ErrConflict):
		status = exitConflict
	case errors.Is(err, jetstream.ErrKeyNotFound):
		status = exitNoKey
	case errors.Is(err, store.ErrInvalid):
		status = exitUsage
	default:
		return err
	}
	return &statusError{status, err}
}

// environmentLock is a lock that another process holds.
type environmentLock struct {
	ctx    context.Context
	name   string
	token  uint64
	shared bool
}

func (l environmentLock) Name() string             { return l.name }
func (l environmentLock) Token() uint64            { return l.token }
func (l environmentLock) Shared() bool             { return l.shared }
func (l environmentLock) Context() context.Context { return l.ctx }

func (o *storeOptions) open(ctx context.Context, js jetstream.JetStream, bucket string) (*store.Store, error) {
	return store.Open(ctx, js, bucket, store.WithCluster(o.cluster), store.WithClient(o.client), store.WithTimeout(o.timeout))
}

// view is the view of the lock that this command works under, or nil.
func (o *storeOptions) view(ctx context.Context, s *store.Store) (*store.View, error) {
	// The end of this command is not that of the lock.
	l := environmentLock{ctx: context.WithoutCancel(ctx), name: o.lock, token: o.fence, shared: o.shared}
	switch {
	case o.shared && o.lock == "":
		return nil, usage("--shared belongs to --lock")
	case o.unfenced && o.given:
		return nil, usage("--unfenced and --lock exclude each other")
	case o.unfenced:
		return nil, nil
	case o.given && (o.lock == "" || o.fence == 0):
		return nil, usage("--lock and --fence need each other: the name of a lock, and its token above 0: give --unfenced to work without a lock")
	case o.lock != "":
		return s.With(l), nil
	case os.Getenv(storeVariable) == "":
		return nil, nil
	case os.Getenv(storeVariable) == storeNone:
		return nil, usage("this runs under a qlock run without --store, within a qlock run --store: give the inner one --store %s too, or give --unfenced to work without a lock", s.Bucket())
	case os.Getenv(storeVariable) != s.Bucket():
		return nil, usage("this runs under qlock run --store %s, whose lock does not fence bucket %s: give --unfenced to work without a lock", os.Getenv(storeVariable), s.Bucket())
	}
	if cluster := os.Getenv(clusterVariable); cluster != "" && cluster != o.cluster {
		return nil, usage("this runs under a lock of cluster %s, which says nothing about cluster %s: leave --cluster away, or give --unfenced to work without a lock", cluster, o.cluster)
	}
	var err error
	l.name, l.shared = os.Getenv("QLOCK_NAME"), os.Getenv(sharedVariable) != ""
	if l.token, err = strconv.ParseUint(os.Getenv("QLOCK_TOKEN"), 10, 64); err != nil || l.name == "" {
		return nil, usage("%s is set, and QLOCK_NAME and QLOCK_TOKEN are not those of a lock: %q, %q", storeVariable, l.name, os.Getenv("QLOCK_TOKEN"))
	}
	return s.With(l), nil
}

// checkStore fails if the bucket of qlock run --store cannot be used, before anybody waits for
// the lock. Where JetStream does not answer, the commands may use another server.
func (o *runOptions) checkStore(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err = store.Open(ctx, js, o.store)
	for _, definite := range []error{jetstream.ErrBucketNotFound, store.ErrNotPrepared, store.ErrUnsupported, store.ErrInvalid} {
		if errors.Is(err, definite) {
			return fmt.Errorf("--store %s: %w", o.store, err)
		}
	}
	return nil
}

// entryJSON is an entry as JSON has it: text where the value is text.
type entryJSON struct {
	Key       string    `json:"key"`
	Value     *string   `json:"value,omitempty"`
	Base64    []byte    `json:"base64,omitempty"`
	Revision  uint64    `json:"revision"`
	Created   time.Time `json:"created"`
	Operation string    `json:"operation"`
}

func entryOf(e jetstream.KeyValueEntry) entryJSON {
	out := entryJSON{Key: e.Key(), Revision: e.Revision(), Created: e.Created(), Operation: "put"}
	switch {
	case e.Operation() != jetstream.KeyValuePut:
		out.Operation = "delete"
	case utf8.Valid(e.Value()):
		text := string(e.Value())
		out.Value = &text
	default:
		out.Base64 = e.Value()
	}
	return out
}

func (a *app) writeJSON(v any) error {
	return json.NewEncoder(a.out).Encode(v)
}

func (a *app) storeCreate() *cobra.Command {
	cmd, o := a.storeCommand("create BUCKET [flags]", "Make a bucket with fences", exactly(1, "a bucket"), false)
	cmd.Example = `  qlock store create orders --replicas 3`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		cfg := jetstream.KeyValueConfig{Bucket: args[0], Replicas: o.replicas, History: o.history}
		if o.memory {
			cfg.Storage = jetstream.MemoryStorage
		}
		if _, err := store.Create(ctx, js, cfg); err != nil {
			return err
		}
		return a.said(o, args[0], "is made, with fences")
	})
	cmd.Flags().IntVar(&o.replicas, "replicas", 1, "number of servers that have the data: 1, 3 or 5")
	cmd.Flags().Uint8Var(&o.history, "history", 1, "number of values to keep for each key, up to 64")
	cmd.Flags().BoolVar(&o.memory, "memory", false, "keep the data in memory only")
	return cmd
}

// storeDo sets what a command does with a connection.
func (a *app) storeDo(cmd *cobra.Command, o *storeOptions, f func(ctx context.Context, js jetstream.JetStream, args []string) error) {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := interrupted(cmd.Context())
		defer stop()
		l, err := o.connect("store", 10*time.Second)
		if err != nil {
			return err
		}
		defer l.Close()
		js, err := jetstream.New(l.Conn)
		if err != nil {
			return err
		}
		o.client = l.client
		o.given = cmd.Flags().Changed("lock") || cmd.Flags().Changed("fence")
		return storeStatus(f(ctx, js, args))
	}
}

func (a *app) said(o *storeOptions, bucket, what string) error {
	if o.json {
		return a.writeJSON(map[string]any{"bucket": bucket, "prepared": true})
	}
	fmt.Fprintf(a.out, "Bucket %s %s.\n", bucket, what)
	return nil
}

func (a *app) storePrepare() *cobra.Command {
	cmd, o := a.storeCommand("prepare BUCKET", "Add fences to a bucket that is there", exactly(1, "a bucket"), false)
	cmd.Long = `Add fences to a key-value bucket that is there. Values, watchers and clients are
unaffected. A program that makes the bucket at each start has to stop doing so: see
docs/store.md.`
	cmd.Example = `  qlock store prepare orders`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		if err := store.Prepare(ctx, js, args[0]); err != nil {
			return err
		}
		return a.said(o, args[0], "has fences")
	})
	return cmd
}

func (a *app) storeCheck() *cobra.Command {
	cmd, o := a.storeCommand("check BUCKET", "Say whether a bucket has fences, and what it lacks", exactly(1, "a bucket"), false)
	cmd.Example = `  qlock store check orders --json`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		_, err := o.open(ctx, js, args[0])
		if lacks := (*store.NotPreparedError)(nil); o.json && errors.As(err, &lacks) {
			if err := a.writeJSON(map[string]any{"bucket": args[0], "prepared": false, "missing": lacks.Missing}); err != nil {
				return err
			}
			return &statusError{exitFailed, nil}
		}
		if err != nil {
			return err
		}
		return a.said(o, args[0], "has fences")
	})
	return cmd
}

func (a *app) storeLs() *cobra.Command {
	cmd, o := a.storeCommand("ls BUCKET", "List the keys of a bucket", exactly(1, "a bucket"), false)
	cmd.Example = `  qlock store ls orders`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		return o.eachKey(ctx, js.Conn(), s, func(key string) (err error) {
			if o.json {
				return a.writeJSON(map[string]string{"key": key})
			}
			_, err = fmt.Fprintln(a.out, printable.Text(key))
			return err
		})
	})
	return cmd
}

// eachKey calls f for each key. A list that ends too early is an error: KeyValue.ListKeys does not
// tell it from one that is whole.
func (o *storeOptions) eachKey(ctx context.Context, nc *nats.Conn, s *store.Store, f func(key string) error) error {
	before := nc.LastError()
	failed := func(err error) error {
		err = fmt.Errorf("list the keys of bucket %s: %w", s.Bucket(), err)
		if last := nc.LastError(); last != before && errors.Is(last, nats.ErrPermissionViolation) {
			err = fmt.Errorf("%w: %w", err, last)
		}
		return err
	}
	w, err := s.KeyValue().WatchAll(ctx, jetstream.IgnoreDeletes(), jetstream.MetaOnly())
	if err != nil {
		return failed(err)
	}
	defer func() { _ = w.Stop() }() // the command ends
	idle := time.NewTimer(o.timeout)
	defer idle.Stop()
	for {
		select {
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return failed(errors.New("the connection or the bucket is gone, and the list is not complete"))
			case e == nil:
				return nil
			}
			if err := f(e.Key()); err != nil {
				return err
			}
			idle.Reset(o.timeout)
		case <-ctx.Done():
			return failed(context.Cause(ctx))
		case <-idle.C:
			return failed(fmt.Errorf("nothing came for %v, and the list is not complete: %w", o.timeout, nats.ErrTimeout))
		}
	}
}

func (a *app) storeGet() *cobra.Command {
	cmd, o := a.storeCommand("get BUCKET KEY", "Write the value of a key", exactly(2, "a bucket and a key"), true)
	cmd.Long = `Write the value of a key, byte for byte. On a terminal, control characters are
escaped, and a line break is added.`
	cmd.Example = `  qlock store get orders order.7
  qlock store get orders order.7 --lock nightly --fence 1754000000000`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		v, err := o.view(ctx, s)
		if err != nil {
			return err
		}
		var e jetstream.KeyValueEntry
		if v != nil {
			e, err = v.Get(ctx, args[1])
		} else if res, failed := s.Do(ctx, store.Get(args[1])); failed != nil {
			err = failed
		} else {
			e, err = res.Get(args[1])
		}
		if err != nil {
			return err
		}
		if o.json {
			return a.writeJSON(entryOf(e))
		}
		if terminal(a.out) {
			_, err = fmt.Fprintln(a.out, printableLines(string(e.Value())))
			return err
		}
		_, err = a.out.Write(e.Value())
		return err
	})
	return cmd
}

func (a *app) storePut() *cobra.Command {
	args := func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			return nil
		}
		return exactly(3, "a bucket, a key and a value, or reads the value from standard input")(cmd, args)
	}
	cmd, o := a.storeCommand("put BUCKET KEY [VALUE] [flags]", "Store a value", args, true)
	cmd.Long = `Store a value, and write its revision. Without VALUE the value is standard input.

Inside qlock run --store BUCKET the server refuses the write when another client holds
the lock.`
	cmd.Example = `  qlock run nightly --store orders -- sh -c 'qlock store put orders last "$(date)"'
  qlock store put orders order.7 paid --revision 41
  date | qlock store put orders last`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		revised := cmd.Flags().Changed("revision")
		switch {
		case revised && o.revision == 0:
			return usage("--revision 0: no key has this revision: use --create if there must be no such key")
		case o.create && revised:
			return usage("--create and --revision exclude each other")
		}
		var value []byte
		if len(args) == 3 {
			value = []byte(args[2])
		} else {
			var err error
			if value, err = readValue(ctx, a.in, js.Conn().MaxPayload()); err != nil {
				return fmt.Errorf("read the value from standard input: %w", err)
			}
		}
		var opts []store.WriteOption
		if o.ttl > 0 {
			opts = append(opts, store.TTL(o.ttl))
		}
		op := store.Put(args[1], value, opts...)
		switch {
		case o.create:
			op = store.Insert(args[1], value, opts...)
		case revised:
			op = store.Update(args[1], value, o.revision, opts...)
		}
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		v, err := o.view(ctx, s)
		if err != nil {
			return err
		}
		var rev uint64
		if v != nil && !o.create && !revised {
			rev, err = v.Put(ctx, args[1], value, opts...)
		} else {
			var res store.Result
			res, err = doer(s, v)(ctx, op)
			rev = res.Written(args[1])
		}
		if err != nil {
			return err
		}
		if o.json {
			return a.writeJSON(map[string]any{"key": args[1], "revision": rev})
		}
		fmt.Fprintln(a.out, rev)
		return nil
	})
	fs := cmd.Flags()
	durationFlag(fs, &o.ttl, "ttl", 0, time.Second, "time until the value expires")
	fs.BoolVar(&o.create, "create", false, "only if there is no such key")
	fs.Uint64Var(&o.revision, "revision", 0, "only if the key has this revision")
	return cmd
}

// readValue reads a value until the end of the input, or of ctx. A value takes no more than most
// bytes.
func readValue(ctx context.Context, in io.Reader, most int64) ([]byte, error) {
	type outcome struct {
		value []byte
		err   error
	}
	read := make(chan outcome, 1)
	go func() { // it may wait longer than this command, and ends with the process
		value, err := io.ReadAll(io.LimitReader(in, most+1))
		read <- outcome{value, err}
	}()
	select {
	case o := <-read:
		if o.err == nil && int64(len(o.value)) > most {
			return nil, fmt.Errorf("it has more than %d bytes, the server's limit for a message (max_payload)", most)
		}
		return o.value, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func doer(s *store.Store, v *store.View) func(context.Context, ...store.Op) (store.Result, error) {
	if v != nil {
		return v.Do
	}
	return s.Do
}

func (a *app) storeRm() *cobra.Command {
	cmd, o := a.storeCommand("rm BUCKET KEY", "Delete a key", exactly(2, "a bucket and a key"), true)
	cmd.Example = `  qlock store rm orders order.7`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		v, err := o.view(ctx, s)
		if err != nil {
			return err
		}
		if v != nil {
			err = v.Delete(ctx, args[1])
		} else {
			_, err = s.Do(ctx, store.Delete(args[1]))
		}
		if err == nil && o.json {
			return a.writeJSON(map[string]string{"key": args[1], "operation": "delete"})
		}
		return err
	})
	return cmd
}

func (a *app) storeWatch() *cobra.Command {
	args := func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return exactly(1, "a bucket, and keys if not all")(cmd, args)
		}
		return nil
	}
	cmd, o := a.storeCommand("watch BUCKET [KEY...]", "Write values, and each change of them", args, false)
	cmd.Long = `Write the last value of each key, and then each change, until interrupted. Without KEY
that is all keys. In KEY, * stands for a token, and > at the end for all that follow. When
changes come too fast, values between are left out.`
	cmd.Example = `  qlock store watch orders
  qlock store watch orders 'order.*' --json`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		changes, err := s.Watch(ctx, args[1:]...)
		if err != nil {
			return err
		}
		for e, err := range changes {
			switch {
			case err != nil && ctx.Err() != nil:
				return nil // the user has ended it
			case err != nil:
				return err
			case o.json:
				err = a.writeJSON(entryOf(e))
			case e.Operation() != jetstream.KeyValuePut:
				_, err = fmt.Fprintf(a.out, "%d %s deleted\n", e.Revision(), printable.Text(e.Key()))
			default:
				_, err = fmt.Fprintf(a.out, "%d %s = %s\n", e.Revision(), printable.Text(e.Key()), printable.Text(string(e.Value())))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

func (a *app) storeTxn() *cobra.Command {
	args := func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return usage("%s takes a bucket and operations: get KEY, unchanged KEY, put KEY VALUE, insert KEY VALUE, update KEY VALUE REVISION, rm KEY, add KEY NUMBER, once ID TIME", cmd.CommandPath())
		}
		words(args)
		_, err := parseOps(args[1:])
		return err
	}
	cmd, o := a.storeCommand("txn BUCKET OPERATION...", "Do several operations: all, or none", args, true)
	cmd.Long = `Do several operations at one moment, and write the result as JSON. All of them are done,
or none.

  get KEY                    read
  unchanged KEY              read, and write only if the key has not changed since
  put KEY VALUE              store
  insert KEY VALUE           store, if there is no such key
  update KEY VALUE REVISION  store, if the key has this revision
  rm KEY                     delete
  add KEY NUMBER             add to a number; a key without a value counts as 0
  once ID TIME               do nothing if a transaction with this id was done before, and
                             write its result; TIME is how long that is known; 0: without limit`
	cmd.Example = `  qlock store txn orders once pay-7 1h put order.7 paid add total 1 get rate`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		ops, err := parseOps(args[1:])
		if err != nil {
			return err
		}
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		v, err := o.view(ctx, s)
		if err != nil {
			return err
		}
		res, err := doer(s, v)(ctx, ops...)
		duplicate := errors.Is(err, store.ErrDuplicate)
		if err != nil && !duplicate {
			return err
		}
		out := struct {
			Duplicate bool              `json:"duplicate"`
			Got       []entryJSON       `json:"got"`
			Numbers   map[string]int64  `json:"numbers"`
			Written   map[string]uint64 `json:"written"`
		}{duplicate, []entryJSON{}, map[string]int64{}, map[string]uint64{}}
		for _, key := range res.Keys() {
			if e, err := res.Get(key); err == nil {
				out.Got = append(out.Got, entryOf(e))
			}
		}
		for words := args[1:]; len(words) > 0; words = words[txnOperations[words[0]]+1:] {
			switch words[0] {
			case "add":
				out.Numbers[words[1]] = res.Number(words[1])
				fallthrough
			case "put", "insert", "update", "rm":
				if rev := res.Written(words[1]); rev > 0 {
					out.Written[words[1]] = rev
				}
			}
		}
		return a.writeJSON(out)
	})
	return cmd
}

// A number below zero, as in add KEY -5, looks like a flag. dashed marks those of qlock store
// txn, so that the flags' parser leaves them alone, and words removes the mark. No argument of
// a process can have this byte.
const mark = "\x00"

func dashed(args []string) []string {
	args = slices.Clone(args)
	in := 0
	for i, arg := range args {
		switch {
		case arg == "--":
			return args
		case in < 2 && arg == []string{"store", "txn"}[in]:
			in++
		case in == 2 && len(arg) > 1 && arg[0] == '-' && '0' <= arg[1] && arg[1] <= '9':
			args[i] = mark + arg
		case in == 0 && len(arg) > 0 && arg[0] != '-':
			return args // another command
		}
	}
	return args
}

func words(args []string) {
	for i := range args {
		args[i] = strings.TrimPrefix(args[i], mark)
	}
}

// txnOperations are those of txn, with the number of their arguments.
var txnOperations = map[string]int{"get": 1, "unchanged": 1, "put": 2, "insert": 2, "update": 3, "rm": 1, "add": 2, "once": 2}

func parseOps(words []string) (ops []store.Op, err error) {
	for len(words) > 0 {
		n, ok := txnOperations[words[0]]
		if !ok {
			return nil, usage("txn: there is no operation %q: use get, unchanged, put, insert, update, rm, add or once", words[0])
		}
		if len(words) <= n {
			return nil, usage("txn: %s takes %d arguments, got %q", words[0], n, words[1:])
		}
		w := words[1 : n+1]
		switch words[0] {
		case "get":
			ops = append(ops, store.Get(w[0]))
		case "unchanged":
			ops = append(ops, store.Unchanged(w[0]))
		case "put":
			ops = append(ops, store.Put(w[0], []byte(w[1])))
		case "insert":
			ops = append(ops, store.Insert(w[0], []byte(w[1])))
		case "update":
			rev, err := strconv.ParseUint(w[2], 10, 64)
			if err != nil {
				return nil, usage("txn: update %s: the revision %q is not a number", w[0], w[2])
			}
			ops = append(ops, store.Update(w[0], []byte(w[1]), rev))
		case "rm":
			ops = append(ops, store.Delete(w[0]))
		case "add":
			by, err := strconv.ParseInt(w[1], 10, 64)
			if err != nil {
				return nil, usage("txn: add %s: %q is not a whole number from %d to %d", w[0], w[1], int64(math.MinInt64), int64(math.MaxInt64))
			}
			ops = append(ops, store.Add(w[0], by))
		case "once":
			keep, err := time.ParseDuration(w[1])
			if err != nil {
				return nil, usage("txn: once %s: %q is not a duration such as 1h; 0 is for ever", w[0], w[1])
			}
			ops = append(ops, store.Once(w[0], keep))
		}
		words = words[n+1:]
	}
	return ops, nil
}

func (a *app) storeUnfence() *cobra.Command {
	cmd, o := a.storeCommand("unfence BUCKET LOCK --yes", "Let holders with lower tokens take a fence", exactly(2, "a bucket and the name of a lock"), false)
	cmd.Long = `Set the fence of a lock back, so that a holder with any token can take it. This is for
the case that tokens of new holders are lower than before: the nodes have lost their
state, and the clocks of the new ones are behind. Make sure that no former holder is
left that has a token and has not written yet: it could take the fence again.`
	cmd.Example = `  qlock store unfence orders nightly --yes`
	a.storeDo(cmd, o, func(ctx context.Context, js jetstream.JetStream, args []string) error {
		if !o.yes {
			return usage("--yes is missing: a former holder of %s may write again after unfence", lockNamed(args[1]))
		}
		s, err := o.open(ctx, js, args[0])
		if err != nil {
			return err
		}
		f, err := s.Unfence(ctx, args[1])
		if err != nil {
			return err
		}
		if o.json {
			return a.writeJSON(map[string]any{"lock": args[1], "token": f.Token, "client": f.Client})
		}
		fmt.Fprintf(a.out, "The fence of %s was at token %d, and is free.\n", lockNamed(args[1]), f.Token)
		return nil
	})
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do it")
	return cmd
}
