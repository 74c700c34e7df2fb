package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

	"latchkey/internal/footprint"
	"latchkey/node"
	"latchkey/node/api"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

func daemonVerb(a *app) *cobra.Command {
	var o daemonOptions
	c := &cobra.Command{
		Use:   "daemon",
		Short: "run the peer of --path in the foreground",
		Long: `daemon runs the peer in the foreground and answers the other verbs on a unix socket that only this user may open.
When it serves, it prints a line that starts with READY, and tells systemd so. While it knows no other peer of its
overlay, it says on stderr what became of the bootstrap peers it tried, each new finding once.

It runs as config.yaml in --path says, unless the environment or a flag says otherwise (see "latchkey config --help").

Replicas are in the directory "store" in --path, each promise on the disk before it is given: however the daemon ends,
its next start goes on where it was. When the disk fails or is full, the daemon says so and stops. Special cases:
  --volatile   replicas in memory, which end with the daemon: its groups then lose a member for good. Not for the peer
               that founded the overlay, nor where there is a store already. Also store.volatile in the configuration
  --moved      for one start after --path was moved to another disk or machine, which looks like a copy and is refused
               by itself. Only if the original has not run since and never will again: else one member of a group would
               be in two places, and granted locks could be lost
  --restored   for one start after --path was put back from a backup, or when in doubt, and only when the original never
               runs again: the store gets a new id, its replicas are put aside, and the peer takes part in groups anew.
               Never for the only founder of an overlay

INT, TERM and "latchkey shutdown" stop it gracefully; a second signal, half a second later or more, stops it at once.
Locks taken through it are never released by its end: their leases run out.`,
		Example: `  latchkey daemon
  latchkey daemon --listen /ip4/0.0.0.0/tcp/4701
  latchkey daemon --metrics :9464 # then curl http://127.0.0.1:9464/metrics
  latchkey daemon --pprof         # then curl --unix-socket ~/.latchkey/api.sock http://latchkey/debug/pprof/heap >heap
  latchkey daemon --init --init-profile server`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			for flag, addrs := range map[string][]string{"listen": o.listen, "bootstrap": o.bootstrap} {
				for _, addr := range addrs {
					if _, err := multiaddr.NewMultiaddr(addr); err != nil {
						return usagef("daemon: --%s %s: want a multiaddr like /ip4/192.0.2.1/tcp/4701: %v", flag, addr, err)
					}
				}
			}
			if o.profile != "" && !o.init {
				return usagef("daemon: --init-profile: it goes with --init; a peer that exists has its profile in its configuration")
			}
			switch {
			case o.volatile && (o.restored || o.moved):
				return usagef("daemon: --volatile and --restored or --moved exclude each other: one has no store, the others are about one")
			case o.restored && o.moved:
				return usagef("daemon: --restored and --moved exclude each other: with --moved the original has not run since, with --restored it may have")
			}
			o.flags = map[string]any{}
			if c.Flags().Changed("volatile") {
				o.flags["store.volatile"] = o.volatile
			}
			if c.Flags().Changed("api-listen") {
				o.flags["api.listen"] = o.apiListen
			}
			if c.Flags().Changed("pprof") {
				o.flags["api.pprof"] = o.pprof
			}
			if c.Flags().Changed("metrics") {
				o.flags["metrics.listen"] = o.metrics
			}
			return a.daemon(c.Context(), o)
		},
	}
	listenFlag(c, &o.listen, "as the configuration says")
	c.Flags().StringArrayVar(&o.bootstrap, "bootstrap", nil, "multiaddr with /p2p/ID of a peer to dial while nobody is known; repeatable (default: as the configuration says)")
	c.Flags().BoolVar(&o.init, "init", false, "if there is no peer in --path yet, make one and a new overlay first, with --listen in its configuration")
	c.Flags().StringVar((*string)(&o.profile), "init-profile", "", "profile for --init (default private)")
	c.Flags().BoolVar(&o.volatile, "volatile", false, "keep replicas in memory (store.volatile)")
	c.Flags().StringVar(&o.metrics, "metrics", "", "HOST:PORT at which to answer Prometheus, at /metrics, and supervisors, at /healthz and /readyz; without HOST on the loopback (metrics.listen; default none: nowhere)")
	c.Flags().StringVar(&o.apiListen, "api-listen", "", "HOST:PORT at which to answer clients that have a token, beside the unix socket; without HOST on the loopback (api.listen; default none)")
	c.Flags().BoolVar(&o.pprof, "pprof", false, "answer net/http/pprof under /debug/pprof/, on the unix socket and to tokens for admin (api.pprof)")
	c.Flags().BoolVar(&o.restored, "restored", false, "the store is a copy whose original never runs again: give it a new id")
	c.Flags().BoolVar(&o.moved, "moved", false, "the store was moved here, and its original has not run since and never will")
	o.wireSocket = wireFlag(c)
	return c
}

