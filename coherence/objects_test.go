package coherence_test

import (
	"fmt"
	"slices"
	"testing"

	"latchkey/coherence"
)

func names(l coherence.Listed) (all []string) {
	for _, o := range l.Objects {
		all = append(all, o.Name)
	}
	return all
}

func TestObjectsAreListedWhoeverOwnsThem(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	var apps []*coherence.App
	for i := range 3 {
		apps = append(apps, open(t, ctx, net, i, "list"))
	}
	want := []string{}
	for i := range 9 {
		name := fmt.Sprintf("frame/%d", i)
		want = append(want, name)
		if err := apps[i%3].Object(name).Set(ctx, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := apps[0].Object("frame/empty").Get(ctx); err != nil {
		t.Fatal(err)
	}
	if err := apps[1].Object("other").Set(ctx, []byte("x")); err != nil {
		t.Fatal(err)
	}
	l, err := apps[2].List(ctx, "frame/", 100)
	if err != nil || !slices.Equal(names(l), want) || l.Unnamed != 0 || len(l.Silent) > 0 || l.Objects[4].Bytes != len("frame/4") {
		t.Fatalf("%+v, %v", l, err)
	}
	if l, err := apps[2].List(ctx, "", 4); err != nil || !slices.Equal(names(l), want[:4]) {
		t.Errorf("%+v, %v", l, err)
	}
	// Who leaves hands over what it owns, and tells what it is called.
	if err := apps[0].Close(ctx); err != nil {
		t.Fatal(err)
	}
	if l, err = apps[2].List(ctx, "frame/", 100); err != nil || l.Unnamed != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	if !slices.Equal(names(l), want) {
		t.Errorf("%+v", l)
	}

	i, err := apps[2].Object("frame/1").Info(ctx)
	if err != nil || !i.Touched || i.Owner != apps[1].Self() || i.Epoch != apps[1].Epoch() {
		t.Errorf("%+v, %v", i, err)
	}
	if state, bytes := apps[1].Object("frame/1").State(); state != "OWNER_EXCLUSIVE" || bytes != len("frame/1") {
		t.Error(state, bytes)
	}
}
