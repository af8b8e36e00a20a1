package main

import (
	"slices"
	"strings"
	"time"

	"spillway/edge/pipeline"
)

// ofVault are the options of inputs with PARSE=vault.
var ofVault = []string{"PREFIX", "PAIRING", "PAIR_TIMEOUT", "DEDUPE", "RAW_SECRETS"}

// requestTime is how long Vault lets a request take, and a response be on its way,
// unless default_max_request_duration says otherwise.
const requestTime = 90 * time.Second

// vaultDefaults puts the defaults of inputs with PARSE=vault over those of others: an
// entry may be large, its connection is never closed for being quiet, as that costs an
// entry, and what the kernel holds for us is small, as a crash loses it. A full buffer
// makes Vault's write fail at once, so that its other devices go on, where a socket
// lets us say so.
func (in *Input) vaultDefaults(d map[string]string, scheme string) {
	d["DATASET"], d["LANE"], d["FRAMING"], d["MAX_MESSAGE_SIZE"] = "vault.audit", "audit", "delimiter", "64MiB"
	d["IDLE_TIMEOUT"], d["MAX_MESSAGE_AGE"] = "0", "0"
	switch in.Socket {
	case "tcp", "tls":
		d["ON_FULL"], d["SO_RCVBUF"] = "refuse", "64KiB"
	case "unix", "unixpacket":
		if scheme != "fd" { // which systemd holds open
			d["ON_FULL"] = "refuse"
		}
	}
}

// vault checks the options of inputs with PARSE=vault.
func (in *Input) vault(e *environment, under string) {
	if !strings.EqualFold(in.ParseName, "vault") {
		for _, o := range ofVault {
			e.idle(under+o, "changes nothing without %sPARSE=vault: set that, or remove it", under)
		}
		return
	}
	in.Vault = &pipeline.VaultOptions{
		Prefix: []byte(in.Prefix), Pairing: in.Pairing, PairTimeout: in.PairTimeout, Dedupe: in.Dedupe,
		DropRaw: e.oneOf(under+"RAW_SECRETS", in.RawSecrets, "keep", "drop") == "drop",
	}
	if !in.http() && !in.datagram() && strings.ContainsAny(in.Prefix, "\n\x00") {
		e.problem(under+"PREFIX", "has a line end in it, at which a stream is cut: choose another prefix for the audit device")
	}
	if in.PairTimeout < time.Second {
		e.problem(under+"PAIR_TIMEOUT", "out of bounds: use 1s or more")
	} else if in.Pairing && in.PairTimeout < requestTime {
		e.note(under+"PAIR_TIMEOUT", "a request may take %v in Vault (default_max_request_duration): one that takes longer than this is told as lost; use more than that", requestTime)
	}
	for _, o := range []string{"DROP_SEVERITY_ABOVE", "DROP_REGEX"} {
		e.idle(under+o, "not with %sPARSE=vault: no audit entry is dropped for what it says; remove it, and filter where records are read", under)
	}
	e.idle(under+"MULTILINE", "not with %sPARSE=vault, whose entries are one line: remove it", under)
	if in.IdleTimeout > 0 && (in.Socket == "tcp" || in.Socket == "tls") {
		e.note(under+"IDLE_TIMEOUT", "Vault never looks whether its connection was closed, so that each close costs the entry that it writes next: use 0")
	}
	if in.Scheme == "fd" && strings.HasPrefix(in.Socket, "unix") && !in.datagram() && !e.has(under+"ON_FULL") {
		e.note(under+"ON_FULL", "requests to Vault wait while the buffer is full, as a unix socket that systemd holds open can't be closed: use a unix:// URL, or say that it is meant")
	}
	if in.datagram() {
		e.note(under+"URL", "Vault can't send an entry that is larger than a datagram, its request fails then if it has no other device, and a datagram that gets lost is told by nobody: use tcp://, or unix:// on one host")
	}
}

// vaultLanes tells of lanes in which Vault depends on other senders.
func (c *Config) vaultLanes(e *environment) {
	for _, in := range c.Inputs {
		i := slices.IndexFunc(c.Inputs, func(other Input) bool { return other.Vault == nil && other.Lane == in.Lane })
		if in.Vault != nil && i >= 0 {
			e.note(in.variable()+"LANE", "input %s has the same lane: what is sent there can fill the buffer that Vault depends on; give one of them a lane of its own", c.Inputs[i].Name)
		}
	}
}
