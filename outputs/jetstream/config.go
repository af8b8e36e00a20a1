package jetstream

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"spillway/outputs"
)

// Config is the options of an output. New takes a zero field for its default;
// Validate does not.
type Config struct {
	// Servers is the output's URL: nats://, tls://, ws:// or wss://host:port, more
	// servers of the cluster behind commas. It may hold user:password@ or token@.
	Servers string `env:"-"`

	Stream  string `env:"STREAM" doc:"the stream that must store the batches: another one that answers for the subject is refused; empty: any stream"`
	Domain  string `env:"DOMAIN" doc:"the JetStream domain that must store the batches, as when they travel through a leaf node; empty: any domain"`
	Subject string `env:"SUBJECT" envDefault:"logs.{site}.{agent}.{lane}" doc:"the subject of the batches; {site}, {agent} and {lane} are filled in"`

	MaxInflight      int           `env:"MAX_INFLIGHT" envDefault:"16" doc:"batches of a lane that may wait for their acknowledgement, 1 to 256"`
	MaxInflightBytes outputs.Size  `env:"MAX_INFLIGHT_BYTES" envDefault:"8MiB" doc:"bytes of a lane that may wait for their acknowledgement; one batch may exceed them alone"`
	AckTimeout       time.Duration `env:"ACK_TIMEOUT" envDefault:"10s" doc:"how long the server may be silent before what was sent is in doubt and sent again"`

	CredsFile string `env:"CREDS_FILE" secret:"file" doc:"file with a user's JWT and seed, read again at each connect"`
	NkeyFile  string `env:"NKEY_FILE" secret:"file" doc:"file with a user's nkey seed, read again at each connect"`
	User      string `env:"USER" doc:"user name"`
	Password  string `env:"PASSWORD" secret:"true" doc:"password of the user"`
	Token     string `env:"TOKEN" secret:"true" doc:"token, where the server wants one instead of a user"`

	// Where Password and Token are from, if that is a file: it is read again at each
	// connect.
	PasswordFile string `env:"-"`
	TokenFile    string `env:"-"`

	TLSCAFile   string `env:"TLS_CA_FILE" doc:"file with the CA certificates that the server's certificate must come from, in PEM, read again at each connect; empty: those of the system"`
	TLSCertFile string `env:"TLS_CERT_FILE" doc:"file with the client certificate in PEM, read again at each connect"`
	TLSKeyFile  string `env:"TLS_KEY_FILE" secret:"file" doc:"file with the key of the client certificate in PEM, read again at each connect"`
	TLSFirst    bool   `env:"TLS_FIRST" envDefault:"false" doc:"true: TLS begins before the server has said anything, as its handshake_first wants it"`

	InboxPrefix      string        `env:"INBOX_PREFIX" envDefault:"_INBOX_{agent}" doc:"beginning of the subjects of acknowledgements, so that permissions can name it; {site} and {agent} are filled in"`
	ReconnectMin     time.Duration `env:"RECONNECT_MIN" envDefault:"250ms" doc:"first pause before a lost connection is made again; pauses double, with jitter"`
	ReconnectMax     time.Duration `env:"RECONNECT_MAX" envDefault:"30s" doc:"longest pause before a lost connection is made again"`
	PingInterval     time.Duration `env:"PING_INTERVAL" envDefault:"20s" doc:"how often an idle connection is tried; it is given up when two pings stay unanswered"`
	ConnectTimeout   time.Duration `env:"CONNECT_TIMEOUT" envDefault:"5s" doc:"how long one attempt to connect to one server may take"`
	IgnoreDiscovered bool          `env:"IGNORE_DISCOVERED" envDefault:"false" doc:"true: connect to the servers of the URL only, not to others of the cluster that they announce, whose addresses may mean nothing here"`
}

// maxInflight bounds MAX_INFLIGHT. It is far below the 4,000 at which nats.go
// makes a publisher wait.
const maxInflight = 256

