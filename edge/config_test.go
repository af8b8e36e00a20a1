package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/buffer/batch"
	"spillway/edge/pipeline"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/syslog"
	"spillway/outputs"
)

// load reads a configuration whose state is in a directory of the test.
func load(t *testing.T, vars ...string) (*Config, error) {
	t.Helper()
	return loadConfig(append(vars, "SPILLWAY_STATE_DIR="+t.TempDir()))
}

func TestDefaults(t *testing.T) {
	c, err := loadConfig([]string{"PATH=/bin", "HOME=/root"})
	if err != nil {
		t.Fatal(err)
	}
	cwd, _ := os.Getwd()
	if want := filepath.Join(cwd, "spillway-data"); c.StateDir != want {
		t.Errorf("StateDir %q, want %q", c.StateDir, want)
	}
	if c.Site != "default" || c.AdminAddress != "localhost:8514" || c.ShutdownGrace != 10*time.Second || c.Compression != batch.Zstd {
		t.Errorf("general defaults: %+v", c)
	}
	if len(c.Inputs) != 2 || len(c.Outputs) != 1 {
		t.Fatalf("%d inputs, %d outputs", len(c.Inputs), len(c.Outputs))
	}
	tcp, udp := c.Inputs[0], c.Inputs[1]
	if tcp.Scheme != "tcp" || tcp.Address != "localhost:5514" || tcp.Dataset != "tcp.generic" || tcp.OnFull != pipeline.Block || !tcp.Parse ||
		tcp.Format != syslog.Auto || tcp.Lane != "main" || tcp.MaxMessageSize != 20<<20 || tcp.IdleTimeout != 300*time.Second || string(tcp.Delimiter) != "\n" {
		t.Errorf("tcp: %+v", tcp)
	}
	if udp.Scheme != "udp" || udp.Address != "localhost:5514" || udp.Dataset != "udp.generic" || udp.OnFull != pipeline.Drop || udp.SoRcvbuf != 8<<20 {
		t.Errorf("udp: %+v", udp)
	}
	if o := c.Outputs[0]; o.Name != "outbox" || o.Kind != "file" || o.URL != "file://"+filepath.Join(cwd, "spillway-data", "outbox") {
		t.Errorf("output: %+v", o)
	}
	if got := laneNames(c); !slices.Equal(got, []string{"main"}) {
		t.Errorf("lanes %v", got)
	}
}

