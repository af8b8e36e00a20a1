package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/edge/listen"
	"spillway/outputs"
)

// probeTime is how long --probe waits for one output.
const probeTime = 10 * time.Second

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
	k.state()
	k.sockets()
	k.outputs(ctx, probe)
	k.files()
	for _, w := range k.warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	for _, p := range k.problems {
		fmt.Fprintln(stderr, p)
	}
	if len(k.problems) > 0 {
		return exitFailure
	}
	fmt.Fprintln(stdout, "ok")
	return exitOK
}

// check gathers what there is to say.
type check struct {
	c        *Config
	out      io.Writer
	warnings []string
	problems []string
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

// state looks whether the state directory can be made and written, and what is
// in it.
func (k *check) state() {
	dir := k.c.StateDir
	if err := writable(dir); err != nil {
		k.problem("SPILLWAY_STATE_DIR=%q: %v: give spillway a directory that this user (%d) may write", dir, err, os.Getuid())
		return
	}
	k.say("state", "%s, %s free", dir, free(dir))
	for _, lane := range laneNames(k.c) {
		path := filepath.Join(dir, "buffer", lane)
		segments, err := filepath.Glob(filepath.Join(globEscape(path), "*.seg"))
		switch _, statErr := os.Stat(path); {
		case errors.Is(statErr, os.ErrNotExist):
			k.say("lane "+lane, "%s, new", path)
		case err != nil || statErr != nil:
			k.problem("lane %s: %v: let this user (%d) read and write it", lane, errors.Join(err, statErr), os.Getuid())
		default:
			if err := writable(path); err != nil {
				k.problem("lane %s: %v: let this user (%d) write it", lane, err, os.Getuid())
				continue
			}
			k.say("lane "+lane, "%s, %s%s", path, count(uint64(len(segments)), "segment"), inUse(path))
		}
	}
}

// writable tries to make a directory in dir, or in what there is above it.
func writable(dir string) error {
	above := dir
	for {
		info, err := os.Stat(above)
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is no directory", above)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || filepath.Dir(above) == above {
			return err
		}
		above = filepath.Dir(above)
	}
	tmp, err := os.MkdirTemp(above, ".spillway-check-*")
	if err != nil {
		return fmt.Errorf("can't write %s: %w", above, pathCause(err))
	}
	return os.Remove(tmp)
}

// inUse says so when a running spillway holds the lock of a lane's directory.
func inUse(dir string) string {
	f, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer f.Close() // lets go of the lock
	if errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		return ", in use by a running spillway"
	}
	return ""
}

// free is the free space of the file system that dir is, or would be, on.
func free(dir string) string {
	var s unix.Statfs_t
	for unix.Statfs(dir, &s) != nil {
		if filepath.Dir(dir) == dir {
			return "unknown"
		}
		dir = filepath.Dir(dir)
	}
	return human(int64(s.Bavail) * int64(s.Bsize))
}

// human is n bytes with three digits or so.
func human(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "B" || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// sockets binds all addresses, as the agent would and all at the same time, and
// lets them go.
func (k *check) sockets() {
	log := slog.New(slog.NewTextHandler(warningWriter{k}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
	for _, in := range k.c.Inputs {
		s, err := listen.Listen(in.listen(log))
		if err != nil {
			k.problem("%v", err)
			continue
		}
		defer s.Close()
		k.say("input "+in.Name, "%s %s, lane %s", in.Scheme, join(s.Addrs()), in.Lane)
	}
	l, err := net.Listen("tcp", k.c.AdminAddress)
	if err != nil {
		k.problem("SPILLWAY_ADMIN_ADDRESS: %v", bindCause(err, k.c.AdminAddress))
		return
	}
	defer l.Close()
	k.say("admin", "http://%s", l.Addr())
}

func join(addrs []net.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " and ")
}

// bindCause says why address could not be bound and what to do.
func bindCause(err error, address string) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		address = op.Addr.String()
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use: stop what listens there (another spillway?), or choose another port", address)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is not allowed to this user: ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or choose a higher port", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this host has no such address: choose one that `ip addr` shows, or 0.0.0.0 for all", address)
	}
	return err
}

// warningWriter makes a warning of each log line.
type warningWriter struct{ k *check }

func (w warningWriter) Write(p []byte) (int, error) {
	w.k.warn("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

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
		if probe {
			k.probe(ctx, oc)
		}
	}
	for _, in := range k.c.Inputs {
		if largest > 0 && in.MaxMessageSize > largest && !in.datagram() { // no datagram is that large
			k.warn("SPILLWAY_INPUT_%s_MAX_MESSAGE_SIZE=%v: no output takes a batch of more than %v: a message that is larger even when compressed can't be delivered; lower it to %v, or add an output that takes more, such as s3",
				strings.ToUpper(in.Name), in.MaxMessageSize, largest, largest)
		}
	}
}

func (k *check) probe(ctx context.Context, oc OutputConfig) {
	o, err := oc.Open(OpenEnv{Site: k.c.Site, Agent: k.c.Agent, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		k.problem("output %s: %v", oc.Name, err)
		return
	}
	defer o.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	start := time.Now()
	for _, lane := range laneNames(k.c) {
		if err := o.Probe(ctx, lane); err != nil {
			k.problem("output %v (after %v)", err, time.Since(start).Round(time.Millisecond))
			return
		}
	}
	k.say("", "probe of %s: ok after %v", oc.Name, time.Since(start).Round(time.Millisecond))
}

// files compares the limit of open files with the connections that may come.
func (k *check) files() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return
	}
	const own = 64 // segments, sockets of outputs, logs
	need := uint64(own)
	for _, in := range k.c.Inputs {
		if !in.datagram() {
			need += uint64(in.MaxConnections)
		}
	}
	if need > limit.Cur {
		k.warn("this user may open %d files, and MAX_CONNECTIONS of the inputs asks for %d: raise it (ulimit -n, LimitNOFILE=), or lower MAX_CONNECTIONS", limit.Cur, need)
	}
}
