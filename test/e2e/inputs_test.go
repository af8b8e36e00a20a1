package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
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
	"spillway/test/certs"
	"spillway/test/servers"
)

// quick is an agent whose records are in its outbox soon.
func quick(t *testing.T, env ...string) *agent.Agent {
	t.Helper()
	a := agent.New(t, t.TempDir(), append([]string{"TZ=UTC", "SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=20ms"}, env...)...)
	a.Start(t)
	return a
}

// records waits for n records in the outbox, ends the agent, and returns all.
func records(t *testing.T, a *agent.Agent, n int) []map[string]any {
	t.Helper()
	agent.Eventually(t, fmt.Sprint(n, " records"), 20*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) >= float64(n)
	})
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	all := objects(t, outbox(t, a))
	if len(all) != n {
		t.Fatalf("%d records, want %d: %v", len(all), n, all)
	}
	slices.SortStableFunc(all, func(a, b map[string]any) int {
		return cmp.Compare(field(a, "spillway.seq").(float64), field(b, "spillway.seq").(float64))
	})
	return all
}

// field is a value of a record, nil if there is none: "log.syslog.priority".
func field(o map[string]any, path string) any {
	var v any = o
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// same compares values of a record, printed.
func same(t *testing.T, o map[string]any, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if got := fmt.Sprint(field(o, path)); got != w {
			t.Errorf("%s is %q, want %q in %v", path, got, w, o)
		}
	}
}

// As log4j2 sends without newLine="true": nothing ends a message, so all of a
// connection is one, marked so, when it ends; with it each is one.
func TestInputWithoutLineEnds(t *testing.T) {
	t.Parallel()
	a := quick(t)
	c := dialAgent(t, a)
	for _, text := range []string{"<134>1 2026-11-20T12:00:00.5Z app1 orders 7 - - the first", "<134>1 2026-11-20T12:00:01.5Z app1 orders 7 - - the second"} {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.Close()
	agent.Eventually(t, "the record", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == 1
	})
	c = dialAgent(t, a)
	io.WriteString(c, "<134>1 2026-11-20T12:00:00.5Z app1 orders 7 - - the first\n<134>1 2026-11-20T12:00:01.5Z app1 orders 7 - - the second\n")
	rs := records(t, a, 3)
	same(t, rs[0], map[string]string{"message": "the first<134>1 2026-11-20T12:00:01.5Z app1 orders 7 - - the second", "log.flags": "[unterminated]"})
	same(t, rs[1], map[string]string{"message": "the first", "log.flags": "<nil>"})
	same(t, rs[2], map[string]string{"message": "the second", "log.syslog.appname": "orders"})
}

// A stack trace as an appender writes it that knows of lines only. With MULTILINE=pri
// it is one record, also the last one of a connection that then says nothing.
func TestInputStackTrace(t *testing.T) {
	t.Parallel()
	trace := "<11>Nov 20 12:00:00 app1 orders[7]: java.lang.IllegalStateException: no stock\n\tat shop.Orders.take(Orders.java:42)\n\tat shop.Main.main(Main.java:7)\n"
	text := "<14>Nov 20 12:00:00 app1 orders[7]: started\n" + trace + "<14>Nov 20 12:00:01 app1 orders[7]: still here\n" + trace
	a := quick(t, "SPILLWAY_INPUT_TCP_MULTILINE=pri")
	c := dialAgent(t, a)
	io.WriteString(c, text)
	one := "java.lang.IllegalStateException: no stock\n\tat shop.Orders.take(Orders.java:42)\n\tat shop.Main.main(Main.java:7)"
	for i, r := range records(t, a, 4) {
		want := []string{"started", one, "still here", one}[i]
		flags := []string{"<nil>", "[multiline]"}[i%2]
		same(t, r, map[string]string{"message": want, "log.flags": flags, "log.syslog.appname": "orders"})
	}
	c.Close()

	a = quick(t)
	c = dialAgent(t, a)
	io.WriteString(c, text)
	if r := records(t, a, 8)[2]; field(r, "message") != "\tat shop.Orders.take(Orders.java:42)" {
		t.Errorf("without it each line is a record: %v", r)
	}
	c.Close()
}

