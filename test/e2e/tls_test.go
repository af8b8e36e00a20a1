package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/test/agent"
	"spillway/test/certs"
	"spillway/test/servers"
)

// The certificate of a listening agent is replaced: a sender that is connected stays
// so, the next one is shown the new certificate. One whose own certificate is expired
// is refused, whatever it tries, and one line of the log says which that is.
func TestCertificates(t *testing.T) {
	ca := certs.New(t)
	cert, key := ca.Issue("server", time.Now().Add(time.Hour))
	ca.Issue("client", time.Now().Add(time.Hour))
	ca.Issue("late", time.Now().Add(-time.Minute))
	port := servers.FreePort(t)
	a := agent.New(t, t.TempDir(), "SPILLWAY_BATCH_MAX_AGE=20ms", "SPILLWAY_OUTPUT_OUTBOX_ROLL_AGE=20ms",
		"SPILLWAY_INPUTS=tcp,udp,tls", fmt.Sprintf("SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:%d", port),
		"SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+cert, "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+key, "SPILLWAY_INPUT_TLS_TLS_CLIENT_CA_FILE="+ca.File)
	a.Start(t)
	client := func(name string) string {
		file := filepath.Join(filepath.Dir(ca.File), name)
		return fmt.Sprintf("openssl s_client -connect 127.0.0.1:%d -CAfile %s -verify_return_error -cert %s.pem -key %[3]s.key -quiet -no_ign_eof", port, ca.File, file)
	}
	delivered := func(n float64) {
		t.Helper()
		agent.Eventually(t, fmt.Sprint(n, " records"), 15*time.Second, func() bool {
			return a.Metric(t, `spillway_lane_records_delivered_total{lane="main"}`) == n
		})
	}
	shown := func() string {
		return sh(t, strings.Replace(client("client"), "-quiet", "", 1)+" </dev/null 2>/dev/null | openssl x509 -noout -serial")
	}

	var said syncBuffer
	stays := exec.Command("bash", "-c", "exec "+client("client"))
	stays.Stdout, stays.Stderr = &said, &said
	in, err := stays.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stays.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stays.Process.Kill() })
	fmt.Fprintln(in, "with the first certificate")
	delivered(1)

	first := shown()
	ca.Issue("server", time.Now().Add(time.Hour))
	second := sh(t, "openssl x509 -noout -serial -in "+cert)
	if first == second {
		t.Fatalf("both certificates have %s", first)
	}
	agent.Eventually(t, "the new certificate is shown", 10*time.Second, func() bool { return shown() == second })
	if _, err := io.WriteString(in, "still here\n"); err != nil {
		t.Error(err)
	}
	delivered(2)
	in.Close()
	if err := stays.Wait(); err != nil {
		t.Errorf("the first sender: %v\n%s", err, said.String())
	}

	for range 3 {
		sh(t, "printf 'never\\n' | "+client("late")+" || true") // it may or may not hear of the refusal before it has written
	}
	agent.Eventually(t, "the refusals are counted", 5*time.Second, func() bool {
		return a.Metric(t, `spillway_input_tls_failures_total{input="tls",reason="certificate"}`) == 3
	})
	if code := a.Stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "handshake failed") {
			told = append(told, line)
		}
	}
	serial := strings.TrimPrefix(strings.TrimSpace(sh(t, "openssl x509 -noout -serial -in "+filepath.Join(filepath.Dir(ca.File), "late.pem"))), "serial=")
	if len(told) != 1 || !strings.Contains(told[0], "CN=late") || !strings.Contains(strings.ToUpper(told[0]), strings.TrimLeft(serial, "0")) || !strings.Contains(told[0], "expired") {
		t.Errorf("one line that names the expired certificate (serial %s), want; have %q", serial, told)
	}
	out, _, _ := a.Command(t, "cat", filepath.Join(a.State, "outbox"))
	rs := parse(t, out)
	if len(rs) != 2 || rs[0].Message != "with the first certificate" || rs[1].Message != "still here" || rs[0].Source.Port != rs[1].Source.Port {
		t.Errorf("records of one connection: %+v", rs)
	}
}
