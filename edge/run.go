package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/admin"
	"spillway/edge/listen"
	"spillway/edge/pipeline"
	"spillway/outputs"
)

// cmdRun is `spillway run`: it starts the parts in the order in which data goes
// through them backwards (nothing is accepted before it can be stored), waits for
// a signal, and stops them in the mirror order.
func cmdRun(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	if len(args) > 0 {
		fmt.Fprintf(stderr, "spillway run: unexpected %q: it takes no arguments, only the environment (see spillway env)\n", args[0])
		return exitUsage
	}
	cfg, err := loadConfig(environ)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	log := newLogger(cfg, stderr)
	// Memory is a gateway's scarce good. Nothing is allocated per record and what is
	// held has no pointers, so that collecting often costs little. GOGC wins.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(20)
	}
	for _, n := range cfg.Notes {
		log.Warn(n)
	}
	if w := cfg.fewFiles(); w != "" {
		log.Warn(w)
	}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		log.Info("memory limit", "GOMEMLIMIT", outputs.Size(limit).String())
	}
	// The first signal begins the stop, the second ends all waiting.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	a := &agent{cfg: cfg, log: log, hangups: hangups}
	if err := a.open(); err != nil {
		a.close()
		fmt.Fprintln(stderr, "spillway:", err)
		if errors.As(err, new(settingError)) {
			return exitUsage
		}
		return exitFailure
	}
	return a.run(ctx, signals)
}

// agent is the running program: everything that was opened, in order.
type agent struct {
	cfg     *Config
	log     *slog.Logger
	buffers []*buffer.Buffer
	outs    []outputs.Output
	chain   *outputs.Chain
	lanes   []*lane
	inputs  []*input
	admin   []net.Listener
	hangups <-chan os.Signal // SIGHUP: reload
	ending  atomic.Bool      // the stop has begun
}

type lane struct {
	name   string
	buffer *buffer.Buffer
	memory *listen.Memory // of the partial messages of its inputs
	*pipeline.Lane
}

func (a *agent) open() error {
	c := a.cfg
	for _, oc := range c.Outputs {
		o, err := oc.Open(OpenEnv{Site: c.Site, Agent: c.Agent, Log: a.log})
		if err != nil {
			return err
		}
		a.outs = append(a.outs, o)
	}
	a.chain = outputs.NewChain(outputs.ChainOptions{
		After: c.Failover.After, RoundRobin: !c.Failover.Failback, Interval: c.Failover.Interval, Probes: c.Failover.Probes, Dwell: c.Failover.Dwell,
		Log: a.log, Pending: a.lanePending, Switched: a.reroute,
	}, a.outs...)
	host, _ := os.Hostname()
	byName := map[string]*lane{}
	rate := pipeline.NewRate(int64(c.Buffer.DrainRate))
	_, _, reserve, err := c.sizes()
	if err != nil {
		return err
	}
	for _, name := range laneNames(c) {
		dir := filepath.Join(c.StateDir, "buffer", name)
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return fmt.Errorf("SPILLWAY_STATE_DIR: %w: give spillway a directory that it may write", err)
		}
		b, err := buffer.Open(dir, c.Buffer.options(c))
		if err != nil {
			return fmt.Errorf("buffer of lane %s: %w", name, hinted(err))
		}
		a.buffers = append(a.buffers, b)
		s := b.Begin()
		a.log.Info("buffer open", "lane", name, "dir", dir, "epoch", s.Epoch.String(), "next", s.Next, "pending", b.Stats().PendingRecords, "unclean", s.Unclean)
		flags := batch.Flags(0)
		if c.Encoding == "raw" {
			flags = batch.RawLines
		}
		l := &lane{name: name, buffer: b, memory: listen.NewMemory(int64(c.MessageMemory)), Lane: pipeline.NewLane(pipeline.LaneOptions{
			Name: name, Agent: c.Agent, Host: host, Buffer: b, Chain: a.chain, Codec: c.Compression, Level: c.CompressionLevel,
			Batch:   batch.BuilderOptions{Bytes: int(c.Batch.MaxBytes), Raw: int(c.Batch.MaxRaw), Records: c.Batch.MaxRecords, Age: c.Batch.MaxAge, Flags: flags},
			AgeHeld: c.Batch.MaxAgeHeld, Raw: c.Encoding == "raw", Reserve: c.reserveOf(name, reserve), BufferKeeps: c.Buffer.Sync == buffer.SyncInterval, Log: a.log,
			Rate: rate, Synchronised: func() bool { _, ok := hostClock(); return ok },
		})}
		a.lanes = append(a.lanes, l)
		byName[name] = l
	}
	for _, s := range c.strays() {
		a.log.Warn(s)
	}
	for _, ic := range c.Inputs {
		l := byName[ic.Lane]
		in, err := ic.open(ic.pipeline(c, l.Lane, host), l.memory, a.log)
		if err != nil {
			return err
		}
		a.inputs = append(a.inputs, in)
	}
	a.admin, err = listenAdmin(c.AdminAddress)
	return err
}

