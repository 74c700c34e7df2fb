package attack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	dhtpb "latchkey/dht/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// order is what an attack needs to know.
type order struct {
	Kind       string
	Peers      int   // attackers, each with an identity of its own
	Streams    int   // of attack streams: of each attacker
	Least      int64 // messages, connections or streams, refused ones included, before which the attack does not end
	Overlay    []byte
	Depth      int
	Target     string
	Addrs      []string
	Descriptor []byte // of the group the target leads

	// Sink has them write to [sinkProtocol] what they would write to the overlay's, Rate messages a second, all together.
	Sink bool
	Rate float64
}

// report is what the attackers say they did.
type report struct {
	Sent     int64 // messages, connections or streams, as the attack counts them
	Refused  int64 // streams or connections that were refused or reset
	Answered int64
	Rate     float64 // of Sent, a second
}

// gang is a running child process of attackers.
type gang struct {
	*child
	t testing.TB
}

// leftOver has a program run when nothing else wants the processor: in the field the attackers' processors are not ours.
// On a machine that is busy with other things there may be none, and they get a share that is so many steps of nice(1) below (-attack.nice).
func leftOver() []string {
	if *attackNice >= 0 {
		return []string{"nice", "-n", strconv.Itoa(*attackNice)}
	}
	for _, front := range [][]string{{"chrt", "--idle", "0"}, {"nice", "-n", "19"}} {
		if _, err := exec.LookPath(front[0]); err == nil {
			return front
		}
	}
	return nil
}

// attackWith starts attackers and returns once they are at it.
func attackWith(t testing.TB, o order) *gang {
	t.Helper()
	g := &gang{newChild(t, role{Attack: &o}, leftOver(), "GOMEMLIMIT=768MiB"), t}
	var on bool
	if g.next(t, &on); !on {
		t.Fatal("the attackers did not begin")
	}
	return g
}

// stop ends the attack and returns what the attackers count.
func (g *gang) stop() (r report) {
	g.t.Helper()
	g.stdin.Close()
	g.next(g.t, &r)
	g.done = true
	if err := g.cmd.Wait(); err != nil {
		g.t.Errorf("attackers: %v", err)
	}
	return r
}

// attackerMain is the attackers' process.
func attackerMain(o order) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	a := &attackers{order: o, began: time.Now(), prefix: "/latchkey/" + hex.EncodeToString(o.Overlay[:4])}
	target, err := peer.Decode(o.Target)
	if err != nil {
		return err
	}
	a.target.ID = target
	for _, addr := range o.Addrs {
		a.target.Addrs = append(a.target.Addrs, ma.StringCast(addr))
	}
	go func() {
		defer cancel() // the attack is over
		io.Copy(io.Discard, os.Stdin)
		// Attackers get what processor nobody else wants: on a busy machine an attack may have to go on for longer to have been one.
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(waitMax); a.sent.Load()+a.refused.Load() < o.Least && time.Now().Before(end); {
			<-tick.C
		}
	}()
	run, ok := attacks[o.Kind]
	if !ok {
		return fmt.Errorf("no such attack: %s", o.Kind)
	}
	var wg sync.WaitGroup
	begun := make(chan struct{}, o.Peers)
	for range o.Peers {
		wg.Go(func() { run(a, ctx, sync.OnceFunc(func() { begun <- struct{}{} })) })
	}
	for range o.Peers {
		select {
		case <-begun:
		case <-ctx.Done():
		}
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(true); err != nil {
		return err
	}
	<-ctx.Done()
	took := time.Since(a.began)
	wg.Wait()
	return out.Encode(report{a.sent.Load(), a.refused.Load(), a.answered.Load(), float64(a.sent.Load()) / took.Seconds()})
}

// attackers are one child process's.
type attackers struct {
	order
	prefix                  string
	target                  peer.AddrInfo
	began                   time.Time
	sent, refused, answered atomic.Int64
}

// attack is one attacker's work until ctx ends. It calls on once it is at it.
type attack func(a *attackers, ctx context.Context, on func())

