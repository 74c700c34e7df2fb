package api

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	logging "github.com/ipfs/go-log/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"latchkey/internal/loglevels"
	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
	"latchkey/node/api/latchkey/v1/latchkeyv1connect"
)

var log = logging.Logger("latchkey/api")

// Bounds of one server.
const (
	// RequestBytesMax bounds one request, unpacked, but for those about objects. The longest honest one names a lock and carries a few numbers.
	RequestBytesMax = 64 << 10
	// AcquiresMax bounds the Acquire calls under way, waiting ones included. One more is refused with
	// [lockservice.ErrLimit].
	AcquiresMax = 1024
	// GrantsMax bounds the grants that live through one daemon, with the calls under way that may add one. Past it, Acquire is
	// refused with [lockservice.ErrLimit]. A grant whose client has gone counts until twice its TTL has passed.
	GrantsMax = 4096
	// WatchesMax bounds the Changes calls under way. One more is refused with [lockservice.ErrLimit], and who watches asks every half second.
	WatchesMax = 256
	// ListsMax bounds the ListOverlay calls under way, each of which asks all groups. One more is refused with [lockservice.ErrLimit].
	ListsMax = 4
	// streamsMax bounds the calls of one connection. It leaves room beside waiting Acquires, or renewals would wait for them.
	streamsMax = 2 * AcquiresMax
	// headerTimeout and idleTimeout end connections that say nothing.
	headerTimeout = 10 * time.Second
	idleTimeout   = 5 * time.Minute
	// giveBackTimeout bounds the attempt to release a lock that was granted to a client already gone.
	giveBackTimeout = 5 * time.Second
	// closeTimeout bounds how long Close waits for calls under way before it cuts their connections, and flushTimeout for last
	// answers to leave. The HTTP server's own Shutdown would give every HTTP/2 connection, idle or not, another second.
	closeTimeout = 2 * time.Second
	flushTimeout = 50 * time.Millisecond
)

// Node is what the server tells about.
type Node interface {
	Info() Info
	// Peers lists the known peers in the order of their ids.
	Peers() []Peer
	// Status tells how the peer is doing. ctx ends the question to its replica groups.
	Status(ctx context.Context) (Status, error)
	// Key tells where the lock named name lives.
	Key(ctx context.Context, name string) (KeyInfo, error)
	// HostedGroups lists the groups this peer takes part in, by prefix.
	HostedGroups(ctx context.Context) ([]HostedGroup, error)
	// GroupStanding tells how a group stands: of is a prefix, "root", or a lock's name. Errors: [ErrNoGroup].
	GroupStanding(ctx context.Context, of string) (GroupStanding, error)
	// ReviveGroup makes the generation after gen of a prefix's group. Errors: [ErrPrefix], [ErrNoGroup], [ErrAlive].
	ReviveGroup(ctx context.Context, prefix string, gen uint64, force bool) (Revived, error)
	// OwnGroup gives the key of a lock's name a group of its own, or takes it back. Errors: [ErrOwn], with the reason.
	OwnGroup(ctx context.Context, name string, remove bool) (Served, error)
	// ProposeRoot returns the document, not yet signed, that makes this peer the founder of a new root.
	ProposeRoot(ctx context.Context) (RootProposal, error)
	// Reseed takes over such a document with its signature. Errors: [ErrAlive], [ErrReseed].
	Reseed(ctx context.Context, doc []byte, force bool) (Reseeded, error)
	// Connect connects to a peer, by a multiaddr with its id, or by its id alone where addresses of it are known. Errors: [ErrPeer],
	// [ErrConnect], with the reason.
	Connect(ctx context.Context, to string) (Connection, error)
	// Disconnect ends the connections with a peer, and returns how many there were. Errors: [ErrPeer].
	Disconnect(ctx context.Context, peer string) (int, error)
	// Ping measures one round trip to a peer, which it connects to first if need be. Errors: [ErrPeer], [ErrConnect].
	Ping(ctx context.Context, peer string) (Pong, error)
	// Graves lists what the peer has put aside of generations that are over, by prefix and generation.
	Graves(ctx context.Context) (Graveyard, error)
	// DeleteGrave deletes what was put aside of one generation of a group, and returns it. Errors: [ErrPrefix], [ErrNoGroup].
	DeleteGrave(ctx context.Context, prefix string, gen uint64) ([]Grave, error)
}

// Info tells who a peer is.
type Info struct {
	Peer        string   `json:"peer"`
	Node        string   `json:"node"`
	Overlay     string   `json:"overlay"`
	OverlayName string   `json:"overlay_name"`
	Addrs       []string `json:"addrs"`
	Version     string   `json:"version"`
	Store       string   `json:"store"`
}

