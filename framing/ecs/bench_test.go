package ecs

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spillway/framing"
	"spillway/framing/syslog"
)

// samples are messages of about 240 bytes.
func samples() (all []struct {
	name string
	raw  []byte
	m    *syslog.Message
}) {
	at := time.Date(2026, 11, 20, 11, 59, 58, 123456000, time.UTC)
	add := func(name, raw string, m *syslog.Message) {
		all = append(all, struct {
			name string
			raw  []byte
			m    *syslog.Message
		}{name, []byte(raw), m})
	}
	text := `203.0.113.77 - - [20/Nov/2026:11:59:58 +0000] GET /api/v1/orders/48213 HTTP/1.1 200 5123 - Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0 rt=0.123 upstream=app-2 cache=MISS tls=1.3`
	quoted := `203.0.113.77 - - [20/Nov/2026:11:59:58 +0000] "GET /api/v1/orders/48213 HTTP/1.1" 200 5123 "-" "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0" rt=0.123 upstream=app-2 tls=1.3`
	doc := `{"level":"info","msg":"request completed","request_id":"0c5d1b1e-88f4-4a1e-a0c3-5d0b7a9e2f11","user_id":1822734,"status":200,"duration_ms":12.345,"seq":"000000001"}`
	cyrillic := strings.Repeat("Соединение закрыто ", 6)
	add("3164", "<190>Nov 20 11:59:58 web-01 nginx[812]: "+text, &syslog.Message{
		Priority: 190, HasTime: true, Time: at.Truncate(time.Second), Hostname: []byte("web-01"), AppName: []byte("nginx"), ProcID: []byte("812"), Text: []byte(text),
	})
	add("3164-quotes", "<190>Nov 20 11:59:58 web-01 nginx[812]: "+quoted, &syslog.Message{
		Priority: 190, HasTime: true, Time: at.Truncate(time.Second), Hostname: []byte("web-01"), AppName: []byte("nginx"), ProcID: []byte("812"), Text: []byte(quoted),
	})
	add("5424", "<190>1 2026-11-20T11:59:58.123456Z web-01.fra1.example.net nginx 812 - - "+text[:170], &syslog.Message{
		Priority: 190, Version: []byte("1"), HasTime: true, Time: at, Hostname: []byte("web-01.fra1.example.net"), AppName: []byte("nginx"), ProcID: []byte("812"), Text: []byte(text[:170]),
	})
	sd := `[meta@48577 unit="nginx.service" env="prod" zone="a"]`
	add("5424-sd", "<190>1 2026-11-20T11:59:58.123456Z web-01.fra1.example.net nginx 812 - "+sd+" "+text[:115], &syslog.Message{
		Priority: 190, Version: []byte("1"), HasTime: true, Time: at, Hostname: []byte("web-01.fra1.example.net"), AppName: []byte("nginx"), ProcID: []byte("812"), SD: []byte(sd), Text: []byte(text[:115]),
	})
	add("5424-json", "<134>1 2026-11-20T11:59:58.123456Z app-03.ams3.example.net orders 12 - - "+doc, &syslog.Message{
		Priority: 134, Version: []byte("1"), HasTime: true, Time: at, Hostname: []byte("app-03.ams3.example.net"), AppName: []byte("orders"), ProcID: []byte("12"), Text: []byte(doc),
	})
	add("3164-cyrillic", "<30>Nov 20 11:59:58 web-01 dockerd[812]: "+cyrillic, &syslog.Message{
		Priority: 30, HasTime: true, Time: at.Truncate(time.Second), Hostname: []byte("web-01"), AppName: []byte("dockerd"), ProcID: []byte("812"), Text: []byte(cyrillic),
	})
	add("none", "<190>Nov 20 11:59:58 web-01 nginx[812]: "+text, nil)
	return all
}

func BenchmarkEncode(b *testing.B) {
	for _, s := range samples() {
		b.Run(s.name, func(b *testing.B) {
			e := encoder(b, options, sender)
			block := make([]byte, 0, 256<<10)
			msg := framing.Message{Data: s.raw}
			now := received.Add(123456789)
			b.ReportAllocs()
			b.SetBytes(int64(len(s.raw)))
			size := len(e.AppendRecord(nil, msg, s.m, now))
			b.ResetTimer()
			for i := range b.N {
				if len(block)+4096 > cap(block) {
					block = block[:0]
				}
				block = e.AppendRecord(block, msg, s.m, now.Add(time.Duration(i)*time.Microsecond))
			}
			b.ReportMetric(float64(size), "B/record")
		})
	}
}

// BenchmarkParseEncode is the whole work on a message: parse, encode, tail.
func BenchmarkParseEncode(b *testing.B) {
	for _, s := range samples() {
		if s.m == nil {
			continue
		}
		b.Run(s.name, func(b *testing.B) {
			e := encoder(b, options, sender)
			p := syslog.NewParser(syslog.Auto, time.UTC)
			block := make([]byte, 0, 256<<10)
			msg := framing.Message{Data: s.raw}
			var m syslog.Message
			now := received.Add(123456789)
			b.ReportAllocs()
			b.SetBytes(int64(len(s.raw)))
			for i := range b.N {
				if len(block)+4096 > cap(block) {
					block = block[:0]
				}
				at := now.Add(time.Duration(i) * time.Microsecond)
				p.Parse(&m, msg.Data, at)
				block = AppendTail(e.AppendRecord(block, msg, &m, at), epoch, uint64(i)+1<<32)
			}
		})
	}
}

func BenchmarkTail(b *testing.B) {
	block := make([]byte, 0, 64)
	b.ReportAllocs()
	for i := range b.N {
		AppendTail(block[:0], epoch, uint64(i)+1<<32)
	}
}

func BenchmarkSetSource(b *testing.B) {
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("sources=%d", n), func(b *testing.B) {
			e := encoder(b, options, sender)
			all := []Source{sender, {Addr: netip.MustParseAddrPort("198.51.100.23:50123")}}
			b.ReportAllocs()
			for i := range b.N {
				e.SetSource(all[i%n])
			}
		})
	}
}

func BenchmarkRaw(b *testing.B) {
	raw := samples()[0].raw
	block := make([]byte, 0, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if len(block)+4096 > cap(block) {
			block = block[:0]
		}
		block = AppendRaw(block, raw)
	}
}
