package driver

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/qlock/qlock/internal/epoch"
	"github.com/qlock/qlock/internal/natsio"
	"github.com/qlock/qlock/internal/statedir"
	"github.com/qlock/qlock/internal/voter"
	"github.com/qlock/qlock/internal/wire"
)

// starter starts and stops nodes on one state directory, as far as the directory sees it.
type starter struct {
	t   *testing.T
	cfg NodeConfig
	now wire.Now
}

func newStarter(t *testing.T) *starter {
	return &starter{t: t, now: wire.Now{Mono: time.Second}, cfg: NodeConfig{
		Cluster: "prod", Name: "a", Nodes: []string{"a", "b"}, StateDir: filepath.Join(t.TempDir(), "state"),
		MaxLease: 30 * time.Second, MaxSkew: 25 * time.Second, Log: natsio.NewLog(slog.New(slog.DiscardHandler)),
	}}
}

// use opens the directory for f.
func (s *starter) use(f func(dir *statedir.Dir) error) error {
	s.t.Helper()
	dir, err := statedir.Open(s.cfg.StateDir)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		if err := dir.Close(); err != nil {
			s.t.Error(err)
		}
	}()
	return f(dir)
}

// start is a start, then what the node does until it ends.
func (s *starter) start(live func(dir *statedir.Dir, mem *memory) error) (mem memory, err error) {
	s.t.Helper()
	s.now.Wall = time.Now().UnixMicro()
	err = s.use(func(dir *statedir.Dir) error {
		if mem, err = takeMark(dir, &s.cfg, s.now, uuid.New()); err != nil || live == nil {
			return err
		}
		return live(dir, &mem)
	})
	return mem, err
}

// stops ends a node cleanly, having voted.
func (s *starter) stops(dir *statedir.Dir, mem *memory) error {
	saved := &voter.Saved{Wall: s.now.Wall}
	return writeMark(dir, &s.cfg, mem.past, leaseOf(&s.cfg, &mem.state), &mem.state, saved)
}

// has returns a live function that writes a state, and then ends as live does.
func (s *starter) has(state epoch.State, live func(*statedir.Dir, *memory) error) func(*statedir.Dir, *memory) error {
	return func(dir *statedir.Dir, mem *memory) error {
		state.ID = mem.state.ID
		mem.state = state
		n := Node{dir: dir, cfg: s.cfg, runs: mem.past, longest: mem.longest}
		if err := n.keep(&state); err != nil || live == nil {
			return err
		}
		return live(dir, mem)
	}
}

func (s *starter) joined() epoch.State {
	r := &epoch.Record{
		Cluster: "prod", CID: uuid.UUID{7}, Epoch: 1, Prev: s.cfg.proto().Digest(),
		Nodes: []wire.Member{{Name: "a", ID: uuid.UUID{1}}, {Name: "b", ID: uuid.UUID{2}}}, MaxTTL: time.Minute, Skew: time.Second,
	}
	return epoch.State{Record: r, Links: []wire.Link{{Epoch: 0, Digest: r.Prev}, {Epoch: 1, Digest: r.Digest()}}}
}

