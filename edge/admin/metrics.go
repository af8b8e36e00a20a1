package admin

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Every metric of Spillway is in this file. Names are part of the interface:
// they may be added, not changed.

// family is one metric of a thing S, with a value for each S, under its name. by
// gives several, by a second label.
type family[S any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*S) float64
	by    func(*S) map[string]float64
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_"+name, help, labels, nil)
}

func counter[S any](label, name, help string, value func(*S) float64) family[S] {
	return family[S]{desc: newDesc(name, help, label), kind: prometheus.CounterValue, value: value}
}

func gauge[S any](label, name, help string, value func(*S) float64) family[S] {
	return family[S]{desc: newDesc(name, help, label), kind: prometheus.GaugeValue, value: value}
}

// counters has one value for each value of a second label.
func counters[S any](label, second, name, help string, by func(*S) map[string]uint64) family[S] {
	return family[S]{desc: newDesc(name, help, label, second), kind: prometheus.CounterValue, by: func(s *S) map[string]float64 {
		return floats(by(s), func(n uint64) float64 { return float64(n) })
	}}
}

func floats[V any](m map[string]V, f func(V) float64) map[string]float64 {
	out := make(map[string]float64, len(m))
	for k, v := range m {
		out[k] = f(v)
	}
	return out
}

var inputMetrics = []family[InputStats]{
	gauge("input", "input_accepting", "1 while the input's sockets are bound.", func(s *InputStats) float64 { return one(s.Accepts) }),
	counter("input", "input_messages_total", "Messages received.", func(s *InputStats) float64 { return float64(s.Messages) }),
	counter("input", "input_message_bytes_total", "Bytes of messages, without framing.", func(s *InputStats) float64 { return float64(s.MessageBytes) }),
	counter("input", "input_read_bytes_total", "Bytes read from sockets, with framing; of http inputs bodies, unpacked.", func(s *InputStats) float64 { return float64(s.ReadBytes) }),
	counter("input", "input_parse_failures_total", "Messages whose header could not be read; they are kept, with error.message.", func(s *InputStats) float64 { return float64(s.ParseFailures) }),
	counter("input", "input_truncated_total", "Messages cut at MAX_MESSAGE_SIZE, or where their record would get too large.", func(s *InputStats) float64 { return float64(s.Truncated) }),
	counter("input", "input_oversize_total", "Messages over MAX_MESSAGE_SIZE, whatever became of them.", func(s *InputStats) float64 { return float64(s.Oversize) }),
	counter("input", "input_discarded_bytes_total", "Bytes thrown away behind MAX_MESSAGE_SIZE.", func(s *InputStats) float64 { return float64(s.DiscardedBytes) }),
	counter("input", "input_records_admitted_total", "Records that the lane took from the input.", func(s *InputStats) float64 { return float64(s.Admitted) }),
	counters("input", "reason", "input_dropped_total", "Records that never got a number; a gap record tells of them. kernel: datagrams that nobody could read, which are no messages in the counters above.", func(s *InputStats) map[string]uint64 { return s.Dropped }),
	counters("input", "reason", "input_filtered_total", "Messages that became no record: DROP_SEVERITY_ABOVE (severity), DROP_REGEX (text), DEDUPE (duplicate) or RAW_SECRETS=drop (raw_secret, and what is no whole entry).", func(s *InputStats) map[string]uint64 { return s.Filtered }),
	counter("input", "input_empty_frames_total", "Frames and datagrams without content.", func(s *InputStats) float64 { return float64(s.EmptyFrames) }),
	counter("input", "input_framing_errors_total", "Streams whose framing could not be followed.", func(s *InputStats) float64 { return float64(s.FramingErrors) }),
	counter("input", "input_cut_frames_total", "Counted frames that the sender did not finish.", func(s *InputStats) float64 { return float64(s.CutFrames) }),
	counter("input", "input_memory_cut_total", "Unfinished messages treated as over-size: those of the lane together had reached MESSAGE_MEMORY.", func(s *InputStats) float64 { return float64(s.MemoryCut) }),
	counter("input", "input_denied_total", "Connections and datagrams of senders that ALLOW or PEER_UID does not name.", func(s *InputStats) float64 { return float64(s.Denied) }),
}

