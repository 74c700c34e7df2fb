package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"latchkey/node"
	"latchkey/node/config"
	"latchkey/testnet/wire"
)

// Whoever does not give the hidden flag has a daemon with libp2p's own transport, and no way to set rules: neither the flag's file
// nor standard input means anything to it.
func TestWithoutTheHiddenFlagADaemonHasNoWire(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if _, _, err := node.InitDir(dir, node.InitOptions{Profile: config.Test}); err != nil {
		t.Fatal(err)
	}
	d, err := node.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := d.LoadConfig(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "wire.sock")
	for flag, want := range map[string]string{"": fmt.Sprintf("%T", &tcp.TcpTransport{}), socket: fmt.Sprintf("%T", &wire.Transport{})} {
		opts, off, err := onWire(flag, strings.NewReader(`{"latency_ns":1}`))
		if err != nil {
			t.Fatal(err)
		}
		if len(opts) == 0 != (flag == "") {
			t.Errorf("with flag %q there are %d options of the host", flag, len(opts))
		}
		if _, err := os.Lstat(socket); (err == nil) != (flag != "") {
			t.Errorf("with flag %q the rules socket: %v", flag, err)
		}
		h, err := d.NewHost(conf.Config, opts...)
		if err != nil {
			t.Fatal(err)
		}
		dials := h.Network().(interface {
			TransportForDialing(multiaddr.Multiaddr) transport.Transport
		}).TransportForDialing(multiaddr.StringCast("/ip4/127.0.0.1/tcp/1"))
		if got := fmt.Sprintf("%T", dials); got != want {
			t.Errorf("with flag %q the host dials by %s, want %s", flag, got, want)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := off(); err != nil {
			t.Error(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	running := command(t, nil, "--path", dir, "daemon")
	running.Stdin = strings.NewReader(`{"blocked":["127.0.0.1:1"]}`)
	running.start()
	eventually(t, "it answers", func() bool { return at(t, dir, "id").code == 0 })
	if files, err := filepath.Glob(filepath.Join(dir, "*.sock")); err != nil || len(files) != 1 || filepath.Base(files[0]) != "api.sock" {
		t.Errorf("sockets of a daemon: %v, %v", files, err)
	}
	running.Process.Signal(os.Interrupt)
	if running.wait() != 0 {
		t.Errorf("exit %d, %s", running.code, running.err.String())
	}
	if help := command(t, nil, "daemon", "--help").start(); help.wait() != 0 || strings.Contains(help.out.String(), "wire") {
		t.Errorf("the help tells of the flag: %s", help.out.String())
	}
}

func TestTheHiddenFlagNeedsRulesFirst(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if _, _, err := node.InitDir(dir, node.InitOptions{Profile: config.Test}); err != nil {
		t.Fatal(err)
	}
	for _, rules := range []string{"", "x", `{"blocked":["somewhere"]}`, `{"latency_ns":-1}`} {
		p := command(t, nil, "--path", dir, "daemon", "--testnet-wire", filepath.Join(dir, "wire.sock"))
		p.Stdin = strings.NewReader(rules)
		p.start().wait()
		expect(t, p, exitFailure, "--testnet-wire, which is for testnets")
	}
	d, _ := startDaemon(t, dir, nil) // and costs the founder nothing
	d.Process.Kill()
}
