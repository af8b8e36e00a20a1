//go:build realvault

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/servers"
)

// realVault is a development server of HashiCorp Vault, whose program
// SPILLWAY_VAULT_BIN names: its licence keeps it out of what `make tools` installs,
// and these tests out of `make test`. They are run by `make vault`.
type realVault struct {
	t    *testing.T
	url  string
	said syncBuffer // its operational log
	file string     // of its audit device file/
	cmd  *exec.Cmd
}

func startVault(t *testing.T) *realVault {
	t.Helper()
	bin := os.Getenv("SPILLWAY_VAULT_BIN")
	if bin == "" {
		t.Fatal("SPILLWAY_VAULT_BIN names no Vault: make vault VAULT=/usr/bin/vault")
	}
	dir := t.TempDir()
	address := fmt.Sprintf("127.0.0.1:%d", servers.FreePort(t))
	s := &realVault{t: t, url: "http://" + address, file: filepath.Join(dir, "audit.log")}
	cmd := exec.Command(bin, "server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-dev-listen-address="+address)
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	s.cmd, cmd.Stdout, cmd.Stderr = cmd, &s.said, &s.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	agent.Eventually(t, "Vault is up", 30*time.Second, func() bool {
		r, err := http.Get(s.url + "/v1/sys/health")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	version, err := exec.Command(bin, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", version)
	return s
}

// call does one request with the root token. Its status is the caller's to judge.
func (s *realVault) call(method, path string, body any) (int, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	r, err := http.NewRequest(method, s.url+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return 0, err
	}
	r.Header.Set("X-Vault-Token", "root")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}

func (s *realVault) must(method, path string, body any) {
	s.t.Helper()
	if status, err := s.call(method, path, body); err != nil || status >= 300 {
		s.t.Fatalf("%s %s: %d %v\n%s", method, path, status, err, s.said.String())
	}
}

// told is how many entries Vault said it could not write to a device.
func (s *realVault) told() int {
	return strings.Count(s.said.String(), "underlying pipeline error(s)")
}

// load writes and reads secrets of so many keys, one request after the other with a
// pause of a millisecond, until stop; took is how long each request had to wait.
func (s *realVault) load(keys int) (stop func() (took []time.Duration)) {
	quit, done := make(chan struct{}), make(chan struct{})
	var took []time.Duration
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-time.After(time.Millisecond):
			}
			begin := time.Now()
			path := fmt.Sprintf("secret/data/app-%d", i/2%50)
			var status int
			var err error
			if i%2 == 0 {
				data := map[string]string{}
				for k := range keys {
					data[fmt.Sprint("password-", k)] = fmt.Sprint("s3cret ", i, k)
				}
				status, err = s.call("POST", path, map[string]any{"data": data})
			} else {
				status, err = s.call("GET", path, nil)
			}
			took = append(took, time.Since(begin))
			if err != nil || status >= 300 {
				s.t.Errorf("request %d: %d %v", i, status, err)
				return
			}
		}
	}()
	stop = sync.OnceValue(func() []time.Duration {
		close(quit)
		<-done
		return took
	})
	s.t.Cleanup(func() { stop() })
	return stop
}

// audits are the entries of a file device: type, request.id and time, which one
// entry has on every device. What is hashed differs from device to device.
func audits(t *testing.T, file string) (all []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, name(t, line))
	}
}

func name(t *testing.T, line []byte) string {
	t.Helper()
	var e struct {
		Type, Time string
		Request    struct{ ID string }
	}
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatalf("%v: %.200q", err, line)
	}
	return e.Type + " " + e.Request.ID + " " + e.Time
}

// against compares what the agent delivered with what the file device has. missing
// is what the agent has not; Vault was told of some of it.
func (s *realVault) against(v *vault, sources ...string) (all int, missing, twice, alerts []string) {
	s.t.Helper()
	have := map[string]int{}
	for _, r := range v.cat(sources...) {
		switch {
		case r.Event.Kind == "alert":
			alerts = append(alerts, r.line)
		case r.Vault != nil:
			have[name(s.t, r.Vault.Audit)]++
		default:
			s.t.Logf("a record that is no entry: %.300s", r.line)
		}
	}
	entries := audits(s.t, s.file)
	for _, e := range entries {
		switch have[e] {
		case 0:
			missing = append(missing, e)
		case 1:
		default:
			twice = append(twice, e)
		}
	}
	return len(entries), missing, twice, alerts
}

// enable makes the two devices: the agent's first, then the file, whose entries are
// compared; so what the agent has in front is the first's own enabling.
func (s *realVault) enable(v *vault) {
	s.t.Helper()
	s.must("PUT", "sys/audit/spillway", map[string]any{"type": "socket", "options": map[string]string{"address": v.sender.Address, "socket_type": v.sender.Network}})
	s.must("PUT", "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": s.file, "skip_test": "true"}})
}

