package dht

import (
	"bufio"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

// Limits that an attacker meets first. What they cost honest peers while locks are taken is in testnet/attack.

// findNode is a Kademlia question for the peers closest to a key of 32 bytes.
var findNode = framed(protowire.AppendBytes(protowire.AppendTag(
	protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 4), 2, protowire.BytesType), make([]byte, 32)))

// kadStreamTo opens a Kademlia stream of a bare host to o.
func kadStreamTo(t *testing.T, h host.Host, o *Overlay) network.Stream {
	t.Helper()
	if err := h.Connect(within(t), infoOf(o.host)); err != nil {
		t.Fatal(err)
	}
	s, err := h.NewStream(within(t), o.Self(), o.kadID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	return s
}

// answered reads one answer of Kademlia.
func answered(t *testing.T, r *bufio.Reader) {
	t.Helper()
	if _, err := readFrame(r, 1<<20, nil); err != nil {
		t.Fatalf("no answer: %v", err)
	}
}

func TestKademliaStreamsOfOnePeerAreBounded(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	greedy, other := newHost(t, 2), newHost(t, 3)
	var open []network.Stream
	for range kadStreamsMax {
		s := kadStreamTo(t, greedy, o)
		write(t, s, findNode)
		answered(t, bufio.NewReader(s))
		open = append(open, s)
	}
	s := kadStreamTo(t, greedy, o)
	write(t, s, findNode)
	wasReset(t, s)
	if n := o.Stats().StreamsReset[ReasonStreams]; n != 1 {
		t.Errorf("counted %d times", n)
	}
	s = kadStreamTo(t, other, o)
	write(t, s, findNode)
	answered(t, bufio.NewReader(s))
	open[0].CloseWrite() // one goes, so another may come
	if _, err := io.Copy(io.Discard, open[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a stream in place of the former", func() bool {
		s := kadStreamTo(t, greedy, o)
		s.Write(findNode)
		_, err := readFrame(bufio.NewReader(s), 1<<20, nil)
		return err == nil
	})
}

func TestLongKademliaQuestionsResetTheirStream(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	h := newHost(t, 2)
	s := kadStreamTo(t, h, o)
	r := bufio.NewReader(s)
	for range 3 { // so that the guard has to find its place in the stream
		write(t, s, findNode)
		answered(t, r)
	}
	write(t, s, protowire.AppendVarint(nil, kadMessageMax+1))
	wasReset(t, s)
	if n := o.Stats().StreamsReset[ReasonOversize]; n != 1 {
		t.Errorf("counted %d times", n)
	}
	s = kadStreamTo(t, h, o)
	write(t, s, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0})
	wasReset(t, s)
}

// The rate is a lower bound of the time that many answers take, however slow the machine is.
func TestKademliaAnswersOnePeerAtItsPace(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	const more = kadRate / 4
	s := kadStreamTo(t, newHost(t, 2), o)
	r := bufio.NewReader(s)
	start := time.Now()
	go func() {
		for range kadBurst + more {
			if _, err := s.Write(findNode); err != nil {
				return
			}
		}
	}()
	for range kadBurst + more {
		answered(t, r)
	}
	if took := time.Since(start); took < (more-2)*time.Second/kadRate {
		t.Errorf("%d answers in %v", kadBurst+more, took)
	}
	other := kadStreamTo(t, newHost(t, 3), o)
	write(t, other, findNode)
	answered(t, bufio.NewReader(other))
}

func TestKademliaForgetsWhoAskedAndLeft(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	g := &kadGuard{o: o, peers: make(map[peer.ID]*kadAsker)}
	for i := range 3 * peersIdleMax {
		a := g.enter(peer.ID([]byte{byte(i >> 8), byte(i)}))
		g.turn(a)
		g.leave(a)
	}
	if n := len(g.peers); n > peersIdleMax {
		t.Errorf("%d peers remembered", n)
	}
}

