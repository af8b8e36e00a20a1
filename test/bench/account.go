package bench

import (
	"bytes"
	"fmt"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// account is which messages have arrived. One goroutine feeds it; once and twice
// may be read by others meanwhile.
type account struct {
	seen    [][]uint64 // a bit for each message, by connection
	once    atomic.Int64
	twice   atomic.Int64
	unknown atomic.Int64          // marks that nobody sent
	bytes   atomic.Int64          // of payloads, as they came
	err     atomic.Pointer[error] // the last that payload met
	decoder *zstd.Decoder
	text    []byte
}

// newAccount expects n messages on each of conns connections.
func newAccount(conns, n int) *account {
	a := &account{}
	for range conns {
		a.seen = append(a.seen, make([]uint64, n/64+1))
	}
	a.decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	return a
}

// payload takes what was stored as one message or object: zstd frames, or lines.
func (a *account) payload(p []byte) {
	a.bytes.Add(int64(len(p)))
	if !bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}) { // RFC 8878 section 3.1.1
		a.lines(p)
		return
	}
	text, err := a.decoder.DecodeAll(p, a.text[:0])
	if err != nil {
		err = fmt.Errorf("decompress what was stored: %w", err)
		a.err.Store(&err)
		return
	}
	a.text = text
	a.lines(text)
}

// fault tells of messages that came twice, or from nobody, or can't be read.
func (a *account) fault() error {
	if err := a.err.Load(); err != nil {
		return *err
	}
	if twice, unknown := a.twice.Load(), a.unknown.Load(); twice+unknown > 0 {
		return fmt.Errorf("%d messages came twice, %d are of nobody", twice, unknown)
	}
	return nil
}

// lines notes every mark in b, which holds whole messages.
func (a *account) lines(b []byte) {
	var once, twice int64
	for {
		i := bytes.IndexByte(b, '~')
		if i < 0 || len(b)-i < markLen {
			break
		}
		conn, n, ok := parseMark(b[i:])
		if !ok {
			b = b[i+1:]
			continue
		}
		b = b[i+markLen:]
		if conn >= len(a.seen) || n/64 >= len(a.seen[conn]) {
			a.unknown.Add(1)
		} else if word, bit := &a.seen[conn][n/64], uint64(1)<<(n%64); *word&bit != 0 {
			twice++
		} else {
			*word |= bit
			once++
		}
	}
	a.twice.Add(twice)
	a.once.Add(once)
}

func parseMark(b []byte) (conn, n int, ok bool) {
	for _, c := range b[1 : markLen-1] {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n / 1e9, n % 1e9, b[markLen-1] == '~'
}