var attacks = map[string]attack{
	"spin":     (*attackers).spin,
	"slow":     (*attackers).slow,
	"half":     (*attackers).half,
	"garbage":  (*attackers).garbage,
	"flood":    (*attackers).flood,
	"bulk":     (*attackers).bulk,
	"oneway":   (*attackers).oneway,
	"kad":      (*attackers).kad,
	"place":    (*attackers).place,
	"sessions": (*attackers).sessions,
	"commands": (*attackers).commands,
	"engine":   (*attackers).engine,
	"streams":  (*attackers).streams,
	"churn":    (*attackers).churn,
	"halfopen": (*attackers).halfOpen,
}

// host returns a connected host with a new identity; nil when the target refused it.
func (a *attackers) host(ctx context.Context) host.Host {
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.PrivateNetwork(networkKey), libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return nil
	}
	if err := h.Connect(ctx, a.target); err != nil {
		a.refused.Add(1)
		h.Close()
		return nil
	}
	return h
}

// stay is host, trying again until ctx ends.
func (a *attackers) stay(ctx context.Context) host.Host {
	for ctx.Err() == nil {
		if h := a.host(ctx); h != nil {
			return h
		}
	}
	return nil
}

// framed puts the length in front.
func framed(body []byte) []byte {
	return append(protowire.AppendVarint(nil, uint64(len(body))), body...)
}

func frameOf(items ...*dhtpb.Item) []byte {
	b, err := proto.Marshal(&dhtpb.Frame{Items: items})
	if err != nil {
		panic(err)
	}
	return framed(b)
}

func (a *attackers) hello() []byte {
	b, err := proto.Marshal(&dhtpb.Frame{Hello: &dhtpb.Hello{Version: 2, Overlay: a.Overlay, Session: mathrand.Uint64() | 1}})
	if err != nil {
		panic(err)
	}
	return framed(b)
}

// stream opens a stream of one of the overlay's protocols, or to the sink in its place.
func (a *attackers) stream(ctx context.Context, h host.Host, name string) (network.Stream, error) {
	if a.Sink {
		return h.NewStream(ctx, a.target.ID, sinkProtocol)
	}
	return h.NewStream(ctx, a.target.ID, protocol.ID(a.prefix+"/"+name+"/1.0.0"))
}

// open opens a stream of a class ("control" or "bulk") and says hello.
func (a *attackers) open(ctx context.Context, h host.Host, class string) network.Stream {
	s, err := a.stream(ctx, h, class)
	if err == nil {
		_, err = s.Write(a.hello())
	}
	if err != nil {
		a.refused.Add(1)
		return nil
	}
	context.AfterFunc(ctx, func() { s.Reset() })
	return s
}

// write writes what next returns until the stream ends, which is counted.
func (a *attackers) write(s network.Stream, next func() (b []byte, messages int)) {
	for {
		b, n := next()
		if _, err := s.Write(b); err != nil {
			a.refused.Add(1)
			return
		}
		a.pace(a.sent.Add(int64(n)))
	}
}

// pace waits until so many messages may have been sent.
func (a *attackers) pace(sent int64) {
	if a.Sink {
		time.Sleep(time.Until(a.began.Add(time.Duration(float64(sent) / a.Rate * float64(time.Second)))))
	}
}

// request makes a request of id n.
func request(n uint64, service string, payload []byte) *dhtpb.Item {
	return &dhtpb.Item{Kind: dhtpb.Kind_KIND_REQUEST, Id: n, Service: service, Payload: payload}
}

// pieces cuts a large message into bulk frames.
func pieces(n uint64, service string, payload []byte) []byte {
	const piece = 1 << 20
	it := request(n, service, payload[:piece])
	it.Total = uint64(len(payload))
	b := frameOf(it)
	for rest := payload[piece:]; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
		b = append(b, frameOf(&dhtpb.Item{Kind: dhtpb.Kind_KIND_PIECE, Payload: rest[:min(piece, len(rest))]})...)
	}
	return b
}

