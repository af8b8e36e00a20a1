package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/edge/listen"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/outputs"
)

// vaultRecords is a far side, with what the records of a vault input say.
type vaultRecord struct {
	Event struct {
		ID, Kind, Action, Reason string
	}
	HTTP    struct{ Request struct{ ID string } }
	URL     struct{ Path string }
	Message string
	Tags    []string
	Error   struct{ Message string }
	Vault   struct {
		Audit struct {
			Type string
			Gap  struct{ Missing, Seen, Connected string }
		}
	}
	Entry struct{ Audit json.RawMessage } `json:"hashicorp_vault"`
}

func (m *memory) vault(t *testing.T) (all []vaultRecord) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.batches {
		text, err := batch.Decode(nil, b.Payload, b.Codec, int(b.Raw))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var r vaultRecord
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%v: %.200s", err, line)
			}
			all = append(all, r)
		}
	}
	return all
}

func alerts(all []vaultRecord) (said []string) {
	for _, r := range all {
		if r.Event.Kind == "alert" {
			said = append(said, r.Message)
		}
	}
	return said
}

// vaultWorld is a lane with a vault input in simulated time.
type vaultWorld struct {
	t    *testing.T
	lane *Lane
	in   *Input
	m    *memory
	log  *safe
	stop func() // returns when all is delivered
}

func newVaultWorld(t *testing.T, o VaultOptions, edit func(*InputOptions)) *vaultWorld {
	t.Helper()
	w := &vaultWorld{t: t, m: &memory{}}
	b := start(t, "", w.m, Refuse, func(bo *buffer.Options, lo *LaneOptions) { bo.FS = &lazyFS{newDirFS(t)}; lo.Reserve = 64 << 10 })
	w.lane, w.log = b.lane, b.log
	if o.PairTimeout == 0 {
		o.PairTimeout = 2 * time.Minute
	}
	io := InputOptions{Name: "vault", Lane: b.lane, OnFull: Refuse, Vault: &o, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}}
	if edit != nil {
		edit(&io)
	}
	w.in = NewInput(io)
	watching, enough := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { w.in.Watch(watching); close(ended) }()
	w.stop = func() { enough(); <-ended; b.stop() }
	return w
}

// conn is a connection of Vault's.
type vaultConn struct {
	w    *vaultWorld
	s    listen.Sink
	from listen.Sender
}

func (w *vaultWorld) dial(host string) *vaultConn {
	return &vaultConn{w, w.in.Open(), listen.Sender{Addr: netip.MustParseAddrPort(host + ":40000"), Conn: &listen.Conn{Since: time.Now()}}}
}

func (c *vaultConn) send(entries ...string) {
	c.w.t.Helper()
	for _, e := range entries {
		c.s.Message(msg(e), c.from, time.Now())
	}
	if err := c.s.Flush(c.w.t.Context()); err != nil {
		c.w.t.Fatal(err)
	}
}

// drop loses entries in the sink, as a lane without room does.
func (c *vaultConn) drop(entries ...string) {
	for _, e := range entries {
		c.s.Message(msg(e), c.from, time.Now())
	}
	c.s.Close()
}

// cut ends the connection in the middle of an entry.
func (c *vaultConn) cut(part string) {
	c.s.Message(framing.Message{Data: []byte(part), Flags: framing.Unterminated}, c.from, time.Now())
	c.s.Flush(c.w.t.Context())
	c.s.Close()
}

func entryOf(kind, id, path string) string {
	return fmt.Sprintf(`{"auth":{"client_token":"hmac-sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"},"request":{"id":%q,"operation":"read","path":%q},"type":%q}`, id, path, kind)
}

func request(id string) string  { return entryOf("request", id, "secret/data/a") }
func response(id string) string { return entryOf("response", id, "secret/data/a") }