// Peer is a peer known to the node.
type Peer struct {
	Peer      string   `json:"peer"`
	Node      string   `json:"node"`
	Addrs     []string `json:"addrs"`
	Connected bool     `json:"connected"`
}

// Connection is one with a peer.
type Connection struct {
	Peer    string `json:"peer"`
	Addr    string `json:"addr"`
	Already bool   `json:"already"` // it was connected before
}

// Pong is a peer's answer.
type Pong struct {
	Peer        string        `json:"peer"`
	Addr        string        `json:"addr"`
	RoundTrip   time.Duration `json:"-"`
	RoundTripUS int64         `json:"round_trip_us"`
}

// Status tells how a peer is doing.
type Status struct {
	Peer             string          `json:"peer"`
	Overlay          string          `json:"overlay"`
	OverlayName      string          `json:"overlay_name"`
	Version          string          `json:"version"`
	Started          time.Time       `json:"started"`
	Mode             string          `json:"mode"`         // as configured: server, client or auto
	Hosting          bool            `json:"hosting"`      // takes part in replica groups that ask for it now
	Reachability     string          `json:"reachability"` // from the public internet: public, private or unknown
	PeersConnected   int             `json:"peers_connected"`
	PeersKnown       int             `json:"peers_known"` // connected or not
	Groups           int             `json:"groups"`
	GroupsLeaderless int             `json:"groups_leaderless"` // of those
	Bootstrap        []BootstrapPeer `json:"bootstrap"`
	Refused          []Refused       `json:"refused"`                // in the order of the reasons
	Alarms           []Alarm         `json:"alarms"`                 // the latest, the oldest first
	Applications     int             `json:"applications"`           // with shared objects that are open on this peer
	ObjectCopies     int             `json:"object_copies"`          // copies of objects it has, of all of them
	Down             []HostedGroup   `json:"down"`                   // of the leaderless groups those that have been so for longest, at most [DownMax]
	Revision         string          `json:"revision"`               // of the checkout that the daemon was built from; empty when unknown
	AllowList        *AllowList      `json:"allow_list"`             // the newest that this peer knows; nil: it knows none
	DurableObjects   int             `json:"durable_objects"`        // that it has copies of, present ones or not
	DurableHits      uint64          `json:"durable_hits,string"`    // reads of durable objects that asked nobody, about
	DurableMisses    uint64          `json:"durable_misses,string"`  // that asked the objects' groups
	DurableRefused   uint64          `json:"durable_refused,string"` // of those: a copy was here, and not given, since it may have been an old one
	ShutOut          string          `json:"shut_out"`               // why this peer itself may not be in the overlay, with what to do; empty: nothing says so
}

// AllowList names a list of who may be in the overlay. One of a later admin key counts more, then one with a higher number.
type AllowList struct {
	AdminKey uint64 `json:"admin_key,string"` // the number of the admin key that signed it
	Number   uint64 `json:"number,string"`
}

// Alarm says that something exists twice that must exist once: a store, as a copied or set-back directory makes it, or an identity.
type Alarm struct {
	Peer    string    `json:"peer"`
	Other   string    `json:"other"`   // uses the store too; empty: two processes have the peer's identity
	Store   string    `json:"store"`   // that runs twice; empty: none that we know of
	At      time.Time `json:"at"`      // when it was noticed last
	Refused bool      `json:"refused"` // the peer is, with this store
	Text    string    `json:"text"`    // the same as a sentence, with what to do
}

// BootstrapPeer is a peer to join the overlay by.
type BootstrapPeer struct {
	Peer      string    `json:"peer"`
	Addrs     []string  `json:"addrs"`
	Connected bool      `json:"connected"`
	Tried     time.Time `json:"tried,omitzero"` // when the last attempt ended; zero: there was none
	Error     string    `json:"error"`          // why it failed, on one line; empty: it did not, or the peer is connected
}

// Refused counts those who were turned away for one reason.
type Refused struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count,string"`
}

// KeyInfo tells where a key lives.
type KeyInfo struct {
	Name    string     `json:"name"`
	Hash    string     `json:"hash"`
	Closest []string   `json:"closest"` // peer ids, nearest first
	Group   *GroupInfo `json:"group"`   // nil while no group owns the key
}

// GroupInfo is a group as the node knows it.
type GroupInfo struct {
	ID         string   `json:"id"`
	Generation uint64   `json:"generation,string"`
	View       uint64   `json:"view,string"`
	Leader     string   `json:"leader"` // empty when unknown
	Members    []string `json:"members"`
}

// DownMax bounds the groups listed in [Status.Down].
const DownMax = 16

