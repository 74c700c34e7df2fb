package durable

import "testing"

func TestADirectoryIsInOneGroup(t *testing.T) {
	for _, name := range []string{"app/d/a", "app/d/b", "app/d/"} {
		if KeyOf(name) != KeyOf("app/d/x") {
			t.Errorf("%q has another key than app/d/x", name)
		}
	}
	for _, name := range []string{"app/d", "app/", "app/e/x", "app/d/e/x", "bpp/d/x"} {
		if KeyOf(name) == KeyOf("app/d/x") {
			t.Errorf("%q has the key of app/d/x", name)
		}
	}
	if p := ParamsOf(10_000); p.Lease != LeaseDefault || p.Holder()+p.Arbiter() != 2*LeaseDefault {
		t.Errorf("%+v", p)
	}
}