// TestVaultRecorded: the stream of a real Vault makes no alert, though its first response
// has no request and its last request no response, and each entry is in its record as
// it was sent.
func TestVaultRecorded(t *testing.T) {
	stream, err := os.ReadFile("../../framing/vault/testdata/vault-1.21.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	entries := strings.Split(strings.TrimSuffix(string(stream), "\n"), "\n")
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{Pairing: true}, nil)
		w.dial("192.0.2.7").send(entries...)
		time.Sleep(time.Hour)
		w.stop()
		all := w.m.vault(t)
		if len(all) != len(entries) || len(alerts(all)) != 0 {
			t.Fatalf("%d records of %d entries; alerts %q", len(all), len(entries), alerts(all))
		}
		for i, r := range all {
			if string(r.Entry.Audit) != entries[i] {
				t.Errorf("%s became %s", entries[i], r.Entry.Audit)
			}
		}
		if in := w.in; in.Entries.Load() != 33 || in.Probes.Load() != 1 || in.Missing.Load()+in.Orphans.Load()+in.RawSecrets.Load()+in.Duplicates.Load() != 0 {
			t.Errorf("%d entries, %d probes", in.Entries.Load(), in.Probes.Load())
		}
		if strings.Contains(w.log.String(), "WARN") {
			t.Errorf("warned: %s", w.log)
		}
	})
}

// TestVaultPairing is what is told as missing, and what is not.
func TestVaultPairing(t *testing.T) {
	for _, c := range []struct {
		name string
		o    VaultOptions
		run  func(w *vaultWorld)
		want []string
	}{
		{"a response is lost", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), request("b"), response("b"))
		}, []string{"vault audit gap: request a has no response entry"}},
		{"a request is lost", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			c.send(response("b"))
		}, []string{"vault audit gap: request b has no request entry"}},
		{"a request is lost with its connection", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			w.dial("192.0.2.7").send(response("b"))
		}, []string{"vault audit gap: request b has no request entry"}},
		{"a request is lost, of a Vault whose address has two forms", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			w.dial("[::ffff:192.0.2.7]").send(response("b"))
		}, []string{"vault audit gap: request b has no request entry"}},
		{"a response whose request is older than the agent", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(response("a"))
		}, nil},
		{"a response of a Vault that has just come", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"), response("a"))
			time.Sleep(time.Hour)
			w.dial("192.0.2.8").send(response("b"))
		}, nil},
		{"a response on another connection", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"))
			w.dial("192.0.2.7").send(response("a"))
		}, nil},
		{"a response that is read before its request", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			old := w.dial("192.0.2.7")
			old.send(request("z"), response("z"))
			time.Sleep(3 * time.Minute)
			w.dial("192.0.2.7").send(response("a"))
			old.send(request("a"))
		}, nil},
		{"a slow request is told once", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"))
			time.Sleep(10 * time.Minute)
			c.send(response("a"))
		}, []string{"vault audit gap: request a has no response entry"}},
		{"a device that is enabled again", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			c.send(`{"request":{"id":"p","operation":"update","path":"sys/audit/test"},"type":"request"}`, response("b"))
		}, nil},
		{"a client that writes to the path of the probe", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			c.send(`{"error":"permission denied","request":{"id":"p","operation":"update","path":"sys/audit/test","remote_address":"198.51.100.66"},"type":"request"}`,
				`{"error":"permission denied","request":{"id":"p","operation":"update","path":"sys/audit/test","remote_address":"198.51.100.66"},"type":"response"}`, response("b"))
		}, []string{"vault audit gap: request b has no request entry"}},
		{"what has no other half", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(entryOf("request", "1", "sys/seal"), entryOf("request", "2", "sys/step-down"), entryOf("request", "3", "sys/wrapping/unwrap"),
				entryOf("request", "4", "sys/replication/dr/status"), entryOf("kmip-request", "5", "x"), `{"type":"request"}`, strings.Replace(request("6"), `"read"`, `"help"`, 1), entryOf("request", "7", "sys/audit/f"))
		}, nil},
		{"pairing is off", VaultOptions{}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"))
		}, nil},
		{"a response that is too large", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"))
			c.s.Message(framing.Message{Data: []byte(response("a")[:180]), Flags: framing.Truncated}, c.from, time.Now())
			c.s.Flush(w.t.Context())
		}, nil},
		{"a request that is too large, and comes first", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"))
			time.Sleep(3 * time.Minute)
			c.s.Message(framing.Message{Data: []byte(request("b")[:180]), Flags: framing.Truncated}, c.from, time.Now())
			c.send(response("b"))
		}, nil},
		{"a response is dropped", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"))
			c.drop(response("a"))
		}, []string{"vault audit gap: request a has no response entry"}},
		{"a request is dropped", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c, other := w.dial("192.0.2.7"), w.dial("192.0.2.7")
			c.send(request("z"), response("z"))
			time.Sleep(3 * time.Minute)
			c.s.Message(msg(request("a")), c.from, time.Now())
			other.send(response("a"))
			c.drop()
		}, []string{"vault audit gap: request a has no request entry"}},
		{"both halves are dropped", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			w.dial("192.0.2.7").drop(request("a"), response("a"))
		}, nil},
		{"a response is dropped and sent again", VaultOptions{Pairing: true}, func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"))
			c.drop(response("a"))
			w.dial("192.0.2.7").send(response("a"))
		}, nil},
		{"the agent stops before the timeout", VaultOptions{Pairing: true, PairTimeout: 2 * time.Hour}, func(w *vaultWorld) {
			w.dial("192.0.2.7").send(request("a"))
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVaultWorld(t, c.o, nil)
				c.run(w)
				time.Sleep(time.Hour)
				w.stop()
				got := alerts(w.m.vault(t))
				if !slices.Equal(got, c.want) {
					t.Errorf("alerts %q, want %q", got, c.want)
				}
				if n := w.in.Missing.Load() + w.in.Orphans.Load(); n != int64(len(c.want)) || w.in.Alerts.Load() != n {
					t.Errorf("%d counted, %d alerts", n, w.in.Alerts.Load())
				}
				if warned := strings.Contains(w.log.String(), "audit entries are missing"); warned != (len(c.want) > 0) {
					t.Errorf("warned %t: %s", warned, w.log)
				}
			})
		})
	}
}

