package packaging

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// host is a machine of its own with systemd, in namespaces of this one: see
// testdata/host.sh.
type host struct {
	t     *testing.T
	pid   string // of its systemd, here
	since time.Time
}

// newHost boots a host that has the directory files as /mnt. Nothing of it is left
// behind. Where it can't be, the test fails and says why.
func newHost(t *testing.T, files string) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("installing packages needs root")
	}
	for _, program := range []string{"/lib/systemd/systemd", "/usr/bin/unshare", "/usr/bin/nsenter"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("%v: run `make apt` first", err)
		}
	}
	if out, err := exec.Command("unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--cgroup", "mount", "-t", "tmpfs", "tmpfs", "/mnt").CombinedOutput(); err != nil {
		t.Fatalf("this machine lets nobody make namespaces, so that packages can't be installed without leaving traces: %s", out)
	}
	var log bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "testdata/host.sh", t.TempDir(), files)
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("boot: %v\n%s", err, log.String())
	}
	h := &host{t, strings.TrimSpace(line), time.Now()}
	h.until("systemd has started", "systemctl is-system-running | grep -qE 'running|degraded'")
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := h.run("systemctl status --no-pager -l spillway.service | head -20; journalctl --no-pager -n 40 -o cat -u spillway")
			t.Logf("the host says:\n%s", out)
		}
	})
	return h
}

// step says what comes next.
func (h *host) step(what string) { h.t.Logf("after %.1fs: %s", time.Since(h.since).Seconds(), what) }

// run runs a shell line on the host, as root.
func (h *host) run(line string) (string, error) {
	cmd := exec.Command("nsenter", "--target", h.pid, "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup",
		"bash", "-euo", "pipefail", "-c", line)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// sh runs a shell line that must succeed, and returns what it printed.
func (h *host) sh(line string) string {
	h.t.Helper()
	out, err := h.run(line)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// want runs a shell line that must print text.
func (h *host) want(line, text string) {
	h.t.Helper()
	if out, err := h.run(line); out != text {
		h.t.Fatalf("%s: printed %q, want %q (%v)", line, out, text, err)
	}
}

// until waits till a shell line succeeds.
func (h *host) until(what, line string) {
	h.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := h.run(line)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("not within 30 s: %s: %s: %v\n%s", what, line, err, out)
		}
	}
}
