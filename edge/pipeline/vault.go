package pipeline

import (
	"context"
	"slices"
	"sync"
	"time"

	"spillway/edge/listen"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/vault"
)

// VaultOptions make an input one of Vault's or OpenBao's audit entries (PARSE=vault). Its
// lane is not Raw.
type VaultOptions struct {
	Prefix      []byte        // stands before each entry; none: whatever stands before its { or <json:
	Pairing     bool          // alert records tell of requests without a response, and of responses without a request
	PairTimeout time.Duration // after it the other half of a pair is missing; longer than Vault lets a request take

	// DropRaw: entries with a token that is not hashed become no record, nor does what is
	// no whole entry, as it may hold one that can't be found. Other secrets stay: who logs
	// in through a device with log_raw has the password in request.data.
	DropRaw bool

	// Dedupe: nor do entries that came before, byte for byte, once the first is the lane's;
	// for who waits for its records (Store), once it is durable. Sooner, the second may
	// be the only one that is kept.
	Dedupe bool
}

// lookEvery is how often Watch looks for what is missing.
const lookEvery = time.Second

// vaultInput is what an input knows of the entries that it has seen. Its sinks share it.
type vaultInput struct {
	o VaultOptions

	mu     sync.Mutex
	pairs  *vault.Pairs  // guarded by mu
	paused time.Duration // how long the clock of pairs has stood still; guarded by mu
}

func newVaultInput(o VaultOptions) *vaultInput {
	return &vaultInput{o: o, pairs: vault.NewPairs(vault.PairOptions{Timeout: o.PairTimeout, Blind: !o.Pairing}, time.Now())}
}

// vaultSink is the part of a sink that reads audit entries.
type vaultSink struct {
	in    *vaultInput
	entry vault.Entry
	marks []vault.Mark // of the block's entries: to keep them, or to undo them if it is dropped
	tight bool         // event.original has no place in the record that comes next
	bare  *ecs.Encoder // without event.original; nil until then
}

// seeEntry holds what parse read against the entries before it, and says why it
// becomes no record.
func (s *sink) seeEntry(m framing.Message, from listen.Sender, now time.Time) filtered {
	v, in, e := s.vault.in, s.in, &s.vault.entry
	if e.NoPrefix {
		in.PrefixMissing.Add(1)
	}
	raw := e.RawToken()
	if raw {
		in.RawSecrets.Add(1)
	}
	sender := vault.Sender{Addr: from.Addr.Addr().Unmap()}
	if from.Conn != nil {
		sender.Since = from.Conn.Since
	}

	why := filteredNot
	if v.o.DropRaw && (raw || e.Err != "") {
		why = filteredSecret
		if e.Err != "" {
			in.Failures.Add(1) // which encode won't
		}
	}
	v.mu.Lock()
	at := now.Add(-v.paused)
	switch {
	case e.Err == "":
		verdict, mark := v.pairs.See(e, sender, at)
		e.Duplicate = verdict == vault.Duplicate || verdict == vault.Again
		if why == filteredNot && v.o.Dedupe && (verdict == vault.Duplicate || verdict == vault.Again && slices.Contains(s.vault.marks, mark)) {
			why = filteredDuplicate // of what is kept, or of the same block
		}
		switch {
		case verdict == vault.Again && why == filteredDuplicate:
			v.pairs.Undo(mark, at) // the block's first has it
		case why != filteredNot:
			v.pairs.Keep(mark) // nothing will be undone
		case mark != (vault.Mark{}):
			s.vault.marks = append(s.vault.marks, mark)
		}
	case e.Torn && m.Flags&framing.Unterminated != 0:
		v.pairs.Torn(e, sender, at)
		in.Torn.Add(1)
	case m.Flags&(framing.Truncated|framing.Part) != 0:
		v.pairs.Forget(e.Get(vault.RequestID), at) // it has come, but is too large
	}
	in.Resent.Store(int64(v.pairs.Resent))
	in.Unwatched.Store(int64(v.pairs.Unwatched))
	v.mu.Unlock()

	if e.Err == "" {
		in.Entries.Add(1)
		if e.IsProbe() {
			in.Probes.Add(1)
		}
	}
	if e.Duplicate {
		in.Duplicates.Add(1)
	}
	return why
}

// appendEntry appends the record of the entry that parse read.
func (s *sink) appendEntry(dst []byte, m framing.Message, now time.Time) []byte {
	if !s.vault.tight {
		return s.enc.AppendVault(dst, m, &s.vault.entry, now)
	}
	s.vault.tight = false
	if s.vault.bare == nil {
		s.vault.bare = s.in.bare()
	}
	s.vault.bare.SetSource(s.enc.Source())
	return s.vault.bare.AppendVault(dst, m, &s.vault.entry, now)
}

// bare returns an encoder of the input's records that keeps no originals.
func (in *Input) bare() *ecs.Encoder {
	o := in.o.Records
	o.PreserveOriginal = ecs.OriginalNone
	return ecs.NewEncoder(o)
}

// keep notes that the records of marks will not be undone.
func (v *vaultInput) keep(marks []vault.Mark) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range marks {
		v.pairs.Keep(m)
	}
}

