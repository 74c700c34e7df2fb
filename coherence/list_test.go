package coherence

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"latchkey/coherence/protocol"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

func TestPageOfNamesIsReadAsWritten(t *testing.T) {
	p := namesPage{names: []string{"a/1", "a/2", "a/3"}, bytes: []int{1, protocol.ValueMax, 7}, unnamed: 3, more: true}
	got, err := decodePage(p.encode(), "a/", "")
	if err != nil || !slices.Equal(got.names, p.names) || !slices.Equal(got.bytes, p.bytes) || got.unnamed != 3 || !got.more {
		t.Errorf("%+v, %v", got, err)
	}
	for name, ask := range map[string]struct {
		page          namesPage
		prefix, after string
	}{
		"others than asked for":  {p, "b/", ""},
		"those that came before": {p, "a/", "a/1"},
		"in no order":            {namesPage{names: []string{"b", "a"}, bytes: []int{1, 1}}, "", ""},
		"one twice":              {namesPage{names: []string{"a", "a"}, bytes: []int{1, 1}}, "", ""},
		"no name":                {namesPage{names: []string{"a\n"}, bytes: []int{1}}, "", ""},
		"too long":               {namesPage{names: []string{strings.Repeat("x", NameBytesMax+1)}, bytes: []int{1}}, "", ""},
	} {
		if got, err := decodePage(ask.page.encode(), ask.prefix, ask.after); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestInfoIsReadAsWritten(t *testing.T) {
	m := NewMachine(order.GroupID{})
	app, object := AppKey("a"), ObjectKey("a", "x")
	if i, err := decodeInfo(m.Query(session.Context{}, app[:])); err != nil || i.Open || len(i.Nodes) > 0 {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := decodeObjectInfo(m.Query(session.Context{}, append(app[:], object[:]...))); err != nil || i.Touched {
		t.Errorf("%+v, %v", i, err)
	}
}

func FuzzDecodePage(f *testing.F) {
	f.Add(namesPage{names: []string{"a", "b"}, bytes: []int{1, 2}, more: true}.encode(), "")
	f.Add([]byte{0, 0, 255, 255, 1}, "a")
	f.Fuzz(func(t *testing.T, b []byte, after string) {
		p, err := decodePage(b, "", after)
		if err != nil {
			return
		}
		if len(p.names) != len(p.bytes) || len(p.names) > namesPageMax || !slices.IsSorted(p.names) {
			t.Error(fmt.Sprint(p))
		}
	})
}