// Behind HAProxy the sender of a record is who connected to HAProxy.
func TestInputBehindBalancer(t *testing.T) {
	t.Parallel()
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	for _, c := range []struct{ send, protocol string }{{"send-proxy", "v1"}, {"send-proxy-v2", "v2"}, {"send-proxy-v2 proxy-v2-options crc32c,authority", "any"}} {
		t.Run(c.protocol, func(t *testing.T) {
			t.Parallel()
			tls := servers.FreePort(t)
			a := quick(t, "SPILLWAY_INPUTS=tcp,udp,tls", fmt.Sprintf("SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:%d", tls), "SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+key,
				"SPILLWAY_INPUT_TCP_PROXY_PROTOCOL="+c.protocol, "SPILLWAY_INPUT_TLS_PROXY_PROTOCOL="+c.protocol, "SPILLWAY_INPUT_TCP_ALLOW=127.0.0.1", "SPILLWAY_INPUT_TCP_TIMEZONE=UTC")
			front, frontTLS := servers.FreePort(t), servers.FreePort(t)
			haproxy(t, fmt.Sprintf(`
listen plain
  bind 127.0.0.1:%d
  server agent 127.0.0.1:%d %[5]s
listen secure
  bind 127.0.0.1:%[3]d
  server agent 127.0.0.1:%[4]d %[5]s
`, front, a.TCP, frontTLS, tls, c.send), fmt.Sprint(front))
			from := func(port int) net.Conn {
				conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return conn
			}
			plain := from(front)
			io.WriteString(plain, "hello by the balancer\n")
			agent.Eventually(t, "the first record", 10*time.Second, func() bool {
				return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == 1
			})
			sh(t, fmt.Sprintf("echo 'hello by TLS' | openssl s_client -quiet -no_ign_eof -verify_return_error -CAfile %s -connect 127.0.0.1:%d", ca.File, frontTLS))
			// Who does not come through it tells no address, and is let go.
			direct := dialAgent(t, a)
			io.WriteString(direct, "<13>1 2026-11-20T12:00:00Z forged app - - - hello\n")
			direct.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := direct.Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
				t.Errorf("a connection without a header: %d bytes, %v", n, err)
			}
			agent.Eventually(t, "it is counted", 5*time.Second, func() bool {
				return a.Metric(t, `spillway_input_refused_connections_total{input="tcp",reason="proxy_header"}`) == 1
			})
			rs := records(t, a, 2)
			local := plain.LocalAddr().(*net.TCPAddr)
			same(t, rs[0], map[string]string{"message": "hello by the balancer", "source.ip": "127.0.0.9", "source.port": fmt.Sprint(local.Port), "source.nat.ip": "127.0.0.1", "tls": "<nil>"})
			same(t, rs[1], map[string]string{"message": "hello by TLS", "source.ip": "127.0.0.1", "tls.established": "true"})
		})
	}
}

// haproxy runs HAProxy until the test ends.
func haproxy(t *testing.T, config, port string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n" + config
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(installed(t, "haproxy"), "-db", "-f", file)
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	agent.Eventually(t, "HAProxy listens", 10*time.Second, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			if strings.Contains(out.String(), "ALERT") {
				t.Fatalf("%s\n%s", text, out.String())
			}
			return false
		}
		c.Close()
		return true
	})
}

