// Package buffer is a durable first-in-first-out queue of sealed batches in one
// directory: the disk between a lane's inputs and its outputs.
//
// # Guarantees
//
//   - With SyncGroup, what Append returned for survives a power cut, provided that
//     the device honours flushes and that writing new bytes does not destroy old
//     ones in the same sector. With SyncInterval at most the interval is lost, with
//     SyncNever what the kernel had not written. A killed process loses nothing
//     that Append returned for, whatever the policy.
//   - What Next returns was appended, byte for byte; numbers only grow; one number
//     of an epoch is never seen with two contents (except under SyncNever, after
//     a power cut). A batch that lies on the disk twice is delivered once.
//   - What can't be delivered any more is told by Gaps, counted from the record
//     numbers: dropped to make room, damaged, missing. Damage costs only itself.
//   - The segments are the only truth. Cursor, footers and segment headers are helps:
//     any of them may be deleted or destroyed, and what follows is repeats, never
//     loss. Open writes nothing and succeeds on any damage.
//   - The position is durable before a segment goes; the note of a drop is, too.
//   - What InDoubt returned for is marked as sent before until its output has
//     acknowledged it. No output is said to have taken what it did not acknowledge.
//   - What Reject takes out of the line is in rejected/ before, and told by Gaps.
//
// # On disk
//
//	<directory>/          0700, flock on the directory itself; no lock file
//	  <ordinal>-<epoch>-<first>-<salt>-<agent>.seg     0600
//	  cursor              two slots: position, plan, drops, gaps; see appendSlot
//	  quarantine/         damaged segments that were drained, bounded
//	  rejected/           segments of what no output takes, bounded; see Reject
//
//	segment   [header 112][batch header 136][payload]…[batch header][payload][footer 80]
//	           |           |                                             |
//	           |           batch.AppendHeader                            appendFooter, if it was
//	           appendSegmentHeader                                       filled or closed in order
//
// Every header is a zstd skippable frame, so that a segment of zstd batches is a
// legal .zst file. Every header has its own CRC32C, and the salt of its segment,
// which is random: nothing inside a payload is ever taken for a batch.
//
// # States of a segment
//
//	in memory ──the disk works again──> written whole, with footer
//
//	being written ──full──> footer ─────────────┐
//	     │    └──Close──> footer, all synced ───┤
//	     ├──write or sync error──> given up ────┼──> delivered ──KeepAcked──> removed
//	     └──crash──> cut off ───────────────────┘                       └──> quarantine/, if damaged
//
// Nothing is ever appended to a segment of an earlier life, and none is truncated
// or rewritten. A segment that is given up is never synced again; what was not
// durable in it is written again to the next one. So of what lies in a segment
// under numbers from the next segment's first on, the later copy counts.
//
// The newest segment is never removed: it tells the next start what was the last
// number. Segments are created by the first batch that goes into them, under an
// ordinal above every other in the directory.
//
// # Recovery
//
// Open does this; it only reads:
//
//  1. Lock and check the directory.
//  2. Sort the segments by the ordinals in their names.
//  3. Read both slots of the cursor; the newest valid one counts.
//  4. Read the newest segment: its footer, where that and the cursor say the same; else
//     all of it.
//  5. Go on with its epoch if the cursor says that the last life ended with Close,
//     footer and cursor have the same last number, nothing knows of a higher one and
//     the agent is the same. Else begin a new epoch above every number found;
//     Start.Previous says what its first record must tell. After a read error (not
//     damage) 2^32 numbers are left out.
//  6. Aim delivery behind the cursor's position; without a cursor behind the acked
//     floor of the newest readable segment header; without that at the oldest batch.
//  7. Unless the cursor says that the last life ended with Close, mark what is not
//     delivered yet as sent before.
//
// Begin, before the first number is given, saves the cursor, which from then on does
// not say any more that a life ended with Close. If it can't be saved, a new epoch
// begins. The first Next, Read or Append after an unclean stop syncs the newest segment
// and the directory, before anything of it is seen.
//
// Reading steps from header to header. Where none is intact, it searches for the
// next one with the right salt; where a payload is bad, it steps over it. Bytes
// that a later header says were synced, or that a footer or the next segment
// vouches for, are "corrupt", others "torn", which is normal after a crash. Missing
// numbers are told when the batch behind them comes to the head of the line.
//
// # Concurrency
//
// All methods may be called from any goroutine. There is no goroutine and no clock
// in here: the first Append that waits writes and syncs for all, and Maintain is
// called by the owner. Next blocks Close's return only until it has seen it. Next
// and Read have files and memory of their own.
//
// # Limitations
//
//   - One process, one reader, Linux, a local file system.
//   - 8,192 segments of 1 GiB at most; a run without Limits.Bytes is cut at 64 MiB.
//   - A torn sector may not destroy bytes that were durable before; no padding to
//     sectors or pages is done.
//   - Of damage at the very end of an epoch it is known what is lost only from the
//     footer, from intact headers, or from the cursor if that is of the epoch.
//   - While the disk takes no writes, batches (see ErrMemory; under SyncInterval at most
//     MaxUnsynced also that Append returned for) and positions live in memory only.
//   - On a disk that is so full that not even the cursor can be overwritten, delivered
//     segments make room all the same. A hole in them, or what Reject took out of
//     the line, is then told by this life only.
//   - A cursor whose file takes no write three times in a row, while the disk takes others,
//     is removed and made anew. If the disk fails between the two, what it held is forgotten:
//     doubts, plans, gaps that are not told. What was delivered is repeated then.
//   - What is in memory only (Options.Memory) is lost with the process. Of gap records that
//     were lost so, nothing is told.
//   - If an earlier life's tail can't be synced and the cursor can't be saved either,
//     it is handed out all the same, so that a dying disk can be drained.
package buffer
