package main

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
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

	URL string `env:"URL" doc:"tcp://host:port, tls://host:port or udp://host:port; unix:///path, unixgram:///path or unixpacket:///path (/@name: abstract); http://host:port/path or https://host:port/path, to which each message is posted; fd://name for sockets that systemd hands over by that name; localhost (also no host) is 127.0.0.1 and ::1, port 0 any free one" default:"by the name of the input: tcp://localhost:5514, udp://localhost:5514, tls://localhost:6514, unix:///run/spillway/syslog.sock or, called vault, tcp://localhost:9090"`

	Framing        framing.Mode          `env:"FRAMING" envDefault:"auto" doc:"how a stream is cut into messages: auto, delimiter, rfc6587, octet, nul or jsonx (Vault's format=jsonx)"`
	Delimiter      []byte                `env:"DELIMITER" envDefault:"\\n" doc:"what ends a message; escapes \\n \\r \\t \\0 \\\\ \\xHH"`
	Multiline      framing.MultilineRule `env:"MULTILINE" envDefault:"off" doc:"pri: a line that does not begin with a PRI, as in <13>, goes on with the message before it, which ends where the next one begins, or after 1s of silence; off: each line is a message"`
	MaxMessageSize outputs.Size          `env:"MAX_MESSAGE_SIZE" envDefault:"20MiB" doc:"largest message, at most 64MiB. One over 340KiB is also cut where its record would get both over 4MiB and twice as long (four times with PRESERVE_ORIGINAL), as control characters and bytes that are no UTF-8 make it; an http input answers 413 instead"`
	Oversize       framing.Oversize      `env:"OVERSIZE" envDefault:"truncate" doc:"what becomes of a larger one: truncate, split, drop or close; of http it is always refused"`
	MaxMessageAge  time.Duration         `env:"MAX_MESSAGE_AGE" envDefault:"5m" doc:"a connection whose message is not finished after so long is closed; what came of it is kept; 0: never"`

	ParseName         string       `env:"PARSE" envDefault:"auto" doc:"what messages are: auto, rfc3164 or rfc5424 for syslog, vault for entries of an audit device of Vault or OpenBao, none for text"`
	TimezoneName      string       `env:"TIMEZONE" envDefault:"Local" doc:"zone of header times that have none, as in Europe/Berlin"`
	PreserveOriginal  ecs.Original `env:"PRESERVE_ORIGINAL" envDefault:"false" doc:"true: records also carry the message as it was received, in event.original; base64: as base64, every byte"`
	Dataset           string       `env:"DATASET" doc:"event.dataset of the records" default:"by the kind of socket: tcp.generic, udp.generic, unix.generic or http.generic"`
	Pipeline          string       `env:"PIPELINE" doc:"labels.pipeline of the records, for whoever reads them"`
	Tags              list         `env:"TAGS" doc:"tags of the records, with commas between them"`
	DropSeverityAbove string       `env:"DROP_SEVERITY_ABOVE" doc:"messages that are less severe become no record, as debug is with info: emerg, alert, crit, err, warning, notice or info, or 0 to 6; those without a severity stay" default:"all become one"`
	DropRegex         string       `env:"DROP_REGEX" doc:"messages in whose text this is found become no record: a regular expression of RE2 for what would be message in the record, so without the header" default:"all become one"`

	Prefix      string        `env:"PREFIX" doc:"what the audit device's option prefix puts before each entry (PARSE=vault)" default:"whatever stands before the first { or <json:"`
	Pairing     bool          `env:"PAIRING" envDefault:"true" doc:"true: an alert record tells of each request entry without its response, and the other way round; false: not, for entries that are filtered or that go to several agents (PARSE=vault)"`
	PairTimeout time.Duration `env:"PAIR_TIMEOUT" envDefault:"120s" doc:"how long one of them waits for the other, and how long an entry is remembered to know it again (PARSE=vault)"`
	Dedupe      bool          `env:"DEDUPE" envDefault:"false" doc:"true: an entry that came before, byte for byte, becomes no record; false: it does, tagged duplicate (PARSE=vault)"`
	RawSecrets  string        `env:"RAW_SECRETS" envDefault:"keep" doc:"entries with a token that is not hashed, as log_raw=true makes them: keep (tagged, counted and warned of) or drop, and with them what is no whole entry (cut off, split, not valid), as it may hold one; a login that such a device logs has its password in request.data, and stays (PARSE=vault)"`

	Lane       string `env:"LANE" envDefault:"main" doc:"lane of the records; each has a buffer of its own"`
	OnFullName string `env:"ON_FULL" doc:"when the buffer has no room: block (senders wait), drop (after 1s; counted, and a gap record tells) or refuse (what was sent is taken, and connections are closed and refused until there is room)" default:"block for streams, drop for datagrams; http answers 503"`

	MaxConnections int                  `env:"MAX_CONNECTIONS" envDefault:"4096" doc:"connections at one time; for one more the oldest that has said nothing yet is closed, else that one; 0: no limit"`
	IdleTimeout    time.Duration        `env:"IDLE_TIMEOUT" envDefault:"300s" doc:"a connection that sends nothing for so long is closed; 0: never"`
	KeepAlive      time.Duration        `env:"KEEPALIVE" envDefault:"30s" doc:"a silent peer is asked so often whether it is still there; three times without an answer end the connection; 0: never (tcp, tls, http, https)"`
	ProxyProtocol  listen.ProxyProtocol `env:"PROXY_PROTOCOL" envDefault:"off" doc:"v1, v2 or any: each connection begins with a header of that version of the PROXY protocol, in which a load balancer tells the sender's address; one without is closed, and ALLOW is about the balancer; off: no header (tcp, tls)"`
	Allow          list                 `env:"ALLOW" doc:"addresses and networks that may send, as in 10.0.0.0/8,::1; others are closed at once, their datagrams dropped (tcp, tls, udp, http, https)" default:"all"`
	SoRcvbuf       outputs.Size         `env:"SO_RCVBUF" doc:"receive buffer to ask of the kernel (tcp, tls, udp)" default:"8MiB for udp, else what the kernel chooses"`

	Token        string        `env:"TOKEN" secret:"true" doc:"what requests must carry, as in Authorization: Bearer TOKEN (http, https)" default:"none is asked for"`
	TokenFile    string        `env:"-"`
	StoreTimeout time.Duration `env:"STORE_TIMEOUT" envDefault:"2s" doc:"a request whose message is not stored after so long is answered with 503 (http, https)"`

	SocketModeText string `env:"SOCKET_MODE" envDefault:"0660" doc:"permission bits of the socket file (unix, unixgram, unixpacket)"`
	SocketOwner    string `env:"SOCKET_OWNER" doc:"user that owns the socket file, name or number" default:"the agent's"`
	SocketGroup    string `env:"SOCKET_GROUP" doc:"group of the socket file, name or number" default:"the agent's"`
	PeerUsers      list   `env:"PEER_UID" doc:"users that may connect, names or numbers with commas between them; others are closed at once (unix, unixpacket)" default:"all that may open the socket"`

	TLSCertFile           string `env:"TLS_CERT_FILE" doc:"PEM file of the server's certificate and what leads to its CA; read again when it changes (tls, https; for fd it makes a tcp socket a tls one)"`
	TLSKeyFile            string `env:"TLS_KEY_FILE" secret:"file" doc:"PEM file of its key"`
	TLSKeyPassphrase      string `env:"TLS_KEY_PASSPHRASE" secret:"true" doc:"passphrase of the key, if that is encrypted"`
	TLSKeyPassphraseFile  string `env:"-"`
	TLSClientCAFile       string `env:"TLS_CLIENT_CA_FILE" doc:"PEM file of the CAs whose certificates clients may show"`
	TLSClientAuth         string `env:"TLS_CLIENT_AUTH" doc:"certificates of clients: none, optional (one that is shown must be good) or required" default:"required with TLS_CLIENT_CA_FILE or TLS_CLIENT_FINGERPRINTS, else none"`
	TLSClientFingerprints list   `env:"TLS_CLIENT_FINGERPRINTS" doc:"certificates that may send, as sha-256:AA:BB:… or sha-1:AA:BB:… with commas between them; without TLS_CLIENT_CA_FILE also self-signed ones" default:"all"`
	TLSClientNames        list   `env:"TLS_CLIENT_NAMES" doc:"names and addresses of which a client's certificate must have one, as in gw7.example.com,*.plant.example.com" default:"all"`
	TLSMinVersion         string `env:"TLS_MIN_VERSION" envDefault:"1.2" doc:"oldest version of TLS: 1.2 or 1.3"`
	TLSMaxVersion         string `env:"TLS_MAX_VERSION" doc:"newest version of TLS: 1.2 or 1.3" default:"1.3"`
	TLSCiphers            list   `env:"TLS_CIPHERS" doc:"cipher suites of TLS 1.2, as in TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256; those of 1.3 are fixed" default:"those of the Go release"`
	TLSCurves             list   `env:"TLS_CURVES" doc:"key exchanges: X25519MLKEM768, X25519, P-256, P-384, P-521" default:"those of the Go release"`

	// Derived.
	Scheme     string                 `env:"-"` // of URL
	Socket     string                 `env:"-"` // Scheme; with fd the scheme of a socket like the first that systemd handed over, and fd if it did not
	Address    string                 `env:"-"` // host:port, path, @name, or name of a socket of systemd's
	Path       string                 `env:"-"` // of requests, http and https
	Parse      bool                   `env:"-"` // false: the message is the text, or with Vault an entry
	Format     syslog.Format          `env:"-"` // when Parse
	Vault      *pipeline.VaultOptions `env:"-"` // nil: not PARSE=vault
	Filter     *pipeline.Filter       `env:"-"` // nil: every message becomes a record
	Timezone   *time.Location         `env:"-"`
	OnFull     pipeline.OnFull        `env:"-"`
	AllowFrom  []netip.Prefix         `env:"-"` // of Allow
	SocketMode os.FileMode            `env:"-"`
	PeerUIDs   []uint32               `env:"-"` // of PeerUsers
	TLS        *listen.TLSOptions     `env:"-"` // nil: plain
}

