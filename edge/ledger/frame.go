package ledger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// zstdMagic begins a zstd frame (RFC 8878, 3.1.1).
const zstdMagic = 0xFD2FB528

// frame reads the bytes of one zstd frame, as they are, and ends where that ends.
// It goes by the frame's structure alone (RFC 8878, 3.1.1) and decodes nothing:
//
//	magic 4 │ descriptor 1 │ window 0-1 │ dictionary 0-4 │ content size 0-8 │ block … │ checksum 0 or 4
//	block: 3 bytes, little-endian: last 1 bit, type 2 bits, size 21 bits; type 1 (a byte that repeats) has 1 byte
type frame struct {
	in    *bufio.Reader
	state int    // what follows when left is 0
	left  uint64 // bytes of the part that is being read
	sum   bool   // a checksum ends the frame
}

const (
	atHeader = iota
	atBlock
	atSum
	atEnd
)

// Read implements io.Reader.
func (f *frame) Read(p []byte) (int, error) {
	for f.left == 0 {
		if err := f.step(); err != nil {
			return 0, err
		}
	}
	n, err := f.in.Read(p[:min(uint64(len(p)), f.left)])
	f.left -= uint64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// step finds out how long the next part is. It takes nothing of in.
func (f *frame) step() error {
	switch f.state {
	case atHeader:
		b, err := f.peek(5)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(b) != zstdMagic {
			return errors.New("no zstd frame")
		}
		d := b[4]
		f.left = 5 + uint64([]int{0, 1, 2, 4}[d&3])
		single := d&0x20 != 0
		if !single {
			f.left++
		}
		switch d >> 6 {
		case 0:
			if single {
				f.left++
			}
		default:
			f.left += 1 << (d >> 6)
		}
		f.sum, f.state = d&4 != 0, atBlock
	case atBlock:
		b, err := f.peek(3)
		if err != nil {
			return err
		}
		h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		f.left = 3 + uint64(h>>3)
		switch h >> 1 & 3 {
		case 1:
			f.left = 3 + 1
		case 3:
			return errors.New("a zstd block of a reserved type")
		}
		if h&1 != 0 {
			f.state = atSum
		}
	case atSum:
		if f.state = atEnd; f.sum {
			f.left = 4
			return nil
		}
		return io.EOF
	default:
		return io.EOF
	}
	return nil
}

func (f *frame) peek(n int) ([]byte, error) {
	b, err := f.in.Peek(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