// TestVaultAlertSays: id, which half, path, when, and the connection of who sent the
// other half.
func TestVaultAlertSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{Pairing: true}, nil)
		began := time.Now()
		w.dial("192.0.2.7").send(request("a"))
		time.Sleep(time.Minute)
		w.dial("192.0.2.7").send(request("b"), response("b"))
		time.Sleep(2 * time.Minute)
		w.stop()
		all := w.m.vault(t)
		a := all[len(all)-1]
		stamp := func(d time.Duration) string { return began.Add(d).UTC().Format(time.RFC3339Nano) }
		if gap := a.Vault.Audit.Gap; a.Event.Action != "vault-audit-gap" || a.HTTP.Request.ID != "a" || a.URL.Path != "secret/data/a" || gap.Missing != "response" ||
			gap.Seen != stamp(0) || gap.Connected != stamp(time.Minute) || a.Event.Reason != "no response entry within 2m0s of its request entry" {
			t.Errorf("%+v", a)
		}
	})
}

// TestVaultDuplicates: an entry that comes twice is tagged, or dropped if that is asked
// for; one that the lane did not keep is none that came before.
func TestVaultDuplicates(t *testing.T) {
	for _, dedupe := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newVaultWorld(t, VaultOptions{Pairing: true, Dedupe: dedupe}, nil)
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"), request("a"))
			w.dial("192.0.2.7").send(response("a"), request("b"))
			c.send(strings.Replace(request("b"), "read", "list", 1), response("b"))
			w.stop()
			var tagged int
			all := w.m.vault(t)
			for _, r := range all {
				if slices.Contains(r.Tags, "duplicate") {
					tagged++
				}
			}
			records, tags, filtered := 7, 2, uint64(0)
			if dedupe {
				records, tags, filtered = 5, 0, 2
			}
			if len(all) != records || tagged != tags || w.in.Duplicates.Load() != 2 || w.in.Filtered()["duplicate"] != filtered || len(alerts(all)) > 0 {
				t.Errorf("dedupe %t: %d records, %d tagged, %d counted, filtered %v", dedupe, len(all), tagged, w.in.Duplicates.Load(), w.in.Filtered())
			}
			if w.in.Messages.Load() != 7 {
				t.Errorf("%d messages", w.in.Messages.Load())
			}
		})
	}
}

