package e2e

import (
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
)

// What `make run` starts does what it prints: its lines are run as printed, and
// Ctrl-C leaves nothing behind.
func TestMakeRun(t *testing.T) {
	defaultPorts(t)
	bin := filepath.Dir(agent.Binary(t))
	dir := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil { // the printed lines say bin/spillway
		t.Fatal(err)
	}
	run := func(env ...string) (text func() string, stop func()) {
		var out syncBuffer
		cmd := exec.Command(filepath.Join(bin, "local"))
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
		cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SPILLWAY_") }) // of the tests, not of the agent
		cmd.Env = append(cmd.Env, env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		agent.Eventually(t, "the lines to type", 30*time.Second, func() bool {
			select {
			case err := <-done:
				t.Fatalf("it ended: %v\n%s", err, out.String())
			default:
			}
			return strings.Contains(out.String(), "Ctrl-C stops everything")
		})
		return out.String, func() {
			cmd.Process.Signal(os.Interrupt)
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("after Ctrl-C: %v\n%s", err, out.String())
				}
			case <-time.After(30 * time.Second):
				cmd.Process.Kill()
				t.Fatalf("Ctrl-C did not stop it:\n%s", out.String())
			}
		}
	}
	printed := func(text, label string) string {
		m := regexp.MustCompile(`(?m)^\s+` + label + `\s{2,}(.*)$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no line %q in:\n%s", label, text)
		}
		return "cd " + dir + " && " + m[1]
	}

	text, stop := run()
	sh(t, printed(text(), "send a line"))
	sh(t, printed(text(), "the same by udp"))
	var rs []record
	agent.Eventually(t, "both lines in the stream", 20*time.Second, func() bool {
		rs = parse(t, sh(t, printed(text(), "read it back")))
		return len(rs) == 2
	})
	for _, r := range rs {
		if r.Message != "hello" || r.Event.Dataset != r.Input.Type+".generic" || r.Log.Syslog.Priority == nil {
			t.Errorf("%+v", r)
		}
	}
	if m := sh(t, printed(text(), "its metrics")); !strings.Contains(m, `spillway_input_messages_total{input="tcp"} 1`) {
		t.Errorf("metrics:\n%s", m)
	}
	stop()

	text, stop = run("SPILLWAY_OUTPUTS=archive", "SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s")
	sh(t, printed(text(), "send a line"))
	cat := regexp.MustCompile(`(?m)^\s+(AWS_ACCESS_KEY_ID=.* cat 's3:.*)$`).FindStringSubmatch(text())
	if cat == nil {
		t.Fatalf("no line to read the bucket in:\n%s", text())
	}
	agent.Eventually(t, "the line in the bucket", 20*time.Second, func() bool {
		return strings.Contains(sh(t, "cd "+dir+" && "+cat[1]), `"message":"hello"`)
	})
	stop()
	nothingRuns(t, dir)
}
