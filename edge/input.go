package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"spillway/edge/listen"
	"spillway/edge/pipeline"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/syslog"
	"spillway/outputs"
)

// Input is SPILLWAY_INPUT_<NAME>_*.
type Input struct {
	Name string `env:"-"`

	URL              string           `env:"URL" doc:"tcp://host:port, tls://host:port or udp://host:port; unix:///path, unixgram:///path or unixpacket:///path (/@name: abstract); fd://name for sockets that systemd hands over by that name; localhost (also no host) is 127.0.0.1 and ::1, port 0 any free one" default:"by the name of the input: tcp://localhost:5514, udp://localhost:5514, tls://localhost:6514 or unix:///run/spillway/syslog.sock"`
	Framing          framing.Mode     `env:"FRAMING" envDefault:"auto" doc:"how a stream is cut into messages: auto, delimiter, rfc6587, octet or nul"`
	Delimiter        []byte           `env:"DELIMITER" envDefault:"\\n" doc:"what ends a message; escapes \\n \\r \\t \\0 \\\\ \\xHH"`
	ParseName        string           `env:"PARSE" envDefault:"auto" doc:"header of messages: auto, rfc3164, rfc5424 or none"`
	Dataset          string           `env:"DATASET" doc:"event.dataset of the records" default:"by the kind of socket: tcp.generic, udp.generic or unix.generic"`
	Pipeline         string           `env:"PIPELINE" doc:"labels.pipeline of the records, for whoever reads them"`
	Tags             list             `env:"TAGS" doc:"tags of the records, with commas between them"`
	TimezoneName     string           `env:"TIMEZONE" envDefault:"Local" doc:"zone of header times that have none, as in Europe/Berlin"`
	PreserveOriginal ecs.Original     `env:"PRESERVE_ORIGINAL" envDefault:"false" doc:"true: records also carry the message as it was received, in event.original; base64: as base64, every byte"`
	Lane             string           `env:"LANE" envDefault:"main" doc:"lane of the records; each has a buffer of its own"`
	MaxMessageSize   outputs.Size     `env:"MAX_MESSAGE_SIZE" envDefault:"20MiB" doc:"largest message, at most 64MiB"`
	Oversize         framing.Oversize `env:"OVERSIZE" envDefault:"truncate" doc:"what becomes of a larger one: truncate, split, drop or close"`
	MaxConnections   int              `env:"MAX_CONNECTIONS" envDefault:"4096" doc:"connections at one time; for one more the oldest that has said nothing yet is closed, else that one; 0: no limit"`
	IdleTimeout      time.Duration    `env:"IDLE_TIMEOUT" envDefault:"300s" doc:"a connection that sends nothing for so long is closed; 0: never"`
	KeepAlive        time.Duration    `env:"KEEPALIVE" envDefault:"30s" doc:"a silent peer is asked so often whether it is still there; three times without an answer end the connection; 0: never (tcp, tls)"`
	Allow            list             `env:"ALLOW" doc:"addresses and networks that may send, as in 10.0.0.0/8,::1; others are closed at once, their datagrams dropped (tcp, tls, udp)" default:"all"`
	SoRcvbuf         outputs.Size     `env:"SO_RCVBUF" doc:"receive buffer to ask of the kernel (tcp, tls, udp)" default:"8MiB for udp, else what the kernel chooses"`
	SocketModeText   string           `env:"SOCKET_MODE" envDefault:"0660" doc:"permission bits of the socket file (unix, unixgram, unixpacket)"`
	SocketOwner      string           `env:"SOCKET_OWNER" doc:"user that owns the socket file, name or number" default:"the agent's"`
	SocketGroup      string           `env:"SOCKET_GROUP" doc:"group of the socket file, name or number" default:"the agent's"`
	TLSCertFile      string           `env:"TLS_CERT_FILE" doc:"PEM file of the server's certificate and what leads to its CA; read again when it changes (tls; for fd it makes a tcp socket a tls one)"`
	TLSKeyFile       string           `env:"TLS_KEY_FILE" secret:"file" doc:"PEM file of its key, not encrypted"`
	TLSClientCAFile  string           `env:"TLS_CLIENT_CA_FILE" doc:"PEM file of the CAs whose certificates clients may show"`
	TLSClientAuth    string           `env:"TLS_CLIENT_AUTH" doc:"certificates of clients: none, optional (one that is shown must be good) or required" default:"required with TLS_CLIENT_CA_FILE, else none"`
	TLSMinVersion    string           `env:"TLS_MIN_VERSION" envDefault:"1.2" doc:"oldest version of TLS: 1.2 or 1.3"`
	OnFullName       string           `env:"ON_FULL" doc:"when the buffer has no room: block (senders wait), drop (after 1s; counted, and a gap record tells) or refuse (what was sent is taken, and connections are closed and refused until there is room)" default:"block for streams, drop for datagrams"`

	// Derived.
	Scheme     string             `env:"-"` // of URL
	Socket     string             `env:"-"` // Scheme; with fd the scheme of a socket like the first that systemd handed over, and fd if it did not
	Address    string             `env:"-"` // host:port, path, @name, or name of a socket of systemd's
	Parse      bool               `env:"-"` // false: the message is the text
	Format     syslog.Format      `env:"-"` // when Parse
	Timezone   *time.Location     `env:"-"`
	OnFull     pipeline.OnFull    `env:"-"`
	AllowFrom  []netip.Prefix     `env:"-"` // of Allow
	SocketMode os.FileMode        `env:"-"`
	TLS        *listen.TLSOptions `env:"-"` // nil: plain
}

