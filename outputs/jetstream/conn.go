package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"spillway/outputs"
)

// link is one nats.go connection and what its callbacks told about it. nats.go
// holds its lock while it dials and while it writes to a socket, so nothing asks
// the connection itself how it is: the link knows.
type link struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	dial *dialer
	log  *slog.Logger
	// unmet is called with the first failure, unless a connection was made before.
	unmet func(error)

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every change below
	up      bool
	down    error            // why it is not up, nil while it is
	closed  bool             // nats.go gave up; the link is of no more use
	met     bool             // it was up, or unmet was called
	cluster bool             // the server belongs to one, as of the last connect
	payload int64            // the server's max_payload, as of the last connect
	denied  map[string]error // subject → the server's refusal to let us publish there
	noInbox error            // the server's refusal to let us receive acknowledgements
}

// errConnecting is the state of a link whose attempt to connect has not ended.
var errConnecting = errors.New("connecting")

// connect returns a link that connects in the background, for ever, with pauses.
// It waits for nothing.
func connect(c *Config, security []nats.Option, name, inbox string, log *slog.Logger, unmet func(error)) (*link, error) {
	l := &link{log: log, unmet: unmet, changed: make(chan struct{}), down: errConnecting, denied: map[string]error{}}
	l.dial = newDialer(c.ConnectTimeout, c.AckTimeout, 1+strings.Count(c.Servers, ","))
	var conn atomic.Pointer[nats.Conn] // l.nc for the callback that may run before Connect returned
	began := false                     // used by nats.go's reconnecting goroutine alone
	o := append(slices.Clone(security),
		nats.Name(name),
		nats.SetCustomDialer(l.dial), nats.SkipHostLookup(), // the dialer looks up, within its deadline
		nats.Timeout(c.ConnectTimeout),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		// Without this the same refusal, twice, ends the connection for ever; but
		// credentials are replaced while the agent runs.
		nats.IgnoreAuthErrorAbort(),
		// What can't be sent now is not sent: the agent's buffer is on disk, a second
		// one in memory would only lose what it holds.
		nats.ReconnectBufSize(-1),
		nats.FlusherTimeout(0), // writes have their own deadline, see wire
		nats.ReconnectOnFlusherError(),
		nats.PingInterval(c.PingInterval), nats.MaxPingsOutstanding(2),
		nats.CustomInboxPrefix(inbox),
		nats.NoCallbacksAfterClientClose(),
		nats.CustomReconnectDelay(func(passes int) time.Duration {
			// Called when all servers were tried in vain, without nats.go's lock. Only here
			// can a failed handshake be learnt; failed dials come to ReconnectErrHandler.
			if nc := conn.Load(); nc != nil {
				// At first it is that of Connect's own attempts, which made none.
				if err := nc.LastError(); err != nil && !errors.Is(err, errNotYet) && !errors.Is(err, nats.ErrNoServers) {
					l.failed(err)
				}
			}
			if !began {
				began = true
				return 0 // for the first attempt, which Connect did not make
			}
			return backoff(passes, c.ReconnectMin, c.ReconnectMax)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if !errors.Is(err, errNotYet) {
				l.failed(err)
			}
		}),
		nats.ConnectHandler(l.connected),
		nats.ReconnectHandler(l.connected),
		nats.DisconnectErrHandler(l.disconnected),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { l.asyncError(err) }),
		nats.ClosedHandler(func(nc *nats.Conn) {
			err := nc.LastError()
			l.change(func() { l.up, l.closed, l.down = false, true, errors.Join(nats.ErrConnectionClosed, err) })
		}),
	)
	if c.IgnoreDiscovered {
		o = append(o, nats.IgnoreDiscoveredServers())
	}
	nc, err := nats.Connect(c.Servers, o...)
	if err != nil {
		return nil, err
	}
	conn.Store(nc)
	l.nc = nc
	// The library's own deadline only sweeps up what this package gave up on: every
	// batch of a full window may take AckTimeout.
	l.js, err = jetstream.New(nc, jetstream.WithPublishAsyncTimeout(time.Duration(c.MaxInflight+1)*c.AckTimeout))
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// backoff is the pause before pass number n over all servers: doubling, half of it
// by chance, so that the agents of a fleet do not come back in step.
func backoff(n int, least, most time.Duration) time.Duration {
	d := least
	for ; n > 1 && d < most; n-- {
		d *= 2
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1)
}