// listenAdmin listens on every address that address stands for: localhost is both
// loopback addresses (whichever exist), as it is for inputs.
func listenAdmin(address string) (all []net.Listener, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("SPILLWAY_ADMIN_ADDRESS: %w", err)
	}
	one := func(network, address string) error {
		l, err := net.Listen(network, address)
		if err != nil {
			return fmt.Errorf("SPILLWAY_ADMIN_ADDRESS: %w", listen.Explain(address, err))
		}
		all = append(all, l)
		return nil
	}
	if host != "localhost" {
		return all, one("tcp", address)
	}
	if err := one("tcp4", net.JoinHostPort("127.0.0.1", port)); err != nil {
		return nil, err
	}
	_, port, _ = net.SplitHostPort(all[0].Addr().String()) // the same on both
	err = one("tcp6", net.JoinHostPort("::1", port))
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT):
		err = nil
	case err != nil:
		all[0].Close()
		all = nil
	}
	return all, err
}

// run starts all goroutines, waits for the stop, and waits for all of them.
func (a *agent) run(ctx context.Context, signals <-chan os.Signal) int {
	// Three ends: of accepting, of shipping (grace over or second signal), of admin.
	accepting, stopAccepting := context.WithCancel(ctx)
	hard, endAll := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAccepting()
	defer endAll()

	var inputs, watches, lanes, probes, adm sync.WaitGroup
	watching, stopWatching := context.WithCancel(hard)
	defer stopWatching()
	probes.Go(func() { a.chain.Run(hard) })
	for _, l := range a.lanes {
		lanes.Go(func() { l.Run(hard) })
	}
	for _, in := range a.inputs {
		if in.cfg.Vault != nil {
			watches.Go(func() { in.records.Watch(watching) })
		}
		inputs.Go(func() { in.Serve(accepting, hard) })
		a.log.Info("listening", "input", in.cfg.Name, "address", fmt.Sprint(in.Addrs()), "lane", in.cfg.Lane)
	}
	srv := admin.Server(a.sources(), a.log)
	var admins []net.Addr
	for _, l := range a.admin {
		adm.Go(func() { srv.Serve(l) })
		admins = append(admins, l.Addr())
	}
	a.log.Info("ready", "version", version, "agent", a.cfg.Agent, "output", a.outs[0].Name(), "standing_by", names(a.outs[1:]), "admin", join(admins))
	manager := &notifier{log: a.log}
	manager.status(a.summary())
	manager.ready()
	alive, dead := context.WithCancel(context.WithoutCancel(ctx))
	defer dead()
	adm.Go(func() {
		manager.watchdog(alive, func(within time.Duration) bool {
			manager.status(a.summary())
			return a.moves(within)
		})
	})

	for running := true; running; {
		select {
		case <-a.hangups:
			manager.reloading()
			a.reload()
			manager.ready()
		case s := <-signals:
			a.log.Info("stopping; a second signal stops at once", "signal", s.String(), "grace", a.cfg.ShutdownGrace)
			running = false
		case <-ctx.Done():
			running = false
		}
	}
	manager.stopping()
	a.ending.Store(true)
	stopAccepting()
	stopped := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		grace := time.NewTimer(a.cfg.ShutdownGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
			a.log.Warn("grace is over; what is pending goes out after the next start", "pending", a.pending())
		case <-signals:
			a.log.Warn("second signal; what is pending goes out after the next start", "pending", a.pending())
		case <-stopped:
		}
		endAll()
	})
	inputs.Wait()
	stopWatching() // nothing comes any more that could be missing, or explain what is
	watches.Wait()
	for _, l := range a.lanes {
		l.Close()
	}
	lanes.Wait()
	close(stopped)
	watch.Wait() // endAll was called
	probes.Wait()
	code := exitOK
	if err := a.close(); err != nil {
		a.log.Error("close", "error", err)
		code = exitFailure
	}
	srv.Close()
	dead()
	adm.Wait()
	a.log.Info("stopped")
	return code
}

// close closes what open opened, last first, the admin server excepted: it
// answers until the end.
func (a *agent) close() error {
	var errs []error
	for _, in := range a.inputs {
		in.Close()
	}
	for _, b := range a.buffers {
		errs = append(errs, b.Close())
	}
	for i := len(a.outs) - 1; i >= 0; i-- {
		errs = append(errs, a.outs[i].Close())
	}
	return errors.Join(errs...)
}

// lanePending and reroute are called by the chain, once lanes run.
func (a *agent) lanePending(lane string) uint64 {
	for _, l := range a.lanes {
		if l.name == lane {
			return l.buffer.Stats().PendingRecords
		}
	}
	return 0
}

func (a *agent) reroute(lane string) {
	for _, l := range a.lanes {
		if l.name == lane {
			l.Reroute()
		}
	}
}

func (a *agent) pending() (n uint64) {
	for _, b := range a.buffers {
		n += b.Stats().PendingRecords
	}
	return n
}

func names(outs []outputs.Output) string {
	var s []string
	for _, o := range outs {
		s = append(s, o.Name())
	}
	return strings.Join(s, ",")
}

func newLogger(c *Config, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