func TestRequestsInServiceAreBoundedByTheirBytes(t *testing.T) {
	held := make(chan *Request, 8)
	a, b := pair(t, func(o *Overlay) { o.Handle("hold", func(r *Request) { held <- r }) })
	answers := make(chan error, 8)
	ask := func(bytes int) {
		a.Go(b.Self(), keyspace.Key{}, "hold", make([]byte, bytes), waitMax, func(_ []byte, err error) { answers <- err })
	}
	ask(requestBytesMax + 1<<20) // alone, it may have any size
	first := <-held
	ask(1)
	if err := <-answers; !errors.Is(err, ErrBusy) {
		t.Errorf("beside a large one: %v", err)
	}
	first.Data = nil // the handler may do that
	first.Reply(nil)
	if err := <-answers; err != nil {
		t.Error(err)
	}
	for range 2 {
		ask(requestBytesMax / 2)
	}
	(<-held).Reply(nil)
	(<-held).Fail(errors.New("no"))
	<-answers
	<-answers
	if n := b.link(a.Self()).servingBytes.Load(); n != 0 {
		t.Errorf("%d bytes still in service", n)
	}
}

// half sends the first byte of a message of so many bytes.
func half(t *testing.T, h host.Host, o *Overlay, total uint64) network.Stream {
	t.Helper()
	s := stranger(t, h, o, Bulk, true)
	write(t, s, framed(frameOf(&pb.Item{Kind: pb.Kind_KIND_ONE_WAY, Service: "note", Payload: []byte{1}, Total: total})))
	return s
}

func TestMessageBegunAndNotEndedIsGivenUp(t *testing.T) {
	o, err := New(newHost(t, 1), WithOverlayID(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	o.unfinished = 20 * time.Millisecond
	served := make(chan int, 1)
	o.Handle("note", func(r *Request) { served <- len(r.Data) })
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	h := newHost(t, 2)
	s := half(t, h, o, 3)
	wasReset(t, s)
	eventually(t, "counted", func() bool { return o.Stats().StreamsReset[ReasonUnfinished] == 1 })
	eventually(t, "its bytes are free", func() bool {
		o.half.mu.Lock()
		defer o.half.mu.Unlock()
		return o.half.held == 0 && len(o.half.each) == 0
	})
	s = stranger(t, h, o, Bulk, true)
	write(t, s, framed(frameOf(&pb.Item{Kind: pb.Kind_KIND_ONE_WAY, Service: "note", Payload: []byte{1}, Total: 2},
		&pb.Item{Kind: pb.Kind_KIND_PIECE, Payload: []byte{2}})))
	if n := <-served; n != 2 {
		t.Errorf("%d bytes served", n)
	}
	// No message is under way, so the stream may stay silent for as long as it likes.
	s.SetReadDeadline(time.Now().Add(5 * o.unfinished))
	if _, err := s.Read(make([]byte, 1)); errors.Is(err, network.ErrReset) {
		t.Error("a silent stream was reset")
	}
}

func TestTheLargestHalfMessageMakesRoomForOthers(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), func(o *Overlay) { o.Handle("note", func(*Request) {}) })
	hoarder := half(t, newHost(t, 2), o, MessageBytesMax)
	var largest *assembler
	eventually(t, "the first one began", func() bool {
		o.half.mu.Lock()
		defer o.half.mu.Unlock()
		for largest = range o.half.each {
		}
		return largest != nil
	})
	if err := o.half.grow(largest, reassemblyTotalMax-10); err != nil { // as if it had sent that much
		t.Fatal(err)
	}
	other := half(t, newHost(t, 3), o, 100)
	write(t, other, framed(frameOf(&pb.Item{Kind: pb.Kind_KIND_PIECE, Payload: make([]byte, 50)})))
	wasReset(t, hoarder)
	eventually(t, "counted once", func() bool { return o.Stats().StreamsReset[ReasonBudget] == 1 })
	eventually(t, "the other one goes on", func() bool {
		o.half.mu.Lock()
		defer o.half.mu.Unlock()
		return o.half.held == 51 && len(o.half.each) == 1
	})
	if err := o.half.grow(new(assembler), reassemblyTotalMax+1); err == nil {
		t.Error("one that is the largest itself was not told")
	}
}
