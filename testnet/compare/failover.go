package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/testnet"
)

// Outage is what became of one client's holds around the death of the member that led.
type Outage struct {
	Longest float64 `json:"longest_gap_ms"` // between two holds that follow each other
	Before  float64 `json:"quiet_gap_ms"`   // the longest before the fault
	Holds   int     `json:"holds"`
}

// Times of an outage.
const (
	quietTime  = 2 * time.Second
	outageTime = 15 * time.Second
	// attemptMax bounds one attempt at a hold: a caller that gives up and asks again gets through where a request is stuck at a member
	// that will not answer. Both systems get the same.
	attemptMax = time.Second
)

// cluster is a system whose members are processes of their own.
type cluster interface {
	client(ctx context.Context) (client, error)
	// leader returns which member leads the group that a client's holds are decided by.
	leader(ctx context.Context) (int, error)
	// signal sends a signal to a member's process.
	signal(i int, s syscall.Signal) error
	close() error
}

// outage has one client take and give back a lock, sends the leader a signal, and goes on until the time is over.
func outage(ctx context.Context, c cluster, s syscall.Signal) (o Outage, err error) {
	cl, err := c.client(ctx)
	if err != nil {
		return o, err
	}
	defer func() { _ = cl.close() }() // it may have been cut off
	var gap gaps
	work := func(length time.Duration) {
		for end := time.Now().Add(length); time.Now().Before(end); {
			attempt, cancel := context.WithTimeout(ctx, attemptMax)
			_, err := cl.hold(attempt, lockName, func() {})
			if cancel(); err == nil {
				gap.hold(time.Now())
				o.Holds++
			}
		}
	}
	work(quietTime / 2) // makes sessions and groups
	o.Holds, gap = 0, gaps{}
	work(quietTime)
	if o.Holds == 0 {
		return o, errors.New("no hold before the fault")
	}
	o.Before, gap.longest = ms(gap.longest), 0
	i, err := c.leader(ctx)
	if err != nil {
		return o, err
	}
	if err := c.signal(i, s); err != nil {
		return o, err
	}
	held := o.Holds
	work(outageTime)
	if o.Holds == held {
		return o, fmt.Errorf("no hold in %v after the fault", outageTime)
	}
	o.Longest = ms(gap.longest)
	return o, nil
}

const lockName = "compare"

// latchkeyCluster is a testnet of processes. Clients use the daemon of a peer that is no founder.
type latchkeyCluster struct {
	net      *testnet.Processes
	protocol lockservice.Protocol
}

func newLatchkeyCluster(ctx context.Context, program, dir string, protocol lockservice.Protocol) (*latchkeyCluster, error) {
	n, err := testnet.UpProcesses(ctx, testnet.ProcessOptions{
		Options: testnet.Options{N: voters + 1, F: voters / 2, Dir: dir}, Program: program,
	})
	if err != nil {
		return nil, err
	}
	return &latchkeyCluster{n, protocol}, nil
}

func (c *latchkeyCluster) client(ctx context.Context) (client, error) {
	// The peer that clients use must not be the one that dies: it is in the lock's group like all but one of four.
	daemon, err := c.daemon(ctx)
	if err != nil {
		return nil, err
	}
	return &daemonClient{daemon, latchkeyClient{daemon.Locks(), c.protocol}}, nil
}

// daemon returns the daemon of a peer that does not lead the lock's group.
func (c *latchkeyCluster) daemon(ctx context.Context) (*api.Client, error) {
	peers := c.net.Status().Peers
	first, err := api.Dial(peers[0].API)
	if err != nil {
		return nil, err
	}
	locks := first.Locks()
	h, err := locks.Lock(ctx, lockName, lockservice.WithProtocol(c.protocol)) // makes the group
	if err == nil {
		err = h.Release(ctx)
	}
	if err = errors.Join(err, locks.Close(), first.Close()); err != nil {
		return nil, err
	}
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	return api.Dial(peers[(leader+1)%len(peers)].API)
}

