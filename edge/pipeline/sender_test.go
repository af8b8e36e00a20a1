package pipeline

import (
	"crypto/x509"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spillway/edge/listen"
	"spillway/framing/ecs"
)

// What is known of a connection is in its records, and only in its.
func TestSender(t *testing.T) {
	l := &Lane{}
	in := NewInput(InputOptions{Name: "tls", Lane: l, Records: ecs.Options{Dataset: "tcp.generic", Agent: "a", InputType: "tcp"}})
	s := in.Open().(*sink)
	addr := netip.MustParseAddrPort("192.0.2.7:44214")
	client := &x509.Certificate{Raw: []byte("x"), SerialNumber: big.NewInt(10)}
	secure := listen.Sender{Addr: addr, Conn: &listen.Conn{TLS: &listen.TLSFacts{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Client: client}}}
	behind := listen.Sender{Addr: addr, Conn: &listen.Conn{Proxy: netip.MustParseAddrPort("10.0.0.5:1")}}
	for _, tt := range []struct {
		from     listen.Sender
		has, not []string
	}{
		{secure, []string{`"tls":{"version":"1.3",`, `"serial_number":"0A"`}, []string{`"nat"`}},
		{behind, []string{`"nat":{"ip":"10.0.0.5","port":1}`}, []string{`"tls"`}},
		{listen.Sender{Addr: addr}, []string{`"source":{"address":"192.0.2.7"`}, []string{`"tls"`, `"nat"`}},
		{secure, []string{`"tls":{"version":"1.3",`}, nil},
	} {
		s.setSender(tt.from)
		got := string(s.append(nil, msg("x"), time.Now()))
		for _, want := range tt.has {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in %s", want, got)
			}
		}
		for _, no := range tt.not {
			if strings.Contains(got, no) {
				t.Errorf("%s in %s", no, got)
			}
		}
	}

	// What a certificate says is made once for its connection, also for other sinks.
	told := secure.Conn.Told
	other := in.Open().(*sink)
	other.setSender(secure)
	if told == nil || secure.Conn.Told != told {
		t.Error("made again")
	}
	if n := testing.AllocsPerRun(100, func() { s.setSender(behind); s.setSender(secure) }); n != 0 {
		t.Errorf("%v allocations for two changes of the connection", n)
	}
}
