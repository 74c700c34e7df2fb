package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"latchkey/internal/loglevels"
	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
	"latchkey/node/api/latchkey/v1/latchkeyv1connect"
)

// answerBytesMax bounds one answer of a daemon. A lock's full queue is the longest.
const answerBytesMax = 1 << 20

// Client speaks to one daemon. Its methods are safe for concurrent use, block until the daemon has answered or ctx ends, and
// return errors that match context.Cause(ctx), [ErrUnreachable], or a sentinel of package lockservice.
type Client struct {
	addr      string
	transport *http.Transport
	node      latchkeyv1connect.NodeServiceClient
	objects   latchkeyv1connect.ObjectServiceClient
	durables  latchkeyv1connect.DurableServiceClient
	backend   *backend
	locks     *lockservice.Service
}

// DialOption sets one property of a client.
type DialOption func(*dialOptions)

type dialOptions struct {
	token string
	roots *x509.CertPool
}

// WithToken sends a token with every call; a daemon wants one at an address of HTTP.
func WithToken(token string) DialOption { return func(o *dialOptions) { o.token = token } }

// WithRoots trusts these certificates of authorities, and not the system's, at an address of https.
func WithRoots(roots *x509.CertPool) DialOption { return func(o *dialOptions) { o.roots = roots } }

// Dial returns a client of the daemon at addr: a unix socket ([ParseAddr]), or http://HOST:PORT or https://HOST:PORT ([IsHTTP]). Nothing is
// sent yet, so an absent daemon is found out by the first call. The errors match [ErrAddr].
func Dial(addr string, opts ...DialOption) (*Client, error) {
	var o dialOptions
	for _, opt := range opts {
		opt(&o)
	}
	if IsHTTP(addr) {
		return dialHTTP(addr, o)
	}
	path, err := ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	// HTTP/2, so that the end of one call does not cost the connection of the others.
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	var dialer net.Dialer
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
		Protocols:   &protocols,
	}
	// The name goes into the Host header, where nobody reads it.
	return newClient(path, "http://latchkey", t, t), nil
}

// dialHTTP returns a client of a daemon that answers on TCP.
func dialHTTP(addr string, o dialOptions) (*Client, error) {
	base, err := parseHTTP(addr)
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS12}}
	return newClient(base, base, t, bearer{t, o.token}), nil
}

// bearer sends a token with every call.
type bearer struct {
	next  http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

func newClient(addr, base string, t *http.Transport, by http.RoundTripper) *Client {
	httpClient, limit := &http.Client{Transport: by}, connect.WithReadMaxBytes(answerBytesMax)
	c := &Client{addr: addr, transport: t, node: latchkeyv1connect.NewNodeServiceClient(httpClient, base, limit)}
	c.objects = latchkeyv1connect.NewObjectServiceClient(httpClient, base, connect.WithReadMaxBytes(ObjectBytesMax))
	c.durables = latchkeyv1connect.NewDurableServiceClient(httpClient, base, connect.WithReadMaxBytes(ObjectBytesMax))
	c.backend = &backend{addr: addr, rpc: latchkeyv1connect.NewLockServiceClient(httpClient, base, limit)}
	c.locks = lockservice.New(c.backend)
	return c
}

// Locks takes locks through the daemon. Leases are renewed by this process and counted on its clock, so they end with it.
func (c *Client) Locks() *lockservice.Service { return c.locks }

// LockBackend is what Locks is built on.
func (c *Client) LockBackend() lockservice.Backend { return c.backend }

// Addr returns the path of the socket, or the URL.
func (c *Client) Addr() string { return c.addr }

// Gone reports whether nobody listened at the address ([ErrGone]) when a lock was last renewed through Locks. It does not block.
func (c *Client) Gone() bool { return c.backend.gone.Load() }

// Close releases the locks taken through Locks and closes the connection.
func (c *Client) Close() error {
	err := c.locks.Close()
	c.transport.CloseIdleConnections()
	return err
}

// Abandon closes the connection as a crash would: what is held through Locks is left to its lease, and nothing is waited for.
func (c *Client) Abandon() {
	c.locks.Abandon()
	c.transport.CloseIdleConnections()
}

// ID tells who the daemon's peer is.
func (c *Client) ID(ctx context.Context) (Info, error) {
	r, err := c.node.Id(ctx, &latchkeyv1.IdRequest{})
	if err != nil {
		return Info{}, decodeError(ctx, c.addr, err, false)
	}
	return Info{
		Peer: r.Peer, Node: r.Node, Overlay: r.Overlay, OverlayName: r.OverlayName, Addrs: list(r.Addrs), Version: r.Version, Store: r.Store,
	}, nil
}

// Peers lists the peers that the daemon knows, in the order of their ids.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	r, err := c.node.Peers(ctx, &latchkeyv1.PeersRequest{})
	if err != nil {
		return nil, decodeError(ctx, c.addr, err, false)
	}
	peers := make([]Peer, len(r.Peers))
	for i, p := range r.Peers {
		peers[i] = Peer{Peer: p.Peer, Node: p.Node, Addrs: list(p.Addrs), Connected: p.Connected}
	}
	return peers, nil
}