func TestValues(t *testing.T) {
	c, err := load(t, "SPILLWAY_INPUTS=tcp, dmz ,udp", "SPILLWAY_INPUT_DMZ_URL=tcp://0.0.0.0:601", "SPILLWAY_INPUT_DMZ_LANE=edge",
		"SPILLWAY_INPUT_DMZ_DELIMITER=\\r\\n", "SPILLWAY_INPUT_DMZ_FRAMING=delimiter", "SPILLWAY_INPUT_DMZ_TAGS=forwarded, dmz",
		"SPILLWAY_INPUT_DMZ_PARSE=RFC3164", "SPILLWAY_INPUT_DMZ_TIMEZONE=UTC", "SPILLWAY_INPUT_DMZ_PRESERVE_ORIGINAL=Yes",
		"SPILLWAY_INPUT_DMZ_OVERSIZE=split", "SPILLWAY_INPUT_DMZ_MAX_MESSAGE_SIZE=64KiB", "SPILLWAY_INPUT_DMZ_IDLE_TIMEOUT=0",
		"SPILLWAY_INPUT_DMZ_ON_FULL=drop", "SPILLWAY_INPUT_TCP_URL=tcp://:0", "SPILLWAY_INPUT_UDP_URL=udp://[::1]:514",
		"SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_BUFFER_FULL=drop_oldest", "SPILLWAY_BUFFER_KEEP_ACKED=0", "SPILLWAY_BUFFER_MIN_FREE=0",
		"SPILLWAY_BUFFER_MAX_BYTES=1 GiB", "SPILLWAY_COMPRESSION=gzip", "SPILLWAY_COMPRESSION_LEVEL=9", "SPILLWAY_SITE=plant-1",
		"SPILLWAY_LOG_LEVEL=DEBUG", "SPILLWAY_STRICT=on", "SPILLWAY_BATCH_MAX_AGE=250ms", "SPILLWAY_ENCODING=", "SPILLWAY_SERVICE_HOST=10.0.0.1",
		"SPILLWAY_PORT=tcp://10.0.0.1:5514", "SPILLWAY_PORT_5514_TCP_ADDR=10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	in := c.Inputs[1]
	if in.Name != "dmz" || in.Address != "0.0.0.0:601" || in.Lane != "edge" || string(in.Delimiter) != "\r\n" || in.Framing != framing.Delimiter ||
		!slices.Equal(in.Tags, []string{"forwarded", "dmz"}) || !in.Parse || in.Format != syslog.RFC3164 || in.Timezone != time.UTC ||
		in.PreserveOriginal != ecs.OriginalText || in.Oversize != framing.Split || in.MaxMessageSize != 64<<10 || in.IdleTimeout != 0 || in.OnFull != pipeline.Drop {
		t.Errorf("dmz: %+v", in)
	}
	if a := c.Inputs[0].Address; a != "localhost:0" {
		t.Errorf("no host: %q, want localhost", a)
	}
	if a := c.Inputs[2].Address; a != "[::1]:514" {
		t.Errorf("udp: %q", a)
	}
	if c.Inputs[0].Parse {
		t.Error("PARSE=none parses")
	}
	if got := laneNames(c); !slices.Equal(got, []string{"main", "edge"}) {
		t.Errorf("lanes %v", got)
	}
	o := c.Buffer.options(c)
	if o.MaxBytes != 1<<30 || o.KeepAcked >= 0 || o.MinFree >= 0 || o.Agent != c.Agent {
		t.Errorf("buffer options: %+v", o)
	}
	if c.Compression != batch.Gzip || c.CompressionLevel != 9 || c.Batch.MaxAge != 250*time.Millisecond || c.LogLevel.String() != "DEBUG" || c.Encoding != "ndjson" {
		t.Errorf("general: %+v", c)
	}
}

// TestProblems holds the whole text of every error that the environment can
// cause: the variable, its value, what is wrong and what to do.
func TestProblems(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := file("bad.env", "# comment\nSPILLWAY_SITE=a b\nAWS_REGION=x\nnonsense\nSPILLWAY_AGENT='gw\nSPILLWAY_LOG_LEVEL=info\nSPILLWAY_LOG_LEVEL=warn\n")
	shell := file("shell.env", "\ufeffexport SPILLWAY_SITE=a\nSPILLWAY_AGENT=\"v\" # comment\nPASSWORD s3cr3t=foo\n=s3cr3t\n")
	for _, tt := range []struct {
		name string
		env  []string
		want []string
	}{
		{"singular", []string{"SPILLWAY_INPUT=tcp"}, []string{`SPILLWAY_INPUT: no such variable: did you mean SPILLWAY_INPUTS?`}},
		{"typing error", []string{"SPILLWAY_BUFFER_MAXBYTES=1GiB"}, []string{`SPILLWAY_BUFFER_MAXBYTES: no such variable: did you mean SPILLWAY_BUFFER_MAX_BYTES?`}},
		{"swapped characters", []string{"SPILLWAY_INPUT_TPC_URL=tcp://x:1"}, []string{`SPILLWAY_INPUT_TPC_URL: no such variable: did you mean SPILLWAY_INPUT_TCP_URL?`}},
		{"of inputs", []string{"SPILLWAY_MAX_MESSAGE_SIZE=1MiB"}, []string{`SPILLWAY_MAX_MESSAGE_SIZE: an option of inputs: set SPILLWAY_INPUT_<NAME>_MAX_MESSAGE_SIZE`}},
		{"nothing near", []string{"SPILLWAY_COLOUR=red"}, []string{"SPILLWAY_COLOUR: no such variable: remove it; `spillway env` prints all there are"}},
		{"input not listed", []string{"SPILLWAY_INPUT_DMZ_URL=tcp://x:1", "SPILLWAY_INPUT_DMZ_LANE=dmz"},
			[]string{`SPILLWAY_INPUT_DMZ_LANE, SPILLWAY_INPUT_DMZ_URL: no input is called dmz: SPILLWAY_INPUTS=tcp,udp does not list it; add it there, or remove what is set for it`}},
		{"output not listed", []string{"SPILLWAY_OUTPUT_HUB_URL=nats://h"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL: no output is called hub: SPILLWAY_OUTPUTS=outbox does not list it; add it there, or remove what is set for it`}},
		{"another service of Kubernetes", []string{"SPILLWAY_SYSLOG_SERVICE_HOST=10.0.0.1"},
			[]string{`SPILLWAY_SYSLOG_SERVICE_HOST: no such variable; Kubernetes injects it: set enableServiceLinks: false in the pod, or SPILLWAY_STRICT=false`}},
		{"size", []string{"SPILLWAY_INPUT_TCP_MAX_MESSAGE_SIZE=20MB"},
			[]string{`SPILLWAY_INPUT_TCP_MAX_MESSAGE_SIZE="20MB": size: want bytes, or a number with KiB, MiB or GiB, as in 512KiB`}},
		{"size beyond bounds", []string{"SPILLWAY_BATCH_MAX_BYTES=1MiB"}, []string{`SPILLWAY_BATCH_MAX_BYTES="1MiB": out of bounds: use 1KiB to 900KiB`}},
		{"duration", []string{"SPILLWAY_SHUTDOWN_GRACE=10"}, []string{`SPILLWAY_SHUTDOWN_GRACE="10": a duration needs a unit: write 10ms, 10s, 10m or 10h`}},
		{"duration of words", []string{"SPILLWAY_SHUTDOWN_GRACE=soon"},
			[]string{`SPILLWAY_SHUTDOWN_GRACE="soon": not a duration: write a number and ms, s, m or h, as in 500ms, 10s or 1m30s`}},
		{"negative duration", []string{"SPILLWAY_SHUTDOWN_GRACE=-1s"}, []string{`SPILLWAY_SHUTDOWN_GRACE="-1s": a duration can't be negative: write it without the minus`}},
		{"boolean", []string{"SPILLWAY_BUFFER_NETWORK_FS=maybe"},
			[]string{`SPILLWAY_BUFFER_NETWORK_FS="maybe": not a boolean: use true or false (also yes, no, on, off, 1, 0)`}},
		{"number", []string{"SPILLWAY_BATCH_MAX_RECORDS=5k"}, []string{`SPILLWAY_BATCH_MAX_RECORDS="5k": not a whole number: write digits only, as in 5000`}},
		{"only one problem a variable", []string{"SPILLWAY_BATCH_MAX_AGE=x"},
			[]string{`SPILLWAY_BATCH_MAX_AGE="x": not a duration: write a number and ms, s, m or h, as in 500ms, 10s or 1m30s`}},
		{"output without URL", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_STREAM=LOGS"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL: not set: say where output hub sends to, as in ` + or(examples())}},
		{"unknown kind of output", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=kafka://h"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL="kafka://h": kafka is no kind of output: use ` + or(examples())}},
		{"syslog output", []string{"SPILLWAY_OUTPUTS=siem", "SPILLWAY_OUTPUT_SIEM_URL=syslog+tls://h:6514"},
			[]string{`SPILLWAY_OUTPUT_SIEM_URL="syslog+tls://h:6514": this version has no syslog outputs: use ` + or(examples())}},
		{"output without scheme", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=localhost"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL="localhost": has no scheme: write it as in ` + or(examples())}},
		{"relative directory", []string{"SPILLWAY_OUTPUTS=a", "SPILLWAY_OUTPUT_A_URL=file://var/a"},
			[]string{`SPILLWAY_OUTPUT_A_URL="file://var/a": "var" stands where a host would: write three slashes, as in file:///var/a`}},
		{"name in capitals", []string{"SPILLWAY_INPUTS=TCP,udp", "SPILLWAY_INPUT_TCP_LANE=a"}, []string{`SPILLWAY_INPUTS="TCP,udp": "TCP" is not lower case: write tcp`}},
		{"no name", []string{"SPILLWAY_INPUTS=tcp,9p"}, []string{`SPILLWAY_INPUTS="tcp,9p": "9p" is no name: use 1 to 16 of a-z and 0-9, a letter first`}},
		{"empty name", []string{"SPILLWAY_INPUTS=tcp,"}, []string{`SPILLWAY_INPUTS="tcp,": an empty name between commas: remove it`}},
		{"name twice", []string{"SPILLWAY_INPUTS=tcp,tcp"}, []string{`SPILLWAY_INPUTS="tcp,tcp": "tcp" is there twice: remove one`}},
		{"input without URL", []string{"SPILLWAY_INPUTS=dmz"},
			[]string{`SPILLWAY_INPUT_DMZ_URL: not set: say where input dmz listens, as in tcp://localhost:5514 or udp://localhost:5514`}},
		{"input without port", []string{"SPILLWAY_INPUT_TCP_URL=tcp://localhost"},
			[]string{`SPILLWAY_INPUT_TCP_URL="tcp://localhost": missing port in address: write host:port, as in localhost:5514 or [::1]:5514`}},
		{"port", []string{"SPILLWAY_INPUT_TCP_URL=tcp://localhost:70000"}, []string{`SPILLWAY_INPUT_TCP_URL="tcp://localhost:70000": port "70000": use 0 to 65535`}},
		{"any host", []string{"SPILLWAY_INPUT_TCP_URL=tcp://*:5514"},
			[]string{`SPILLWAY_INPUT_TCP_URL="tcp://*:5514": host *: use 0.0.0.0 or [::] to listen on all addresses`}},
		{"path", []string{"SPILLWAY_INPUT_TCP_URL=tcp://localhost:1/x"},
			[]string{`SPILLWAY_INPUT_TCP_URL="tcp://localhost:1/x": has more than a host and a port: write it as in tcp://localhost:5514`}},
		{"unknown kind of input", []string{"SPILLWAY_INPUT_TCP_URL=kafka://h:1"}, []string{`SPILLWAY_INPUT_TCP_URL="kafka://h:1": kafka is no kind of input: use ` + kindsOfInputs}},
		{"framing", []string{"SPILLWAY_INPUT_TCP_FRAMING=lines"},
			[]string{`SPILLWAY_INPUT_TCP_FRAMING="lines": unknown framing: use auto, delimiter, rfc6587, octet, nul or jsonx`}},
		{"lane", []string{"SPILLWAY_INPUT_TCP_LANE=failover"},
			[]string{`SPILLWAY_INPUT_TCP_LANE="failover": no name for a lane: use 1 to 16 of a-z and 0-9, a letter first, and neither failover nor large`}},
		{"dataset", []string{"SPILLWAY_INPUT_TCP_DATASET=tcp-generic"},
			[]string{`SPILLWAY_INPUT_TCP_DATASET="tcp-generic": dataset contains "-", which separates the parts of a data stream's name: use "_" or "."`}},
		{"delimiter", []string{`SPILLWAY_INPUT_TCP_DELIMITER=\q`}, []string{`SPILLWAY_INPUT_TCP_DELIMITER="\\q": delimiter: unknown escape "\\q": use \n \r \t \0 \\ or \xHH`}},
		{"options of streams on datagrams", []string{"SPILLWAY_INPUT_UDP_MAX_CONNECTIONS=1"},
			[]string{`SPILLWAY_INPUT_UDP_MAX_CONNECTIONS="1": changes nothing for a udp input, where each datagram is one message: remove it`}},
		{"split datagrams", []string{"SPILLWAY_INPUT_UDP_OVERSIZE=split"}, []string{`SPILLWAY_INPUT_UDP_OVERSIZE="split": not for datagrams: use truncate or drop`}},
		{"tags of raw lines", []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_INPUT_TCP_TAGS=a"},
			[]string{`SPILLWAY_INPUT_TCP_TAGS="a": changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it`}},
		{"names of raw lines", []string{"SPILLWAY_ENCODING=raw", "SPILLWAY_SYSLOG_NAMES=short"},
			[]string{`SPILLWAY_SYSLOG_NAMES="short": changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it`}},
		{"names of nothing", []string{"SPILLWAY_INPUTS=tcp", "SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_SYSLOG_NAMES=short"},
			[]string{`SPILLWAY_SYSLOG_NAMES="short": changes nothing as no input reads headers of syslog (PARSE): remove it`}},
		{"zone of unparsed messages", []string{"SPILLWAY_INPUT_TCP_PARSE=none", "SPILLWAY_INPUT_TCP_TIMEZONE=UTC"},
			[]string{`SPILLWAY_INPUT_TCP_TIMEZONE="UTC": changes nothing with SPILLWAY_INPUT_TCP_PARSE=none: remove it`}},
		{"site", []string{"SPILLWAY_SITE=plant 1"}, []string{`SPILLWAY_SITE="plant 1": not a name: use 1 to 64 of A-Z, a-z, 0-9, _ and -`}},
		{"choice", []string{"SPILLWAY_LOG_FORMAT=xml"}, []string{`SPILLWAY_LOG_FORMAT="xml": unknown: use text or json`}},
		{"compression", []string{"SPILLWAY_COMPRESSION=lz4"}, []string{`SPILLWAY_COMPRESSION="lz4": compression: want zstd, gzip or none`}},
		{"level", []string{"SPILLWAY_COMPRESSION_LEVEL=9"}, []string{`SPILLWAY_COMPRESSION_LEVEL="9": out of bounds: zstd has levels 1 (fast) to 4`}},
		{"level of nothing", []string{"SPILLWAY_COMPRESSION=none", "SPILLWAY_COMPRESSION_LEVEL=1"},
			[]string{`SPILLWAY_COMPRESSION_LEVEL="1": changes nothing with SPILLWAY_COMPRESSION=none: remove it`}},
		{"sync", []string{"SPILLWAY_BUFFER_SYNC=batch"}, []string{`SPILLWAY_BUFFER_SYNC="batch": unknown: use group, interval or never`}},
		{"interval of another sync", []string{"SPILLWAY_BUFFER_SYNC_INTERVAL=2s"},
			[]string{`SPILLWAY_BUFFER_SYNC_INTERVAL="2s": changes nothing with SPILLWAY_BUFFER_SYNC=group: remove it, or set SPILLWAY_BUFFER_SYNC=interval`}},
		{"reserve for nothing", []string{"SPILLWAY_BUFFER_RESERVE=1MiB"}, []string{`SPILLWAY_BUFFER_RESERVE="1MiB": changes nothing as no input has ON_FULL=refuse: remove it`}},
		{"memory for nothing", []string{"SPILLWAY_INPUTS=udp", "SPILLWAY_MESSAGE_MEMORY=1MiB"},
			[]string{`SPILLWAY_MESSAGE_MEMORY="1MiB": changes nothing with inputs that take datagrams only, each of which is one message: remove it`}},
		{"failover", []string{"SPILLWAY_FAILOVER_AFTER=5s"},
			[]string{`SPILLWAY_FAILOVER_AFTER="5s": changes nothing with one output: remove it, or name another one in SPILLWAY_OUTPUTS`}},
		{"failover bounds", append(twoOutputs, "SPILLWAY_FAILOVER_AFTER=1ms", "SPILLWAY_FAILBACK_PROBES=0"),
			[]string{`SPILLWAY_FAILOVER_AFTER="1ms": out of bounds: use 100ms or more`, `SPILLWAY_FAILBACK_PROBES="0": out of bounds: use 1 to 1000`}},
		{"failback off", append(twoOutputs, "SPILLWAY_FAILBACK=off", "SPILLWAY_FAILBACK_DWELL=5s"),
			[]string{`SPILLWAY_FAILBACK_DWELL="5s": changes nothing with SPILLWAY_FAILBACK=false: remove it`}},
		{"password in a URL", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=ftp://me:s3cret@h"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL="ftp://***@h": ftp is no kind of output: use ` + or(examples())}},
		{"two outputs, one place", []string{"SPILLWAY_OUTPUTS=a,b", "SPILLWAY_OUTPUT_A_URL=file:///tmp/a", "SPILLWAY_OUTPUT_B_URL=file:///tmp/x/../a/"},
			[]string{`SPILLWAY_OUTPUT_B_URL="file:///tmp/x/../a/": output a sends to the same place: a failover from one to the other would change nothing; remove one`}},
		{"password in a server without a scheme", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=user:s3cr3t@127.0.0.1:4222"},
			[]string{`SPILLWAY_OUTPUT_HUB_URL="***@127.0.0.1:4222": has no scheme: write it as in ` + or(examples())}},
		{"URL for a name", []string{"SPILLWAY_OUTPUTS=nats://u:s3cr3t@h"}, []string{`SPILLWAY_OUTPUTS="nats://***@h": "nats://***@h" is no name: use 1 to 16 of a-z and 0-9, a letter first`}},
		{"mistyped secret", []string{"SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=file:///tmp/a", "SPILLWAY_OUTPUT_HUB_PASWORD=s3cr3t"},
			[]string{"SPILLWAY_OUTPUT_HUB_PASWORD: no such variable: remove it; `spillway env` prints all there are"}},
		{"secret of another program", []string{"SPILLWAY_NATS_PASSWORD=s3cr3t"}, []string{`SPILLWAY_NATS_PASSWORD: ` + refusal("SPILLWAY_NATS_PASSWORD")}},
		{"env file of a shell", []string{"SPILLWAY_ENV_FILE=" + shell}, []string{
			`SPILLWAY_ENV_FILE: ` + shell + `:1: begins with export: remove that word, as no shell reads this file`,
			`SPILLWAY_ENV_FILE: ` + shell + `:2: something stands behind the value of SPILLWAY_AGENT in quotes: remove it; a comment has a line of its own`,
			`SPILLWAY_ENV_FILE: ` + shell + `:3: no name of a variable stands before =: want KEY=VALUE, or # before a comment`,
			`SPILLWAY_ENV_FILE: ` + shell + `:4: no name of a variable stands before =: want KEY=VALUE, or # before a comment`}},
		{"env file", []string{"SPILLWAY_ENV_FILE=" + bad}, []string{
			`SPILLWAY_ENV_FILE: ` + bad + `:3: "AWS_REGION" does not begin with SPILLWAY_: an env file holds Spillway's own names only, set others in the environment`,
			`SPILLWAY_ENV_FILE: ` + bad + `:4: want KEY=VALUE, or # before a comment`,
			`SPILLWAY_ENV_FILE: ` + bad + `:5: the quote ' before the value of SPILLWAY_AGENT is not closed`,
			`SPILLWAY_ENV_FILE: ` + bad + `:7: SPILLWAY_LOG_LEVEL is there twice: remove one`,
			`SPILLWAY_SITE="a b" (in ` + bad + `:2): not a name: use 1 to 64 of A-Z, a-z, 0-9, _ and -`}},
		{"no env file", []string{"SPILLWAY_ENV_FILE=/nonexistent"},
			[]string{`SPILLWAY_ENV_FILE="/nonexistent": open /nonexistent: no such file or directory: name a file that this user may read`}},
		{"all at once", []string{"SPILLWAY_INPUT=tcp", "SPILLWAY_BATCH_MAX_AGE=1", "SPILLWAY_INPUTS=tcp,dmz", "SPILLWAY_OUTPUTS=hub"}, []string{
			`SPILLWAY_BATCH_MAX_AGE="1": a duration needs a unit: write 1ms, 1s, 1m or 1h`,
			`SPILLWAY_INPUT_DMZ_URL: not set: say where input dmz listens, as in tcp://localhost:5514 or udp://localhost:5514`,
			`SPILLWAY_OUTPUT_HUB_URL: not set: say where output hub sends to, as in ` + or(examples()),
			`SPILLWAY_INPUT: no such variable: did you mean SPILLWAY_INPUTS?`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.env...)
			if err == nil {
				t.Fatal("no error")
			}
			if got, want := err.Error(), strings.Join(tt.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	for _, tt := range []struct {
		name, env, want string
	}{
		{"agent", "SPILLWAY_AGENT=gw 1.example", `SPILLWAY_AGENT="gw 1.example": this agent is called "gw_1_example": names are 1 to 64 of A-Z, a-z, 0-9, _ and -`},
		{"long agent", "SPILLWAY_AGENT=" + strings.Repeat("a", 70), `SPILLWAY_AGENT="` + strings.Repeat("a", 70) + `": this agent is called "` + strings.Repeat("a", 64) + `": names are 1 to 64 of A-Z, a-z, 0-9, _ and -`},
		{"agent beyond ASCII", "SPILLWAY_AGENT=\xff\u00fc", `SPILLWAY_AGENT="\xffü": this agent is called "___": names are 1 to 64 of A-Z, a-z, 0-9, _ and -`},
		{"memory below the largest message", "SPILLWAY_MESSAGE_MEMORY=1MiB", `SPILLWAY_MESSAGE_MEMORY="1MiB": 21MiB is used, so that the largest message of an input (MAX_MESSAGE_SIZE 20MiB) and 1MiB fit`},
		{"largest message above the memory", "SPILLWAY_INPUT_TCP_MAX_MESSAGE_SIZE=64MiB", `SPILLWAY_MESSAGE_MEMORY="64MiB": 65MiB is used, so that the largest message of an input (MAX_MESSAGE_SIZE 64MiB) and 1MiB fit`},
		{"memory below two bodies", "SPILLWAY_INPUTS=a\nSPILLWAY_INPUT_A_URL=http://:1\nSPILLWAY_MESSAGE_MEMORY=32MiB", `SPILLWAY_MESSAGE_MEMORY="32MiB": 41MiB is used, so that the largest body of a request (MAX_MESSAGE_SIZE 20MiB) fits in half of it`},
		{"small batches", "SPILLWAY_BATCH_MAX_BYTES=4KiB", `SPILLWAY_BATCH_MAX_BYTES="4KiB": small batches compress badly, and each costs a message and a write of its own: use 32KiB or more`},
		{"dwell that passes anyway", strings.Join(append(twoOutputs, "SPILLWAY_FAILBACK_DWELL=2m30s"), "\n"),
			`SPILLWAY_FAILBACK_DWELL="2m30s": changes nothing: 3 probes (SPILLWAY_FAILBACK_PROBES), one in 1m0s (SPILLWAY_FAILBACK_INTERVAL), take 2m30s at least: use a longer time, or remove it`},
		{"few segments to drop", "SPILLWAY_BUFFER_FULL=drop_oldest\nSPILLWAY_BUFFER_MAX_BYTES=4MiB",
			`SPILLWAY_BUFFER_MAX_BYTES="4MiB": with SPILLWAY_BUFFER_FULL=drop_oldest a full buffer loses a whole segment of 1MiB at a time, here a large part of all that it holds: use 32MiB or more`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, strings.Split(tt.env, "\n")...)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(c.Notes, []string{tt.want}) {
				t.Errorf("notes %q, want %q", c.Notes, tt.want)
			}
			if !tokenRule.MatchString(c.Agent) {
				t.Errorf("agent %q", c.Agent)
			}
		})
	}
}

// TestRefused holds that every name of other programs is told with what to use
// instead, that no pattern is shadowed by another one, and that none takes a name
// that is a setting.
func TestRefused(t *testing.T) {
	fill := strings.NewReplacer("INPUT/*/", "INPUT_TCP_", "OUTPUT/*/", "OUTPUT_A_", "*", "X")
	names := map[string]string{}
	for _, r := range refused {
		for _, p := range r.patterns {
			names[prefix+fill.Replace(p)] = r.what
		}
	}
	for name, want := range names {
		_, err := load(t, append(twoOutputs, name+"=1")...)
		if got, want := fmt.Sprint(err), name+": "+want; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	var all []*setting
	for under, dst := range map[string]any{prefix: &Config{}, prefix + "BUFFER_": &BufferConfig{}, prefix + "BATCH_": &BatchConfig{}, prefix + "INPUT_A_": &Input{}} {
		e := newEnvironment(nil)
		e.parse(dst, under, nil)
		all = append(all, e.settings...)
	}
	for _, k := range kinds {
		all = append(all, k.options(prefix+"OUTPUT_A_")...)
	}
	for _, s := range all {
		if what := refusal(s.Name); what != "" {
			t.Errorf("%s is a setting, and refused: %s", s.Name, what)
		}
	}
}

// TestOnlyWhatApplies holds that variables that change nothing are not shown.
func TestOnlyWhatApplies(t *testing.T) {
	for _, tt := range []struct {
		name  string
		env   []string
		shown map[string]bool
	}{
		{"defaults", nil, map[string]bool{"COMPRESSION_LEVEL": true, "FAILOVER_AFTER": false, "FAILBACK": false, "BUFFER_SYNC_INTERVAL": false, "BUFFER_RESERVE": false, "MESSAGE_MEMORY": true}},
		{"two outputs", twoOutputs, map[string]bool{"FAILOVER_AFTER": true, "FAILBACK_PROBES": true}},
		{"no failback", append(twoOutputs, "SPILLWAY_FAILBACK=no"), map[string]bool{"FAILOVER_AFTER": true, "FAILBACK": true, "FAILBACK_PROBES": false}},
		{"interval", []string{"SPILLWAY_BUFFER_SYNC=interval"}, map[string]bool{"BUFFER_SYNC_INTERVAL": true, "BUFFER_MAX_UNSYNCED": true}},
		{"uncompressed", []string{"SPILLWAY_COMPRESSION=none"}, map[string]bool{"COMPRESSION_LEVEL": false}},
		{"datagrams", []string{"SPILLWAY_INPUTS=udp"}, map[string]bool{"MESSAGE_MEMORY": false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, tt.env...)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.shown {
				if got := slices.ContainsFunc(c.settings, func(s *setting) bool { return s.Name == prefix+name }); got != want {
					t.Errorf("%s shown: %t, want %t", name, got, want)
				}
			}
		})
	}
}

var twoOutputs = []string{"SPILLWAY_OUTPUTS=a,b", "SPILLWAY_OUTPUT_A_URL=file:///tmp/a", "SPILLWAY_OUTPUT_B_URL=file:///tmp/b"}

func TestFailover(t *testing.T) {
	c, err := load(t, append(twoOutputs, "SPILLWAY_FAILOVER_AFTER=5s", "SPILLWAY_FAILBACK_PROBES=1")...)
	if err != nil {
		t.Fatal(err)
	}
	if want := (FailoverConfig{5 * time.Second, true, time.Minute, 1, time.Minute}); c.Failover != want || len(c.Notes) != 0 {
		t.Errorf("got %+v, notes %q", c.Failover, c.Notes)
	}
}

// TestDwell: a longer one is worth setting.
func TestDwell(t *testing.T) {
	c, err := load(t, append(twoOutputs, "SPILLWAY_FAILBACK_DWELL=151s")...)
	if err != nil || len(c.Notes) != 0 {
		t.Errorf("%v, notes %q", err, c.Notes)
	}
}

// TestOutputInBuffer refuses a file output where segments are.
func TestOutputInBuffer(t *testing.T) {
	dir := t.TempDir()
	for rel, bad := range map[string]bool{"buffer": true, "buffer/main": true, "buffers": false, "outbox": false} {
		url := "file://" + filepath.Join(dir, rel)
		_, err := loadConfig([]string{"SPILLWAY_STATE_DIR=" + dir, "SPILLWAY_OUTPUT_OUTBOX_URL=" + url})
		want := fmt.Sprintf("SPILLWAY_OUTPUT_OUTBOX_URL=%q: %s is in the directory of the buffers, %s: choose one beside it", url, filepath.Join(dir, rel), filepath.Join(dir, "buffer"))
		if bad && fmt.Sprint(err) != want || !bad && err != nil {
			t.Errorf("%s: %v", rel, err)
		}
	}
}

func TestNotStrict(t *testing.T) {
	c, err := load(t, "SPILLWAY_STRICT=No", "SPILLWAY_INPUT=tcp", "SPILLWAY_OUTPUT_HUB_URL=nats://u:p@h")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Notes) != 2 || !strings.Contains(c.Notes[0], "did you mean SPILLWAY_INPUTS?") || !strings.Contains(c.Notes[1], "no output is called hub") {
		t.Errorf("notes %q", c.Notes)
	}
	if _, err := load(t, "SPILLWAY_STRICT=nope", "SPILLWAY_INPUT=tcp"); err == nil || !strings.Contains(err.Error(), "SPILLWAY_INPUTS?") {
		t.Errorf("an unreadable STRICT counts as false: %v", err)
	}
}

func TestEnvFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spillway.env")
	text := "\ufeff# Spillway\n\n SPILLWAY_SITE = 'plant-1' \nSPILLWAY_LOG_LEVEL=debug\r\nSPILLWAY_INPUT_TCP_DELIMITER=\"#=\"\nSPILLWAY_LOG_FORMAT=\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, "SPILLWAY_ENV_FILE="+path, "SPILLWAY_LOG_LEVEL=warn")
	if err != nil {
		t.Fatal(err)
	}
	if c.Site != "plant-1" || c.LogLevel.String() != "WARN" || string(c.Inputs[0].Delimiter) != "#=" || c.LogFormat != "text" {
		t.Errorf("%q %v %q %q", c.Site, c.LogLevel, c.Inputs[0].Delimiter, c.LogFormat)
	}
	for name, want := range map[string]string{"SITE": "file " + path + ":3", "LOG_LEVEL": "environment", "LOG_FORMAT": "default"} {
		i := slices.IndexFunc(c.settings, func(s *setting) bool { return s.Name == prefix+name })
		if got := c.settings[i].Origin; got != want {
			t.Errorf("%s is from %q, want %q", name, got, want)
		}
	}
}

// TestSecretsInEnvFile is about a file that everybody may read.
func TestSecretsInEnvFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spillway.env")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	e := func(text string) []string {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := load(t, "SPILLWAY_ENV_FILE="+path)
		if err != nil {
			t.Fatal(err)
		}
		return c.Notes
	}
	if notes := e("SPILLWAY_SITE=plant\n"); len(notes) != 0 {
		t.Errorf("no secret, and %q", notes)
	}
	if !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == "jetstream" }) {
		return // the kind that has secrets
	}
	want := []string{`SPILLWAY_ENV_FILE="` + path + `": mode 0644 lets every user of this host at the secret in it: chmod it to 0640 if it belongs to root and to the group of the agent (root:spillway), else to 0600`}
	for _, secret := range []string{"SPILLWAY_OUTPUT_HUB_URL=nats://u:p@h:4222", "SPILLWAY_OUTPUT_HUB_URL=nats://h:4222\nSPILLWAY_OUTPUT_HUB_TOKEN=t0ken"} {
		if notes := e("SPILLWAY_OUTPUTS=hub\n" + secret + "\n"); !slices.Equal(notes, want) {
			t.Errorf("%q, want %q", notes, want)
		}
	}
}

// TestSecrets is about what parse does with secret:"true", whoever asks for it.
func TestSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("s3cret\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type config struct {
		Token string `env:"TOKEN" secret:"true"`
	}
	t.Run("from the file", func(t *testing.T) {
		var c config
		e := newEnvironment([]string{"SPILLWAY_TOKEN_FILE=" + path})
		e.parse(&c, prefix, nil)
		if len(e.problems) > 0 || c.Token != "s3cret\n" {
			t.Errorf("%q, %v: one line feed is cut, and no more", c.Token, e.problems)
		}
		s := e.setting("SPILLWAY_TOKEN")
		if s.shown() != "***" || s.Origin != "file "+path {
			t.Errorf("shown as %q from %q", s.shown(), s.Origin)
		}
	})
	t.Run("a field of its own for the file", func(t *testing.T) {
		var c struct {
			Token     string `env:"TOKEN" secret:"true"`
			TokenFile string `env:"-"`
		}
		e := newEnvironment([]string{"SPILLWAY_TOKEN_FILE=" + path})
		if e.parse(&c, prefix, nil); c.Token != "s3cret\n" || c.TokenFile != path {
			t.Errorf("%+v", c)
		}
	})
	t.Run("open to all", func(t *testing.T) {
		open := filepath.Join(t.TempDir(), "open")
		if err := os.WriteFile(open, []byte("s3cret"), 0o644); err != nil {
			t.Fatal(err)
		}
		var c struct {
			Token   string `env:"TOKEN" secret:"true"`
			KeyFile string `env:"KEY_FILE" secret:"file"`
			Nothing string `env:"NO_FILE" secret:"file"`
		}
		e := newEnvironment([]string{"SPILLWAY_TOKEN_FILE=" + open, "SPILLWAY_KEY_FILE=" + open, "SPILLWAY_NO_FILE=" + path})
		e.parse(&c, prefix, nil)
		var want []string
		for _, name := range []string{"SPILLWAY_TOKEN_FILE", "SPILLWAY_KEY_FILE"} {
			want = append(want, name+`="`+open+`": mode 0644 lets every user of this host at the secret in it: chmod it to 0640 if it belongs to root and to the group of the agent (root:spillway), else to 0600`)
		}
		if !slices.Equal(e.notes, want) || c.KeyFile != open {
			t.Errorf("notes %q, want %q", e.notes, want)
		}
	})
	t.Run("both", func(t *testing.T) {
		e := newEnvironment([]string{"SPILLWAY_TOKEN=t0ken", "SPILLWAY_TOKEN_FILE=" + path})
		e.parse(new(config), prefix, nil)
		if want := `SPILLWAY_TOKEN_FILE="` + path + `": SPILLWAY_TOKEN is set too: set one of them`; fmt.Sprint(e.problems) != "["+want+"]" {
			t.Errorf("%v, want %s", e.problems, want)
		}
	})
	t.Run("no file", func(t *testing.T) {
		e := newEnvironment([]string{"SPILLWAY_TOKEN_FILE=/nonexistent"})
		e.parse(new(config), prefix, nil)
		if want := `SPILLWAY_TOKEN_FILE="/nonexistent": open /nonexistent: no such file or directory: name a file that this user may read`; fmt.Sprint(e.problems) != "["+want+"]" {
			t.Errorf("%v, want %s", e.problems, want)
		}
	})
	t.Run("endless file", func(t *testing.T) {
		e := newEnvironment([]string{"SPILLWAY_TOKEN_FILE=/dev/zero"})
		e.parse(new(config), prefix, nil)
		if len(e.problems) != 1 || !strings.Contains(e.problems[0].Error(), "/dev/zero is larger than 1 MiB") {
			t.Errorf("%v", e.problems)
		}
	})
	t.Run("in a problem", func(t *testing.T) {
		e := newEnvironment([]string{"SPILLWAY_TOKEN=t0ken"})
		e.parse(new(config), prefix, nil)
		e.problem("SPILLWAY_TOKEN", "too short")
		if want := `[SPILLWAY_TOKEN="***": too short]`; fmt.Sprint(e.problems) != want {
			t.Errorf("%v, want %s", e.problems, want)
		}
	})
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://h:4222":                  "nats://h:4222",
		"nats://u:p@h:4222":              "nats://***@h:4222",
		"nats://t0ken@h":                 "nats://***@h",
		"nats://u:p@a:1,nats://u:p@b:2":  "nats://***@a:1,nats://***@b:2",
		"nats://u:p/w@rd@h":              "nats://***@h",
		"nats://h1:4222,u:p@h2:4222":     "nats://h1:4222,***@h2:4222",
		"nats://u:p w@h:1":               "nats://***@h:1",
		"nats://u:p\tw@h:1, x:y@g":       "nats://***@h:1,***@g",
		"nats://u:p,w@h":                 "nats://***,***@h",
		"nats://[::1]:4222,u@h":          "nats://[::1]:4222,***@h",
		"unix:///@audit":                 "unix:///@audit",
		"UNIX:///@audit":                 "UNIX:///@audit",
		"file://u:p@h/dir":               "file://***@h/dir",
		"/var/a@b":                       "/var/a@b",
		"file:///var/a@b":                "file:///var/a@b",
		"s3://bucket/prefix?endpoint=ht": "s3://bucket/prefix?endpoint=ht",
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRedactOf(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"SPILLWAY_OUTPUT_HUB_URL", "u:p@h:4222", "***@h:4222"},
		{"SPILLWAY_OUTPUT_A_ENDPOINT", "u:p@h:4222", "***@h:4222"},
		{"SPILLWAY_INPUT_TCP_TAGS", "a@b", "a@b"},
		{"SPILLWAY_INPUT_A_URL", "http://h:1/a?token=t0ken,u@x", "http://h:1/a?***"},
		{"SPILLWAY_INPUT_A_URL", "http://u:p@h:1/a?token=t0ken", "http://***@h:1/a?***"},
		{"SPILLWAY_INPUT_A_URL", "unix:///a?token=t0ken", "unix:///a?***"},
		{"SPILLWAY_OUTPUT_A_URL", "s3://bucket?endpoint=https://h", "s3://bucket?endpoint=https://h"},
		{"SPILLWAY_INPUT_TCP_TAGS", "nats://u:p@h", "nats://***@h"},
	} {
		if got := redactOf(tt.name, tt.value); got != tt.want {
			t.Errorf("%s=%s is shown as %s, want %s", tt.name, tt.value, got, tt.want)
		}
	}
}