// TestVaultNotKept: who is told that an entry was not stored sends it again, and that
// is the first that counts.
func TestVaultNotKept(t *testing.T) {
	m := &memory{}
	b := start(t, t.TempDir(), m, Block, nil)
	in := NewInput(InputOptions{Name: "bao", Lane: b.lane, Vault: &VaultOptions{Pairing: true, Dedupe: true, PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}})
	s := in.OpenStorer()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b.lane.failing.Store(1) // since long ago: nobody is let in to wait
	s.Message(msg(request("a")), from, time.Now())
	for b.lane.now() < int64(2*fullAfter) {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := s.Store(gone); !errors.Is(err, listen.ErrFull) {
		t.Fatalf("stored: %v", err)
	}
	b.lane.failing.Store(0)
	for range 2 {
		s.Message(msg(request("a")), from, time.Now())
		stored, err := s.Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	b.stop()
	if n := len(m.vault(t)); n != 1 || in.Duplicates.Load() != 1 {
		t.Errorf("%d records, %d duplicates", n, in.Duplicates.Load())
	}
}

// newHook returns an input of entries whose senders wait.
func newHook(l *Lane, o VaultOptions) *Input {
	o.PairTimeout = time.Minute
	return NewInput(InputOptions{Name: "bao", Lane: l, Vault: &o, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}})
}

// TestVaultDedupeDurable: nobody is told that an entry is stored because one that is not
// durable came before; once that is durable, it is enough.
func TestVaultDedupeDurable(t *testing.T) {
	disk, m := newSlowFS(t, 0), &memory{}
	disk.gate = make(chan struct{})
	b := start(t, "", m, Block, patient(disk))
	in := newHook(b.lane, VaultOptions{Dedupe: true})
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if err := store(ctx, in.OpenStorer(), request("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the disk has it: %v", err)
		}
		cancel()
	}
	close(disk.gate)
	for _, id := range []string{"b", "a", "b"} {
		if err := store(t.Context(), in.OpenStorer(), request(id)); err != nil {
			t.Error(err)
		}
	}
	b.stop()
	if all := m.vault(t); len(all) != 3 || slices.Contains(all[0].Tags, "duplicate") || !slices.Contains(all[1].Tags, "duplicate") || in.Filtered()["duplicate"] != 2 {
		t.Errorf("%+v, filtered %v", all, in.Filtered())
	}
}

// TestVaultDedupeKeepsOne: whichever of two copies is dropped for want of room, the
// other one stays.
func TestVaultDedupeKeepsOne(t *testing.T) {
	for _, first := range []bool{true, false} {
		m := &memory{}
		b := start(t, t.TempDir(), m, Block, nil)
		in := newHook(b.lane, VaultOptions{Dedupe: true})
		dropped, kept := in.Open(), in.Open()
		if !first {
			dropped, kept = kept, dropped
		}
		for _, s := range []listen.Sink{dropped, kept} {
			s.Message(msg(request("a")), from, time.Now())
		}
		dropped.Close()
		if err := kept.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // in one block, and after it
			kept.Message(msg(request("a")), from, time.Now())
			kept.Message(msg(request("b")), from, time.Now())
			kept.Message(msg(request("b")), from, time.Now())
			if err := kept.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b.stop()
		all := slices.DeleteFunc(m.vault(t), func(r vaultRecord) bool { return r.Vault.Audit.Type == "" }) // that tells what was dropped
		if len(all) != 2 || in.Filtered()["duplicate"] != 5 || in.Duplicates.Load() != 6 {
			t.Errorf("first %t: %d records, %d duplicates, filtered %v", first, len(all), in.Duplicates.Load(), in.Filtered())
		}
	}
}

// TestVaultMarks: what becomes no record leaves nothing in a sink.
func TestVaultMarks(t *testing.T) {
	in := newHook(NewLane(LaneOptions{Buffer: mustOpen(t)}), VaultOptions{Pairing: true, DropRaw: true})
	s := in.Open().(*sink)
	for i := range 1000 {
		s.Message(msg(strings.Replace(request(fmt.Sprint(i)), "hmac-sha256:", "hvs.", 1)), from, time.Now())
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.vault.marks); n != 0 || in.Filtered()["raw_secret"] != 1000 {
		t.Errorf("%d marks, filtered %v", n, in.Filtered())
	}
}