// HostedGroup is a group that a peer takes part in, as that peer knows it.
type HostedGroup struct {
	Prefix     string    `json:"prefix"` // like a3/8; /0 is the root
	Generation uint64    `json:"generation,string"`
	View       uint64    `json:"view,string"`
	Role       string    `json:"role"`   // of this peer: leader, voter, learner, or leaving when the group has removed it
	Leader     string    `json:"leader"` // empty when none is known
	Voters     []string  `json:"voters"`
	Lag        uint64    `json:"lag,string"` // entries: at the leader, what the slowest voter lacks; elsewhere, what is not applied here
	Quiesced   bool      `json:"quiesced"`
	Leaderless time.Time `json:"leaderless,omitzero"` // since when no leader is known, so it serves nobody
	Unleased   bool      `json:"unleased,omitempty"`  // this peer leads it and may not answer: the root has not renewed its lease
	Key        string    `json:"key,omitempty"`       // the lock whose own group it is, once it has begun; Prefix is then the whole key
	Sealed     bool      `json:"sealed,omitempty"`    // of an own group: its key was taken back, and it ends soon
}

// Graveyard is what a peer has put aside.
type Graveyard struct {
	Graves []Grave `json:"graves"` // by prefix and generation
	Most   int     `json:"most"`   // that are kept; of one more, the first goes
}

// Grave is a replica that a peer has put aside, since its group's generation is over.
type Grave struct {
	Prefix     string    `json:"prefix"`
	Generation uint64    `json:"generation,string"`
	Replica    uint64    `json:"replica,string"`  // id
	Buried     time.Time `json:"buried,omitzero"` // zero: not known
	Bytes      int64     `json:"bytes,string"`    // about
}

// States of a group, in [GroupStanding.State].
const (
	GroupServing    = "serving"
	GroupReviving   = "reviving"    // of its new generation no majority has started yet
	GroupLeaderless = "no leader"   // though a majority answers: it chooses one, or its network is cut
	GroupDown       = "no majority" // too few voters answer
)

// GroupStanding tells how a group stands.
type GroupStanding struct {
	Prefix     string        `json:"prefix"`
	Generation uint64        `json:"generation,string"`
	View       uint64        `json:"view,string"`
	State      string        `json:"state"`
	Voters     int           `json:"voters"`
	Answering  int           `json:"answering"` // of the voters
	Members    []GroupMember `json:"members"`
	Directory  bool          `json:"directory"` // the root has said so; else it did not answer, and this is what the peer knew
	Former     uint64        `json:"former,string"`
	Parent     string        `json:"parent,omitempty"` // of a key's own group: the prefix whose group has made it. Directory then speaks of that group
	Key        string        `json:"key,omitempty"`    // and the lock's name, where that was asked for
}

// Served is the group that serves a lock.
type Served struct {
	Name       string   `json:"name"`   // of the lock
	Prefix     string   `json:"prefix"` // the whole key, of its own group
	Generation uint64   `json:"generation,string"`
	Members    []string `json:"members"`
}

// Majority reports whether a majority of the voters answers.
func (g GroupStanding) Majority() bool { return g.Answering > g.Voters/2 }

// States of a member, in [GroupMember.State].
const (
	MemberAnswers = "answers"
	MemberSilent  = "does not answer"
	MemberWithout = "has no replica" // it answers, and has lost its store, say
)

// GroupMember is a member of a group.
type GroupMember struct {
	Peer  string `json:"peer"`
	Role  string `json:"role"` // leader, voter or learner
	State string `json:"state"`
	View  uint64 `json:"view,string"` // that it knows; 0 unless it answers
}

// Revived tells of a group that was brought back.
type Revived struct {
	Prefix     string        `json:"prefix"`
	Generation uint64        `json:"generation,string"`
	Members    []string      `json:"members"`
	Embargo    time.Duration `json:"-"` // for about how long it grants no lock
	EmbargoMS  int64         `json:"embargo_ms"`
}

// RootProposal is a reseed document that lacks the root key's signature.
type RootProposal struct {
	Document   []byte
	Generation uint32 // of the overlay, with the new root
	Volatile   bool   // the peer's store is in memory, so the root would end with its process
	Survivor   string // the peer whose replica of the former root knew most, with which the new one begins; empty: there is none
	Groups     int    // that it knew
}

// Reseeded tells of an overlay that was given a new root.
type Reseeded struct {
	Generation   uint32        `json:"generation"` // of the overlay
	Founder      string        `json:"founder"`
	Quarantine   time.Duration `json:"-"` // for about how long it makes no group
	QuarantineMS int64         `json:"quarantine_ms"`
}

