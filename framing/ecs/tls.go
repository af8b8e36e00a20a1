package ecs

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"
	"unicode/utf8"
)

// A peer chooses what its certificate says, and every record repeats it: more names
// than maxNames are left out, and a text is cut at maxText bytes.
const (
	maxNames = 16
	maxText  = 512
)

// TLS is how a connection is secured, in the form in which its records tell it. What
// stands in [ ] is of a client that showed a certificate:
//
//	"tls":{"version":"1.3","version_protocol":"tls","cipher":"TLS_AES_128_GCM_SHA256",
//	       "established":true
//	       [,"client":{"subject":"CN=gw7,O=Example","issuer":"CN=Example CA",
//	                   "not_before":"2026-01-01T00:00:00Z","not_after":"2027-01-01T00:00:00Z",
//	                   "hash":{"sha256":"8F00…"},
//	                   "x509":{["subject":{"common_name":"gw7"},]"serial_number":"0ABC"
//	                           [,"alternative_names":["gw7.example.com","192.0.2.7"]]}}]}
//
// It is not changed after NewTLS, and safe for concurrent use.
type TLS struct{ member []byte }

// NewTLS makes it of a finished handshake: version is 1.2 or 1.3, cipher the IANA name
// of the suite, client what the client showed, or nil. Made once for a connection, it
// costs its records a copy.
func NewTLS(version, cipher string, client *x509.Certificate) *TLS {
	b := append([]byte(nil), `,"tls":{"version":"`...)
	b = appendShort(b, version)
	b = append(b, `","version_protocol":"tls","cipher":"`...)
	b = appendShort(b, cipher)
	b = append(b, `","established":true`...)
	if client != nil {
		b = append(b, `,"client":{"subject":"`...)
		b = appendShort(b, client.Subject.String())
		b = append(b, `","issuer":"`...)
		b = appendShort(b, client.Issuer.String())
		b = append(b, `","not_before":"`...)
		b = client.NotBefore.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, `","not_after":"`...)
		b = client.NotAfter.UTC().AppendFormat(b, time.RFC3339)
		b = fmt.Appendf(b, `","hash":{"sha256":"%X"},"x509":{`, sha256.Sum256(client.Raw))
		if cn := client.Subject.CommonName; cn != "" {
			b = append(b, `"subject":{"common_name":"`...)
			b = appendShort(b, cn)
			b = append(b, `"},`...)
		}
		b = fmt.Appendf(b, `"serial_number":"%X"`, client.SerialNumber.Bytes())
		if names := namesOf(client); len(names) > 0 {
			b = append(b, `,"alternative_names":[`...)
			for i, name := range names {
				if i > 0 {
					b = append(b, ',')
				}
				b = append(b, '"')
				b = appendShort(b, name)
				b = append(b, '"')
			}
			b = append(b, ']')
		}
		b = append(b, `}}`...)
	}
	return &TLS{append(b, '}')}
}

// namesOf are the first maxNames names and addresses that c is for.
func namesOf(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	names = append(names, c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return names[:min(len(names), maxNames)]
}

// appendShort is appendText of at most maxText bytes of s, whole characters.
func appendShort(dst []byte, s string) []byte {
	if len(s) > maxText {
		n := maxText
		for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	dst, _ = appendText(dst, []byte(s))
	return dst
}