// withDefaults returns c with its zero fields filled.
func (c Config) withDefaults() Config {
	c.Servers = sameScheme(c.Servers)
	c.Subject = cmp.Or(c.Subject, "logs.{site}.{agent}.{lane}")
	c.MaxInflight = cmp.Or(c.MaxInflight, 16)
	c.MaxInflightBytes = cmp.Or(c.MaxInflightBytes, 8<<20)
	c.AckTimeout = cmp.Or(c.AckTimeout, 10*time.Second)
	c.InboxPrefix = cmp.Or(c.InboxPrefix, "_INBOX_{agent}")
	c.ReconnectMin = cmp.Or(c.ReconnectMin, 250*time.Millisecond)
	c.ReconnectMax = cmp.Or(c.ReconnectMax, max(30*time.Second, c.ReconnectMin))
	c.PingInterval = cmp.Or(c.PingInterval, 20*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 5*time.Second)
	return c
}

// sameScheme gives servers without a scheme that of the first one, where nats.go
// would take nats:// for them.
func sameScheme(servers string) string {
	list := strings.Split(servers, ",")
	scheme, _, _ := strings.Cut(list[0], "://")
	for i, s := range list {
		if list[i] = strings.TrimSpace(s); i > 0 && !strings.Contains(s, "://") {
			list[i] = scheme + "://" + list[i]
		}
	}
	return strings.Join(list, ",")
}

var (
	tokenRule  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	streamRule = regexp.MustCompile(`^[^\s.*>/\\\x00-\x1f\x7f]{1,255}$`) // what nats-server takes
	fieldRule  = regexp.MustCompile(`\{[^}]*\}?`)
)

// Validate returns the problems of c, one a line, each beginning with the option
// that it is about. It reads the files that options name, and nothing else.
func (c *Config) Validate() error {
	d := *c
	d.Servers = sameScheme(d.Servers)
	var errs []error
	problem := func(option, format string, args ...any) {
		errs = append(errs, fmt.Errorf(option+": "+format, args...))
	}
	inURL := d.checkServers(problem)
	if d.Stream != "" && !streamRule.MatchString(d.Stream) {
		problem("STREAM", "%q is no name of a stream: it has no blanks, dots, slashes, * or >", d.Stream)
	}
	if d.Domain != "" && !tokenRule.MatchString(d.Domain) {
		problem("DOMAIN", "%q is no name of a domain: use 1 to 64 of A-Z, a-z, 0-9, _ and -", d.Domain)
	}
	if what := subjectProblem(d.Subject, "{site}", "{agent}", "{lane}"); what != "" {
		problem("SUBJECT", "%q %s", d.Subject, what)
	}
	if what := subjectProblem(d.InboxPrefix, "{site}", "{agent}"); what != "" {
		problem("INBOX_PREFIX", "%q %s", d.InboxPrefix, what)
	}
	if d.MaxInflight < 1 || d.MaxInflight > maxInflight {
		problem("MAX_INFLIGHT", "out of bounds: use 1 to %d", maxInflight)
	}
	if d.MaxInflightBytes < 0 || d.MaxInflightBytes > 1<<30 {
		problem("MAX_INFLIGHT_BYTES", "out of bounds: use at most 1GiB")
	}
	for _, o := range []struct {
		name      string
		v         time.Duration
		low, high time.Duration
	}{
		{"ACK_TIMEOUT", d.AckTimeout, 100 * time.Millisecond, time.Hour},
		{"RECONNECT_MIN", d.ReconnectMin, 10 * time.Millisecond, time.Hour},
		{"RECONNECT_MAX", d.ReconnectMax, d.ReconnectMin, time.Hour},
		{"PING_INTERVAL", d.PingInterval, time.Second, time.Hour},
		{"CONNECT_TIMEOUT", d.ConnectTimeout, 100 * time.Millisecond, time.Hour},
	} {
		if o.v < o.low || o.v > o.high {
			problem(o.name, "out of bounds: use %v to %v", o.low, o.high)
		}
	}
	d.checkAuth(problem, inURL)
	d.checkTLS(problem)
	return errors.Join(errs...)
}