// datagram reports whether the input is one of datagrams, not of connections.
func (in *Input) datagram() bool { return in.Socket == "udp" || in.Socket == "unixgram" }

// http reports whether the input takes requests.
func (in *Input) http() bool { return in.Socket == "http" || in.Socket == "https" }

// variable is what the names of the input's variables begin with.
func (in *Input) variable() string { return prefix + "INPUT_" + strings.ToUpper(in.Name) + "_" }

// what is "a tcp input", or whatever it is.
func (in *Input) what() string {
	if in.http() {
		return "an " + in.Scheme + " input"
	}
	return "a " + in.Scheme + " input"
}

// memory is how much the input's largest message needs of SPILLWAY_MESSAGE_MEMORY, of
// which bodies of requests may take half.
func (in *Input) memory() outputs.Size {
	if in.http() {
		return 2*in.MaxMessageSize + 1<<20
	}
	return in.MaxMessageSize + 1<<20
}

// framing are the options of the input's splitters.
func (in *Input) framing() framing.Options {
	return framing.Options{Mode: in.Framing, Delimiter: in.Delimiter, Multiline: in.Multiline, MaxMessageSize: int(in.MaxMessageSize), Oversize: in.Oversize, NonSyslog: !in.Parse}
}

// inputKinds says of each kind of input what its records are called after and which
// options, of those that not all kinds have, it has.
var inputKinds = map[string]struct {
	kind    string // input.type, and the beginning of the default dataset; "": known when the socket is
	options []string
}{
	"tcp":        {"tcp", slices.Concat(ofSockets, ofStreams, ofConnections, ofNetwork, ofTCP)},
	"tls":        {"tcp", slices.Concat(ofSockets, ofStreams, ofConnections, ofNetwork, ofTCP, ofTLS)},
	"udp":        {"udp", slices.Concat(ofSockets, ofNetwork)},
	"unix":       {"unix", slices.Concat(ofSockets, ofStreams, ofConnections, ofPeers, ofFiles)},
	"unixpacket": {"unix", slices.Concat(ofSockets, ofConnections, ofPeers, ofFiles)},
	"unixgram":   {"unix", slices.Concat(ofSockets, ofFiles)},
	"http":       {"http", slices.Concat(ofConnections, []string{"ALLOW", "KEEPALIVE"}, ofHTTP)},
	"https":      {"http", slices.Concat(ofConnections, []string{"ALLOW", "KEEPALIVE"}, ofHTTP, ofTLS)},
	"fd":         {"", slices.Concat(ofSockets, ofStreams, ofConnections, ofNetwork, ofTCP, ofPeers, ofTLS)},
}

