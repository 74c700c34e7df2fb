package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"latchkey/lockservice"
	"latchkey/testnet"
)

// client takes locks. One goroutine uses it at a time.
type client interface {
	// hold takes the lock of a name, calls inside, and gives the lock back. It returns how long the acquire took.
	hold(ctx context.Context, name string, inside func()) (time.Duration, error)
	close() error
}

// system is a lock service with three voters.
type system interface {
	name() string
	client(ctx context.Context) (client, error)
	close() error
}

const voters = 3

// latchkeySystem is a testnet of three voters and one more peer, which the clients use.
type latchkeySystem struct {
	net      *testnet.Network
	peer     *testnet.Peer
	protocol lockservice.Protocol
}

func newLatchkey(ctx context.Context, dir string, sync bool) (_ *latchkeySystem, err error) {
	o := testnet.Options{N: voters + 1, F: voters / 2}
	if sync {
		o.StoreDir = filepath.Join(dir, "latchkey")
	}
	s := &latchkeySystem{protocol: lockservice.ProtocolSigma}
	if s.net, err = testnet.Up(ctx, o); err != nil {
		return nil, err
	}
	if s.peer, err = s.net.Peer(voters); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// by returns the same peers with clients that use another protocol.
func (s *latchkeySystem) by(p lockservice.Protocol) *latchkeySystem {
	return &latchkeySystem{s.net, s.peer, p}
}

func (s *latchkeySystem) name() string { return fmt.Sprint("latchkey ", s.protocol) }

// nameFor returns a name whose group the clients' peer is not in, and that the other protocol's clients have nothing to do with.
func (s *latchkeySystem) nameFor(ctx context.Context, stem string) (string, error) {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s by %v %d", stem, s.protocol, i)
		key, err := s.peer.Node().Key(ctx, name)
		if err != nil {
			return "", err
		}
		if key.Group != nil && !slices.Contains(key.Group.Members, s.peer.Node().ID().String()) {
			return name, nil
		}
		if key.Group == nil { // made by its first lock
			h, err := s.peer.Node().Locks().Lock(ctx, name, lockservice.WithProtocol(s.protocol))
			if err != nil {
				return "", err
			}
			if err := h.Release(ctx); err != nil {
				return "", err
			}
			i--
		}
	}
}

func (s *latchkeySystem) client(context.Context) (client, error) {
	return latchkeyClient{s.peer.Node().NewLocks(), s.protocol}, nil
}

func (s *latchkeySystem) close() error { return s.net.Close() }

type latchkeyClient struct {
	locks    *lockservice.Service
	protocol lockservice.Protocol
}

func (c latchkeyClient) hold(ctx context.Context, name string, inside func()) (time.Duration, error) {
	start := time.Now()
	h, err := c.locks.Lock(ctx, name, lockservice.WithProtocol(c.protocol))
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	inside()
	return took, h.Release(ctx)
}

func (c latchkeyClient) close() error { return c.locks.Close() }

// etcdSystem is three members of etcd in this process.
type etcdSystem struct {
	members []*embed.Etcd
	leader  string // where clients find it
}

func newEtcd(ctx context.Context, dir string, sync bool) (_ *etcdSystem, err error) {
	urls, err := freeURLs(2 * voters)
	if err != nil {
		return nil, err
	}
	s := new(etcdSystem)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for i := range voters {
		m, err := embed.StartEtcd(etcdConfig(i, urls, filepath.Join(dir, fmt.Sprint("etcd-", i)), sync))
		if err != nil {
			return nil, fmt.Errorf("etcd member %d: %w", i, err)
		}
		s.members = append(s.members, m)
	}
	for i, m := range s.members {
		select {
		case <-m.Server.ReadyNotify():
		case <-ctx.Done():
			return nil, fmt.Errorf("etcd member %d: %w", i, context.Cause(ctx))
		}
		if m.Server.Leader() == m.Server.MemberID() {
			s.leader = urls[2*i+1].String()
		}
	}
	if s.leader == "" {
		return nil, errors.New("etcd: no member leads")
	}
	return s, nil
}

// etcdConfig returns the configuration of member i, whose URL for peers is urls[2i] and for clients urls[2i+1]. All but the sync is etcd's
// default.
func etcdConfig(i int, urls []url.URL, dir string, sync bool) *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir, c.UnsafeNoFsync = fmt.Sprint("m", i), dir, !sync
	c.ListenPeerUrls, c.AdvertisePeerUrls = urls[2*i:2*i+1], urls[2*i:2*i+1]
	c.ListenClientUrls, c.AdvertiseClientUrls = urls[2*i+1:2*i+2], urls[2*i+1:2*i+2]
	c.InitialCluster = ""
	for j := range len(urls) / 2 {
		c.InitialCluster += fmt.Sprintf("m%d=%s,", j, urls[2*j].String())
	}
	c.InitialCluster = c.InitialCluster[:len(c.InitialCluster)-1]
	c.Logger, c.LogLevel, c.LogOutputs = "zap", "panic", []string{"/dev/null"}
	return c
}

// freeURLs returns addresses on loopback that nobody listens on now.
func freeURLs(n int) (urls []url.URL, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all at the end, so that they differ
		urls = append(urls, url.URL{Scheme: "http", Host: l.Addr().String()})
	}
	return urls, nil
}

func (s *etcdSystem) name() string { return "etcd" }

func (s *etcdSystem) client(ctx context.Context) (client, error) { return newEtcdClient(ctx, s.leader) }

func (s *etcdSystem) close() error {
	for _, m := range s.members {
		m.Close()
	}
	return nil
}

type etcdClient struct {
	conn    *clientv3.Client
	session *concurrency.Session
}

// etcdTTL is as long as latchkey's leases are by default.
const etcdTTL = 15

func newEtcdClient(ctx context.Context, endpoints ...string) (client, error) {
	conn, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	session, err := concurrency.NewSession(conn, concurrency.WithTTL(etcdTTL))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &etcdClient{conn, session}, nil
}

func (c *etcdClient) hold(ctx context.Context, name string, inside func()) (time.Duration, error) {
	start := time.Now()
	m := concurrency.NewMutex(c.session, name)
	err := m.Lock(ctx)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	inside()
	return took, m.Unlock(ctx)
}

func (c *etcdClient) close() error { return cmp.Or(c.session.Close(), c.conn.Close()) }
