//go:build !no_jetstream && !no_s3

package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An input of requests, from the sender to the record.
func TestRequests(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	a := start(t, "SPILLWAY_INPUTS=hook", "SPILLWAY_INPUT_HOOK_URL=http://127.0.0.1:0/audit", "SPILLWAY_INPUT_HOOK_TOKEN_FILE="+token, "SPILLWAY_INPUT_HOOK_PARSE=none", "SPILLWAY_INPUT_HOOK_MAX_MESSAGE_SIZE=1KiB",
		"SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=0s")
	post := func(token, body string, want int) {
		t.Helper()
		r := must(http.NewRequest(http.MethodPost, "http://"+a.inputs[0].Addrs()[0].String()+"/audit", strings.NewReader(body)))(t)
		r.Header.Set("Authorization", "Bearer "+token)
		resp := must(http.DefaultClient.Do(r))(t)
		defer resp.Body.Close()
		if b := must(io.ReadAll(resp.Body))(t); resp.StatusCode != want {
			t.Errorf("%d, want %d: %s", resp.StatusCode, want, b)
		}
	}
	post("one", "hello", http.StatusNoContent)
	slow := a.dial("hook")
	fmt.Fprintf(slow, "POST /audit HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer one\r\nContent-Length: 1000\r\n\r\n%0500d", 0)
	a.until("a body counts among unfinished messages", func() bool { return a.metrics()[`spillway_lane_message_memory_bytes{lane="main"}`] >= 500 })
	slow.Close()
	post("two", "hello", http.StatusUnauthorized)
	post("one", strings.Repeat("x", 2000), http.StatusRequestEntityTooLarge)
	if resp := must(http.Get("http://" + a.inputs[0].Addrs()[0].String() + "/audit"))(t); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %s", resp.Status)
	} else {
		resp.Body.Close()
	}
	write("two\n")
	a.reload() // what SIGHUP does
	post("two", "again", http.StatusNoContent)
	post("one", "again", http.StatusUnauthorized)
	for i, want := range []string{`"message":"hello"`, `"message":"again"`} {
		if r := a.outbox(2)[i]; !strings.Contains(r, want) || !strings.Contains(r, `"input":{"type":"http"}`) || !strings.Contains(r, `"dataset":"http.generic"`) || !strings.Contains(r, `"ip":"127.0.0.1"`) {
			t.Errorf("no %s in %s", want, r)
		}
	}
	m := a.metrics()
	for metric, want := range map[string]float64{`requests_total{input="hook",result="stored"}`: 2, `requests_total{input="hook",result="unauthorized"}`: 2, `requests_total{input="hook",result="too_large"}`: 1,
		`requests_total{input="hook",result="invalid"}`: 1, `requests_total{input="hook",result="gone"}`: 1, `requests_total{input="hook",result="full"}`: 0,
		`messages_total{input="hook"}`: 2, `records_admitted_total{input="hook"}`: 2, `accepting{input="hook"}`: 1} {
		if got := m["spillway_input_"+metric]; got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
}

