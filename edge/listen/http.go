package listen

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"spillway/framing"
)

const (
	// DefaultStoreTimeout is how long a request waits for the disk.
	DefaultStoreTimeout = 2 * time.Second

	headerTime  = 10 * time.Second // for the header of a request
	bodyTime    = 30 * time.Second // for its body, and a second more for each bodyPace bytes
	bodyPace    = 64 << 10
	headerBytes = 16 << 10
	retryAfter  = time.Second
	storePiece  = 1 << 20 // of the messages of a large body: as much is handed over at a time
)

// ErrFull is what Storer.Store returns when there is no room. Nothing of what was to be
// handed over is stored, then or later.
var ErrFull = errors.New("no room in the buffer")

// ErrTooLarge is what Storer.Store returns when the record of a message would be too
// large to hold all of it. Nothing of what was to be handed over is stored.
var ErrTooLarge = errors.New("too large for a record")

// Storer is a Sink whose records can be waited for.
type Storer interface {
	Sink

	// Store hands over what Message took. The channel yields one value once all of it is
	// as durable as the sync policy says (nil), or lost; nobody need read it. The disk is
	// not kept waiting for more: what somebody waits for is written at once, or with all
	// that came meanwhile if a write is under way.
	//
	// What can't be stored whole is not stored at all, which Store says with ErrTooLarge.
	// It never waits for room in the buffer, which it says with ErrFull, but while the
	// disk is behind for as long as ctx lasts. The sink may be used again when it returns.
	Store(ctx context.Context) (durable <-chan error, err error)
}

// HTTPOptions configure an HTTPServer.
type HTTPOptions struct {
	Name     string // of the input
	Variable string // what the names of the input's variables begin with, for messages: SPILLWAY_INPUT_HOOK_

	Address string      // host:port ("localhost" is both loopback addresses)
	Path    string      // of the requests that are taken, no other; "": /
	TLS     *TLSOptions // nil: plain

	// Token returns what requests must carry as "Authorization: Bearer TOKEN". It is
	// called by ListenHTTP and by Reload; an empty one is an error. Nil: none is asked for.
	Token func() ([]byte, error)

	MaxMessageSize int            // largest body in bytes, once it is unpacked; 0: framing's default
	MaxConnections int            // 0: no limit
	StoreTimeout   time.Duration  // 0: DefaultStoreTimeout
	KeepAlive      time.Duration  // between two probes of a silent connection; 0: none
	Allow          []netip.Prefix // of senders; none: all
	Memory         *Memory        // of the lane, bounds the bodies that are being read; nil: no limit

	// IdleTimeout ends a connection between two requests; 0: never. Below 90s, after
	// which Go's client gives up its own, a sender may write to one that is about to be
	// closed, and its request fails.
	IdleTimeout time.Duration

	// Open returns a sink. Requests share a few, each for the moment in which its
	// messages are handed over.
	Open func() Storer
	Log  *slog.Logger
}

// HTTPStats counts requests. Each is in Requests once its header has been read, and in
// one of the others once it has been answered.
type HTTPStats struct {
	Requests     atomic.Int64
	Stored       atomic.Int64 // 204: durable
	Full         atomic.Int64 // 503: no room in the buffer, or for the body in memory
	Late         atomic.Int64 // 503: not durable within StoreTimeout
	Stopped      atomic.Int64 // 503: the agent was stopping
	TooLarge     atomic.Int64 // 413
	Unauthorized atomic.Int64 // 401
	Slow         atomic.Int64 // 408: the body did not come in time
	Invalid      atomic.Int64 // all other 4xx
	Gone         atomic.Int64 // the sender went away, or broke off
	Panics       atomic.Int64 // 500: a defect of the agent
}

