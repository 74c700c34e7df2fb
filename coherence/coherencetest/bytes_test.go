package coherencetest

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"testing"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
)

// overTheWire returns m as its receiver reads it.
func (w *simulated) overTheWire(m protocol.Message) protocol.Message {
	b, err := pb.EncodeFrame(nil, appKey, &m)
	if err != nil {
		w.fail("%v: %w", wire(&m), err)
		return m
	}
	app, got, err := pb.DecodeFrame(b)
	if err != nil || app != appKey || !reflect.DeepEqual(got, m) {
		w.fail("%v comes as %v: %v", wire(&m), wire(&got), err)
	}
	return got
}

// restored puts a manager that was restored from a snapshot in a replica's place, and an event that was read from a log in that of in, and tests
// that the two managers do the same with it.
func (w *simulated) restored(g *simGroup, r *replica, in *simInput) {
	was := *r
	if g.object >= 0 {
		ev, ok := logged(w, in.om, pb.EncodeObjectEvent, pb.DecodeObjectEvent)
		om, err := manager.Restore(manager.Config{App: appKey, Object: objectKey(g.object + 1), Epoch: 1, Life: r.life}, r.om.Snapshot())
		if err != nil || !ok {
			w.fail("%v: %w", r.om, err)
			return
		}
		r.om, in.om = om.Clone(), ev
		before := was.om.Clone()
		if got, want := om.Step(ev, nil), before.Step(ev, nil); !reflect.DeepEqual(got, want) || !bytes.Equal(om.Snapshot(), before.Snapshot()) {
			w.fail("restored: %v does %v, and %v did %v", om, got, before, want)
		}
		if !reflect.DeepEqual(om.Resend(nil), before.Resend(nil)) || !slices.Equal(om.Concerns(), before.Concerns()) {
			w.fail("restored: %v waits for something else", om)
		}
		return
	}
	ev, ok := logged(w, in.am, pb.EncodeAppEvent, pb.DecodeAppEvent)
	am, err := appmanager.Restore(appmanager.Config{App: appKey}, r.am.Snapshot())
	if err != nil || !ok {
		w.fail("%v: %w", r.am, err)
		return
	}
	r.am, in.am = am.Clone(), ev
	before := was.am.Clone()
	if got, want := am.Step(ev, nil), before.Step(ev, nil); !slices.EqualFunc(got, want, sameAction) || !bytes.Equal(am.Snapshot(), before.Snapshot()) {
		w.fail("restored: %v does %+v, and %v did %+v", am, got, before, want)
	}
	if !slices.EqualFunc(am.Resend(nil), before.Resend(nil), sameAction) || !slices.Equal(am.Concerns(), before.Concerns()) {
		w.fail("restored: %v waits for something else", am)
	}
}

// logged returns an event as it is read from a log.
func logged[E any](w *simulated, ev E, encode func(E) ([]byte, error), decode func([]byte) (E, error)) (E, bool) {
	b, err := encode(ev)
	if err != nil {
		w.fail("%+v: %w", ev, err)
		return ev, false
	}
	got, err := decode(b)
	if err != nil || !reflect.DeepEqual(got, ev) {
		w.fail("%+v is read as %+v: %v", ev, got, err)
		return ev, false
	}
	return got, true
}

func sameAction(a, b appmanager.Action) bool {
	return a.Kind == b.Kind && a.Msg == b.Msg && a.Epoch == b.Epoch && a.Checkpoint == b.Checkpoint && slices.Equal(a.Threads, b.Threads) &&
		maps.Equal(a.Manifest.Objects, b.Manifest.Objects) && maps.Equal(a.Manifest.Threads, b.Manifest.Threads)
}

// TestBytesChangeNothing: with messages that go over the wire, events that are read from a log and managers that are restored before every step,
// a world does what it does without.
func TestBytesChangeNothing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(25) {
		c := drawConfig(seed + 1)
		plain, err := runSeed(c)
		if err != nil {
			t.Fatal(err)
		}
		c.bytes = true
		coded, err := runSeed(c)
		if err != nil {
			t.Fatal(err)
		}
		if plain != coded {
			t.Errorf("seed %d: %+v without bytes, %+v with", seed+1, plain, coded)
		}
	}
}