// Version tells which build a daemon is.
type Version struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Config is what a server serves.
type Config struct {
	Node  Node
	Locks lockservice.Backend
	// Objects are the shared objects that clients may use; nil: none.
	Objects Objects
	// Durables are the durable ones; nil: none.
	Durables Durables
	// Pprof has the server answer net/http/pprof under /debug/pprof/, to whoever may do everything.
	Pprof bool
	// Shutdown is called when a client asks the daemon to stop. It must not block. Without it such calls are refused.
	Shutdown func()
	Version  string // of the daemon's build
}

// Server answers the API. Its methods are safe for concurrent use.
type Server struct {
	cfg    Config
	http   *http.Server
	grants *grants

	draining  context.Context // ends when the server drains
	drain     context.CancelCauseFunc
	underWay  atomic.Int64 // calls
	watches   atomic.Int64 // of those, Changes
	lists     atomic.Int64 // of those, ListOverlay
	ends      atomic.Int64 // of those, Ended
	closeOnce sync.Once

	mu     sync.Mutex
	closed bool
	others []*http.Server // beside http: those of ServeTCP

	objectCalls, objectHolds, objectWatches bounded
	heldObjects                             sync.Map // of the id to *heldObject
	heldDurables                            sync.Map // of the id to *heldDurable
}

// bounded counts what may happen so many times at once.
type bounded struct {
	most int64
	now  atomic.Int64
}

func (b *bounded) enter() bool {
	if b.now.Add(1) > b.most {
		b.now.Add(-1)
		return false
	}
	return true
}

func (b *bounded) leave() { b.now.Add(-1) }

// NewServer returns a server that listens nowhere yet.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Node == nil || cfg.Locks == nil {
		return nil, errors.New("api: new server: Node and Locks are needed")
	}
	s := &Server{cfg: cfg, grants: newGrants()}
	s.objectCalls.most, s.objectHolds.most, s.objectWatches.most = ObjectCallsMax, ObjectHoldsMax, ObjectWatchesMax
	s.draining, s.drain = context.WithCancelCause(context.Background())
	s.http = s.newHTTP(s.Handler())
	return s, nil
}

// newHTTP returns a server for one listener.
func (s *Server) newHTTP(h http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s.counted(h),
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsMax},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          stdlog.New(serverLog{}, "", 0),
	}
}

// serverLog is what net/http says of connections that come to nothing: clients can make it say anything, and much.
type serverLog struct{}

func (serverLog) Write(line []byte) (int, error) {
	log.Debugw("http", "says", strings.TrimSpace(string(line)))
	return len(line), nil
}

// Handler returns the API as one handler, for a server of the caller's own.
func (s *Server) Handler() http.Handler {
	var codecs []connect.HandlerOption
	for _, c := range jsonCodecs {
		codecs = append(codecs, connect.WithCodec(c))
	}
	options := func(most int) []connect.HandlerOption {
		return append([]connect.HandlerOption{connect.WithReadMaxBytes(most)}, codecs...)
	}
	mux := http.NewServeMux()
	// Twice the bound lets the protocol's own check answer, and keeps an endless body from being read to its end.
	handle := func(most int, path string, h http.Handler) { mux.Handle(path, http.MaxBytesHandler(h, 2*int64(most))) }
	path, h := latchkeyv1connect.NewNodeServiceHandler(nodeHandler{s}, options(RequestBytesMax)...)
	handle(RequestBytesMax, path, h)
	path, h = latchkeyv1connect.NewLockServiceHandler(lockHandler{s}, options(RequestBytesMax)...)
	handle(RequestBytesMax, path, h)
	path, h = latchkeyv1connect.NewObjectServiceHandler(objectHandler{s}, options(ObjectBytesMax)...)
	handle(ObjectBytesMax, path, h)
	path, h = latchkeyv1connect.NewDurableServiceHandler(durableHandler{s}, options(ObjectBytesMax)...)
	handle(ObjectBytesMax, path, h)
	if s.cfg.Pprof {
		mux.Handle("/debug/pprof/", http.MaxBytesHandler(profiles(), RequestBytesMax))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "latchkey: no such procedure; they are named like /latchkey.v1.NodeService/Id", http.StatusNotFound)
	})
	return mux
}

// Serve answers on l until Close, which is when it returns nil. It owns l and closes it.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: serve: %w", err)
	}
	return nil
}

// Drain ends every waiting Acquire, which leaves its queue, and refuses new ones; both fail with [lockservice.ErrClosed]. All
// other calls go on, so that holders can still release.
func (s *Server) Drain() { s.drain(lockservice.ErrClosed) }