// Each kind of input shows what it can count, and no more.
func TestInputMetrics(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certificate(t, dir, "server")
	a := start(t, "SPILLWAY_INPUTS=tcp,udp,tls,local,proxied,lines,others", "SPILLWAY_INPUT_OTHERS_URL=unix:///@"+dir, "SPILLWAY_INPUT_OTHERS_PEER_UID="+strconv.Itoa(os.Getuid()+1),
		"SPILLWAY_INPUT_LINES_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_LINES_FRAMING=delimiter", "SPILLWAY_INPUT_PROXIED_URL=tcp://127.0.0.1:0", "SPILLWAY_INPUT_PROXIED_PROXY_PROTOCOL=v1", "SPILLWAY_INPUT_PROXIED_MAX_MESSAGE_AGE=1s",
		"SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:0", "SPILLWAY_INPUT_TCP_MAX_CONNECTIONS=1",
		"SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+dir+"/server.pem", "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+dir+"/server.key",
		"SPILLWAY_INPUT_LOCAL_URL=unixgram://"+dir+"/log")
	counted := func(want string, value float64) {
		t.Helper()
		a.until(fmt.Sprintf("%s %v", want, value), func() bool { return a.metrics()[want] == value })
	}

	fmt.Fprintln(a.dial("tls"), "<13>no handshake")
	counted(`spillway_input_tls_failures_total{input="tls",reason="plain"}`, 1)
	c := tls.Client(a.dial("tls"), &tls.Config{InsecureSkipVerify: true})
	if _, err := fmt.Fprintln(c, "<13>one"); err != nil {
		t.Fatal(err)
	}
	counted(`spillway_input_messages_total{input="tls"}`, 1)
	counted(`spillway_input_open_connections{input="tls"}`, 1)
	m := a.metrics()
	if in := time.Until(time.Unix(int64(m[`spillway_input_certificate_expires_timestamp_seconds{input="tls"}`]), 0)); in < 50*time.Minute || in > time.Hour {
		t.Errorf("the certificate expires in %v", in)
	}

	// What SIGHUP does.
	for _, in := range a.inputs {
		if in.cfg.Name != "tls" {
			continue
		}
		if err := in.Reload(); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "server.pem"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := in.Reload(); err == nil {
			t.Error("an empty certificate is taken")
		}
	}
	counted(`spillway_input_tls_reloads_total{input="tls",result="ok"}`, 1)
	counted(`spillway_input_tls_reloads_total{input="tls",result="failed"}`, 1)

	tls.Client(a.dial("tcp"), &tls.Config{InsecureSkipVerify: true}).Handshake() // ends with the connection
	counted(`spillway_input_refused_connections_total{input="tcp",reason="tls_on_plain"}`, 1)
	counted(`spillway_input_open_connections{input="tcp"}`, 0)
	fmt.Fprintln(a.dial("tcp"), "<13>two")
	counted(`spillway_input_messages_total{input="tcp"}`, 1)
	a.tryDial("tcp") // the reset may come before Dial has looked
	counted(`spillway_input_refused_connections_total{input="tcp",reason="max_connections"}`, 1)

	// Nobody of this user may write there.
	fmt.Fprintln(a.dial("others"), "<13>two")
	counted(`spillway_input_denied_total{input="others"}`, 1)

	// Its senders come through a balancer.
	fmt.Fprintln(a.dial("proxied"), "<13>no header")
	counted(`spillway_input_refused_connections_total{input="proxied",reason="proxy_header"}`, 1)
	c2 := a.dial("proxied")
	fmt.Fprintln(c2, "PROXY TCP4 192.0.2.7 192.0.2.1 44214 6514\r\n<13>three")
	counted(`spillway_input_messages_total{input="proxied"}`, 1)
	fmt.Fprint(c2, "<13>half of a mess")
	counted(`spillway_input_stale_connections_total{input="proxied"}`, 1)
	counted(`spillway_input_messages_total{input="proxied"}`, 2)

	fmt.Fprint(a.dial("lines"), "7 <13>abcd7 <13>efgh\n")
	counted(`spillway_input_mismatched_connections_total{input="lines",looks="octet_counted"}`, 1)
	fmt.Fprint(a.dial("lines"), `<json:string name="type">request</json:string>`)
	counted(`spillway_input_mismatched_connections_total{input="lines",looks="jsonx"}`, 1)

	local, err := net.Dial("unixgram", dir+"/log")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	fmt.Fprint(local, "<13>three")
	fmt.Fprint(local, "")
	counted(`spillway_input_messages_total{input="local"}`, 1)
	m = a.metrics()
	if m[`spillway_input_receive_buffer_bytes{input="udp"}`] == 0 {
		t.Error("no receive buffer of udp")
	}
	for name := range m {
		for _, no := range []struct{ metric, input string }{
			{"connections", "udp"}, {"connections", "local"}, {"_tls_", "tcp"}, {"_tls_", "udp"}, {"certificate", "tcp"}, {"receive_buffer", "tcp"}, {"receive_buffer", "local"},
		} {
			if strings.HasPrefix(name, "spillway_input_") && strings.Contains(name, no.metric) && strings.Contains(name, `input="`+no.input+`"`) {
				t.Errorf("%s is there", name)
			}
		}
	}
}