// TestAnyCase holds that every choice may be written in capitals.
func TestAnyCase(t *testing.T) {
	in := "SPILLWAY_INPUT_TLS_"
	_, err := load(t, "SPILLWAY_INPUTS=tls", in+"TLS_CERT_FILE=c", in+"TLS_KEY_FILE=k", in+"TLS_CLIENT_CA_FILE=ca", in+"TLS_CLIENT_AUTH=OPTIONAL", in+"FRAMING=RFC6587", in+"PARSE=RFC5424",
		in+"OVERSIZE=Split", in+"ON_FULL=BLOCK", in+"PRESERVE_ORIGINAL=Base64", "SPILLWAY_COMPRESSION=ZSTD", "SPILLWAY_ENCODING=NDJSON", "SPILLWAY_LOG_LEVEL=INFO", "SPILLWAY_LOG_FORMAT=JSON",
		"SPILLWAY_BUFFER_FULL=HOLD", "SPILLWAY_BUFFER_SYNC=Interval", "SPILLWAY_SYSLOG_NAMES=Short", in+"PROXY_PROTOCOL=V2", in+"MULTILINE=PRI", in+"DROP_SEVERITY_ABOVE=Notice",
		in+"TLS_CIPHERS=tls_ecdhe_rsa_with_aes_128_gcm_sha256", in+"TLS_CURVES=x25519")
	if err != nil {
		t.Error(err)
	}
	in = "SPILLWAY_INPUT_VAULT_"
	_, err = load(t, "SPILLWAY_INPUTS=vault", in+"PARSE=VAULT", in+"FRAMING=JSONX", in+"RAW_SECRETS=Drop")
	if err != nil {
		t.Error(err)
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"INPUT", "INPUTS", 1}, {"TPC", "TCP", 1}, {"TLS", "TCP", 2}, {"abc", "cba", 2}, {"MAXBYTES", "MAX_BYTES", 1}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := distance(tt.b, tt.a); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}

