package conformance

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"spillway/test/agent"
	"spillway/test/servers"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestCheckPage holds the examples in docs/check.md to what the real binary prints
// about real servers. What differs from host to host and from run to run is made
// alike, by the rules of alike, which the page tells too.
func TestCheckPage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	store := servers.StartS3(t, "")
	store.Bucket(t, "acme-logs")
	nats := servers.StartNATS(t, t.TempDir(), servers.Config(`server_name: hub1
accounts: { EDGE: { jetstream: enabled, users: [
  { user: admin, password: admin }
  { user: gw1, password: s3cret, permissions: {
      publish: ["logs.plant.gw1.>", "$JS.API.DIRECT.GET.LOGS.logs.plant.gw1.>", "$JS.API.STREAM.INFO.LOGS", "$SYS.REQ.USER.INFO"], subscribe: "_INBOX_gw1.>" } }
] } }`))
	admin := strings.Replace(nats.URL, "://", "://admin:admin@", 1)

	a := agent.New(t, dir, "SPILLWAY_SITE=plant", "SPILLWAY_OUTPUTS=hub,archive", "SPILLWAY_OUTPUT_HUB_URL="+nats.URL, "SPILLWAY_OUTPUT_HUB_STREAM=LOGS",
		"SPILLWAY_OUTPUT_HUB_USER=gw1", "SPILLWAY_OUTPUT_HUB_PASSWORD_FILE="+write("password", "s3cret\n"),
		"SPILLWAY_OUTPUT_ARCHIVE_URL=s3://acme-logs/edge", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT="+store.Endpoint,
		"AWS_ACCESS_KEY_ID="+store.AccessKey, "AWS_SECRET_ACCESS_KEY="+store.Secret, "AWS_EC2_METADATA_DISABLED=true", "SPILLWAY_BUFFER_MAX_BYTES=1GiB", "SPILLWAY_BUFFER_MIN_FREE=256MiB")
	names := strings.NewReplacer(a.State, "/var/lib/spillway", dir, "/etc/spillway", strings.TrimPrefix(nats.URL, "nats://"), "hub.example:4222",
		strings.TrimPrefix(store.Endpoint, "http://"), "s3.example:9000", fmt.Sprint(a.TCP), "5514", fmt.Sprint(a.UDP), "5514", fmt.Sprint(a.Admin), "8514")
	run := func(env ...string) string {
		cmd := exec.Command(a.Bin, "check", "--probe")
		cmd.Env = append(a.Env, env...)
		out, err := cmd.CombinedOutput()
		code := 0
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return "$ spillway check --probe; echo $?\n" + alike(names.Replace(string(out))) + fmt.Sprintln(code)
	}
	examples := map[string]string{}
	examples["nothing there yet"] = run("SPILLWAY_OUTPUT_ARCHIVE_URL=s3://acme-archive/edge")
	c := logs
	c.Duplicates = 0 // the server's own choice
	c.AllowDirect = false
	servers.CreateStream(t, admin, c)
	examples["a stream of defaults"] = run()
	servers.CreateStream(t, admin, logs)
	examples["good"] = run()
	write("password", "guess\n")
	examples["wrong password"] = run("SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_ARCHIVE_URL=", "SPILLWAY_OUTPUT_ARCHIVE_ENDPOINT=")

	const page = "../../docs/check.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	// An example is the block of text behind a line that names it.
	block := regexp.MustCompile("(?s)<!-- example: ([a-z ]+) -->\n```text\n(.*?)```\n")
	got := block.ReplaceAllStringFunc(string(text), func(b string) string {
		name := block.FindStringSubmatch(b)[1]
		out, ok := examples[name]
		if !ok {
			t.Errorf("%s: no example is called %s", page, name)
		}
		delete(examples, name)
		return "<!-- example: " + name + " -->\n```text\n" + out + "```\n"
	})
	for name := range examples {
		t.Errorf("%s: the example %s is missing", page, name)
	}
	if *update {
		if err := os.WriteFile(page, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != string(text) {
		t.Errorf("%s is not what the command prints: rewrite it with go test ./conformance -run CheckPage -update, and look at the difference:\n%s", page, got)
	}
}

// alike makes outputs comparable: times that something took are 1ms, free space is
// 40 GiB, the disk is ext4, the user 990, and the clock is synchronised.
func alike(out string) string {
	for _, r := range []struct{ pattern, with string }{
		{`\b[0-9.]+(ns|µs|ms|s)( in the middle| at worst|\n|: not connected|, nothing was stored)`, "1ms$2"},
		{`(after|, asked in|, stored in|answered in|, in) [0-9.]+(ns|µs|ms|s)\b`, "$1 1ms"},
		{` [0-9.]+ [KMGT]iB free`, " 40.0 GiB free"},
		{`(/var/lib/spillway), [a-z0-9]+,`, "$1, ext4,"},
		{`, request [0-9A-Z]+`, ""},
		{`as user [0-9]+`, "as user 990"},
		{`(?m)^clock .*$`, "clock            synchronised, at most 4ms off"},
		{`(?m)^warning: the clock .*\n`, ""},
		{`nats-server [0-9.]+ `, "nats-server 2.15.2 "},
	} {
		out = regexp.MustCompile(r.pattern).ReplaceAllString(out, r.with)
	}
	return out
}