// undo takes back that the entries of marks were seen.
func (v *vaultInput) undo(marks []vault.Mark) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now().Add(-v.paused)
	for _, m := range marks {
		v.pairs.Undo(m, now)
	}
}

// Watch looks for audit entries that are missing until ctx ends, and hands alert
// records of them to the lane. Where ON_FULL says drop or refuse they wait for room
// here, as nothing will tell again what they tell. One goroutine runs Watch for an input
// with VaultOptions, from before its server begins to serve until after it has ended.
//
// What still waits for its other half at the end is not told: that may come to the next
// agent.
func (in *Input) Watch(ctx context.Context) {
	w := &watch{in: in, enc: in.bare(), last: time.Now()}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			if w.alerts != nil {
				in.Alerts.Add(int64(len(w.alerts.ends)))
				in.drop(w.alerts, lostStopped)
			}
			w.notice(time.Now(), true)
			return
		case <-look.C:
			for w.look(time.Now()) && w.hand(ctx) {
			}
			w.notice(time.Now(), false)
		}
	}
}

// watch is the state of Input.Watch.
type watch struct {
	in     *Input
	enc    *ecs.Encoder
	last   time.Time // of the look before
	alerts *block    // that have no room yet; nil: none

	torn int64 // entries that were cut off and have not come again

	notices [6]struct {
		told int64 // as much of its counter as the log knows
		at   time.Time
	}
}

// look gathers alerts, at most a block of them, and reports whether there are any.
//
// While the input waits for room, nobody reads what would be the other halves: the
// clock of pairs stands still. So it does between two looks that are far apart, when
// the agent did not run.
func (w *watch) look(now time.Time) bool {
	in, v := w.in, w.in.vault
	passed := now.Sub(w.last)
	w.last = now

	v.mu.Lock()
	defer v.mu.Unlock()
	if in.waits() {
		v.paused += passed
	} else if passed > 10*lookEvery {
		v.paused += passed - lookEvery
	}
	if w.alerts != nil {
		return true
	}
	b := in.o.Lane.block()
	b.time = now.UnixNano()
	w.torn += int64(v.pairs.Expire(now.Add(-v.paused), func(m vault.Missing) bool {
		if m.Type == "request" {
			in.Orphans.Add(1)
		} else {
			in.Missing.Add(1)
		}
		b.lines = w.enc.AppendVaultAlert(b.lines, m, v.o.PairTimeout, now)
		b.ends = append(b.ends, uint32(len(b.lines)))
		return len(b.lines) < blockSize
	}))
	if len(b.ends) == 0 {
		in.o.Lane.release(b)
		return false
	}
	w.alerts = b
	return true
}

// hand hands the alerts to the lane. If there is no room, they stay.
func (w *watch) hand(ctx context.Context) bool {
	in, n := w.in, int64(len(w.alerts.ends))
	if in.o.Lane.admit(ctx, w.alerts, in.o.OnFull) != lostNone {
		return false
	}
	w.alerts = nil
	in.Admitted.Add(n)
	in.Alerts.Add(n)
	return true
}

// waits reports whether nothing of the input has got into its lane for a second.
func (in *Input) waits() bool {
	if in.o.OnFull == Refuse {
		return in.o.Lane.stuck(in.o.Lane.last)
	}
	return in.o.Lane.stuck(in.o.Lane.ordinary)
}

// notice says in the log what is to be looked into: at once, and then at most once a
// minute with how often it happened; the rest at the end.
func (w *watch) notice(now time.Time, end bool) {
	in, fate := w.in, "kept as it is"
	if in.vault.o.DropRaw {
		fate = "dropped (RAW_SECRETS=drop)"
	}
	for i, c := range [...]struct {
		n         int64
		text, why string
	}{
		{in.Missing.Load() + in.Orphans.Load(), "audit entries are missing: requests without a response, or responses without a request; alert records name them",
			"see what Vault and the network did then; set PAIRING=false where a filter drops entries or several agents share an address"},
		{in.Failures.Load() - in.Torn.Load(), "messages are no audit entries; each is " + fate,
			"see error.message of records with the tag _vaultparsefailure; a device with format=jsonx needs FRAMING=jsonx"},
		{w.torn, "audit entries were cut off with their connection, and have not come again; what came of them, tagged vault_torn, is " + fate,
			"see whether Vault has another audit device that took them"},
		{in.RawSecrets.Load(), "audit entries hold tokens that are not hashed",
			"remove log_raw from Vault's audit device, or set RAW_SECRETS=drop"},
		{in.PrefixMissing.Load(), "audit entries do not begin with PREFIX", "set it to what the audit device has"},
		{in.Unwatched.Load(), "more requests wait for their response than can be watched; the oldest are not watched any more", "lower PAIR_TIMEOUT, or set PAIRING=false"},
	} {
		k := &w.notices[i]
		if c.n <= k.told || !end && !k.at.IsZero() && now.Sub(k.at) < remind {
			continue
		}
		in.o.Lane.o.Log.Warn(c.text, "input", in.o.Name, "times", c.n-k.told, "hint", c.why)
		k.told, k.at = c.n, now
	}
}
