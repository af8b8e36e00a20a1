package vault

import (
	"strings"
	"testing"
	"time"
)

func BenchmarkParse(b *testing.B) {
	entries := recorded(b)
	var inJSONX [][]byte
	for _, e := range entries {
		inJSONX = append(inJSONX, jsonx(b, e))
	}
	large := `{"request":{"id":"a"},"response":{"data":{"keys":[` + strings.Repeat(`"`+hash+`",`, 100_000) + `1]}},"type":"response"}`
	for _, c := range []struct {
		name    string
		entries [][]byte
	}{{"json", entries}, {"jsonx", inJSONX}, {"large", [][]byte{[]byte(large)}}} {
		b.Run(c.name, func(b *testing.B) {
			size := 0
			for _, e := range c.entries {
				size += len(e)
			}
			b.SetBytes(int64(size / len(c.entries)))
			b.ReportAllocs()
			var e Entry
			i := 0
			for b.Loop() {
				if Parse(&e, c.entries[i%len(c.entries)], nil); e.Err != "" {
					b.Fatal(e.Err)
				}
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkSee(b *testing.B) {
	now := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, now)
	line := string(recorded(b)[3])
	at := strings.Index(line, "01aff473")
	var request, response Entry
	Parse(&request, []byte(strings.Replace(line, `"response"`, `"request"`, 1)), nil)
	data := []byte(line)
	other := []byte(strings.Replace(line, `"type":"response"`, `"type":"request"`, 1))
	Parse(&response, data, nil)
	Parse(&request, other, nil)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		// Ten thousand a second, and as many ids in the memory as there are in a minute.
		n++
		now = now.Add(100 * time.Microsecond)
		for k := range 8 {
			data[at+k] = "0123456789abcdef"[n>>(28-4*k)&15]
			other[at+k] = data[at+k]
		}
		p.See(&request, Sender{}, now)
		p.See(&response, Sender{}, now)
		if n%1000 == 0 {
			p.Expire(now, func(Missing) bool { b.Fatal("missing"); return false })
		}
	}
}