// HTTPServer is the sockets of one input that takes requests (RFC 9110): POST or PUT
// to one path, a body is one message, or with the type application/x-ndjson one a
// line. It answers
//
//	204  all of it is durable
//	503  no room (Retry-After says when to try again), or not durable in time
//	413  larger than MaxMessageSize: nothing is ever truncated, the sender is told
//	401  without the token; and 4xx for what is no such request
//
// and answers soon whatever happens: OpenBao's http audit device waits without end and
// holds everybody up while it does. It speaks HTTP/1.1 only, which TLS clients that know
// HTTP/2 too are content with: a request a connection at a time is what its senders have.
type HTTPServer struct {
	Stats    *Stats // of connections; bytes are those of bodies, unpacked
	Requests HTTPStats

	o     HTTPOptions
	s     *Server // of the connections up to their first byte, or handshake
	token atomic.Pointer[[sha256.Size]byte]

	hard                 context.Context // Serve's
	headerTime, bodyTime time.Duration   // the constants, and less in tests
	stopTime             time.Duration   // for running requests at the stop

	mu       sync.Mutex
	greeting map[*conn]struct{}     // those that s has, guarded by mu
	mute     map[net.Conn]time.Time // those that net/http waits for a request of, and since when the last has ended; guarded by mu
	ended    bool                   // no handler may begin, guarded by mu
	handlers sync.WaitGroup
}

// ListenHTTP opens the sockets. It starts no goroutine. Its errors begin with the
// variable that they are about.
func ListenHTTP(o HTTPOptions) (*HTTPServer, error) {
	if o.Path == "" {
		o.Path = "/"
	}
	if o.StoreTimeout <= 0 {
		o.StoreTimeout = DefaultStoreTimeout
	}
	if o.MaxMessageSize <= 0 {
		o.MaxMessageSize = framing.DefaultMaxMessageSize
	}
	h := &HTTPServer{o: o, headerTime: headerTime, bodyTime: bodyTime, stopTime: o.StoreTimeout + drainTime, greeting: map[*conn]struct{}{}, mute: map[net.Conn]time.Time{}}
	token, err := h.readToken()
	if err != nil {
		return nil, err
	}
	h.token.Store(token)
	s, err := Listen(Options{
		Name: o.Name, Variable: o.Variable, Network: "tcp", Address: o.Address, TLS: o.TLS, MaxConnections: o.MaxConnections,
		IdleTimeout: o.IdleTimeout, KeepAlive: o.KeepAlive, Allow: o.Allow, Open: func() Sink { return o.Open() }, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	h.s, h.Stats = s, &s.Stats
	return h, nil
}

// Addrs are the bound addresses.
func (h *HTTPServer) Addrs() []net.Addr { return h.s.Addrs() }

// Close closes the listening sockets; Serve does it too when it ends.
func (h *HTTPServer) Close() { h.s.Close() }

// Reload reads the token and the TLS files again. On an error the old ones stay, all of
// them. It may be called at any time.
func (h *HTTPServer) Reload() error {
	token, err := h.readToken()
	if err == nil {
		err = h.s.Reload()
	}
	if err == nil {
		h.token.Store(token)
	}
	return err
}

// readToken returns the hash of the token; nil: none is asked for.
func (h *HTTPServer) readToken() (*[sha256.Size]byte, error) {
	if h.o.Token == nil {
		return nil, nil
	}
	t, err := h.o.Token()
	switch {
	case err != nil:
	case len(t) == 0:
		err = errors.New("empty: anybody could send: give a token, or do not set it")
	case len(bytes.TrimSpace(t)) != len(t):
		err = errors.New("begins or ends with a blank, which no header can: remove that")
	case bytes.ContainsFunc(t, unicode.IsControl):
		err = errors.New("has a character in it that no header can have: give another")
	}
	if err != nil {
		return nil, fmt.Errorf("%sTOKEN: %w", h.o.Variable, err)
	}
	sum := sha256.Sum256(t)
	return &sum, nil
}

// Serve takes requests until ctx ends; then it accepts no more, lets running requests
// end, for a little longer than StoreTimeout, and returns. hard ends all waiting.
func (h *HTTPServer) Serve(ctx, hard context.Context) {
	s := h.s
	h.hard = hard
	q := &queue{ready: make(chan *httpConn), closed: make(chan struct{}), addr: s.Addrs()[0]}
	srv := &http.Server{
		Handler: h, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: h.headerTime, IdleTimeout: h.o.IdleTimeout, MaxHeaderBytes: headerBytes,
		BaseContext: func(net.Listener) context.Context { return hard },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, q.last) // the one that Accept has just returned
		},
		ConnState: h.state,
		ErrorLog:  slog.NewLogLogger(h.o.Log.Handler(), slog.LevelDebug),
	}
	var accepting, open sync.WaitGroup
	for _, k := range s.sockets {
		accepting.Go(func() { h.accept(ctx, k, q, &open) })
	}
	serving := make(chan struct{})
	go func() { srv.Serve(q); close(serving) }()

	<-ctx.Done()
	s.Close()
	accepting.Wait()
	h.mu.Lock()
	for c := range h.greeting {
		c.kick()
	}
	h.mu.Unlock()
	stop, cancel := context.WithTimeout(hard, h.stopTime)
	look := time.AfterFunc(lastLook, h.hangUp)
	if err := srv.Shutdown(stop); err != nil {
		h.o.Log.Warn("requests that had not ended at the stop are broken off", "input", h.o.Name, "connections", s.Stats.Open.Load())
	}
	look.Stop()
	cancel()
	srv.Close()
	<-serving
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.handlers.Wait()
	open.Wait()
	s.turns.close()
}

