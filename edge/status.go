package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"spillway/edge/admin"
	"spillway/edge/pipeline"
	"spillway/outputs"
)

// sources is what /metrics and /readyz show, asked of the owners at each look.
func (a *agent) sources() admin.Sources {
	s := status{a}
	return admin.Sources{Version: version, Inputs: s.inputStats, Lanes: s.laneStats, Outputs: s.outputStats, Switches: s.switches, Refuses: s.refuses, Stalls: s.stalls, Degraded: s.degraded}
}

// status answers for an agent.
type status struct{ *agent }

func (a status) inputStats() (all []admin.InputStats) {
	for _, in := range a.inputs {
		r, s := in.records, in.stats
		n := func(c *atomic.Int64) uint64 { return uint64(c.Load()) }
		all = append(all, admin.InputStats{
			Name: in.cfg.Name, Accepts: s.Refuses.Load() == 0, Datagrams: in.cfg.datagram() || s.ReceiveBuffer.Load() != 0, TLS: s.CertificateExpires.Load() != 0,
			Messages: r.Messages.Load(), Admitted: r.Admitted.Load(), MessageBytes: r.Bytes.Load(), ParseFailures: r.Failures.Load(), Truncated: r.Truncated.Load(), Dropped: r.Dropped(), Filtered: r.Filtered(),
			ReadBytes: s.Bytes.Load(), EmptyFrames: s.Empty.Load(), Oversize: s.Oversize.Load(), DiscardedBytes: s.Discarded.Load(),
			FramingErrors: s.Framing.Load(), CutFrames: s.Cut.Load(), MemoryCut: s.MemoryCut.Load(), Denied: s.Denied.Load(),
			Connections: s.Connections.Load(), OpenConnections: s.Open.Load(), IdleConnections: s.Idle.Load(), Shut: s.Shut.Load(),
			RefusedConnections: map[string]uint64{"max_connections": n(&s.Refused), "silent": n(&s.Evicted), "tls_on_plain": n(&s.TLSOnPlain), "proxy_header": n(&s.ProxyHeader)},
			StaleConnections:   s.Stale.Load(), Mismatched: map[string]uint64{"octet_counted": n(&s.LooksCounted), "jsonx": n(&s.LooksJSONX)},
			HandshakeFailures: map[string]uint64{"plain": n(&s.HandshakePlain), "timeout": n(&s.HandshakeTimeout),
				"certificate": n(&s.HandshakeCertificate), "other": n(&s.HandshakeOther)},
			CertificateExpires: time.Unix(s.CertificateExpires.Load(), 0),
			Reloads:            map[string]uint64{"ok": n(&s.Reloads), "failed": n(&s.ReloadFailures)},
			ReceiveBuffer:      s.ReceiveBuffer.Load(),
		})
		if in.cfg.Vault != nil {
			all[len(all)-1].Vault = &admin.VaultStats{Entries: r.Entries.Load(), Probes: r.Probes.Load(), Torn: r.Torn.Load(), Resent: r.Resent.Load(), Duplicates: r.Duplicates.Load(),
				RawSecrets: r.RawSecrets.Load(), PrefixMissing: r.PrefixMissing.Load(), Missing: map[string]uint64{"request": n(&r.Orphans), "response": n(&r.Missing)},
				Unwatched: r.Unwatched.Load(), Alerts: r.Alerts.Load()}
		}
		if q := in.requests; q != nil {
			all[len(all)-1].Requests = map[string]uint64{"stored": n(&q.Stored), "full": n(&q.Full), "late": n(&q.Late), "stopped": n(&q.Stopped), "too_large": n(&q.TooLarge),
				"unauthorized": n(&q.Unauthorized), "slow": n(&q.Slow), "invalid": n(&q.Invalid), "gone": n(&q.Gone), "panic": n(&q.Panics)}
		}
	}
	return all
}

func (a status) laneStats() (all []admin.LaneStats) {
	for _, l := range a.lanes {
		s, n := l.buffer.Stats(), l.Counts()
		s.Lost["stopped"] = n.Lost["stopped"]
		ls := admin.LaneStats{
			Name: l.name, AtStart: n.Before, Admitted: n.Admitted, Unstored: n.InFlight, Pending: n.Pending, Delivered: n.Delivered, Lost: s.Lost,
			Resent: l.Resent(), Batches: s.AppendedBatches, BatchBytes: s.AppendedBytes, TimeToFull: admin.Never, TimeToDrain: admin.Never,
			LiveBytes: s.LiveBytes, DiskBytes: s.Bytes, MaxBytes: s.MaxBytes, FreeBytes: s.Free, DiskFailed: s.DiskError != nil, Degraded: s.Degraded, BufferMemory: s.MemoryBytes,
			Full: l.Full(), Shut: l.Shut(), Stalled: a.stall(l) != "", MessageMemory: l.memory.Held(),
			TornBytes: s.TornBytes, CorruptBytes: s.CorruptBytes, Quarantined: s.Quarantined, Syncs: s.Syncs,
		}
		if n.Pending == 0 {
			ls.LiveBytes = 0 // the newest segment stays
		}
		if at := l.OldestPending(); !at.IsZero() {
			ls.PendingAge = max(0, time.Since(at)) // clocks are set
		}
		if d, ok := l.TimeToFull(); ok {
			ls.TimeToFull = d
		}
		if d, ok := l.TimeToDrain(); ok {
			ls.TimeToDrain = d
		}
		all = append(all, ls)
	}
	return all
}

