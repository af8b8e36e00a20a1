package s3

import (
	"errors"
	"io"

	"spillway/buffer/batch"
)

// body reads the payloads of a run, one behind the other, where they are: there is
// no joined copy. The SDK reads it once for each attempt, and over http once more
// for the signature. It does not read on after a call returned.
type body struct {
	batches []batch.Batch
	size    int64
	at      int64 // position
	i, off  int   // the same as batch and offset in it
}

func newBody(batches []batch.Batch) *body {
	b := &body{batches: batches}
	for i := range batches {
		b.size += int64(len(batches[i].Payload))
	}
	return b
}

func (b *body) rewind() { b.at, b.i, b.off = 0, 0, 0 }

// Read implements io.Reader.
func (b *body) Read(p []byte) (n int, err error) {
	for n < len(p) && b.i < len(b.batches) {
		m := copy(p[n:], b.batches[b.i].Payload[b.off:])
		n += m
		b.off += m
		if b.off == len(b.batches[b.i].Payload) {
			b.i, b.off = b.i+1, 0
		}
	}
	b.at += int64(n)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek implements io.Seeker.
func (b *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 || offset > b.size {
		return b.at, errors.New("seek outside the body")
	}
	b.rewind()
	b.at = offset
	for b.i < len(b.batches) && offset >= int64(len(b.batches[b.i].Payload)) {
		offset -= int64(len(b.batches[b.i].Payload))
		b.i++
	}
	b.off = int(offset)
	return b.at, nil
}