func (c *latchkeyCluster) leader(ctx context.Context) (int, error) {
	peers := c.net.Status().Peers
	daemon, err := api.Dial(peers[0].API)
	if err != nil {
		return 0, err
	}
	defer daemon.Close()
	key, err := daemon.Key(ctx, lockName)
	if err != nil {
		return 0, err
	}
	for _, p := range peers {
		if key.Group != nil && p.Peer == key.Group.Leader {
			return p.N, nil
		}
	}
	return 0, errors.New("the lock's group has no leader")
}

func (c *latchkeyCluster) signal(i int, s syscall.Signal) error {
	if s == syscall.SIGSTOP {
		return c.net.Pause(i)
	}
	return c.net.Kill(i)
}

func (c *latchkeyCluster) close() error { return c.net.Close() }

type daemonClient struct {
	daemon *api.Client
	latchkeyClient
}

func (c *daemonClient) close() error { return errors.Join(c.locks.Close(), c.daemon.Close()) }

// etcdCluster is three members, each this program started anew.
type etcdCluster struct {
	urls    []string // of peers and clients in turns
	members []*exec.Cmd
}

// memberEnv holds what a process that is to be a member of etcd has to know; memberSpec is its JSON.
const memberEnv = "LATCHKEY_COMPARE_MEMBER"

type memberSpec struct {
	Member int
	URLs   []string
	Dir    string
}

func newEtcdCluster(dir string) (_ *etcdCluster, err error) {
	urls, err := freeURLs(2 * voters)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := new(etcdCluster)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for _, u := range urls {
		c.urls = append(c.urls, u.String())
	}
	var outs []*bufio.Reader
	for i := range voters {
		spec, err := json.Marshal(memberSpec{i, c.urls, filepath.Join(dir, fmt.Sprint("etcd-", i))})
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), memberEnv+"="+string(spec))
		cmd.Stderr = os.Stderr
		childOf(cmd)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		c.members, outs = append(c.members, cmd), append(outs, bufio.NewReader(out))
	}
	for i, out := range outs {
		if _, err := out.ReadString('\n'); err != nil {
			return nil, fmt.Errorf("etcd member %d has not started: %w", i, err)
		}
	}
	return c, nil
}

// beMember runs a member of etcd until the process is killed.
func beMember(spec string) error {
	var m memberSpec
	if err := json.Unmarshal([]byte(spec), &m); err != nil {
		return err
	}
	urls := make([]url.URL, len(m.URLs))
	for i, s := range m.URLs {
		u, err := url.Parse(s)
		if err != nil {
			return err
		}
		urls[i] = *u
	}
	e, err := embed.StartEtcd(etcdConfig(m.Member, urls, m.Dir, true))
	if err != nil {
		return err
	}
	<-e.Server.ReadyNotify()
	fmt.Println("ready")
	return <-e.Err()
}

func (c *etcdCluster) leader(ctx context.Context) (int, error) {
	conn, err := clientv3.New(clientv3.Config{Endpoints: c.clientURLs(), Logger: zap.NewNop()})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for i, u := range c.clientURLs() {
		s, err := conn.Status(ctx, u)
		if err != nil {
			return 0, err
		}
		if s.Leader == s.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("etcd: no member leads")
}

func (c *etcdCluster) clientURLs() (urls []string) {
	for i := 1; i < len(c.urls); i += 2 {
		urls = append(urls, c.urls[i])
	}
	return urls
}

// client returns one that talks to a member that does not lead: with the leader its connection would be lost too.
func (c *etcdCluster) client(ctx context.Context) (client, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	return newEtcdClient(ctx, c.clientURLs()[(leader+1)%voters])
}

func (c *etcdCluster) signal(i int, s syscall.Signal) error { return c.members[i].Process.Signal(s) }

func (c *etcdCluster) close() error {
	for _, m := range c.members {
		_ = m.Process.Kill() // nothing to do about one that is gone
		_ = m.Wait()
	}
	return nil
}
