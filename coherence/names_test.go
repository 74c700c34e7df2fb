package coherence

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
)

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"": false, "x": true, strings.Repeat("x", NameBytesMax): true, strings.Repeat("x", NameBytesMax+1): false, "a\n": false, "\xff": false, "dir/é": true,
	} {
		if err := checkName("an object", name); (err == nil) != ok || err != nil && !errors.Is(err, ErrName) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestObjectsOfADirectoryShareAGroup(t *testing.T) {
	x, y, z := ObjectKey("app", "d/x"), ObjectKey("app", "d/y"), ObjectKey("app", "e/x")
	if [8]byte(x[:8]) != [8]byte(y[:8]) || [8]byte(x[:8]) == [8]byte(z[:8]) || x == y {
		t.Errorf("d/x is %x, d/y %x, e/x %x", x, y, z)
	}
	if ObjectKey("app", "x") == ObjectKey("ap", "p/x") {
		t.Error("objects of two applications are one")
	}
}

func TestAGroupsRoomIsBounded(t *testing.T) {
	r := newRig(t, 0)
	for i := range GroupAppsMax + 1 {
		var a [32]byte
		binary.BigEndian.PutUint64(a[:], uint64(i+1))
		if r.m.of(a) == nil != (i == GroupAppsMax) {
			t.Fatalf("%d applications", i+1)
		}
	}
	r = newRig(t, 0)
	expect(t, r.create(nodeA, 1), protocol.Created)
	r.m.objects = GroupObjectsMax - 1
	expect(t, r.object(protocol.Write, nodeA, "x", 1, 1), protocol.FirstTouch)
	expect(t, r.object(protocol.Write, nodeA, "y", 1, 1))
}

func TestAnAnswerAboutANodeIsBounded(t *testing.T) {
	if _, err := decodeWho([32]byte{}, make([]byte, whoBytesMax+1)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Error(err)
	}
	if pb.FrameBytesMax < protocol.ValueMax {
		t.Error("no frame holds the longest value")
	}
}