func (a status) outputStats() (all []admin.OutputStats) {
	states, work := a.chain.States(), a.chain.Work()
	for i, o := range a.outs {
		n, w := o.Counts(), work[i] // both in the order of SPILLWAY_OUTPUTS
		s := admin.OutputStats{
			Name: o.Name(), Delivered: n.Delivered, AlreadyThere: n.AlreadyThere, Bytes: n.Bytes,
			InFlightBatches: w.InFlight, InFlightBytes: w.InFlightBytes, Retries: w.Repeats,
			Failures: map[string]uint64{}, Failed: map[string]time.Time{}, Latency: admin.Histogram{Sum: w.Took, Buckets: map[float64]uint64{}},
			Probes: map[string]uint64{"ok": w.Probes - w.FailedProbes, "failed": w.FailedProbes},
		}
		for class := outputs.Retry; class <= outputs.Misconfigured; class++ {
			s.Failures[class.String()] = w.Failures[class-1]
			if at := w.Failed[class-1]; !at.IsZero() {
				s.Failed[class.String()] = at
			}
		}
		for i, n := range w.Latency {
			s.Latency.Count += n
			if i < len(outputs.LatencyBounds) {
				s.Latency.Buckets[outputs.LatencyBounds[i].Seconds()] = s.Latency.Count
			}
		}
		for _, st := range states {
			if st.Output == s.Name {
				l := admin.OutputLane{Lane: st.Lane, State: st.Health.String(), Active: st.Active, Untried: st.Untried, Failures: st.Failures}
				if st.Err != nil {
					l.Error = st.Err.Error()
				}
				s.Lanes = append(s.Lanes, l)
			}
		}
		all = append(all, s)
	}
	return all
}

func (a status) switches() (all []admin.Switch) {
	for s, n := range a.chain.Switches() {
		all = append(all, admin.Switch{Lane: s.Lane, From: s.From, To: s.To, Count: n})
	}
	return all
}

// refuses says why records are not accepted now. A far side that is down is no
// reason: the buffer takes what comes.
func (a status) refuses() (why []string) {
	if a.ending.Load() {
		return []string{"stopping: inputs accept no more"}
	}
	for _, l := range a.lanes {
		switch b := l.buffer.Stats(); {
		case b.DiskError != nil && !(b.Degraded && !l.Full()): // memory takes what comes
			why = append(why, fmt.Sprintf("lane %s: the disk fails: %v", l.name, b.DiskError))
		case l.Full():
			why = append(why, fmt.Sprintf("lane %s: there has been no room for a second or longer: %s", l.name, l.RoomHint()))
		}
		for _, in := range a.inputs {
			switch refuses := in.cfg.Lane == l.name && in.cfg.OnFull == pipeline.Refuse; {
			case refuses && l.Shut():
				why = append(why, fmt.Sprintf("input %s: does not accept: lane %s has no room beside its reserve", in.cfg.Name, l.name))
			case refuses && in.stats.Refuses.Load() != 0:
				why = append(why, fmt.Sprintf("input %s: does not accept: its sockets are not bound again yet", in.cfg.Name))
			}
		}
	}
	return why
}

// degraded says which lanes accept records that are in memory only, and why.
func (a status) degraded() (why []string) {
	for _, l := range a.lanes {
		if s := l.buffer.Stats(); s.Degraded {
			why = append(why, fmt.Sprintf("lane %s: degraded: the disk takes no writes, and what is not delivered is in memory only (%d bytes of %d): %v",
				l.name, s.MemoryBytes, int64(a.cfg.Buffer.Memory), s.DiskError))
		}
	}
	return why
}

// stalls says which lanes have records and deliver none.
func (a status) stalls() (why []string) {
	for _, l := range a.lanes {
		if s := a.stall(l); s != "" {
			why = append(why, s)
		}
	}
	return why
}

// stall says why l counts as stalled, "" if it does not: records wait, and for twice
// FAILOVER_AFTER nothing got through, not counting the time that the output in use
// may gather a run, or that BUFFER_DRAIN_RATE held it back.
func (a status) stall(l *lane) string {
	s := l.buffer.Stats()
	if s.PendingRecords == 0 {
		return ""
	}
	since := s.PendingSince
	if moved := a.chain.Moved(l.name); moved.After(since) {
		since = moved
	}
	if held := l.HeldBack(); held.After(since) {
		since = held
	}
	limit, last := 2*a.cfg.Failover.After, ""
	for _, st := range a.chain.States() {
		if st.Lane != l.name || !st.Active {
			continue
		}
		last = "; it uses output " + st.Output
		if st.Err != nil {
			last += ", whose last failure was " + st.Err.Error()
		}
		for _, o := range a.outs {
			if o.Name() == st.Output {
				limit += o.Limits().Age
			}
		}
	}
	waited := time.Since(since)
	if waited < limit {
		return ""
	}
	return fmt.Sprintf("lane %s: %d records wait and no output acknowledged any for %v%s", l.name, s.PendingRecords, waited.Round(time.Second), last)
}