// TestEverySetting holds that each variable has its place in the reference, and
// that none is asked for twice.
func TestEverySetting(t *testing.T) {
	c, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range c.settings {
		if seen[s.Name] {
			t.Errorf("%s is there twice", s.Name)
		}
		seen[s.Name] = true
		if s.Doc == "" {
			t.Errorf("%s has no doc tag", s.Name)
		}
	}
	for _, k := range kinds {
		for _, s := range k.options("SPILLWAY_OUTPUT_X_") {
			if s.Doc == "" {
				t.Errorf("%s of %s has no doc tag", s.Name, k.name)
			}
		}
	}
}

// FuzzEnvFile holds that every line is a variable, skipped, or told with its number
// and without its value; and that what was read can be written and read again.
func FuzzEnvFile(f *testing.F) {
	f.Add("# Spillway\nSPILLWAY_SITE=plant\n")
	f.Add(" SPILLWAY_A = 'b' \r\nSPILLWAY_A=c\nnonsense\nSPILLWAY_B=\"s3cret\n")
	f.Add("SPILLWAY_=\n=\nPATH=x\nSPILLWAY_C='\n")
	f.Add("\ufeffexport SPILLWAY_A=b\nSPILLWAY_B=\"v\" # comment\nPASSWORD s3cret=x\n")
	place := regexp.MustCompile(`^x\.env:\d+: `)
	f.Fuzz(func(t *testing.T, text string) {
		vars, errs := parseEnvFile("x.env", text)
		lines := strings.Count(text, "\n") + 1
		if len(vars)+len(errs) > lines {
			t.Errorf("%d variables and %d errors in %d lines", len(vars), len(errs), lines)
		}
		for _, err := range errs {
			if !place.MatchString(err.Error()) {
				t.Errorf("no place in %v", err)
			}
		}
		again := ""
		for k, v := range vars {
			if !strings.HasPrefix(k, prefix) || !envName.MatchString(k) || !strings.HasPrefix(v.origin, "file x.env:") || strings.Contains(v.text, "\n") {
				t.Errorf("%q is %+v", k, v)
			}
			again += k + "='" + v.text + "'\n"
		}
		back, errs := parseEnvFile("y.env", again)
		if len(errs) > 0 || len(back) != len(vars) {
			t.Fatalf("%q: %v", again, errs)
		}
		for k, v := range back {
			if v.text != vars[k].text {
				t.Errorf("%s=%q, was %q", k, v.text, vars[k].text)
			}
		}
	})
}

