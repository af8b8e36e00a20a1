package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/servers"
	"spillway/test/vaultsender"
)

// full figures of docs/inputs.md with SPILLWAY_VAULT_FULL=1; otherwise these tests
// take seconds.
var vaultFull = os.Getenv("SPILLWAY_VAULT_FULL") != ""

func vaultEither[T any](big, small T) T {
	if vaultFull {
		return big
	}
	return small
}

// besideVault lets a test run beside others, unless its figures count.
func besideVault(t *testing.T) {
	if !vaultFull {
		t.Parallel()
	}
}

// vault is an agent with the input that Vault writes to, and what writes to it.
type vault struct {
	*agent.Agent
	t      *testing.T
	sender vaultsender.Sender
	ops    *vaultsender.Operations
	next   []byte // the response entry of the operation whose request was written last

	entries []entry // all that were written, in order
}

// entry is one that was written.
type entry struct {
	key    string // request.id:type
	sum    [sha256.Size]byte
	at     time.Time
	failed bool // the sender was told; otherwise the kernel took it
}

// newVault prepares an agent with an input called vault on a socket of this network.
func newVault(t *testing.T, network string, env ...string) *vault {
	t.Helper()
	dir, err := os.MkdirTemp("", "spillway-") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &vault{t: t, ops: vaultsender.NewOperations(1), sender: vaultsender.Sender{Network: network, Address: filepath.Join(dir, "audit.sock")}}
	if network == "tcp" || network == "udp" {
		v.sender.Address = fmt.Sprintf("127.0.0.1:%d", servers.FreePort(t))
	}
	v.Agent = agent.New(t, dir, append([]string{
		"SPILLWAY_INPUTS=tcp,udp,vault", "SPILLWAY_INPUT_VAULT_URL=" + network + "://" + v.sender.Address, "SPILLWAY_INPUT_VAULT_PARSE=vault",
		"SPILLWAY_LOG_LEVEL=info",
	}, env...)...)
	t.Cleanup(func() { v.sender.Close() })
	return v
}

// another is a second sender to the same agent, whose entries are its own.
func (v *vault) another(seed uint64) *vault {
	w := &vault{Agent: v.Agent, t: v.t, ops: vaultsender.NewOperations(seed), sender: vaultsender.Sender{Network: v.sender.Network, Address: v.sender.Address}}
	v.t.Cleanup(func() { w.sender.Close() })
	return w
}

// write writes the next entry: an operation's request and its response in turn.
func (v *vault) write() error {
	line, kind := v.next, "response"
	if line == nil {
		op := v.ops.Next(time.Now())
		line, kind, v.next = op.Request, "request", op.Response
	} else {
		v.next = nil
	}
	return v.send(line, kind)
}

func (v *vault) send(line []byte, kind string) error {
	var e struct{ Request struct{ ID string } }
	if err := json.Unmarshal(line, &e); err != nil {
		v.t.Error(err)
	}
	err := v.sender.Write(line)
	v.entries = append(v.entries, entry{key: e.Request.ID + ":" + kind, sum: sha256.Sum256(bytes.TrimSuffix(line, []byte("\n"))), at: time.Now(), failed: err != nil})
	return err
}

// steadily writes an entry every millisecond until stop. Nobody else writes
// meanwhile.
func (v *vault) steadily() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				v.write() // entries has it
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-done
	})
	v.t.Cleanup(stop)
	return stop
}

// audited is what the tests read of a record of a vault input.
type audited struct {
	Event struct {
		ID, Kind, Action string
	}
	Message string
	Tags    []string
	Error   *struct{ Message string }
	Vault   *struct {
		Audit json.RawMessage // as it was written
	} `json:"hashicorp_vault"`
	Spillway struct{ Gap *struct{ Reason string } }

	line string
}

// cat reads all records of the lane audit that were delivered to a source, the
// agent's outbox if none is named.
func (v *vault) cat(sources ...string) (all []audited) {
	v.t.Helper()
	if len(sources) == 0 {
		sources = []string{filepath.Join(v.State, "outbox")}
		if _, err := os.Stat(sources[0]); os.IsNotExist(err) {
			return nil // made with the first object
		}
	}
	cmd := exec.Command(v.Bin, append([]string{"cat"}, sources...)...)
	cmd.Env, cmd.Stderr = v.Env, os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for r := bufio.NewReaderSize(pipe, 1<<20); ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		}
		if err != nil {
			v.t.Fatal(err)
		}
		var a audited
		if err := json.Unmarshal(line, &a); err != nil {
			v.t.Fatalf("%v: %.300q", err, line)
		}
		a.line = string(line)
		all = append(all, a)
	}
	if err := cmd.Wait(); err != nil {
		v.t.Fatalf("cat: %v", err)
	}
	return all
}