// Close drains, stops listening, and waits for the calls under way, cutting them off after two seconds. It is idempotent.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.Drain()
		poll := time.NewTicker(time.Millisecond)
		defer poll.Stop()
		for limit := time.Now().Add(closeTimeout); s.underWay.Load() > 0 && time.Now().Before(limit); {
			<-poll.C
		}
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		s.mu.Lock()
		s.closed = true
		all := append([]*http.Server{s.http}, s.others...)
		s.mu.Unlock()
		for _, h := range all {
			if h.Shutdown(ctx) != nil {
				h.Close()
			}
		}
		s.grants.wait()
	})
	return nil
}

// counted counts the calls under way.
func (s *Server) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.underWay.Add(1)
		defer s.underWay.Add(-1)
		h.ServeHTTP(w, r)
	})
}

type nodeHandler struct{ s *Server }

func (h nodeHandler) Id(context.Context, *latchkeyv1.IdRequest) (*latchkeyv1.IdResponse, error) {
	i := h.s.cfg.Node.Info()
	return &latchkeyv1.IdResponse{
		Peer: i.Peer, Node: i.Node, Overlay: i.Overlay, OverlayName: i.OverlayName, Addrs: i.Addrs, Version: i.Version, Store: i.Store,
	}, nil
}

func (h nodeHandler) Peers(context.Context, *latchkeyv1.PeersRequest) (*latchkeyv1.PeersResponse, error) {
	res := &latchkeyv1.PeersResponse{}
	for _, p := range h.s.cfg.Node.Peers() {
		res.Peers = append(res.Peers, &latchkeyv1.Peer{Peer: p.Peer, Node: p.Node, Addrs: p.Addrs, Connected: p.Connected})
	}
	return res, nil
}

func (h nodeHandler) Status(ctx context.Context, _ *latchkeyv1.StatusRequest) (*latchkeyv1.StatusResponse, error) {
	s, err := h.s.cfg.Node.Status(ctx)
	if err != nil {
		return nil, encodeError(err)
	}
	return encodeStatus(s), nil
}

func (h nodeHandler) Key(ctx context.Context, r *latchkeyv1.KeyRequest) (*latchkeyv1.KeyResponse, error) {
	if err := lockservice.CheckName(r.Name); err != nil {
		return nil, encodeError(err)
	}
	k, err := h.s.cfg.Node.Key(ctx, r.Name)
	if err != nil {
		return nil, encodeError(err)
	}
	res := &latchkeyv1.KeyResponse{Name: k.Name, Hash: k.Hash, Closest: k.Closest}
	if g := k.Group; g != nil {
		res.Group = &latchkeyv1.Group{Id: g.ID, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: g.Members}
	}
	return res, nil
}

func (h nodeHandler) Groups(ctx context.Context, _ *latchkeyv1.GroupsRequest) (*latchkeyv1.GroupsResponse, error) {
	groups, err := h.s.cfg.Node.HostedGroups(ctx)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.GroupsResponse{Groups: encodeHosted(groups)}, nil
}

func (h nodeHandler) Group(ctx context.Context, r *latchkeyv1.GroupRequest) (*latchkeyv1.GroupResponse, error) {
	g, err := h.s.cfg.Node.GroupStanding(ctx, r.Of)
	if err != nil {
		return nil, encodeError(err)
	}
	return encodeStanding(g), nil
}

func (h nodeHandler) Revive(ctx context.Context, r *latchkeyv1.ReviveRequest) (*latchkeyv1.ReviveResponse, error) {
	v, err := h.s.cfg.Node.ReviveGroup(ctx, r.Prefix, r.Generation, r.Force)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.ReviveResponse{Prefix: v.Prefix, Generation: v.Generation, Members: v.Members, Embargo: durationpb.New(v.Embargo)}, nil
}

func (h nodeHandler) Own(ctx context.Context, r *latchkeyv1.OwnRequest) (*latchkeyv1.OwnResponse, error) {
	v, err := h.s.cfg.Node.OwnGroup(ctx, r.Name, r.Remove)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.OwnResponse{Prefix: v.Prefix, Generation: v.Generation, Members: v.Members}, nil
}

func (h nodeHandler) Connect(ctx context.Context, r *latchkeyv1.ConnectRequest) (*latchkeyv1.ConnectResponse, error) {
	c, err := h.s.cfg.Node.Connect(ctx, r.To)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.ConnectResponse{Peer: c.Peer, Addr: c.Addr, Already: c.Already}, nil
}

func (h nodeHandler) Disconnect(ctx context.Context, r *latchkeyv1.DisconnectRequest) (*latchkeyv1.DisconnectResponse, error) {
	n, err := h.s.cfg.Node.Disconnect(ctx, r.Peer)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.DisconnectResponse{Connections: uint32(n)}, nil
}