// change runs f under the lock and wakes all that wait.
func (l *link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) connected(nc *nats.Conn) {
	payload, cluster := nc.MaxPayload(), nc.ConnectedClusterName() != ""
	l.change(func() {
		l.up, l.met, l.down, l.payload, l.cluster, l.noInbox = true, true, nil, payload, cluster, nil
		clear(l.denied)
	})
	l.log.Info("connected", "server", redacted(nc.ConnectedUrl()), "version", nc.ConnectedServerVersion(), "max_payload", payload)
}

func (l *link) disconnected(_ *nats.Conn, err error) {
	if err == nil {
		err = nats.ErrDisconnected
	}
	l.change(func() { l.up, l.down = false, err })
	if l.dial.ctx.Err() != nil {
		return // closed by us
	}
	l.log.Warn("connection lost; reconnecting", "error", err)
}

// failed notes why an attempt to connect failed.
func (l *link) failed(err error) {
	first := false
	l.change(func() {
		if !l.up {
			l.down = err
		}
		first, l.met = !l.met, true
	})
	if first && l.dial.ctx.Err() == nil { // not closed by us
		l.unmet(err)
		return
	}
	l.log.Debug("connect failed", "error", err)
}

// asyncError takes what the server said about no request in particular. That a
// publish is not permitted comes here and nowhere else; its subject is in the
// text alone: `Permissions Violation for Publish to "logs.a"`.
func (l *link) asyncError(err error) {
	switch {
	case !errors.Is(err, nats.ErrPermissionViolation):
		l.log.Debug("the server says", "error", err)
	case strings.Contains(strings.ToLower(err.Error()), "for subscription to "):
		l.change(func() { l.noInbox = fmt.Errorf("%w: %w", errNoInbox, err) })
	default:
		_, quoted, _ := strings.Cut(err.Error(), `"`)
		subject, _, _ := strings.Cut(quoted, `"`)
		l.change(func() { l.denied[subject] = fmt.Errorf("%w: %w", errDenied, err) })
	}
}

// refusal returns the server's word that nothing can be published on subject or
// acknowledged, nil when there is none, and what is closed when that may change.
func (l *link) refusal(subject string) (changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noInbox != nil {
		return l.changed, l.noInbox
	}
	return l.changed, l.denied[subject]
}

// ready waits until the link is up and returns its session. It forgets the refusals
// of earlier attempts: this one finds out anew. It waits no longer than ctx,
// patience, or until it is known that waiting does not help.
func (l *link) ready(ctx context.Context, subject string, patience time.Duration) (session, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		l.mu.Lock()
		if l.noInbox != nil {
			// Only a new connection subscribes again.
			l.up, l.down, l.noInbox = false, errConnecting, nil
			l.dial.cut()
		}
		delete(l.denied, subject)
		up, down, closed, changed := l.up, l.down, l.closed, l.changed
		l.mu.Unlock()
		if up {
			return l.session(), nil
		}
		if closed || classify(down).action != outputs.Retry {
			return session{}, &notSent{fmt.Errorf("not connected: %w", down)}
		}
		select {
		case <-changed:
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		return session{}, &notSent{fmt.Errorf("not connected: %w", down)}
	}
}

