package replicagroup

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"latchkey/replicagroup/placement"
)

func TestGroupsWithTheSameMembersShareThem(t *testing.T) {
	var k kin
	again := func(change func(*placement.Descriptor)) placement.Descriptor {
		d := testDescriptor()
		d.View.Members, d.Peers = slices.Clone(d.View.Members), slices.Clone(d.Peers)
		if change != nil {
			change(&d)
		}
		return d
	}
	first := k.share(again(nil))
	second := k.share(again(func(d *placement.Descriptor) { d.Group.Gen, d.View.Num = 7, 8 }))
	if &first.View.Members[0] != &second.View.Members[0] || &first.Peers[0] != &second.Peers[0] {
		t.Error("two groups with the same members share nothing")
	}
	if second.Group.Gen != 7 || second.View.Num != 8 || !reflect.DeepEqual(first, testDescriptor()) {
		t.Errorf("%+v, %+v", first, second)
	}
	for name, change := range map[string]func(*placement.Descriptor){
		"replica": func(d *placement.Descriptor) { d.View.Members[0].ID += 100 },
		"store":   func(d *placement.Descriptor) { d.View.Members[0].Store[3]++ },
		"role":    func(d *placement.Descriptor) { d.View.Members[0].Role++ },
		"address": func(d *placement.Descriptor) { d.Peers[0].Addrs = []string{"/ip4/10.0.0.9/tcp/1"} },
		"one more": func(d *placement.Descriptor) {
			d.View.Members, d.Peers = append(d.View.Members, d.View.Members[0]), append(d.Peers, d.Peers[0])
		},
	} {
		want := again(change)
		if got := k.share(again(change)); !reflect.DeepEqual(got, want) || &got.View.Members[0] == &first.View.Members[0] {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestMembershipsRememberedAreBounded(t *testing.T) {
	var k kin
	for i := range 2*kinMax + 1 {
		d := testDescriptor()
		d.View.Members, d.Peers = slices.Clone(d.View.Members), slices.Clone(d.Peers)
		d.Peers[0].Addrs = []string{fmt.Sprint("/ip4/10.0.0.9/tcp/", i)}
		if got := k.share(d); got.Peers[0].Addrs[0] != d.Peers[0].Addrs[0] {
			t.Fatalf("membership %d became %+v", i, got)
		}
		if len(k.known) > kinMax {
			t.Fatalf("%d memberships are remembered", len(k.known))
		}
	}
}
