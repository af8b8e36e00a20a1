package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// kind is what a socket hands out.
type kind uint8

const (
	stream    kind = 0 // connections, each a stream of bytes
	packets   kind = 1 // connections of packets, each one message (SOCK_SEQPACKET)
	datagrams kind = 2 // datagrams, each one message
)

// listener is what net's listeners of connections have.
type listener interface {
	net.Listener
	syscall.Conn
	deadliner
}

// packetConn is what net's sockets of datagrams have.
type packetConn interface {
	net.PacketConn
	syscall.Conn
}

// socket is one bound socket.
type socket struct {
	kind    kind
	local   bool   // a unix socket
	network string // tcp4, udp6, unixgram …: what to bind again
	name    string // its address, for people
	addr    net.Addr

	l listener   // of connections; nil while it is closed
	p packetConn // of datagrams

	file *os.File // handed over by systemd, which keeps it; nil: ours
	path string   // file of a unix socket that is ours
	id   fileID   // of the file at path
}

// bindError is an address that can't be bound, with what to do.
type bindError struct {
	text string
	err  error
}

func (e *bindError) Error() string { return e.text }
func (e *bindError) Unwrap() error { return e.err }

// Explain says what to do about an address that can't be bound, for the reason of
// err, which it wraps.
func Explain(address string, err error) error {
	err = cause(err)
	var text string
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		text = address + " is in use: stop what listens there (another spillway?), or choose another port"
	case errors.Is(err, os.ErrPermission) && filepath.IsAbs(address):
		text = address + " is not allowed to this user: let it write the directory " + filepath.Dir(address) + ", or choose another path"
	case errors.Is(err, os.ErrPermission):
		text = address + " is not allowed to this user: ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or choose a higher port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		text = address + ": this host has no such address: choose one that `ip addr` shows, or 0.0.0.0 for all"
	default:
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	return &bindError{text, err}
}

// bind opens the sockets that o asks for. On an error all are closed again.
func bind(o Options) (all []*socket, err error) {
	defer func() {
		if err != nil {
			for _, k := range all {
				k.close()
			}
			all, err = nil, fmt.Errorf("%sURL: %w", o.Variable, err)
		}
	}()
	switch o.Network {
	case "tcp", "udp":
		return bindPorts(o)
	case "unix", "unixgram", "unixpacket":
		k := &socket{kind: kinds[o.Network], local: true, network: o.Network, name: o.Address}
		if err := k.bind(o); err != nil {
			return nil, err
		}
		return []*socket{k}, nil
	case "fd":
		return handedOver(o)
	}
	return nil, fmt.Errorf("%q is no kind of socket", o.Network)
}

var kinds = map[string]kind{"tcp": stream, "udp": datagrams, "unix": stream, "unixgram": datagrams, "unixpacket": packets}

// bindPorts listens on every address that o.Address stands for: "localhost" is both
// loopback addresses (whichever exist), everything else what net makes of it.
func bindPorts(o Options) (all []*socket, err error) {
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, err
	}
	one := func(network, address string) error {
		k := &socket{kind: kinds[o.Network], network: network, name: address}
		if err := k.bind(o); err != nil {
			return err
		}
		all = append(all, k)
		return nil
	}
	if host != "localhost" {
		return all, one(o.Network, o.Address)
	}
	if err := one(o.Network+"4", net.JoinHostPort("127.0.0.1", port)); err != nil {
		return nil, err
	}
	// The same port on both: with port 0 the second takes what the first was given.
	_, port, _ = net.SplitHostPort(all[0].name)
	err = one(o.Network+"6", net.JoinHostPort("::1", port))
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		err = nil
	}
	return all, err
}