// datagram reports whether the input is one of datagrams, not of connections.
func (in *Input) datagram() bool { return in.Socket == "udp" || in.Socket == "unixgram" }

// framing are the options of the input's splitters.
func (in *Input) framing() framing.Options {
	return framing.Options{Mode: in.Framing, Delimiter: in.Delimiter, MaxMessageSize: int(in.MaxMessageSize), Oversize: in.Oversize, NonSyslog: !in.Parse}
}

// inputURLs are the URLs of inputs whose name says all.
var inputURLs = map[string]string{
	"tcp": "tcp://localhost:5514", "udp": "udp://localhost:5514", "tls": "tls://localhost:6514", "unix": "unix:///run/spillway/syslog.sock",
}

// inputKinds says of each kind of input what its records are called after and which
// options, of those that not all kinds have, it has.
var inputKinds = map[string]struct {
	kind    string // input.type, and the beginning of the default dataset; "": known when the socket is
	options []string
}{
	"tcp":        {"tcp", slices.Concat(ofStreams, ofConnections, ofNetwork, []string{"KEEPALIVE"})},
	"tls":        {"tcp", slices.Concat(ofStreams, ofConnections, ofNetwork, ofTLS, []string{"KEEPALIVE"})},
	"udp":        {"udp", ofNetwork},
	"unix":       {"unix", slices.Concat(ofStreams, ofConnections, ofFiles)},
	"unixpacket": {"unix", slices.Concat(ofConnections, ofFiles)},
	"unixgram":   {"unix", ofFiles},
	"fd":         {"", slices.Concat(ofStreams, ofConnections, ofNetwork, ofTLS, []string{"KEEPALIVE"})},
}

