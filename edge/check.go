package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/buffer"
	"spillway/outputs"
)

// probeTime is how long --probe waits for one output.
const probeTime = 30 * time.Second

// cmdCheck is `spillway check`: first the configuration, then what can be seen on
// this host without talking to far sides; with --probe, those too. Without
// --probe it leaves nothing behind.
func cmdCheck(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	probe := len(args) == 1 && args[0] == "--probe"
	if len(args) > 0 && !probe {
		fmt.Fprintf(stderr, "spillway check: unexpected %q: usage: spillway check [--probe]\n", args)
		return exitUsage
	}
	c, err := loadConfig(environ)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	k := &check{c: c, out: stdout}
	for _, n := range c.Notes {
		k.warn("%s", n)
	}
	k.say("agent", "%s, site %s", c.Agent, c.Site)
	k.state(probe)
	k.clock()
	k.sockets()
	k.outputs(ctx, probe)
	k.files()
	k.memory()
	for _, w := range k.warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	for _, p := range k.problems {
		fmt.Fprintln(stderr, p)
	}
	switch {
	case k.misconfigured:
		return exitUsage
	case len(k.problems) > 0:
		return exitFailure
	}
	fmt.Fprintln(stdout, "ok")
	return exitOK
}

// check gathers what there is to say.
type check struct {
	c        *Config
	out      io.Writer
	agent    *holder // that runs on the state directory; nil: none
	warnings []string
	problems []string

	misconfigured bool // a problem is one for which run ends with exitUsage too
}

func (k *check) say(what, format string, args ...any) {
	fmt.Fprintf(k.out, "%-16s %s\n", what, fmt.Sprintf(format, args...))
}

func (k *check) warn(format string, args ...any) {
	k.warnings = append(k.warnings, fmt.Sprintf(format, args...))
}

func (k *check) problem(format string, args ...any) {
	k.problems = append(k.problems, fmt.Sprintf(format, args...))
}

// fault is a problem that the agent would end with.
func (k *check) fault(err error) {
	k.problem("%v", err)
	k.misconfigured = k.misconfigured || errors.As(err, new(settingError))
}

// state looks whether the state directory can be made and written, what is in it,
// and whether its disk holds what the buffers may take.
func (k *check) state(probe bool) {
	dir := k.c.StateDir
	if err := writable(dir); err != nil {
		k.problem("SPILLWAY_STATE_DIR=%q: %v: give spillway a directory that this user (%d) may write", dir, err, os.Getuid())
		return
	}
	disk, err := outputs.DiskOf(dir)
	if err != nil {
		k.problem("SPILLWAY_STATE_DIR=%q: %v", dir, err)
		return
	}
	k.say("state", "%s, %s, %s free", dir, cmp.Or(disk.Kind, "unknown file system"), outputs.Human(disk.Free))
	most, least, _, err := k.c.sizes()
	if err != nil {
		k.fault(err)
		return
	}
	var more int64 // that the buffers may take
	for _, lane := range laneNames(k.c) {
		path := filepath.Join(dir, "buffer", lane)
		if err := buffer.Check(path, k.c.Buffer.NetworkFS); err != nil {
			k.problem("lane %s: %v", lane, err)
			continue
		}
		used, segments, err := segmentsIn(path)
		if err != nil {
			k.problem("lane %s: %v: let this user (%d) read and write it", lane, err, os.Getuid())
			continue
		}
		more += max(0, most-used)
		what := "new"
		if segments >= 0 {
			what = fmt.Sprintf("%s, %s", count(uint64(segments), "segment"), outputs.Human(used))
			if h, running := agentOf(path); running {
				k.agent = &h
				what += ", in use by " + h.String()
			}
		}
		k.say("lane "+lane, "%s, %s; may take %s, and leaves %s of the disk to others", path, what, outputs.Human(most), outputs.Human(least))
	}
	for _, s := range k.c.strays() {
		k.warn("%s", s)
	}
	if k.agent != nil {
		k.say("", "an agent runs on this state directory: its sockets are its own, and no problem")
	}
	switch {
	case disk.Free <= least:
		k.warn("SPILLWAY_BUFFER_MIN_FREE is %s, and %s has %s free: a buffer takes nothing until more than that is free; free space, or lower SPILLWAY_BUFFER_MIN_FREE",
			outputs.Human(least), dir, outputs.Human(disk.Free))
	case disk.Free-least < more:
		k.warn("%s has %s free, %s of which are left to others (SPILLWAY_BUFFER_MIN_FREE), and the buffers may take %s more (SPILLWAY_BUFFER_MAX_BYTES of each lane): they are full before that; free space, or lower SPILLWAY_BUFFER_MAX_BYTES",
			dir, outputs.Human(disk.Free), outputs.Human(least), outputs.Human(more))
	}
	if probe {
		k.disk(dir)
	}
}