var streamMetrics = []family[InputStats]{
	counter("input", "input_connections_total", "Connections accepted.", func(s *InputStats) float64 { return float64(s.Connections) }),
	gauge("input", "input_open_connections", "Connections now.", func(s *InputStats) float64 { return float64(s.OpenConnections) }),
	counters("input", "reason", "input_refused_connections_total", "Connections closed: over MAX_CONNECTIONS, for another at that limit because they had said nothing yet (silent), TLS to a port without it, or without the header that PROXY_PROTOCOL asks for.", func(s *InputStats) map[string]uint64 { return s.RefusedConnections }),
	counter("input", "input_idle_connections_total", "Connections closed after IDLE_TIMEOUT.", func(s *InputStats) float64 { return float64(s.IdleConnections) }),
	counter("input", "input_stale_connections_total", "Connections closed because a message was not finished after MAX_MESSAGE_AGE.", func(s *InputStats) float64 { return float64(s.StaleConnections) }),
	counters("input", "looks", "input_mismatched_connections_total", "Connections that look framed otherwise than FRAMING says.", func(s *InputStats) map[string]uint64 { return s.Mismatched }),
	counter("input", "input_shut_total", "How often the input stopped accepting because there was no room (ON_FULL=refuse).", func(s *InputStats) float64 { return float64(s.Shut) }),
}

var vaultMetrics = []family[InputStats]{
	counter("input", "input_vault_entries_total", "Messages that are audit entries.", func(s *InputStats) float64 { return float64(s.Vault.Entries) }),
	counter("input", "input_vault_probes_total", "Entries that enabling an audit device wrote.", func(s *InputStats) float64 { return float64(s.Vault.Probes) }),
	counters("input", "entry", "input_vault_missing_total", "Entries that did not come within PAIR_TIMEOUT of the other one of their request; an alert record tells of each.", func(s *InputStats) map[string]uint64 { return s.Vault.Missing }),
	counter("input", "input_vault_alerts_total", "Alert records that the lane took; they are no messages.", func(s *InputStats) float64 { return float64(s.Vault.Alerts) }),
	counter("input", "input_vault_unwatched_total", "Requests whose response was not waited for, as too many were waiting.", func(s *InputStats) float64 { return float64(s.Vault.Unwatched) }),
	counter("input", "input_vault_torn_total", "Entries that were cut off with their connection; Vault sends them again on the next.", func(s *InputStats) float64 { return float64(s.Vault.Torn) }),
	counter("input", "input_vault_resent_total", "Entries that were cut off and came again as a whole.", func(s *InputStats) float64 { return float64(s.Vault.Resent) }),
	counter("input", "input_vault_duplicates_total", "Entries that came before, byte for byte.", func(s *InputStats) float64 { return float64(s.Vault.Duplicates) }),
	counter("input", "input_vault_raw_secrets_total", "Entries with a token that is not hashed (log_raw=true).", func(s *InputStats) float64 { return float64(s.Vault.RawSecrets) }),
	counter("input", "input_vault_prefix_missing_total", "Messages that do not begin with PREFIX.", func(s *InputStats) float64 { return float64(s.Vault.PrefixMissing) }),
}

var requestMetrics = []family[InputStats]{
	counters("input", "result", "input_requests_total", "Requests that have ended: stored (204); no room (full), not stored within STORE_TIMEOUT (late) or at a stop (stopped), all 503; too_large (413); unauthorized (401); slow (408); invalid (other 4xx); panic (500, a defect); or the sender went away (gone).", func(s *InputStats) map[string]uint64 { return s.Requests }),
}

var tlsMetrics = []family[InputStats]{
	counters("input", "reason", "input_tls_failures_total", "Handshakes that failed: it was not TLS (plain), not finished in time, no good client certificate, or else.", func(s *InputStats) map[string]uint64 { return s.HandshakeFailures }),
	gauge("input", "input_certificate_expires_timestamp_seconds", "When the input's certificate ends to be valid.", func(s *InputStats) float64 { return float64(s.CertificateExpires.Unix()) }),
	counters("input", "result", "input_tls_reloads_total", "TLS files that were read again; when that failed the old ones stay.", func(s *InputStats) map[string]uint64 { return s.Reloads }),
}

var datagramMetrics = []family[InputStats]{
	gauge("input", "input_receive_buffer_bytes", "Receive buffer that the kernel granted.", func(s *InputStats) float64 { return float64(s.ReceiveBuffer) }),
}

