package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
	"spillway/test/servers"
	"spillway/test/vaultsender"
)

// pageBlock is the block of docs/inputs.md with this name.
func pageBlock(t *testing.T, name string) string {
	t.Helper()
	for _, b := range blocks(t, "docs/inputs.md") {
		if b.name == name {
			return b.text
		}
	}
	t.Fatalf("docs/inputs.md has no block %s", name)
	return ""
}

// settings are the lines of a block of variables.
func settings(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }

// TestInputsPage holds docs/inputs.md to what is there: it answers every row, names
// only tests that exist and variables that the agent knows, and a test has each block
// that has a name.
func TestInputsPage(t *testing.T) {
	page := fence.ReplaceAllString(readFile(t, "docs/inputs.md"), "")
	reference := readFile(t, "docs/reference.md")
	var code strings.Builder // of all tests
	root := filepath.Join("..", "..")
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin", "tmp", "dist"}, d.Name()) {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			text, err := os.ReadFile(path)
			code.Write(text)
			return err
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	rows := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([VE]\d\d) \|(.*)$`).FindAllStringSubmatch(page, -1) {
		rows[m[1]]++
		cells := strings.Split(m[2], " | ")
		if len(cells) != 3 {
			t.Errorf("row %s has %d cells behind its label, want 3", m[1], len(cells))
			continue
		}
		answer, proof := cells[1], cells[2]
		if !regexp.MustCompile(`\b(Test|Fuzz)[A-Z]`).MatchString(proof) {
			t.Errorf("row %s names no test", m[1])
		}
		if strings.TrimSpace(answer) == "" {
			t.Errorf("row %s has no answer", m[1])
		}
	}
	for kind, last := range map[string]int{"V": 20, "E": 50} {
		for i := 1; i <= last; i++ {
			if label := fmt.Sprintf("%s%02d", kind, i); rows[label] != 1 {
				t.Errorf("row %s is there %d times", label, rows[label])
			}
		}
	}
	for _, m := range regexp.MustCompile(`\b((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)(?:/([a-z0-9-]+))?`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(code.String(), "\nfunc "+m[1]+"(") {
			t.Errorf("there is no %s", m[1])
		}
		if m[2] != "" && !strings.Contains(code.String(), `"`+m[2]+`"`) {
			t.Errorf("there is no %s/%s", m[1], m[2])
		}
	}
	for _, m := range regexp.MustCompile("`(?:SPILLWAY_INPUT_<NAME>)?_([A-Z][A-Z_]+)(?:=[^`]*)?`").FindAllStringSubmatch(page, -1) {
		name, _ := strings.CutSuffix(m[1], "_FILE") // of a secret
		if !strings.Contains(reference, "SPILLWAY_INPUT_<NAME>_"+m[1]+"`") && !strings.Contains(reference, "SPILLWAY_INPUT_<NAME>_"+name+"`") {
			t.Errorf("docs/reference.md has no SPILLWAY_INPUT_<NAME>_%s", m[1])
		}
	}
	for _, b := range blocks(t, "docs/inputs.md") {
		if b.name != "" && !strings.Contains(code.String(), `pageBlock(t, "`+b.name+`")`) {
			t.Errorf("no test runs the block %s", b.name)
		}
	}
}

func readFile(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// onPage is an agent with the settings of a block of docs/inputs.md; what stands for
// directories and ports there is put in the place of others'. here does the same to
// what a sender runs.
func onPage(t *testing.T, text string) (a *agent.Agent, here *strings.Replacer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "spillway-") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a = agent.New(t, dir, "TZ=UTC", "SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=20ms")
	ca := certs.New(t)
	ca.Issue("server", time.Now().Add(time.Hour))
	ca.Issue("client", time.Now().Add(time.Hour))
	if err := os.WriteFile(filepath.Join(dir, "http.token"), []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	here = strings.NewReplacer("5514", fmt.Sprint(a.TCP), "5517", fmt.Sprint(servers.FreePort(t)), "8080", fmt.Sprint(servers.FreePort(t)), "9090", fmt.Sprint(servers.FreePort(t)),
		"/run/systemd/journal", dir, "/run/spillway", dir, "/var/log/vault", dir, "/etc/spillway/http.token", filepath.Join(dir, "http.token"), "/etc/spillway", filepath.Dir(ca.File))
	a.Env = append(a.Env, fmt.Sprintf("SPILLWAY_INPUT_TCP_URL=tcp://localhost:%d", a.TCP), fmt.Sprintf("SPILLWAY_INPUT_UDP_URL=udp://localhost:%d", a.TCP))
	a.Env = append(a.Env, settings(here.Replace(text))...)
	a.Start(t)
	return a, here
}

// journald, a real one, hands on what programs log.
func TestInputJournald(t *testing.T) {
	t.Parallel()
	a, here := onPage(t, pageBlock(t, "agent-journald"))
	dir := here.Replace("/run/spillway")
	// In a mount namespace of its own its /run is empty, but for the directory with the
	// agent's socket.
	script := fmt.Sprintf(`set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d
mount --bind %s /run/systemd/journal
cat > /run/systemd/journald.conf.d/spillway.conf <<'END'
%sEND
/lib/systemd/systemd-journald &
until test -S /run/systemd/journal/stdout; do sleep 0.05; done
echo 'by standard output' | systemd-cat -t myservice -p warning
logger -u /run/systemd/journal/dev-log -t myapp 'by logger'
wait
`, dir, pageBlock(t, "journald"))
	cmd := exec.Command("unshare", "-rm", "--kill-child", "bash", "-c", script)
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			t.Logf("journald said:\n%s", out.String())
		}
	})
	rs := records(t, a, 2)
	slices.SortFunc(rs, func(a, b map[string]any) int {
		return strings.Compare(field(a, "message").(string), field(b, "message").(string))
	})
	same(t, rs[0], map[string]string{"message": "by logger", "log.syslog.appname": "myapp", "log.syslog.severity.name": "Notice", "input.type": "unix"})
	same(t, rs[1], map[string]string{"message": "by standard output", "log.syslog.appname": "myservice", "log.syslog.severity.name": "Warning"})
}