// TestVaultTorn: the beginning of an entry is kept as it is, and the whole entry is
// known by it, whichever is read first.
func TestVaultTorn(t *testing.T) {
	for _, c := range []struct {
		name         string
		run          func(w *vaultWorld)
		torn, resent int64
		warned       bool
	}{
		{"sent again", func(w *vaultWorld) {
			w.dial("192.0.2.7").cut(request("a")[:150])
			time.Sleep(time.Second)
			w.dial("192.0.2.7").send(request("a"), response("a"))
		}, 1, 1, false},
		{"the whole one is read first", func(w *vaultWorld) {
			old := w.dial("192.0.2.7")
			time.Sleep(time.Second)
			w.dial("192.0.2.7").send(request("a"), response("a"))
			old.cut(request("a")[:150])
		}, 1, 1, false},
		{"never sent again", func(w *vaultWorld) {
			w.dial("192.0.2.7").cut(request("a")[:150])
			time.Sleep(time.Second)
			w.dial("192.0.2.7").send(`{"type":"request"}`)
		}, 1, 0, true},
		{"another entry that begins alike, on the same connection", func(w *vaultWorld) {
			c := w.dial("192.0.2.7")
			c.send(request("a"), response("a"))
			c.cut(request("b")[:150])
		}, 1, 0, true},
		{"before its id, so that it may be of any entry", func(w *vaultWorld) {
			w.dial("192.0.2.7").cut(request("b")[:100])
			time.Sleep(time.Second)
			w.dial("192.0.2.7").send(request("a"), response("a"))
		}, 1, 0, false},
		{"whole but for the line feed", func(w *vaultWorld) {
			w.dial("192.0.2.7").cut(request("a"))
			w.dial("192.0.2.7").send(response("a"))
		}, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVaultWorld(t, VaultOptions{Pairing: true}, nil)
				c.run(w)
				time.Sleep(time.Hour)
				w.stop()
				all := w.m.vault(t)
				var torn []vaultRecord
				for _, r := range all {
					if slices.Contains(r.Tags, "vault_torn") {
						torn = append(torn, r)
					}
				}
				if w.in.Torn.Load() != c.torn || w.in.Resent.Load() != c.resent || int64(len(torn)) != c.torn || len(alerts(all)) > 0 {
					t.Errorf("%d torn, %d sent again, %d records, alerts %q", w.in.Torn.Load(), w.in.Resent.Load(), len(torn), alerts(all))
				}
				for _, r := range torn {
					if !strings.HasPrefix(request("b"), r.Message[:90]) || !strings.Contains(r.Error.Message, "the end of the entry is missing") || r.Entry.Audit != nil {
						t.Errorf("%+v", r)
					}
				}
				if warned := strings.Contains(w.log.String(), "have not come again"); warned != c.warned {
					t.Errorf("warned %t: %s", warned, w.log)
				}
			})
		})
	}
}

// TestVaultRaw: an entry with a token that is not hashed is tagged, or dropped.
func TestVaultRaw(t *testing.T) {
	for _, drop := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newVaultWorld(t, VaultOptions{DropRaw: drop}, nil)
			w.dial("192.0.2.7").send(request("a"), `{"auth":{"client_token":"hvs.secret"},"type":"request"}`)
			time.Sleep(time.Minute)
			w.stop()
			all := w.m.vault(t)
			if drop {
				if len(all) != 1 || w.in.Filtered()["raw_secret"] != 1 || strings.Contains(string(all[0].Entry.Audit), "hvs.") {
					t.Errorf("%d records, filtered %v", len(all), w.in.Filtered())
				}
			} else if len(all) != 2 || !slices.Contains(all[1].Tags, "vault_raw_secret") || slices.Contains(all[0].Tags, "vault_raw_secret") {
				t.Errorf("%+v", all)
			}
			if w.in.RawSecrets.Load() != 1 || strings.Count(w.log.String(), "tokens that are not hashed") != 1 {
				t.Errorf("%d counted: %s", w.in.RawSecrets.Load(), w.log)
			}
		})
	}
}

