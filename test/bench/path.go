package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// bench is what all rows share.
type bench struct {
	bin      string // directory of the servers
	self     string // this program, which is also the speed-of-light program
	agent    string // the spillway to measure
	dir      string // for everything, on the disk to measure
	n        int    // messages of a full-speed run; slower ones take a fixed share
	count    int    // how often a row is repeated
	pools    map[string]*pool
	poolSize int           // bytes
	idle     time.Duration // how long idling is watched
	log      *json.Encoder // one trial a line
	others   float64       // most CPUs that others used during a run
}

const connections = 4

func (b *bench) pool(profile string) *pool {
	if b.pools[profile] == nil {
		b.pools[profile] = newPool(profile, b.poolSize)
	}
	return b.pools[profile]
}

// workdir is an empty directory; done removes it.
func (b *bench) workdir() (dir string, done func(), err error) {
	dir, err = os.MkdirTemp(b.dir, "run-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// hub is a nats-server with a stream over logs.>, in its own process.
type hub struct {
	*process
	b            *bench
	dir, address string
	conn         *nats.Conn // of the reader
}

func (b *bench) startHub(dir string) (*hub, error) {
	h := &hub{b: b, dir: dir, address: freePort()}
	if err := h.start(); err != nil {
		return nil, err
	}
	return h, h.with(func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, Storage: jetstream.FileStorage})
		return err
	})
}

// start starts the server, also again over what it had stored.
func (h *hub) start() (err error) {
	host, port, _ := net.SplitHostPort(h.address)
	h.process, err = start(h.dir, filepath.Join(h.b.bin, "nats-server"), nil, "-js", "-a", host, "-p", port, "-sd", filepath.Join(h.dir, "stream"))
	if err != nil {
		return err
	}
	_, err = h.wait(func() error {
		return h.with(func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.AccountInfo(ctx)
			return err
		})
	})
	return err
}

func (h *hub) url() string { return "nats://" + h.address }

func (h *hub) with(f func(context.Context, jetstream.JetStream) error) error {
	nc, err := nats.Connect(h.url())
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return f(ctx, js)
}

// read feeds everything that is and will be stored to a, until close.
func (h *hub) read(a *account) error {
	nc, err := nats.Connect(h.url())
	if err != nil {
		return err
	}
	h.conn = nc
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	c, err := js.OrderedConsumer(context.Background(), "LOGS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	_, err = c.Consume(func(m jetstream.Msg) {
		if err := a.payload(m.Data()); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			a.unknown++
		}
	}, jetstream.PullMaxMessages(64))
	return err
}

func (h *hub) close() {
	if h.conn != nil {
		h.conn.Close()
	}
	h.kill()
}

// program is something that takes lines at an address and delivers them.
type program struct {
	Name  string
	start func(b *bench, dir string, h *hub) (p *process, address string, err error)
}

// speedOfLight is the program that rows compare with.
func speedOfLight(args ...string) program {
	return program{"sol", func(b *bench, dir string, h *hub) (*process, string, error) {
		address := freePort()
		p, err := start(dir, b.self, nil, append([]string{"sol", "-address", address, "-dir", dir, "-nats", h.url()}, args...)...)
		if err != nil {
			return nil, "", err
		}
		_, err = p.wait(dial(address))
		return p, address, err
	}}
}

// Environments of the agent.
var (
	raw    = []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_INPUT_TCP_FRAMING=delimiter"}
	parsed = []string(nil) // nothing but addresses: the defaults
)

// spillway is the agent with one tcp input and the hub as its output.
func spillway(env ...string) program {
	return program{"spillway", func(b *bench, dir string, h *hub) (*process, string, error) {
		address := freePort()
		a, err := b.startAgent(dir, append([]string{"SPILLWAY_INPUTS=tcp", "SPILLWAY_INPUT_TCP_URL=tcp://" + address,
			"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=" + h.url()}, env...)...)
		if err != nil {
			return nil, "", err
		}
		return a.process, address, nil
	}}
}

// agent is a spillway process that is ready.
type agent struct {
	*process
	admin string        // URL
	ready time.Duration // from its start until /readyz says so
}

func (b *bench) startAgent(dir string, env ...string) (*agent, error) {
	admin := freePort()
	env = append([]string{"SPILLWAY_STATE_DIR=" + filepath.Join(dir, "state"), "SPILLWAY_AGENT=bench", "SPILLWAY_LOG_LEVEL=warn", "SPILLWAY_ADMIN_ADDRESS=" + admin}, env...)
	p, err := start(dir, b.agent, env, "run")
	if err != nil {
		return nil, err
	}
	a := &agent{process: p, admin: "http://" + admin}
	a.ready, err = p.wait(get(a.admin + "/readyz"))
	return a, err
}

