package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// Several keys that are read in one call are of one moment, while transactions write all of
// them: under a lock of the readers' own, and without a lock.
func TestSnapshotsAreNotTorn(t *testing.T) {
	one, three := []*server.Server{startServer(t)}, startCluster(t, 3)
	for _, c := range []struct {
		servers []*server.Server
		storage jetstream.StorageType
		writes  int
	}{
		{one, jetstream.MemoryStorage, 150}, {one, jetstream.FileStorage, 20}, // each syncs a file
		{three, jetstream.MemoryStorage, 80}, {three, jetstream.FileStorage, 40},
	} {
		t.Run(fmt.Sprintf("R%d %s", len(c.servers), c.storage), func(t *testing.T) { notTorn(t, c.servers, c.storage, c.writes) })
	}
}

func notTorn(t *testing.T, servers []*server.Server, storage jetstream.StorageType, writes int) {
	nc := connect(t, servers[0].ClientURL())
	s := newStore(t, newJS(t, nc), jetstream.KeyValueConfig{Replicas: len(servers), Storage: storage}, WithAnswerTimeout(DefaultAnswerTimeout))
	keys := []string{"a", "b", "c"}
	v := s.With(lock(t, "w", 1))
	write := func(i int) {
		x := fmt.Append(nil, i)
		must(v.Do(t.Context(), Put("a", x), Put("b", x), Put("c", x)))(t)
	}
	write(0)
	var wg sync.WaitGroup
	var over atomic.Bool
	for n, srv := range servers {
		own := reopen(t, s, connect(t, srv.ClientURL()), WithAnswerTimeout(DefaultAnswerTimeout))
		r := own.With(rlock(t, fmt.Sprint("r", n), 1))
		wg.Go(func() {
			for i := 0; !over.Load(); i++ {
				var snap Snapshot
				var err error
				if i%4 == 3 {
					var res Result
					res, err = own.Do(t.Context(), Get("a"), Get("b"), Get("c"))
					snap = res.Snapshot
				} else {
					snap, err = r.GetAll(t.Context(), keys...)
				}
				if err != nil {
					t.Error(err)
					return
				}
				var got [3]string
				for j, k := range keys {
					e, err := snap.Get(k)
					if err != nil {
						t.Error(err)
						return
					}
					got[j] = string(e.Value())
				}
				if got[0] != got[1] || got[1] != got[2] {
					t.Errorf("a snapshot of different moments: %q", got)
					return
				}
			}
		})
	}
	for i := range writes {
		write(i + 1)
		if i == writes/2 && len(servers) > 1 {
			stepDown(nc, s)
		}
	}
	over.Store(true)
	wg.Wait()
}
