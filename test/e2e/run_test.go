package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	run := func(command string) *terminal {
		term := open(t, dir, command)
		agent.Eventually(t, "the lines to type", 30*time.Second, func() bool {
			term.mustRun(t)
			return strings.Contains(term.out.String(), "Ctrl-C stops everything")
		})
		return term
	}
	stop := func(term *terminal) {
		term.interrupt(t)
		if code := term.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("after Ctrl-C: exit code %d\n%s", code, term.out.String())
		}
	}
	printed := func(text, label string) string {
		m := regexp.MustCompile(`(?m)^\s+` + label + `\s{2,}(.*)$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no line %q in:\n%s", label, text)
		}
		return "cd " + dir + " && " + m[1]
	}

	term := run("bin/local")
	text := term.out.String()
	sh(t, printed(text, "send a line"))
	sh(t, printed(text, "the same by udp"))
	var rs []record
	agent.Eventually(t, "both lines in the stream", 20*time.Second, func() bool {
		rs = parse(t, sh(t, printed(text, "read it back")))
		return len(rs) == 2
	})
	for _, r := range rs {
		if r.Message != "hello" || r.Event.Dataset != r.Input.Type+".generic" || r.Log.Syslog.Priority == nil {
			t.Errorf("%+v", r)
		}
	}
	if m := sh(t, printed(text, "its metrics")); !strings.Contains(m, `spillway_input_messages_total{input="tcp"} 1`) {
		t.Errorf("metrics:\n%s", m)
	}
	stop(term)

	term = run("SPILLWAY_OUTPUTS=archive SPILLWAY_OUTPUT_ARCHIVE_ROLL_AGE=1s bin/local")
	text = term.out.String()
	sh(t, printed(text, "send a line"))
	cat := regexp.MustCompile(`(?m)^\s+(AWS_ACCESS_KEY_ID=.* cat 's3:.*)$`).FindStringSubmatch(text)
	if cat == nil {
		t.Fatalf("no line to read the bucket in:\n%s", text)
	}
	agent.Eventually(t, "the line in the bucket", 20*time.Second, func() bool {
		return strings.Contains(sh(t, "cd "+dir+" && "+cat[1]), `"message":"hello"`)
	})
	stop(term)
	nothingRuns(t, dir)
}