// bind opens the socket at k.name, also again after close. An address with port 0
// becomes what it was given.
func (k *socket) bind(o Options) error {
	if k.file != nil {
		return k.listenAgain()
	}
	if k.local && !strings.HasPrefix(k.name, "@") {
		if err := k.makeWay(); err != nil {
			return err
		}
	}
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, rc syscall.RawConn) error { return k.prepare(o, rc) }}
	lc.SetMultipathTCP(false) // a reset of one would not be what finish needs
	var addr net.Addr
	if k.kind == datagrams {
		p, err := lc.ListenPacket(context.Background(), k.network, k.name)
		if err != nil {
			return Explain(k.name, err)
		}
		k.p, addr = p.(packetConn), p.LocalAddr()
	} else {
		l, err := lc.Listen(context.Background(), k.network, k.name)
		if err != nil {
			return Explain(k.name, err)
		}
		k.l, addr = l.(listener), l.Addr()
	}
	if k.addr == nil { // it stays the same, and others read it
		k.addr, k.name = addr, addr.String()
	}
	if k.local && k.name[0] != '@' {
		if err := k.own(o.Socket); err != nil {
			k.close()
			return err
		}
	}
	return nil
}

// cause takes net's words off, which name the address once more.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// prepare sets the options that must be set before the socket is bound.
func (k *socket) prepare(o Options, rc syscall.RawConn) (err error) {
	cerr := rc.Control(func(fd uintptr) {
		switch {
		case k.local:
			// The file is made with these bits (less the umask), so that it is never open
			// to more than it will be.
			err = os.NewSyscallError("fchmod", unix.Fchmod(int(fd), uint32(o.Socket.mode())))
		case k.kind == stream && o.ReceiveBuffer > 0: // connections inherit it
			_, err = receiveBuffer(fd, o.ReceiveBuffer, false)
		}
	})
	return errors.Join(cerr, err)
}

func (f SocketFile) mode() os.FileMode {
	if f.Mode == 0 {
		return DefaultSocketMode
	}
	return f.Mode.Perm()
}

// maxPath is the longest path of a unix socket: sun_path less its NUL, see unix(7).
const maxPath = 107

// makeWay removes the file of a socket that nobody listens on any more.
func (k *socket) makeWay() error {
	path := k.name
	if len(path) > maxPath {
		return fmt.Errorf("%s: a path of %d bytes: the kernel takes %d: choose a shorter one", path, len(path), maxPath)
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		if err == nil {
			err = syscall.ENOTDIR
		}
		return fmt.Errorf("%s: no directory for it: %w: create %s (RuntimeDirectory= in a systemd unit), or choose another path", path, pathCause(err), dir)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s: a file that is no socket is there: remove it, or choose another path", path)
	}
	switch err := answers(path, k.kind); {
	case err == nil || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EPROTOTYPE): // a full queue, another kind
		return &bindError{path + " is in use: stop what listens there (another spillway?), or choose another path", syscall.EADDRINUSE}
	case errors.Is(err, syscall.ECONNREFUSED): // left behind
		return os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return fmt.Errorf("%s: a socket is there and can't be asked whether it is in use: %w: remove it if nothing uses it", path, err)
	}
}

// answers tries to connect to the socket at path and returns nil if somebody listens.
func answers(path string, k kind) error {
	typ := map[kind]int{stream: unix.SOCK_STREAM, packets: unix.SOCK_SEQPACKET, datagrams: unix.SOCK_DGRAM}[k]
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

func pathCause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// own gives the new file its mode and owner, and remembers which it is.
func (k *socket) own(f SocketFile) error {
	if u, ok := k.l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it may be another's by then
	}
	path := k.name
	id, err := idOf(path)
	if err != nil {
		return err
	}
	k.path, k.id = path, id
	if err := os.Chmod(path, f.mode()); err != nil {
		return fmt.Errorf("mode of the socket: %w", err)
	}
	uid, err := userID(f.Owner)
	if err != nil {
		return err
	}
	gid, err := groupID(f.Group)
	if err != nil {
		return err
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Lchown(path, uid, gid); err != nil {
			return fmt.Errorf("owner of the socket: %w: only root gives files away, and a group must be one of the agent's own", err)
		}
	}
	return nil
}

// userID is the number of a user by name or number; -1 for "".
func userID(s string) (int, error) {
	if s == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(n), nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, fmt.Errorf("owner of the socket: no user is called %s: %w", s, err)
	}
	return strconv.Atoi(u.Uid)
}