// Who may send by TLS, tried with openssl(1), and what records then tell of it.
func TestInputClients(t *testing.T) {
	t.Parallel()
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	dir := filepath.Dir(ca.File)
	ca.Issue("gw7", time.Now().Add(time.Hour), "gw7.plant.example.com")
	ca.Issue("gw8", time.Now().Add(time.Hour), "gw8.office.example.com")
	encrypted := filepath.Join(dir, "encrypted.key")
	sh(t, fmt.Sprintf("openssl pkcs8 -topk8 -v2 aes-256-cbc -in %s -out %s -passout pass:sesame", key, encrypted))
	secret := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(secret, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, fmt.Sprintf("cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=self -days 1 -keyout self.key -out self.pem 2>/dev/null", dir))
	print := strings.TrimSpace(strings.SplitN(sh(t, "openssl x509 -noout -fingerprint -sha256 -in "+dir+"/self.pem"), "=", 2)[1])

	for _, c := range []struct {
		name string
		env  []string // of the input
		good []string // options of s_client: what is sent arrives
		bad  []string // nothing does
		want map[string]string
	}{
		{"key with a passphrase", []string{"TLS_KEY_FILE=" + encrypted, "TLS_KEY_PASSPHRASE_FILE=" + secret}, []string{""}, nil,
			map[string]string{"tls.version": "1.3", "tls.version_protocol": "tls", "tls.client": "<nil>"}},
		{"authority", []string{"TLS_CLIENT_CA_FILE=" + ca.File}, []string{"gw7", "gw8"}, []string{"", "self"},
			map[string]string{"tls.client.x509.subject.common_name": "gw7", "tls.client.x509.alternative_names": "[gw7.plant.example.com]", "tls.client.subject": "CN=gw7"}},
		{"authority, optional", []string{"TLS_CLIENT_CA_FILE=" + ca.File, "TLS_CLIENT_AUTH=optional"}, []string{"gw7", ""}, []string{"self"},
			map[string]string{"tls.client.x509.subject.common_name": "gw7"}},
		{"names", []string{"TLS_CLIENT_CA_FILE=" + ca.File, "TLS_CLIENT_NAMES=*.plant.example.com"}, []string{"gw7"}, []string{"gw8", ""},
			map[string]string{"tls.client.issuer": "CN=ca"}},
		{"fingerprints", []string{"TLS_CLIENT_FINGERPRINTS=sha-256:" + print}, []string{"self"}, []string{"gw7", ""},
			map[string]string{"tls.client.hash.sha256": strings.ReplaceAll(print, ":", "")}},
		{"versions", []string{"TLS_MAX_VERSION=1.2", "TLS_CIPHERS=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_CURVES=P-384"}, []string{" -tls1_2 -curves P-384:P-256"},
			[]string{" -tls1_3", " -tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", " -tls1_2 -curves P-256"},
			map[string]string{"tls.version": "1.2", "tls.cipher": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}},
		{"new versions only", []string{"TLS_MIN_VERSION=1.3"}, []string{" -tls1_3"}, []string{" -tls1_2"}, map[string]string{"tls.version": "1.3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			port := servers.FreePort(t)
			env := []string{"SPILLWAY_INPUTS=tcp,udp,tls", fmt.Sprintf("SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:%d", port), "SPILLWAY_INPUT_TLS_TLS_CERT_FILE=" + cert, "SPILLWAY_INPUT_TLS_TLS_KEY_FILE=" + key}
			for _, v := range c.env {
				env = append(env, "SPILLWAY_INPUT_TLS_"+v)
			}
			a := quick(t, env...)
			send := func(who, text string) {
				name, options, _ := strings.Cut(who, " ")
				if name != "" {
					options += fmt.Sprintf(" -cert %s/%s.pem -key %[1]s/%[2]s.key", dir, name)
				}
				sh(t, fmt.Sprintf("echo '%s' | openssl s_client -quiet -no_ign_eof -CAfile %s -connect 127.0.0.1:%d %s 2>&1 || true", text, ca.File, port, options))
			}
			for i, who := range c.good {
				send(who, "good "+who)
				agent.Eventually(t, fmt.Sprintf("what %q sends", who), 10*time.Second, func() bool {
					return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == float64(i+1)
				})
			}
			for i, who := range c.bad {
				send(who, "bad "+who)
				agent.Eventually(t, fmt.Sprintf("the refusal of %q is counted", who), 10*time.Second, func() bool {
					m, err := a.Metrics()
					if err != nil {
						t.Fatal(err)
					}
					n := 0.0
					for name, v := range m {
						if strings.HasPrefix(name, `spillway_input_tls_failures_total{input="tls"`) {
							n += v
						}
					}
					return n == float64(i+1)
				})
			}
			rs := records(t, a, len(c.good))
			same(t, rs[0], c.want)
			same(t, rs[0], map[string]string{"tls.established": "true", "input.type": "tcp"})
		})
	}
}