// state is told of the connections that net/http has.
func (h *HTTPServer) state(c net.Conn, state http.ConnState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	since := h.mute[c]
	delete(h.mute, c)
	switch state {
	case http.StateNew:
		h.mute[c] = time.Time{}
	case http.StateIdle:
		h.mute[c] = time.Now()
	case http.StateClosed:
		if limit := h.o.IdleTimeout; limit > 0 && !since.IsZero() && time.Since(since) >= limit {
			h.Stats.Idle.Add(1)
			h.o.Log.Debug("connection closed: idle", "input", h.o.Name, "peer", c.RemoteAddr().String(), "for", limit)
		}
	}
}

// hangUp closes the connections without a request: the stop waits for all others.
func (h *HTTPServer) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.mute {
		go c.Close() // of TLS it writes
	}
}

// accept takes connections until its socket is closed.
func (h *HTTPServer) accept(ctx context.Context, k *socket, q *queue, open *sync.WaitGroup) {
	s, pause := h.s, time.Duration(0)
	for {
		c, err := k.l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			pause = s.acceptFailed(ctx, k, err, pause)
			continue
		}
		pause = 0
		s.Stats.Connections.Add(1)
		if conn := s.admit(c, k); conn != nil {
			open.Add(1)
			go h.greet(ctx, conn, q, open.Done)
		} else {
			turnAway(c)
		}
	}
}

// greet waits for the first byte, shakes hands, and hands the connection on.
func (h *HTTPServer) greet(ctx context.Context, c *conn, q *queue, done func()) {
	h.mu.Lock()
	h.greeting[c] = struct{}{}
	h.mu.Unlock()
	ok := h.s.greet(ctx, c)
	h.mu.Lock()
	delete(h.greeting, c)
	h.mu.Unlock()
	hc := &httpConn{TCPConn: c.Conn.(*net.TCPConn), c: c, gone: func() { h.s.gone(c); done() }}
	if !ok {
		hc.Close()
		return
	}
	c.Conn.SetDeadline(time.Time{})
	c.Conn, c.wait = hc, true // package tls goes through c to the socket
	select {
	case q.ready <- hc:
	case <-q.closed:
		hc.Close()
	}
}

// httpConn is a connection that net/http has.
type httpConn struct {
	*net.TCPConn
	c      *conn
	gone   func() // called once, when it is closed
	closed atomic.Bool
}

// Write gives up after writeTime: who sends and does not read must hold nobody.
func (c *httpConn) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(writeTime))
	return c.TCPConn.Write(b)
}

func (c *httpConn) Close() error {
	err := c.TCPConn.Close()
	if c.closed.CompareAndSwap(false, true) {
		c.gone()
	}
	return err
}

// queue is the listener of net/http: it yields connections that have been greeted.
type queue struct {
	ready  chan *httpConn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
	last   *conn // returned last; for the goroutine that calls Accept
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.ready:
		q.last = c.c
		if c.c.tls != nil {
			return c.c.tls, nil // which net/http must know as such
		}
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { q.once.Do(func() { close(q.closed) }); return nil }
func (q *queue) Addr() net.Addr { return q.addr }

// connKey is the key of a request's *conn.
type connKey struct{}

// begin notes that a handler runs. It returns false if Serve has ended.
func (h *HTTPServer) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.handlers.Add(1)
	}
	return !h.ended
}

