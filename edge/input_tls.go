package main

import (
	"crypto/tls"

	"spillway/edge/listen"
)

// tls checks the TLS options.
func (in *Input) tls(e *environment, under string) {
	const cert, key, passphrase, ca, auth = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_KEY_PASSPHRASE", "TLS_CLIENT_CA_FILE", "TLS_CLIENT_AUTH"
	const fingerprints, names, minVersion, maxVersion, ciphers, curves = "TLS_CLIENT_FINGERPRINTS", "TLS_CLIENT_NAMES", "TLS_MIN_VERSION", "TLS_MAX_VERSION", "TLS_CIPHERS", "TLS_CURVES"
	switch {
	case in.Scheme != "tls" && in.Scheme != "https" && in.Scheme != "fd":
		return
	case in.Scheme == "fd" && in.TLSCertFile == "" && in.TLSKeyFile == "":
		for _, o := range ofTLS {
			if o != cert && o != key {
				e.idle(under+o, "changes nothing without %s: set that, or remove it", under+cert)
			}
		}
		return
	case in.TLSCertFile == "":
		e.problem(under+cert, "not set: %s needs a certificate: name its PEM file", in.what())
	case in.TLSKeyFile == "":
		e.problem(under+key, "not set: %s needs the key of its certificate: name its PEM file", in.what())
	}
	o := &listen.TLSOptions{CertFile: in.TLSCertFile, KeyFile: in.TLSKeyFile, ClientCAFile: in.TLSClientCAFile}
	if in.TLSKeyPassphrase != "" {
		o.Passphrase, o.PassphraseFile = secret(in.TLSKeyPassphrase, in.TLSKeyPassphraseFile), in.TLSKeyPassphraseFile
	}
	o.ClientFingerprints = each(e, under+fingerprints, in.TLSClientFingerprints, listen.ParseFingerprint)
	o.ClientNames = each(e, under+names, in.TLSClientNames, listen.ParseClientName)
	o.Curves = each(e, under+curves, in.TLSCurves, listen.ParseCurve)
	o.CipherSuites = each(e, under+ciphers, in.TLSCiphers, func(name string) (uint16, error) {
		id, _, err := listen.ParseCipherSuite(name) // an insecure one is told when the sockets are opened
		return id, err
	})

	o.MinVersion = tls.VersionTLS12
	if e.oneOf(under+minVersion, in.TLSMinVersion, "1.2", "1.3") == "1.3" {
		o.MinVersion = tls.VersionTLS13
		e.idle(under+ciphers, "changes nothing with %s=1.3, whose suites are fixed: remove one of them", under+minVersion)
	}
	if in.TLSMaxVersion != "" && e.oneOf(under+maxVersion, in.TLSMaxVersion, "1.2", "1.3") == "1.2" {
		o.MaxVersion = tls.VersionTLS12
		if o.MinVersion > o.MaxVersion {
			e.problem(under+maxVersion, "below %s=1.3, so that no version is left: raise it, or lower that", under+minVersion)
		}
	}

	believed := in.TLSClientCAFile != "" || len(in.TLSClientFingerprints) > 0
	if in.TLSClientAuth == "" {
		if believed {
			o.ClientAuth = listen.ClientRequired
		}
	} else if err := o.ClientAuth.UnmarshalText([]byte(in.TLSClientAuth)); err != nil {
		e.problem(under+auth, "unknown: use none, optional or required")
	} else if o.ClientAuth != listen.ClientNone && !believed {
		e.problem(under+auth, "needs %s or %s: without them no client could be believed", under+ca, under+fingerprints)
	} else if o.ClientAuth == listen.ClientNone {
		for _, of := range []string{ca, fingerprints, names} {
			e.idle(under+of, "changes nothing with %s=none: remove one of them", under+auth)
		}
	}
	if len(in.TLSClientNames) > 0 && in.TLSClientCAFile == "" {
		e.problem(under+names, "needs %s: anybody can write a name into a certificate of his own", under+ca)
	}
	in.TLS = o
}

// ofTLS are the options of inputs with TLS.
var ofTLS = []string{"TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_KEY_PASSPHRASE", "TLS_KEY_PASSPHRASE_FILE", "TLS_CLIENT_CA_FILE", "TLS_CLIENT_AUTH",
	"TLS_CLIENT_FINGERPRINTS", "TLS_CLIENT_NAMES", "TLS_MIN_VERSION", "TLS_MAX_VERSION", "TLS_CIPHERS", "TLS_CURVES"}