// spin sends nothing and keeps a processor busy: what any process beside the honest ones costs them on this machine.
func (a *attackers) spin(ctx context.Context, on func()) {
	on()
	for n := 0; ; n++ {
		if n%1e6 == 0 && ctx.Err() != nil {
			return
		}
	}
}

// slow asks for large answers on both classes and reads none of them.
func (a *attackers) slow(ctx context.Context, on func()) {
	var large []byte
	for ctx.Err() == nil {
		h := a.stay(ctx)
		if h == nil {
			return
		}
		var both sync.WaitGroup
		for _, class := range []string{"control", "bulk"} {
			both.Go(func() {
				s := a.open(ctx, h, class)
				if s == nil {
					return
				}
				id := uint64(0)
				if class == "bulk" {
					large = pieces(1, echoService, make([]byte, 8<<20))
					a.write(s, func() ([]byte, int) { on(); return large, 1 })
					return
				}
				a.write(s, func() ([]byte, int) { on(); id++; return frameOf(request(id, echoService, make([]byte, 100<<10))), 1 })
			})
		}
		both.Wait()
		h.Close()
	}
}

// half announces the largest message, sends most of it, and then nothing.
func (a *attackers) half(ctx context.Context, on func()) {
	h := a.stay(ctx)
	if h == nil {
		return
	}
	defer h.Close()
	const piece, total = 1 << 20, 64 << 20
	for ctx.Err() == nil {
		s := a.open(ctx, h, "bulk")
		if s == nil {
			return
		}
		it := request(1, echoService, make([]byte, piece))
		it.Total = total
		_, err := s.Write(frameOf(it))
		rest := frameOf(&dhtpb.Item{Kind: dhtpb.Kind_KIND_PIECE, Payload: make([]byte, piece)})
		for range total/piece - 2 {
			if err == nil {
				_, err = s.Write(rest)
			}
		}
		on()
		a.sent.Add(1)
		s.Read(make([]byte, helloRoom)) // its hello
		if _, err = s.Read(make([]byte, helloRoom)); err != nil {
			a.refused.Add(1)
		}
	}
}

const helloRoom = 1024

// protocols are what the target speaks: its own and libp2p's.
func (a *attackers) protocols() []protocol.ID {
	return []protocol.ID{
		protocol.ID(a.prefix + "/control/1.0.0"), protocol.ID(a.prefix + "/bulk/1.0.0"), protocol.ID(a.prefix + "/kad/1.0.0"),
		"/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0",
	}
}

// garbage sends bytes that mean nothing on every protocol: random ones, malformed and truncated frames, before and after a
// hello.
func (a *attackers) garbage(ctx context.Context, on func()) {
	h := a.stay(ctx)
	if h == nil {
		return
	}
	defer h.Close()
	for i := 0; ctx.Err() == nil; i++ {
		p := a.protocols()[i%len(a.protocols())]
		s, err := h.NewStream(ctx, a.target.ID, p)
		if err != nil {
			a.refused.Add(1)
			continue
		}
		s.SetDeadline(time.Now().Add(time.Second))
		junk := make([]byte, 1+mathrand.IntN(4096))
		rand.Read(junk)
		switch ours := strings.HasPrefix(string(p), a.prefix+"/control") || strings.HasPrefix(string(p), a.prefix+"/bulk"); {
		case ours && i%4 == 1: // malformed after the hello
			junk = append(a.hello(), framed(junk)...)
		case ours && i%4 == 2: // too long after the hello
			junk = append(a.hello(), protowire.AppendVarint(nil, 1<<30)...)
		case ours && i%4 == 3: // truncated after the hello
			junk = append(a.hello(), 100, 1, 2)
		}
		s.Write(junk)
		s.CloseWrite()
		a.sent.Add(1)
		io.Copy(io.Discard, io.LimitReader(s, 1<<20))
		s.Reset()
		if i > 2*len(a.protocols()) {
			on()
		}
	}
}