// Connect connects the daemon's peer to another, by a multiaddr with its id, or by its id alone. Errors: [ErrPeer], [ErrConnect].
func (c *Client) Connect(ctx context.Context, to string) (Connection, error) {
	r, err := c.node.Connect(ctx, &latchkeyv1.ConnectRequest{To: to})
	if err != nil {
		return Connection{}, decodeError(ctx, c.addr, err, false)
	}
	return Connection{Peer: r.Peer, Addr: r.Addr, Already: r.Already}, nil
}

// Disconnect ends the connections of the daemon's peer with another, and returns how many there were. Errors: [ErrPeer].
func (c *Client) Disconnect(ctx context.Context, peer string) (int, error) {
	r, err := c.node.Disconnect(ctx, &latchkeyv1.DisconnectRequest{Peer: peer})
	if err != nil {
		return 0, decodeError(ctx, c.addr, err, false)
	}
	return int(r.Connections), nil
}

// Ping measures one round trip from the daemon's peer to another. Errors: [ErrPeer], [ErrConnect].
func (c *Client) Ping(ctx context.Context, peer string) (Pong, error) {
	r, err := c.node.Ping(ctx, &latchkeyv1.PingRequest{Peer: peer})
	if err != nil {
		return Pong{}, decodeError(ctx, c.addr, err, false)
	}
	p := Pong{Peer: r.Peer, Addr: r.Addr, RoundTrip: r.RoundTrip.AsDuration()}
	p.RoundTripUS = p.RoundTrip.Microseconds()
	return p, nil
}

// LogLevels lists from which level on parts of the daemon log ([loglevels.List]). Errors: loglevels.ErrSubsystem.
func (c *Client) LogLevels(ctx context.Context, subsystem string) ([]loglevels.Level, error) {
	r, err := c.node.LogLevels(ctx, &latchkeyv1.LogLevelsRequest{Subsystem: subsystem})
	return decodeLevels(ctx, c.addr, r, err)
}

// SetLogLevel changes that until the daemon ends, and returns what it has set. Errors: loglevels.ErrLevel, loglevels.ErrSubsystem.
func (c *Client) SetLogLevel(ctx context.Context, subsystem, level string) ([]loglevels.Level, error) {
	r, err := c.node.SetLogLevel(ctx, &latchkeyv1.SetLogLevelRequest{Subsystem: subsystem, Level: level})
	return decodeLevels(ctx, c.addr, r, err)
}

func decodeLevels(ctx context.Context, addr string, r *latchkeyv1.LogLevelsResponse, err error) ([]loglevels.Level, error) {
	if err != nil {
		return nil, decodeError(ctx, addr, err, false)
	}
	levels := make([]loglevels.Level, len(r.Levels))
	for i, l := range r.Levels {
		levels[i] = loglevels.Level{Subsystem: l.Subsystem, Level: l.Level}
	}
	return levels, nil
}

// Status tells how the daemon's peer is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.node.Status(ctx, &latchkeyv1.StatusRequest{})
	if err != nil {
		return Status{}, decodeError(ctx, c.addr, err, false)
	}
	return decodeStatus(r), nil
}

// Key tells where the lock named name lives.
func (c *Client) Key(ctx context.Context, name string) (KeyInfo, error) {
	if err := lockservice.CheckName(name); err != nil {
		return KeyInfo{}, err
	}
	r, err := c.node.Key(ctx, &latchkeyv1.KeyRequest{Name: name})
	if err != nil {
		return KeyInfo{}, decodeError(ctx, c.addr, err, false)
	}
	k := KeyInfo{Name: r.Name, Hash: r.Hash, Closest: list(r.Closest)}
	if g := r.Group; g != nil {
		k.Group = &GroupInfo{ID: g.Id, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: list(g.Members)}
	}
	return k, nil
}