var (
	ofStreams     = []string{"FRAMING", "DELIMITER"}
	ofConnections = []string{"MAX_CONNECTIONS", "IDLE_TIMEOUT"}
	ofNetwork     = []string{"ALLOW", "SO_RCVBUF"}
	ofFiles       = []string{"SOCKET_MODE", "SOCKET_OWNER", "SOCKET_GROUP"}
	ofTLS         = []string{"TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "TLS_CLIENT_AUTH", "TLS_MIN_VERSION"}
)

const kindsOfInputs = "tcp://, tls://, udp://, unix://, unixgram://, unixpacket:// or fd://"

// input reads SPILLWAY_INPUT_<NAME>_*.
func (c *Config) input(e *environment, name string) Input {
	under := prefix + "INPUT_" + strings.ToUpper(name) + "_"
	defaults := map[string]string{"URL": inputURLs[name]}
	scheme, address, _ := strings.Cut(cmp.Or(e.vars[under+"URL"].text, inputURLs[name]), "://")
	socket := scheme
	if scheme == "fd" {
		socket = handedOver(address)
	}
	if k := inputKinds[socket]; k.kind != "" {
		defaults["DATASET"], defaults["ON_FULL"] = k.kind+".generic", "block"
		defaults["SO_RCVBUF"] = ""
		switch socket {
		case "udp":
			defaults["ON_FULL"], defaults["SO_RCVBUF"] = "drop", "8MiB"
		case "unixgram":
			defaults["ON_FULL"] = "drop"
		}
	}
	in := Input{Name: name, Socket: socket}
	e.parse(&in, under, defaults)
	if in.URL == "" {
		e.problem(under+"URL", "not set: say where input %s listens, as in tcp://localhost:5514 or udp://localhost:5514", name)
	} else if !in.url(e, under) {
		in.URL = ""
	}

	if !nameRule.MatchString(in.Lane) || in.Lane == "failover" || in.Lane == "large" {
		e.problem(under+"LANE", "no name for a lane: use 1 to 16 of a-z and 0-9, a letter first, and neither failover nor large")
	}
	e.between(under+"MAX_MESSAGE_SIZE", in.MaxMessageSize, 1, maxMessageSize)
	in.parseOptions(e, under)
	if in.URL == "" {
		return in // what follows depends on the scheme
	}
	in.onFull(e, under)
	in.records(e, under, c)
	options, what := in.options()
	for _, o := range slices.Concat(ofStreams, ofConnections, ofNetwork, ofFiles, ofTLS, []string{"KEEPALIVE"}) {
		switch {
		case slices.Contains(options, o):
		case in.datagram() || in.Scheme == "unixpacket" && slices.Contains(ofStreams, o):
			e.idle(under+o, "changes nothing for a %s, where each datagram is one message: remove it", what)
		default:
			e.idle(under+o, "changes nothing for a %s: remove it", what)
		}
	}
	if in.datagram() || in.Scheme == "unixpacket" {
		if in.Oversize == framing.Split || in.Oversize == framing.Close {
			e.problem(under+"OVERSIZE", "not for datagrams: use truncate or drop")
		}
	} else if in.Framing == framing.Octet || in.Framing == framing.NUL {
		if e.has(under + "DELIMITER") {
			e.problem(under+"DELIMITER", "has no effect with %sFRAMING=%v: remove one of them", under, in.Framing)
		}
	}
	if in.SoRcvbuf != 0 {
		e.between(under+"SO_RCVBUF", in.SoRcvbuf, 4<<10, 1<<30)
	}
	if in.KeepAlive != 0 && in.KeepAlive < time.Second {
		e.problem(under+"KEEPALIVE", "out of bounds: use 1s or more, or 0 for never")
	}
	in.allow(e, under)
	in.socketFile(e, under)
	in.tls(e, under)
	return in
}

// handedOver is the scheme of an input with a socket like the first that systemd
// handed over by this name; "fd" if it did not.
func handedOver(name string) string {
	switch kind, datagrams := listen.HandedOver(name); {
	case kind == "":
		return "fd"
	case kind == "unix" && datagrams:
		return "unixgram"
	default:
		return kind
	}
}

// options are those of the input, of all that not every kind has, and what it is.
func (in *Input) options() (options []string, what string) {
	switch {
	case in.Scheme != "fd" || in.Socket == "fd":
		return inputKinds[in.Scheme].options, in.Scheme + " input"
	case in.Socket == "tcp":
		options = inputKinds["tls"].options
	default: // whose file is systemd's
		options = slices.DeleteFunc(slices.Clone(inputKinds[in.Socket].options), func(o string) bool { return slices.Contains(ofFiles, o) })
	}
	return options, in.Socket + " socket of systemd's"
}

// leftOver adds a note for sockets that systemd handed over (sd_listen_fds(3)) and that
// no input has, and returns the names of all that it did.
func (c *Config) leftOver(e *environment, environ []string) (names []string) {
	vars := map[string]string{}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "LISTEN_") {
			vars[k] = v
		}
	}
	if n, err := strconv.Atoi(vars["LISTEN_FDS"]); err != nil || n < 1 || vars["LISTEN_PID"] != strconv.Itoa(os.Getpid()) {
		return nil
	}
	names = strings.Split(vars["LISTEN_FDNAMES"], ":")
	left := slices.Compact(slices.Sorted(slices.Values(names)))
	left = slices.DeleteFunc(left, func(n string) bool {
		return n == "" || slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.Scheme == "fd" && in.Address == n })
	})
	if len(left) > 0 {
		e.notes = append(e.notes, fmt.Sprintf("LISTEN_FDNAMES: systemd handed over sockets called %s, which no input has, so that nobody reads what is sent there: set SPILLWAY_INPUT_<NAME>_URL=fd://%s of an input, or stop the .socket unit",
			and(left), left[0]))
	}
	return names
}