// slowSync is an fsync that senders and a batch's age begin to notice.
const slowSync = 100 * time.Millisecond

// disk measures what each batch waits for.
func (k *check) disk(dir string) {
	middle, worst, err := syncLatency(existing(dir))
	if err != nil {
		k.problem("SPILLWAY_STATE_DIR=%q: write and sync a file: %v", dir, err)
		return
	}
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	k.say("", "%d times written and synced: %v in the middle, %v at worst", fsyncs, round(middle), round(worst))
	if middle > slowSync {
		k.warn("SPILLWAY_STATE_DIR=%q: a sync of 4 KiB takes %v: records wait for it; use a faster disk, or SPILLWAY_BUFFER_SYNC=interval and lose up to SPILLWAY_BUFFER_SYNC_INTERVAL in a power cut", dir, round(middle))
	}
}

// segmentsIn returns what a lane's directory holds, -1 segments when there is none.
func segmentsIn(dir string) (bytes int64, segments int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, -1, nil
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".seg" {
			continue
		}
		if info, err := e.Info(); err == nil { // else it was removed meanwhile
			bytes += info.Size()
			segments++
		}
	}
	if err == nil {
		err = writable(dir)
	}
	return bytes, segments, err
}

// existing is dir, or what there is above it.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// writable tries to make a directory in dir, or in what there is above it.
func writable(dir string) error {
	above := existing(dir)
	info, err := os.Stat(above)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", above)
	}
	tmp, err := os.MkdirTemp(above, ".spillway-check-*")
	if err != nil {
		return fmt.Errorf("can't write %s: %w", above, pathCause(err))
	}
	return os.Remove(tmp)
}

// sockets binds all addresses, as the agent would and all at the same time, and
// lets them go.
func (k *check) sockets() {
	log := slog.New(warner{k})
	for _, in := range k.c.Inputs {
		if in.Scheme == "fd" && k.c.passed == nil {
			k.say("input "+in.Name, "%s is handed over by systemd, and not looked at; lane %s", in.URL, in.Lane)
			continue
		}
		s, err := in.open(nil, nil, log)
		if err != nil {
			k.busy("input "+in.Name, in.Scheme, in.Address, err)
			continue
		}
		defer s.Close()
		k.say("input "+in.Name, "%s %s, lane %s", in.Scheme, join(s.Addrs()), in.Lane)
		if in.TLS != nil {
			k.certificate(in, time.Unix(s.stats.CertificateExpires.Load(), 0).UTC())
		}
	}
	all, err := listenAdmin(k.c.AdminAddress)
	if err != nil {
		k.busy("admin", "tcp", k.c.AdminAddress, err)
		return
	}
	var urls []string
	for _, l := range all {
		l.Close()
		urls = append(urls, "http://"+l.Addr().String())
	}
	k.say("admin", "%s", and(urls))
}

// busy tells of a socket that could not be bound. One that the running agent has is
// as it should be.
func (k *check) busy(what, network, address string, err error) {
	if !errors.Is(err, syscall.EADDRINUSE) {
		k.problem("%v", err)
		return
	}
	h := portHolder(network, address)
	if k.ours(h) {
		k.say(what, "%s %s, held by the running agent", network, address)
		return
	}
	k.problem("%v; %v has it", err, h)
}

// ours reports whether h is the running agent. One that can't be told is taken for it
// as long as this user can't see what the agent has.
func (k *check) ours(h holder) bool {
	return k.agent != nil && (h == *k.agent || h.pid == 0 && !k.agent.visible())
}

// certificate tells until when senders trust the certificate of an input.
func (k *check) certificate(in Input, until time.Time) {
	const soon = 14 * 24 * time.Hour
	k.say("", "certificate %s, until %s", in.TLSCertFile, until.Format(time.RFC3339))
	if time.Until(until) < soon {
		k.warn("%sTLS_CERT_FILE=%q: the certificate ends %s: replace the file, it is read again while the agent runs", in.variable(), in.TLSCertFile, until.Format(time.RFC3339))
	}
}

func join(addrs []net.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " and ")
}

// warner is a slog.Handler that makes a warning of what is logged while sockets are
// opened: once for an input, however many addresses it has.
type warner struct{ k *check }