var (
	ofSockets     = []string{"OVERSIZE", "ON_FULL"}
	ofStreams     = []string{"FRAMING", "DELIMITER", "MULTILINE", "MAX_MESSAGE_AGE"}
	ofConnections = []string{"MAX_CONNECTIONS", "IDLE_TIMEOUT"}
	ofNetwork     = []string{"ALLOW", "SO_RCVBUF"}
	ofTCP         = []string{"KEEPALIVE", "PROXY_PROTOCOL"}
	ofHTTP        = []string{"TOKEN", "TOKEN_FILE", "STORE_TIMEOUT"}
	ofPeers       = []string{"PEER_UID"}
	ofFiles       = []string{"SOCKET_MODE", "SOCKET_OWNER", "SOCKET_GROUP"}
)

// defaults are the defaults of the variables that depend on others: on the name of the
// input and on the kind of its socket, which are known then.
func (in *Input) defaults(e *environment, under string) map[string]string {
	d := map[string]string{"URL": inputURLs[in.Name]}
	scheme, address, _ := strings.Cut(cmp.Or(e.vars[under+"URL"].text, d["URL"]), "://")
	scheme = strings.ToLower(scheme) // as url.Parse does
	in.Socket = scheme
	if scheme == "fd" {
		in.Socket = handedOver(address)
	}
	if k := inputKinds[in.Socket]; k.kind != "" {
		d["DATASET"], d["ON_FULL"], d["SO_RCVBUF"] = k.kind+".generic", "block", ""
		switch in.Socket {
		case "udp":
			d["ON_FULL"], d["SO_RCVBUF"] = "drop", "8MiB"
		case "unixgram":
			d["ON_FULL"] = "drop"
		}
	}
	if in.Name == "vault" {
		d["PARSE"] = "vault"
	}
	if strings.EqualFold(cmp.Or(e.vars[under+"PARSE"].text, d["PARSE"]), "vault") {
		in.vaultDefaults(d, scheme)
	}
	return d
}

