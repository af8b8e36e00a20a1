package main

import (
	"cmp"
	"log/slog"
	"net/url"
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

	URL              string           `env:"URL" doc:"tcp://host:port or udp://host:port; localhost (also no host) is 127.0.0.1 and ::1, port 0 any free one" default:"tcp://localhost:5514 and udp://localhost:5514 for inputs called tcp and udp"`
	Framing          framing.Mode     `env:"FRAMING" envDefault:"auto" doc:"how a stream is cut into messages: auto, delimiter, rfc6587, octet or nul"`
	Delimiter        []byte           `env:"DELIMITER" envDefault:"\\n" doc:"what ends a message; escapes \\n \\r \\t \\0 \\\\ \\xHH"`
	ParseName        string           `env:"PARSE" envDefault:"auto" doc:"header of messages: auto, rfc3164, rfc5424 or none"`
	Dataset          string           `env:"DATASET" doc:"event.dataset of the records" default:"tcp.generic or udp.generic"`
	Pipeline         string           `env:"PIPELINE" doc:"labels.pipeline of the records, for whoever reads them"`
	Tags             list             `env:"TAGS" doc:"tags of the records, with commas between them"`
	TimezoneName     string           `env:"TIMEZONE" envDefault:"Local" doc:"zone of header times that have none, as in Europe/Berlin"`
	PreserveOriginal ecs.Original     `env:"PRESERVE_ORIGINAL" envDefault:"false" doc:"true: records also carry the message as it was received, in event.original; base64: as base64, every byte"`
	Lane             string           `env:"LANE" envDefault:"main" doc:"lane of the records; each has a buffer of its own"`
	MaxMessageSize   outputs.Size     `env:"MAX_MESSAGE_SIZE" envDefault:"20MiB" doc:"largest message, at most 64MiB"`
	Oversize         framing.Oversize `env:"OVERSIZE" envDefault:"truncate" doc:"what becomes of a larger one: truncate, split, drop or close"`
	MaxConnections   int              `env:"MAX_CONNECTIONS" envDefault:"4096" doc:"connections at one time; one more is closed at once; 0: no limit"`
	IdleTimeout      time.Duration    `env:"IDLE_TIMEOUT" envDefault:"300s" doc:"a connection that sends nothing for so long is closed; 0: never"`
	SoRcvbuf         outputs.Size     `env:"SO_RCVBUF" envDefault:"8MiB" doc:"receive buffer to ask of the kernel (udp)"`
	OnFullName       string           `env:"ON_FULL" doc:"when the buffer has no room: block (senders wait) or drop (after 1s; counted, and a gap record tells)" default:"block for tcp, drop for udp"`

	// Derived.
	Scheme   string          `env:"-"` // tcp or udp
	Address  string          `env:"-"` // host:port
	Parse    bool            `env:"-"` // false: the message is the text
	Format   syslog.Format   `env:"-"` // when Parse
	Timezone *time.Location  `env:"-"`
	OnFull   pipeline.OnFull `env:"-"`
}

// datagram reports whether the input is one of datagrams, not of streams.
func (in *Input) datagram() bool { return in.Scheme == "udp" }

// framing are the options of the input's splitters.
func (in *Input) framing() framing.Options {
	return framing.Options{Mode: in.Framing, Delimiter: in.Delimiter, MaxMessageSize: int(in.MaxMessageSize), Oversize: in.Oversize, NonSyslog: !in.Parse}
}

// inputURLs are the URLs of inputs whose name says all.
var inputURLs = map[string]string{"tcp": "tcp://localhost:5514", "udp": "udp://localhost:5514"}

