package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// Config is the whole configuration, read from the environment alone. Defaults
// and the reference come from the tags; see environment.parse.
type Config struct {
	EnvFile string `env:"ENV_FILE" doc:"file of KEY=VALUE lines; the environment wins over it"`
	Strict  bool   `env:"STRICT" envDefault:"true" doc:"false: an unknown name that begins with SPILLWAY_ is a warning, not an error"`

	StateDir string `env:"STATE_DIR" envDefault:"./spillway-data" doc:"directory of everything the agent keeps: a buffer for each lane, and the outbox if there is no other output"`
	Agent    string `env:"AGENT" doc:"stable name of this agent, part of every identity, at most 64 characters; any outside A-Z, a-z, 0-9, _ and - becomes _" default:"the host name"`
	Site     string `env:"SITE" envDefault:"default" doc:"name of the place, part of subjects and keys; the same characters as AGENT"`

	InputNames  list `env:"INPUTS" envDefault:"tcp,udp" doc:"names of the inputs, with commas between them"`
	OutputNames list `env:"OUTPUTS" envDefault:"outbox" doc:"names of the outputs, in failover order"`

	Encoding         string      `env:"ENCODING" envDefault:"ndjson" doc:"ndjson: records are JSON lines with ECS names; raw: the message bytes only"`
	Compression      batch.Codec `env:"COMPRESSION" envDefault:"zstd" doc:"zstd, gzip or none"`
	CompressionLevel int         `env:"COMPRESSION_LEVEL" envDefault:"1" doc:"1 (fast) to 4 for zstd, to 9 for gzip"`

	SyslogNames string `env:"SYSLOG_NAMES" envDefault:"elastic" doc:"names of facilities and severities in records: elastic (security/authorization, Warning) or short (auth, warning)"`

	MessageMemory outputs.Size `env:"MESSAGE_MEMORY" envDefault:"64MiB" doc:"what the unfinished messages of all connections of a lane may take together; at the bound the largest is treated as too large, and bodies of requests, which may take half of it, are answered with 503. Raised to the largest MAX_MESSAGE_SIZE, of http twice that, and 1MiB"`

	AdminAddress  string        `env:"ADMIN_ADDRESS" envDefault:"localhost:8514" doc:"host:port of /metrics, /healthz, /readyz and /debug/pprof/; localhost (also no host) is 127.0.0.1 and ::1"`
	LogLevelName  string        `env:"LOG_LEVEL" envDefault:"info" doc:"debug, info, warn or error"`
	LogFormat     string        `env:"LOG_FORMAT" envDefault:"text" doc:"text or json"`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" envDefault:"10s" doc:"how long a stop goes on sending; what is left waits in the buffer"`

	Failover FailoverConfig `env:"-"` // SPILLWAY_FAILOVER_*, SPILLWAY_FAILBACK*
	Buffer   BufferConfig   `env:"-"` // SPILLWAY_BUFFER_*
	Batch    BatchConfig    `env:"-"` // SPILLWAY_BATCH_*
	Inputs   []Input        `env:"-"` // SPILLWAY_INPUT_<NAME>_*, in the order of INPUTS
	Outputs  []OutputConfig `env:"-"` // SPILLWAY_OUTPUT_<NAME>_*, in the order of OUTPUTS

	LogLevel slog.Level `env:"-"`
	Notes    []string   `env:"-"` // to be said at start: what was changed, what stands idle

	settings []*setting // every variable with its value and origin
	passed   []string   // names of the sockets that systemd handed over
	envText  string     // what EnvFile held
}

// FailoverConfig says when an output is left and when it is used again.
type FailoverConfig struct {
	After    time.Duration `env:"FAILOVER_AFTER" envDefault:"30s" doc:"how long an output may fail, or say nothing, before the next one is used"`
	Failback bool          `env:"FAILBACK" envDefault:"true" doc:"true: go back to an output of higher rank once it works again; false: stay, and take the next one in turn when this one fails too"`
	Interval time.Duration `env:"FAILBACK_INTERVAL" envDefault:"60s" doc:"time between two probes of an output that was left"`
	Probes   int           `env:"FAILBACK_PROBES" envDefault:"3" doc:"probes that must succeed in a row before it is used again"`
	Dwell    time.Duration `env:"FAILBACK_DWELL" envDefault:"60s" doc:"how long it is left at least; INTERVAL times PROBES passes anyway, so that only a longer time changes anything"`
}