// verdict is how what was delivered differs from what was written.
type verdict struct {
	written, accepted, failed int
	lost, twice               []string // of those accepted; of all
	torn                      int      // tails of entries that were sent again
	alerts                    []audited
	gaps                      []string // reasons
	strange                   []string // records that nothing explains
}

func (v *verdict) String() string {
	return fmt.Sprintf("%d entries written: %d accepted, %d failed; %d lost, %d twice, %d torn tails, %d alerts, gaps %v", v.written, v.accepted, v.failed, len(v.lost), len(v.twice), v.torn, len(v.alerts), v.gaps)
}

// judge compares what was delivered, byte for byte, with what was written.
func (v *vault) judge(sources ...string) *verdict {
	v.t.Helper()
	sent := map[string]*entry{}
	d := &verdict{written: len(v.entries)}
	for i := range v.entries {
		e := &v.entries[i]
		sent[e.key] = e
		if e.failed {
			d.failed++
		} else {
			d.accepted++
		}
	}
	have := map[string]int{}
	for _, r := range v.cat(sources...) {
		switch e := sent[r.Event.ID]; {
		case r.Event.Kind == "alert":
			d.alerts = append(d.alerts, r)
		case r.Spillway.Gap != nil:
			d.gaps = append(d.gaps, r.Spillway.Gap.Reason)
		case slices.Contains(r.Tags, "vault_torn"):
			d.torn++
		case e == nil || r.Vault == nil || sha256.Sum256(r.Vault.Audit) != e.sum:
			d.strange = append(d.strange, r.line)
		default:
			have[e.key]++
		}
	}
	for _, e := range v.entries {
		if have[e.key] == 0 && !e.failed {
			d.lost = append(d.lost, e.key)
		}
		if have[e.key] > 1 {
			d.twice = append(d.twice, e.key)
		}
	}
	if len(d.strange) > 0 {
		v.t.Errorf("%d records that are no entry as it was written, as %.2000s", len(d.strange), d.strange[0])
	}
	return d
}

// few are the first of many.
func few(all []string) []string { return all[:min(len(all), 5)] }

// delivered waits until nothing is pending in the lane audit, twice in a row.
func (v *vault) delivered() {
	v.t.Helper()
	var before float64
	agent.Eventually(v.t, "everything is delivered", time.Minute, func() bool {
		time.Sleep(300 * time.Millisecond)
		m, err := v.Metrics()
		if err != nil {
			v.t.Fatal(err)
		}
		now := m[`spillway_lane_records_admitted_total{lane="audit"}`]
		done := now == before && m[`spillway_lane_records_delivered_total{lane="audit"}`] >= now
		before = now
		return done
	})
}

// Whatever kind of socket Vault's device is given, each entry arrives once, as it was
// written; also when the device connects again.
func TestVaultSockets(t *testing.T) {
	besideVault(t)
	for _, network := range []string{"tcp", "unix", "unixpacket", "udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			besideVault(t)
			v := newVault(t, network)
			v.Start(t)
			for i := range 400 {
				if err := v.write(); err != nil {
					t.Fatal(err)
				}
				if i%100 == 99 {
					v.sender.Close()
				}
				if network == "udp" {
					time.Sleep(time.Millisecond) // for a datagram that does not fit nobody waits
				}
			}
			v.delivered()
			connections := v.Metric(t, `spillway_input_connections_total{input="vault"}`)
			v.Stop(t)
			d := v.judge()
			t.Log(d)
			if len(d.lost)+len(d.twice)+len(d.alerts)+d.failed+d.torn > 0 {
				t.Errorf("%v: lost %q", d, few(d.lost))
			}
			if want := map[string]float64{"udp": -1, "unixgram": -1, "tcp": 4, "unix": 4, "unixpacket": 4}[network]; connections != want {
				t.Errorf("%v connections, want %v", connections, want)
			}
		})
	}
}