// ServeHTTP takes one request. It is net/http's to call.
func (h *HTTPServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		panic(http.ErrAbortHandler) // ends the connection
	}
	defer h.handlers.Done()
	h.Requests.Requests.Add(1)
	defer func() {
		if p := recover(); p != nil {
			h.Requests.Panics.Add(1)
			h.o.Log.Error("a request made the agent fail; it goes on without it", "input", h.o.Name, "peer", r.RemoteAddr, "panic", p, "stack", string(debug.Stack()))
			answer(w, &problem{code: http.StatusInternalServerError, text: "the agent failed at this request: its log says where"})
		}
	}()
	if p := h.take(w, r); p != nil {
		if p.count.Add(1); p.tell != "" {
			if n, due := h.s.notices.due("http " + p.tell); due {
				h.o.Log.Warn("a request was refused: "+p.tell, "input", h.o.Name, "peer", r.RemoteAddr, "status", p.code, "times", n, "hint", p.hint)
			}
		}
		if w.Header().Get("Connection") != "" { // net/http reads a while on, so that the answer gets through
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime))
		}
		answer(w, p)
		return
	}
	h.Requests.Stored.Add(1)
	w.WriteHeader(http.StatusNoContent)
}

// problem is why a request is refused.
type problem struct {
	code  int
	text  string // for the sender
	count *atomic.Int64
	tell  string // for the log; "": nothing
	hint  string
}

// answer says in one line what is wrong.
func answer(w http.ResponseWriter, p *problem) {
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("X-Content-Type-Options", "nosniff")
	if p.code == http.StatusServiceUnavailable {
		head.Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	}
	w.WriteHeader(p.code)
	io.WriteString(w, p.text+"\n")
}

