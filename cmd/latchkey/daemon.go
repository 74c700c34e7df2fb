package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/api"
)

func daemonVerb(a *app) *cobra.Command {
	var listen []string
	var wireSocket *string
	c := &cobra.Command{
		Use:   "daemon",
		Short: "run the peer of --path in the foreground",
		Long: `daemon runs the peer in the foreground and answers the other verbs on a unix socket that only this user may open.
When it serves, it prints a line that starts with READY, and tells systemd so.

INT, TERM and "latchkey shutdown" stop it gracefully; a second signal stops it at once. Locks taken through it are
never released by its end: their leases run out.`,
		Example: `  latchkey daemon
  latchkey daemon --listen /ip4/127.0.0.1/tcp/4701`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			for _, addr := range listen {
				if _, err := multiaddr.NewMultiaddr(addr); err != nil {
					return usagef("daemon: --listen %s: want a multiaddr like /ip4/0.0.0.0/tcp/4701: %v", addr, err)
				}
			}
			return a.daemon(c.Context(), listen, *wireSocket)
		},
	}
	c.Flags().StringArrayVar(&listen, "listen", nil, "multiaddr to listen at, repeatable (default: as the configuration says)")
	wireSocket = wireFlag(c)
	return c
}

// daemon runs the peer until it is told to stop. wireSocket is empty but in testnets ([onWire]).
func (a *app) daemon(ctx context.Context, listen []string, wireSocket string) (err error) {
	ctx, release := interruptible(ctx)
	defer release()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	dir, err := node.OpenDir(a.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	flags := map[string]any{}
	if len(listen) > 0 {
		flags["network.listen"] = listen
	}
	conf, err := dir.LoadConfig(os.Environ(), flags)
	if err != nil {
		return err
	}
	// The socket comes before the node, whose first start consumes the founding record: trouble here must not cost that.
	socket, err := api.Listen(a.socket())
	if err != nil {
		return err
	}
	defer socket.Close()
	hostOpts, offWire, err := onWire(wireSocket, os.Stdin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, offWire()) }()
	n, host, err := dir.Run(ctx, conf.Config, hostOpts)
	if err != nil {
		return err
	}
	server, err := api.NewServer(api.Config{
		Node: n, Locks: n.NewLockBackend(), Version: buildVersion(),
		Shutdown: func() { stop(errShutdown) },
	})
	if err != nil {
		return errors.Join(err, n.Close(), host.Close())
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	if err = a.ready(n.Info(), absolute(socket.Addr().String())); err == nil {
		select {
		case <-ctx.Done():
		case <-n.Done():
			err = n.Err()
		case err = <-served:
		}
	}
	notify("STOPPING=1")
	server.Drain()
	// The socket goes last: when it has gone, so has everything else, and the directory is free.
	return errors.Join(err, n.Close(), host.Close(), dir.Close(), server.Close())
}

// errShutdown is why a daemon stops that a client asked to.
var errShutdown = errors.New("shutdown")

// ready tells those who wait for it that the daemon serves.
func (a *app) ready(i api.Info, socket string) error {
	v := struct {
		Ready bool     `json:"ready"`
		Peer  string   `json:"peer"`
		API   string   `json:"api"`
		Addrs []string `json:"addrs"`
	}{true, i.Peer, socket, i.Addrs}
	line := fmt.Sprintf("READY peer=%s api=%s listen=%s", v.Peer, v.API, strings.Join(v.Addrs, ","))
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