// daemonOptions are the flags of daemon.
type daemonOptions struct {
	listen, bootstrap []string
	init              bool
	profile           config.Profile
	volatile          bool
	metrics           string
	pprof             bool
	apiListen         string
	restored, moved   bool
	flags             map[string]any // configuration fields that other flags set
	wireSocket        *string        // empty but in testnets ([onWire])
}

// openDir opens the peer's directory, and makes it first where that was asked for.
func (a *app) openDir(o daemonOptions) (*node.Dir, error) {
	dir, err := node.OpenDir(a.path)
	if !o.init || !errors.Is(err, node.ErrNotInitialised) && !errors.Is(err, node.ErrUnfinished) {
		return dir, err
	}
	g, id, err := node.InitDir(a.path, node.InitOptions{Profile: o.profile, Listen: o.listen})
	if errors.Is(err, config.ErrInvalid) {
		return nil, usagef("daemon: --init: %w", err)
	} else if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.err, "latchkey: note: made peer %s and overlay %s in %s\n", id, g.ID().Hex(), a.path)
	if o.profile == config.Public {
		fmt.Fprint(a.err, trustInPublic)
	}
	return node.OpenDir(a.path)
}

// config is what the daemon runs with.
func (o daemonOptions) config(dir *node.Dir) (config.Config, error) {
	flags := map[string]any{}
	maps.Copy(flags, o.flags)
	if len(o.listen) > 0 {
		flags["network.listen"] = o.listen
	}
	if len(o.bootstrap) > 0 {
		flags["network.bootstrap"] = o.bootstrap
	}
	c, err := dir.LoadConfig(os.Environ(), flags)
	if errors.Is(err, config.ErrInvalid) && len(flags) > 0 {
		if _, without := dir.LoadConfig(os.Environ(), nil); without == nil {
			return config.Config{}, usagef("daemon: %w", err)
		}
	}
	return c.Config, err
}

// daemon runs the peer until it is told to stop.
func (a *app) daemon(ctx context.Context, o daemonOptions) (err error) {
	ctx, release := interruptible(ctx)
	defer release()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	dir, err := a.openDir(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	conf, err := o.config(dir)
	if err != nil {
		return err
	}
	socket, err := api.Listen(a.socket())
	if err != nil {
		return err
	}
	defer socket.Close()
	tcp, guard, err := a.listenTCP(conf.API)
	if err != nil {
		return err
	}
	if tcp != nil {
		defer tcp.Close()
	}
	if o.restored {
		if err := a.restore(dir); err != nil {
			return err
		}
	}
	if o.moved {
		if err := dir.Adopt(); err != nil {
			return fmt.Errorf("daemon: --moved: %w", err)
		}
	}
	hostOpts, offWire, err := onWire(*o.wireSocket, os.Stdin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, offWire()) }()
	var opts []node.Option
	if *o.wireSocket != "" {
		opts = append(opts, node.WithPlanTimes(placement.TestnetPlanTimes()))
	}
	n, host, err := dir.Run(ctx, conf, hostOpts, opts...)
	if err != nil {
		return err
	}
	server, err := api.NewServer(api.Config{
		Node: n, Locks: n.NewLockBackend(), Objects: n.NewAPIObjects(), Durables: n.NewAPIDurables(), Version: buildVersion(),
		Shutdown: func() { stop(errShutdown) }, Pprof: conf.API.Pprof,
	})
	if err != nil {
		return errors.Join(err, n.Close(), host.Close())
	}
	go footprint.Keep(ctx)
	served := make(chan error, 2)
	go func() { served <- server.Serve(socket) }()
	apiTCP := ""
	if tcp != nil {
		apiTCP = tcp.Addr().String()
		go func() { served <- server.ServeTCP(tcp, guard) }()
	}
	metrics, noMetrics := "", func() error { return nil }
	if conf.Metrics.Listen != config.NoMetrics {
		m, listenErr := n.ServeMetrics(conf.Metrics.Listen)
		if listenErr != nil {
			stop(nil)
			return errors.Join(fmt.Errorf("daemon: metrics.listen: %w", listenErr), n.Close(), host.Close(), dir.Close(), server.Close())
		}
		metrics, noMetrics = m.Addr().String(), m.Close
	}
	var explaining sync.WaitGroup
	if *o.wireSocket == "" { // a testnet's divisions are meant, and silent
		explaining.Go(func() { n.ExplainSolitude(ctx, dir.SwarmKey()) })
	}
	leaves := false
	if err = a.ready(n.Info(), absolute(socket.Addr().String()), metrics, apiTCP); err == nil {
		select {
		case <-ctx.Done():
			leaves = true
		case <-n.Done():
			err = n.Err()
		case err = <-served:
		}
	}
	notify("STOPPING=1")
	server.Drain()
	if leaves {
		if left := n.Leave(context.WithoutCancel(ctx)); left != nil {
			fmt.Fprintf(a.err, "latchkey: note: %v; start it again, or they do without it\n", left)
		}
	}
	stop(nil)
	explaining.Wait()
	// The socket goes last: when it has gone, so has everything else, and the directory is free.
	return errors.Join(err, noMetrics(), n.Close(), host.Close(), dir.Close(), server.Close())
}

