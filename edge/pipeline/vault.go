package pipeline

import "time"

// VaultOptions make an input one of Vault's or OpenBao's audit entries (PARSE=vault).
type VaultOptions struct {
	Prefix      []byte        // stands before each entry; none: whatever stands before its { or <json:
	Pairing     bool          // alert records tell of requests without a response, and of responses without a request
	PairTimeout time.Duration // after it the other half of a pair is missing; longer than Vault lets a request take
	Dedupe      bool          // entries that came before, byte for byte, become no record
	DropRaw     bool          // nor do those with a token that is not hashed
}
