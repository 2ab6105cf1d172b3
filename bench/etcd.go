package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/qlock/qlock/internal/loopback"
)

const etcdMembers = 3

// etcdRival is concurrency.Mutex of etcd's own client on three members in this process. A
// client has one session, as etcd's documentation recommends. A session can hold a key only
// once, so goroutines of one client take turns.
func etcdRival(fsync bool) *rival {
	name := "etcd fsync"
	if !fsync {
		name = "etcd no fsync"
	}
	return &rival{
		name: name, transport: overTCP, floor: floorName(etcdMembers, overTCP),
		start: func(ctx context.Context, _ setup) (service, error) {
			dir, err := os.MkdirTemp("", "qlock-bench-etcd-")
			if err != nil {
				return nil, err
			}
			e := &etcd{dir: dir}
			if err := e.start(ctx, fsync); err != nil {
				return nil, errors.Join(err, e.close())
			}
			return e, nil
		},
	}
}

type etcd struct {
	dir       string
	ports     []*loopback.Port
	members   []*embed.Etcd
	endpoints []string
}

func (e *etcd) address() (url.URL, error) {
	p, err := loopback.Reserve()
	if err != nil {
		return url.URL{}, err
	}
	e.ports = append(e.ports, p)
	number := p.Number
	if number == 0 {
		number, err = freePort()
	}
	return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", number)}, err
}

func (e *etcd) start(ctx context.Context, fsync bool) error {
	var configs []*embed.Config
	cluster := ""
	for i := range etcdMembers {
		peer, err := e.address()
		if err != nil {
			return err
		}
		own, err := e.address()
		if err != nil {
			return err
		}
		cfg := embed.NewConfig()
		cfg.Name = fmt.Sprintf("m%d", i+1)
		cfg.Dir = filepath.Join(e.dir, cfg.Name)
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{own}, []url.URL{own}
		cfg.UnsafeNoFsync = !fsync
		// Half of the defaults: etcd recommends a few round trips, and the first election takes as
		// long.
		cfg.TickMs, cfg.ElectionMs = 50, 500
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		cluster += fmt.Sprintf(",%s=%s", cfg.Name, peer.String())
		e.endpoints = append(e.endpoints, own.String())
		configs = append(configs, cfg)
	}
	for _, cfg := range configs {
		cfg.InitialCluster = cluster[1:]
		m, err := embed.StartEtcd(cfg)
		if err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
		e.members = append(e.members, m)
	}
	for _, m := range e.members {
		select {
		case <-m.Server.ReadyNotify():
		case err := <-m.Err():
			return fmt.Errorf("etcd: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("etcd is not ready: %w", context.Cause(ctx))
		}
	}
	return nil
}

func (e *etcd) close() error {
	// All members stop at once and without a handover: otherwise each would transfer its
	// leadership to a member that is about to stop too.
	var wg sync.WaitGroup
	for _, m := range e.members {
		wg.Go(func() {
			m.Server.HardStop()
			m.Close()
		})
	}
	wg.Wait()
	var errs []error
	for _, p := range e.ports {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

func (e *etcd) connect(ctx context.Context) (client, error) {
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: e.endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, err
	}
	// The session must outlive the time in which clients may connect.
	session, err := concurrency.NewSession(cl, concurrency.WithTTL(int(lease.Seconds())), concurrency.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return nil, errors.Join(err, cl.Close())
	}
	return &etcdClient{client: cl, session: session}, nil
}

type etcdClient struct {
	client  *clientv3.Client
	session *concurrency.Session
	turn    turns
}

func (c *etcdClient) lock(ctx context.Context, key string) (hold, error) {
	if err := c.turn.take(ctx, key); err != nil {
		return nil, err
	}
	m := concurrency.NewMutex(c.session, "/lock/"+key)
	if err := m.Lock(ctx); err != nil {
		c.turn.give(key)
		return nil, err
	}
	return &etcdHold{c, m, key}, nil
}

func (c *etcdClient) close() error { return errors.Join(c.session.Close(), c.client.Close()) }

type etcdHold struct {
	c   *etcdClient
	m   *concurrency.Mutex
	key string
}

// token is the revision at which the lock's key was seen to be the oldest. etcd's
// documentation suggests it, although the package does not mention fencing.
func (h *etcdHold) token() uint64 { return uint64(h.m.Header().Revision) }

func (h *etcdHold) unlock(ctx context.Context) error {
	defer h.c.turn.give(h.key)
	return h.m.Unlock(ctx)
}
