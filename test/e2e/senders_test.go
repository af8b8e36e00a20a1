package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
	"spillway/test/servers"
)

// Records that real senders make, as docs/senders.md tells people to use them. Each
// block of that page with a name is run, and what the agent then has in its outbox
// is compared with records typed here.
//
// In these, what differs from run to run stands in < >; rules says what it stands
// for. frame is what every record has besides.
var senders = map[string][]string{
	"logger-tcp":      {`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"hello by tcp","log":{"syslog":{` + userNotice + `,"version":"1","appname":"<user>","hostname":"<host>","structured_data":{"timeQuality":"<clock>"}}}}`},
	"logger-udp":      {`{"@timestamp":"<microsecond>","input":{"type":"udp"},"message":"hello by udp","log":{"syslog":{` + userNotice + `,"version":"1","appname":"<user>","hostname":"<host>","structured_data":{"timeQuality":"<clock>"}}}}`},
	"logger-options":  {`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"disk is full","log":{"syslog":{"priority":155,"facility":{"code":19,"name":"local3"},"severity":{"code":3,"name":"Error"},"version":"1","appname":"backup","procid":"<pid>","msgid":"DONE","hostname":"<host>","structured_data":{"timeQuality":"<clock>","backup@32473":{"volume":"data","gib":"12"}}}}}`},
	"logger-octets":   {`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"first line\nsecond line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>","structured_data":{"timeQuality":"<clock>"}}}}`},
	"logger-size":     {`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"` + strings.Repeat("0", 5000) + `","log":{"syslog":{` + userNotice + `,"version":"1","appname":"big","hostname":"<host>","structured_data":{"timeQuality":"<clock>"}}}}`},
	"logger-3164":     {`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"hello in RFC 3164","log":{"syslog":{` + userNotice + `,"appname":"old","procid":"<pid>","hostname":"<host>"}}}`},
	"logger-3164-udp": {`{"@timestamp":"<second>","input":{"type":"udp"},"message":"hello in RFC 3164 by udp","log":{"syslog":{` + userNotice + `,"appname":"old","hostname":"<host>"}}}`},
	"logger-bare":     {`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"no time, no host","log":{"syslog":{` + userNotice + `,"version":"1","appname":"<user>"}}}`},

	"logger-unixgram": {`{"@timestamp":"<second>","input":{"type":"unix"},"message":"hello by a local datagram","log":{"syslog":{` + userNotice + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`},
	"logger-unix":     {`{"@timestamp":"<second>","input":{"type":"unix"},"message":"hello by a local stream","log":{"syslog":{` + userNotice + `,"appname":"myapp","hostname":"<host>"}}}`},

	"rsyslog-octets": {
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" hello world","log":{"syslog":{` + daemonWarning + `,"version":"1","appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" x","log":{"syslog":{` + userNotice + `,"version":"1","appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" first line#012second line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>"}}}`,
	},
	"rsyslog-5424": {
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" hello world","log":{"syslog":{` + daemonWarning + `,"version":"1","appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" x","log":{"syslog":{` + userNotice + `,"version":"1","appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":" first line#012second line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>"}}}`,
	},
	"rsyslog-default": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"a-very-long-tag-name-exceeding-t x","log":{"syslog":{` + userNotice + `,"hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"first line#012second line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
	},
	"rsyslog-nul": {
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"a-very-long-tag-name-exceeding-t x","log":{"syslog":{` + userNotice + `,"hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"message":"first line#012second line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
	},
	"rsyslog-udp": {
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"a-very-long-tag-name-exceeding-t x","log":{"syslog":{` + userNotice + `,"hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"first line#012second line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
	},

	"rsyslog-tls": {
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"tls":"<tls>","message":" hello world","log":{"syslog":{` + daemonWarning + `,"version":"1","appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"tls":"<tls>","message":" x","log":{"syslog":{` + userNotice + `,"version":"1","appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<microsecond>","input":{"type":"tcp"},"tls":"<tls>","message":" first line#012second line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>"}}}`,
	},
	"rsyslog-tls-openssl": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"a-very-long-tag-name-exceeding-t x","log":{"syslog":{` + userNotice + `,"hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"first line#012second line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
	},
	"syslog-ng-syslog": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"version":"1","appname":"myapp","procid":"42","hostname":"<host>","structured_data":{"meta":{"sequenceId":"1"}}}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"x","log":{"syslog":{` + userNotice + `,"version":"1","appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>","structured_data":{"meta":{"sequenceId":"2"}}}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"first line\nsecond line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>","structured_data":{"meta":{"sequenceId":"3"}}}}}`,
	},
	"syslog-ng-network": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"x","log":{"syslog":{` + userNotice + `,"appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"first line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
		`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"second line"}`,
	},
	"syslog-ng-udp": {
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"x","log":{"syslog":{` + userNotice + `,"appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"udp"},"message":"first line\nsecond line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
	},
	"syslog-ng-tls": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"hello world","log":{"syslog":{` + daemonWarning + `,"version":"1","appname":"myapp","procid":"42","hostname":"<host>","structured_data":{"meta":{"sequenceId":"1"}}}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"x","log":{"syslog":{` + userNotice + `,"version":"1","appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>","structured_data":{"meta":{"sequenceId":"2"}}}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"first line\nsecond line","log":{"syslog":{` + userNotice + `,"version":"1","appname":"multi","hostname":"<host>","structured_data":{"meta":{"sequenceId":"3"}}}}}`,
	},
	"syslog-ng-tls-lines": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"hello world","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"42","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"x","log":{"syslog":{` + userNotice + `,"appname":"a-very-long-tag-name-exceeding-thirty-two","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"tls":"<tls>","message":"first line","log":{"syslog":{` + userNotice + `,"appname":"multi","hostname":"<host>"}}}`,
		`{"@timestamp":"<received>","input":{"type":"tcp"},"tls":"<tls>","message":"second line"}`,
	},

	"python-tcp": {
		`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"the door is open at 20 °C","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"<pid>"}}}`,
		`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"first line\nsecond line","log":{"syslog":{` + daemonError + `,"appname":"myapp","procid":"<pid>"}}}`,
	},
	"python-nul": {`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"first line\nsecond line","log":{"syslog":{"priority":11,"facility":{"code":1,"name":"user-level"},"severity":{"code":3,"name":"Error"}}}}`},
	"python-udp": {`{"@timestamp":"<received>","input":{"type":"udp"},"message":"first line\nsecond line","log":{"syslog":{"priority":11,"facility":{"code":1,"name":"user-level"},"severity":{"code":3,"name":"Error"}}}}`},

	"python-unixgram": {`{"@timestamp":"<received>","input":{"type":"unix"},"message":"first line\nsecond line","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","hostname":"<host>"}}}`},
	"python-unix": {
		`{"@timestamp":"<received>","input":{"type":"unix"},"message":"the door is open","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","hostname":"<host>"}}}`,
		`{"@timestamp":"<received>","input":{"type":"unix"},"message":"first line\nsecond line","log":{"syslog":{` + daemonError + `,"appname":"myapp","hostname":"<host>"}}}`,
	},

	"go-tcp": {
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"the door is open","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"<pid>","hostname":"<host>"}}}`,
		`{"@timestamp":"<second>","input":{"type":"tcp"},"message":"first line","log":{"syslog":{` + daemonError + `,"appname":"myapp","procid":"<pid>","hostname":"<host>"}}}`,
		`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"second line"}`,
	},
	"go-udp": {`{"@timestamp":"<second>","input":{"type":"udp"},"message":"first line\nsecond line","log":{"syslog":{"priority":133,"facility":{"code":16,"name":"local0"},"severity":{"code":5,"name":"Notice"},"appname":"myapp","procid":"<pid>","hostname":"<host>"}}}`},

	"go-unixgram": {`{"@timestamp":"<second>","input":{"type":"unix"},"message":"first line\nsecond line","log":{"syslog":{` + daemonWarning + `,"appname":"myapp","procid":"<pid>","hostname":"<host>"}}}`},

	"nc-tcp": {
		`{"@timestamp":"<received>","input":{"type":"tcp"},"message":"plain text"}`,
		`{"@timestamp":"2003-10-11T22:14:15.003Z","input":{"type":"tcp"},"message":"with a header","log":{"syslog":{"priority":165,"facility":{"code":20,"name":"local4"},"severity":{"code":5,"name":"Notice"},"version":"1","appname":"app","procid":"7","msgid":"ID47","hostname":"host"}}}`,
	},
	"nc-unix":     {`{"@timestamp":"<received>","input":{"type":"unix"},"message":"plain text"}`},
	"openssl-tls": {`{"@timestamp":"<received>","input":{"type":"tcp"},"tls":"<tls>","message":"plain text"}`},
	"nc-check":    nil,
	"nc-udp":      {`{"@timestamp":"<received>","input":{"type":"udp"},"message":"plain text"}`},
}

const (
	userNotice    = `"priority":13,"facility":{"code":1,"name":"user-level"},"severity":{"code":5,"name":"Notice"}`
	daemonWarning = `"priority":28,"facility":{"code":3,"name":"system"},"severity":{"code":4,"name":"Warning"}`
	daemonError   = `"priority":27,"facility":{"code":3,"name":"system"},"severity":{"code":3,"name":"Error"}`
)

// block is a fenced block of a page.
type block struct {
	language, name string // what stands behind the fence
	text           string
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*) ?([^\n]*)\n(.*?)^```$")

// blocks reads the fenced blocks of a page of this repository.
func blocks(t *testing.T, page string) (all []block) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		all = append(all, block{m[1], m[2], m[3]})
	}
	return all
}

func TestSenders(t *testing.T) {
	have := map[string]bool{}
	settings := ""
	for _, b := range blocks(t, "docs/senders.md") {
		if b.name == "" {
			continue // said there to be run by no test
		}
		if b.name == "agent" {
			settings = b.text
			continue
		}
		want, ok := senders[b.name]
		if !ok || have[b.name] {
			t.Errorf("docs/senders.md: block %s: no records to compare with, or a second one of this name", b.name)
			continue
		}
		have[b.name] = true
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			send(t, settings, b, want)
		})
	}
	for name := range senders {
		if !have[name] {
			t.Errorf("docs/senders.md has no block %s", name)
		}
	}
}

// stage is where one sender runs.
type stage struct {
	dir  string // of its files
	text string // the block, with its ports and directories
}

// send runs the sender of a block beside an agent of its own with the settings of
// the page, and compares what is in the outbox then.
func send(t *testing.T, settings string, b block, want []string) {
	dir, err := os.MkdirTemp("", "spillway-") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := agent.New(t, dir, "TZ=UTC", "SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=20ms")
	ca := certs.New(t)
	ca.Issue("server", time.Now().Add(time.Hour))
	ca.Issue("client", time.Now().Add(time.Hour))
	files := filepath.Dir(ca.File)
	here := strings.NewReplacer("5514", fmt.Sprint(a.TCP), "5515", fmt.Sprint(servers.FreePort(t)), "6514", fmt.Sprint(servers.FreePort(t)),
		"/run/spillway", dir, "/etc/spillway", files, "/etc/ssl/spillway", files)
	a.Env = append(a.Env, fmt.Sprintf("SPILLWAY_INPUT_TCP_URL=tcp://localhost:%d", a.TCP), fmt.Sprintf("SPILLWAY_INPUT_UDP_URL=udp://localhost:%d", a.TCP))
	a.Env = append(a.Env, strings.Split(strings.TrimSpace(here.Replace(settings)), "\n")...)
	a.Start(t)

	s := &stage{dir: dir, text: here.Replace(b.text)}
	g := newGolden(t)
	s.run(t, b, func() {
		agent.Eventually(t, fmt.Sprintf("%d records", len(want)), 15*time.Second, func() bool {
			return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) >= float64(len(want))
		})
	})
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") && !strings.Contains(line, "smaller receive buffer") { // the kernel is as it is
			t.Errorf("the agent complains: %s", line)
		}
	}
	g.compare(t, outbox(t, a), want)
}

// outbox are the lines of all records that the agent delivered.
func outbox(t *testing.T, a *agent.Agent) []string {
	t.Helper()
	dir := filepath.Join(a.State, "outbox")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // made with the first object
	}
	out, _, code := a.Command(t, "cat", dir)
	if code != 0 {
		t.Fatalf("spillway cat exits %d", code)
	}
	return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
}

// run runs the block, and returns when arrived has and the sender has ended.
func (s *stage) run(t *testing.T, b block, arrived func()) {
	t.Helper()
	switch program, _, _ := strings.Cut(b.name, "-"); {
	case program == "rsyslog":
		stop := s.daemon(t, s.rsyslog(t))
		s.messages(t)
		arrived()
		stop()
	case strings.HasPrefix(b.name, "syslog-ng"):
		stop := s.daemon(t, s.syslogNG(t))
		s.messages(t)
		arrived()
		stop()
	case b.language == "python":
		s.program(t, installed(t, "python3"), s.file(t, "sender.py", s.text))
		arrived()
	case b.language == "go":
		s.program(t, installed(t, "go"), "run", s.file(t, "sender.go", s.text))
		arrived()
	case b.language == "sh":
		s.program(t, installed(t, "bash"), "-e", "-o", "pipefail", s.file(t, "sender.sh", s.text))
		arrived()
	default:
		t.Fatalf("nothing runs a block of %s", b.language)
	}
}

func (s *stage) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// installed returns the path of a program, also of one that is in no user's PATH.
func installed(t *testing.T, program string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: run `make tools`", program)
	return ""
}

func (s *stage) program(t *testing.T, name string, arg ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // `go run` compiles
	defer cancel()
	cmd := exec.CommandContext(ctx, name, arg...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", filepath.Base(name), err, s.text, out)
	}
}

// rsyslog is the daemon with the text as a file of its configuration.
func (s *stage) rsyslog(t *testing.T) *exec.Cmd {
	t.Helper()
	conf := s.file(t, "rsyslog.conf", fmt.Sprintf(`global(workDirectory=%[1]q)
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="%[1]s/dev-log")
%[2]s`, s.dir, s.text))
	return exec.Command(installed(t, "rsyslogd"), "-n", "-f", conf, "-i", filepath.Join(s.dir, "rsyslog.pid"))
}

// syslogNG is the same of syslog-ng, which `make tools` unpacks: it can't be
// installed beside rsyslog.
func (s *stage) syslogNG(t *testing.T) *exec.Cmd {
	t.Helper()
	root := filepath.Join(filepath.Dir(agent.Binary(t)), "syslog-ng", "usr")
	modules, err := filepath.Glob(filepath.Join(root, "lib", "syslog-ng", "[0-9]*"))
	if err != nil || len(modules) != 1 {
		t.Fatalf("syslog-ng is not in %s: run `make tools`", root)
	}
	conf := s.file(t, "syslog-ng.conf", fmt.Sprintf("@version: 3.38\nsource s_src { unix-dgram(\"%s/dev-log\"); };\n%s", s.dir, s.text))
	cmd := exec.Command(filepath.Join(root, "sbin", "syslog-ng"), "-F", "--no-caps", "-f", conf, "--persist-file", filepath.Join(s.dir, "persist"),
		"--pidfile", filepath.Join(s.dir, "pid"), "--control", filepath.Join(s.dir, "control"), "--module-path", modules[0])
	cmd.Env = append(os.Environ(), "SYSLOGNG_PREFIX="+root, "LD_LIBRARY_PATH="+filepath.Join(root, "lib", "syslog-ng"))
	return cmd
}

// daemon starts a syslog daemon that listens on the socket dev-log of the directory,
// as others do on /dev/log. It ends with stop, or else with the test.
func (s *stage) daemon(t *testing.T, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "TZ=UTC")
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its end is asked for
		close(ended)
	}()
	name := filepath.Base(cmd.Path)
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			cmd.Process.Kill()
			<-ended
			t.Errorf("%s does not end on SIGTERM", name)
		}
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.String())
		}
	})
	agent.Eventually(t, "the daemon listens", 10*time.Second, func() bool {
		select {
		case <-ended:
			t.Fatalf("%s ended: %v", name, cmd.ProcessState)
		default:
		}
		_, err := os.Stat(filepath.Join(s.dir, "dev-log"))
		return err == nil
	})
	return stop
}

// messages gives a daemon its messages: an ordinary one, one with a tag that is too
// long for RFC 3164, one of two lines.
func (s *stage) messages(t *testing.T) {
	t.Helper()
	s.log(t, "-t", "myapp", "--id=42", "-p", "daemon.warning", "hello world")
	s.log(t, "-t", "a-very-long-tag-name-exceeding-thirty-two", "x")
	s.log(t, "-t", "multi", "first line\nsecond line")
}

func (s *stage) log(t *testing.T, arg ...string) {
	t.Helper()
	s.program(t, installed(t, "logger"), append([]string{"-u", filepath.Join(s.dir, "dev-log")}, arg...)...)
}

// While an agent is away rsyslog keeps what it gets, as docs/senders.md sets it up,
// and sends it when the agent is back.
func TestSenderWaits(t *testing.T) {
	for _, b := range blocks(t, "docs/senders.md") {
		if b.name != "rsyslog-octets" {
			continue
		}
		dir := t.TempDir()
		a := agent.New(t, dir, "SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=20ms")
		s := &stage{dir: dir, text: strings.ReplaceAll(b.text, "5514", fmt.Sprint(a.TCP))}
		a.Start(t)
		s.daemon(t, s.rsyslog(t))
		var want []string
		say := func(n int) {
			for range n {
				want = append(want, fmt.Sprintf("line %d", len(want)))
				s.log(t, want[len(want)-1])
			}
		}
		delivered := func() {
			t.Helper()
			agent.Eventually(t, "what was said so far is delivered", 15*time.Second, func() bool {
				return a.Metric(t, `spillway_lane_pending_records{lane="main"}`) == 0 && len(outbox(t, a)) == len(want)
			})
		}
		say(3)
		delivered()
		if code := a.Stop(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		say(20)
		a.Start(t)
		delivered()
		say(3)
		delivered()
		var got []string
		for _, r := range parse(t, strings.Join(outbox(t, a), "\n")) {
			got = append(got, strings.TrimSpace(r.Message))
		}
		if !slices.Equal(got, want) {
			t.Errorf("delivered %q\nwant %q", got, want)
		}
		return
	}
	t.Error("docs/senders.md has no block rsyslog-octets")
}
