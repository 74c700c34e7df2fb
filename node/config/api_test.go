package config

import (
	"errors"
	"strings"
	"testing"
)

func TestTokensTravelInTheClearOnTheLoopbackOnly(t *testing.T) {
	for _, c := range []struct {
		listen, cert, key, says string
	}{
		{"none", "none", "none", ""}, {"127.0.0.1:0", "none", "none", ""}, {":4780", "none", "none", ""}, {"localhost:4780", "none", "none", ""}, {"[::1]:4780", "none", "none", ""},
		{"0.0.0.0:4780", "none", "none", "api.tls_cert"}, {"192.0.2.1:4780", "none", "none", "api.tls_cert"}, {"192.0.2.1:4780", "c", "k", ""},
		{"127.0.0.1:0", "c", "none", "set both or none"}, {"127.0.0.1:0", "none", "k", "set both or none"}, {"here", "none", "none", "want HOST:PORT"},
	} {
		conf, err := Default(Test)
		if err != nil {
			t.Fatal(err)
		}
		conf.API.Listen, conf.API.TLSCert, conf.API.TLSKey = c.listen, c.cert, c.key
		switch err := conf.Validate(true); {
		case c.says == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.says != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%+v: %v, want %q", c, err, c.says)
		}
	}
	conf, _ := Default(Test)
	conf.API.Hosts = []string{"http://latchkey"}
	if err := conf.Validate(true); !errors.Is(err, ErrInvalid) {
		t.Errorf("a URL among the hosts: %v", err)
	}
}