// input reads SPILLWAY_INPUT_<NAME>_*.
func (c *Config) input(e *environment, name string) Input {
	under := prefix + "INPUT_" + strings.ToUpper(name) + "_"
	defaults := map[string]string{"URL": inputURLs[name]}
	switch scheme, _, _ := strings.Cut(cmp.Or(e.vars[under+"URL"].text, inputURLs[name]), "://"); scheme {
	case "tcp":
		defaults["DATASET"], defaults["ON_FULL"] = "tcp.generic", "block"
	case "udp":
		defaults["DATASET"], defaults["ON_FULL"] = "udp.generic", "drop"
	}
	in := Input{Name: name}
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
	why := "has no effect on a stream: remove it"
	idle := []string{"SO_RCVBUF"}
	if in.datagram() {
		why = "has no effect on datagrams, each of which is one message: remove it"
		idle = []string{"FRAMING", "DELIMITER", "MAX_CONNECTIONS", "IDLE_TIMEOUT"}
	}
	for _, o := range idle {
		if e.has(under + o) {
			e.problem(under+o, "%s", why)
		} else {
			e.hide(under + o)
		}
	}
	if in.datagram() {
		if in.Oversize == framing.Split || in.Oversize == framing.Close {
			e.problem(under+"OVERSIZE", "not for datagrams: use truncate or drop")
		}
		e.between(under+"SO_RCVBUF", in.SoRcvbuf, 4<<10, 1<<30)
	} else if (in.Framing == framing.Octet || in.Framing == framing.NUL) && e.has(under+"DELIMITER") {
		e.problem(under+"DELIMITER", "has no effect with %sFRAMING=%v: remove one of them", under, in.Framing)
	}
	return in
}

// url takes the input's URL apart.
func (in *Input) url(e *environment, under string) bool {
	name := under + "URL"
	u, err := url.Parse(in.URL)
	if err != nil {
		e.problem(name, "%v: write it as in tcp://localhost:5514", urlCause(err))
		return false
	}
	switch u.Scheme {
	case "tcp", "udp":
	case "tls":
		e.problem(name, "this version has no tls inputs: use tcp:// on localhost with a TLS proxy before it")
		return false
	case "unix", "unixgram", "unixpacket", "http", "fd":
		e.problem(name, "this version has no %s inputs: use tcp:// or udp://", u.Scheme)
		return false
	case "":
		e.problem(name, "has no scheme: write it as in tcp://localhost:5514")
		return false
	default:
		e.problem(name, "%s is no kind of input: use tcp:// or udp://", u.Scheme)
		return false
	}
	if u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		e.problem(name, "has more than a host and a port: write it as in %s://localhost:5514", u.Scheme)
		return false
	}
	if in.Address, err = checkAddress(u.Host); err != nil {
		e.problem(name, "%v", err)
		return false
	}
	in.Scheme = u.Scheme
	return true
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
	case "block":
		in.OnFull = pipeline.Block
	case "drop":
		in.OnFull = pipeline.Drop
	case "refuse":
		e.problem(under+"ON_FULL", "not in this version: use block (senders wait) or drop")
	default:
		e.problem(under+"ON_FULL", "unknown: use block or drop")
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
			e.problem(under+o.variable, "%v", err)
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
	return listen.Options{
		Name: in.Name, Variable: prefix + "INPUT_" + strings.ToUpper(in.Name) + "_", Network: in.Scheme, Address: in.Address,
		Framing: in.framing(), ReceiveBuffer: int(in.SoRcvbuf), MaxConnections: in.MaxConnections, IdleTimeout: in.IdleTimeout, Log: log,
	}
}

// openInput opens the sockets of an input. memory is shared by the inputs of its lane.
func openInput(ic Input, c *Config, l *pipeline.Lane, memory *listen.Memory, host string, log *slog.Logger) (*input, error) {
	in := &input{cfg: ic}
	in.records = pipeline.NewInput(pipeline.InputOptions{
		Name: ic.Name, Lane: l, Parse: ic.Parse, Format: ic.Format, Zone: ic.Timezone, OnFull: ic.OnFull,
		Records: ecs.Options{Dataset: ic.Dataset, Agent: c.Agent, Host: host, InputType: ic.Scheme, Pipeline: ic.Pipeline, Tags: ic.Tags, PreserveOriginal: ic.PreserveOriginal},
	})
	o := ic.listen(log)
	o.Memory, o.Open = memory, in.records.Open
	var err error
	in.server, err = listen.Listen(o)
	if err != nil {
		return nil, err
	}
	return in, nil
}
