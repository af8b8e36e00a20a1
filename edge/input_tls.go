package main

import (
	"crypto/tls"

	"spillway/edge/listen"
)

// tls checks the TLS options.
func (in *Input) tls(e *environment, under string) {
	const cert, key, ca, auth, version = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "TLS_CLIENT_AUTH", "TLS_MIN_VERSION"
	switch {
	case in.Scheme != "tls" && in.Scheme != "fd":
		return
	case in.Scheme == "fd" && in.TLSCertFile == "" && in.TLSKeyFile == "":
		for _, o := range []string{ca, auth, version} {
			e.idle(under+o, "changes nothing without %s: set that, or remove it", under+cert)
		}
		return
	case in.TLSCertFile == "":
		e.problem(under+cert, "not set: a tls input needs a certificate: name its PEM file")
	case in.TLSKeyFile == "":
		e.problem(under+key, "not set: a tls input needs the key of its certificate: name its PEM file")
	}
	o := &listen.TLSOptions{CertFile: in.TLSCertFile, KeyFile: in.TLSKeyFile, ClientCAFile: in.TLSClientCAFile, MinVersion: tls.VersionTLS12}
	if e.oneOf(under+version, in.TLSMinVersion, "1.2", "1.3") == "1.3" {
		o.MinVersion = tls.VersionTLS13
	}
	if in.TLSClientAuth == "" {
		if in.TLSClientCAFile != "" {
			o.ClientAuth = listen.ClientRequired
		}
	} else if err := o.ClientAuth.UnmarshalText([]byte(in.TLSClientAuth)); err != nil {
		e.problem(under+auth, "unknown: use none, optional or required")
	} else if o.ClientAuth != listen.ClientNone && in.TLSClientCAFile == "" {
		e.problem(under+auth, "needs %s: without it no client could be believed", under+ca)
	} else if o.ClientAuth == listen.ClientNone && in.TLSClientCAFile != "" {
		e.problem(under+ca, "changes nothing with %s=none: remove one of them", under+auth)
	}
	in.TLS = o
}