// flooder writes frames of requests on a class as fast as they are taken, and reads the answers as fast.
func (a *attackers) flooder(ctx context.Context, on func(), class string, next func(id uint64) ([]byte, int)) {
	for ctx.Err() == nil {
		h := a.stay(ctx)
		if h == nil {
			return
		}
		if s := a.open(ctx, h, class); s != nil {
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := s.Read(buf)
					if err != nil {
						return
					}
					a.answered.Add(int64(n)) // bytes
				}
			}()
			id := uint64(0)
			a.write(s, func() ([]byte, int) {
				if id > 0 {
					on()
				}
				b, n := next(id)
				id += uint64(n)
				return b, n
			})
		}
		h.Close()
	}
}

// batch is how many requests a flooder puts into a frame.
const batch = 64

// batches makes frames of requests, each made by one.
func batches(one func(id uint64) *dhtpb.Item) func(id uint64) ([]byte, int) {
	return func(id uint64) ([]byte, int) {
		items := make([]*dhtpb.Item, batch)
		for i := range items {
			items[i] = one(id + uint64(i) + 1)
		}
		return frameOf(items...), batch
	}
}

func (a *attackers) flood(ctx context.Context, on func()) {
	payload := make([]byte, 64)
	a.flooder(ctx, on, "control", batches(func(id uint64) *dhtpb.Item { return request(id, echoService, payload) }))
}

func (a *attackers) bulk(ctx context.Context, on func()) {
	payload := make([]byte, 512<<10)
	a.flooder(ctx, on, "bulk", func(id uint64) ([]byte, int) { return frameOf(request(id+1, echoService, payload)), 1 })
}

func (a *attackers) oneway(ctx context.Context, on func()) {
	a.flooder(ctx, on, "control", batches(func(uint64) *dhtpb.Item {
		return &dhtpb.Item{Kind: dhtpb.Kind_KIND_ONE_WAY, Service: "nobody-has-this", Payload: make([]byte, 64)}
	}))
}

// place asks for random prefixes: will you host, start, ensure.
func (a *attackers) place(ctx context.Context, on func()) {
	a.flooder(ctx, on, "control", batches(func(id uint64) *dhtpb.Item {
		var k keyspace.Key
		rand.Read(k[:])
		prefix := keyspace.PrefixOf(k, a.Depth)
		p, _ := prefix.AppendBinary(nil)
		switch id % 3 {
		case 0:
			return request(id, "group/host", field(1, p))
		case 1:
			return request(id, "group/ensure", field(1, p))
		}
		d := a.descriptor() // the target is a member, in the right store
		d.Group.Prefix = prefix
		b, _ := d.Encode()
		return request(id, "group/start", field(1, b))
	}))
}

// sessions opens sessions with the group the target leads, without end.
func (a *attackers) sessions(ctx context.Context, on func()) {
	d := a.descriptor()
	group := groupField(d)
	a.flooder(ctx, on, "control", batches(func(id uint64) *dhtpb.Item {
		var client [16]byte
		rand.Read(client[:])
		return request(id, "group/command", slices.Concat(group, varint(2, d.View.Num), field(3, client[:]),
			field(6, []byte(session.Service)), field(7, session.OpenData(session.TTLMax))))
	}))
}

// commands has the group order commands without end, each another one, in a few sessions.
func (a *attackers) commands(ctx context.Context, on func()) {
	d := a.descriptor()
	group := groupField(d)
	var first [16]byte
	rand.Read(first[:])
	a.flooder(ctx, on, "control", batches(func(id uint64) *dhtpb.Item {
		client := first
		client[0] = byte(id % 16)
		return request(id, "group/command", slices.Concat(group, varint(2, d.View.Num), field(3, client[:]),
			field(6, []byte(session.Service)), field(7, session.OpenData(session.TTLMax-time.Duration(id)))))
	}))
}

// engine sends messages of ordering engines, of groups that do not exist and in the name of members of the one that does.
func (a *attackers) engine(ctx context.Context, on func()) {
	var store [16]byte
	message := field(1, slices.Concat(groupField(a.descriptor()), varint(2, 1), varint(3, 2), field(4, store[:]), field(5, store[:]), field(6, []byte("x"))))
	many := bytes.Repeat(message, 1000)
	a.flooder(ctx, on, "control", func(uint64) ([]byte, int) {
		return frameOf(&dhtpb.Item{Kind: dhtpb.Kind_KIND_ONE_WAY, Service: "group/engine", Payload: many}), 1000
	})
}