var laneMetrics = []family[LaneStats]{
	gauge("lane", "lane_records_at_start", "Records that were stored and not delivered when the agent started.", func(s *LaneStats) float64 { return float64(s.AtStart) }),
	counter("lane", "lane_records_admitted_total", "Records that were given a number, gap records included.", func(s *LaneStats) float64 { return float64(s.Admitted) }),
	gauge("lane", "lane_unstored_records", "Records that have a number and are not stored yet.", func(s *LaneStats) float64 { return float64(s.Unstored) }),
	gauge("lane", "lane_pending_records", "Records that are stored and that no output has yet.", func(s *LaneStats) float64 { return float64(s.Pending) }),
	counter("lane", "lane_records_delivered_total", "Records that an output acknowledged.", func(s *LaneStats) float64 { return float64(s.Delivered) }),
	counters("lane", "reason", "lane_records_lost_total", "Numbered records that no output will get, over all starts; a gap record tells of them. rejected: put aside, as no output takes them.", func(s *LaneStats) map[string]uint64 { return s.Lost }),
	counter("lane", "lane_records_resent_total", "Records sent again because a stream had lost what it had acknowledged.", func(s *LaneStats) float64 { return float64(s.Resent) }),
	counter("lane", "lane_batches_total", "Batches that were stored.", func(s *LaneStats) float64 { return float64(s.Batches) }),
	counter("lane", "lane_batch_bytes_total", "Bytes of their payloads, compressed.", func(s *LaneStats) float64 { return float64(s.BatchBytes) }),
	gauge("lane", "lane_pending_bytes", "Bytes of the segments that pending records are in.", func(s *LaneStats) float64 { return float64(s.LiveBytes) }),
	gauge("lane", "lane_pending_age_seconds", "Time since the oldest pending record was received.", func(s *LaneStats) float64 { return s.PendingAge.Seconds() }),
	gauge("lane", "lane_time_to_full_seconds", "Time until there is no room, if records come and go as in the last minute; +Inf: it does not fill.", func(s *LaneStats) float64 { return seconds(s.TimeToFull) }),
	gauge("lane", "lane_time_to_drain_seconds", "Time until nothing is pending, if records come and go as in the last minute; +Inf: it does not get less.", func(s *LaneStats) float64 { return seconds(s.TimeToDrain) }),
	gauge("lane", "lane_disk_bytes", "Bytes of all segments, delivered ones that are kept included.", func(s *LaneStats) float64 { return float64(s.DiskBytes) }),
	gauge("lane", "lane_disk_limit_bytes", "SPILLWAY_BUFFER_MAX_BYTES.", func(s *LaneStats) float64 { return float64(s.MaxBytes) }),
	gauge("lane", "lane_disk_free_bytes", "Free bytes of the buffer's file system, as last seen.", func(s *LaneStats) float64 { return float64(s.FreeBytes) }),
	gauge("lane", "lane_full", "1 while there is no room and inputs wait or drop.", func(s *LaneStats) float64 { return one(s.Full) }),
	gauge("lane", "lane_gate_shut", "1 while inputs with ON_FULL=refuse do not accept.", func(s *LaneStats) float64 { return one(s.Shut) }),
	gauge("lane", "lane_disk_failed", "1 while records can not be written.", func(s *LaneStats) float64 { return one(s.DiskFailed) }),
	gauge("lane", "buffer_degraded", "1 while the disk takes no writes and records are kept in memory only (SPILLWAY_BUFFER_MEMORY).", func(s *LaneStats) float64 { return one(s.Degraded) }),
	gauge("lane", "buffer_memory_bytes", "Bytes of records that are kept in memory for that, or were delivered from there and not let go of yet.", func(s *LaneStats) float64 { return float64(s.BufferMemory) }),
	gauge("lane", "lane_stalled", "1 while records wait and no output has acknowledged any for too long.", func(s *LaneStats) float64 { return one(s.Stalled) }),
	gauge("lane", "lane_message_memory_bytes", "Memory of messages that have not come to their end yet; SPILLWAY_MESSAGE_MEMORY bounds it.", func(s *LaneStats) float64 { return float64(s.MessageMemory) }),
	counter("lane", "lane_torn_bytes_total", "Bytes of writes that were cut off, passed over.", func(s *LaneStats) float64 { return float64(s.TornBytes) }),
	counter("lane", "lane_corrupt_bytes_total", "Damaged bytes that had been durable, passed over.", func(s *LaneStats) float64 { return float64(s.CorruptBytes) }),
	counter("lane", "lane_quarantined_segments_total", "Damaged segments that were put aside in quarantine/.", func(s *LaneStats) float64 { return float64(s.Quarantined) }),
	counter("lane", "lane_syncs_total", "Fsyncs of segments.", func(s *LaneStats) float64 { return float64(s.Syncs) }),
}