// Groups lists the groups that the daemon's peer takes part in, by prefix.
func (c *Client) Groups(ctx context.Context) ([]HostedGroup, error) {
	r, err := c.node.Groups(ctx, &latchkeyv1.GroupsRequest{})
	if err != nil {
		return nil, decodeError(ctx, c.addr, err, false)
	}
	return decodeHosted(r.Groups), nil
}

// Group tells how a group stands: of is a prefix, "root", or a lock's name. Errors: [ErrNoGroup].
func (c *Client) Group(ctx context.Context, of string) (GroupStanding, error) {
	r, err := c.node.Group(ctx, &latchkeyv1.GroupRequest{Of: of})
	if err != nil {
		return GroupStanding{}, decodeError(ctx, c.addr, err, false)
	}
	return decodeStanding(r), nil
}

// Revive makes the generation after gen of a prefix's group, which has lost its majority for good. Errors: [ErrPrefix],
// [ErrNoGroup], [ErrAlive]. It may be repeated: gen is followed by one generation.
func (c *Client) Revive(ctx context.Context, prefix string, gen uint64, force bool) (Revived, error) {
	r, err := c.node.Revive(ctx, &latchkeyv1.ReviveRequest{Prefix: prefix, Generation: gen, Force: force})
	if err != nil {
		return Revived{}, decodeError(ctx, c.addr, err, true)
	}
	v := Revived{Prefix: r.Prefix, Generation: r.Generation, Members: list(r.Members), Embargo: r.Embargo.AsDuration()}
	v.EmbargoMS = v.Embargo.Milliseconds()
	return v, nil
}

// OwnGroup gives the key of a lock's name a group of its own, or takes it back with remove, and tells which group serves it then. Errors:
// [ErrOwn], with the reason. It may be repeated.
func (c *Client) OwnGroup(ctx context.Context, name string, remove bool) (Served, error) {
	r, err := c.node.Own(ctx, &latchkeyv1.OwnRequest{Name: name, Remove: remove})
	if err != nil {
		return Served{}, decodeError(ctx, c.addr, err, true)
	}
	return Served{Name: name, Prefix: r.Prefix, Generation: r.Generation, Members: list(r.Members)}, nil
}

// Graves lists what the daemon's peer has put aside of generations that are over.
func (c *Client) Graves(ctx context.Context) (Graveyard, error) {
	r, err := c.node.Graves(ctx, &latchkeyv1.GravesRequest{})
	if err != nil {
		return Graveyard{}, decodeError(ctx, c.addr, err, false)
	}
	return Graveyard{Graves: decodeGraves(r.Graves), Most: int(r.Most)}, nil
}

// DeleteGrave deletes what the daemon's peer has put aside of one generation of a group, and returns it. Errors: [ErrPrefix], and
// [ErrNoGroup] when there is nothing.
func (c *Client) DeleteGrave(ctx context.Context, prefix string, gen uint64) ([]Grave, error) {
	r, err := c.node.DeleteGrave(ctx, &latchkeyv1.DeleteGraveRequest{Prefix: prefix, Generation: gen})
	if err != nil {
		return nil, decodeError(ctx, c.addr, err, true)
	}
	return decodeGraves(r.Deleted), nil
}

// ProposeRoot returns the reseed document, not yet signed, that makes the daemon's peer the founder of a new root.
func (c *Client) ProposeRoot(ctx context.Context) (RootProposal, error) {
	r, err := c.node.ProposeRoot(ctx, &latchkeyv1.ProposeRootRequest{})
	if err != nil {
		return RootProposal{}, decodeError(ctx, c.addr, err, false)
	}
	return RootProposal{Document: r.Document, Generation: r.Generation, Volatile: r.Volatile, Survivor: r.Survivor, Groups: int(r.Groups)}, nil
}

// Reseed gives the overlay another root by a signed document. Errors: [ErrAlive], [ErrReseed]. It may be repeated.
func (c *Client) Reseed(ctx context.Context, doc []byte, force bool) (Reseeded, error) {
	r, err := c.node.Reseed(ctx, &latchkeyv1.ReseedRequest{Document: doc, Force: force})
	if err != nil {
		return Reseeded{}, decodeError(ctx, c.addr, err, true)
	}
	v := Reseeded{Generation: r.Generation, Founder: r.Founder, Quarantine: r.Quarantine.AsDuration()}
	v.QuarantineMS = v.Quarantine.Milliseconds()
	return v, nil
}

