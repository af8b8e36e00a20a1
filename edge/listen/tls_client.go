package listen

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Fingerprint is the hash of one certificate, RFC 5425 section 4.2.2. Its zero value is
// that of no certificate.
type Fingerprint struct {
	sum [sha256.Size]byte
	n   int // bytes of sum: sha1.Size or sha256.Size
}

// ParseFingerprint reads a fingerprint as RFC 5425 writes it: the name of the hash, a
// colon, and the bytes in hex with colons between them, as in sha-256:8F:00:…; sha256, hex
// without colons and what openssl x509 -fingerprint prints (sha256 Fingerprint=8F:00:…)
// will do, and the case does not matter.
func ParseFingerprint(text string) (f Fingerprint, err error) {
	name, digits, ok := strings.Cut(text, " Fingerprint=")
	if !ok {
		name, digits, ok = strings.Cut(text, ":")
	}
	name = strings.ToLower(strings.TrimSpace(name))
	switch name {
	case "sha-1", "sha1":
		f.n = sha1.Size
	case "sha-256", "sha256":
		f.n = sha256.Size
	default:
		ok = false
	}
	if !ok {
		return Fingerprint{}, fmt.Errorf("%q is no fingerprint: write sha-256: or sha-1: and the hex pairs that openssl x509 -noout -fingerprint -sha256 prints", text)
	}
	digits = strings.TrimSpace(digits)
	if strings.Contains(digits, ":") {
		for i := 2; i < len(digits); i += 3 {
			ok = ok && digits[i] == ':'
		}
		digits = strings.ReplaceAll(digits, ":", "")
	}
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != f.n {
		return Fingerprint{}, fmt.Errorf("%q is no fingerprint: a %s one has %d hex pairs with colons between them", text, name, f.n)
	}
	copy(f.sum[:], b)
	return f, nil
}

// FingerprintOf returns the SHA-256 fingerprint of c.
func FingerprintOf(c *x509.Certificate) Fingerprint {
	return Fingerprint{sum: sha256.Sum256(c.Raw), n: sha256.Size}
}

// String is the form of RFC 5425: sha-256:8F:00:…
func (f Fingerprint) String() string {
	name := "sha-256"
	if f.n == sha1.Size {
		name = "sha-1"
	}
	var b strings.Builder
	b.WriteString(name)
	for _, c := range f.sum[:f.n] {
		fmt.Fprintf(&b, ":%02X", c)
	}
	return b.String()
}

// of reports whether f is the fingerprint of c.
func (f Fingerprint) of(c *x509.Certificate) bool {
	if f.n == sha1.Size {
		sum := sha1.Sum(c.Raw)
		return bytes.Equal(f.sum[:f.n], sum[:])
	}
	return f == FingerprintOf(c)
}

// ClientName is a name or an address that a client's certificate may be for, RFC 5425
// section 5.2.
type ClientName struct {
	name string     // lower case, without a dot at its end; may begin with "*."
	addr netip.Addr // when valid it is an address, and name is ""
}

// ParseClientName reads a host name, of which the first label may be *, or an address.
func ParseClientName(text string) (ClientName, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return ClientName{addr: addr.Unmap()}, nil
	}
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	rest := strings.TrimPrefix(name, "*.")
	ok := rest != "" && len(name) <= 253
	for label := range strings.SplitSeq(rest, ".") {
		ok = ok && label != "" && len(label) <= 63
		for _, c := range []byte(label) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
		}
	}
	if !ok {
		return ClientName{}, fmt.Errorf("%q is neither a host name nor an address: write gw7.example.com, *.example.com (one label in place of the *; other letters as xn--…) or 192.0.2.7", text)
	}
	return ClientName{name: name}, nil
}

// String is how the name was written, in lower case.
func (n ClientName) String() string {
	if n.addr.IsValid() {
		return n.addr.String()
	}
	return n.name
}

// of reports whether n is a name of c: an address one of its iPAddress SANs, a name one
// of its dNSName SANs, and the common name only of a certificate without either.
func (n ClientName) of(c *x509.Certificate) bool {
	if n.addr.IsValid() {
		for _, ip := range c.IPAddresses {
			if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == n.addr {
				return true
			}
		}
		return false
	}
	for _, has := range namesOf(c) {
		if n.is(has) {
			return true
		}
	}
	return false
}

// namesOf are the host names that c is for.
func namesOf(c *x509.Certificate) []string {
	if len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 && c.Subject.CommonName != "" {
		return []string{c.Subject.CommonName}
	}
	return c.DNSNames
}

// is compares n with a name of a certificate. Either may begin with a *, which stands
// for one whole label.
func (n ClientName) is(has string) bool {
	has = strings.TrimSuffix(strings.ToLower(has), ".")
	if has == n.name {
		return true
	}
	under := func(pattern, name string) bool {
		domain, ok := strings.CutPrefix(pattern, "*.")
		first, rest, _ := strings.Cut(name, ".")
		return ok && rest == domain && first != "" && first != "*"
	}
	return under(n.name, has) || under(has, n.name)
}

// clientError is a client's certificate that is good, and not one of those that may send.
type clientError struct {
	cert     *x509.Certificate
	text     string
	variable string // that would have to name it
	value    string // as what
}

func (e *clientError) Error() string { return e.text }

// believe is called at the end of a handshake, when what the client showed is proved to
// be its own, and signed by a CA if there are some. What is set must all hold.
func (t *tlsFiles) believe(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil // optional, or crypto/tls had refused it
	}
	c := state.PeerCertificates[0]
	if fits(t.o.ClientFingerprints, c) {
		if fits(t.o.ClientNames, c) {
			return nil
		}
		names := strings.Join(namesOf(c), ",")
		for _, ip := range c.IPAddresses {
			names = strings.TrimPrefix(names+","+ip.String(), ",")
		}
		return &clientError{c, "the certificate is for none of the names that may send", "TLS_CLIENT_NAMES", names}
	}
	return &clientError{c, "the certificate is none of those that may send", "TLS_CLIENT_FINGERPRINTS", FingerprintOf(c).String()}
}

// fits reports whether one of all, if there are any, fits c.
func fits[T interface{ of(*x509.Certificate) bool }](all []T, c *x509.Certificate) bool {
	for _, x := range all {
		if x.of(c) {
			return true
		}
	}
	return len(all) == 0
}