// BufferConfig is SPILLWAY_BUFFER_*: the limits of each lane's buffer.
type BufferConfig struct {
	MaxBytes     outputs.Size      `env:"MAX_BYTES" doc:"disk space of one lane, at least 4MiB" default:"1GiB, at most 10 % of the file system"`
	MinFree      *outputs.Size     `env:"MIN_FREE" doc:"free space that is left to others; 0: all may be used" default:"256MiB, at most 5 % of the file system"`
	Reserve      *outputs.Size     `env:"RESERVE" doc:"room that is kept for what connections still hold when an input with ON_FULL=refuse closes them; only in lanes with such an input" default:"8MiB, at most 1/8 of MAX_BYTES"`
	FullName     string            `env:"FULL" envDefault:"hold" doc:"hold: a full buffer takes nothing more; drop_oldest: its oldest segments make room, and a gap record tells"`
	MaxAge       time.Duration     `env:"MAX_AGE" envDefault:"0" doc:"what could not be delivered for so long is removed, a whole segment at a time, and a gap record tells; only while the clock is synchronised; 0: kept however old"`
	DrainRate    outputs.Size      `env:"DRAIN_RATE" envDefault:"0" doc:"bytes a second at which what has waited for 10s or longer is sent, by all lanes together; 0: as fast as outputs take it"`
	SyncName     string            `env:"SYNC" envDefault:"group" doc:"group: what was taken in is on disk, several batches share an fsync; interval: fsync every SYNC_INTERVAL; never: when the kernel likes"`
	SyncInterval time.Duration     `env:"SYNC_INTERVAL" envDefault:"1s" doc:"how much a power cut may cost with SYNC=interval"`
	KeepAcked    time.Duration     `env:"KEEP_ACKED" envDefault:"10m" doc:"how long delivered segments are kept; 0: not at all"`
	MaxUnsynced  outputs.Size      `env:"MAX_UNSYNCED" envDefault:"8MiB" doc:"bytes that may wait for it"`
	Memory       outputs.Size      `env:"MEMORY" envDefault:"16MiB" doc:"memory of each lane in which records are kept, and go on from, while the disk takes no writes (errors, read-only); they are not durable there; 0: none, inputs wait"`
	Quarantine   outputs.Size      `env:"QUARANTINE_MAX_BYTES" envDefault:"64MiB" doc:"damaged segments that are kept aside, once what is good in them is delivered; 0: none"`
	Rejected     outputs.Size      `env:"REJECTED_MAX_BYTES" envDefault:"64MiB" doc:"batches kept aside that no output takes; 0: none"`
	NetworkFS    bool              `env:"NETWORK_FS" envDefault:"false" doc:"true: allow a buffer on a network file system, whose locks and fsyncs are weaker"`
	Full         buffer.Policy     `env:"-"`
	Sync         buffer.SyncPolicy `env:"-"`
}

// BatchConfig is SPILLWAY_BATCH_*: when an open batch is sealed.
type BatchConfig struct {
	MaxBytes   outputs.Size  `env:"MAX_BYTES" envDefault:"512KiB" doc:"compressed size to aim at, at most 900KiB"`
	MaxRaw     outputs.Size  `env:"MAX_RAW" envDefault:"4MiB" doc:"size before compression"`
	MaxRecords int           `env:"MAX_RECORDS" envDefault:"5000" doc:"records"`
	MaxAge     time.Duration `env:"MAX_AGE" envDefault:"1s" doc:"time since its first record"`
	MaxAgeHeld time.Duration `env:"MAX_AGE_HELD" envDefault:"5s" doc:"the same while the output fails, or gathers for longer than this anyway; at least MAX_AGE"`
}

var (
	nameRule  = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)
	tokenRule = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

const (
	maxMessageSize = 64 << 20
	minBuffer      = 4 << 20

	leastAge = 10 * time.Minute // after each start nothing expires for so long anyway

	fewSegments   outputs.Size = 32 << 20 // below it, dropping the oldest of the 1 MiB segments is a loss of several percent
	littleReserve outputs.Size = 1 << 20  // below it, a lane has no room for what a few connections hold
	smallBatch    outputs.Size = 32 << 10 // below it, zstd has too little to find repeats in
)