// Shutdown asks the daemon to stop and returns when it has begun to.
func (c *Client) Shutdown(ctx context.Context) error {
	if _, err := c.node.Shutdown(ctx, &latchkeyv1.ShutdownRequest{}); err != nil {
		return decodeError(ctx, c.addr, err, false)
	}
	return nil
}

// Version tells which build the daemon is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	r, err := c.node.Version(ctx, &latchkeyv1.VersionRequest{})
	if err != nil {
		return Version{}, decodeError(ctx, c.addr, err, false)
	}
	return Version{Version: r.Version, Go: r.Go, Platform: r.Platform}, nil
}

// backend is a [lockservice.Backend] whose every method is one call.
type backend struct {
	addr string
	rpc  latchkeyv1connect.LockServiceClient
	gone atomic.Bool // what the last renewal found: nobody to renew it
	ends atomic.Int64
}

func (b *backend) Acquire(ctx context.Context, r lockservice.Request) (lockservice.Grant, error) {
	if err := lockservice.CheckName(r.Name); err != nil {
		return lockservice.Grant{}, err
	}
	// Leaving early ends the stream, and that is how the daemon learns to leave the queue.
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.rpc.Acquire(callCtx, &latchkeyv1.AcquireRequest{
		Name: r.Name, Ttl: durationpb.New(r.TTL), Try: r.Try, Shared: r.Shared, Permits: uint32(r.Permits), LockDelay: durationpb.New(r.Delay), Value: r.Value,
		Protocol: encodeProtocol(r.Protocol),
	})
	if err != nil {
		return lockservice.Grant{}, decodeError(ctx, b.addr, err, true)
	}
	defer stream.Close()
	for stream.Receive() {
		switch ev := stream.Msg().Event.(type) {
		case *latchkeyv1.AcquireResponse_Queued:
			if r.Queued != nil {
				r.Queued(int(ev.Queued.Position))
			}
		case *latchkeyv1.AcquireResponse_Granted:
			g := decodeGrant(ev.Granted)
			if g.Name != r.Name || g.Token == 0 || g.TTL != r.TTL {
				return lockservice.Grant{}, fmt.Errorf("api: the daemon at %s granted another lock than was asked for", b.addr)
			}
			return g, nil
		}
	}
	if err := stream.Err(); err != nil {
		return lockservice.Grant{}, decodeError(ctx, b.addr, err, true)
	}
	return lockservice.Grant{}, fmt.Errorf("api: the daemon at %s ended the call without a grant: %w", b.addr, lockservice.ErrOutcomeUnknown)
}

func (b *backend) Renew(ctx context.Context, g lockservice.Grant) error {
	r, err := b.rpc.Renew(ctx, &latchkeyv1.RenewRequest{Name: g.Name, Token: uint64(g.Token), Req: g.Req})
	if err != nil {
		err = decodeError(ctx, b.addr, err, true)
		b.gone.Store(errors.Is(err, ErrGone))
		return err
	}
	b.gone.Store(false)
	// The caller counts a whole TTL from its sending of this call, so an answer that leaves less must not pass for one.
	if r.LeaseLeft.AsDuration() < g.TTL {
		return fmt.Errorf("api: the daemon at %s renewed %q for %v instead of %v", b.addr, g.Name, r.LeaseLeft.AsDuration(), g.TTL)
	}
	return nil
}

func (b *backend) Release(ctx context.Context, g lockservice.Grant) error {
	if _, err := b.rpc.Release(ctx, &latchkeyv1.ReleaseRequest{Name: g.Name, Token: uint64(g.Token), Req: g.Req}); err != nil {
		err = decodeError(ctx, b.addr, err, true)
		if errors.Is(err, ErrGone) { // a daemon that is started later would not know this grant: the lease has to run out
			return &endedError{err}
		}
		return err
	}
	return nil
}

func (b *backend) Break(ctx context.Context, name string, token lockservice.Token) (lockservice.Party, error) {
	if err := lockservice.CheckName(name); err != nil {
		return lockservice.Party{}, err
	}
	r, err := b.rpc.Break(ctx, &latchkeyv1.BreakRequest{Name: name, Token: uint64(token)})
	if err != nil {
		return lockservice.Party{}, decodeError(ctx, b.addr, err, true)
	}
	return decodeParty(r.Holder), nil
}

