package batch

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Errors of Check.
var (
	ErrChecksum = errors.New("payload does not match its CRC32C")
	ErrSum      = errors.New("payload does not match its SHA-256")
)

// Check compares b's payload with its header: length, CRC32C and SHA-256.
func (b *Batch) Check() error {
	if len(b.Payload) != int(b.Length) || CRC32C(b.Payload) != b.CRC {
		return ErrChecksum
	}
	if sha256.Sum256(b.Payload) != b.Sum {
		return ErrSum
	}
	return nil
}

// Inspect decompresses b's payload and compares what it holds with the header: bytes,
// lines, and a line end at its end. It reads no further than the header says, and its
// memory is bounded by the decoder's window: a payload that promises or yields more
// is an error and costs nothing.
func (b *Batch) Inspect() error {
	r, err := b.open()
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	defer r.Close()
	var bytesRead, lines uint64
	last := byte('\n')
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Read(buf)
		bytesRead += uint64(n)
		lines += uint64(bytes.Count(buf[:n], []byte{'\n'}))
		if n > 0 {
			last = buf[n-1]
		}
		switch {
		case bytesRead > uint64(b.Raw):
			return fmt.Errorf("it holds more than the %d bytes that its header says", b.Raw)
		case err == io.EOF:
			if bytesRead != uint64(b.Raw) || lines != uint64(b.Count) || last != '\n' {
				return fmt.Errorf("it holds %d bytes and %d line ends, and its header says %d bytes and %d records", bytesRead, lines, b.Raw, b.Count)
			}
			return nil
		case err != nil:
			return fmt.Errorf("decompress: %w", err)
		}
	}
}

// open reads the payload as what its codec says that it is.
func (b *Batch) open() (io.ReadCloser, error) {
	r := bytes.NewReader(b.Payload)
	switch {
	case b.Codec == None:
		return io.NopCloser(r), nil
	case b.Codec == Zstd && bytes.HasPrefix(b.Payload, []byte("\x28\xb5\x2f\xfd")), b.Codec == Gzip && bytes.HasPrefix(b.Payload, []byte("\x1f\x8b")):
		return NewReader(r)
	}
	return nil, fmt.Errorf("it is no %v payload", b.Codec)
}

// NewReader returns the lines in r: delivered bytes of one or many batches
// behind one another. The codec is told by the bytes, not by a name: zstd
// (skippable frames are stepped over, so a segment reads too), gzip, else plain.
// Memory is bounded by the decoder's window, whatever r holds.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(br)
	case len(magic) == 4 && (string(magic) == "\x28\xb5\x2f\xfd" || magic[0]&0xf0 == 0x50 && string(magic[1:]) == "\x2a\x4d\x18"):
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// Decode appends the lines of one payload to dst. The result may be at most
// limit bytes: a payload that promises or yields more is an error, so that a
// hostile one can't take all memory.
func Decode(dst, payload []byte, codec Codec, limit int) ([]byte, error) {
	switch codec {
	case None:
		if len(payload) > limit {
			return dst, fmt.Errorf("payload of %d bytes: more than %d", len(payload), limit)
		}
		return append(dst, payload...), nil
	case Zstd, Gzip:
		r, err := NewReader(bytes.NewReader(payload))
		if err != nil {
			return dst, err
		}
		defer r.Close()
		n := len(dst)
		for {
			if len(dst) == cap(dst) {
				dst = append(dst, 0)[:len(dst)]
			}
			m, err := r.Read(dst[len(dst):cap(dst)])
			dst = dst[:len(dst)+m]
			if len(dst)-n > limit {
				return dst, fmt.Errorf("%v payload holds more than %d bytes", codec, limit)
			}
			if err == io.EOF {
				return dst, nil
			}
			if err != nil {
				return dst, err
			}
		}
	}
	return dst, fmt.Errorf("unknown %v", codec)
}