// kad asks for the peers closest to random keys, on several streams.
func (a *attackers) kad(ctx context.Context, on func()) {
	for ctx.Err() == nil {
		h := a.stay(ctx)
		if h == nil {
			return
		}
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				s, err := a.stream(ctx, h, "kad")
				if err != nil {
					a.refused.Add(1)
					return
				}
				defer context.AfterFunc(ctx, func() { s.Reset() })()
				go io.Copy(io.Discard, s)
				a.write(s, func() ([]byte, int) {
					on()
					key := make([]byte, 32)
					rand.Read(key)
					return framed(slices.Concat(varint(1, 4), field(2, key))), 1 // FIND_NODE
				})
			})
		}
		wg.Wait()
		h.Close()
	}
}

// streams opens as many streams as told and holds them, of every protocol, with and without a first message.
func (a *attackers) streams(ctx context.Context, on func()) {
	h := a.stay(ctx)
	if h == nil {
		return
	}
	defer h.Close()
	for i := 0; i < a.Streams && ctx.Err() == nil; i++ {
		open, cancel := context.WithTimeout(ctx, time.Second)
		var s network.Stream
		var err error
		if p := a.protocols()[i%len(a.protocols())]; i%3 == 0 { // one that never says what it speaks
			s, err = h.Network().NewStream(open, a.target.ID)
			if err == nil {
				_, err = s.Write([]byte{19}) // the length of the header, and no header
			}
		} else if s, err = h.NewStream(open, a.target.ID, p); err == nil {
			_, err = s.Write([]byte{200})
		}
		cancel()
		if err != nil {
			a.refused.Add(1)
			if h.Network().Connectedness(a.target.ID) != network.Connected {
				h.Connect(ctx, a.target)
			}
			continue
		}
		a.sent.Add(1)
		go func() {
			if _, err := io.Copy(io.Discard, s); err != nil && ctx.Err() == nil {
				a.refused.Add(1)
			}
		}()
	}
	on()
	<-ctx.Done()
}

// churn comes and goes, as another peer each time.
func (a *attackers) churn(ctx context.Context, on func()) {
	for ctx.Err() == nil {
		h := a.host(ctx)
		if h == nil {
			continue
		}
		if s := a.open(ctx, h, "control"); s != nil {
			s.Write(frameOf(request(1, echoService, []byte("hello"))))
		}
		a.sent.Add(1)
		on()
		h.Close()
	}
}

// halfOpen makes connections that never finish the handshake, and keeps making them.
func (a *attackers) halfOpen(ctx context.Context, on func()) {
	const open = 300
	var wg sync.WaitGroup
	var begun atomic.Int64
	for i := range open {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := (&manet.Dialer{}).DialContext(ctx, a.target.Addrs[0])
				if err != nil {
					a.refused.Add(1)
					continue
				}
				stop := context.AfterFunc(ctx, func() { c.Close() })
				if i%2 == 0 {
					c.Write(make([]byte, 24+i%7)) // the private network's nonce, and a little more
				}
				a.sent.Add(1)
				if begun.Add(1) >= open {
					on()
				}
				io.Copy(io.Discard, c)
				a.refused.Add(1)
				stop()
				c.Close()
			}
		})
	}
	wg.Wait()
}

// descriptor returns the description of the group that the target leads.
func (a *attackers) descriptor() placement.Descriptor {
	d, err := placement.DecodeDescriptor(a.Descriptor)
	if err != nil {
		panic(err)
	}
	return d
}

// groupField is how messages between hosts of groups name d's.
func groupField(d placement.Descriptor) []byte {
	p, _ := d.Group.Prefix.AppendBinary(nil)
	b := field(1, p)
	if d.Group.Gen != 0 {
		b = append(b, varint(2, d.Group.Gen)...)
	}
	return field(1, b)
}

// varint and field encode one field of a protobuf message.
func varint(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

func field(num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
}