// TestVaultRawParts: a token in what is no whole entry is not stored either.
func TestVaultRawParts(t *testing.T) {
	const hashed = `"client_token":"hmac-sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"`
	for _, c := range []struct {
		name, data string
		flags      framing.Flags
		torn       int64
	}{
		{"torn", `{"auth":{"client_token":"hvs.secret`, framing.Unterminated, 1},
		{"truncated", `{"auth":{"client_token":"hvs.secret`, framing.Truncated, 0},
		{"not valid before it", `{"x":01,"auth":{"client_token":"hvs.secret"},"type":"response"}`, 0, 0},
		{"the second part", `:"b"},"auth":{"client_token":"hvs.secret"},"type":"response"}`, framing.Part, 0},
		{"twice", `{"auth":{` + hashed + `,"client_token":"hvs.secret"},"type":"response"}`, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVaultWorld(t, VaultOptions{DropRaw: true}, nil)
				v := w.dial("192.0.2.7")
				v.s.Message(framing.Message{Data: []byte(c.data), Flags: c.flags}, v.from, time.Now())
				v.send(request("a"))
				time.Sleep(time.Minute)
				w.stop()
				if all := w.m.vault(t); len(all) != 1 || string(all[0].Entry.Audit) != request("a") {
					t.Errorf("%+v", all)
				}
				if w.in.Filtered()["raw_secret"] != 1 || w.in.Failures.Load() != 1 || w.in.Torn.Load() != c.torn || w.in.Messages.Load() != 2 {
					t.Errorf("filtered %v, %d failures, %d torn", w.in.Filtered(), w.in.Failures.Load(), w.in.Torn.Load())
				}
				if warned := strings.Contains(w.log.String(), "dropped (RAW_SECRETS=drop)"); warned != (c.torn == 0) {
					t.Errorf("warned %t: %s", warned, w.log)
				}
			})
		})
	}
}

func TestVaultPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{Prefix: []byte("vault-a: ")}, nil)
		w.dial("192.0.2.7").send("vault-a: "+request("a"), response("a"))
		time.Sleep(time.Minute)
		w.stop()
		if all := w.m.vault(t); len(all) != 2 || string(all[0].Entry.Audit) != request("a") || w.in.PrefixMissing.Load() != 1 || w.in.Entries.Load() != 2 {
			t.Errorf("%d records, %d without the prefix", len(all), w.in.PrefixMissing.Load())
		}
		if strings.Count(w.log.String(), "do not begin with PREFIX") != 1 {
			t.Errorf("%s", w.log)
		}
	})
}

// TestVaultNotices: what may happen with each entry is told at once, and then once a
// minute with how often.
func TestVaultNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{}, nil)
		c := w.dial("192.0.2.7")
		for range 150 {
			c.send("no entry")
			time.Sleep(time.Second)
		}
		w.stop()
		said := regexp.MustCompile(`no audit entries.* times=(\d+)`).FindAllStringSubmatch(w.log.String(), -1)
		total := 0
		for _, m := range said {
			n := 0
			fmt.Sscan(m[1], &n)
			total += n
		}
		if len(said) != 4 || total != 150 || w.in.Failures.Load() != 150 || w.in.Entries.Load() != 0 {
			t.Errorf("%d lines of %d, %d failures: %s", len(said), total, w.in.Failures.Load(), w.log)
		}
		if all := w.m.vault(t); len(all) != 150 || all[0].Message != "no entry" || !slices.Equal(all[0].Tags, []string{"_vaultparsefailure"}) {
			t.Errorf("%d records", len(all))
		}
	})
}

// TestVaultWaits: while the input waits for room, what would be the other halves stays
// in the sockets, and is not missing; alerts that find no room wait.
func TestVaultWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{Pairing: true}, nil)
		c := w.dial("192.0.2.7")
		c.send(request("a"), request("lost"))
		// The disk takes nothing, and more is held than may be.
		held := w.lane.most(w.lane.last)
		w.lane.held.Add(held)
		c.s.Message(msg(request("b")), c.from, time.Now())
		done := make(chan struct{})
		go func() { c.s.Flush(t.Context()); close(done) }()
		time.Sleep(30 * time.Minute)
		<-done // dropped, as ON_FULL says
		if got := w.in.Missing.Load(); got != 0 {
			t.Errorf("%d missing while nobody could read", got)
		}
		w.lane.unhold(held)
		c.send(response("a"))
		time.Sleep(time.Minute + 50*time.Second)
		if got := w.in.Missing.Load(); got != 0 {
			t.Errorf("%d missing before the timeout", got)
		}
		w.lane.held.Add(held) // from before the alert
		w.lane.last.since.Store(0)
		time.Sleep(20 * time.Second)
		if got := w.in.Missing.Load(); got != 1 || w.in.Alerts.Load() != 0 {
			t.Errorf("%d missing, %d alerts without room", got, w.in.Alerts.Load())
		}
		time.Sleep(time.Minute)
		w.lane.unhold(held)
		time.Sleep(time.Minute)
		w.stop()
		if got := alerts(w.m.vault(t)); !slices.Equal(got, []string{"vault audit gap: request lost has no response entry"}) || w.in.Alerts.Load() != 1 {
			t.Errorf("alerts %q, %d counted", got, w.in.Alerts.Load())
		}
		if d := w.in.Dropped(); w.in.Messages.Load()+w.in.Alerts.Load() != w.in.Admitted.Load()+int64(d["buffer_full"]+d["stopped"]) {
			t.Errorf("%d messages and %d alerts, %d admitted, dropped %v", w.in.Messages.Load(), w.in.Alerts.Load(), w.in.Admitted.Load(), d)
		}
	})
}