// input reads SPILLWAY_INPUT_<NAME>_*.
func (c *Config) input(e *environment, name string) Input {
	in := Input{Name: name}
	under := in.variable()
	e.parse(&in, under, in.defaults(e, under))
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
	in.applies(e, under)
	in.vault(e, under)
	in.filter(e, under)
	in.onFull(e, under)
	in.records(e, under, c)
	in.messages(e, under)
	if in.SoRcvbuf != 0 {
		e.between(under+"SO_RCVBUF", in.SoRcvbuf, 4<<10, 1<<30)
	}
	if in.KeepAlive != 0 && in.KeepAlive < time.Second {
		e.problem(under+"KEEPALIVE", "out of bounds: use 1s or more, or 0 for never")
	}
	if in.MaxMessageAge != 0 && in.MaxMessageAge < time.Second {
		e.problem(under+"MAX_MESSAGE_AGE", "out of bounds: use 1s or more, or 0 for never")
	}
	in.allow(e, under)
	in.peers(e, under)
	in.socketFile(e, under)
	in.tls(e, under)
	in.requests(e, under)
	return in
}

// applies refuses the options that inputs of this kind do not have.
func (in *Input) applies(e *environment, under string) {
	options, what := in.options()
	for _, o := range slices.Concat(ofSockets, ofStreams, ofConnections, ofNetwork, ofTCP, ofHTTP, ofPeers, ofFiles, ofTLS) {
		switch {
		case slices.Contains(options, o):
		case in.datagram() || in.Scheme == "unixpacket" && slices.Contains(ofStreams, o):
			e.idle(under+o, "changes nothing for %s, where each datagram is one message: remove it", what)
		case in.http() && ofRequests[o] != "":
			e.idle(under+o, "changes nothing for an http input, %s: remove it", ofRequests[o])
		default:
			e.idle(under+o, "changes nothing for %s: remove it", what)
		}
	}
}

// ofRequests says why http inputs do without an option.
var ofRequests = map[string]string{
	"FRAMING":   "where each request is a message, or each of its lines with Content-Type application/x-ndjson",
	"DELIMITER": "where each request is a message, or each of its lines with Content-Type application/x-ndjson",
	"MULTILINE": "where each request is a message, or each of its lines with Content-Type application/x-ndjson",
	"OVERSIZE":  "which answers 413 to a larger message",
	"ON_FULL":   "which answers 503 as long as there is no room",
}

// messages checks how a stream or a datagram becomes messages.
func (in *Input) messages(e *environment, under string) {
	if in.http() {
		return
	}
	if in.datagram() || in.Scheme == "unixpacket" {
		if in.Oversize == framing.Split || in.Oversize == framing.Close {
			e.problem(under+"OVERSIZE", "not for datagrams: use truncate or drop")
		}
		return
	}
	if in.Framing == framing.Octet || in.Framing == framing.NUL || in.Framing == framing.JSONX {
		if e.has(under + "DELIMITER") {
			e.problem(under+"DELIMITER", "has no effect with %sFRAMING=%v: remove one of them", under, in.Framing)
		}
		e.idle(under+"MULTILINE", "has no effect with %sFRAMING=%v, which knows no lines: remove one of them", under, in.Framing)
	}
}

// options are those of the input, of all that not every kind has, and what it is.
func (in *Input) options() (options []string, what string) {
	switch {
	case in.Scheme != "fd" || in.Socket == "fd":
		return inputKinds[in.Scheme].options, in.what()
	case in.Socket == "tcp":
		options = inputKinds["tls"].options
	default: // whose file is systemd's
		options = slices.DeleteFunc(slices.Clone(inputKinds[in.Socket].options), func(o string) bool { return slices.Contains(ofFiles, o) })
	}
	return options, "a " + in.Socket + " socket of systemd's"
}

// onFull checks what becomes of records for which there is no room.
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
