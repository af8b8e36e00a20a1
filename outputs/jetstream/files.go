package jetstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// kept is what one option's file holds. It is read whenever it is asked for; while
// the file can't be used (it is being replaced, say: a certificate is there and its
// key is not yet) the last content that could be is.
//
// Safe for concurrent use.
type kept[T any] struct {
	variable string // that names the file
	read     func() (T, error)
	log      *slog.Logger

	mu sync.Mutex
	// guarded by mu
	value T
	told  string // the last error that was logged: each is once
}

// reload reads the file. Its error begins with the variable, and leaves the value.
func (k *kept[T]) reload() error {
	v, err := k.read()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", k.variable, err)
	}
	k.value, k.told = v, ""
	return nil
}

// now reads the file and returns what is to be used.
func (k *kept[T]) now() T {
	err := k.reload()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && err.Error() != k.told {
		k.told = err.Error()
		k.log.Warn("a file can't be used; what it held before stays in use", "error", err)
	}
	return k.value
}

// last returns what now returned last.
func (k *kept[T]) last() T {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.value
}

// files are the files that options name, and nats.go's options that use them.
type files struct {
	options []nats.Option
	all     []interface{ reload() error }
}

func keep[T any](f *files, variable string, log *slog.Logger, read func() (T, error)) (*kept[T], error) {
	k := &kept[T]{variable: variable, read: read, log: log}
	f.all = append(f.all, k)
	return k, k.reload()
}

// files reads all files once. variable returns the full name of an option.
func (c *Config) files(variable func(option string) string, log *slog.Logger) (*files, error) {
	f := &files{}
	var errs []error
	if c.CredsFile != "" {
		k, err := keep(f, variable("CREDS_FILE"), log, c.credentials)
		errs = append(errs, err)
		f.options = append(f.options, nats.UserJWT(
			func() (string, error) { return k.now().jwt, nil },
			func(nonce []byte) ([]byte, error) { return sign(k.last().seed, nonce) })) // the one that goes with the JWT
	}
	if c.NkeyFile != "" {
		seed, err := c.seed()
		user, _ := publicKey(seed)
		errs = append(errs, err)
		k, err := keep(f, variable("NKEY_FILE"), log, func() ([]byte, error) {
			seed, err := c.seed()
			if now, _ := publicKey(seed); err == nil && now != user {
				err = fmt.Errorf("%s holds the seed of another user (%s, not %s): restart to be that one", c.NkeyFile, now, user)
			}
			return seed, err
		})
		errs = append(errs, err)
		f.options = append(f.options, nats.Nkey(user, func(nonce []byte) ([]byte, error) { return sign(k.now(), nonce) }))
	}
	switch {
	case c.PasswordFile != "":
		k, err := keep(f, variable("PASSWORD_FILE"), log, func() (string, error) { return line(c.PasswordFile) })
		errs = append(errs, err)
		f.options = append(f.options, nats.UserInfoHandler(func() (user, password string) { return c.User, k.now() }))
	case c.User != "":
		f.options = append(f.options, nats.UserInfo(c.User, c.Password))
	}
	switch {
	case c.TokenFile != "":
		k, err := keep(f, variable("TOKEN_FILE"), log, func() (string, error) { return line(c.TokenFile) })
		errs = append(errs, err)
		f.options = append(f.options, nats.TokenHandler(k.now))
	case c.Token != "":
		f.options = append(f.options, nats.Token(c.Token))
	}
	var cert nats.TLSCertHandler
	var roots nats.RootCAsHandler
	if c.TLSCertFile != "" {
		k, err := keep(f, variable("TLS_CERT_FILE"), log, c.certificate)
		errs = append(errs, err)
		cert = func() (tls.Certificate, error) { return k.now(), nil }
	}
	if c.TLSCAFile != "" {
		k, err := keep(f, variable("TLS_CA_FILE"), log, c.roots)
		errs = append(errs, err)
		roots = func() (*x509.CertPool, error) { return k.now(), nil }
	}
	switch {
	case cert != nil || roots != nil:
		f.options = append(f.options, nats.ClientTLSConfig(cert, roots))
	case c.secure():
		f.options = append(f.options, nats.Secure())
	}
	if c.TLSFirst {
		f.options = append(f.options, nats.TLSHandshakeFirst())
	}
	return f, errors.Join(errs...)
}

// creds is what a file of credentials holds: a user's JWT, and the seed of the key
// that it is for.
type creds struct {
	jwt  string
	seed []byte
}

func (c *Config) credentials() (creds, error) {
	text, err := read(c.CredsFile)
	if err != nil {
		return creds{}, err
	}
	jwt, err1 := nkeys.ParseDecoratedJWT(text)
	key, err2 := nkeys.ParseDecoratedUserNKey(text)
	if err := errors.Join(err1, err2); err != nil {
		return creds{}, fmt.Errorf("%s holds no JWT and seed of a user: make one with `nsc generate creds`", c.CredsFile)
	}
	seed, err := key.Seed()
	return creds{jwt, seed}, err
}

func (c *Config) seed() ([]byte, error) {
	text, err := read(c.NkeyFile)
	if err != nil {
		return nil, err
	}
	if key, err := nkeys.ParseDecoratedUserNKey(text); err == nil {
		return key.Seed()
	}
	return nil, fmt.Errorf("%s holds no seed of a user: make one with `nk -gen user`", c.NkeyFile)
}

// publicKey is how a server knows the user of a seed.
func publicKey(seed []byte) (string, error) {
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return "", err
	}
	return key.PublicKey()
}

func sign(seed, nonce []byte) ([]byte, error) {
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return key.Sign(nonce)
}

// line returns the content of a file that holds a secret, without the line feed at
// its end.
func line(path string) (string, error) {
	text, err := read(path)
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty: it should hold the secret", path)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), err
}

func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		err = fmt.Errorf("%w: name a file that this user may read", err)
	}
	return text, err
}