// url takes the input's URL apart.
func (in *Input) url(e *environment, under string) bool {
	name := under + "URL"
	u, err := url.Parse(in.URL)
	if err != nil {
		e.problem(name, "%v: write it as in tcp://localhost:5514", urlCause(err))
		return false
	}
	switch in.Scheme = u.Scheme; u.Scheme {
	case "tcp", "tls", "udp":
		if u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
			e.problem(name, "has more than a host and a port: write it as in %s://localhost:5514", u.Scheme)
			return false
		}
		if in.Address, err = checkAddress(u.Host); err != nil {
			e.problem(name, "%v", err)
			return false
		}
	case "unix", "unixgram", "unixpacket":
		switch {
		case u.Host != "" || u.User != nil:
			e.problem(name, "%q stands where a host would: write three slashes, as in %s:///run/spillway/syslog.sock", u.Host, u.Scheme)
			return false
		case u.RawQuery != "" || u.Fragment != "":
			e.problem(name, "has more than a path: write ? and # in it as %%3F and %%23")
			return false
		case len(u.Path) < 2 || u.Path == "/@":
			e.problem(name, "names no socket: write it as in %s:///run/spillway/syslog.sock", u.Scheme)
			return false
		case strings.ContainsRune(u.Path, 0):
			e.problem(name, "a path has no NUL in it: write an abstract name as in %s:///@spillway", u.Scheme)
			return false
		}
		if in.Address = filepath.Clean(u.Path); strings.HasPrefix(u.Path, "/@") {
			in.Address = u.Path[1:]
		}
	case "fd":
		if in.Address = strings.TrimPrefix(in.URL, "fd://"); in.Address == "" || strings.ContainsAny(in.Address, "/?#:") {
			e.problem(name, "names no socket: write FileDescriptorName= of its .socket unit, as in fd://syslog")
			return false
		}
	case "http":
		e.problem(name, "this version has no http inputs: use %s", kindsOfInputs)
		return false
	case "":
		e.problem(name, "has no scheme: write it as in tcp://localhost:5514")
		return false
	default:
		e.problem(name, "%s is no kind of input: use %s", u.Scheme, kindsOfInputs)
		return false
	}
	return true
}

// allow reads ALLOW.
func (in *Input) allow(e *environment, under string) {
	for _, a := range in.Allow {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(a); err == nil {
				p = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
			}
		}
		if err != nil || p.Addr().Zone() != "" {
			e.problem(under+"ALLOW", "%q is neither an address nor a network: write them as in 192.0.2.7 and 10.0.0.0/8", a)
			return
		}
		in.AllowFrom = append(in.AllowFrom, p.Masked())
	}
}

