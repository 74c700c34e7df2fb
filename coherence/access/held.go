package access

import (
	"context"
	"errors"
	"fmt"
	"time"

	"latchkey/coherence/protocol"
)

// HoldMax bounds how long a [Held] object is kept from all others.
const HoldMax = 5 * time.Minute

// ErrHold matches the error of a write to a [Held] object that is held no longer. It was not performed.
var ErrHold = errors.New("coherence: object no longer held")

// Held is an object that is kept from all others, on this node too, until it is written, released, or held for long enough. It is for one write that
// takes longer to make than an [Object.Update] may, and whose making must not be repeated. Safe for concurrent use.
type Held struct {
	object *Object
	hold   *hold
	cell   *protocol.Cell
}

// Hold waits for the right to write and keeps it, for d at most, which is above 0 and at most [HoldMax]. Unlike that of an Update the hold does not end
// when somebody here waits for an object with a smaller key: who holds several at a time, and not in one order everywhere, waits until a hold has
// lasted too long.
func (o *Object) Hold(ctx context.Context, d time.Duration) (*Held, error) {
	if d <= 0 || d > HoldMax {
		return nil, fmt.Errorf("coherence: an object is not held for %v: give a time up to %v", d, HoldMax)
	}
	w := &waiter{do: begin, hold: &hold{object: o, lasts: d, keeps: true, ended: make(chan struct{})}}
	if err := o.wait(ctx, w); err != nil {
		return nil, err
	}
	h := &Held{o, w.hold, w.cell}
	go func() {
		select {
		case <-o.epoch.done:
			h.Release()
		case <-w.hold.ended:
		}
	}()
	if err := o.cut(nil); err != nil {
		h.Release()
		return nil, err
	}
	return h, nil
}

// Value returns the value, which nobody changes while the object is held. The caller must not change it either.
func (h *Held) Value() []byte { return h.cell.Bytes }

// Ended is closed when the object is held no longer, for whatever reason.
func (h *Held) Ended() <-chan struct{} { return h.hold.ended }

// Commit writes a copy of value and ends the hold. When it was over already nothing is written: [ErrHold], or [ErrRestarted]. After [ErrTooLarge] the
// object is held still.
func (h *Held) Commit(value []byte) error {
	c, err := newCell(value)
	if err != nil {
		return err
	}
	o := h.object
	o.mu.Lock()
	stored := o.holder == h.hold && o.cell.Load() == h.cell && o.storeLocked(c)
	o.mu.Unlock()
	h.Release()
	if err := o.cut(nil); err != nil {
		return err
	}
	if !stored {
		return fmt.Errorf("%w: it was for %v, which are over, or was released; the value is as it was", ErrHold, h.hold.lasts)
	}
	return nil
}

// Release ends the hold. The value is as it was, unless it was written.
func (h *Held) Release() { h.object.end(h.hold, false) }