// A node is its directory (E1): its id lasts as long as that.
func TestIDLastsWithItsDirectory(t *testing.T) {
	s := newStarter(t)
	first, err := s.start(nil)
	if err != nil || first.state.ID == uuid.Nil || !first.fresh {
		t.Fatalf("a new directory: %+v, %v", first, err)
	}
	same := func(when string, want bool) {
		t.Helper()
		mem, err := s.start(s.stops)
		if err != nil {
			t.Fatal(err)
		}
		if lost := strings.Contains(when, "loss"); mem.fresh != lost {
			t.Errorf("%s: %+v", when, mem)
		}
		if got := mem.state.ID; (got == first.state.ID) != want || got == uuid.Nil {
			t.Errorf("%s the id is %v, was %v", when, got, first.state.ID)
		}
		first = mem
	}
	same("after a crash", true)
	same("after a clean stop", true)
	s.cfg.Nodes = []string{"a", "b", "c"}
	same("with another list", true)
	s.cfg.Name = "b"
	same("under another name", false)
	s.cfg.Cluster = "staging"
	same("in another cluster", false)
	if err := os.WriteFile(filepath.Join(s.cfg.StateDir, "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	same("after damage", false)
	if err := os.RemoveAll(s.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	same("after the loss of the directory", false)
}

// The id is there from the bootstrap on.
func TestBootstrapMakesAnID(t *testing.T) {
	s := newStarter(t)
	if err := Bootstrap(s.cfg); err != nil {
		t.Fatal(err)
	}
	var id string
	_ = s.use(func(dir *statedir.Dir) error {
		m, _, _, err := dir.Read()
		id = m.ID
		return err
	})
	mem, err := s.start(nil)
	if err != nil || mem.state.ID.String() != id || mem.saved == nil {
		t.Errorf("id %v, %q was made; %v", mem.state.ID, id, err)
	}
}

// What was promised and learned survives clean stops and crashes alike (E10).
func TestPromisesSurvive(t *testing.T) {
	promised := epoch.State{Promised: wire.Ballot{N: 7, Run: uuid.UUID{9}}}
	for what, state := range map[string]func(s *starter) epoch.State{
		"a promise": func(*starter) epoch.State { return promised },
		"a record":  (*starter).joined,
	} {
		t.Run(what, func(t *testing.T) {
			s := newStarter(t)
			want := state(s)
			begun, err := s.start(s.has(want, s.stops))
			if err != nil {
				t.Fatal(err)
			}
			want.ID = begun.state.ID
			for i, crash := range []bool{false, true, true} {
				live := s.stops
				if crash {
					live = nil
				}
				mem, err := s.start(live)
				if err != nil || !reflect.DeepEqual(mem.state, want) {
					t.Fatalf("start %d: %+v, %v, want %+v", i, mem.state, err, want)
				}
				if clean := i < 2; (mem.saved != nil) != clean {
					t.Errorf("start %d: the votes are remembered: %v", i, mem.saved != nil)
				}
			}
		})
	}
}

// A file that was copied or restored may be used twice, or be old. It does not make a second node
// of one id, and nobody goes by promises of before. The record stays, so that the node knows that
// it is not in it.
func TestCopyIsAnotherNode(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("files are not told apart on every system")
	}
	s := newStarter(t)
	had := s.joined()
	next := *had.Record
	next.Epoch, next.Prev, next.Next, next.NextMaxTTL, next.NextSkew = 2, had.Record.Digest(), next.Nodes[:1], next.MaxTTL, next.Skew
	had.Promised, had.Accepted, had.Proposal, had.Had = wire.Ballot{N: 1, Run: uuid.UUID{3}}, wire.Ballot{N: 1, Run: uuid.UUID{3}}, &next, time.Hour
	first, err := s.start(s.has(had, nil))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(s.cfg.StateDir)); err != nil {
		t.Fatal(err)
	}
	// The node goes on where it is, also if its directory has another name.
	moved := filepath.Join(filepath.Dir(s.cfg.StateDir), "moved")
	if err := os.Rename(s.cfg.StateDir, moved); err != nil {
		t.Fatal(err)
	}
	s.cfg.StateDir = moved
	if mem, err := s.start(nil); err != nil || mem.state.ID != first.state.ID || mem.state.Proposal == nil {
		t.Errorf("after a move: %+v, %v", mem.state, err)
	}
	s.cfg.StateDir = copied
	mem, err := s.start(nil)
	want := epoch.State{ID: mem.state.ID, Record: had.Record, Links: had.Links}
	if err != nil || mem.state.ID == first.state.ID || mem.state.ID == uuid.Nil || !reflect.DeepEqual(mem.state, want) {
		t.Errorf("the copy: %+v, %v", mem.state, err)
	}
	if again, err := s.start(nil); err != nil || !reflect.DeepEqual(again.state, want) {
		t.Errorf("the copy, started again: %+v, %v", again.state, err)
	}
	// Its operator is told why it gives no votes.
	var log strings.Builder
	s.cfg.Log = natsio.NewLog(slog.New(slog.NewTextHandler(&log, nil)))
	_, err = s.start(nil)
	s.cfg.Log.Flush(time.Minute)
	if err != nil || !strings.Contains(log.String(), "with another state directory: this one was copied or restored") {
		t.Errorf("%v; %s", err, &log)
	}
}

// With a record, the mark belongs to the record: what the node was told does not matter, and the
// wait is by the longest lease of the record.
func TestMarkGoesByTheRecord(t *testing.T) {
	s := newStarter(t)
	if _, err := s.start(s.has(s.joined(), s.stops)); err != nil {
		t.Fatal(err)
	}
	s.cfg.Nodes, s.cfg.MaxLease = []string{"x"}, 10*time.Second
	mem, err := s.start(nil)
	if err != nil || mem.saved == nil || mem.longest != time.Minute {
		t.Errorf("votes remembered: %v, longest lease %v, %v", mem.saved != nil, mem.longest, err)
	}
}

// A node must not start if it would forget what it has promised, and must not touch the file.
func TestDirectoryThatIsNotTaken(t *testing.T) {
	for _, tt := range []struct {
		what, want string
		change     func(t *testing.T, s *starter)
	}{
		{"a newer version wrote it", "written by a newer version of qlock", func(t *testing.T, s *starter) {
			if err := os.WriteFile(filepath.Join(s.cfg.StateDir, "node.json"), []byte(`{"version":4}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"it is that of another node", `that of node "a" of cluster "prod"`, func(_ *testing.T, s *starter) { s.cfg.Name = "b" }},
		{"it is that of another cluster", `that of node "a" of cluster "prod"`, func(_ *testing.T, s *starter) { s.cfg.Cluster = "staging" }},
		{"the state is none", "must not start without what it has promised", func(t *testing.T, s *starter) {
			err := s.use(func(dir *statedir.Dir) error {
				return dir.Write(statedir.Mark{Cluster: "prod", Name: "a", ID: uuid.NewString(), Epoch: []byte(`{"accepted":{"n":1,"run":"` + uuid.NewString() + `"}}`)})
			})
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"the id is none", "must not start without what it has promised", func(t *testing.T, s *starter) {
			err := s.use(func(dir *statedir.Dir) error { return dir.Write(statedir.Mark{Cluster: "prod", Name: "a", ID: "x"}) })
			if err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s := newStarter(t)
			if _, err := s.start(s.has(s.joined(), s.stops)); err != nil {
				t.Fatal(err)
			}
			tt.change(t, s)
			file := filepath.Join(s.cfg.StateDir, "node.json")
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.start(nil); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), s.cfg.StateDir) {
				t.Errorf("it starts: %v", err)
			}
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file is now %s, %v", after, err)
			}
		})
	}
}