// FuzzLoadConfig holds that no environment makes loadConfig panic, that every
// problem names a variable, and that secrets stay out of them.
func FuzzLoadConfig(f *testing.F) {
	f.Add("SPILLWAY_INPUT=tcp\nSPILLWAY_BATCH_MAX_AGE=1")
	f.Add("SPILLWAY_INPUTS=tcp,dmz\nSPILLWAY_INPUT_DMZ_URL=udp://[::1%25lo]:514\nSPILLWAY_INPUT_DMZ_OVERSIZE=drop")
	f.Add("SPILLWAY_OUTPUTS=a,b\nSPILLWAY_OUTPUT_A_URL=file:///a%00b\nSPILLWAY_OUTPUT_B_URL=s3://bucket/x\nSPILLWAY_OUTPUT_B_ENDPOINT=:")
	f.Add("SPILLWAY_OUTPUTS=h\nSPILLWAY_OUTPUT_H_URL=nats://h:4222,nats://g\nSPILLWAY_OUTPUT_H_PASSWORD=s3cret")
	f.Add("SPILLWAY_INPUTS=vault,hook\nSPILLWAY_INPUT_VAULT_PREFIX={\nSPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=0\nSPILLWAY_INPUT_HOOK_URL=http://h:1/%zz?\nSPILLWAY_INPUT_HOOK_TOKEN=s3cret")
	f.Add("SPILLWAY_INPUTS=tls\nSPILLWAY_INPUT_TLS_TLS_CLIENT_FINGERPRINTS=sha-1::,sha256\nSPILLWAY_INPUT_TLS_TLS_CLIENT_NAMES=*.\nSPILLWAY_INPUT_TLS_DROP_REGEX=(\nSPILLWAY_INPUT_TLS_DROP_SEVERITY_ABOVE=08")
	f.Add("SPILLWAY_BUFFER_MAX_BYTES=9223372036854775807\nSPILLWAY_INPUT_TCP_DELIMITER=\\x\nSPILLWAY_STRICT=0\nSPILLWAY_=\nSPILLWAY_INPUT__=1")
	f.Fuzz(func(t *testing.T, text string) {
		var environ []string
		for line := range strings.SplitSeq(text, "\n") {
			// Files of this host are not for a fuzzer to read.
			if name, _, _ := strings.Cut(line, "="); !strings.HasSuffix(name, "_FILE") {
				environ = append(environ, line)
			}
		}
		c, err := loadConfig(environ)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, prefix) {
					t.Errorf("problem %q names no variable", line)
				}
			}
			return
		}
		if len(c.Inputs) == 0 || len(c.Outputs) == 0 || !tokenRule.MatchString(c.Agent) || !tokenRule.MatchString(c.Site) {
			t.Errorf("accepted: %+v", c)
		}
		for _, in := range c.Inputs {
			if inputKinds[in.Scheme].options == nil || in.Address == "" || in.MaxMessageSize < 1 || in.MaxMessageSize > maxMessageSize || !nameRule.MatchString(in.Lane) || in.Timezone == nil {
				t.Errorf("accepted: %+v", in)
			}
		}
		if c.Batch.MaxBytes > outputs.Size(batch.MaxPayload) || c.Batch.MaxAge <= 0 {
			t.Errorf("accepted: %+v", c.Batch)
		}
	})
}
