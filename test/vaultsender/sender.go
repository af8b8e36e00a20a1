// Package vaultsender sends audit entries as Vault and OpenBao do, failures
// included: Sender as their socket device does, HTTP as OpenBao's http device.
package vaultsender

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// WriteTimeout is the default of the device's write_timeout: for one dial and for
// one write, so one entry may take three times as long.
const WriteTimeout = 2 * time.Second

// Sender is the socket device of Vault 1.21 (internal/observability/event) and of
// OpenBao, which do the same: it dials at the first write, writes with a deadline,
// and on any error closes, dials and writes the entry once more, whole; then the
// entry has failed. It never reads, so it never sees that the other side closed. A
// connection whose second write failed stays until the next entry fails on it.
// Safe for concurrent use: one mutex is held for all of this, as Vault holds it.
type Sender struct {
	Network, Address string        // of net.Dial: tcp, udp, unix, unixgram, …
	Timeout          time.Duration // 0: WriteTimeout

	mu sync.Mutex
	// guarded by mu
	conn  net.Conn
	dials int
	sent  []Sent
}

// Sent is what became of one entry.
type Sent struct {
	At   time.Time     // when Write was called
	Took time.Duration // until it returned: others that waited before it included
	Held time.Duration // how long it alone held the device
	Err  error         // nil: accepted, which says that the kernel took it
}

// Write sends one entry, which ends as the device's format has it: a JSON entry
// with a line feed, a jsonx one with nothing.
func (s *Sender) Write(entry []byte) error {
	begin := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	held := time.Now()
	err := s.write(entry)
	if err != nil {
		again := s.close()
		if again == nil {
			again = s.write(entry)
		}
		if again == nil {
			err = nil
		} else {
			err = fmt.Errorf("%w; once more: %w", err, again)
		}
	}
	s.sent = append(s.sent, Sent{At: begin, Took: time.Since(begin), Held: time.Since(held), Err: err})
	return err
}

func (s *Sender) timeout() time.Duration {
	if s.Timeout == 0 {
		return WriteTimeout
	}
	return s.Timeout
}

func (s *Sender) write(entry []byte) error {
	if s.conn == nil {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout())
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, s.Network, s.Address)
		if err != nil {
			return err
		}
		s.conn = c
		s.dials++
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout())); err != nil {
		return err
	}
	_, err := s.conn.Write(entry)
	return err
}

func (s *Sender) close() error {
	if s.conn == nil {
		return nil
	}
	if err := s.conn.Close(); err != nil {
		return err
	}
	s.conn = nil
	return nil
}

// Close is the end of the sender's process.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.close()
}

// Sent returns what became of all entries so far, in the order in which they were
// written. It shares nothing with the sender.
func (s *Sender) Sent() []Sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Sent(nil), s.sent...)
}

// Dials is how many connections were made.
func (s *Sender) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// HTTP is the http device of OpenBao (internal/builtin/audit/http): one POST for
// each entry, by http.DefaultClient and so without a time limit of its own; a status
// below 300 is success, and nothing is tried again. Safe for concurrent use.
type HTTP struct {
	URL    string
	Header http.Header // of each request; not changed
}

// Write sends one entry and waits for the answer. ctx is that of the operation which
// is audited.
func (h *HTTP) Write(ctx context.Context, entry []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(entry))
	if err != nil {
		return err
	}
	if h.Header != nil {
		r.Header = h.Header.Clone()
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 200)) // says more than the status; the device does not read it
	if err := answer.Body.Close(); err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s: %s", answer.Status, bytes.TrimSpace(text))
	}
	return nil
}