func (h nodeHandler) Ping(ctx context.Context, r *latchkeyv1.PingRequest) (*latchkeyv1.PingResponse, error) {
	p, err := h.s.cfg.Node.Ping(ctx, r.Peer)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.PingResponse{Peer: p.Peer, Addr: p.Addr, RoundTrip: durationpb.New(p.RoundTrip)}, nil
}

func (h nodeHandler) LogLevels(_ context.Context, r *latchkeyv1.LogLevelsRequest) (*latchkeyv1.LogLevelsResponse, error) {
	return encodeLevels(loglevels.List(r.Subsystem))
}

func (h nodeHandler) SetLogLevel(_ context.Context, r *latchkeyv1.SetLogLevelRequest) (*latchkeyv1.LogLevelsResponse, error) {
	if r.Subsystem == "" {
		return nil, encodeError(fmt.Errorf("%w: none is named; all is for all of them", loglevels.ErrSubsystem))
	}
	return encodeLevels(loglevels.Set(r.Subsystem, r.Level))
}

func encodeLevels(levels []loglevels.Level, err error) (*latchkeyv1.LogLevelsResponse, error) {
	if err != nil {
		return nil, encodeError(err)
	}
	res := &latchkeyv1.LogLevelsResponse{}
	for _, l := range levels {
		res.Levels = append(res.Levels, &latchkeyv1.LogLevel{Subsystem: l.Subsystem, Level: l.Level})
	}
	return res, nil
}

func (h nodeHandler) ProposeRoot(ctx context.Context, _ *latchkeyv1.ProposeRootRequest) (*latchkeyv1.ProposeRootResponse, error) {
	p, err := h.s.cfg.Node.ProposeRoot(ctx)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.ProposeRootResponse{Document: p.Document, Generation: p.Generation, Volatile: p.Volatile, Survivor: p.Survivor, Groups: uint32(p.Groups)}, nil
}

func (h nodeHandler) Reseed(ctx context.Context, r *latchkeyv1.ReseedRequest) (*latchkeyv1.ReseedResponse, error) {
	v, err := h.s.cfg.Node.Reseed(ctx, r.Document, r.Force)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.ReseedResponse{Generation: v.Generation, Founder: v.Founder, Quarantine: durationpb.New(v.Quarantine)}, nil
}

func (h nodeHandler) Graves(ctx context.Context, _ *latchkeyv1.GravesRequest) (*latchkeyv1.GravesResponse, error) {
	y, err := h.s.cfg.Node.Graves(ctx)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.GravesResponse{Graves: encodeGraves(y.Graves), Most: uint32(y.Most)}, nil
}

func (h nodeHandler) DeleteGrave(ctx context.Context, r *latchkeyv1.DeleteGraveRequest) (*latchkeyv1.DeleteGraveResponse, error) {
	gone, err := h.s.cfg.Node.DeleteGrave(ctx, r.Prefix, r.Generation)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.DeleteGraveResponse{Deleted: encodeGraves(gone)}, nil
}

func (h nodeHandler) Shutdown(context.Context, *latchkeyv1.ShutdownRequest) (*latchkeyv1.ShutdownResponse, error) {
	if h.s.cfg.Shutdown == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("api: this peer is not stopped by its API; stop the program that runs it"))
	}
	log.Infow("shutdown asked for by a client")
	h.s.cfg.Shutdown()
	return &latchkeyv1.ShutdownResponse{}, nil
}

func (h nodeHandler) Version(context.Context, *latchkeyv1.VersionRequest) (*latchkeyv1.VersionResponse, error) {
	return &latchkeyv1.VersionResponse{Version: h.s.cfg.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}, nil
}

type lockHandler struct{ s *Server }

func (h lockHandler) Limits(ctx context.Context, _ *latchkeyv1.LimitsRequest) (*latchkeyv1.LimitsResponse, error) {
	l, err := h.s.cfg.Locks.Limits(ctx)
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.LimitsResponse{
		TtlMin: durationpb.New(l.TTLMin), TtlMax: durationpb.New(l.TTLMax), TtlDefault: durationpb.New(l.TTLDefault), DriftPpm: l.DriftPPM,
	}, nil
}

func (h lockHandler) Acquire(ctx context.Context, r *latchkeyv1.AcquireRequest, stream *connect.ServerStream[latchkeyv1.AcquireResponse]) error {
	return encodeError(h.acquire(ctx, r, stream.Send))
}

