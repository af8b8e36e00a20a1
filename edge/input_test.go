package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway/edge/listen"
	"spillway/edge/pipeline"
	"spillway/framing"
)

func TestInputKinds(t *testing.T) {
	for _, tt := range []struct {
		name, env                         string
		scheme, address, dataset, network string
		onFull                            pipeline.OnFull
	}{
		{"tls by name", "SPILLWAY_INPUTS=tls SPILLWAY_INPUT_TLS_TLS_CERT_FILE=c SPILLWAY_INPUT_TLS_TLS_KEY_FILE=k", "tls", "localhost:6514", "tcp.generic", "tcp", pipeline.Block},
		{"unix by name", "SPILLWAY_INPUTS=unix", "unix", "/run/spillway/syslog.sock", "unix.generic", "unix", pipeline.Block},
		{"unixgram", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=unixgram:///dev//log", "unixgram", "/dev/log", "unix.generic", "unixgram", pipeline.Drop},
		{"unixpacket", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=unixpacket:///a%20b", "unixpacket", "/a b", "unix.generic", "unixpacket", pipeline.Block},
		{"abstract", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=unix:///@audit/x", "unix", "@audit/x", "unix.generic", "unix", pipeline.Block},
		{"of systemd", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=fd://syslog.socket", "fd", "syslog.socket", "", "fd", pipeline.Block},
		{"vault by name", "SPILLWAY_INPUTS=vault", "tcp", "localhost:9090", "vault.audit", "tcp", pipeline.Refuse},
		{"vault in name only", "SPILLWAY_INPUTS=vault SPILLWAY_INPUT_VAULT_PARSE=none", "tcp", "localhost:9090", "tcp.generic", "tcp", pipeline.Block},
		{"vault over tls", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=Vault SPILLWAY_INPUT_A_URL=tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c SPILLWAY_INPUT_A_TLS_KEY_FILE=k", "tls", "localhost:1", "vault.audit", "tcp", pipeline.Refuse},
		{"vault over unix", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_URL=unix:///v", "unix", "/v", "vault.audit", "unix", pipeline.Refuse},
		{"vault over unixpacket", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_URL=unixpacket:///v", "unixpacket", "/v", "vault.audit", "unixpacket", pipeline.Refuse},
		{"vault over udp", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_URL=udp://:1", "udp", "localhost:1", "vault.audit", "udp", pipeline.Drop},
		{"vault over http", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_URL=http://:1/audit", "http", "localhost:1", "vault.audit", "http", pipeline.Block},
		{"tcp in capitals", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=TCP://:1", "tcp", "localhost:1", "tcp.generic", "tcp", pipeline.Block},
		{"udp in capitals", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=UDP://:1", "udp", "localhost:1", "udp.generic", "udp", pipeline.Drop},
		{"unixgram in capitals", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=UnixGram:///dev/Log", "unixgram", "/dev/Log", "unix.generic", "unixgram", pipeline.Drop},
		{"http in capitals", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=HTTP://:1/Audit", "http", "localhost:1", "http.generic", "http", pipeline.Block},
		{"of systemd in capitals", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=FD://Syslog", "fd", "Syslog", "", "fd", pipeline.Block},
		{"vault over tcp in capitals", "SPILLWAY_INPUTS=vault SPILLWAY_INPUT_VAULT_URL=TCP://:1", "tcp", "localhost:1", "vault.audit", "tcp", pipeline.Refuse},
		{"http", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=http://0.0.0.0:8088", "http", "0.0.0.0:8088", "http.generic", "http", pipeline.Block},
		{"refuse", "SPILLWAY_INPUTS=tcp SPILLWAY_INPUT_TCP_ON_FULL=Refuse", "tcp", "localhost:5514", "tcp.generic", "tcp", pipeline.Refuse},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, strings.Fields(tt.env)...)
			if err != nil {
				t.Fatal(err)
			}
			in := c.Inputs[0]
			if in.Scheme != tt.scheme || in.Address != tt.address || in.Dataset != tt.dataset || in.OnFull != tt.onFull || in.listen(nil).Network != tt.network {
				t.Errorf("%+v", in)
			}
		})
	}
}

func TestInputOptions(t *testing.T) {
	c, err := load(t, "SPILLWAY_INPUTS=tls,unix,udp", "SPILLWAY_INPUT_TLS_TLS_CERT_FILE=/c", "SPILLWAY_INPUT_TLS_TLS_KEY_FILE=/k", "SPILLWAY_INPUT_TLS_TLS_CLIENT_CA_FILE=/ca",
		"SPILLWAY_INPUT_TLS_TLS_MIN_VERSION=1.3", "SPILLWAY_INPUT_TLS_ALLOW=10.1.2.3/8, ::1,::ffff:192.0.2.7", "SPILLWAY_INPUT_TLS_KEEPALIVE=1m", "SPILLWAY_INPUT_TLS_SO_RCVBUF=64KiB",
		"SPILLWAY_INPUT_UNIX_SOCKET_MODE=600", "SPILLWAY_INPUT_UNIX_SOCKET_OWNER=root", "SPILLWAY_INPUT_UNIX_SOCKET_GROUP=root", "SPILLWAY_INPUT_UNIX_IDLE_TIMEOUT=1h", "SPILLWAY_INPUT_UNIX_PEER_UID=0,daemon", "SPILLWAY_INPUT_UDP_ALLOW=192.0.2.0/24", "SPILLWAY_INPUT_UDP_PIPELINE=plc")
	if err != nil {
		t.Fatal(err)
	}
	o := c.Inputs[0].listen(nil)
	if !reflect.DeepEqual(*o.TLS, listen.TLSOptions{CertFile: "/c", KeyFile: "/k", ClientCAFile: "/ca", ClientAuth: listen.ClientRequired, MinVersion: 0x304}) || o.KeepAlive != time.Minute || o.ReceiveBuffer != 64<<10 ||
		!slices.Equal(o.Allow, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("192.0.2.7/32")}) {
		t.Errorf("%+v %+v", o, o.TLS)
	}
	if o := c.Inputs[1].listen(nil); o.Socket != (listen.SocketFile{Mode: 0o600, Owner: "root", Group: "root"}) || o.IdleTimeout != time.Hour || o.KeepAlive != 30*time.Second || o.MaxMessageAge != 5*time.Minute || !slices.Equal(o.PeerUIDs, []uint32{0, 1}) {
		t.Errorf("%+v", o)
	}
	if o := c.Inputs[2].listen(nil); o.ReceiveBuffer != 8<<20 || len(o.Allow) != 1 || c.Inputs[2].Pipeline != "plc" {
		t.Errorf("%+v", o)
	}
}

// TestInputTLS is about who may connect, and how.
func TestInputTLS(t *testing.T) {
	const in, sha1, suite = "SPILLWAY_INPUT_TLS_", "sha-1:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
	passphrase := filepath.Join(t.TempDir(), "passphrase")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(passphrase, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	c, err := load(t, "SPILLWAY_INPUTS=tls", in+"TLS_CERT_FILE=/c", in+"TLS_KEY_FILE=/k", in+"TLS_KEY_PASSPHRASE_FILE="+passphrase, in+"TLS_CLIENT_CA_FILE=/ca",
		in+"TLS_CLIENT_FINGERPRINTS="+sha1, in+"TLS_CLIENT_NAMES=GW7.example, 192.0.2.7", in+"TLS_MAX_VERSION=1.2", in+"TLS_CIPHERS="+suite, in+"TLS_CURVES=X25519,p-256",
		in+"PROXY_PROTOCOL=Any", in+"MAX_MESSAGE_AGE=10s", in+"MULTILINE=PRI")
	if err != nil {
		t.Fatal(err)
	}
	o := c.Inputs[0].listen(nil)
	if o.ProxyProtocol != listen.ProxyAny || o.Framing.Multiline != framing.MultilinePRI || o.MaxMessageAge != 10*time.Second {
		t.Errorf("%+v", o)
	}
	if o.TLS.ClientAuth != listen.ClientRequired || o.TLS.MinVersion != tls.VersionTLS12 || o.TLS.MaxVersion != tls.VersionTLS12 ||
		fmt.Sprint(o.TLS.ClientFingerprints) != "["+sha1+"]" || fmt.Sprint(o.TLS.ClientNames) != "[gw7.example 192.0.2.7]" ||
		!slices.Equal(o.TLS.CipherSuites, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}) || !slices.Equal(o.TLS.Curves, []tls.CurveID{tls.X25519, tls.CurveP256}) {
		t.Errorf("%+v", o.TLS)
	}
	for _, tt := range []struct{ file, secret, err string }{
		{"one\n", "one", ""},
		{"two", "two", ""}, // as it is when it is asked for
		{"\n", "", passphrase + " is empty: it should hold the secret"},
	} {
		write(tt.file)
		got, err := o.TLS.Passphrase()
		if string(got) != tt.secret || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("%q: %q, %v", tt.file, got, err)
		}
	}

	// Fingerprints are enough to believe a client.
	c, err = load(t, "SPILLWAY_INPUTS=tls", in+"TLS_CERT_FILE=/c", in+"TLS_KEY_FILE=/k", in+"TLS_KEY_PASSPHRASE=s3cret", in+"TLS_CLIENT_FINGERPRINTS="+sha1)
	if err != nil {
		t.Fatal(err)
	}
	o = c.Inputs[0].listen(nil)
	if got, err := o.TLS.Passphrase(); o.TLS.ClientAuth != listen.ClientRequired || string(got) != "s3cret" || err != nil {
		t.Errorf("%+v, passphrase %q, %v", o.TLS, got, err)
	}
}

// TestInputHTTP is about what a server of requests is told.
func TestInputHTTP(t *testing.T) {
	const in = "SPILLWAY_INPUT_HOOK_"
	c, err := load(t, "SPILLWAY_INPUTS=hook", in+"URL=https://:8088/a/b%20c", in+"TLS_CERT_FILE=/c", in+"TLS_KEY_FILE=/k", in+"TOKEN=s3cret", in+"MAX_MESSAGE_SIZE=1MiB",
		in+"MAX_CONNECTIONS=7", in+"IDLE_TIMEOUT=2m", in+"STORE_TIMEOUT=3s", in+"KEEPALIVE=0", in+"ALLOW=192.0.2.7")
	if err != nil || len(c.Notes) != 0 {
		t.Fatalf("%v, notes %q", err, c.Notes)
	}
	o := c.Inputs[0].listenHTTP(nil)
	token, err := o.Token()
	if string(token) != "s3cret" || err != nil {
		t.Errorf("token %q, %v", token, err)
	}
	o.Token = nil
	want := listen.HTTPOptions{Name: "hook", Variable: in, Address: "localhost:8088", Path: "/a/b c", TLS: c.Inputs[0].TLS, MaxMessageSize: 1 << 20, MaxConnections: 7, StoreTimeout: 3 * time.Second,
		IdleTimeout: 2 * time.Minute, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}
	if !reflect.DeepEqual(o, want) || o.TLS == nil {
		t.Errorf("%+v, want %+v", o, want)
	}

	// No token, and for localhost none is missed.
	c, err = load(t, "SPILLWAY_INPUTS=a,b", "SPILLWAY_INPUT_A_URL=http://:1", "SPILLWAY_INPUT_B_URL=http://[::1]:2", "SPILLWAY_INPUT_B_TOKEN=x")
	if err != nil || len(c.Notes) != 0 {
		t.Fatalf("%v, notes %q", err, c.Notes)
	}
	if o := c.Inputs[0].listenHTTP(nil); o.Token != nil || o.Path != "/" || o.StoreTimeout != 2*time.Second || o.TLS != nil {
		t.Errorf("%+v", o)
	}
}

func TestInputVault(t *testing.T) {
	c, err := load(t, "SPILLWAY_INPUTS=vault,tcp")
	if err != nil || len(c.Notes) != 0 {
		t.Fatalf("%v, notes %q", err, c.Notes)
	}
	in := c.Inputs[0]
	if in.Lane != "audit" || in.Framing != framing.Delimiter || in.MaxMessageSize != 64<<20 || in.Oversize != framing.Truncate || in.IdleTimeout != 0 || in.MaxMessageAge != 0 || in.SoRcvbuf != 64<<10 || in.Parse {
		t.Errorf("%+v", in)
	}
	if want := (pipeline.VaultOptions{Pairing: true, PairTimeout: 2 * time.Minute, Prefix: []byte{}}); !reflect.DeepEqual(*in.Vault, want) {
		t.Errorf("%+v, want %+v", *in.Vault, want)
	}
	if _, _, reserve, err := c.sizes(); err != nil || reserve == 0 || c.reserveOf("audit", reserve) != reserve || c.reserveOf("main", reserve) != 0 {
		t.Errorf("the lane's reserve is %d of %d, and %d of lane main: %v", c.reserveOf("audit", reserve), reserve, c.reserveOf("main", reserve), err)
	}
	if other := c.Inputs[1]; other.Vault != nil || other.Lane != "main" || other.SoRcvbuf != 0 {
		t.Errorf("%+v", other)
	}

	const set = "SPILLWAY_INPUT_VAULT_"
	c, err = load(t, "SPILLWAY_INPUTS=vault", set+"PREFIX=vault-a: ", set+"PAIRING=false", set+"PAIR_TIMEOUT=5m", set+"DEDUPE=true", set+"RAW_SECRETS=Drop", set+"LANE=main", set+"ON_FULL=block", set+"IDLE_TIMEOUT=1h", set+"URL=unix:///v")
	if err != nil || len(c.Notes) != 0 {
		t.Fatalf("%v, notes %q", err, c.Notes)
	}
	in = c.Inputs[0]
	if want := (pipeline.VaultOptions{PairTimeout: 5 * time.Minute, Prefix: []byte("vault-a: "), Dedupe: true, DropRaw: true}); !reflect.DeepEqual(*in.Vault, want) {
		t.Errorf("%+v, want %+v", *in.Vault, want)
	}
	if in.Lane != "main" || in.OnFull != pipeline.Block || in.IdleTimeout != time.Hour {
		t.Errorf("%+v", in)
	}
}

// TestVaultPrefix: a stream is cut at line ends, a request is not.
func TestVaultPrefix(t *testing.T) {
	const set = "SPILLWAY_INPUT_VAULT_"
	_, err := load(t, "SPILLWAY_INPUTS=vault", set+"PREFIX=a\nb")
	if want := set + `PREFIX="a\nb": has a line end in it, at which a stream is cut: choose another prefix for the audit device`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := load(t, "SPILLWAY_INPUTS=vault", set+"PREFIX=a\nb", set+"URL=http://:1"); err != nil {
		t.Error(err)
	}
}

func TestInputNotes(t *testing.T) {
	for _, tt := range []struct{ name, env, want string }{
		{"entries in datagrams", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_URL=udp://:1",
			`SPILLWAY_INPUT_A_URL="udp://:1": Vault can't send an entry that is larger than a datagram, its request fails then if it has no other device, and a datagram that gets lost is told by nobody: use tcp://, or unix:// on one host`},
		{"entries beside others", "SPILLWAY_INPUTS=vault,tcp SPILLWAY_INPUT_VAULT_LANE=main",
			`SPILLWAY_INPUT_VAULT_LANE="main": input tcp has the same lane: what is sent there can fill the buffer that Vault depends on; give one of them a lane of its own`},
		{"others beside entries", "SPILLWAY_INPUTS=vault,tcp SPILLWAY_INPUT_TCP_LANE=audit",
			`SPILLWAY_INPUT_VAULT_LANE="audit": input tcp has the same lane: what is sent there can fill the buffer that Vault depends on; give one of them a lane of its own`},
		{"impatience with silence", "SPILLWAY_INPUTS=vault SPILLWAY_INPUT_VAULT_IDLE_TIMEOUT=1h",
			`SPILLWAY_INPUT_VAULT_IDLE_TIMEOUT="1h": Vault never looks whether its connection was closed, so that each close costs the entry that it writes next: use 0`},
		{"connections that end first", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=http://:1 SPILLWAY_INPUT_A_IDLE_TIMEOUT=1m",
			`SPILLWAY_INPUT_A_IDLE_TIMEOUT="1m": a sender such as OpenBao keeps a connection for 1m30s after a request, and one that it sends just when the connection is closed fails: use more than that`},
		{"token in clear", "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL=http://192.0.2.1:1 SPILLWAY_INPUT_A_TOKEN=s3cret", `SPILLWAY_INPUT_A_TOKEN="***": whoever sees the network sees it: use an https:// URL`},
		{"no reserve", "SPILLWAY_INPUTS=vault SPILLWAY_BUFFER_RESERVE=0",
			`SPILLWAY_BUFFER_RESERVE="0": what connections still hold when an input with ON_FULL=refuse closes them may find no room then, and is lost: use 1MiB or more`},
		{"impatience", "SPILLWAY_INPUTS=vault SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT=30s",
			`SPILLWAY_INPUT_VAULT_PAIR_TIMEOUT="30s": a request may take 1m30s in Vault (default_max_request_duration): one that takes longer than this is told as lost; use more than that`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, strings.Fields(tt.env)...)
			if err != nil || !slices.Equal(c.Notes, []string{tt.want}) {
				t.Errorf("%v, notes\n%q, want\n%q", err, c.Notes, tt.want)
			}
		})
	}
}

func TestSeverity(t *testing.T) {
	for text, want := range map[string]int{"emerg": 0, "0": 0, "Panic": 0, "alert": 1, "critical": 2, "error": 3, "err": 3, "warn": 4, "WARNING": 4, "notice": 5, "informational": 6, "6": 6, "debug": 7, "8": -1, "-1": -1, "": -1, "06": -1} {
		if got := severity(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	c, err := load(t, "SPILLWAY_INPUTS=tcp", "SPILLWAY_INPUT_TCP_DROP_SEVERITY_ABOVE=notice", "SPILLWAY_INPUT_TCP_DROP_REGEX=^GET /health")
	if err != nil {
		t.Fatal(err)
	}
	if f := c.Inputs[0].Filter; f == nil || f.SeverityAbove != 5 || f.Drop.String() != "^GET /health" {
		t.Errorf("%+v", f)
	}
}

func TestInputProblems(t *testing.T) {
	const in = "SPILLWAY_INPUTS=a SPILLWAY_INPUT_A_URL="
	const pair = in + "tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c SPILLWAY_INPUT_A_TLS_KEY_FILE=k "
	const sha1 = "sha-1:00112233445566778899aabbccddeeff00112233"
	for _, tt := range []struct{ name, env, want string }{
		{"tls without a certificate", in + "tls://:1", `SPILLWAY_INPUT_A_TLS_CERT_FILE: not set: a tls input needs a certificate: name its PEM file`},
		{"tls without a key", in + "tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c", `SPILLWAY_INPUT_A_TLS_KEY_FILE: not set: a tls input needs the key of its certificate: name its PEM file`},
		{"certificate of a tcp input", in + "tcp://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c", `SPILLWAY_INPUT_A_TLS_CERT_FILE="c": changes nothing for a tcp input: remove it`},
		{"client auth without a CA", in + "tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c SPILLWAY_INPUT_A_TLS_KEY_FILE=k SPILLWAY_INPUT_A_TLS_CLIENT_AUTH=required",
			`SPILLWAY_INPUT_A_TLS_CLIENT_AUTH="required": needs SPILLWAY_INPUT_A_TLS_CLIENT_CA_FILE or SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS: without them no client could be believed`},
		{"CA without client auth", in + "tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c SPILLWAY_INPUT_A_TLS_KEY_FILE=k SPILLWAY_INPUT_A_TLS_CLIENT_AUTH=none SPILLWAY_INPUT_A_TLS_CLIENT_CA_FILE=ca",
			`SPILLWAY_INPUT_A_TLS_CLIENT_CA_FILE="ca": changes nothing with SPILLWAY_INPUT_A_TLS_CLIENT_AUTH=none: remove one of them`},
		{"fingerprints without client auth", pair + "SPILLWAY_INPUT_A_TLS_CLIENT_AUTH=none SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS=" + sha1,
			`SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS="` + sha1 + `": changes nothing with SPILLWAY_INPUT_A_TLS_CLIENT_AUTH=none: remove one of them`},
		{"fingerprint", pair + "SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS=" + sha1 + ",md5:AA",
			`SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS="` + sha1 + `,md5:AA": "md5:AA" is no fingerprint: write sha-256: or sha-1: and the hex pairs that openssl x509 -noout -fingerprint -sha256 prints`},
		{"names without a CA", pair + "SPILLWAY_INPUT_A_TLS_CLIENT_NAMES=gw.example SPILLWAY_INPUT_A_TLS_CLIENT_FINGERPRINTS=" + sha1,
			`SPILLWAY_INPUT_A_TLS_CLIENT_NAMES="gw.example": needs SPILLWAY_INPUT_A_TLS_CLIENT_CA_FILE: anybody can write a name into a certificate of his own`},
		{"no version left", pair + "SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.3 SPILLWAY_INPUT_A_TLS_MAX_VERSION=1.2",
			`SPILLWAY_INPUT_A_TLS_MAX_VERSION="1.2": below SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.3, so that no version is left: raise it, or lower that`},
		{"suites of 1.3", pair + "SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.3 SPILLWAY_INPUT_A_TLS_CIPHERS=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
			`SPILLWAY_INPUT_A_TLS_CIPHERS="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": changes nothing with SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.3, whose suites are fixed: remove one of them`},
		{"curve", pair + "SPILLWAY_INPUT_A_TLS_CURVES=P-192", `SPILLWAY_INPUT_A_TLS_CURVES="P-192": unknown "P-192": use X25519MLKEM768, X25519, P-256, P-384, P-521`},
		{"passphrase of a plain fd", in + "fd://x SPILLWAY_INPUT_A_TLS_KEY_PASSPHRASE=s3cret", `SPILLWAY_INPUT_A_TLS_KEY_PASSPHRASE="***": changes nothing without SPILLWAY_INPUT_A_TLS_CERT_FILE: set that, or remove it`},
		{"balancer of a local socket", in + "unix:///x SPILLWAY_INPUT_A_PROXY_PROTOCOL=v1", `SPILLWAY_INPUT_A_PROXY_PROTOCOL="v1": changes nothing for a unix input: remove it`},
		{"balancer", in + "tcp://:1 SPILLWAY_INPUT_A_PROXY_PROTOCOL=v3", `SPILLWAY_INPUT_A_PROXY_PROTOCOL="v3": unknown: use off, v1, v2 or any`},
		{"user of a tcp socket", in + "tcp://:1 SPILLWAY_INPUT_A_PEER_UID=root", `SPILLWAY_INPUT_A_PEER_UID="root": changes nothing for a tcp input: remove it`},
		{"user of datagrams", in + "unixgram:///x SPILLWAY_INPUT_A_PEER_UID=root", `SPILLWAY_INPUT_A_PEER_UID="root": changes nothing for a unixgram input, where each datagram is one message: remove it`},
		{"user", in + "unix:///x SPILLWAY_INPUT_A_PEER_UID=root,nosuch", `SPILLWAY_INPUT_A_PEER_UID="root,nosuch": user: unknown user nosuch: name users of this host, or give numbers`},
		{"age of packets", in + "unixpacket:///x SPILLWAY_INPUT_A_MAX_MESSAGE_AGE=1m", `SPILLWAY_INPUT_A_MAX_MESSAGE_AGE="1m": changes nothing for a unixpacket input, where each datagram is one message: remove it`},
		{"age", in + "tcp://:1 SPILLWAY_INPUT_A_MAX_MESSAGE_AGE=1ms", `SPILLWAY_INPUT_A_MAX_MESSAGE_AGE="1ms": out of bounds: use 1s or more, or 0 for never`},
		{"old TLS", in + "tls://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c SPILLWAY_INPUT_A_TLS_KEY_FILE=k SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.1", `SPILLWAY_INPUT_A_TLS_MIN_VERSION="1.1": unknown: use 1.2 or 1.3`},
		{"TLS options of a plain fd", in + "fd://x SPILLWAY_INPUT_A_TLS_MIN_VERSION=1.3", `SPILLWAY_INPUT_A_TLS_MIN_VERSION="1.3": changes nothing without SPILLWAY_INPUT_A_TLS_CERT_FILE: set that, or remove it`},
		{"two slashes", in + "unix://run/log", `SPILLWAY_INPUT_A_URL="unix://run/log": "run" stands where a host would: write three slashes, as in unix:///run/spillway/syslog.sock`},
		{"no path", in + "unixgram:///", `SPILLWAY_INPUT_A_URL="unixgram:///": names no socket: write it as in unixgram:///run/spillway/syslog.sock`},
		{"no name", in + "fd://", `SPILLWAY_INPUT_A_URL="fd://": names no socket: write FileDescriptorName= of its .socket unit, as in fd://syslog`},
		{"no ports", in + "ip://127.0.0.1", `SPILLWAY_INPUT_A_URL="ip://127.0.0.1": ip is no kind of input: use ` + kindsOfInputs},
		{"dataset", in + "tcp://:1 SPILLWAY_INPUT_A_DATASET=tcp-generic", `SPILLWAY_INPUT_A_DATASET="tcp-generic": dataset contains "-", which separates the parts of a data stream's name: use "_" or "."`},
		{"user in a URL", in + "http://u:p@h:1", `SPILLWAY_INPUT_A_URL="http://***@h:1": has a user in it: ask for a token instead, with SPILLWAY_INPUT_A_TOKEN_FILE`},
		{"query", in + "http://:1/a?b=c", `SPILLWAY_INPUT_A_URL="http://:1/a?***": has more than a host, a port and a path: write it as in http://localhost:8088/audit`},
		{"https without a certificate", in + "https://:1", `SPILLWAY_INPUT_A_TLS_CERT_FILE: not set: an https input needs a certificate: name its PEM file`},
		{"certificate of http", in + "http://:1 SPILLWAY_INPUT_A_TLS_CERT_FILE=c", `SPILLWAY_INPUT_A_TLS_CERT_FILE="c": changes nothing for an http input: remove it`},
		{"framing of requests", in + "http://:1 SPILLWAY_INPUT_A_FRAMING=nul",
			`SPILLWAY_INPUT_A_FRAMING="nul": changes nothing for an http input, where each request is a message, or each of its lines with Content-Type application/x-ndjson: remove it`},
		{"large requests", in + "http://:1 SPILLWAY_INPUT_A_OVERSIZE=split", `SPILLWAY_INPUT_A_OVERSIZE="split": changes nothing for an http input, which answers 413 to a larger message: remove it`},
		{"requests that wait", in + "http://:1 SPILLWAY_INPUT_A_ON_FULL=block", `SPILLWAY_INPUT_A_ON_FULL="block": changes nothing for an http input, which answers 503 as long as there is no room: remove it`},
		{"time to store", in + "http://:1 SPILLWAY_INPUT_A_STORE_TIMEOUT=0", `SPILLWAY_INPUT_A_STORE_TIMEOUT="0": out of bounds: use 10ms to 1m`},
		{"token of tcp", in + "tcp://:1 SPILLWAY_INPUT_A_TOKEN=s3cret", `SPILLWAY_INPUT_A_TOKEN="***": changes nothing for a tcp input: remove it`},
		{"mode", in + "unix:///x SPILLWAY_INPUT_A_SOCKET_MODE=888", `SPILLWAY_INPUT_A_SOCKET_MODE="888": no permission bits: write them as in 0660`},
		{"owner", in + "unix:///x SPILLWAY_INPUT_A_SOCKET_OWNER=nosuch", `SPILLWAY_INPUT_A_SOCKET_OWNER="nosuch": user: unknown user nosuch: name a user of this host, or give a number`},
		{"group", in + "unix:///x SPILLWAY_INPUT_A_SOCKET_GROUP=nosuch", `SPILLWAY_INPUT_A_SOCKET_GROUP="nosuch": group: unknown group nosuch: name a group of this host, or give a number`},
		{"mode of no file", in + "unix:///@x SPILLWAY_INPUT_A_SOCKET_MODE=0600", `SPILLWAY_INPUT_A_SOCKET_MODE="0600": changes nothing for an abstract socket, which is no file and open to every local program: remove it`},
		{"senders of a local socket", in + "unix:///x SPILLWAY_INPUT_A_ALLOW=::1", `SPILLWAY_INPUT_A_ALLOW="::1": changes nothing for a unix input: remove it`},
		{"no network", in + "tcp://:1 SPILLWAY_INPUT_A_ALLOW=10.0.0.0/33", `SPILLWAY_INPUT_A_ALLOW="10.0.0.0/33": "10.0.0.0/33" is neither an address nor a network: write them as in 192.0.2.7 and 10.0.0.0/8`},
		{"framing of packets", in + "unixpacket:///x SPILLWAY_INPUT_A_FRAMING=nul", `SPILLWAY_INPUT_A_FRAMING="nul": changes nothing for a unixpacket input, where each datagram is one message: remove it`},
		{"split packets", in + "unixpacket:///x SPILLWAY_INPUT_A_OVERSIZE=split", `SPILLWAY_INPUT_A_OVERSIZE="split": not for datagrams: use truncate or drop`},
		{"datagrams that refuse", in + "unixgram:///x SPILLWAY_INPUT_A_ON_FULL=refuse", `SPILLWAY_INPUT_A_ON_FULL="refuse": not for datagrams, whose senders would not notice: use drop or block`},
		{"prefix of no entry", in + "tcp://:1 SPILLWAY_INPUT_A_PREFIX=x", `SPILLWAY_INPUT_A_PREFIX="x": changes nothing without SPILLWAY_INPUT_A_PARSE=vault: set that, or remove it`},
		{"severity of entries", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE=info",
			`SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE="info": not with SPILLWAY_INPUT_A_PARSE=vault: no audit entry is dropped for what it says; remove it, and filter where records are read`},
		{"text of entries", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_DROP_REGEX=sys/health",
			`SPILLWAY_INPUT_A_DROP_REGEX="sys/health": not with SPILLWAY_INPUT_A_PARSE=vault: no audit entry is dropped for what it says; remove it, and filter where records are read`},
		{"raw secrets", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_RAW_SECRETS=hash", `SPILLWAY_INPUT_A_RAW_SECRETS="hash": unknown: use keep or drop`},
		{"pairs at once", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_PAIR_TIMEOUT=0", `SPILLWAY_INPUT_A_PAIR_TIMEOUT="0": out of bounds: use 1s or more`},
		{"zone of entries", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_TIMEZONE=UTC", `SPILLWAY_INPUT_A_TIMEZONE="UTC": changes nothing with SPILLWAY_INPUT_A_PARSE=vault: remove it`},
		{"raw entries", "SPILLWAY_INPUTS=vault SPILLWAY_ENCODING=raw",
			`SPILLWAY_INPUT_VAULT_PARSE="vault": not with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: use ndjson, or none here`},
		{"no severity", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE=loud", `SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE="loud": no severity: use emerg, alert, crit, err, warning, notice or info, or 0 to 6`},
		{"nothing less severe", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE=7",
			`SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE="7": changes nothing, as nothing is less severe: use info or a more severe one, or remove it`},
		{"severity of text", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=none SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE=info",
			`SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE="info": changes nothing with SPILLWAY_INPUT_A_PARSE=none, which reads no severity: remove it`},
		{"severity of raw lines", in + "tcp://:1 SPILLWAY_ENCODING=raw SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE=info",
			`SPILLWAY_INPUT_A_DROP_SEVERITY_ABOVE="info": changes nothing with SPILLWAY_ENCODING=raw, where a record is the message and nothing else: remove it`},
		{"no regular expression", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_REGEX=a(?=b)",
			`SPILLWAY_INPUT_A_DROP_REGEX="a(?=b)": invalid or unsupported Perl syntax at "(?=": write it as RE2 has it (https://github.com/google/re2/wiki/Syntax)`},
		{"all messages", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_REGEX=.*", `SPILLWAY_INPUT_A_DROP_REGEX=".*": is found in every message, so that no record is left: name what stands in those that are to go`},
		{"all messages with text", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_REGEX=(?s).", `SPILLWAY_INPUT_A_DROP_REGEX="(?s).": is found in every message, so that no record is left: name what stands in those that are to go`},
		{"all lines with text", in + "tcp://:1 SPILLWAY_INPUT_A_DROP_REGEX=^.+$", `SPILLWAY_INPUT_A_DROP_REGEX="^.+$": is found in every message, so that no record is left: name what stands in those that are to go`},
		{"lines of no lines", in + "tcp://:1 SPILLWAY_INPUT_A_FRAMING=jsonx SPILLWAY_INPUT_A_MULTILINE=pri", `SPILLWAY_INPUT_A_MULTILINE="pri": has no effect with SPILLWAY_INPUT_A_FRAMING=jsonx, which knows no lines: remove one of them`},
		{"delimiter of records", in + "tcp://:1 SPILLWAY_INPUT_A_FRAMING=jsonx SPILLWAY_INPUT_A_DELIMITER=x", `SPILLWAY_INPUT_A_DELIMITER="x": has no effect with SPILLWAY_INPUT_A_FRAMING=jsonx: remove one of them`},
		{"lines of entries", in + "tcp://:1 SPILLWAY_INPUT_A_PARSE=vault SPILLWAY_INPUT_A_MULTILINE=pri", `SPILLWAY_INPUT_A_MULTILINE="pri": not with SPILLWAY_INPUT_A_PARSE=vault, whose entries are one line: remove it`},
		{"lines of datagrams", in + "udp://:1 SPILLWAY_INPUT_A_MULTILINE=pri", `SPILLWAY_INPUT_A_MULTILINE="pri": changes nothing for a udp input, where each datagram is one message: remove it`},
		{"lines of what", in + "tcp://:1 SPILLWAY_INPUT_A_MULTILINE=regex", `SPILLWAY_INPUT_A_MULTILINE="regex": unknown multi-line rule: use off or pri`},
		{"keepalive", in + "tcp://:1 SPILLWAY_INPUT_A_KEEPALIVE=10ms", `SPILLWAY_INPUT_A_KEEPALIVE="10ms": out of bounds: use 1s or more, or 0 for never`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := load(t, strings.Fields(tt.env)...); err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

// TestHandedOver runs `spillway check` as systemd would start it, with sockets of three
// kinds.
func TestHandedOver(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "spillway")
	if err := os.Symlink(must(os.Executable())(t), binary); err != nil {
		t.Fatal(err)
	}
	tcp := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	udp := must(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	local := must(net.Listen("unix", filepath.Join(dir, "log.sock")))(t)
	var files []*os.File
	for _, s := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), udp.(*net.UDPConn), local.(*net.UnixListener)} {
		f := must(s.File())(t)
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	for _, c := range []io.Closer{tcp, udp, local} {
		t.Cleanup(func() { c.Close() })
	}
	const in = "SPILLWAY_INPUT_A_"
	for _, tt := range []struct {
		name, env string
		code      int
		want      string // on one of its lines
	}{
		{"tcp", in + "URL=fd://tcp " + in + "ON_FULL=refuse " + in + "FRAMING=nul", exitOK, "input a          fd 127.0.0.1:"},
		{"udp", in + "URL=fd://udp " + in + "ALLOW=::1", exitOK, "input a          fd 127.0.0.1:"},
		{"others are left", in + "URL=fd://udp", exitOK, "warning: LISTEN_FDNAMES: systemd handed over sockets called tcp and unix, which no input has, so that nobody reads what is sent there: set SPILLWAY_INPUT_<NAME>_URL=fd://tcp of an input, or stop the .socket unit"},
		{"unknown", in + "URL=fd://none", exitFailure, `SPILLWAY_INPUT_A_URL: no socket called "none" was handed over`},
		{"unix refuses", in + "URL=fd://unix " + in + "ON_FULL=refuse", exitUsage, in + `ON_FULL="refuse": can't close a unix socket that systemd holds open: use a unix:// URL, or block`},
		{"entries", in + "URL=fd://tcp " + in + "PARSE=vault", exitOK, "lane audit       "},
		{"entries over unix", in + "URL=fd://unix " + in + "PARSE=vault", exitOK, "warning: " + in + `ON_FULL="block": requests to Vault wait while the buffer is full, as a unix socket that systemd holds open can't be closed: use a unix:// URL, or say that it is meant`},
		{"udp refuses", in + "URL=fd://udp " + in + "ON_FULL=refuse", exitUsage, in + `ON_FULL="refuse": not for datagrams, whose senders would not notice: use drop or block`},
		{"framing of datagrams", in + "URL=fd://udp " + in + "FRAMING=nul", exitUsage, in + `FRAMING="nul": changes nothing for a udp socket of systemd's, where each datagram is one message: remove it`},
		{"connections of datagrams", in + "URL=fd://udp " + in + "MAX_CONNECTIONS=9", exitUsage, in + `MAX_CONNECTIONS="9": changes nothing for a udp socket of systemd's, where each datagram is one message: remove it`},
		{"idle datagrams", in + "URL=fd://udp " + in + "IDLE_TIMEOUT=9s", exitUsage, in + `IDLE_TIMEOUT="9s": changes nothing for a udp socket of systemd's, where each datagram is one message: remove it`},
		{"split datagrams", in + "URL=fd://udp " + in + "OVERSIZE=split", exitUsage, in + `OVERSIZE="split": not for datagrams: use truncate or drop`},
		{"senders of a local socket", in + "URL=fd://unix " + in + "ALLOW=::1", exitUsage, in + `ALLOW="::1": changes nothing for a unix socket of systemd's: remove it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" check`, binary)
			cmd.Env = append(strings.Fields(tt.env), "LISTEN_FDS=3", "LISTEN_FDNAMES=tcp:udp:unix", "SPILLWAY_INPUTS=a", "SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_STATE_DIR="+filepath.Join(dir, "state"))
			cmd.ExtraFiles = files
			out, _ := cmd.CombinedOutput()
			if !strings.Contains("\n"+string(out), "\n"+tt.want) || cmd.ProcessState.ExitCode() != tt.code {
				t.Errorf("exit code %d, want %d and %q in\n%s", cmd.ProcessState.ExitCode(), tt.code, tt.want, out)
			}
		})
	}
}

// must returns v, or ends the test with err.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
