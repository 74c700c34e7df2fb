package dht

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Limits of half-received messages, besides [reassemblyBytesMax] for each peer.
const (
	// reassemblyTotalMax bounds what half-received messages of all peers together hold. When it is reached, the one that holds
	// most is given up and its stream is reset: a few peers that begin large messages and do not end them cannot keep others
	// from sending theirs.
	reassemblyTotalMax = 2 * MessageBytesMax

	// A message in pieces must be complete within unfinishedMax and the time its size takes at pieceRateMin bytes a second;
	// otherwise its stream is reset.
	unfinishedMax = 15 * time.Second
	pieceRateMin  = 1 << 20
)

// reassembly is what all half-received messages of an overlay hold.
type reassembly struct {
	mu   sync.Mutex
	held int64
	each map[*assembler]int64 // sum = held
}

// grow notes n bytes more of a message. An error says that this one is given up; another one is reset.
func (r *reassembly) grow(a *assembler, n int) error {
	r.mu.Lock()
	if r.each == nil {
		r.each = make(map[*assembler]int64)
	}
	r.each[a] += int64(n)
	r.held += int64(n)
	var most *assembler
	if r.held > reassemblyTotalMax {
		for b, held := range r.each {
			if most == nil || held > r.each[most] {
				most = b
			}
		}
		r.forgetLocked(most) // its reader lets go of the bytes in a moment
	}
	r.mu.Unlock()
	if most == nil {
		return nil
	}
	err := &badFrame{ReasonBudget, fmt.Sprintf("all peers' half-received messages hold %d bytes, and this is the largest", reassemblyTotalMax)}
	if most == a {
		return err
	}
	most.stream.close(err)
	return nil
}

func (r *reassembly) forget(a *assembler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetLocked(a)
}

func (r *reassembly) forgetLocked(a *assembler) {
	r.held -= r.each[a]
	delete(r.each, a)
}

// limit sets by when the message under way must be complete, or that nothing is.
func (a *assembler) limit(d time.Duration) error {
	if a.begun.kind == 0 {
		return a.stream.net.SetReadDeadline(time.Time{})
	}
	return a.stream.net.SetReadDeadline(time.Now().Add(d + time.Duration(a.begun.total)*time.Second/pieceRateMin))
}

// late tells the end of that time from other ends of a stream.
func (a *assembler) late(err error) error {
	var timeout net.Error
	if a.begun.kind != 0 && errors.As(err, &timeout) && timeout.Timeout() {
		return &badFrame{ReasonUnfinished, fmt.Sprintf("%d of %d bytes", a.held, a.begun.total)}
	}
	return err
}
