package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench is what all rows share.
type bench struct {
	bin, self, agent string        // directory of the servers; this program; the spillway to measure
	dir              string        // for everything that is written, on the disk to measure
	n                int           // messages of a run at full speed; other rows take a share
	count            int           // how often rows at full speed are repeated
	poolSize         int           // bytes
	idle             time.Duration // how long idling is watched
	settle           time.Duration // for what starting has put off
	rates            []float64     // of datagrams, rising
	pools            map[string]*pool
	log              *json.Encoder // a line for each trial
	others           float64       // the most CPUs that others used during a trial
}

func (b *bench) pool(profile string) *pool {
	if b.pools[profile] == nil {
		b.pools[profile] = newPool(profile, b.poolSize)
	}
	return b.pools[profile]
}

// program is something that takes messages at an address and delivers them to a far side.
type program struct {
	name  string
	far   func(bin, dir string) (far, error)
	start func(b *bench, dir string, f far) (running, error)
}

// running is a program that is ready.
type running struct {
	*process
	address   string        // that takes messages
	admin     string        // URL, of an agent
	listening time.Duration // from its start until it took connections; 0 for datagrams
	ready     time.Duration // until /readyz said so, of an agent
}

// floor is the speed-of-light program.
func floor(args ...string) program {
	return program{"sol", startHub, func(b *bench, dir string, f far) (r running, err error) {
		r.address = freePort()
		r.process, err = start(dir, b.self, nil, append([]string{"sol", "-address", r.address, "-dir", dir, "-nats", f.(*hub).url()}, args...)...)
		if err == nil {
			r.listening, err = r.wait(dial(r.address))
		}
		return r, err
	}}
}

// raw makes records of the message bytes alone. Without it the agent runs with its
// defaults, which are full records; nothing but addresses is set.
func raw(input string) []string {
	return []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_" + input + "_PARSE=none"}
}

// spillway is the agent with one input called TCP, TLS or UDP.
func spillway(to func(bin, dir string) (far, error), input string, env ...string) program {
	return program{"spillway", to, func(b *bench, dir string, f far) (r running, err error) {
		r.address = freePort()
		admin, scheme := freePort(), strings.ToLower(input)
		r.admin = "http://" + admin
		r.process, err = start(dir, b.agent, slices.Concat(f.output(), env, []string{
			"SPILLWAY_INPUTS=" + scheme, "SPILLWAY_INPUT_" + input + "_URL=" + scheme + "://" + r.address, "SPILLWAY_ADMIN_ADDRESS=" + admin,
			"SPILLWAY_STATE_DIR=" + filepath.Join(dir, "state"), "SPILLWAY_AGENT=bench", "SPILLWAY_LOG_LEVEL=warn"}), "run")
		if err == nil && input != "UDP" {
			r.listening, err = r.wait(dial(r.address))
		}
		if err == nil {
			r.ready, err = r.wait(get(r.admin + "/readyz"))
		}
		return r, err
	}}
}

// traffic is what is sent to a program, over connections of equal shares.
type traffic struct {
	profile string
	n       int
	rate    float64 // messages per second; 0: as fast as they are taken
	dial    func(address string) (net.Conn, error)
}

const connections = 4

func dialTCP(address string) (net.Conn, error) { return net.Dial("tcp", address) }
func dialUDP(address string) (net.Conn, error) { return net.Dial("udp", address) }

// world is a program that runs with its far side, and everything read back there.
type world struct {
	running
	b       *bench
	dir     string
	far     far
	account *account
	traffic traffic
}

// open starts program pr for traffic t; close ends all of it.
func (b *bench) open(pr program, t traffic) (w *world, err error) {
	t.n -= t.n % connections
	w = &world{b: b, traffic: t, account: newAccount(connections, t.n/connections)}
	b.pool(t.profile)
	if w.dir, err = os.MkdirTemp(b.dir, "run-"); err != nil {
		return nil, err
	}
	if w.far, err = pr.far(b.bin, w.dir); err == nil {
		w.running, err = pr.start(b, w.dir, w.far)
	}
	if err == nil {
		err = w.far.read(w.account)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("%s: %w", pr.name, err)
	}
	time.Sleep(b.settle)
	return w, nil
}

