package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/qlock/qlock/internal/loopback"
)

const redisServer = "redis-server"

// redsyncRival is redsync on n redis-servers, without persistence. It uses redsync's
// defaults except for the expiry, which is the lease of all rivals, and the number of
// tries, since it gives up with its default of 32.
func redsyncRival(n int) *rival {
	return &rival{
		name: fmt.Sprintf("redsync n=%d", n), transport: overTCP, floor: floorName(3, overTCP),
		absent: func() string {
			if _, err := exec.LookPath(redisServer); err != nil {
				return "there is no " + redisServer
			}
			return ""
		},
		start: func(ctx context.Context, _ setup) (service, error) {
			logging.Disable() // the default prints to standard error
			dir, err := os.MkdirTemp("", "qlock-bench-redis-")
			if err != nil {
				return nil, err
			}
			r := &redisService{dir: dir}
			if err := r.start(ctx, n); err != nil {
				return nil, errors.Join(err, r.close())
			}
			return r, nil
		},
	}
}

type redisService struct {
	dir     string
	ports   []*loopback.Port
	addrs   []string
	servers []*exec.Cmd
}

func (r *redisService) start(ctx context.Context, n int) error {
	for i := range n {
		p, err := loopback.Reserve()
		if err != nil {
			return err
		}
		r.ports = append(r.ports, p)
		number := p.Number
		if number == 0 {
			if number, err = freePort(); err != nil {
				return err
			}
		}
		dir := filepath.Join(r.dir, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		cmd := exec.Command(redisServer, "--port", strconv.Itoa(number), "--bind", "127.0.0.1", "--dir", dir,
			"--save", "", "--appendonly", "no", "--daemonize", "no")
		if err := cmd.Start(); err != nil {
			return err
		}
		r.servers = append(r.servers, cmd)
		r.addrs = append(r.addrs, fmt.Sprintf("127.0.0.1:%d", number))
	}
	clients := r.clients()
	defer func() { _ = closeAll(clients) }()
	for _, c := range clients {
		if err := poll(ctx, redisServer+" is not ready", func() (bool, error) {
			err := c.Ping(ctx).Err()
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (r *redisService) clients() (clients []*redis.Client) {
	for _, addr := range r.addrs {
		clients = append(clients, redis.NewClient(&redis.Options{Addr: addr}))
	}
	return clients
}

func closeAll(clients []*redis.Client) error {
	var errs []error
	for _, c := range clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (r *redisService) close() error {
	var errs []error
	for _, cmd := range r.servers {
		errs = append(errs, cmd.Process.Kill())
	}
	for _, cmd := range r.servers {
		_ = cmd.Wait() // it was killed, and reports that
	}
	for _, p := range r.ports {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// usage returns the sum of what the servers report about themselves.
func (r *redisService) usage(ctx context.Context) (cpu time.Duration, memory int64, err error) {
	clients := r.clients()
	defer func() { err = errors.Join(err, closeAll(clients)) }()
	for _, c := range clients {
		info, err := c.Info(ctx, "cpu", "memory").Result()
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(info) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			x, err := strconv.ParseFloat(value, 64)
			if err != nil {
				continue // not a number that is needed
			}
			switch name {
			case "used_cpu_sys", "used_cpu_user":
				cpu += time.Duration(x * float64(time.Second))
			case "used_memory":
				memory += int64(x)
			}
		}
	}
	return cpu, memory, nil
}

func (r *redisService) connect(context.Context) (client, error) {
	clients := r.clients()
	var pools []redsyncredis.Pool
	for _, c := range clients {
		pools = append(pools, goredis.NewPool(c))
	}
	return &redsyncClient{redsync.New(pools...), clients}, nil
}

type redsyncClient struct {
	sync    *redsync.Redsync
	clients []*redis.Client
}

func (c *redsyncClient) lock(ctx context.Context, key string) (hold, error) {
	m := c.sync.NewMutex("lock:"+key, redsync.WithExpiry(lease), redsync.WithTries(1<<30))
	if err := m.LockContext(ctx); err != nil {
		return nil, err
	}
	return (*redsyncHold)(m), nil
}

func (c *redsyncClient) close() error { return closeAll(c.clients) }

type redsyncHold redsync.Mutex

func (h *redsyncHold) token() uint64 { return 0 }

func (h *redsyncHold) extend(ctx context.Context) error {
	return done((*redsync.Mutex)(h).ExtendContext(ctx))
}

func (h *redsyncHold) unlock(ctx context.Context) error {
	return done((*redsync.Mutex)(h).UnlockContext(ctx))
}

func done(ok bool, err error) error {
	if err == nil && !ok {
		err = errors.New("redsync: not by a quorum")
	}
	return err
}
