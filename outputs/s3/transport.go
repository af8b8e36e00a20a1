package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/outputs"
)

// movedStep is how many bytes a connection takes between two calls of Moved.
const movedStep = 32 << 10

// maxUnsent is how far the kernel lets a body run ahead of what it has sent: what
// a connection "took" must be known to have left within a few seconds, or a slow
// link looks like a dead one as soon as the rest of the body is in the kernel's
// buffer (some MiB otherwise).
const maxUnsent = 128 << 10

var dialer = net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second,
	Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
		}), err)
	},
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn is a connection whose answers outlive its requests. A server that refuses an
// object, or has it, may say so and close while the body is still being written.
// The client of net/http ends a request at the first write that fails, and then
// the answer that has arrived is lost (half of the repeats of an object of 512 KiB
// ended so). So what can't be written any more goes nowhere, and reading tells.
type conn struct {
	net.Conn
	closed atomic.Bool // by the server
}

func (c *conn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return len(p), nil
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		c.closed.Store(true)
		return len(p), nil
	}
	return n, err
}

// transport says of requests how their bodies get on.
type transport struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r = r.WithContext(r.Context()) // a copy: the request is not ours to change
		r.Body = &movingBody{ReadCloser: r.Body, request: r}
	}
	return t.Transport.RoundTrip(r)
}

// movingBody calls Moved as the connection takes what was read of it.
type movingBody struct {
	io.ReadCloser
	request *http.Request
	read    int // bytes since the last call of Moved
}

func (b *movingBody) Read(p []byte) (n int, err error) {
	// One reads on when what was read before has been taken.
	if b.read >= movedStep {
		b.read = 0
		outputs.Moved(b.request.Context())
	}
	n, err = b.ReadCloser.Read(p)
	b.read += n
	return n, err
}