// What Vault's own sender loses when the agent is restarted as systemd restarts it,
// under an entry each millisecond: on a unix socket nothing, and nothing arrives
// twice; by tcp at most one entry in twenty restarts, which TCP has no way to tell a
// sender of that does not read. A few restarts are enough where many send.
func TestVaultRestarts(t *testing.T) {
	besideVault(t)
	restarts, senders := vaultEither(100, 4), vaultEither(1, 10)
	for _, c := range []struct {
		network string
		most    int // entries lost
	}{{"unix", 0}, {"tcp", restarts * senders / 20}} {
		t.Run(c.network, func(t *testing.T) {
			besideVault(t)
			v := newVault(t, c.network)
			v.Start(t)
			all, stops := []*vault{v}, []func(){v.steadily()}
			for len(all) < senders {
				w := v.another(uint64(1 + len(all)))
				all, stops = append(all, w), append(stops, w.steadily())
			}
			for range restarts {
				time.Sleep(300 * time.Millisecond)
				if code := v.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				v.Start(t)
			}
			time.Sleep(300 * time.Millisecond)
			for _, stop := range stops {
				stop()
			}
			dials := 0
			for _, w := range all {
				dials += w.sender.Dials()
			}
			for _, w := range all[1:] {
				v.entries = append(v.entries, w.entries...)
			}
			v.delivered()
			v.Stop(t)
			d := v.judge()
			t.Logf("%s, %d restarts, %d senders, %d connections: %v", c.network, restarts, senders, dials, d)
			if len(d.lost) > c.most {
				t.Errorf("%d lost, more than %d: %q", len(d.lost), c.most, few(d.lost))
			}
			if c.network == "unix" && len(d.twice)+d.torn > 0 || len(d.alerts)+len(d.gaps) > 0 {
				t.Errorf("twice %q, gaps %q, alerts %v", few(d.twice), d.gaps, d.alerts)
			}
			if d.accepted < 10*restarts*senders { // of 300 each, on a machine that does nothing else
				t.Errorf("only %d entries were accepted", d.accepted)
			}
			if err := v.Verify(t, filepath.Join(v.State, "outbox")); err != nil {
				t.Error(err)
			}
		})
	}
}

// While the outputs are held the lane fills. No write to the agent waits: they
// succeed until the input refuses, and from then on fail at once, so that Vault goes
// on with its other device. When the outputs are back so is the input.
func TestVaultHeld(t *testing.T) {
	besideVault(t)
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			besideVault(t)
			n := servers.StartNATS(t, t.TempDir())
			v := newVault(t, network, append(hub(t, n), "SPILLWAY_BUFFER_MAX_BYTES=4MiB")...)
			v.ops.Pad = 4 << 10
			v.Start(t)
			m := watchMachine(t)
			stop := v.steadily()
			time.Sleep(500 * time.Millisecond)
			n.Pause(t)
			held := time.Now()
			refused := func() bool { return v.Metric(t, `spillway_lane_gate_shut{lane="audit"}`) == 1 }
			agent.Eventually(t, "the input refuses", time.Minute, refused)
			time.Sleep(vaultEither(60*time.Second-time.Since(held), 2*time.Second))
			if !refused() {
				t.Error("it does not refuse any more although nothing was delivered")
			}
			took := time.Since(held)
			n.Resume(t)
			agent.Eventually(t, "the input takes entries again", time.Minute, func() bool { return !refused() })
			time.Sleep(500 * time.Millisecond)
			stop()
			v.delivered()
			sent := v.sender.Sent()
			if sent[len(sent)-1].Err != nil {
				t.Errorf("the last entry, after the outputs are back: %v", sent[len(sent)-1].Err)
			}
			d := v.judge(natsSource(n))

			var all, failed []time.Duration
			first, last := -1, -1
			for i, s := range sent {
				all = append(all, s.Held)
				if s.Err != nil {
					failed = append(failed, s.Held)
					if last = i; first < 0 {
						first = i
					}
				}
			}
			between := 0 // accepted after the first that failed and before the last
			for _, s := range sent[first : last+1] {
				if s.Err == nil {
					between++
				}
			}
			t.Logf("%s, outputs held for %v: %v; refused after %d; %d accepted between the first that failed and the last", network, took.Round(time.Second), d, first, between)
			t.Logf("%s: a write took %v; one that failed %v", network, spread(all), spread(failed))
			// A write that waits for as long as Vault's deadline is what must not be; on a
			// machine with other things to do 200 ms may be the scheduler's.
			late, _ := m.late()
			if most := vaultEither(200*time.Millisecond, time.Second) + 2*late; slices.Max(all) > most {
				t.Errorf("a write took %v, and the machine was late by %v", slices.Max(all), late)
			}
			if between > 0 {
				t.Errorf("%d entries were accepted while the input refused", between)
			}
			if len(d.lost)+len(d.twice)+len(d.gaps) > 0 {
				t.Errorf("lost %q, twice %q, gaps %q", few(d.lost), few(d.twice), d.gaps)
			}
			if v.Stop(t) != 0 {
				t.Error("exit code")
			}
		})
	}
}