// acquire asks the backend on a goroutine of its own, since Queued must not block and sending may.
func (h lockHandler) acquire(ctx context.Context, r *latchkeyv1.AcquireRequest, send func(*latchkeyv1.AcquireResponse) error) error {
	if err := lockservice.CheckName(r.Name); err != nil {
		return err
	}
	ttl, err := h.ttl(ctx, r.Ttl)
	if err != nil {
		return err
	}
	if err := h.s.grants.begin(); err != nil {
		return err
	}
	defer h.s.grants.end()
	if h.s.draining.Err() != nil {
		return context.Cause(h.s.draining)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.s.draining, func() { cancel(context.Cause(h.s.draining)) })()

	newest := make(chan int, 1) // the latest place in the queue that has not been sent
	type result struct {
		grant lockservice.Grant
		err   error
	}
	done := make(chan result, 1)
	go func() {
		g, err := h.s.cfg.Locks.Acquire(ctx, lockservice.Request{
			Name: r.Name, TTL: ttl, Try: r.Try, Shared: r.Shared, Protocol: protocolOf(r.Protocol), Permits: int(min(r.Permits, lockservice.PermitsMax+1)),
			Delay: r.LockDelay.AsDuration(), Value: r.Value,
			Queued: func(position int) {
				select {
				case <-newest:
				default:
				}
				newest <- position
			},
		})
		done <- result{g, err}
	}()
	for {
		select {
		case p := <-newest:
			if err := send(&latchkeyv1.AcquireResponse{Event: &latchkeyv1.AcquireResponse_Queued{Queued: &latchkeyv1.Queued{Position: int64(p)}}}); err != nil {
				cancel(err)
			}
		case res := <-done:
			if res.err != nil {
				return res.err
			}
			if ctx.Err() != nil { // the client has gone and was told nothing: nobody can be using the lock
				h.giveBack(res.grant)
				return context.Cause(ctx)
			}
			h.s.grants.add(res.grant, r.Shared, r.Permits)
			// When this fails the client may have read it all the same, so the lease is left to run out.
			return send(&latchkeyv1.AcquireResponse{Event: &latchkeyv1.AcquireResponse_Granted{Granted: encodeGrant(res.grant)}})
		}
	}
}

// ttl returns the lease a client asks for, which is the overlay's default when it names none.
func (h lockHandler) ttl(ctx context.Context, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		l, err := h.s.cfg.Locks.Limits(ctx)
		return l.TTLDefault, err
	}
	if err := d.CheckValid(); err != nil {
		return 0, fmt.Errorf("%w: %v", lockservice.ErrTTL, err)
	}
	return d.AsDuration(), nil
}

// giveBack releases a grant that never reached its client.
func (h lockHandler) giveBack(g lockservice.Grant) {
	ctx, cancel := context.WithTimeout(context.Background(), giveBackTimeout)
	defer cancel()
	if err := h.s.cfg.Locks.Release(ctx, g); err != nil {
		log.Debugw("a grant whose client has gone could not be released and will lapse", "lock", g.Name, "token", g.Token, "err", err)
	}
}

func (h lockHandler) Renew(ctx context.Context, r *latchkeyv1.RenewRequest) (*latchkeyv1.RenewResponse, error) {
	key := grantKey{r.Name, lockservice.Token(r.Token), r.Req}
	g, err := h.s.grants.find(key)
	if err != nil {
		return nil, encodeError(err)
	}
	if err := h.s.cfg.Locks.Renew(ctx, g); err != nil {
		if errors.Is(err, lockservice.ErrNotHeld) {
			h.s.grants.drop(key)
		}
		return nil, encodeError(err)
	}
	h.s.grants.renewed(key)
	return &latchkeyv1.RenewResponse{LeaseLeft: durationpb.New(g.TTL)}, nil
}

func (h lockHandler) Release(ctx context.Context, r *latchkeyv1.ReleaseRequest) (*latchkeyv1.ReleaseResponse, error) {
	key := grantKey{r.Name, lockservice.Token(r.Token), r.Req}
	g, err := h.s.grants.find(key)
	if err != nil {
		return nil, encodeError(err)
	}
	err = h.s.cfg.Locks.Release(ctx, g)
	if err == nil || errors.Is(err, lockservice.ErrNotHeld) {
		h.s.grants.drop(key)
	}
	if err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.ReleaseResponse{}, nil
}

func (h lockHandler) Ended(ctx context.Context, r *latchkeyv1.EndedRequest) (*latchkeyv1.EndedResponse, error) {
	if err := h.ended(ctx, grantKey{r.Name, lockservice.Token(r.Token), r.Req}); err != nil {
		return nil, encodeError(err)
	}
	return &latchkeyv1.EndedResponse{}, nil
}