// TestVaultRestarts with a real Vault. A request that finds no agent is no failure,
// because the other device took its entries; Vault says in its log how many entries
// the agent's device did not.
func TestRealVaultRestarts(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := startVault(t)
			v := newVault(t, network)
			v.Start(t)
			s.enable(v)
			stop := s.load(1)
			restarts := vaultEither(100, 10)
			for range restarts {
				time.Sleep(500 * time.Millisecond)
				if code := v.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				v.Start(t)
			}
			time.Sleep(500 * time.Millisecond)
			took := stop()
			v.delivered()
			v.Stop(t)
			all, missing, twice, alerts := s.against(v)
			lost := len(missing) - s.told()
			t.Logf("%s, %d restarts: %d requests took %v; %d entries, of %d Vault was told that the agent has not got them; %d lost, %d twice, %d alerts",
				network, restarts, len(took), spread(took), all, s.told(), lost, len(twice), len(alerts))
			if most := map[string]int{"unix": 0, "tcp": max(1, restarts/20)}[network]; lost < 0 || lost > most || network == "unix" && len(twice) > 0 || len(alerts) > 0 {
				t.Errorf("lost %d, twice %q, alerts %q", lost, twice, alerts)
			}
		})
	}
}

func sum(all []time.Duration) (n time.Duration) {
	for _, d := range all {
		n += d
	}
	return n
}

// TestVaultHeld with a real Vault: its requests go on while the agent refuses.
func TestRealVaultHeld(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := startVault(t)
			n := servers.StartNATS(t, t.TempDir())
			v := newVault(t, network, append(hub(t, n), "SPILLWAY_BUFFER_MAX_BYTES=4MiB")...)
			v.Start(t)
			s.enable(v)
			stop := s.load(40) // hashed each, which fills the lane soon
			n.Pause(t)
			begin := time.Now()
			refused := func() bool { return v.Metric(t, `spillway_lane_gate_shut{lane="audit"}`) == 1 }
			agent.Eventually(t, "the input refuses", 3*time.Minute, refused)
			filled := time.Since(begin)
			time.Sleep(max(2*time.Second, vaultEither(60*time.Second, 0)-filled))
			n.Resume(t)
			agent.Eventually(t, "the input takes entries again", time.Minute, func() bool { return !refused() })
			time.Sleep(time.Second)
			took := stop()
			v.delivered()
			v.Stop(t)
			all, missing, twice, alerts := s.against(v, natsSource(n))
			t.Logf("%s, outputs held for %v, full after %v: %d requests took %v; %d entries, of %d Vault was told that the agent has not got them; %d lost, %d twice, %d alerts",
				network, time.Since(begin).Round(time.Second), filled.Round(time.Second), len(took), spread(took), all, s.told(), len(missing)-s.told(), len(twice), len(alerts))
			if n := strings.Count(s.said.String(), "i/o timeout"); n > 0 {
				t.Errorf("%d writes of Vault met their deadline", n)
			}
			slowest := slices.Index(took, slices.Max(took))
			t.Logf("the slowest was request %d, %v after the first", slowest, sum(took[:slowest]).Round(time.Millisecond))
			if len(missing) != s.told() || len(twice) > 0 {
				t.Errorf("%d are missing and Vault was told of %d; twice %q", len(missing), s.told(), twice)
			}
		})
	}
}

// What the page says of Vault.
func TestRealVaultPage(t *testing.T) {
	s := startVault(t)
	a, here := onPage(t, pageBlock(t, "agent-vault"))
	sh(t, here.Replace(pageBlock(t, "vault-unix")), "VAULT_ADDR="+s.url, "VAULT_TOKEN=root", "PATH="+filepath.Dir(os.Getenv("SPILLWAY_VAULT_BIN"))+":"+os.Getenv("PATH"))
	s.must("POST", "secret/data/a", map[string]any{"data": map[string]string{"password": "s3cret"}})
	agent.Eventually(t, "the probe, the response of its enabling, and three pairs", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="audit"}`) >= 6
	})
	var seen []string
	for _, o := range objects(t, outbox(t, a)) {
		seen = append(seen, fmt.Sprint(field(o, "event.action"), " ", field(o, "url.path"), " ", field(o, "vault.audit.type"), " ", field(o, "tags")))
	}
	for _, want := range []string{"update sys/audit/test request [vault_probe]", "update sys/audit/spillway response <nil>", "update sys/audit/file request <nil>", "update sys/audit/file response <nil>",
		"create secret/data/a request <nil>", "create secret/data/a response <nil>"} {
		if !slices.Contains(seen, want) {
			t.Errorf("no record %q among %q", want, seen)
		}
	}

	// SIGHUP is for the file device: the other one keeps its connection.
	connections := a.Metric(t, `spillway_input_connections_total{input="vault"}`)
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	agent.Eventually(t, "Vault reloads", 10*time.Second, func() bool { return strings.Contains(s.said.String(), "reloading file audit backend") })
	before := a.Metric(t, `spillway_input_messages_total{input="vault"}`)
	s.must("GET", "secret/data/a", nil)
	agent.Eventually(t, "a pair", 10*time.Second, func() bool { return a.Metric(t, `spillway_input_messages_total{input="vault"}`) == before+2 })
	if now := a.Metric(t, `spillway_input_connections_total{input="vault"}`); now != connections {
		t.Errorf("%v connections behind SIGHUP, %v before", now, connections)
	}
}
