package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/node/config"
)

// The tests of this file are those of docs/interop.md: a libp2p peer that has the swarm key and knows the overlay's id, and has
// no line of latchkey in it, connects, identifies, pings and asks the overlay's Kademlia network. What it says to Kademlia is put
// together here byte by byte, from the libp2p specification.

// interopKey is a private network's key in the format that libp2p implementations share.
const interopKey = "/key/swarm/psk/1.0.0/\n/base16/\ndffb7e3135399a8b1612b2aaca1c36a3a8ac2cd0cca51ceeb2ced87d308cac6d\n"

func readKey(t *testing.T, text string) pnet.PSK {
	t.Helper()
	psk, err := pnet.DecodeV1PSK(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return psk
}

// foreignHost returns a bare libp2p host.
func foreignHost(t *testing.T, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.UserAgent("foreign/1"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// kadMessage is a message of the Kademlia protocol (libp2p specification, kad-dht): a type, and a key.
func kadMessage(kind uint64, key []byte) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), kind)
	if key != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), key)
	}
	return append(protowire.AppendVarint(nil, uint64(len(b))), b...)
}

const (
	kadFindNode = 4
	kadPing     = 5
)

// kadAnswer is what is used of an answer.
type kadAnswer struct {
	kind   uint64
	closer []peer.AddrInfo
}

// fields calls use for each field of a protobuf message.
func fields(t *testing.T, b []byte, use func(num protowire.Number, value uint64, data []byte)) {
	t.Helper()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatalf("answer: %v", protowire.ParseError(n))
		}
		b = b[n:]
		var value uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			t.Fatalf("answer: field %d of type %d", num, typ)
		}
		if n < 0 {
			t.Fatalf("answer: field %d: %v", num, protowire.ParseError(n))
		}
		b = b[n:]
		use(num, value, data)
	}
}