func (h lockHandler) ended(ctx context.Context, key grantKey) error {
	locks, ok := h.s.cfg.Locks.(lockservice.Ender)
	if !ok {
		return fmt.Errorf("api: this peer does not hear of the end of a lock: %w", errors.ErrUnsupported)
	}
	g, err := h.s.grants.find(key)
	if err != nil {
		return err
	}
	defer h.s.ends.Add(-1)
	if h.s.ends.Add(1) > GrantsMax {
		return fmt.Errorf("%w: %d calls wait for the end of a lock", lockservice.ErrLimit, GrantsMax)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.s.draining, func() { cancel(context.Cause(h.s.draining)) })()
	return locks.Ended(ctx, g)
}

func (h lockHandler) Break(ctx context.Context, r *latchkeyv1.BreakRequest) (*latchkeyv1.BreakResponse, error) {
	if err := lockservice.CheckName(r.Name); err != nil {
		return nil, encodeError(err)
	}
	holder, err := h.s.cfg.Locks.Break(ctx, r.Name, lockservice.Token(r.Token))
	if err != nil {
		return nil, encodeError(err)
	}
	log.Warnw("broke a lock for a client of the API", "lock", r.Name, "token", r.Token, "holder", holder.String())
	return &latchkeyv1.BreakResponse{Holder: encodeParty(holder)}, nil
}

func (h lockHandler) Changes(ctx context.Context, r *latchkeyv1.ChangesRequest, stream *connect.ServerStream[latchkeyv1.ChangesResponse]) error {
	return encodeError(h.changes(ctx, r.Name, func() error { return stream.Send(&latchkeyv1.ChangesResponse{}) }))
}

// changes has send called after each change, on this goroutine.
func (h lockHandler) changes(ctx context.Context, name string, send func() error) error {
	if err := lockservice.CheckName(name); err != nil {
		return err
	}
	locks, ok := h.s.cfg.Locks.(lockservice.Notifier)
	if !ok {
		return fmt.Errorf("api: this peer is told of no changes: %w", errors.ErrUnsupported)
	}
	defer h.s.watches.Add(-1)
	if h.s.watches.Add(1) > WatchesMax {
		return fmt.Errorf("%w: %d watches through this daemon", lockservice.ErrLimit, WatchesMax)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.s.draining, func() { cancel(context.Cause(h.s.draining)) })()
	changed, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- locks.Changes(ctx, name, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	for {
		select {
		case <-changed:
			if err := send(); err != nil {
				return err
			}
		case err := <-done:
			return err
		}
	}
}

func (h lockHandler) List(context.Context, *latchkeyv1.ListRequest) (*latchkeyv1.ListResponse, error) {
	res := &latchkeyv1.ListResponse{}
	for _, g := range h.s.grants.list() {
		res.Locks = append(res.Locks, &latchkeyv1.ListedLock{
			Name: g.grant.Name, Token: uint64(g.grant.Token), Ttl: durationpb.New(g.grant.TTL), Holder: g.grant.Holder, Shared: g.shared, Permits: g.permits,
		})
	}
	return res, nil
}

func (h lockHandler) ListOverlay(ctx context.Context, r *latchkeyv1.ListOverlayRequest, stream *connect.ServerStream[latchkeyv1.ListOverlayResponse]) error {
	return encodeError(h.listOverlay(ctx, r.Prefix, stream.Send))
}

// listOverlay has send called with each page.
func (h lockHandler) listOverlay(ctx context.Context, prefix string, send func(*latchkeyv1.ListOverlayResponse) error) error {
	if prefix != "" {
		if err := lockservice.CheckName(prefix); err != nil {
			return err
		}
	}
	locks, ok := h.s.cfg.Locks.(lockservice.Lister)
	if !ok {
		return fmt.Errorf("api: locks cannot be listed here: %w", errors.ErrUnsupported)
	}
	defer h.s.lists.Add(-1)
	if h.s.lists.Add(1) > ListsMax {
		return fmt.Errorf("%w: %d lists through this daemon", lockservice.ErrLimit, ListsMax)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.s.draining, func() { cancel(context.Cause(h.s.draining)) })()
	return locks.List(ctx, prefix, func(p lockservice.ListPage) error {
		page := &latchkeyv1.ListOverlayResponse{Group: p.Group, Unsure: p.Unsure}
		for _, i := range p.Locks {
			page.Locks = append(page.Locks, encodeInfo(i))
		}
		if p.Err != nil {
			page.Error = Plain(p.Err.Error())
		}
		return send(page)
	})
}

func (h lockHandler) Info(ctx context.Context, r *latchkeyv1.InfoRequest) (*latchkeyv1.InfoResponse, error) {
	if err := lockservice.CheckName(r.Name); err != nil {
		return nil, encodeError(err)
	}
	i, err := h.s.cfg.Locks.Info(ctx, r.Name)
	if err != nil {
		return nil, encodeError(err)
	}
	return encodeInfo(i), nil
}
