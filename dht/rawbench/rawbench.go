// Package rawbench measures what the overlay is measured against: a round trip on a kept-open libp2p stream with nothing but a
// length prefix (physics.md B1), and takes any operation's time the same way.
//
// CPU and allocations are those of the whole process, both ends together when both hosts are in it.
package rawbench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// payloadMax bounds one echoed message.
const payloadMax = 1 << 20

const echoProtocol protocol.ID = "/latchkey/rawbench/1.0.0"

// samplesMax bounds the samples of one measurement; it ends there.
const samplesMax = 10_000_000

// Result is what a measurement found. The zero value holds none; [Result.Add] joins two.
type Result struct {
	Samples []time.Duration // of each operation
	Wall    time.Duration
	CPU     time.Duration // 0 where the system does not tell
	Allocs  uint64
}

// Add appends another measurement of the same operation.
func (r *Result) Add(other Result) {
	r.Samples = append(r.Samples, other.Samples...)
	r.Wall += other.Wall
	r.CPU += other.CPU
	r.Allocs += other.Allocs
}

// Quantile returns the sample below which the share q of all lies; 0.5 is the median. It is 0 without samples.
func (r *Result) Quantile(q float64) time.Duration {
	if len(r.Samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(r.Samples))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// CPUPerOp returns the CPU time one operation took.
func (r *Result) CPUPerOp() time.Duration { return r.CPU / time.Duration(max(len(r.Samples), 1)) }

// AllocsPerOp returns the heap allocations one operation made.
func (r *Result) AllocsPerOp() float64 { return float64(r.Allocs) / float64(max(len(r.Samples), 1)) }

// OpsPerSecond returns the rate.
func (r *Result) OpsPerSecond() float64 {
	if r.Wall <= 0 {
		return 0
	}
	return float64(len(r.Samples)) / r.Wall.Seconds()
}

// Measure repeats op for d, one after another, on the calling goroutine. It ends early with op's error or with ctx.
func Measure(ctx context.Context, d time.Duration, op func() error) (Result, error) {
	var before, after runtime.MemStats
	r := Result{Samples: make([]time.Duration, 0, 1<<16)}
	runtime.ReadMemStats(&before)
	cpu, start := CPUTime(), time.Now()
	for now := start; now.Sub(start) < d && len(r.Samples) < samplesMax; {
		if err := context.Cause(ctx); err != nil {
			return r, err
		}
		if err := op(); err != nil {
			return r, err
		}
		then := time.Now()
		r.Samples = append(r.Samples, then.Sub(now))
		now = then
	}
	r.Wall, r.CPU = time.Since(start), CPUTime()-cpu
	runtime.ReadMemStats(&after)
	r.Allocs = after.Mallocs - before.Mallocs
	return r, nil
}

// Echo is a kept-open stream to a host that sends every message back. For one caller at a time.
type Echo struct {
	server host.Host
	stream network.Stream
	reader *bufio.Reader
	buf    []byte
}

// Open connects a to b and opens the stream. Both hosts belong to the caller; Close ends the echo.
func Open(ctx context.Context, a, b host.Host) (*Echo, error) {
	b.SetStreamHandler(echoProtocol, serve)
	if err := a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		return nil, fmt.Errorf("rawbench: %w", err)
	}
	s, err := a.NewStream(ctx, b.ID(), echoProtocol)
	if err != nil {
		return nil, fmt.Errorf("rawbench: %w", err)
	}
	return &Echo{server: b, stream: s, reader: bufio.NewReader(s)}, nil
}

// Do sends payload and waits for it to come back.
func (e *Echo) Do(payload []byte) error {
	if len(payload) > payloadMax {
		return fmt.Errorf("rawbench: payload of %d bytes", len(payload))
	}
	var err error
	if e.buf, err = writeFrame(e.stream, payload, e.buf); err != nil {
		return fmt.Errorf("rawbench: %w", err)
	}
	if e.buf, err = readFrame(e.reader, e.buf); err != nil {
		return fmt.Errorf("rawbench: %w", err)
	}
	if len(e.buf) != len(payload) {
		return fmt.Errorf("rawbench: %d bytes came back of %d", len(e.buf), len(payload))
	}
	return nil
}

// Close ends the stream and the service.
func (e *Echo) Close() error {
	e.server.RemoveStreamHandler(echoProtocol)
	return e.stream.Reset()
}

// RoundTrip measures an echo of payload between two hosts for d.
func RoundTrip(ctx context.Context, a, b host.Host, payload []byte, d time.Duration) (Result, error) {
	e, err := Open(ctx, a, b)
	if err != nil {
		return Result{}, err
	}
	defer e.Close()
	if err := e.Do(payload); err != nil { // the first one opens the stream at the other end
		return Result{}, err
	}
	return Measure(ctx, d, func() error { return e.Do(payload) })
}

func serve(s network.Stream) {
	defer s.Reset()
	r := bufio.NewReader(s)
	var in, out []byte
	for {
		var err error
		if in, err = readFrame(r, in); err != nil {
			return
		}
		if out, err = writeFrame(s, in, out); err != nil {
			return
		}
	}
}

// writeFrame writes payload and its length at once, using buf.
func writeFrame(w io.Writer, payload, buf []byte) ([]byte, error) {
	buf = binary.AppendUvarint(buf[:0], uint64(len(payload)))
	buf = append(buf, payload...)
	_, err := w.Write(buf)
	return buf, err
}

var errOversize = errors.New("frame too large")

// readFrame reads a payload into buf or a larger one.
func readFrame(r *bufio.Reader, buf []byte) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return buf, err
	}
	if n > payloadMax {
		return buf, errOversize
	}
	buf = slices.Grow(buf[:0], int(n))[:n]
	_, err = io.ReadFull(r, buf)
	return buf, err
}