// Enabled implements slog.Handler.
func (w warner) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle implements slog.Handler. Numbers are sizes in bytes.
func (w warner) Handle(_ context.Context, r slog.Record) error {
	text, hint := r.Message, ""
	var facts []string
	r.Attrs(func(a slog.Attr) bool {
		switch v := a.Value; {
		case a.Key == "input":
			text = "input " + v.String() + ": " + text
		case a.Key == "hint":
			hint = ": " + v.String()
		case a.Key == "address": // the input says it
		case v.Kind() == slog.KindInt64:
			facts = append(facts, a.Key+" "+outputs.Human(v.Int64()))
		default:
			facts = append(facts, a.Key+" "+v.String())
		}
		return true
	})
	if len(facts) > 0 {
		text += " (" + strings.Join(facts, ", ") + ")"
	}
	if text += hint; !slices.Contains(w.k.warnings, text) {
		w.k.warn("%s", text)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (w warner) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup implements slog.Handler.
func (w warner) WithGroup(string) slog.Handler { return w }

// outputs looks at what the outputs take; with probe it also asks the far sides.
func (k *check) outputs(ctx context.Context, probe bool) {
	var largest outputs.Size // batch that some output takes; -1: any
	for _, oc := range k.c.Outputs {
		if oc.Largest == 0 {
			largest = -1
		} else if largest >= 0 {
			largest = max(largest, oc.Largest)
		}
		k.say("output "+oc.Name, "%s %s", oc.Kind, redact(oc.URL))
		if !probe && !oc.Quiet {
			continue
		}
		o, err := oc.Open(OpenEnv{Site: k.c.Site, Agent: k.c.Agent, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			k.fault(err)
			continue
		}
		if probe {
			k.inspect(ctx, oc, o)
		}
		o.Close()
	}
	for _, in := range k.c.Inputs {
		if largest > 0 && in.MaxMessageSize > largest && !in.datagram() { // no datagram is that large
			k.warn("%sMAX_MESSAGE_SIZE=%v: no output takes a batch of more than %v: a message that is larger even when compressed can't be delivered; lower it to %v, or add an output that takes more, such as s3",
				in.variable(), in.MaxMessageSize, largest, largest)
		}
	}
}

// inspect asks the far side of an output.
func (k *check) inspect(ctx context.Context, oc OutputConfig, o outputs.Inspector) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	for _, f := range o.Inspect(ctx, outputs.Need{Lanes: laneNames(k.c), Sealing: int64(k.c.Batch.MaxBytes), Kept: k.c.Buffer.KeepAcked, Repeat: max(k.c.Buffer.KeepAcked, k.c.Failover.After)}) {
		hint := ""
		if f.Hint != "" {
			hint = "\n    " + f.Hint // alone on its line, as it may be a command
		}
		switch f.Level {
		case outputs.Good:
			k.say("  "+f.What, "%s", f.Text)
		case outputs.Warning:
			k.warn("output %s: %s%s", oc.Name, f.Text, hint)
		default:
			k.problem("output %s: %s%s", oc.Name, f.Text, hint)
		}
	}
}

// clock looks whether somebody keeps the clock of this host.
func (k *check) clock() {
	switch synchronised, off, err := clock(); {
	case err != nil:
		k.warn("the clock can't be asked (adjtimex: %v)", err)
	case synchronised:
		k.say("clock", "synchronised, at most %v off", off.Round(time.Millisecond))
	default:
		k.say("clock", "%s, not synchronised", time.Now().UTC().Format(time.RFC3339))
		k.warn("the clock is not synchronised: times of records and names of objects come from it; run chrony or systemd-timesyncd")
	}
}

// files compares the limit of open files with the connections that may come.
func (k *check) files() {
	if w := k.c.fewFiles(); w != "" {
		k.warn("%s", w)
	}
}

// fewFiles says that the connections that may come need more files than this user may
// open; "": they do not.
func (c *Config) fewFiles() string {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return ""
	}
	const own = 64 // segments, sockets of outputs, logs
	need := uint64(own)
	for _, in := range c.Inputs {
		if !in.datagram() {
			need += uint64(in.MaxConnections)
		}
	}
	if need <= limit.Cur {
		return ""
	}
	return fmt.Sprintf("this user may open %d files, and MAX_CONNECTIONS of the inputs asks for %d: raise it (ulimit -n, LimitNOFILE=), or lower MAX_CONNECTIONS", limit.Cur, need)
}

// memory compares GOMEMLIMIT, if it is set, with what unfinished messages may take.
func (k *check) memory() {
	limit := debug.SetMemoryLimit(-1) // which changes nothing
	if limit == math.MaxInt64 {
		return
	}
	const own = 64 << 20 // what an agent without large messages stays far below
	need := own + int64(len(laneNames(k.c)))*int64(k.c.MessageMemory)
	k.say("memory", "GOMEMLIMIT is %s", outputs.Human(limit))
	if limit < need {
		k.warn("GOMEMLIMIT is %s, and the unfinished messages of %s may take %v each (SPILLWAY_MESSAGE_MEMORY): near the limit the agent collects garbage all the time; raise it to %s, or lower that",
			outputs.Human(limit), count(uint64(len(laneNames(k.c))), "lane"), k.c.MessageMemory, outputs.Human(need))
	}
}