// take stores the messages of a request. It returns nil when they are durable.
func (h *HTTPServer) take(w http.ResponseWriter, r *http.Request) *problem {
	n := &h.Requests
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(h.bodyTime))
	// A connection whose body is not read to its end is of no more use.
	w.Header().Set("Connection", "close")
	switch {
	case r.URL.Path != h.o.Path:
		return &problem{code: http.StatusNotFound, text: "nothing here: send to " + h.o.Path, count: &n.Invalid,
			tell: "another path", hint: "send to " + h.o.Path + ", or set " + h.o.Variable + "URL"}
	case r.Method != http.MethodPost && r.Method != http.MethodPut:
		w.Header().Set("Allow", "POST, PUT")
		return &problem{code: http.StatusMethodNotAllowed, text: "use POST or PUT", count: &n.Invalid}
	case !h.authorized(r):
		w.Header().Set("WWW-Authenticate", "Bearer")
		return &problem{code: http.StatusUnauthorized, text: "no valid token: send the header Authorization: Bearer TOKEN", count: &n.Unauthorized,
			tell: "no valid token", hint: "give the sender the token of " + h.o.Variable + "TOKEN"}
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	body, p := h.read(r, control)
	if p != nil {
		h.o.Memory.free(cap(body))
		return p
	}
	control.SetReadDeadline(time.Time{})
	w.Header().Del("Connection")
	ctx, cancel := context.WithTimeout(r.Context(), h.o.StoreTimeout)
	defer cancel()
	waits, some, err := h.hand(ctx, r.Context().Value(connKey{}).(*conn).sender(), body, kind)
	for _, durable := range waits {
		if err != nil {
			break
		}
		select {
		case err = <-durable:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	switch {
	case err == nil && !some:
		return &problem{code: http.StatusBadRequest, text: "an empty body: send a message", count: &n.Invalid}
	case err == nil:
		return nil
	case h.hard.Err() != nil:
		return &problem{code: http.StatusServiceUnavailable, text: "the agent stops, and this may not be stored: send it again later", count: &n.Stopped}
	case r.Context().Err() != nil:
		return &problem{code: http.StatusServiceUnavailable, text: "you went away", count: &n.Gone} // and must not find a 200
	case errors.Is(err, ErrTooLarge):
		text := "a message is too large for a record once its control characters are escaped, nothing is stored"
		if len(waits) > 0 {
			text = "a message is too large for a record once its control characters are escaped, the messages before it may be stored"
		}
		return &problem{code: http.StatusRequestEntityTooLarge, text: text, count: &n.TooLarge,
			tell: "a message is too large for a record", hint: "have the sender send text, and less at a time"}
	case errors.Is(err, ErrFull) && len(waits) > 0:
		return &problem{code: http.StatusServiceUnavailable, text: "no room for all messages, the first of them may be stored: send them again later", count: &n.Full,
			tell: "no room in the buffer", hint: "see what the lane says"}
	case errors.Is(err, ErrFull):
		return &problem{code: http.StatusServiceUnavailable, text: "no room, nothing is stored: send it again later", count: &n.Full,
			tell: "no room in the buffer", hint: "see what the lane says"}
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{code: http.StatusServiceUnavailable, text: "not durable within " + h.o.StoreTimeout.String() + ", and it may be stored or not: send it again, which may store it twice",
			count: &n.Late, tell: "not durable in time", hint: "see to the disk that holds SPILLWAY_STATE_DIR, or raise " + h.o.Variable + "STORE_TIMEOUT"}
	default:
		return &problem{code: http.StatusServiceUnavailable, text: "it could not be stored: send it again later", count: &n.Stopped, tell: err.Error()}
	}
}

// authorized reports whether a request carries the token.
func (h *HTTPServer) authorized(r *http.Request) bool {
	want := h.token.Load()
	if want == nil {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token))) // of one length, so that the time says nothing
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// read reads the body, unpacked. What it returns counts in the lane's memory, also with
// a problem.
func (h *HTTPServer) read(r *http.Request, control *http.ResponseController) (body []byte, p *problem) {
	n, limit := &h.Requests, h.o.MaxMessageSize
	tooLarge := &problem{code: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("larger than %d bytes: send less at a time", limit), count: &n.TooLarge,
		tell: "the body is too large", hint: "raise " + h.o.Variable + "MAX_MESSAGE_SIZE, or have the sender send less at a time"}
	began := time.Now()
	src := io.Reader(r.Body)
	switch coding := strings.ToLower(r.Header.Get("Content-Encoding")); coding {
	case "", "identity":
		if r.ContentLength > int64(limit) {
			return nil, tooLarge
		}
	case "gzip", "x-gzip":
		src = &unpacker{src: r.Body}
	default:
		return nil, &problem{code: http.StatusUnsupportedMediaType, text: "unknown Content-Encoding: use gzip or none", count: &n.Invalid, tell: "unknown Content-Encoding", hint: "set the sender to gzip or none"}
	}
	for paced := 0; ; {
		if len(body) == cap(body) {
			// Memory follows what has come, never what is announced.
			size := min(max(2*cap(body), 4<<10), limit+1)
			if !h.o.Memory.take(size - cap(body)) {
				return body, &problem{code: http.StatusServiceUnavailable, text: "no memory for the body now: send it again later", count: &n.Full,
					tell: "the unfinished messages of the lane take all the memory they may", hint: "raise SPILLWAY_MESSAGE_MEMORY, of which bodies may take half, or lower " + h.o.Variable + "MAX_MESSAGE_SIZE"}
			}
			body = append(make([]byte, 0, size), body...)
		}
		got, err := src.Read(body[len(body):cap(body)])
		h.Stats.Bytes.Add(int64(got))
		body = body[:len(body)+got]
		switch {
		case len(body) > limit:
			return body, tooLarge
		case err == io.EOF:
			return body, nil
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return body, &problem{code: http.StatusRequestTimeout, text: "the body did not come in time: send it again", count: &n.Slow, tell: "a body did not come in time", hint: "see to the network, or to the sender"}
		case errors.Is(err, errGzip):
			return body, &problem{code: http.StatusBadRequest, text: "no valid gzip, as Content-Encoding says it is", count: &n.Invalid, tell: "a body is no valid gzip"}
		default:
			return body, &problem{code: http.StatusBadRequest, text: "the body broke off: send it again", count: &n.Gone}
		}
		if len(body)-paced >= bodyPace {
			paced = len(body)
			control.SetReadDeadline(began.Add(h.bodyTime + time.Duration(paced/bodyPace)*time.Second))
		}
	}
}

// errGzip is what an unpacker's errors are that are not its source's.
var errGzip = errors.New("gzip")

// unpacker unpacks gzip (RFC 1952). It reads nothing before it is read.
type unpacker struct {
	src io.Reader
	err error // of src
	z   *gzip.Reader
}

func (u *unpacker) Read(b []byte) (n int, err error) {
	if u.z == nil {
		u.z, err = gzip.NewReader((*source)(u))
	}
	if err == nil {
		n, err = u.z.Read(b)
	}
	switch {
	case err == nil || err == io.EOF && u.z != nil:
		return n, err
	case u.err != nil && u.err != io.EOF:
		return n, u.err
	}
	return n, fmt.Errorf("%w: %w", errGzip, err)
}

// source is what an unpacker reads; it remembers the error.
type source unpacker

func (s *source) Read(b []byte) (int, error) {
	n, err := s.src.Read(b)
	if err != nil {
		s.err = err
	}
	return n, err
}

// hand gives the messages of a body to a sink and hands them over. Of a large one it
// does so piece by piece. The body is not needed, and does not count, after it. some says
// that there were any.
func (h *HTTPServer) hand(ctx context.Context, from Sender, body []byte, kind string) (waits []<-chan error, some bool, err error) {
	defer h.o.Memory.free(cap(body))
	sink, ok := h.s.turns.take(ctx).(Storer)
	if !ok {
		return nil, false, ErrFull
	}
	good := false
	defer func() {
		if good {
			h.s.turns.give(sink)
		} else {
			h.s.turns.drop(sink)
		}
	}()
	held, now := 0, time.Now()
	message := func(m framing.Message) error {
		some = true
		sink.Message(m, from, now)
		if held += len(m.Data) + perMessage; held < storePiece {
			return nil
		}
		held = 0
		durable, err := sink.Store(ctx)
		if err == nil {
			waits = append(waits, durable)
		}
		return err
	}
	switch kind {
	case "application/x-ndjson", "application/ndjson", "application/jsonl":
		sp, src := framing.NewSplitter(framing.Options{Mode: framing.Delimiter, MaxMessageSize: h.o.MaxMessageSize}), bytes.NewReader(body)
		for err == nil && src.Len() > 0 {
			sp.Fill(src)
			for m, ok := sp.Next(); ok && err == nil; m, ok = sp.Next() {
				err = message(m)
			}
		}
		for m, ok := sp.End(); ok && err == nil; m, ok = sp.End() {
			m.Flags &^= framing.Unterminated // the end of the body ends it
			err = message(m)
		}
		h.Stats.addFraming(sp.Stats(), framing.Stats{})
	default:
		if m, ok := framing.Datagram(body, framing.Options{MaxMessageSize: h.o.MaxMessageSize}); ok {
			err = message(m)
		}
	}
	if err == nil && held > 0 {
		var durable <-chan error
		if durable, err = sink.Store(ctx); err == nil {
			waits = append(waits, durable)
		}
	}
	good = true
	return waits, some, err
}

// drop ends a turn after which the sink is in no state to be used again.
func (t *turns) drop(s Sink) {
	defer func() { <-t.sem }()
	s.Close()
}

// take takes n bytes for a body if there are as many, and bodies have no more than half
// of all: nobody is told to let go of his for them, and a slow one must not have the
// messages of streams cut. Who has them gives them back by free.
func (m *Memory) take(n int) bool {
	if m == nil {
		return true
	}
	if m.bodies.Add(int64(n)) > m.limit/2 {
		m.bodies.Add(-int64(n))
		return false
	}
	if m.held.Add(int64(n)) > m.limit {
		m.free(n)
		return false
	}
	return true
}

func (m *Memory) free(n int) {
	if m != nil {
		m.held.Add(-int64(n))
		m.bodies.Add(-int64(n))
	}
}