// nor adds to err, the end of a wait for an answer, why there is no connection over
// which it could come.
func (l *link) nor(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up || l.down == nil {
		return err
	}
	return fmt.Errorf("%w; not connected: %v", err, l.down) // err alone says what follows
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// notSent is why a batch was not even sent.
type notSent struct{ cause error }

func (e *notSent) Error() string { return e.cause.Error() }
func (e *notSent) Unwrap() error { return e.cause }

// close ends the connection. Nothing is in flight, so nothing is flushed.
func (l *link) close() {
	l.dial.close()
	if l.nc != nil {
		l.nc.Close()
	}
}

// session is one connection of a link. nats.go reconnects by itself and would send
// over the next connection what was begun over the last one; a session does not.
type session struct {
	l    *link
	dial int // which connection of the link's dialer
}

// session returns the present one. Its connection may have ended.
func (l *link) session() session {
	l.dial.mu.Lock()
	defer l.dial.mu.Unlock()
	return session{l, l.dial.dials}
}

// ended reports whether there is a newer connection.
func (s session) ended() bool { return s.l.session() != s }

// dialer makes the connections of one link, and can cut them.
type dialer struct {
	d      net.Dialer
	stall  time.Duration
	ctx    context.Context // ends with close; nats.go passes none
	cancel context.CancelFunc

	read atomic.Int64 // bytes, of all connections

	mu sync.Mutex
	// guarded by mu
	skip    int // so many calls are answered with errNotYet
	last    net.Conn
	dials   int                   // connections that were tried
	sending map[*sending]struct{} // what nats.go is being handed
}

// sending is a message on its way into nats.go. As long as there is one, no
// connection is made: it goes to the one that was there when it began, or nowhere.
type sending struct{ ctx context.Context }

// errNotYet is the answer to nats.Connect's own attempts, one for each server. It
// would wait for a server that is silent; so it gets this, and nats.go's
// reconnecting begins at once, in the background. It is also the answer while
// something is being sent: nats.go holds its lock while it dials, so that waiting
// here would wait for ever.
var errNotYet = errors.New("not yet")

// maxUnsent is how far the kernel lets writes run ahead of what it has sent. It would
// take some MiB otherwise, and a slow line that needs longer for those than
// ACK_TIMEOUT would look like a server that does not answer.
const maxUnsent = 64 << 10

func limitUnsent(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
	}), err)
}

func newDialer(timeout, stall time.Duration, skip int) *dialer {
	d := &dialer{d: net.Dialer{Timeout: timeout, Control: limitUnsent}, stall: stall, skip: skip, sending: map[*sending]struct{}{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// begin notes a sending over connection number dial, until end. It is nil if there
// is a newer connection.
func (d *dialer) begin(ctx context.Context, dial int) *sending {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dials != dial {
		return nil
	}
	s := &sending{ctx}
	d.sending[s] = struct{}{}
	return s
}

func (d *dialer) end(s *sending) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sending, s)
}

// moved tells those who send that bytes went out. They were those of one of them,
// and the others wait behind it.
func (d *dialer) moved() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.sending {
		outputs.Moved(s.ctx)
	}
}

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	notYet := d.skip > 0 || len(d.sending) > 0
	d.skip--
	if !notYet {
		d.dials++
	}
	d.mu.Unlock()
	if notYet {
		return nil, errNotYet
	}
	c, err := d.d.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.last = c
	d.mu.Unlock()
	return &wire{Conn: c, d: d}, nil
}

// cut closes the newest connection. A write that hangs in it returns, and nats.go
// connects again.
func (d *dialer) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil {
		d.last.Close()
	}
}

func (d *dialer) close() {
	d.cancel()
	d.cut()
}

// wire is a connection whose writes may take as long as they move: each piece has
// a deadline of its own, so that a slow link can carry a large batch and a dead
// one is noticed. A write that fails ends the connection, since nobody knows how
// much of a message went out. But a server that ends it says why before that: if
// it is gone, writes go nowhere, and what reads gets its last words.
type wire struct {
	net.Conn
	d    *dialer
	gone atomic.Bool
}

const wirePiece = 32 << 10

func (w *wire) Write(p []byte) (n int, err error) {
	if w.gone.Load() {
		return len(p), nil
	}
	for n < len(p) && err == nil {
		var m int
		if err = w.Conn.SetWriteDeadline(time.Now().Add(w.d.stall)); err == nil {
			m, err = w.Conn.Write(p[n:min(n+wirePiece, len(p))])
			if n += m; m > 0 {
				w.d.moved()
			}
		}
	}
	switch {
	case errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET):
		w.gone.Store(true)
		return len(p), nil
	case err != nil:
		w.Conn.Close()
	}
	return n, err
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.d.read.Add(int64(n))
	return n, err
}