// socketFile checks the options of the file of a unix socket.
func (in *Input) socketFile(e *environment, under string) {
	if !strings.HasPrefix(in.Scheme, "unix") {
		return
	}
	if in.Address[0] == '@' {
		for _, o := range ofFiles {
			e.idle(under+o, "changes nothing for an abstract socket, which is no file and open to every local program: remove it")
		}
		return
	}
	mode, err := strconv.ParseUint(in.SocketModeText, 8, 32)
	if err != nil || mode > 0o777 || mode == 0 {
		e.problem(under+"SOCKET_MODE", "no permission bits: write them as in 0660")
	}
	in.SocketMode = os.FileMode(mode)
	if who := in.SocketOwner; who != "" && !number(who) {
		if _, err := user.Lookup(who); err != nil {
			e.problem(under+"SOCKET_OWNER", "%v: name a user of this host, or give a number", err)
		}
	}
	if who := in.SocketGroup; who != "" && !number(who) {
		if _, err := user.LookupGroup(who); err != nil {
			e.problem(under+"SOCKET_GROUP", "%v: name a group of this host, or give a number", err)
		}
	}
}

func number(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}

// tls checks the TLS options.
func (in *Input) tls(e *environment, under string) {
	const cert, key, ca, auth, version = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "TLS_CLIENT_AUTH", "TLS_MIN_VERSION"
	switch {
	case in.Scheme != "tls" && in.Scheme != "fd":
		return
	case in.Scheme == "fd" && in.TLSCertFile == "" && in.TLSKeyFile == "":
		for _, o := range []string{ca, auth, version} {
			e.idle(under+o, "changes nothing without %s: set that, or remove it", under+cert)
		}
		return
	case in.TLSCertFile == "":
		e.problem(under+cert, "not set: a tls input needs a certificate: name its PEM file")
	case in.TLSKeyFile == "":
		e.problem(under+key, "not set: a tls input needs the key of its certificate: name its PEM file")
	}
	o := &listen.TLSOptions{CertFile: in.TLSCertFile, KeyFile: in.TLSKeyFile, ClientCAFile: in.TLSClientCAFile, MinVersion: tls.VersionTLS12}
	if e.oneOf(under+version, in.TLSMinVersion, "1.2", "1.3") == "1.3" {
		o.MinVersion = tls.VersionTLS13
	}
	if in.TLSClientAuth == "" {
		if in.TLSClientCAFile != "" {
			o.ClientAuth = listen.ClientRequired
		}
	} else if err := o.ClientAuth.UnmarshalText([]byte(in.TLSClientAuth)); err != nil {
		e.problem(under+auth, "unknown: use none, optional or required")
	} else if o.ClientAuth != listen.ClientNone && in.TLSClientCAFile == "" {
		e.problem(under+auth, "needs %s: without it no client could be believed", under+ca)
	} else if o.ClientAuth == listen.ClientNone && in.TLSClientCAFile != "" {
		e.problem(under+ca, "changes nothing with %s=none: remove one of them", under+auth)
	}
	in.TLS = o
}

func (in *Input) parseOptions(e *environment, under string) {
	switch p := strings.ToLower(in.ParseName); p {
	case "none":
	case "vault":
		e.problem(under+"PARSE", "this version does not know Vault's entries: use none, and the entries are kept as they are")
	default:
		f, err := syslog.ParseFormat(p)
		if err != nil {
			e.problem(under+"PARSE", "unknown: use auto, rfc3164, rfc5424 or none")
		}
		in.Parse, in.Format = true, f
	}
	loc, err := time.LoadLocation(in.TimezoneName)
	if err != nil {
		e.problem(under+"TIMEZONE", "%v: use Local, UTC or a name such as Europe/Berlin (names need the system's tzdata)", err)
		loc = time.Local
	}
	in.Timezone = loc
}