// spread prints the middle, the 99th percentile and the largest.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "nothing"
	}
	s := slices.Sorted(slices.Values(all))
	return fmt.Sprintf("%v in the middle, %v at the 99th percentile, %v at most", s[len(s)/2].Round(time.Microsecond), s[len(s)*99/100].Round(time.Microsecond), s[len(s)-1].Round(time.Microsecond))
}

// thief passes on what a sender writes, without the lines that take says.
func thief(t *testing.T, target string, take func(line []byte) bool) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // until the sender closes
				defer from.Close()
				to, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer to.Close()
				for r := bufio.NewReader(from); ; {
					line, err := r.ReadBytes('\n')
					if err != nil {
						return
					}
					if take(line) {
						continue
					}
					if _, err := to.Write(line); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// Between Vault and the agent one entry vanishes: exactly one record says so, and
// names the operation. Nothing else does, not a restart in the middle either.
func TestVaultLostEntry(t *testing.T) {
	besideVault(t)
	for _, missing := range []string{"response", "request", "none"} {
		t.Run(missing, func(t *testing.T) {
			besideVault(t)
			v := newVault(t, "tcp", "SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=2s")
			v.Start(t)
			var mu sync.Mutex
			victim := "nobody"
			v.sender.Address = thief(t, v.sender.Address, func(line []byte) bool {
				mu.Lock()
				defer mu.Unlock()
				return bytes.Contains(line, []byte(victim)) && bytes.Contains(line, []byte(`"type":"`+missing+`"}`))
			})
			some := func(n int) {
				for range n {
					if err := v.write(); err != nil {
						t.Fatal(err)
					}
				}
			}
			some(100)
			time.Sleep(2500 * time.Millisecond) // what a younger connection misses may be from before it
			some(100)
			op := v.ops.Next(time.Now())
			mu.Lock()
			victim = op.ID
			mu.Unlock()
			v.send(op.Request, "request")
			v.send(op.Response, "response")
			some(100)
			time.Sleep(5 * time.Second)
			v.delivered()
			v.Stop(t)
			d := v.judge()
			t.Log(d)
			if missing == "none" {
				if len(d.alerts)+len(d.lost) > 0 {
					t.Errorf("alerts %v, lost %q", d.alerts, d.lost)
				}
				return
			}
			if len(d.alerts) != 1 || len(d.lost) != 1 || d.lost[0] != op.ID+":"+missing {
				t.Fatalf("%d alerts, lost %q; want one of each, %s of %s", len(d.alerts), d.lost, missing, op.ID)
			}
			if a := d.alerts[0]; a.Event.Action != "vault-audit-gap" || !strings.Contains(a.line, op.ID) || !strings.Contains(a.line, missing) {
				t.Errorf("the alert does not name %s of %s: %s", missing, op.ID, a.line)
			}
		})
	}
}

// Operations that are under way as the agent is restarted, or that Vault could not
// audit meanwhile, are no lost entries.
func TestVaultRestartIsNoAlert(t *testing.T) {
	besideVault(t)
	v := newVault(t, "unix", "SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=2s")
	v.Start(t)
	var open [][]byte // responses of operations that take long
	begin := func(n int) {
		for range n {
			op := v.ops.Next(time.Now())
			if v.send(op.Request, "request") == nil {
				open = append(open, op.Response)
			}
		}
	}
	end := func() {
		for _, line := range open {
			if err := v.send(line, "response"); err != nil {
				t.Error(err)
			}
		}
		open = nil
	}
	begin(50)
	v.Stop(t)
	v.write() // fails
	v.Start(t)
	end()
	begin(50)
	end()
	time.Sleep(5 * time.Second)
	v.delivered()
	v.Stop(t)
	if d := v.judge(); len(d.alerts)+len(d.lost)+len(d.twice) > 0 || d.failed != 1 {
		t.Errorf("%v: %v", d, d.alerts)
	}
}

// What a real Vault wrote, with an operation at its beginning whose request it wrote
// before the device was there, and a probe that nobody answers: no alert.
func TestVaultRecorded(t *testing.T) {
	besideVault(t)
	v := newVault(t, "unix", "SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=2s")
	v.Start(t)
	lines := bytes.SplitAfter([]byte(readFile(t, "framing/vault/testdata/vault-1.21.ndjson")), []byte("\n"))
	lines = lines[:len(lines)-1] // behind the last line end
	if len(lines) != 33 {
		t.Fatalf("%d entries", len(lines))
	}
	for _, line := range lines {
		kind := "request"
		if bytes.HasSuffix(line, []byte("\"type\":\"response\"}\n")) {
			kind = "response"
		}
		if err := v.send(line, kind); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(5 * time.Second)
	v.delivered()
	v.Stop(t)
	if d := v.judge(); len(d.alerts)+len(d.lost)+len(d.twice) > 0 {
		t.Errorf("%v: %v", d, d.alerts)
	}
}

// A flood of syslog fills its own lane to the limit, and the lane of the audit
// entries takes each of them as before.
func TestVaultBesideFlood(t *testing.T) {
	besideVault(t)
	n := servers.StartNATS(t, t.TempDir())
	v := newVault(t, "unix", append(hub(t, n), "SPILLWAY_BUFFER_MAX_BYTES="+vaultEither("64MiB", "16MiB"), "SPILLWAY_INPUT_UDP_ON_FULL=drop")...)
	v.Start(t)
	n.Pause(t)
	run := func(what string, paced time.Duration) (rate float64) {
		t.Helper()
		from := len(v.sender.Sent())
		stop := v.steadily()
		time.Sleep(paced)
		stop()
		var held []time.Duration
		for _, s := range v.sender.Sent()[from:] {
			held = append(held, s.Held)
			if s.Err != nil {
				t.Fatalf("%s: %v", what, s.Err)
			}
		}
		// As fast as it goes, too.
		count := vaultEither(10000, 500)
		begin := time.Now()
		for range count {
			if err := v.write(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		rate = float64(count) / time.Since(begin).Seconds()
		t.Logf("%s: at an entry each millisecond a write took %v; %d entries at once went at %.0f/s", what, spread(held), count, rate)
		return rate
	}
	paced := vaultEither(10*time.Second, time.Second)
	run("without the flood", paced)

	quit := make(chan struct{})
	var wg sync.WaitGroup
	var conns []net.Conn
	for k := range 4 {
		c := dialAgent(t, v.Agent)
		conns = append(conns, c)
		wg.Go(func() {
			w := bufio.NewWriterSize(c, 64<<10)
			for i := 0; ; i++ {
				sum := sha256.Sum256(fmt.Append(nil, k, i))
				if _, err := fmt.Fprintf(w, "<134>1 2026-11-20T12:00:00Z gateway-%d flood - - - %x\n", k, sum); err != nil {
					return // ended
				}
			}
		})
	}
	wg.Go(func() {
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", v.UDP))
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			fmt.Fprintf(c, "<134>1 2026-11-20T12:00:00Z gateway flood - - - datagram %d", i)
		}
	})
	end := sync.OnceFunc(func() {
		close(quit)
		for _, c := range conns {
			c.Close()
		}
		wg.Wait()
	})
	t.Cleanup(end)
	run("while the flood fills its lane", paced)
	agent.Eventually(t, "lane main is full", 2*time.Minute, func() bool { return v.Metric(t, `spillway_lane_full{lane="main"}`) == 1 })
	run("with a full lane and the flood going on", paced)
	end()

	agent.Eventually(t, "every entry is read", 10*time.Second, func() bool {
		return v.Metric(t, `spillway_input_messages_total{input="vault"}`) == float64(len(v.entries))
	})
	n.Resume(t)
	v.delivered()
	d := v.judge(natsSource(n) + "?subject=logs.*.*.audit")
	t.Log(d)
	if len(d.lost)+len(d.twice)+len(d.gaps)+d.failed > 0 {
		t.Errorf("%v: lost %d", d, len(d.lost))
	}
}

// An entry that is larger than other inputs take, as a list of everything makes one,
// arrives as it was written, and costs the agent no more than a few copies of it.
func TestVaultLargeEntry(t *testing.T) {
	besideVault(t)
	v := newVault(t, "tcp")
	v.Start(t)
	v.write()
	v.write()
	v.delivered()
	before, most := resident(t, v.Agent), int64(0)
	size := vaultEither(58*mib, 38*mib)
	v.ops.Pad = size
	op := v.ops.Next(time.Now())
	quit, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if n, err := v.Resident(); err == nil {
				most = max(most, n)
			}
		}
	}()
	v.send(op.Request, "request")
	v.send(op.Response, "response")
	v.delivered()
	close(quit)
	<-watched
	// What comes while the disk takes it may be refused, where that takes a second.
	agent.Eventually(t, "entries are taken", 30*time.Second, func() bool { return v.Metric(t, `spillway_lane_gate_shut{lane="audit"}`) == 0 })
	v.ops.Pad = 0
	v.write()
	v.write()
	v.delivered()
	v.Stop(t)
	d := v.judge()
	t.Logf("%v; an entry of %d MiB: %d MiB resident at most, %d before", d, size/mib, most/mib, before/mib)
	if len(d.lost)+len(d.twice)+d.failed > 0 {
		t.Errorf("lost %q", d.lost)
	}
	// The entry as it comes (twice, while its buffer grows), its record, what that is
	// compressed to, and what the runtime has not collected yet.
	if most-before > int64(6*size) {
		t.Errorf("an entry of %d MiB costs %d", size/mib, (most-before)/mib)
	}
}

// A stream of format=jsonx has no line ends; entries with text over several lines
// and with < in it are one record each, byte for byte.
func TestVaultJSONX(t *testing.T) {
	besideVault(t)
	v := newVault(t, "unix", "SPILLWAY_INPUT_VAULT_FRAMING=jsonx")
	v.Start(t)
	want := map[string]string{}
	for range 100 {
		op := v.ops.Next(time.Now())
		for kind, line := range map[string][]byte{"request": op.Request, "response": op.Response} {
			text, err := vaultsender.JSONX(line)
			if err != nil {
				t.Fatal(err)
			}
			want[op.ID+":"+kind] = string(text)
			if err := v.sender.Write(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	v.delivered()
	v.Stop(t)
	have := map[string]string{}
	for _, r := range v.cat() {
		if r.Error != nil {
			t.Errorf("error in %s", r.line)
		}
		have[r.Event.ID] = r.Message
	}
	if !maps.Equal(have, want) {
		t.Errorf("%d records, want %d, the same", len(have), len(want))
		for key, text := range want {
			if have[key] != text {
				t.Fatalf("%s\nhave %q\nwant %q", key, have[key], text)
			}
		}
	}
}

// What the device's prefix option puts in front of each entry is no part of it. One
// that has a { in it must be told to the agent.
func TestVaultPrefix(t *testing.T) {
	besideVault(t)
	for _, c := range []struct {
		prefix string
		env    []string
	}{{"vault-a: ", nil}, {"vault-{a}: ", []string{"SPILLWAY_INPUT_VAULT_PREFIX=vault-{a}: "}}} {
		v := newVault(t, "unix", c.env...)
		v.Start(t)
		for range 20 {
			op := v.ops.Next(time.Now())
			for kind, line := range map[string][]byte{"request": op.Request, "response": op.Response} {
				if err := v.sender.Write(append([]byte(c.prefix), line...)); err != nil {
					t.Fatal(err)
				}
				v.entries = append(v.entries, entry{key: op.ID + ":" + kind, sum: sha256.Sum256(bytes.TrimSuffix(line, []byte("\n")))})
			}
		}
		v.delivered()
		v.Stop(t)
		if d := v.judge(); len(d.lost)+len(d.twice)+len(d.alerts) > 0 {
			t.Errorf("%q: %v", c.prefix, d)
		}
		for _, r := range v.cat() {
			var p struct {
				Vault struct{ Audit struct{ Prefix string } }
			}
			if err := json.Unmarshal([]byte(r.line), &p); err != nil || p.Vault.Audit.Prefix != c.prefix {
				t.Fatalf("vault.audit.prefix is %q, want %q in %s", p.Vault.Audit.Prefix, c.prefix, r.line)
			}
		}
	}
}
