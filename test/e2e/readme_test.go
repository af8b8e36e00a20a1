package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
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
	"spillway/test/servers"
)

// README.md as a newcomer reads it: the blocks of commands are run one after the
// other in a copy of this tree, as they stand. What a newcomer has and this machine
// has not is put in their place: /etc/spillway and /var/lib/spillway are temporary
// directories, and the two test servers are built already. A block that does not
// end is one to leave running while the next ones are typed into another terminal;
// Ctrl-C ends it before the next such block, as the text says. `make test` is left
// out: it runs this test.
func TestReadme(t *testing.T) {
	defaultPorts(t)
	dir := t.TempDir()
	tree, etc, lib := filepath.Join(dir, "tree"), filepath.Join(dir, "etc"), filepath.Join(dir, "lib")
	for _, d := range []string{filepath.Join(tree, "bin"), etc, lib} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "tar -C ../.. --exclude=./.git --exclude=./bin --exclude=./dist --exclude=./tmp -cf - . | tar -C "+tree+" -xf -")
	for _, server := range []string{"nats-server", "versitygw"} {
		if err := os.Symlink(filepath.Join(filepath.Dir(agent.Binary(t)), server), filepath.Join(tree, "bin", server)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(etc, "hub.creds"), []byte(creds), 0o600); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("/etc/spillway", etc, "/var/lib/spillway", lib)

	all := blocks(t, "README.md")
	typed := "" // all that was run
	var running *terminal
	stop := func() {
		if running != nil {
			running.interrupt(t)
			running = nil
		}
	}
	for i, b := range all {
		if b.language != "sh" {
			continue
		}
		typed += b.text
		if b.text == "make test\n" {
			continue
		}
		if endless(b.text) {
			stop()
		}
		term := open(t, tree, here.Replace(b.text))
		if endless(b.text) {
			agent.Eventually(t, "the agent of "+b.text, time.Minute, func() bool {
				term.mustRun(t)
				r, err := http.Get("http://localhost:8514/readyz")
				if err != nil {
					return false
				}
				r.Body.Close()
				return r.StatusCode == http.StatusOK
			})
			running = term
			continue
		}
		out := term.wait(t)
		running.mustRun(t)
		if strings.Contains(b.text, " cat ") {
			promised(t, out, all[i+1:])
		}
	}
	stop()
	nothingRuns(t, dir)

	// What the text names in passing is among what was run.
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`(spillway [a-z]+( --[a-z]+)?)").FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(typed, "bin/"+m[1]) {
			t.Errorf("README.md names `%s`, and no block runs it", m[1])
		}
	}
}

// creds is a credentials file as `nsc` writes one; the key is nobody's.
const creds = `-----BEGIN NATS USER JWT-----
eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.c2lnbmF0dXJl
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY
------END USER NKEY SEED------
`

// endless reports whether a block's last command goes on until it is stopped.
func endless(text string) bool {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return slices.Contains([]string{"make run", "bin/spillway"}, lines[len(lines)-1])
}

// promised checks that out has one record, and that it has every member which the
// README shows of one.
func promised(t *testing.T, out string, following []block) {
	t.Helper()
	line := ""
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, `{"@timestamp"`) {
			if line != "" {
				t.Errorf("more than one record:\n%s", out)
			}
			line = l
		}
	}
	var r map[string]any
	if err := json.Unmarshal([]byte(line), &r); err != nil || r["message"] != "hello" {
		t.Errorf("no record of the line:\n%s", out)
	}
	if len(following) == 0 || following[0].language != "" || !strings.HasPrefix(following[0].text, `{"@timestamp"`) {
		return
	}
	for _, name := range regexp.MustCompile(`"[a-z@]+":`).FindAllString(following[0].text, -1) {
		if !strings.Contains(line, name) {
			t.Errorf("README.md shows %s in a record; this one has none: %s", name, line)
		}
	}
}

// terminal is a shell that runs a block of commands.
type terminal struct {
	text  string
	cmd   *exec.Cmd
	out   syncBuffer
	ended chan struct{} // closed when cmd has ended
}

// open runs commands in dir, without what is set for the tests. They end with the
// test.
func open(t *testing.T, dir, text string) *terminal {
	t.Helper()
	s := &terminal{text: text, cmd: exec.Command("bash", "-e", "-o", "pipefail", "-c", text), ended: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, &s.out, &s.out
	s.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "SPILLWAY_") || strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS")
	})
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // ProcessState says it
		close(s.ended)
	}()
	t.Cleanup(func() { s.interrupt(t) })
	return s
}

func (s *terminal) mustRun(t *testing.T) {
	t.Helper()
	if s == nil {
		return
	}
	select {
	case <-s.ended:
		t.Fatalf("%s\nended: %v\n%s", s.text, s.cmd.ProcessState, s.out.String())
	default:
	}
}

// wait returns what commands printed that succeeded.
func (s *terminal) wait(t *testing.T) string {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		s.signal(syscall.SIGKILL)
		t.Fatalf("%s\ndoes not end:\n%s", s.text, s.out.String())
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("%s\nexits %d:\n%s", s.text, code, s.out.String())
	}
	return s.out.String()
}

// interrupt is Ctrl-C, which goes to all that the terminal runs. Commands that have
// ended are no error.
func (s *terminal) interrupt(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
		return
	default:
	}
	s.signal(syscall.SIGINT)
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		s.signal(syscall.SIGKILL)
		t.Errorf("%s\ndoes not end on Ctrl-C:\n%s", s.text, s.out.String())
	}
}

func (s *terminal) signal(sig syscall.Signal) { _ = syscall.Kill(-s.cmd.Process.Pid, sig) } // it may have ended

// nothingRuns checks that no process was left behind that names dir or is in it.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(all) == 0 {
		t.Fatalf("/proc names no process: %v", err)
	}
	for _, p := range all {
		args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // "" for one that has ended meanwhile
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		if p != fmt.Sprint("/proc/", os.Getpid()) && (strings.Contains(string(args), dir) || strings.HasPrefix(cwd, dir)) {
			t.Errorf("left behind: %s in %s: %s", p, cwd, strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
}

// defaultPorts keeps the ports of an agent without configuration, and those that
// `make run` needs besides, for this test.
func defaultPorts(t *testing.T) {
	t.Helper()
	servers.FixedPorts(t, 5514, 8514, 14222, 17070)
}