func (in *Input) onFull(e *environment, under string) {
	switch strings.ToLower(in.OnFullName) {
	case "": // of a socket that is not known yet
	case "block":
		in.OnFull = pipeline.Block
	case "drop":
		in.OnFull = pipeline.Drop
	case "refuse":
		in.OnFull = pipeline.Refuse
		if in.datagram() {
			e.problem(under+"ON_FULL", "not for datagrams, whose senders would not notice: use drop or block")
		} else if in.Scheme == "fd" && in.Socket == "unix" {
			e.problem(under+"ON_FULL", "can't close a unix socket that systemd holds open: use a unix:// URL, or block")
		}
	default:
		e.problem(under+"ON_FULL", "unknown: use block, drop or refuse")
	}
}

// records checks what goes into the records.
func (in *Input) records(e *environment, under string, c *Config) {
	// Each is looked at alone, so that the problem has a name.
	for _, o := range []struct {
		variable string
		options  ecs.Options
	}{
		{"DATASET", ecs.Options{Dataset: in.Dataset}},
		{"TAGS", ecs.Options{Tags: in.Tags}},
		{"PIPELINE", ecs.Options{Pipeline: in.Pipeline}},
	} {
		o.options.Agent = "agent"
		o.options.Dataset = cmp.Or(o.options.Dataset, "generic")
		if err := o.options.Validate(); err != nil {
			e.problem(under+o.variable, "%s", withoutValue(err, e.vars[under+o.variable].text))
		}
	}
	if c.Encoding == "raw" {
		for _, o := range []string{"PARSE", "DATASET", "PIPELINE", "TAGS", "TIMEZONE", "PRESERVE_ORIGINAL"} {
			if e.has(under+o) && !(o == "PARSE" && !in.Parse) { // PARSE=none says the same
				e.problem(under+o, "changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it")
			}
		}
	} else if !in.Parse && e.has(under+"TIMEZONE") {
		e.problem(under+"TIMEZONE", "changes nothing with %sPARSE=none: remove it", under)
	}
}

// input is a listening socket and what turns its messages into records.
type input struct {
	cfg     Input
	server  *listen.Server
	records *pipeline.Input
}

// listen are the options of the input's sockets, without what belongs to its lane.
func (in *Input) listen(log *slog.Logger) listen.Options {
	network := in.Scheme
	if network == "tls" {
		network = "tcp"
	}
	return listen.Options{
		Name: in.Name, Variable: prefix + "INPUT_" + strings.ToUpper(in.Name) + "_", Network: network, Address: in.Address, TLS: in.TLS,
		Socket:  listen.SocketFile{Mode: in.SocketMode, Owner: in.SocketOwner, Group: in.SocketGroup},
		Framing: in.framing(), ReceiveBuffer: int(in.SoRcvbuf), MaxConnections: in.MaxConnections, IdleTimeout: in.IdleTimeout,
		KeepAlive: in.KeepAlive, Allow: in.AllowFrom, Log: log,
	}
}

// openInput opens the sockets of an input. memory is shared by the inputs of its lane.
func openInput(ic Input, c *Config, l *pipeline.Lane, memory *listen.Memory, host string, log *slog.Logger) (*input, error) {
	kind := inputKinds[ic.Socket].kind
	in := &input{cfg: ic}
	in.records = pipeline.NewInput(pipeline.InputOptions{
		Name: ic.Name, Lane: l, Parse: ic.Parse, Format: ic.Format, Zone: ic.Timezone, OnFull: ic.OnFull,
		Records: ecs.Options{Dataset: ic.Dataset, Agent: c.Agent, Host: host, InputType: kind, Pipeline: ic.Pipeline, Tags: ic.Tags, PreserveOriginal: ic.PreserveOriginal},
	})
	o := ic.listen(log)
	o.Memory, o.Gate = memory, in.records.Gate()
	o.Open = in.records.Open
	var err error
	in.server, err = listen.Listen(o)
	if err != nil {
		return nil, err
	}
	return in, nil
}