// checkServers checks the URL and returns whether it holds a user or a token.
func (c *Config) checkServers(problem func(option, format string, args ...any)) (auth bool) {
	ws := 0
	list := strings.Split(c.Servers, ",")
	for _, s := range list {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			problem("URL", "not a URL: write it as in nats://host:4222; special characters of a password are written as %%HH")
			return auth
		case u.Scheme == "ws" || u.Scheme == "wss":
			ws++
		case u.Scheme != "nats" && u.Scheme != "tls":
			problem("URL", "%q is no scheme of a NATS server: use nats, tls, ws or wss, as in nats://host:4222", u.Scheme)
			return auth
		}
		if u.Hostname() == "" {
			problem("URL", "names no host: write it as in %s://host:4222", u.Scheme)
		}
		if ws == 0 && strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			problem("URL", "has something behind host and port: remove it, and name the stream with STREAM")
		}
		auth = auth || u.User != nil
	}
	if ws > 0 && ws < len(list) {
		problem("URL", "mixes websocket servers with others: use one kind")
	}
	return auth
}

// subjectProblem says what is wrong with a subject that may have fields.
func subjectProblem(subject string, fields ...string) string {
	for _, f := range fieldRule.FindAllString(subject, -1) {
		known := false
		for _, k := range fields {
			known = known || f == k
		}
		if !known {
			return fmt.Sprintf("has the field %s: use %s", f, strings.Join(fields, ", "))
		}
	}
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n") {
			return "is no subject to send to: tokens between dots are not empty and have no blanks, * or >"
		}
	}
	if strings.HasPrefix(subject, "$") {
		return "begins with $, as the server's own subjects do: use another one"
	}
	return ""
}

// checkAuth holds the options to one way of authentication. A client certificate
// is none of them: it may come along.
func (c *Config) checkAuth(problem func(option, format string, args ...any), inURL bool) {
	var ways []string
	for _, w := range []struct {
		option string
		set    bool
	}{{"URL (with user or token)", inURL}, {"CREDS_FILE", c.CredsFile != ""}, {"NKEY_FILE", c.NkeyFile != ""}, {"USER", c.User != ""}, {"TOKEN", c.Token != ""}} {
		if w.set {
			ways = append(ways, w.option)
		}
	}
	if len(ways) > 1 {
		last := ways[len(ways)-1]
		problem(last, "one way of authentication is enough, and %s is set too: keep one", strings.Join(ways[:len(ways)-1], " and "))
	}
	if c.Password != "" && c.User == "" {
		problem("PASSWORD", "set without USER: set both")
	}
	if c.CredsFile != "" {
		if _, err := c.credentials(); err != nil {
			problem("CREDS_FILE", "%v", err)
		}
	}
	if c.NkeyFile != "" {
		if _, err := c.seed(); err != nil {
			problem("NKEY_FILE", "%v", err)
		}
	}
}

func (c *Config) checkTLS(problem func(option, format string, args ...any)) {
	switch {
	case c.TLSCertFile != "" && c.TLSKeyFile == "":
		problem("TLS_KEY_FILE", "not set, and TLS_CERT_FILE is: set both")
	case c.TLSCertFile == "" && c.TLSKeyFile != "":
		problem("TLS_CERT_FILE", "not set, and TLS_KEY_FILE is: set both")
	case c.TLSCertFile != "":
		if _, err := c.certificate(); err != nil {
			problem("TLS_CERT_FILE", "%v: name the certificate and its key in PEM", err)
		}
	}
	if c.TLSCAFile != "" {
		if _, err := c.roots(); err != nil {
			problem("TLS_CA_FILE", "%v", err)
		}
	}
	if c.TLSFirst && !c.secure() {
		problem("TLS_FIRST", "changes nothing without TLS: write the URL as in tls://host:4222, or remove this")
	}
}

// secure reports whether connections are to use TLS whatever the server says.
func (c *Config) secure() bool {
	return strings.HasPrefix(c.Servers, "tls://") || strings.HasPrefix(c.Servers, "wss://") || c.TLSCAFile != "" || c.TLSCertFile != ""
}

func (c *Config) certificate() (tls.Certificate, error) {
	return tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile)
}

func (c *Config) roots() (*x509.CertPool, error) {
	pem, err := read(c.TLSCAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", c.TLSCAFile)
	}
	return pool, nil
}