// loadConfig reads the configuration from environ ("KEY=VALUE"). It looks at the
// host name, at files, users and groups that variables name, at the kind of sockets
// that systemd handed over, and at nothing else. Its error has
// one line for each problem, and each begins with the variable.
func loadConfig(environ []string) (*Config, error) {
	e := newEnvironment(environ)
	c := &Config{}
	host, _ := os.Hostname()
	e.parse(c, prefix, map[string]string{"AGENT": cmp.Or(host, "localhost")})
	e.parse(&c.Failover, prefix, nil)
	e.parse(&c.Buffer, prefix+"BUFFER_", nil)
	e.parse(&c.Batch, prefix+"BATCH_", nil)
	c.general(e)
	c.limits(e)

	inputs := c.names(e, "INPUTS", c.InputNames)
	outs := c.names(e, "OUTPUTS", c.OutputNames)
	for _, name := range inputs {
		c.Inputs = append(c.Inputs, c.input(e, name))
	}
	var blind []string // outputs whose kind is not known
	for _, name := range outs {
		o, ok := c.output(e, name)
		if !ok {
			blind = append(blind, name)
			continue
		}
		c.Outputs = append(c.Outputs, o)
	}
	c.failover(e, len(outs))
	c.acrossInputs(e)
	c.acrossOutputs(e)
	c.passed = c.leftOver(e, environ)
	e.unknown(c.Strict || e.bad[prefix+"STRICT"], map[string]list{"INPUT": inputs, "OUTPUT": outs}, blind)
	e.secretsInFile()
	c.settings, c.Notes, c.envText = e.settings, e.notes, e.fileText
	return c, errors.Join(e.problems...)
}

// general checks what stands alone.
func (c *Config) general(e *environment) {
	if dir, err := filepath.Abs(c.StateDir); err != nil {
		e.problem(prefix+"STATE_DIR", "%v: give an absolute path", err)
	} else {
		c.StateDir = dir
	}
	if agent := cleanAgent(c.Agent); agent != c.Agent {
		e.adjust(prefix+"AGENT", agent, "this agent is called %q: names are 1 to 64 of A-Z, a-z, 0-9, _ and -", agent)
		c.Agent = agent
	}
	if !tokenRule.MatchString(c.Site) {
		e.problem(prefix+"SITE", "not a name: use 1 to 64 of A-Z, a-z, 0-9, _ and -")
	}
	c.Encoding = e.oneOf(prefix+"ENCODING", c.Encoding, "ndjson", "raw")
	c.SyslogNames = e.oneOf(prefix+"SYSLOG_NAMES", c.SyslogNames, "elastic", "short")
	const level = prefix + "COMPRESSION_LEVEL"
	switch most := map[batch.Codec]int{batch.Zstd: 4, batch.Gzip: 9}[c.Compression]; {
	case most == 0:
		e.idle(level, "changes nothing with SPILLWAY_COMPRESSION=none: remove it")
	case c.CompressionLevel < 1 || c.CompressionLevel > most:
		e.problem(level, "out of bounds: %v has levels 1 (fast) to %d", c.Compression, most)
	}
	c.LogFormat = e.oneOf(prefix+"LOG_FORMAT", c.LogFormat, "text", "json")
	if err := c.LogLevel.UnmarshalText([]byte(e.oneOf(prefix+"LOG_LEVEL", c.LogLevelName, "debug", "info", "warn", "error"))); err != nil {
		e.problem(prefix+"LOG_LEVEL", "%v", err)
	}
	if address, err := checkAddress(c.AdminAddress); err != nil {
		e.problem(prefix+"ADMIN_ADDRESS", "%v", err)
	} else {
		c.AdminAddress = address
	}
}

// cleanAgent makes a name that may be part of identities, subjects and keys.
func cleanAgent(s string) string {
	b := []byte(s)
	if len(b) > 64 {
		b = b[:64]
	}
	for i, c := range b {
		if !tokenRule.Match([]byte{c}) {
			b[i] = '_'
		}
	}
	return string(b)
}

