package ecs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"spillway/framing"
)

// certificate signs c itself, so that it is one that a peer could show.
func certificate(t testing.TB, c *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.NotBefore = time.Date(2026, 1, 1, 1, 0, 0, 0, time.FixedZone("", 3600))
	c.NotAfter = c.NotBefore.AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTLS(t *testing.T) {
	spiffe, err := url.Parse("spiffe://example.com/gw7")
	if err != nil {
		t.Fatal(err)
	}
	full := certificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{CommonName: `gw "7"`, Organization: []string{"Example"}},
		DNSNames: []string{"gw7.example.com", "*.gw.example.com"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7), net.ParseIP("2001:db8::7")},
		EmailAddresses: []string{"root@example.com"}, URIs: []*url.URL{spiffe},
	})
	bare := certificate(t, &x509.Certificate{SerialNumber: big.NewInt(0x12345)})
	hash := func(c *x509.Certificate) string { return fmt.Sprintf("%X", sha256.Sum256(c.Raw)) }
	for _, tt := range []struct {
		name string
		tls  *TLS
		want string
	}{
		{"no client certificate", NewTLS("1.3", "TLS_AES_128_GCM_SHA256", nil),
			`{"version":"1.3","version_protocol":"tls","cipher":"TLS_AES_128_GCM_SHA256","established":true}`},
		{"all of a certificate", NewTLS("1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", full),
			`{"version":"1.2","version_protocol":"tls","cipher":"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256","established":true,` +
				`"client":{"subject":"CN=gw \\\"7\\\",O=Example","issuer":"CN=gw \\\"7\\\",O=Example","not_before":"2026-01-01T00:00:00Z","not_after":"2027-01-01T00:00:00Z",` +
				`"hash":{"sha256":"` + hash(full) + `"},"x509":{"subject":{"common_name":"gw \"7\""},"serial_number":"0ABC",` +
				`"alternative_names":["gw7.example.com","*.gw.example.com","192.0.2.7","2001:db8::7","root@example.com","spiffe://example.com/gw7"]}}}`},
		{"a certificate that says nothing", NewTLS("1.3", "TLS_AES_128_GCM_SHA256", bare),
			`{"version":"1.3","version_protocol":"tls","cipher":"TLS_AES_128_GCM_SHA256","established":true,` +
				`"client":{"subject":"","issuer":"","not_before":"2026-01-01T00:00:00Z","not_after":"2027-01-01T00:00:00Z",` +
				`"hash":{"sha256":"` + hash(bare) + `"},"x509":{"serial_number":"012345"}}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := encoder(t, options, Source{Addr: sender.Addr, TLS: tt.tls})
			got := string(line(e, framing.Message{Data: []byte("x")}, nil))
			if !strings.Contains(got, `"port":44214},"tls":`+tt.want+`,"message":"x"`) {
				t.Errorf("%s\nhas no %s", got, tt.want)
			}
			if _, err := decode([]byte(got)); err != nil {
				t.Errorf("%v: %s", err, got)
			}
		})
	}
}

// What a certificate says goes into every record: it must not be much, and nothing but
// JSON.
func TestTLSHostile(t *testing.T) {
	c := &x509.Certificate{Raw: []byte("x"), SerialNumber: big.NewInt(0), Subject: pkix.Name{CommonName: strings.Repeat("\x00", 1<<20)}}
	c.Issuer.CommonName = strings.Repeat("ä", 1000)
	for range 1000 {
		c.DNSNames = append(c.DNSNames, strings.Repeat("\xff\"\\\n", 1000))
	}
	e := encoder(t, options, Source{Addr: sender.Addr, TLS: NewTLS("1.3", "x", c)})
	got := line(e, framing.Message{Data: []byte("x")}, nil)
	if _, err := decode(got); err != nil {
		t.Error(err)
	}
	if len(got) > (maxNames+4)*maxText*6 {
		t.Errorf("%d bytes", len(got))
	}
	// A text is cut between characters.
	if want := `"issuer":"CN=` + strings.Repeat("ä", (maxText-len("CN="))/2) + `"`; !strings.Contains(string(got), want) {
		t.Error("the issuer is not cut between characters")
	}
}

func TestProxy(t *testing.T) {
	for _, tt := range []struct{ proxy, want string }{
		{"10.0.0.5:50422", `"source":{"address":"192.0.2.7","ip":"192.0.2.7","port":44214,"nat":{"ip":"10.0.0.5","port":50422}}`},
		{"[::ffff:10.0.0.5]:1", `"source":{"address":"192.0.2.7","ip":"192.0.2.7","port":44214,"nat":{"ip":"10.0.0.5","port":1}}`},
		{"[fe80::1%eth0]:1", `"source":{"address":"192.0.2.7","ip":"192.0.2.7","port":44214,"nat":{"ip":"fe80::1","port":1}}`},
	} {
		e := encoder(t, options, Source{Addr: sender.Addr, Proxy: netip.MustParseAddrPort(tt.proxy)})
		got := string(line(e, framing.Message{Data: []byte("x")}, nil))
		if !strings.Contains(got, tt.want) || !strings.Contains(got, `"log":{"source":{"address":"192.0.2.7:44214"}}`) {
			t.Errorf("%s: %s", tt.proxy, got)
		}
	}
	// It does not stay when the next sender came without.
	e := encoder(t, options, Source{Addr: sender.Addr, Proxy: netip.MustParseAddrPort("10.0.0.5:1"), TLS: NewTLS("1.3", "x", nil)})
	e.SetSource(sender)
	if got, want := line(e, framing.Message{Data: []byte("x")}, nil), line(encoder(t, options, sender), framing.Message{Data: []byte("x")}, nil); string(got) != string(want) {
		t.Errorf("%s, want %s", got, want)
	}
}

// twoTLS are connections that take turns.
func twoTLS(t testing.TB) (all [2]Source) {
	c := certificate(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw7"}, DNSNames: []string{"gw7.example.com"}})
	for i := range all {
		all[i] = Source{Addr: netip.AddrPortFrom(sender.Addr.Addr(), uint16(i+1)), TLS: NewTLS("1.3", "TLS_AES_128_GCM_SHA256", c)}
	}
	return all
}

func TestSetSourceAllocs(t *testing.T) {
	all := twoTLS(t)
	e := encoder(t, options, all[0])
	e.SetSource(all[1])
	if n := testing.AllocsPerRun(100, func() {
		for _, s := range all {
			e.SetSource(s)
		}
	}); n != 0 {
		t.Errorf("%v allocations for two changes of the connection", n)
	}
}

func BenchmarkSetSourceTLS(b *testing.B) {
	all := twoTLS(b)
	e := encoder(b, options, all[0])
	b.ReportAllocs()
	for i := range b.N {
		e.SetSource(all[i%2])
	}
}