// TestVaultAlertsAtTheStop: alerts that find no room until the end are told as dropped.
func TestVaultAlertsAtTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVaultWorld(t, VaultOptions{Pairing: true}, nil)
		w.dial("192.0.2.7").send(request("a"), request("b"))
		time.Sleep(time.Minute)
		w.lane.held.Add(w.lane.most(w.lane.last))
		time.Sleep(time.Minute + 2*time.Second)
		if w.in.Missing.Load() != 2 || w.in.Alerts.Load() != 0 {
			t.Errorf("%d missing, %d alerts", w.in.Missing.Load(), w.in.Alerts.Load())
		}
		w.stop()
		if d := w.in.Dropped()["stopped"]; d != 2 || w.in.Alerts.Load() != 2 || w.in.Admitted.Load() != 2 || len(alerts(w.m.vault(t))) != 0 {
			t.Errorf("%d dropped, %d alerts, %d admitted", d, w.in.Alerts.Load(), w.in.Admitted.Load())
		}
	})
}

// TestVaultAlertBlocks: however much is missing, it is told a block at a time.
func TestVaultAlertBlocks(t *testing.T) {
	const many = 3000
	l, _ := still(t)
	in := newHook(l, VaultOptions{Pairing: true})
	now := time.Now()
	s := in.Open()
	for i := range many {
		s.Message(msg(request(fmt.Sprint(i))), from, now)
	}
	now = now.Add(time.Hour)
	w := &watch{in: in, enc: in.bare(), last: now}
	told, blocks := 0, 0
	for w.look(now) && blocks < many {
		if n := len(w.alerts.lines); n > blockSize+2048 {
			t.Fatalf("a block of %d bytes", n)
		}
		told += len(w.alerts.ends)
		blocks++
		w.alerts = nil
	}
	if told != many || blocks < 3 {
		t.Errorf("%d alerts in %d blocks", told, blocks)
	}
}

// TestVaultStalls: what came while the agent did not run has not been read yet, so that
// the time does not count.
func TestVaultStalls(t *testing.T) {
	b := start(t, t.TempDir(), &memory{}, Block, nil)
	in := NewInput(InputOptions{Name: "vault", Lane: b.lane, Vault: &VaultOptions{Pairing: true, PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}})
	now := time.Now()
	s := in.Open()
	s.Message(msg(request("a")), from, now)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	w := &watch{in: in, enc: in.bare(), last: now}
	now = now.Add(time.Hour)
	if w.look(now) {
		t.Error("missing at once")
	}
	seconds := 1 // that count of the hour
	for ; !w.look(now) && seconds < 1000; seconds++ {
		now = now.Add(time.Second)
	}
	if seconds != 60 || in.Missing.Load() != 1 {
		t.Errorf("%d missing after %d seconds", in.Missing.Load(), seconds)
	}
	if !w.hand(t.Context()) || in.Alerts.Load() != 1 {
		t.Error("not handed to the lane")
	}
	b.stop()
}