// failover checks what SPILLWAY_FAILOVER_* and SPILLWAY_FAILBACK* say to n outputs.
func (c *Config) failover(e *environment, n int) {
	f := &c.Failover
	if f.After < 100*time.Millisecond {
		e.problem(prefix+"FAILOVER_AFTER", "out of bounds: use 100ms or more")
	}
	if f.Interval < 100*time.Millisecond {
		e.problem(prefix+"FAILBACK_INTERVAL", "out of bounds: use 100ms or more")
	}
	if f.Probes < 1 || f.Probes > 1000 {
		e.problem(prefix+"FAILBACK_PROBES", "out of bounds: use 1 to 1000")
	}
	for _, name := range []string{"FAILOVER_AFTER", "FAILBACK", "FAILBACK_INTERVAL", "FAILBACK_PROBES", "FAILBACK_DWELL"} {
		switch {
		case n == 1:
			e.idle(prefix+name, "changes nothing with one output: remove it, or name another one in SPILLWAY_OUTPUTS")
		case !f.Failback && strings.HasPrefix(name, "FAILBACK_"):
			e.idle(prefix+name, "changes nothing with SPILLWAY_FAILBACK=false: remove it")
		}
	}
	// The first probe comes after half an interval at the earliest (outputs.Chain).
	if anyway := f.Interval*time.Duration(f.Probes) - f.Interval/2; n > 1 && f.Failback && e.has(prefix+"FAILBACK_DWELL") && f.Dwell <= anyway && f.Probes <= 1000 {
		e.note(prefix+"FAILBACK_DWELL", "changes nothing: %d probes (SPILLWAY_FAILBACK_PROBES), one in %v (SPILLWAY_FAILBACK_INTERVAL), take %v at least: use a longer time, or remove it", f.Probes, f.Interval, anyway)
	}
}

// limits checks the buffer's and the batches'.
func (c *Config) limits(e *environment) {
	const buf, bat = prefix + "BUFFER_", prefix + "BATCH_"
	b := &c.Buffer
	if e.has(buf + "MAX_BYTES") {
		e.between(buf+"MAX_BYTES", b.MaxBytes, minBuffer, 1<<50)
	}
	var err error
	if b.Full, err = buffer.ParsePolicy(strings.ToLower(b.FullName)); err != nil {
		e.problem(buf+"FULL", "unknown: use hold or drop_oldest")
	}
	if b.Sync, err = buffer.ParseSync(strings.ToLower(b.SyncName)); err != nil {
		e.problem(buf+"SYNC", "unknown: use group, interval or never")
	} else if b.Sync != buffer.SyncInterval {
		for _, o := range []string{"SYNC_INTERVAL", "MAX_UNSYNCED"} {
			e.idle(buf+o, "changes nothing with SPILLWAY_BUFFER_SYNC=%v: remove it, or set SPILLWAY_BUFFER_SYNC=interval", b.Sync)
		}
	} else if b.SyncInterval == 0 {
		e.problem(buf+"SYNC_INTERVAL", "must be more than 0: use SPILLWAY_BUFFER_SYNC=group to sync at once")
	}
	e.between(buf+"MAX_UNSYNCED", b.MaxUnsynced, 64<<10, 1<<30)
	if b.Memory != 0 {
		e.between(buf+"MEMORY", b.Memory, 1<<20, 1<<30)
	}
	if b.MaxAge != 0 && b.MaxAge < leastAge {
		e.problem(buf+"MAX_AGE", "out of bounds: use %v or more, or 0 for none", leastAge)
	}
	if b.DrainRate != 0 {
		e.between(buf+"DRAIN_RATE", b.DrainRate, 1<<10, 1<<40)
	}

	if b.Full == buffer.DropOldest && e.has(buf+"MAX_BYTES") && b.MaxBytes >= minBuffer && b.MaxBytes < fewSegments {
		e.note(buf+"MAX_BYTES", "with SPILLWAY_BUFFER_FULL=drop_oldest a full buffer loses a whole segment of 1MiB at a time, here a large part of all that it holds: use %v or more", fewSegments)
	}

	e.between(bat+"MAX_BYTES", c.Batch.MaxBytes, 1<<10, batch.MaxPayload)
	if c.Batch.MaxBytes >= 1<<10 && c.Batch.MaxBytes < smallBatch {
		e.note(bat+"MAX_BYTES", "small batches compress badly, and each costs a message and a write of its own: use %v or more", smallBatch)
	}
	e.between(bat+"MAX_RAW", c.Batch.MaxRaw, 1<<10, 64<<20)
	if c.Batch.MaxRecords < 1 || c.Batch.MaxRecords > 1_000_000 {
		e.problem(bat+"MAX_RECORDS", "out of bounds: use 1 to 1000000")
	}
	if c.Batch.MaxAge == 0 {
		e.problem(bat+"MAX_AGE", "must be more than 0: 10ms is as good as none")
	}
	if c.Batch.MaxAgeHeld < c.Batch.MaxAge {
		if e.has(bat + "MAX_AGE_HELD") {
			e.problem(bat+"MAX_AGE_HELD", "less than SPILLWAY_BATCH_MAX_AGE (%v): raise it, or lower that", c.Batch.MaxAge)
		} else {
			e.follow(bat+"MAX_AGE_HELD", c.Batch.MaxAge.String())
		}
		c.Batch.MaxAgeHeld = c.Batch.MaxAge
	}
}