// trial is what one run of one program has cost. Times are CPU seconds for a
// million messages, sizes decimal megabytes for a million.
type trial struct {
	Row      string    `json:"row"`
	Program  string    `json:"program"`
	Round    int       `json:"round"`
	At       time.Time `json:"at"`
	Messages int       `json:"messages"`
	Bytes    float64   `json:"message_bytes"`
	CPU      float64   `json:"cpu_s_per_million"`
	User     float64   `json:"user_s_per_million"`
	System   float64   `json:"system_s_per_million"`
	Rate     float64   `json:"messages_per_s"`
	Core     float64   `json:"cores"`    // CPU over wall time
	Peak     float64   `json:"peak_mib"` // largest resident set
	Disk     float64   `json:"disk_mb_per_million"`
	Stored   float64   `json:"stored_mb_per_million"`
	Others   float64   `json:"others_cores"` // what the rest of the machine did meanwhile
}

// traffic is what is sent to a program.
type traffic struct {
	profile string
	n       int
	rate    float64 // messages per second; 0: as fast as they are taken
	dial    func(address string) (net.Conn, error)
}

func dialTCP(address string) (net.Conn, error) { return net.Dial("tcp", address) }

// send sends everything and returns when the last byte is written. The n messages
// of t go over the connections in equal shares.
func (b *bench) send(t traffic, address string) error {
	p := b.pool(t.profile)
	errs := make([]error, connections)
	var wg sync.WaitGroup
	for i := range connections {
		c, err := t.dial(address)
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer c.Close()
			errs[i] = p.send(c, i, t.n/connections, t.rate/connections)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// measure runs one program under t and accounts for every message.
func (b *bench) measure(row string, round int, pr program, t traffic) (r trial, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s of %s: %w", row, pr.Name, err)
		}
	}()
	t.n -= t.n % connections
	mean := float64(len(b.pool(t.profile).data)) / float64(b.pool(t.profile).len())
	dir, done, err := b.workdir()
	if err != nil {
		return r, err
	}
	defer done()
	h, err := b.startHub(dir)
	if err != nil {
		return r, err
	}
	defer h.close()
	p, address, err := pr.start(b, dir, h)
	if err != nil {
		return r, err
	}
	defer p.kill()
	acc := newAccount(connections, t.n/connections)
	if err := h.read(acc); err != nil {
		return r, err
	}
	m, err := begin(p, h.process)
	if err != nil {
		return r, err
	}
	if err := b.send(t, address); err != nil {
		return r, err
	}
	if err := acc.await(t.n, p); err != nil {
		return r, err
	}
	r, err = m.end(t.n)
	if err != nil {
		return r, err
	}
	r.Row, r.Round, r.Program, r.Bytes, r.Stored = row, round, pr.Name, mean, float64(acc.bytes)/float64(t.n)
	if acc.twice.Load() != 0 || acc.unknown != 0 {
		return r, fmt.Errorf("%d messages came twice, %d that nobody sent", acc.twice.Load(), acc.unknown)
	}
	if pr.Name != "sol" {
		if err := p.stop(); err != nil {
			return r, err
		}
	}
	return r, b.log.Encode(r)
}

// await waits until n messages have come. It gives up when p ended, or when none
// has come for twenty seconds.
func (a *account) await(n int, p *process) error {
	last, since := int64(-1), time.Now()
	for {
		now := a.once.Load()
		if now >= int64(n) {
			return nil
		}
		if err := p.failure(); err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > 20*time.Second {
			return p.wrap(fmt.Errorf("%d of %d messages arrived", now, n))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// meter is a measurement under way: of one process, with others beside it.
type meter struct {
	p, beside     *process
	at            time.Time
	before, other usage
	machine, self float64
}

func begin(p, beside *process) (m meter, err error) {
	time.Sleep(300 * time.Millisecond) // what starting has put off
	m = meter{p: p, beside: beside, at: time.Now(), machine: machine(), self: self()}
	if m.before, err = p.usage(); err != nil {
		return m, err
	}
	m.other, err = beside.usage()
	return m, err
}

// end returns what n messages have cost since begin.
func (m meter) end(n int) (r trial, err error) {
	took := time.Since(m.at).Seconds()
	after, err := m.p.usage()
	if err != nil {
		return r, err
	}
	beside, err := m.beside.usage()
	if err != nil {
		return r, err
	}
	millions := float64(n) / 1e6
	cpu := after.cpu() - m.before.cpu()
	r = trial{At: m.at, Messages: n, CPU: cpu / millions, User: (after.user - m.before.user) / millions, System: (after.system - m.before.system) / millions,
		Rate: float64(n) / took, Core: cpu / took, Peak: float64(after.peak) / (1 << 20), Disk: float64(after.written-m.before.written) / 1e6 / millions}
	r.Others = max(0, machine()-m.machine-cpu-(beside.cpu()-m.other.cpu())-(self()-m.self)) / took
	return r, nil
}

// agentPath is the spillway to measure: SPILLWAY_BIN is the program, or the
// directory that it is in.
func agentPath(bin string) (string, error) {
	path := os.Getenv("SPILLWAY_BIN")
	if path == "" {
		path = bin
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("SPILLWAY_BIN: %w", err)
	} else if st.IsDir() {
		path = filepath.Join(path, "spillway")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run `make build`", err)
	}
	return path, nil
}
