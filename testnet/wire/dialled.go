package wire

import (
	"net/netip"
	"time"
)

// dialled is a connection that this wire's owner has dialled, which rules apply to.
type dialled struct {
	*conn
	address netip.AddrPort
	in      inbound
	out     outbound
}

func newDialled(c *conn, address netip.AddrPort) *dialled {
	d := &dialled{conn: c, address: address}
	d.in.init(c, c.Conn.SetReadDeadline)
	d.out.init(c, c.Conn.SetWriteDeadline)
	return d
}

func (d *dialled) apply(r rule) {
	d.in.apply(r, d.in.pump)
	d.out.apply(r, d.out.pump)
}

// wake lets everybody who waits see that the wire is cut.
func (d *dialled) wake() {
	d.in.wake()
	d.out.wake()
}

func (d *dialled) Read(b []byte) (int, error)  { return d.in.read(b) }
func (d *dialled) Write(b []byte) (int, error) { return d.out.write(b) }

// Close ends the owner's calls at once. The other end sees it when it would see it: after the latency, and after what was
// written before; not while it is blocked.
func (d *dialled) Close() error {
	d.in.close()
	later, err := d.out.close()
	if later || err != nil {
		return err
	}
	return d.conn.Close()
}

func (d *dialled) SetReadDeadline(t time.Time) error  { return d.in.setDeadline(t) }
func (d *dialled) SetWriteDeadline(t time.Time) error { return d.out.setDeadline(t) }

func (d *dialled) SetDeadline(t time.Time) error {
	if err := d.in.setDeadline(t); err != nil {
		return err
	}
	return d.out.setDeadline(t)
}