// acrossInputs checks what depends on all inputs together.
func (c *Config) acrossInputs(e *environment) {
	const memory, reserve = prefix + "MESSAGE_MEMORY", prefix + "BUFFER_RESERVE"
	var least outputs.Size // for the largest message, which may be unfinished
	var largest *Input
	refuse := false
	for i := range c.Inputs {
		in := &c.Inputs[i]
		refuse = refuse || in.refuses()
		if !in.datagram() {
			if need := in.memory(); need > least {
				least, largest = need, in
			}
		}
	}
	if largest == nil {
		e.idle(memory, "changes nothing with inputs that take datagrams only, each of which is one message: remove it")
	} else if c.MessageMemory < least {
		set := e.has(memory) || slices.ContainsFunc(c.Inputs, func(in Input) bool {
			return in.memory() == least && e.has(in.variable()+"MAX_MESSAGE_SIZE")
		})
		if set && largest.http() {
			e.adjust(memory, least.String(), "%v is used, so that the largest body of a request (MAX_MESSAGE_SIZE %v) fits in half of it", least, largest.MaxMessageSize)
		} else if set {
			e.adjust(memory, least.String(), "%v is used, so that the largest message of an input (MAX_MESSAGE_SIZE %v) and 1MiB fit", least, largest.MaxMessageSize)
		} else { // the default of Vault's
			e.follow(memory, least.String())
		}
		c.MessageMemory = least
	}
	c.vaultLanes(e)
	const names = prefix + "SYSLOG_NAMES"
	switch {
	case c.Encoding == "raw":
		e.idle(names, "changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it")
	case !slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.Parse }):
		e.idle(names, "changes nothing as no input reads headers of syslog (PARSE): remove it")
	}
	b := &c.Buffer
	switch {
	case !refuse:
		e.idle(reserve, "changes nothing as no input has ON_FULL=refuse: remove it")
	case b.Reserve != nil && e.has(prefix+"BUFFER_MAX_BYTES") && *b.Reserve > b.MaxBytes/2: // the default is for sizes to judge
		e.problem(reserve, "more than half of SPILLWAY_BUFFER_MAX_BYTES (%v): lower it, or raise that", b.MaxBytes)
	case b.Reserve != nil && *b.Reserve < littleReserve:
		e.note(reserve, "what connections still hold when an input with ON_FULL=refuse closes them may find no room then, and is lost: use %v or more", littleReserve)
	}
}

// acrossOutputs checks that no two outputs are one, and that none is in the buffer.
func (c *Config) acrossOutputs(e *environment) {
	buffers := filepath.Join(c.StateDir, "buffer")
	for i, o := range c.Outputs {
		name := prefix + "OUTPUT_" + strings.ToUpper(o.Name) + "_URL"
		if j := slices.IndexFunc(c.Outputs, func(other OutputConfig) bool { return other.Kind == o.Kind && other.Place == o.Place }); j < i {
			e.problem(name, "output %s sends to the same place: a failover from one to the other would change nothing; remove one", c.Outputs[j].Name)
		}
		if rel, err := filepath.Rel(buffers, o.Place); o.Kind == "file" && err == nil && filepath.IsLocal(rel) {
			e.problem(name, "%s is in the directory of the buffers, %s: choose one beside it", o.Place, buffers)
		}
	}
}

// refuses reports whether the input closes its connections when there is no room.
func (in *Input) refuses() bool { return strings.EqualFold(in.OnFullName, "refuse") }

// options are what Open of every lane's buffer gets.
func (b *BufferConfig) options(c *Config) buffer.Options {
	o := buffer.Options{Agent: c.Agent, MaxBytes: int64(b.MaxBytes), Full: b.Full, Sync: b.Sync, SyncInterval: b.SyncInterval,
		KeepAcked: b.KeepAcked, MaxUnsynced: int64(b.MaxUnsynced), QuarantineBytes: int64(b.Quarantine), RejectedBytes: int64(b.Rejected), NetworkFS: b.NetworkFS,
		MaxAge: b.MaxAge, Clock: hostClock, Memory: int64(b.Memory)}
	// 0 is a default there.
	if b.KeepAcked == 0 {
		o.KeepAcked = -1
	}
	if b.Quarantine == 0 {
		o.QuarantineBytes = -1
	}
	if b.Rejected == 0 {
		o.RejectedBytes = -1
	}
	if b.MinFree != nil {
		o.MinFree = int64(*b.MinFree)
		if o.MinFree == 0 {
			o.MinFree = -1
		}
	}
	return o
}