// listenTCP listens for clients that have a token, where the configuration says so.
func (a *app) listenTCP(c config.API) (net.Listener, api.GuardConfig, error) {
	guard := api.GuardConfig{Tokens: a.tokensFile(), Hosts: c.Hosts}
	if c.Listen == config.NoAPI {
		return nil, guard, nil
	}
	if c.TLSCert != config.NoAPI {
		cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return nil, guard, fmt.Errorf("daemon: api.tls_cert, api.tls_key: %w", err)
		}
		guard.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if _, err := api.ReadTokens(guard.Tokens); err != nil {
		return nil, guard, err
	}
	addr := c.Listen
	if strings.HasPrefix(addr, ":") {
		addr = "127.0.0.1" + addr
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, guard, fmt.Errorf("daemon: api.listen: %w", err)
	}
	return l, guard, nil
}

// restore gives the store of a directory that was copied a new id, and says so.
func (a *app) restore(dir *node.Dir) error {
	id, err := dir.Reidentify()
	if err != nil {
		return fmt.Errorf("daemon: --restored: %w", err)
	}
	fmt.Fprintf(a.err, "latchkey: note: the store has the new id %s; its former replicas are put aside, and this peer takes part in groups anew. "+
		"Leave --restored out from now on\n", id)
	return nil
}

// errShutdown is why a daemon stops that a client asked to.
var errShutdown = errors.New("shutdown")

// ready tells those who wait for it that the daemon serves.
func (a *app) ready(i api.Info, socket, metrics, apiTCP string) error {
	v := struct {
		Ready   bool     `json:"ready"`
		Peer    string   `json:"peer"`
		API     string   `json:"api"`
		Addrs   []string `json:"addrs"`
		Metrics string   `json:"metrics,omitempty"` // HOST:PORT
		APITCP  string   `json:"api_tcp,omitempty"` // HOST:PORT
	}{true, i.Peer, socket, i.Addrs, metrics, apiTCP}
	line := fmt.Sprintf("READY peer=%s api=%s listen=%s", v.Peer, v.API, strings.Join(v.Addrs, ","))
	if metrics != "" {
		line += " metrics=" + metrics
	}
	if apiTCP != "" {
		line += " api-tcp=" + apiTCP
	}
	// A running daemon's one document is this line, in json as in jsonl.
	p := a.printer
	if p.format == formatJSON {
		p.format = formatJSONL
	}
	if err := p.event(v, line); err != nil {
		return fmt.Errorf("daemon: cannot print the READY line: %w", err)
	}
	return notify("READY=1")
}

// notify tells the service manager how we are, when there is one (sd_notify(3)).
func notify(state string) error {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", addr) // a leading @ is an abstract name, to Go as to systemd
	if err == nil {
		_, err = conn.Write([]byte(state))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		return fmt.Errorf("daemon: cannot notify the service manager at NOTIFY_SOCKET: %w", err)
	}
	return nil
}