// askKad sends one message on a stream of its own and returns the answer.
func askKad(t *testing.T, ctx context.Context, h host.Host, p peer.ID, id protocol.ID, message []byte) (a kadAnswer) {
	t.Helper()
	s, err := h.NewStream(ctx, p, id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	if deadline, ok := ctx.Deadline(); ok {
		s.SetDeadline(deadline)
	}
	if _, err := s.Write(message); err != nil {
		t.Fatal(err)
	}
	s.CloseWrite()
	all, err := io.ReadAll(bufio.NewReader(s)) // one answer, and the end
	if err != nil {
		t.Fatal(err)
	}
	body, n := protowire.ConsumeBytes(all)
	if n != len(all) {
		t.Fatalf("%d bytes came, one answer has %d", len(all), n)
	}
	fields(t, body, func(num protowire.Number, value uint64, data []byte) {
		switch num {
		case 1:
			a.kind = value
		case 8:
			var info peer.AddrInfo
			fields(t, data, func(num protowire.Number, _ uint64, data []byte) {
				switch num {
				case 1:
					info.ID = peer.ID(data)
				case 2:
					addr, err := ma.NewMultiaddrBytes(data)
					if err != nil {
						t.Fatalf("address of %s: %v", info.ID, err)
					}
					info.Addrs = append(info.Addrs, addr)
				}
			})
			a.closer = append(a.closer, info)
		}
	})
	return a
}

// interopHost returns a daemon's host in a private overlay, on TCP and WebSocket.
func interopHost(t *testing.T, psk pnet.PSK) host.Host {
	t.Helper()
	c, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	opts, err := HostOptions(c, key, psk, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestForeignPeerWithTheKeyAsksTheOverlay(t *testing.T) {
	psk := readKey(t, interopKey)
	var hosts []host.Host
	for range 3 {
		hosts = append(hosts, interopHost(t, psk))
	}
	refusals := new(Refusals)
	nodes := overlay(t, hosts, func(int) []Option { return []Option{WithRefusals(refusals)} })
	ctx := within(t, waitMax)
	for _, n := range nodes {
		if err := n.Overlay().WaitPeers(ctx, 2); err != nil {
			t.Fatal(err)
		}
	}
	overlayID := nodes[0].Genesis().ID()
	kad := protocol.ID("/latchkey/" + hex.EncodeToString(overlayID[:4]) + "/kad/1.0.0")
	for _, c := range []struct {
		name      string
		websocket bool
		security  libp2p.Option
	}{
		{"TCP, Noise", false, libp2p.Security(noise.ID, noise.New)},
		{"TCP, TLS", false, libp2p.Security(libp2ptls.ID, libp2ptls.New)},
		{"WebSocket, Noise", true, libp2p.Security(noise.ID, noise.New)},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := within(t, waitMax)
			h := foreignHost(t, libp2p.PrivateNetwork(psk), c.security)
			first := peer.AddrInfo{ID: hosts[0].ID()}
			for _, a := range hosts[0].Addrs() {
				if has(a, ma.P_WS) == c.websocket {
					first.Addrs = append(first.Addrs, a)
				}
			}
			if err := h.Connect(ctx, first); err != nil {
				t.Fatal(err)
			}
			// Connect has waited for identify.
			if ids, err := h.Peerstore().GetProtocols(first.ID); err != nil || !slices.Contains(ids, kad) {
				t.Errorf("identify does not name %s: %v, %v", kad, ids, err)
			}
			if agent, err := h.Peerstore().Get(first.ID, "AgentVersion"); err != nil || !strings.HasPrefix(agent.(string), "latchkey/") {
				t.Errorf("agent %v, %v", agent, err)
			}
			pinging, stop := context.WithCancel(ctx)
			if r, ok := <-ping.Ping(pinging, h, first.ID); !ok || r.Error != nil {
				t.Errorf("ping: %v, %v", ok, r.Error)
			}
			stop()
			if a := askKad(t, ctx, h, first.ID, kad, kadMessage(kadPing, nil)); a.kind != kadPing {
				t.Errorf("Kademlia's own ping was answered by type %d", a.kind)
			}
			// A walk: whom the first peer names is asked as well, at the addresses it gives.
			found := map[peer.ID]bool{first.ID: true}
			target := []byte(hosts[2].ID())
			for ask := []peer.AddrInfo{first}; len(ask) > 0; ask = ask[1:] {
				if err := h.Connect(ctx, ask[0]); err != nil {
					t.Fatal(err)
				}
				a := askKad(t, ctx, h, ask[0].ID, kad, kadMessage(kadFindNode, target))
				if a.kind != kadFindNode {
					t.Errorf("FIND_NODE was answered by type %d", a.kind)
				}
				if ask[0].ID != hosts[2].ID() && (len(a.closer) == 0 || !bytes.Equal([]byte(a.closer[0].ID), target)) {
					t.Errorf("%s does not name the peer looked for first: %v", ask[0].ID, a.closer)
				}
				for _, p := range a.closer {
					if p.ID == h.ID() {
						t.Errorf("%s names the asker, which hosts nothing", ask[0].ID)
					} else if !found[p.ID] {
						found[p.ID] = true
						ask = append(ask, p)
					}
				}
			}
			if len(found) != len(hosts) {
				t.Errorf("the walk found %d of %d peers", len(found), len(hosts))
			}
			for i, n := range nodes {
				if n.Overlay().DHT().RoutingTable().Find(h.ID()) != "" {
					t.Errorf("peer %d has the foreign one in its routing table", i)
				}
				if hosts[i].Network().Connectedness(h.ID()) != network.Connected {
					t.Errorf("peer %d has disconnected the foreign one", i)
				}
			}
		})
	}
	t.Run("another Kademlia", func(t *testing.T) {
		ctx := within(t, waitMax)
		h := foreignHost(t, libp2p.PrivateNetwork(psk))
		d, err := kaddht.New(h, kaddht.Mode(kaddht.ModeClient), kaddht.ProtocolPrefix(protocol.ID(strings.TrimSuffix(string(kad), "/kad/1.0.0"))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		if err := h.Connect(ctx, peer.AddrInfo{ID: hosts[0].ID(), Addrs: hosts[0].Addrs()}); err != nil {
			t.Fatal(err)
		}
		for d.RoutingTable().Size() == 0 {
			if err := waitFor(ctx); err != nil {
				t.Fatal(err)
			}
		}
		closest, err := d.GetClosestPeers(ctx, "some key")
		if err != nil || len(closest) != len(hosts) {
			t.Errorf("%v found, %v", closest, err)
		}
	})
	if counts := refusals.Counts(); len(counts) > 0 {
		t.Errorf("a foreign peer that only asks was refused: %v", counts)
	}
	for name, opts := range map[string][]libp2p.Option{
		"another key": {libp2p.PrivateNetwork(readKey(t, strings.Replace(interopKey, "dffb", "dffc", 1)))},
		"no key":      nil,
	} {
		h := foreignHost(t, opts...)
		short, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("no answer"))
		at := slices.DeleteFunc(hosts[0].Addrs(), func(a ma.Multiaddr) bool { return has(a, ma.P_WS) })
		if err := h.Connect(short, peer.AddrInfo{ID: hosts[0].ID(), Addrs: at}); err == nil {
			t.Errorf("%s: connected", name)
		}
		cancel()
	}
}
