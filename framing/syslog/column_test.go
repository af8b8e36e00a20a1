package syslog

import (
	"math/rand/v2"
	"testing"
)

// columnEnd finds what a loop over the bytes finds, wherever it begins.
func TestColumnEnd(t *testing.T) {
	naive := func(b []byte, i int) int {
		for i < len(b) && b[i] > ' ' && b[i] != 0x7f {
			i++
		}
		return i
	}
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	stops := []byte{' ', 0, '\t', 0x1f, 0x7f, '!', 0x80, 0xa0, 0xff, '~', 0x21}
	for range 20_000 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			if b[i] = byte(0x21 + r.IntN(0x5e)); r.IntN(8) == 0 {
				b[i] = stops[r.IntN(len(stops))]
			} else if r.IntN(8) == 0 {
				b[i] = byte(r.IntN(256))
			}
		}
		i := r.IntN(len(b) + 1)
		if got, want := columnEnd(b, i), naive(b, i); got != want {
			t.Fatalf("%q from %d: %d, want %d (seed %d)", b, i, got, want, seed)
		}
	}
}
