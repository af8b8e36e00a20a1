//go:build !no_jetstream && !no_s3

package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is the real program in a process of its own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // of its log
}

// spillway starts it with vars and nothing else in its environment.
func spillway(t *testing.T, vars ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command("/proc/self/exe", "run"), lines: make(chan string, 1000)}
	p.cmd.Args[0] = "spillway" // see TestMain
	p.cmd.Env = vars
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() { p.cmd.Process.Kill() })
	return p
}

// await returns the next line with text in it.
func (p *process) await(text string) string {
	p.t.Helper()
	late := time.After(time.Minute)
	var seen []string
	for {
		select {
		case l, ok := <-p.lines:
			if strings.Contains(l, text) {
				return l
			}
			if seen = append(seen, l); !ok {
				p.t.Fatalf("ended without %q:\n%s", text, strings.Join(seen, "\n"))
			}
		case <-late:
			p.t.Fatalf("no %q:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// certificate writes a certificate and its key to dir, as name.pem and name.key.
func certificate(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for ending, b := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name+ending), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHangup is about SIGHUP and the real program: what it says of files that are
// good, of those that are not, and that it goes on.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate(t, dir, "hub")
	certificate(t, dir, "server")
	token := write("token", "s3cret\n")
	env := write("spillway.env", "SPILLWAY_SITE=plant\n")
	shared := write("credentials", "[default]\naws_access_key_id = AKIAONE\naws_secret_access_key = one\n")
	const hub = "SPILLWAY_OUTPUT_HUB_"
	p := spillway(t, "SPILLWAY_ENV_FILE="+env, "SPILLWAY_STATE_DIR="+dir+"/state", "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_INPUTS=udp,tls", "SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:0",
		"SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:0", "SPILLWAY_INPUT_TLS_TLS_CERT_FILE="+dir+"/server.pem", "SPILLWAY_INPUT_TLS_TLS_KEY_FILE="+dir+"/server.key",
		"GOMEMLIMIT=512MiB", "SPILLWAY_OUTPUTS=hub,archive", hub+"URL=tls://127.0.0.1:1", hub+"TOKEN_FILE="+token, hub+"TLS_CA_FILE="+dir+"/hub.pem",
		hub+"TLS_CERT_FILE="+dir+"/hub.pem", hub+"TLS_KEY_FILE="+dir+"/hub.key",
		"SPILLWAY_OUTPUT_ARCHIVE_URL=s3://bucket", "SPILLWAY_OUTPUT_ARCHIVE_REGION=eu-central-1", "AWS_SHARED_CREDENTIALS_FILE="+shared, "AWS_CONFIG_FILE="+dir+"/none", "AWS_EC2_METADATA_DISABLED=true")
	p.await(`msg="memory limit" GOMEMLIMIT=512MiB`)
	p.await("msg=ready")

	const tls = "SPILLWAY_INPUT_TLS_TLS_CERT_FILE,SPILLWAY_INPUT_TLS_TLS_KEY_FILE"
	const all = tls + "," + hub + "TOKEN_FILE," + hub + "TLS_CA_FILE," + hub + "TLS_CERT_FILE," + hub + "TLS_KEY_FILE"
	p.signal(syscall.SIGHUP)
	p.await(`msg="certificates and secrets are read again; new connections use them" files="` + all + `,AWS settings of archive"`)

	certificate(t, dir, "hub") // another key pair
	write("hub.key", "nonsense")
	write("server.pem", "nonsense")
	write("token", "")
	write("credentials", "[default]\naws_access_key_id = AKIATWO\n")
	p.signal(syscall.SIGHUP)
	const kept = `level=ERROR msg="not read again; what was read before stays in use" error="`
	p.await(kept + "SPILLWAY_INPUT_TLS_TLS_CERT_FILE: ")
	p.await(kept + hub + "TOKEN_FILE: " + token + " is empty: it should hold the secret")
	p.await(kept + hub + "TLS_CERT_FILE: tls: ")
	p.await(kept + "AWS settings of output archive: ")
	if l := p.await("nothing was read again"); !strings.HasSuffix(l, `level=WARN msg="nothing was read again"`) {
		t.Errorf("after four errors: %s", l)
	}

	certificate(t, dir, "hub")
	certificate(t, dir, "server")
	write("token", "other")
	write("spillway.env", "SPILLWAY_SITE=elsewhere\n")
	p.signal(syscall.SIGHUP)
	p.await(`level=WARN msg="SPILLWAY_ENV_FILE is not what it was at the start; a restart uses it" file=` + env)
	p.await(`files=` + all)
	p.signal(syscall.SIGTERM)
	p.await("msg=stopped")
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHangupWithoutFiles: there may be nothing to read.
func TestHangupWithoutFiles(t *testing.T) {
	p := spillway(t, "SPILLWAY_STATE_DIR="+t.TempDir(), "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_INPUTS=udp", "SPILLWAY_INPUT_UDP_URL=udp://127.0.0.1:0")
	p.await("msg=ready")
	p.signal(syscall.SIGHUP)
	p.await(`level=INFO msg="nothing was read again: no input and no output has a file with a certificate or a secret"`)
	p.signal(syscall.SIGTERM)
	p.await("msg=stopped")
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestCheckInputs is about inputs that are more than a port.
func TestCheckInputs(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir, "server") // for an hour
	check := func(vars ...string) (code int, out, errs string) {
		var o, e strings.Builder
		code = cmdCheck(t.Context(), nil, &o, &e, append(vars, "SPILLWAY_AGENT=gw1", "SPILLWAY_STATE_DIR="+dir+"/state", "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0"))
		return code, o.String(), e.String()
	}
	vars := []string{"SPILLWAY_INPUTS=tls,local,handed,hook", "SPILLWAY_INPUT_HOOK_URL=http://127.0.0.1:0", "SPILLWAY_INPUT_TLS_URL=tls://127.0.0.1:0",
		"SPILLWAY_INPUT_TLS_TLS_CERT_FILE=" + dir + "/server.pem", "SPILLWAY_INPUT_TLS_TLS_KEY_FILE=" + dir + "/server.key",
		"SPILLWAY_INPUT_LOCAL_URL=unix://" + dir + "/log", "SPILLWAY_INPUT_HANDED_URL=fd://syslog"}
	code, out, errs := check(vars...)
	if code != exitOK || errs != "" {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"\ninput tls        tls 127.0.0.1:", "certificate " + dir + "/server.pem, until ",
		"\nwarning: SPILLWAY_INPUT_TLS_TLS_CERT_FILE=\"" + dir + "/server.pem\": the certificate ends ",
		"\ninput hook       http 127.0.0.1:", "\ninput local      unix " + dir + "/log, lane main\n", "\ninput handed     fd://syslog is handed over by systemd, and not looked at; lane main\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, err := os.Stat(dir + "/log"); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}

	// Whoever has the socket is told.
	l, err := net.Listen("unix", dir+"/log")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, _, errs = check(vars...)
	if code != exitFailure || !strings.Contains(errs, dir+"/log") || !strings.Contains(errs, newHolder(os.Getpid()).String()+" has it") {
		t.Errorf("exit code %d: %s", code, errs)
	}

	// What can't be used is told as at a start.
	if err := os.Remove(dir + "/server.key"); err != nil {
		t.Fatal(err)
	}
	code, _, errs = check(append(vars[2:5:5], "SPILLWAY_INPUTS=tls")...)
	if code == exitOK || !strings.Contains(errs, "server.key") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
