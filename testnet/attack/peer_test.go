package attack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"latchkey/dht"
	"latchkey/node"
	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
)

// peerOrder is what an honest peer needs to know.
type peerOrder struct {
	Genesis []byte // of its overlay; none: it founds one
}

// introduction is the first line of an honest peer.
type introduction struct {
	Genesis []byte
	ID      string
	Addrs   []string
}

// probe is what an honest peer says of itself.
type probe struct {
	Overlay  dht.Stats
	Groups   replicagroup.Counters
	Replicas int
	Inbound  map[string]inbound // by peer that it is connected to
}

// inbound is what one peer has at another.
type inbound struct{ Conns, Streams int } // streams that it opened

// memory is what a process takes, in bytes.
type memory struct {
	Heap int64         // in use on the heap, garbage collected
	Peak int64         // resident at most since the last time it was asked; 0: the system does not tell
	CPU  time.Duration // used so far; 0: the system does not tell
}

// What is asked of an honest peer, a line each.
const (
	askProbe  = "probe"
	askMemory = "memory"
)

// peerMain is an honest peer's process.
func peerMain(o peerOrder) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	h, err := newHost()
	if err != nil {
		return err
	}
	var g placement.Genesis
	var opts []node.Option
	if o.Genesis == nil {
		one := 1
		var store *replicagroup.MemoryStore
		g, store, err = node.Found(h, node.FoundOptions{Name: "attacked", F: &one})
		opts = append(opts, node.WithStore(store))
	} else {
		g, err = placement.DecodeGenesis(o.Genesis)
	}
	if err != nil {
		return err
	}
	n, err := node.New(h, append(opts, node.WithOverlay(g))...)
	if err != nil {
		return err
	}
	h.SetStreamHandler(sinkProtocol, func(s network.Stream) {
		defer s.Reset()
		_, _ = io.Copy(io.Discard, s)
	})
	n.Overlay().Handle(echoService, func(r *dht.Request) { r.Reply(r.Data) })
	if err := n.Start(ctx); err != nil {
		return err
	}
	encoded, err := g.Encode()
	if err != nil {
		return err
	}
	in := introduction{Genesis: encoded, ID: h.ID().String()}
	for _, a := range h.Addrs() {
		in.Addrs = append(in.Addrs, a.String())
	}
	out, asked := json.NewEncoder(os.Stdout), bufio.NewScanner(os.Stdin)
	if err := out.Encode(in); err != nil {
		return err
	}
	for asked.Scan() {
		var v any
		switch ask := asked.Text(); ask {
		case strconv.Quote(askMemory):
			v = memory{heap(), peak(), cpu()}
		case strconv.Quote(askProbe):
			all, err := n.Groups().Status(context.Background())
			if err != nil {
				return err
			}
			p := probe{n.Overlay().Stats(), n.Groups().Counters(), len(all), make(map[string]inbound)}
			for _, c := range h.Network().Conns() {
				in := p.Inbound[c.RemotePeer().String()]
				in.Conns++
				for _, s := range c.GetStreams() {
					if s.Stat().Direction == network.DirInbound {
						in.Streams++
					}
				}
				p.Inbound[c.RemotePeer().String()] = in
			}
			v = p
		default:
			return fmt.Errorf("asked %q", ask)
		}
		if err := out.Encode(v); err != nil {
			return err
		}
	}
	return errors.Join(asked.Err(), n.Close(), h.Close())
}

// heap returns the bytes in use on the heap of this process, garbage collected.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cpu returns the processor time that this process has used, where the system tells: on Linux.
func cpu() time.Duration {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // a hundredth of a second each
}

// peak returns the most that this process had resident since it was asked last, where the system tells: on Linux.
func peak() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib int64
	if _, err := fmt.Sscan(string(after), &kib); err != nil {
		return 0
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return 0
	}
	return kib << 10
}