// groupID is userID of groups.
func groupID(s string) (int, error) {
	if s == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(s)
	if err != nil {
		return 0, fmt.Errorf("group of the socket: no group is called %s: %w", s, err)
	}
	return strconv.Atoi(g.Gid)
}

// shut lets nobody connect or send any more, and keeps what is in the queue. At a stop
// a socket of systemd's is left alone: what comes from now on is for the next agent.
// It reports whether nothing joins the queue any more, so that it can be read to its end.
func (k *socket) shut(refuse bool) (ends bool) {
	if k.file != nil && !refuse || k.kind == datagrams && !k.local {
		return false
	}
	k.unlink()
	c := syscall.Conn(k.l)
	if k.kind == datagrams {
		c = k.p
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	cerr := rc.Control(func(fd uintptr) {
		if k.local {
			err = unix.Shutdown(int(fd), unix.SHUT_RD)
			return
		}
		// A listening tcp socket knows nothing like it, but it drops the packets that a
		// filter does not want: who connects gets no answer until the socket is closed.
		// On an error somebody may connect just before that, and what he sends is lost.
		none := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none})
	})
	return err == nil && cerr == nil
}

// queued accepts a connection that waits, whatever the deadline says.
func (k *socket) queued() (net.Conn, error) {
	rc, err := k.l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var conn int
	cerr := rc.Control(func(fd uintptr) {
		for {
			conn, _, err = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return
			}
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(conn), "")
	defer f.Close()
	return net.FileConn(f)
}

// unlink removes the file of a unix socket if it still is ours.
func (k *socket) unlink() {
	if k.path == "" {
		return
	}
	if id, err := idOf(k.path); err == nil && id == k.id {
		os.Remove(k.path)
	}
	k.path = ""
}

// close closes the socket. One of systemd's stays open there, and in k.file.
func (k *socket) close() {
	k.unlink()
	if k.l != nil {
		k.l.Close()
	}
	if k.p != nil {
		k.p.Close()
	}
}

// fileID says which file a path leads to, and of a regular one which version of it.
type fileID struct {
	dev, ino    uint64
	size, mtime int64
}

// idOf does not follow a symbolic link.
func idOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileID{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// passed are the sockets that systemd handed to this process, by name, less those
// that were taken.
var passed handover

type handover struct {
	mu    sync.Mutex
	files map[string][]*os.File // nil: not asked yet; guarded by mu
}

// ask takes them from the environment; p.mu is held.
func (p *handover) ask() {
	if p.files != nil {
		return
	}
	p.files = map[string][]*os.File{}
	for _, f := range activation.Files(true) {
		p.files[f.Name()] = append(p.files[f.Name()], f)
	}
}

// takePassed returns the sockets called name.
func takePassed(name string) ([]*os.File, error) {
	p := &passed
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask()
	files := p.files[name]
	if len(files) > 0 {
		delete(p.files, name)
		return files, nil
	}
	if len(p.files) == 0 {
		return nil, fmt.Errorf("no socket called %q was handed over, nor any other that is not taken: start the agent through its .socket unit", name)
	}
	var names []string
	for n := range p.files {
		names = append(names, n)
	}
	return nil, fmt.Errorf("no socket called %q was handed over: there are %s: see FileDescriptorName= of the .socket unit", name, strings.Join(sorted(names), ", "))
}

// handedOver are the sockets of systemd that o asks for, each of the kind that it is.
func handedOver(o Options) (all []*socket, err error) {
	files, err := takePassed(o.Address)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		k := &socket{file: f}
		if err := k.adopt(); err != nil {
			for _, f := range files[i:] {
				f.Close()
			}
			return all, fmt.Errorf("socket %d called %s: %w", i+1, o.Address, err)
		}
		all = append(all, k)
		switch {
		case o.Gate != nil && (k.local || k.kind == datagrams):
			return all, fmt.Errorf("%sON_FULL=refuse can't close %s, which systemd holds open: use a unix:// URL, or block", o.Variable, k.name)
		case k.kind == stream && !k.local && o.ReceiveBuffer > 0:
			err = k.control(func(fd uintptr) error { _, err := receiveBuffer(fd, o.ReceiveBuffer, true); return err })
			if err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// control calls f with the descriptor of a socket of systemd's.
func (k *socket) control(f func(fd uintptr) error) error {
	rc, err := k.file.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = f(fd) })
	return errors.Join(cerr, err)
}

// adopt finds out what k.file is.
func (k *socket) adopt() error {
	var typ, listening int
	err := k.control(func(fd uintptr) (err error) {
		if typ, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return fmt.Errorf("no socket: %w: use ListenStream=, ListenDatagram= or ListenSequentialPacket=", err)
		}
		listening, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		return err
	})
	if err != nil {
		return err
	}
	switch typ {
	case unix.SOCK_DGRAM:
		k.kind = datagrams
		p, err := net.FilePacketConn(k.file)
		if err != nil {
			return err
		}
		k.p, k.addr = p.(packetConn), p.LocalAddr()
	case unix.SOCK_STREAM, unix.SOCK_SEQPACKET:
		if typ == unix.SOCK_SEQPACKET {
			k.kind = packets
		}
		if listening == 0 {
			// An agent that refused and was killed has left it so.
			err := k.control(func(fd uintptr) error {
				if _, err := unix.Getpeername(int(fd)); err == nil {
					return errors.New("a connection, not a listening socket: set Accept=no in the .socket unit")
				}
				return os.NewSyscallError("listen", unix.Listen(int(fd), backlog))
			})
			if err != nil {
				return err
			}
		}
		k.hear() // an agent that was killed as it began to refuse has left it so
		if err := k.listenFile(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("of type %d: use ListenStream=, ListenDatagram= or ListenSequentialPacket=", typ)
	}
	switch a := k.addr.(type) {
	case *net.TCPAddr, *net.UDPAddr:
		k.name = a.String()
	case *net.UnixAddr:
		k.local, k.name = true, a.String()
	default:
		return fmt.Errorf("of family %s: use an address of IP, or a path", a.Network())
	}
	k.network = k.addr.Network()
	return nil
}

func (k *socket) listenFile() error {
	l, err := net.FileListener(k.file)
	if err != nil {
		return err
	}
	k.l = l.(listener)
	if k.addr == nil {
		k.addr = l.Addr()
	}
	return nil
}

// refuse makes a tcp socket of systemd's, which close leaves open, refuse connections.
func (k *socket) refuse() {
	if k.file != nil {
		k.control(func(fd uintptr) error { return unix.Shutdown(int(fd), unix.SHUT_RD) })
		k.hear()
	}
}

// backlog is what the system's limit (net.core.somaxconn) usually is.
const backlog = 4096

// hear takes the filter of shut off; mostly there is none.
func (k *socket) hear() {
	k.control(func(fd uintptr) error { return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
}

// listenAgain ends refuse.
func (k *socket) listenAgain() error {
	if err := k.control(func(fd uintptr) error { return os.NewSyscallError("listen", unix.Listen(int(fd), backlog)) }); err != nil {
		return Explain(k.name, err)
	}
	return k.listenFile()
}

// HandedOver says what the first socket that systemd handed over by this name is: of
// kind tcp, udp or unix ("": there is none), and whether it takes datagrams.
func HandedOver(name string) (kind string, datagrams bool) {
	p := &passed
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask()
	if len(p.files[name]) == 0 {
		return "", false
	}
	rc, err := p.files[name][0].SyscallConn()
	if err != nil {
		return "", false
	}
	rc.Control(func(fd uintptr) {
		family, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		typ, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		datagrams = typ == unix.SOCK_DGRAM
		switch {
		case family == unix.AF_UNIX:
			kind = "unix"
		case datagrams:
			kind = "udp"
		default:
			kind = "tcp"
		}
	})
	return kind, datagrams
}