var outputMetrics = []family[OutputStats]{
	counter("output", "output_delivered_total", "Messages or objects that the far side acknowledged as new.", func(s *OutputStats) float64 { return float64(s.Delivered) }),
	counter("output", "output_already_there_total", "Messages or objects that the far side had already: repeats whose first answer was lost.", func(s *OutputStats) float64 { return float64(s.AlreadyThere) }),
	counter("output", "output_bytes_total", "Bytes of those delivered.", func(s *OutputStats) float64 { return float64(s.Bytes) }),
	gauge("output", "output_in_flight_batches", "Batches handed over and not answered yet.", func(s *OutputStats) float64 { return float64(s.InFlightBatches) }),
	gauge("output", "output_in_flight_bytes", "Bytes of their payloads.", func(s *OutputStats) float64 { return float64(s.InFlightBytes) }),
	counter("output", "output_retries_total", "Runs with records that had been handed over before, to this output or another.", func(s *OutputStats) float64 { return float64(s.Retries) }),
	counters("output", "class", "output_failures_total", "Calls that failed: retry (try again), failover (not well for longer), unfit (not this batch), misconfigured (a person must act).", func(s *OutputStats) map[string]uint64 { return s.Failures }),
	{desc: newDesc("output_last_failure_timestamp_seconds", "When a call last failed so.", "output", "class"), kind: prometheus.GaugeValue,
		by: func(s *OutputStats) map[string]float64 {
			return floats(s.Failed, func(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 })
		}},
	counters("output", "result", "output_probes_total", "Probes of the output while it was left.", func(s *OutputStats) map[string]uint64 { return s.Probes }),
}

var (
	outputLatency = newDesc("output_latency_seconds", "How long runs took that were accepted whole.", "output")
	outputActive  = newDesc("output_active", "1 for the output that gets the lane's records now.", "output", "lane")
	outputInARow  = newDesc("output_consecutive_failures", "Failed calls in a row.", "output", "lane")
	outputState   = newDesc("output_state", "1 for the state that the output is in: up, failing, down (left, and probed) or trial (the next run decides).", "output", "lane", "state")
	switches      = newDesc("failovers_total", "How often the lane went from one output to another, failbacks included.", "lane", "from", "to")
	ready         = newDesc("ready", "1 when /readyz says 200: inputs are bound, lanes accept records, and none of them is stalled.")
	buildInfo     = newDesc("build_info", "Always 1.", "version")
)

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(d time.Duration) float64 {
	if d == Never {
		return math.Inf(1)
	}
	return d.Seconds()
}

// collector asks the sources at every scrape, so that nobody counts twice.
type collector struct{ s Sources }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, families := range [][]family[InputStats]{inputMetrics, streamMetrics, vaultMetrics, requestMetrics, tlsMetrics, datagramMetrics} {
		describe(ch, families)
	}
	describe(ch, laneMetrics)
	describe(ch, outputMetrics)
	for _, d := range []*prometheus.Desc{outputLatency, outputActive, outputInARow, outputState, switches, ready, buildInfo} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	emit := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, s := range c.s.Inputs() {
		collect(emit, inputMetrics, &s, s.Name)
		if !s.Datagrams {
			collect(emit, streamMetrics, &s, s.Name)
		}
		if s.Vault != nil {
			collect(emit, vaultMetrics, &s, s.Name)
		}
		collect(emit, requestMetrics, &s, s.Name)
		if s.TLS {
			collect(emit, tlsMetrics, &s, s.Name)
		}
		if s.ReceiveBuffer > 0 {
			collect(emit, datagramMetrics, &s, s.Name)
		}
	}
	for _, s := range c.s.Lanes() {
		collect(emit, laneMetrics, &s, s.Name)
	}
	for _, s := range c.s.Outputs() {
		collect(emit, outputMetrics, &s, s.Name)
		ch <- prometheus.MustNewConstHistogram(outputLatency, s.Latency.Count, s.Latency.Sum.Seconds(), s.Latency.Buckets, s.Name)
		for _, l := range s.Lanes {
			emit(outputActive, prometheus.GaugeValue, one(l.Active), s.Name, l.Lane)
			emit(outputInARow, prometheus.GaugeValue, float64(l.Failures), s.Name, l.Lane)
			for _, state := range States {
				emit(outputState, prometheus.GaugeValue, one(l.State == state), s.Name, l.Lane, state)
			}
		}
	}
	for _, s := range c.s.Switches() {
		emit(switches, prometheus.CounterValue, float64(s.Count), s.Lane, s.From, s.To)
	}
	emit(ready, prometheus.GaugeValue, one(len(c.s.Refuses()) == 0 && len(c.s.Stalls()) == 0))
	emit(buildInfo, prometheus.GaugeValue, 1, c.s.Version)
}

func describe[S any](ch chan<- *prometheus.Desc, families []family[S]) {
	for _, f := range families {
		ch <- f.desc
	}
}

func collect[S any](emit func(*prometheus.Desc, prometheus.ValueType, float64, ...string), families []family[S], s *S, name string) {
	for _, f := range families {
		if f.by == nil {
			emit(f.desc, f.kind, f.value(s), name)
			continue
		}
		for k, v := range f.by(s) {
			emit(f.desc, f.kind, v, name, k)
		}
	}
}