// What the page says of stack traces.
func TestInputTracesPage(t *testing.T) {
	t.Parallel()
	a, _ := onPage(t, pageBlock(t, "agent-traces"))
	sh(t, fmt.Sprintf(`printf '<11>Nov 20 12:00:00 h app: Exception\n\tat a\n\tat b\n<14>Nov 20 12:00:01 h app: next\n' | nc -q1 127.0.0.1 %d`, a.TCP))
	rs := records(t, a, 2)
	same(t, rs[0], map[string]string{"message": "Exception\n\tat a\n\tat b"})
	same(t, rs[1], map[string]string{"message": "next"})
}

// What the page says of load balancers.
func TestInputBalancerPage(t *testing.T) {
	t.Parallel()
	a, here := onPage(t, pageBlock(t, "agent-balancer"))
	port := here.Replace("5517")
	haproxy(t, here.Replace(pageBlock(t, "balancer")), port)
	sh(t, "echo hello | nc -s 127.0.0.9 -q1 127.0.0.1 "+port)
	same(t, records(t, a, 1)[0], map[string]string{"message": "hello", "source.ip": "127.0.0.9", "source.nat.ip": "127.0.0.1"})
}

// What the page says of TLS.
func TestInputTLSPage(t *testing.T) {
	t.Parallel()
	a, here := onPage(t, pageBlock(t, "agent-tls"))
	sh(t, here.Replace(pageBlock(t, "tls")))
	same(t, records(t, a, 1)[0], map[string]string{"message": "hello", "tls.client.subject": "CN=client", "tls.client.issuer": "CN=ca", "tls.established": "true"})
}

// What README.md says of Vault is what the page does, and the settings are all that the
// agent needs.
func TestInputVaultReadme(t *testing.T) {
	t.Parallel()
	ini := slices.IndexFunc(blocks(t, "README.md"), func(b block) bool { return b.language == "ini" })
	if ini < 0 {
		t.Fatal("README.md has no block of settings")
	}
	text := blocks(t, "README.md")[ini].text
	enable, _, _ := strings.Cut(pageBlock(t, "vault-unix"), "\n")
	if text != pageBlock(t, "agent-vault") || !strings.Contains(readFile(t, "README.md"), "`"+enable+"`") {
		t.Errorf("README.md has not the settings and the command of docs/inputs.md: %s", text)
	}
	a, here := onPage(t, text)
	sender := vaultsender.Sender{Network: "unix", Address: here.Replace("/run/spillway/audit.sock")}
	defer sender.Close()
	op := vaultsender.NewOperations(1).Next(time.Now())
	for _, entry := range [][]byte{op.Request, op.Response} {
		if err := sender.Write(entry); err != nil {
			t.Fatal(err)
		}
	}
	agent.Eventually(t, "two records", 20*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="audit"}`) == 2
	})
	a.Stop(t)
	for _, r := range objects(t, outbox(t, a)) {
		same(t, r, map[string]string{"event.dataset": "vault.audit", "http.request.id": op.ID, "input.type": "unix"})
	}
}

// What the page says of webhooks.
func TestInputHTTP(t *testing.T) {
	t.Parallel()
	a, here := onPage(t, pageBlock(t, "agent-http"))
	sh(t, here.Replace(pageBlock(t, "http-curl")))
	sh(t, here.Replace(pageBlock(t, "http-lines")))
	rs := records(t, a, 3)
	same(t, rs[0], map[string]string{"message": `{"event":"door","state":"open"}`, "input.type": "http", "event.dataset": "http.generic"})
	same(t, rs[1], map[string]string{"message": `{"event":"door","state":"open"}`})
	same(t, rs[2], map[string]string{"message": `{"event":"door","state":"shut"}`, "log.flags": "<nil>"})
}