// Plain text to a TLS port is no record; one line of the log says what it was.
func TestInputPlainToTLS(t *testing.T) {
	t.Parallel()
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	port := servers.FreePort(t)
	a := quick(t, "SPILLWAY_INPUTS=tcp,udp,tls", fmt.Sprintf("SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:%d", port), "SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+key)
	for range 3 {
		sh(t, fmt.Sprintf("echo hello | nc -q1 127.0.0.1 %d >/dev/null || true", port))
	}
	agent.Eventually(t, "they are counted", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_input_tls_failures_total{input="tls",reason="plain"}`) == 3
	})
	for range 3 { // a check of the port is no failure
		sh(t, fmt.Sprintf("nc -zv 127.0.0.1 %d 2>&1", port))
	}
	records(t, a, 0)
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "input=tls") && (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("%d lines of the log warn, want one:\n%s", told, log)
	}
}

// What is filtered at the source is counted, and nothing but that is left out.
func TestInputFilters(t *testing.T) {
	t.Parallel()
	a := quick(t, "SPILLWAY_INPUT_TCP_DROP_SEVERITY_ABOVE=notice", "SPILLWAY_INPUT_TCP_DROP_REGEX=^health(z|check)")
	c := dialAgent(t, a)
	io.WriteString(c, "<134>1 - h app - - - informational\n<133>1 - h app - - - notice\n<133>1 - h app - - - healthz: ok\n<135>1 - h app - - - debug\nplain text\nhealthcheck\n<131>1 - h app - - - a healthz error\n")
	c.Close()
	agent.Eventually(t, "all are read", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_input_messages_total{input="tcp"}`) == 7
	})
	if s, r := a.Metric(t, `spillway_input_filtered_total{input="tcp",reason="severity"}`), a.Metric(t, `spillway_input_filtered_total{input="tcp",reason="text"}`); s != 2 || r != 2 {
		t.Errorf("filtered %v by severity, want 2, and %v by expression, want 2", s, r)
	}
	var got []string
	for _, r := range records(t, a, 3) {
		got = append(got, field(r, "message").(string))
	}
	if want := []string{"notice", "plain text", "a healthz error"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
}

// A client that sends a byte now and then is no idle one, and is let go all the same
// when its message does not end. What it sent is kept.
func TestInputNeverFinished(t *testing.T) {
	t.Parallel()
	a := quick(t, "SPILLWAY_INPUT_TCP_MAX_MESSAGE_AGE=2s")
	c := dialAgent(t, a)
	good := dialAgent(t, a)
	begin := time.Now()
	for i := 0; ; i++ {
		if _, err := c.Write([]byte{'a' + byte(i%26)}); err != nil {
			break
		}
		fmt.Fprintf(good, "line %d\n", i)
		if time.Sleep(100 * time.Millisecond); time.Since(begin) > time.Minute {
			t.Fatal("still open")
		}
	}
	if took := time.Since(begin); took < 1900*time.Millisecond {
		t.Errorf("closed after %v", took)
	}
	if _, err := io.WriteString(good, "and on\n"); err != nil {
		t.Error(err)
	}
	agent.Eventually(t, "it is counted", 5*time.Second, func() bool {
		return a.Metric(t, `spillway_input_stale_connections_total{input="tcp"}`) == 1
	})
	agent.Eventually(t, "everything is delivered", 10*time.Second, func() bool {
		return slices.ContainsFunc(objects(t, outbox(t, a)), func(o map[string]any) bool { return field(o, "message") == "and on" })
	})
	all := objects(t, outbox(t, a))
	i := slices.IndexFunc(all, func(o map[string]any) bool { return field(o, "log.flags") != nil })
	if i < 0 || !strings.HasPrefix(field(all[i], "message").(string), "abcdefghij") {
		t.Errorf("what it sent is not kept: %v", all)
	}
}

// Two agents can't have one port: the second ends and says which.
func TestInputPortTaken(t *testing.T) {
	t.Parallel()
	a := quick(t)
	b := agent.New(t, t.TempDir())
	b.Env = append(b.Env, fmt.Sprintf("SPILLWAY_INPUT_TCP_URL=tcp://127.0.0.1:%d", a.TCP))
	out, errs, code := b.Command(t, "run")
	if text := out + errs; code == 0 || !strings.Contains(text, fmt.Sprintf("127.0.0.1:%d", a.TCP)) || !strings.Contains(text, "in use") {
		t.Errorf("exit code %d: %s", code, text)
	}
}