// TestVaultLarge: an entry of more than 40 MiB is whole in its record, also where one
// with event.original would not fit, and costs the sink at most twice its size.
func TestVaultLarge(t *testing.T) {
	for _, original := range []ecs.Original{ecs.OriginalNone, ecs.OriginalText} {
		line, mib := maxLine, 41
		if original != ecs.OriginalNone {
			line, mib = 3<<20, 2
		}
		large := []byte(`{"request":{"id":"a"},"response":{"data":{"keys":["` + strings.Repeat(strings.Repeat("k", 1<<20)+`\u003cey","`, mib) + `"]}},"type":"response"}`)
		m := &memory{}
		b := start(t, t.TempDir(), m, Block, func(bo *buffer.Options, lo *LaneOptions) { bo.MaxBytes = 256 << 20; lo.Codec = batch.None })
		in := NewInput(InputOptions{Name: "vault", Lane: b.lane, Vault: &VaultOptions{Pairing: true, PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1", PreserveOriginal: original}})
		in.maxLine = line
		s := in.Open()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s.Message(framing.Message{Data: large}, from, time.Now())
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; original == ecs.OriginalNone && took > 2*uint64(len(large))+1<<20 {
			t.Errorf("%d bytes allocated for an entry of %d", took, len(large))
		}
		if s.(*sink).vault.entry.Data != nil {
			t.Error("the sink keeps the memory of a large entry")
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		b.stop()
		if len(m.batches) != 1 || m.batches[0].Count != 1 || !bytes.Contains(m.batches[0].Payload, slices.Concat([]byte(`,"hashicorp_vault":{"audit":`), large, []byte(`},"log":`))) {
			t.Errorf("original %d: %d batches, or not the entry", original, len(m.batches))
		}
		if in.Truncated.Load() != 0 || in.Failures.Load() != 0 {
			t.Errorf("original %d: %d truncated, %d failures", original, in.Truncated.Load(), in.Failures.Load())
		}
	}
}

// TestVaultDoesNotAllocate for the entries of a connection whose far side keeps up.
func TestVaultDoesNotAllocate(t *testing.T) {
	l := NewLane(LaneOptions{Buffer: mustOpen(t)})
	in := NewInput(InputOptions{Name: "vault", Lane: l, Vault: &VaultOptions{Pairing: true, PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}})
	s := in.Open().(*sink)
	sender := listen.Sender{Addr: from.Addr, Conn: &listen.Conn{Since: time.Now()}}
	var pairs [][2][]byte
	for i := range 4096 {
		pairs = append(pairs, [2][]byte{[]byte(request(fmt.Sprint(i))), []byte(response(fmt.Sprint(i)))})
	}
	i := 0
	both := func() {
		for _, data := range pairs[i] {
			s.Message(framing.Message{Data: data}, sender, time.Now())
		}
		i++
		s.block.lines, s.block.ends = s.block.lines[:0], s.block.ends[:0]
		s.kept()
	}
	for range 3000 {
		both()
	}
	// The memory of pairs grows in steps.
	if n := testing.AllocsPerRun(1000, both); n > 0.1 {
		t.Errorf("%v allocations for two entries", n)
	}
}

func mustOpen(t testing.TB) *buffer.Buffer {
	t.Helper()
	b, err := buffer.Open(t.TempDir(), buffer.Options{Agent: "gw1", MinFree: -1, MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// BenchmarkVaultSink is parsing, pairing and encoding.
func BenchmarkVaultSink(b *testing.B) {
	stream, err := os.ReadFile("../../framing/vault/testdata/vault-1.21.ndjson")
	if err != nil {
		b.Fatal(err)
	}
	entries := bytes.Split(bytes.TrimSuffix(stream, []byte("\n")), []byte("\n"))
	in := NewInput(InputOptions{Name: "vault", Lane: NewLane(LaneOptions{Buffer: mustOpen(b)}), Vault: &VaultOptions{Pairing: true, PairTimeout: time.Minute}, Records: ecs.Options{Dataset: "vault.audit", Agent: "gw1"}})
	s := in.Open().(*sink)
	b.SetBytes(int64(len(stream) / len(entries)))
	b.ReportAllocs()
	// Each round has ids of its own.
	i, n, now := 0, 0, time.Now()
	id := regexp.MustCompile(`"id":"([0-9a-f-]{36})"`)
	var places []int
	for _, e := range entries {
		places = append(places, id.FindSubmatchIndex(e)[2])
	}
	for b.Loop() {
		if i == len(entries) {
			i = 0
			n++
		}
		copy(entries[i][places[i]:], fmt.Appendf(nil, "%08x", n)[:8])
		s.Message(framing.Message{Data: entries[i]}, from, now)
		i++
		if len(s.block.lines) > 200<<10 {
			s.block.lines, s.block.ends = s.block.lines[:0], s.block.ends[:0]
			s.kept()
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

var _ outputs.Output = (*memory)(nil)
