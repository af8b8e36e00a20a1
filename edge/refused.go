package main

import (
	"path"
	"strings"
)

// refused are names that people may expect, from other programs or from the names
// that are there, and that change nothing here. A variable that changes nothing must not
// be taken in silence: each is told with the one to use instead, or with why there
// is none. The first pattern (path.Match) that fits counts; INPUT/*/ and OUTPUT/*/
// stand for SPILLWAY_INPUT_<NAME>_ and SPILLWAY_OUTPUT_<NAME>_.
//
// The names of syslog-ng's options are those of its network() destination and its
// disk-buffer(), those of Elastic are of the Custom TCP Logs integration and of Beats.
var refused = []struct {
	what     string
	patterns []string
}{
	// The buffer.
	{"the buffer is <SPILLWAY_STATE_DIR>/buffer: set SPILLWAY_STATE_DIR", []string{"BUFFER_DIR", "BUFFER_PATH"}},
	{"every record goes to disk before it is sent: SPILLWAY_BUFFER_SYNC says what a power cut may cost", []string{"BUFFER_RELIABLE"}},
	{"the limit is SPILLWAY_BUFFER_MAX_BYTES, of each lane", []string{"BUFFER_DISK_BUF_SIZE", "BUFFER_CAPACITY_BYTES", "BUFFER_MAX_SIZE", "BUFFER_SIZE", "DISK_BUF_SIZE"}},
	{"nothing waits in memory while the disk works: SPILLWAY_BUFFER_MAX_BYTES limits the disk, SPILLWAY_MESSAGE_MEMORY what unfinished messages may take, SPILLWAY_BUFFER_MEMORY what is kept while the disk takes no writes", []string{
		"BUFFER_MEM_*", "BUFFER_FRONT_*", "BUFFER_QOUT_SIZE", "BUFFER_FLOW_CONTROL_*", "LOG_FIFO_SIZE", "OUTPUT/*/LOG_FIFO_SIZE", "INPUT/*/WINDOW", "INPUT/*/LOG_IW_SIZE", "LOG_IW_SIZE"}},
	{"records are packed and compressed as they come, there is nothing to prune: remove this variable", []string{"BUFFER_COMPACTION"}},
	{"not in this version, segments grow as they fill: SPILLWAY_BUFFER_MIN_FREE keeps the disk from running full", []string{"BUFFER_PREALLOC*", "BUFFER_TRUNCATE_SIZE_RATIO"}},
	{"what has waited is sent at SPILLWAY_BUFFER_DRAIN_RATE, in bytes a second, by all lanes together; what comes goes out as it comes", []string{"THROTTLE", "OUTPUT/*/THROTTLE"}},
	{"not in this version: put SPILLWAY_STATE_DIR on an encrypted disk", []string{"BUFFER_ENCRYPT*", "ENCRYPT*"}},
	{"the policies are SPILLWAY_BUFFER_FULL of the buffer and SPILLWAY_INPUT_<NAME>_ON_FULL of each input", []string{"ON_FULL", "FULL", "BUFFER_ON_FULL", "INPUT/*/FULL"}},

	// What every output sends are the same sealed bytes.
	{"a batch is sealed once and goes out as it is, so that no output changes its text: remove this variable", []string{
		"TEMPLATE*", "OUTPUT/*/TEMPLATE*", "PROTO_TEMPLATE", "OUTPUT/*/PROTO_TEMPLATE", "TIME_ZONE", "OUTPUT/*/TIME_ZONE", "FRAC_DIGITS", "OUTPUT/*/FRAC_DIGITS",
		"TS_FORMAT", "OUTPUT/*/TS_FORMAT", "SUPPRESS", "OUTPUT/*/SUPPRESS"}},
	{"not in this version, which makes no marks: watch /metrics and /readyz instead", []string{"MARK", "MARK_*", "OUTPUT/*/MARK", "OUTPUT/*/MARK_*"}},
	{"batches are made once for all outputs: use SPILLWAY_BATCH_MAX_RECORDS, _MAX_BYTES and _MAX_AGE", []string{
		"FLUSH_LINES", "OUTPUT/*/FLUSH_LINES", "FLUSH_TIMEOUT", "OUTPUT/*/FLUSH_TIMEOUT", "OUTPUT/*/BATCH_*"}},
	{"SPILLWAY_COMPRESSION is for all outputs", []string{"OUTPUT/*/COMPRESSION*"}},
	{"SPILLWAY_ENCODING is for all outputs", []string{"OUTPUT/*/ENCODING"}},

	// The chain.
	{"name each output in SPILLWAY_OUTPUTS, in failover order; more servers of one cluster stand in its URL with commas between them", []string{
		"OUTPUT/*/SERVERS", "OUTPUT/*/FAILOVER*", "OUTPUT/*/FAILBACK*", "FAILOVER_SERVERS", "FAILOVER", "OUTPUT/*/PRIORITY"}},
	{"not in this version: outputs are used in turn (SPILLWAY_OUTPUTS), never two at a time", []string{"FAN_OUT*", "FANOUT*", "OUTPUT_MODE", "OUTPUTS_MODE"}},
	{"a far side that fails is tried again by itself: SPILLWAY_FAILOVER_AFTER and SPILLWAY_FAILBACK_INTERVAL set the pace; of a JetStream output also RECONNECT_MIN and RECONNECT_MAX", []string{
		"TIME_REOPEN", "OUTPUT/*/TIME_REOPEN", "OUTPUT/*/FAIL_AFTER"}},
	{"SPILLWAY_FAILBACK_INTERVAL and SPILLWAY_FAILBACK_PROBES are the names here", []string{"FAILBACK_TCP_PROBE_INTERVAL", "FAILBACK_SUCCESSFUL_PROBES_REQUIRED"}},

	// Outputs.
	{"an option of syslog outputs, which this version does not have: remove this variable", []string{
		"OUTPUT/*/CLOSE_ON_INPUT", "OUTPUT/*/FLAGS", "OUTPUT/*/FORMAT", "OUTPUT/*/FRAMING", "OUTPUT/*/IP_TOS", "OUTPUT/*/IP_TTL", "OUTPUT/*/LOCAL_PORT", "OUTPUT/*/LOCALPORT",
		"OUTPUT/*/SO_BROADCAST", "OUTPUT/*/SPOOF_*", "OUTPUT/*/TRANSPORT", "OUTPUT/*/KEEP_ALIVE"}},
	{"write the port in the URL of the output", []string{"OUTPUT/*/PORT", "OUTPUT/*/DESTPORT"}},
	{"not in this version: routes of this host say which address it sends from", []string{"OUTPUT/*/LOCAL_IP", "OUTPUT/*/LOCALIP"}},
	{"not in this version: write an address of the wanted family in the URL", []string{"OUTPUT/*/IP_PROTOCOL", "INPUT/*/IP_PROTOCOL"}},
	{"not in this version, which finds dead peers by deadlines of its own: remove this variable", []string{
		"OUTPUT/*/SO_KEEPALIVE", "OUTPUT/*/TCP_KEEPALIVE*", "OUTPUT/*/SO_SNDBUF", "OUTPUT/*/SO_RCVBUF"}},
	{"put the CA certificates into one file and name it in SPILLWAY_OUTPUT_<NAME>_TLS_CA_FILE; for an s3 output in AWS_CA_BUNDLE", []string{"OUTPUT/*/CA_DIR", "OUTPUT/*/CA_FILE", "OUTPUT/*/TLS_CA_DIR"}},
	{"a server's certificate is always verified: name its CA in SPILLWAY_OUTPUT_<NAME>_TLS_CA_FILE", []string{
		"OUTPUT/*/TLS_PEER_VERIFY", "OUTPUT/*/TLS_IGNORE_*", "OUTPUT/*/TLS_INSECURE*", "OUTPUT/*/TLS_SKIP_VERIFY", "OUTPUT/*/TLS_TRUSTED_*", "OUTPUT/*/TLS_CRL_*", "OUTPUT/*/TLS_OCSP*"}},
	{"not in this version: TLS is 1.2 or newer with the cipher suites and curves of the Go release, without compression: remove this variable", []string{
		"OUTPUT/*/TLS_*VERSION", "OUTPUT/*/TLS_CIPHER*", "OUTPUT/*/TLS_CURVES", "OUTPUT/*/TLS_ECDH_CURVE_LIST", "OUTPUT/*/TLS_SIGALGS", "OUTPUT/*/TLS_DHPARAM_FILE", "OUTPUT/*/TLS_ALLOW_COMPRESS",
		"OUTPUT/*/TLS_OPENSSL_*", "OUTPUT/*/TLS_SNI", "OUTPUT/*/TLS_KEYLOG_FILE", "OUTPUT/*/TLS_OPTIONS"}},
	{"keys of outputs are PEM without a passphrase: decrypt it (openssl pkey -in KEY -out PLAIN) and let only this user read it", []string{"OUTPUT/*/TLS_KEY_PASSPHRASE*"}},
	{"certificates and keys are PEM: make such files of it (openssl pkcs12 -in FILE -out PEM)", []string{"OUTPUT/*/TLS_PKCS12_FILE", "INPUT/*/TLS_PKCS12_FILE"}},
	{"credentials come from the AWS SDK's own variables and files: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE, …", []string{
		"OUTPUT/*/ACCESS_KEY*", "OUTPUT/*/SECRET_*", "OUTPUT/*/SESSION_TOKEN*", "OUTPUT/*/PROFILE", "OUTPUT/*/ROLE_ARN", "OUTPUT/*/IOT_*"}},
	{"the bucket's own settings rule (default encryption, lifecycle): remove this variable", []string{"OUTPUT/*/STORAGE_CLASS", "OUTPUT/*/SSE*", "OUTPUT/*/KMS_*", "OUTPUT/*/ACL", "OUTPUT/*/OBJECT_LOCK*"}},
	{"bucket and prefix stand in the URL, as in s3://bucket/prefix", []string{"OUTPUT/*/BUCKET", "OUTPUT/*/PREFIX"}},
	{"not in this version: a batch's identity and the stream's duplicate window keep repeats out", []string{"OUTPUT/*/IDEMPOTENCY"}},
	{"outputs are named in SPILLWAY_OUTPUTS and have their settings in SPILLWAY_OUTPUT_<NAME>_…, with a URL as in nats://host:4222 or s3://bucket/prefix", []string{"NATS_*", "S3_*", "SYSLOG_OUTPUT_*"}},

	// Inputs.
	{"address and port stand in SPILLWAY_INPUT_<NAME>_URL, as in tcp://0.0.0.0:5514, and so does the kind of the socket", []string{
		"INPUT/*/ADDRESS", "INPUT/*/HOST", "INPUT/*/PORT", "INPUT/*/LISTEN_ADDRESS", "INPUT/*/LISTEN_PORT", "INPUT/*/SOCKET_TYPE", "INPUT/*/TRANSPORT", "LISTEN_ADDRESS", "LISTEN_PORT"}},
	{"the CAs of clients are in the file of SPILLWAY_INPUT_<NAME>_TLS_CLIENT_CA_FILE", []string{"INPUT/*/TLS_CA_FILE", "INPUT/*/TLS_CA_DIR", "INPUT/*/CA_FILE", "INPUT/*/CA_DIR", "INPUT/*/SSL_CERTIFICATE_AUTHORITIES"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_TLS_CLIENT_AUTH: none, optional or required", []string{"INPUT/*/SSL_CLIENT_AUTHENTICATION", "INPUT/*/SSL_VERIFICATION_MODE", "INPUT/*/TLS_PEER_VERIFY", "INPUT/*/TLS_VERIFICATION_MODE"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_TLS_KEY_PASSPHRASE, or _TLS_KEY_PASSPHRASE_FILE", []string{"INPUT/*/SSL_KEY_PASSPHRASE*", "INPUT/*/TLS_PASSPHRASE*"}},
	{"the names here are SPILLWAY_INPUT_<NAME>_TLS_MIN_VERSION and _TLS_MAX_VERSION", []string{"INPUT/*/SSL_SUPPORTED_PROTOCOLS", "INPUT/*/TLS_VERSION*", "INPUT/*/TLS_SUPPORTED_PROTOCOLS", "INPUT/*/TLS_SSL_OPTIONS"}},
	{"the names here are SPILLWAY_INPUT_<NAME>_TLS_CIPHERS and _TLS_CURVES", []string{"INPUT/*/SSL_CIPHER_SUITES", "INPUT/*/SSL_CURVE_TYPES", "INPUT/*/TLS_CIPHER_*", "INPUT/*/TLS_CURVE_TYPES", "INPUT/*/TLS_ECDH_CURVE_LIST"}},
	{"the names here are SPILLWAY_INPUT_<NAME>_TLS_CLIENT_FINGERPRINTS and _TLS_CLIENT_NAMES", []string{"INPUT/*/TLS_TRUSTED_*", "INPUT/*/TLS_FINGERPRINT*", "INPUT/*/SSL_CA_TRUSTED_FINGERPRINT"}},
	{"not in this version: certificates that may send are named in SPILLWAY_INPUT_<NAME>_TLS_CLIENT_FINGERPRINTS", []string{"INPUT/*/TLS_CRL_*", "INPUT/*/TLS_OCSP*"}},
	{"not in this version, which writes no secrets of connections: remove this variable", []string{"INPUT/*/TLS_KEYLOG_FILE"}},
	{"names of TLS begin with TLS_ here, and certificate and key are PEM files: SPILLWAY_INPUT_<NAME>_TLS_CERT_FILE and _TLS_KEY_FILE, with a URL as in tls://0.0.0.0:6514", []string{
		"INPUT/*/SSL", "INPUT/*/SSL_*", "INPUT/*/CERTIFICATE", "INPUT/*/TLS_CERT", "INPUT/*/TLS_CERTIFICATE", "INPUT/*/TLS_KEY", "INPUT/*/TLS_ENABLED"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_KEEPALIVE", []string{"INPUT/*/SO_KEEPALIVE", "INPUT/*/TCP_KEEPALIVE*", "INPUT/*/KEEP_ALIVE"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_IDLE_TIMEOUT", []string{"INPUT/*/TIMEOUT"}},
	{"SPILLWAY_INPUT_<NAME>_PARSE is the setting: auto, rfc3164, rfc5424, vault or none", []string{"INPUT/*/SYSLOG_PARSING", "INPUT/*/SYSLOG", "INPUT/*/SYSLOG_FORMAT", "INPUT/*/FORMAT"}},
	{"the format of headers is SPILLWAY_INPUT_<NAME>_PARSE, their zone SPILLWAY_INPUT_<NAME>_TIMEZONE", []string{"INPUT/*/SYSLOG_OPTIONS*", "INPUT/*/SYSLOG_TIMEZONE", "INPUT/*/TIME_ZONE"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_DATASET; the other parts of a data stream's name are for the reader: labels.pipeline of its records is SPILLWAY_INPUT_<NAME>_PIPELINE", []string{
		"INPUT/*/DATA_STREAM*", "INPUT/*/DATASET_NAME", "INPUT/*/NAMESPACE", "DATA_STREAM_*"}},
	{"http inputs ask for a token: the name here is SPILLWAY_INPUT_<NAME>_TOKEN, or _TOKEN_FILE", []string{"INPUT/*/BASIC_AUTH*", "INPUT/*/USERNAME", "INPUT/*/PASSWORD*", "INPUT/*/SECRET_*"}},
	{"path and port stand in SPILLWAY_INPUT_<NAME>_URL, as in http://0.0.0.0:8088/audit", []string{"INPUT/*/PATH"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_PRESERVE_ORIGINAL", []string{"INPUT/*/PRESERVE_ORIGINAL_EVENT", "INPUT/*/KEEP_ORIGINAL"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_MAX_MESSAGE_SIZE", []string{"INPUT/*/MAX_SIZE", "INPUT/*/MAX_LINE*", "INPUT/*/MAX_ENTRY", "INPUT/*/LOG_MSG_SIZE"}},
	{"SPILLWAY_INPUT_<NAME>_DELIMITER is the setting", []string{"INPUT/*/LINE_DELIMITER", "INPUT/*/LINE_TERMINATOR"}},
	{"records have no members that are null, and NUL bytes inside a message stay: remove this variable", []string{"INPUT/*/KEEP_NULL"}},
	{"what a sender did not finish is told by log.flags of its record: remove this variable", []string{"INPUT/*/PARTIAL"}},
	{"connections are always drained before they are closed, in the way that loses least: remove this variable", []string{"INPUT/*/CLOSE"}},
	{"the setting is SPILLWAY_INPUT_<NAME>_MULTILINE: off, or pri, with which a line without a PRI goes on with the message before it", []string{"INPUT/*/MULTI_LINE*", "INPUT/*/MULTILINE_*", "INPUT/*/FLAGS"}},
	{"what is dropped here is what SPILLWAY_INPUT_<NAME>_DROP_SEVERITY_ABOVE and _DROP_REGEX name; all else is for who reads the records", []string{
		"INPUT/*/PROCESSORS", "INPUT/*/FILTER*", "INPUT/*/DROP_EVENT*", "INPUT/*/CUSTOM"}},

	// Vault and OpenBao.
	{"audit entries are taken by an input with SPILLWAY_INPUT_<NAME>_PARSE=vault, and have its settings: _PREFIX, _PAIRING, _PAIR_TIMEOUT, _DEDUPE, _RAW_SECRETS, _MAX_MESSAGE_SIZE, _ON_FULL and others", []string{
		"VAULT_*", "INPUT/*/VAULT_*", "INPUT/*/HASHICORP_VAULT*"}},
	{"the name here is SPILLWAY_INPUT_<NAME>_RAW_SECRETS: keep or drop", []string{"INPUT/*/ALLOW_RAW", "INPUT/*/LOG_RAW", "INPUT/*/RAW"}},
	{"an option of Vault's audit device: set it there", []string{"INPUT/*/HMAC_ACCESSOR", "INPUT/*/WRITE_TIMEOUT", "INPUT/*/ELIDE_LIST_RESPONSES", "INPUT/*/SKIP_TEST", "INPUT/*/EXCLUDE", "INPUT/*/FALLBACK"}},
	{"an entry goes out as Vault wrote it, whose strings are hashed there: remove this variable", []string{"INPUT/*/REDACT*"}},
	{"the reserve is SPILLWAY_BUFFER_RESERVE, of each lane with an input that refuses", []string{"BUFFER_RESERVE_*"}},
	{"users that may write are named in SPILLWAY_INPUT_<NAME>_PEER_UID", []string{"INPUT/*/SO_PEERCRED", "INPUT/*/SO_PASSCRED"}},
	{"not in this version: use ExecStartPre= and ExecStopPost= of the systemd unit", []string{"HOOK_*"}},
}

// refusal says why the variable called name is no setting here, "" when nothing is
// known of it.
func refusal(name string) string {
	name = strings.TrimPrefix(name, prefix)
	if side, label, ok := labelled(prefix + name); ok {
		name = side + "/" + label + "/" + name[len(side)+len(label)+2:]
	}
	for _, r := range refused {
		for _, p := range r.patterns {
			if ok, _ := path.Match(p, name); ok {
				return r.what
			}
		}
	}
	return ""
}