// endsMax bounds the calls of one client that wait for the end of a grant: each takes one of the [streamsMax] of its connection, which renewals
// need too. A further holder finds out by its next renewal.
const endsMax = 256

// Ended implements [lockservice.Ender].
func (b *backend) Ended(ctx context.Context, g lockservice.Grant) error {
	defer b.ends.Add(-1)
	if b.ends.Add(1) > endsMax {
		return fmt.Errorf("%w: %d calls wait for the end of a lock", lockservice.ErrLimit, endsMax)
	}
	_, err := b.rpc.Ended(ctx, &latchkeyv1.EndedRequest{Name: g.Name, Token: uint64(g.Token), Req: g.Req})
	if err != nil {
		return decodeError(ctx, b.addr, err, false)
	}
	return nil
}

// Changes implements [lockservice.Notifier].
func (b *backend) Changes(ctx context.Context, name string, fn func()) error {
	if err := lockservice.CheckName(name); err != nil {
		return err
	}
	stream, err := b.rpc.Changes(ctx, &latchkeyv1.ChangesRequest{Name: name})
	if err != nil {
		return decodeError(ctx, b.addr, err, false)
	}
	defer stream.Close()
	for stream.Receive() {
		fn()
	}
	if err := stream.Err(); err != nil {
		return decodeError(ctx, b.addr, err, false)
	}
	return fmt.Errorf("api: the daemon at %s tells of no more changes of %q", b.addr, name)
}

// HeldLock is a lock that is held through a daemon.
type HeldLock struct {
	Name    string
	Token   lockservice.Token
	TTL     time.Duration
	Holder  string
	Shared  bool
	Permits int // of a semaphore; 0 for a lock
}

// HeldLocks lists the locks that are held through the daemon, by name and token. One whose client has gone is listed until its lease is over.
func (c *Client) HeldLocks(ctx context.Context) ([]HeldLock, error) {
	r, err := c.backend.rpc.List(ctx, &latchkeyv1.ListRequest{})
	if err != nil {
		return nil, decodeError(ctx, c.addr, err, false)
	}
	all := make([]HeldLock, len(r.Locks))
	for i, l := range r.Locks {
		all[i] = HeldLock{
			Name: l.Name, Token: lockservice.Token(l.Token), TTL: l.Ttl.AsDuration(), Holder: l.Holder, Shared: l.Shared, Permits: int(l.Permits),
		}
	}
	return all, nil
}

// List implements [lockservice.Lister].
func (b *backend) List(ctx context.Context, prefix string, fn func(lockservice.ListPage) error) error {
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.rpc.ListOverlay(callCtx, &latchkeyv1.ListOverlayRequest{Prefix: prefix})
	if err != nil {
		return decodeError(ctx, b.addr, err, false)
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		p := lockservice.ListPage{Group: m.Group, Unsure: m.Unsure}
		for _, i := range m.Locks {
			p.Locks = append(p.Locks, decodeInfo(i))
		}
		if m.Error != "" {
			p.Err = errors.New(m.Error)
		}
		if err := fn(p); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return decodeError(ctx, b.addr, err, false)
	}
	return nil
}

func (b *backend) Info(ctx context.Context, name string) (lockservice.Info, error) {
	if err := lockservice.CheckName(name); err != nil {
		return lockservice.Info{}, err
	}
	r, err := b.rpc.Info(ctx, &latchkeyv1.InfoRequest{Name: name})
	if err != nil {
		return lockservice.Info{}, decodeError(ctx, b.addr, err, false)
	}
	return decodeInfo(r), nil
}

func (b *backend) Limits(ctx context.Context) (lockservice.Limits, error) {
	r, err := b.rpc.Limits(ctx, &latchkeyv1.LimitsRequest{})
	if err != nil {
		return lockservice.Limits{}, decodeError(ctx, b.addr, err, false)
	}
	return lockservice.Limits{
		TTLMin: r.TtlMin.AsDuration(), TTLMax: r.TtlMax.AsDuration(), TTLDefault: r.TtlDefault.AsDuration(), DriftPPM: r.DriftPpm,
	}, nil
}

// list keeps an empty list from showing as null in JSON.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// neverSent reports whether a call failed before anything left this process.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || notTLS(err)
}

// notTLS reports whether no connection came about since the other side does not speak TLS, or nobody we trust vouches for it.
func notTLS(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(tls.RecordHeaderError))
}