// Half a line as the agent is stopped is a record, and its sender learns of the stop.
func TestInputStop(t *testing.T) {
	t.Parallel()
	a := quick(t)
	c := dialAgent(t, a)
	io.WriteString(c, "whole\nhalf a li")
	agent.Eventually(t, "what was sent is read", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_input_read_bytes_total{input="tcp"}`) == 15
	})
	agent.Eventually(t, "the line is delivered", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == 1
	})
	begin := time.Now()
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Logf("the stop took %v", time.Since(begin).Round(time.Millisecond))
	rs := objects(t, outbox(t, a))
	if len(rs) != 2 {
		t.Fatalf("%d records: %v", len(rs), rs)
	}
	same(t, rs[0], map[string]string{"message": "whole", "log.flags": "<nil>"})
	same(t, rs[1], map[string]string{"message": "half a li", "log.flags": "[unterminated]"})
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("the sender reads %d bytes, %v", n, err)
	}
}

// Two thousand forwarders: each record names its own.
func TestInputManySenders(t *testing.T) {
	t.Parallel()
	const n = 2000
	files(t, n+1000)
	a := quick(t, "SPILLWAY_LOG_LEVEL=info", "SPILLWAY_INPUT_TCP_TAGS=forwarded")
	want := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			for i := part; i < n; i += 4 {
				c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.TCP))
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { c.Close() })
				text := fmt.Sprintf("from forwarder %d", i)
				if _, err := fmt.Fprintln(c, text); err != nil {
					t.Error(err)
				}
				mu.Lock()
				want[text] = c.LocalAddr().String()
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, r := range records(t, a, n) {
		text := field(r, "message").(string)
		same(t, r, map[string]string{"log.source.address": want[text], "tags": "[forwarded]"})
		delete(want, text)
	}
	if len(want) > 0 {
		t.Errorf("%d have no record", len(want))
	}
}

// Senders that count octets, on an input that was told of lines: the log says so
// once for each connection, and a metric counts them.
func TestInputWrongFraming(t *testing.T) {
	t.Parallel()
	a := quick(t, "SPILLWAY_INPUT_TCP_FRAMING=delimiter")
	for range 2 { // rsyslog counts the line feed of its template
		sh(t, fmt.Sprintf(`printf '25 <13>1 - h app - - - one\n25 <13>1 - h app - - - two\n' | nc -q1 127.0.0.1 %d`, a.TCP))
	}
	agent.Eventually(t, "they are counted", 10*time.Second, func() bool {
		return a.Metric(t, `spillway_input_mismatched_connections_total{input="tcp",looks="octet_counted"}`) == 2
	})
	a.Stop(t)
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("look octet counted")); n != 2 {
		t.Errorf("%d lines of the log, want one for each connection:\n%s", n, log)
	}
}

// Each option makes records that are not there without it.
func TestInputSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, env, send string
		want            []map[string]string // of each record
	}{
		{"dataset", "SPILLWAY_INPUT_TCP_DATASET=door.log", "x\n", []map[string]string{{"event.dataset": "door.log", "data_stream.dataset": "door.log"}}},
		{"pipeline", "SPILLWAY_INPUT_TCP_PIPELINE=doors", "x\n", []map[string]string{{"labels.pipeline": "doors"}}},
		{"tags", "SPILLWAY_INPUT_TCP_TAGS=plant,forwarded", "x\n", []map[string]string{{"tags": "[plant forwarded]"}}},
		{"original", "SPILLWAY_INPUT_TCP_PRESERVE_ORIGINAL=true", "<13>Oct 11 22:14:15 h su: x\n", []map[string]string{{"message": "x", "event.original": "<13>Oct 11 22:14:15 h su: x", "tags": "[preserve_original_event]"}}},
		{"original, every byte", "SPILLWAY_INPUT_TCP_PRESERVE_ORIGINAL=base64", "a\xff\n", []map[string]string{{"message": "a\ufffd", "event.original": "Yf8="}}},
		{"zone", "SPILLWAY_INPUT_TCP_TIMEZONE=Asia/Tokyo", "<13>Oct 11 22:14:15 h su: x\n", []map[string]string{{"@timestamp": thisYear(time.October, 11) + "T13:14:15Z"}}},
		{"no parsing", "SPILLWAY_INPUT_TCP_PARSE=none", "<34>Oct 11 22:14:15 h su: x\n", []map[string]string{{"message": "<34>Oct 11 22:14:15 h su: x", "log.syslog": "<nil>"}}},
		{"only RFC 3164", "SPILLWAY_INPUT_TCP_PARSE=rfc3164", "<165>1 2003-10-11T22:14:15.003Z h app - - - x\n", []map[string]string{{"log.syslog.version": "<nil>"}}},
		{"only RFC 5424", "SPILLWAY_INPUT_TCP_PARSE=rfc5424", "no header\n", []map[string]string{{"message": "no header", "tags": "[_syslogparsefailure]"}}},
		{"short names", "SPILLWAY_SYSLOG_NAMES=short", "<34>1 - h su - - - x\n", []map[string]string{{"log.syslog.facility.name": "auth", "log.syslog.severity.name": "crit"}}},
		{"delimiter", `SPILLWAY_INPUT_TCP_DELIMITER=<END>\r\n`, "a<END>\r\nb\nc<END>\r\n", []map[string]string{{"message": "a"}, {"message": "b\nc"}}},
		{"lines, no counts", "SPILLWAY_INPUT_TCP_FRAMING=delimiter", "7 <13>a\nb5 <13>x\n", []map[string]string{{"message": "a"}, {"message": "b5 <13>x"}}},
		{"counts", "SPILLWAY_INPUT_TCP_FRAMING=octet", "5 a\nb c", []map[string]string{{"message": "a\nb c"}}},
		{"counts or lines", "SPILLWAY_INPUT_TCP_FRAMING=rfc6587", "5 a\nb cx\n", []map[string]string{{"message": "a\nb c"}, {"message": "x"}}},
		{"NUL", "SPILLWAY_INPUT_TCP_FRAMING=nul", "a\nb\x00c\x00", []map[string]string{{"message": "a\nb"}, {"message": "c"}}},
		{"size", "SPILLWAY_INPUT_TCP_MAX_MESSAGE_SIZE=4", "abcde\nfgh\n", []map[string]string{{"message": "abcd", "log.flags": "[truncated]"}, {"message": "fgh", "log.flags": "<nil>"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			have := func(env ...string) []map[string]any {
				a := quick(t, env...)
				conn := dialAgent(t, a)
				io.WriteString(conn, c.send)
				conn.Close()
				agent.Eventually(t, "the connection is read", 10*time.Second, func() bool {
					m, err := a.Metrics()
					return err == nil && m[`spillway_input_connections_total{input="tcp"}`] == 1 && m[`spillway_input_open_connections{input="tcp"}`] == 0
				})
				if code := a.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				return objects(t, outbox(t, a))
			}
			differ := func(rs []map[string]any) (where []string) {
				if len(rs) != len(c.want) {
					return []string{fmt.Sprintf("%d records, want %d: %v", len(rs), len(c.want), rs)}
				}
				for i, r := range rs {
					for path, w := range c.want[i] {
						if got := fmt.Sprint(field(r, path)); got != w {
							where = append(where, fmt.Sprintf("record %d: %s is %q, want %q", i, path, got, w))
						}
					}
				}
				return where
			}
			if where := differ(have(c.env)); len(where) > 0 {
				t.Errorf("%s: %q", c.env, where)
			}
			if len(differ(have())) == 0 {
				t.Errorf("without %s the records are the same", c.env)
			}
		})
	}
}

// thisYear is a day of the year that a stamp without one is of: the latest that is
// not ahead.
func thisYear(m time.Month, day int) string {
	now := time.Now().UTC()
	at := time.Date(now.Year(), m, day, 0, 0, 0, 0, time.UTC)
	if at.After(now.Add(24 * time.Hour)) {
		at = at.AddDate(-1, 0, 0)
	}
	return at.Format(time.DateOnly)
}