// sizes are the limits of each lane's buffer in bytes, with the defaults that depend
// on the file system. reserve is 0 when no input refuses. An error begins with the
// variable that it is about.
func (c *Config) sizes() (maxBytes, minFree, reserve int64, err error) {
	maxBytes, minFree, err = c.Buffer.options(c).Sizes(filepath.Join(c.StateDir, "buffer"))
	if err != nil {
		return 0, 0, 0, fmt.Errorf("%sSTATE_DIR=%q: %w", prefix, c.StateDir, err)
	}
	switch {
	case !slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.refuses() }):
	case c.Buffer.Reserve == nil:
		reserve = min(8<<20, maxBytes/8)
	default:
		if reserve = int64(*c.Buffer.Reserve); reserve > maxBytes/2 {
			err = settingError{fmt.Errorf("%sBUFFER_RESERVE=\"%v\": more than half of SPILLWAY_BUFFER_MAX_BYTES (%s here): lower it, or raise that", prefix, *c.Buffer.Reserve, outputs.Human(maxBytes))}
		}
	}
	return maxBytes, minFree, reserve, err
}

// settingError is an error of configuration that shows only on this host.
type settingError struct{ error }

// Unwrap returns what is wrong.
func (e settingError) Unwrap() error { return e.error }

// strays are lanes with segments on disk that no input has: nobody sends what is in
// them. Each is told with what to do.
func (c *Config) strays() (told []string) {
	paths, _ := filepath.Glob(filepath.Join(globEscape(c.StateDir), "buffer", "*", "*.seg"))
	segments := map[string]int{} // by lane
	for _, p := range paths {
		segments[filepath.Base(filepath.Dir(p))]++
	}
	for _, lane := range slices.Sorted(maps.Keys(segments)) {
		if slices.Contains(laneNames(c), lane) {
			continue
		}
		told = append(told, fmt.Sprintf("lane %s: %s in %s, and no input has this lane, so that nobody sends them: set SPILLWAY_INPUT_<NAME>_LANE=%s of an input until they are sent, or see what they hold with `spillway buffer ls` and move the directory away",
			lane, count(uint64(segments[lane]), "segment"), filepath.Join(c.StateDir, "buffer", lane), lane))
	}
	return told
}

// reserveOf is the part of lane's buffer, in bytes, that is kept for inputs that
// refuse: all of reserve, if it has one.
func (c *Config) reserveOf(lane string, reserve int64) int64 {
	if slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.Lane == lane && in.refuses() }) {
		return reserve
	}
	return 0
}

// names checks the names of inputs or outputs and returns the good ones.
func (c *Config) names(e *environment, variable string, names list) (good list) {
	for _, n := range names {
		if nameRule.MatchString(n) {
			good = append(good, n)
		} else if low := strings.ToLower(n); nameRule.MatchString(low) {
			e.problem(prefix+variable, "%q is not lower case: write %s", n, low)
		} else {
			e.problem(prefix+variable, "%q is no name: use 1 to 16 of a-z and 0-9, a letter first", redact(n))
		}
	}
	return good
}

// urlCause is what url.Parse found, without the URL, which may hold a secret.
func urlCause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// checkAddress returns address with localhost for no host.
func checkAddress(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		var a *net.AddrError
		if errors.As(err, &a) {
			return "", fmt.Errorf("%s: write host:port, as in localhost:5514 or [::1]:5514", a.Err)
		}
		return "", err
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", fmt.Errorf("port %q: use 0 to 65535", port)
	}
	if host == "*" {
		return "", errors.New("host *: use 0.0.0.0 or [::] to listen on all addresses")
	}
	return net.JoinHostPort(cmp.Or(host, "localhost"), port), nil
}

// laneNames are the lanes of all inputs, each once, in their order.
func laneNames(c *Config) (names []string) {
	for _, in := range c.Inputs {
		if !slices.Contains(names, in.Lane) {
			names = append(names, in.Lane)
		}
	}
	return names
}
