package coherence

import (
	"testing"

	"latchkey/coherence/protocol"
)

// What waits is bounded by number and by bytes, and makes room when it is done.
func TestWhatWaitsIsBounded(t *testing.T) {
	var r room
	var all []waiter
	for r.take(1) {
		all = append(all, waiter{bytes: 1})
	}
	if len(all) != waitingMax {
		t.Errorf("%d wait", len(all))
	}
	r.free(all)
	large := weightOf(&protocol.Message{Value: &protocol.Cell{Bytes: make([]byte, protocol.ValueMax)}})
	all = nil
	for r.take(large) {
		all = append(all, waiter{bytes: large})
	}
	if want := waitingBytesMax / large; len(all) != want || want < 8 {
		t.Errorf("%d wait, and %d may", len(all), want)
	}
	if !r.take(waitingBytesMax-r.bytes) || r.take(1) {
		t.Error("the last byte is not given, or one more is")
	}
	r.free(append(all, waiter{bytes: waitingBytesMax - len(all)*large}))
	if r != (room{}) {
		t.Errorf("%+v is left", r)
	}
}