func (w *world) close() {
	if w.process != nil {
		w.kill()
	}
	if w.far != nil {
		w.far.close()
	}
	os.RemoveAll(w.dir)
}

// send sends all of the traffic and returns when the last byte is written.
func (w *world) send() error {
	t, p := w.traffic, w.b.pool(w.traffic.profile)
	errs := make(chan error, connections)
	for i := range connections {
		c, err := t.dial(w.address)
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			errs <- p.send(c, i, t.n/connections, t.rate/connections)
		}()
	}
	var err error
	for range connections {
		err = errors.Join(err, <-errs)
	}
	return err
}

// arrived waits until all of the traffic but lost() messages have come. It gives up
// when the program ends, and when none has come for quiet.
func (w *world) arrived(lost func() int, quiet time.Duration) error {
	last, since := int64(-1), time.Now()
	for {
		now := w.account.once.Load()
		if int(now)+lost() >= w.traffic.n {
			return nil
		}
		if err := w.failure(); err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > quiet {
			return w.wrap(fmt.Errorf("%d of %d messages: %w", now, w.traffic.n, errQuiet))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var errQuiet = errors.New("no more arrive")

func none() int { return 0 }

// trial is what one run of a program has cost, all for a million messages: CPU in
// seconds, sizes in megabytes (10^6 bytes).
type trial struct {
	Row      string    `json:"row"`
	Program  string    `json:"program"`
	Round    int       `json:"round"`
	At       time.Time `json:"at"`
	Messages int       `json:"messages"`
	CPU      float64   `json:"cpu_s"`
	System   float64   `json:"system_s"` // part of CPU
	Rate     float64   `json:"messages_per_s"`
	Peak     float64   `json:"peak_mib"` // largest resident set
	Disk     float64   `json:"disk_mb"`
	Stored   float64   `json:"stored_mb"`
	Others   float64   `json:"others_cpus"` // what the rest of the machine used meanwhile
}

// meter is a measurement under way.
type meter struct {
	w             *world
	at            time.Time
	before, far   usage
	machine, self float64
}

func (w *world) begin() (m meter, err error) {
	m = meter{w: w, at: time.Now(), machine: machine(), self: self()}
	if m.before, err = w.usage(); err != nil {
		return m, err
	}
	m.far, err = w.far.proc().usage()
	return m, err
}

// end returns what n messages have cost since begin, and logs it.
func (m meter) end(row, program string, round, n int) (r trial, err error) {
	took := time.Since(m.at).Seconds()
	after, err := m.w.usage()
	if err != nil {
		return r, err
	}
	far, err := m.w.far.proc().usage()
	if err != nil {
		return r, err
	}
	millions, cpu := float64(n)/1e6, after.cpu-m.before.cpu
	r = trial{Row: row, Program: program, Round: round, At: m.at, Messages: n, CPU: cpu / millions, System: (after.system - m.before.system) / millions,
		Rate: float64(n) / took, Peak: float64(after.peak) / (1 << 20), Disk: float64(after.written-m.before.written) / 1e6 / millions, Stored: float64(m.w.account.bytes.Load()) / 1e6 / millions,
		Others: max(0, machine()-m.machine-cpu-(far.cpu-m.far.cpu)-(self()-m.self)) / took}
	m.w.b.others = max(m.w.b.others, r.Others)
	return r, m.w.b.log.Encode(r)
}

// measure runs one program under t, accounts for every message, and stops it.
func (b *bench) measure(row string, round int, pr program, t traffic) (r trial, err error) {
	w, err := b.open(pr, t)
	if err != nil {
		return r, err
	}
	defer w.close()
	m, err := w.begin()
	if err != nil {
		return r, err
	}
	if err := w.send(); err != nil {
		return r, err
	}
	if err := w.arrived(none, 20*time.Second); err != nil {
		return r, err
	}
	if r, err = m.end(row, pr.name, round, w.traffic.n); err != nil {
		return r, err
	}
	return r, w.stop()
}

// stop ends the program as an operator would and looks at what came meanwhile.
func (w *world) stop() error {
	if err := w.process.stop(); err != nil {
		return err
	}
	return w.account.fault()
}
