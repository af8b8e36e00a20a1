package buffer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mutant is a seeded bug: the patch of its name in testdata/mutants takes out one
// thing that is taken care of.
type mutant struct {
	name string
	does string // for docs/reliability.md
	test string // the test that notices it
	pkg  string // whose test that is; "": buffer
}

// mutants are all of them. A new one without a test: TestMutants says which one notices it.
var mutants = []mutant{
	{"nodirsync", "no sync of the directory when a segment was created", "TestPowerCuts", ""},
	{"basereuse", "a new segment takes the newest one's place in the order", "TestQuarantine", ""},
	{"cursornosync", "the cursor is written and not synced", "TestUnsyncedCursor", ""},
	{"nocursorfloor", "the cursor does not say below which number nothing new may come", "TestEpochs", ""},
	{"oneslot", "the cursor has one slot", "TestPowerCuts", ""},
	{"slotsinonesector", "the two slots of the cursor share a sector", "TestSlotsShareNoPage", ""},
	{"nocursorcrc", "the checksum of the cursor is not compared", "TestBitFlips", ""},
	{"deletebeforeack", "segments are removed before they are delivered", "TestHold", ""},
	{"appendnofsync", "Append returns without fsync", "TestQuarantine", ""},
	{"nopayloadcrc", "the checksum of a payload is not compared", "TestQuarantine", ""},
	{"noheadercrc", "the checksum of a batch's header is not compared", "TestBitFlips", ""},
	{"noresync", "behind damage the rest of the segment is given up", "TestBitFlips", ""},
	{"stopscanattorn", "opening reads the newest segment up to the first damage only", "TestBitFlips", ""},
	{"nosalt", "headers with the salt of another segment are taken", "TestHostilePayload", ""},
	{"retryfsync", "a failed fsync is tried again", "TestInterval", ""},
	{"appendtooldsegment", "the next life appends to the newest segment", "TestLife", ""},
	{"lengthbeforecrc", "the length in a header is believed before its checksum is looked at", "TestBitFlips", ""},
	{"idwithoutcrc", "the identity of a batch has no checksum in it", "TestIdentity", "buffer/batch"},
	{"readpastdurable", "readers see what is not durable yet", "TestInterval", ""},
	{"unlinkbeforecursor", "a delivered segment is removed before the position is durable", "TestUnsyncedCursor", ""},
	{"keydatefromclock", "the date in the key of an object is that of the clock", "TestKey", "outputs"},
	{"doubtnotdurable", "InDoubt returns before its note is durable", "TestManyDoubts", ""},
	{"doubtforgotten", "an acknowledgement ends the output's doubts behind it too", "TestInDoubt", ""},
	{"dropnotnoted", "a segment is dropped before the note of it is durable", "TestVerifyAfterDropBehindAPlan", ""},
	{"gapnotsaved", "the cursor has the position behind a hole and not the hole", "TestDropOldest", ""},
	{"toldforgotten", "a hole whose record is lost too is not told again", "TestGapRecordLostToo", ""},
	{"beginnotsaved", "a life begins without a note in the cursor", "TestFloor", ""},
	{"beginfailedcontinues", "numbers go on in the same epoch though the cursor could not be saved", "TestBeginThatCantSave", ""},
	{"killedcontinues", "numbers go on in the same epoch after a life that did not end in order", "TestManyDoubts", ""},
	{"copiescount", "what was written again to the next segment is also delivered from the one that was given up", "TestEveryFault", ""},
	{"notsettled", "what an earlier life left unsynced is handed out", "TestHandedOutIsDurable", ""},
	{"rejectednotdurable", "what was rejected leaves the line before its copy is durable", "TestPowerCuts", ""},
	{"takenoverholes", "an output is said to have what lies in a hole before what it took", "TestTaken", ""},
	{"sealnotchained", "a segment's header does not say the seal before it", "TestDropOldest", ""},
	{"floortoohigh", "the acked floor counts what was handed out", "TestFloorIsNotWhatWasHandedOut", ""},
	{"flooroverholes", "the acked floor counts a hole that is not told yet", "TestFloor", ""},
	{"quarantinebeforedrain", "a damaged segment is put aside before what is intact in it is delivered", "TestDamagedIsDrainedFirst", ""},
	{"readisdelivered", "KEEP_ACKED counts what was read as delivered", "TestDropSparesThePlan", ""},
	{"newestremoved", "the newest segment goes when it is delivered", "TestHold", ""},
	{"foreigncursor", "another buffer's cursor is believed", "TestForeignCursor", ""},
	{"oldergeneration", "of two valid slots the first counts", "TestLife", ""},
	{"otherslotafterfailure", "after a failed save the good slot is overwritten next", "TestCursorAfterAFailedSave", ""},
	{"plannotdurable", "an object is handed over before its plan is durable", "TestPlanThatCantBeRepeated", ""},
	{"plannotspared", "drop_oldest takes segments of a planned object", "TestDropSparesThePlan", ""},
	{"strandedforgotten", "what SyncInterval had not synced is not written again after an error", "TestInterval", ""},
	{"triedforgotten", "a number whose Append failed may come again with other content", "TestSameNumberSameContent", ""},
	{"closenosync", "Close does not sync", "TestClosedIsDurable", ""},
	{"closedeventhough", "Close says that all is in order though it failed", "TestFailedCloseIsNotOrderly", ""},
	{"unreadablenotskipped", "numbers go on right behind what could not be read", "TestUnreadableNumbersAreLeftOut", ""},
	{"readerrorisdamage", "a read error is damage at once", "TestBlockComesBack", ""},
	{"outageisdamage", "what can't be read is damage though nothing can be read", "TestOutage", ""},
	{"runoverhole", "a run crosses a hole in the numbers", "TestSkippedNumbers", ""},
	{"footerpromises", "the footer of a full segment says that all before it is durable", "TestFooterPromisesWhatIsSynced", ""},
	{"ringforgotten", "the memory ring forgets what is not delivered", "TestRing", ""},
	{"ringisdurable", "Append says that what is in memory only is durable", "TestRing", ""},
	{"ringnotsynced", "what was in memory is written and not synced", "TestRingPowerCuts", ""},
	{"ringfooterfirst", "the footer of a segment of the ring goes out before what it vouches for is synced", "TestRingFooter", ""},
	{"ringnodirsync", "no sync of the directory when a segment of the ring was written", "TestRingNotNeeded", ""},
	{"ringforfull", "a full disk counts as one that fails", "TestRingNotNeeded", ""},
	{"handedisacked", "the position that is saved when memory comes to the disk counts what was handed out", "TestHandedOutOfMemory", ""},
	{"ringnotended", "a segment in memory is let go of without its footer", "TestRingFullWhileWritten", ""},
	{"ringinstead", "what is in the way of memory on a short disk stays", "TestRingShortDisk", ""},
	{"badslotiscertain", "a bad slot of the cursor beside a good one is taken for nothing", "TestBadSlotBesideAClosedOne", ""},
	{"neweronlynewest", "only the newest file says whether a newer version wrote there", "TestNewerIsRefused", ""},
	{"newerisdamage", "what a newer version wrote is damage", "TestNewerInTheMiddle", ""},
	{"newercursor", "the cursor of a newer version is taken for a bad one", "TestCursorSlots", ""},
	{"emptyslotiscertain", "an empty slot of the cursor is taken for one that was not written yet", "TestNewestSlotForgotten", ""},
	{"newerbatches", "batches of a newer version in the newest segment are opened", "TestNewerIsRefused", ""},
	{"newerlookback", "batches of a newer version before a torn newest segment are opened", "TestNewerIsRefused", ""},
	{"neweroutoforder", "batches of a newer version whose number went down are opened", "TestNewerOutOfOrder", ""},
	{"newerlongheader", "the header of a segment is looked for in this version's length only", "TestLongerHeaderAndFooter", ""},
	{"newerlongbatch", "a batch header longer than this version's is damage", "TestNewerIsRefused", ""},
	{"newerfooter", "a footer of a newer version is damage", "TestNewerIsRefused", ""},
	{"newercodec", "a batch with an unknown codec is damage", "TestNewerIsRefused", ""},
	{"newersearched", "behind damage, what a newer version wrote is passed over", "TestNewerBehindDamage", ""},
	{"newerholdsall", "what lies before what a newer version wrote is not delivered", "TestBeforeNewer", ""},
	{"newerplan", "a planned object is written without what a newer version wrote", "TestPlanAcrossNewer", ""},
	{"newerread", "Read steps over what a newer version wrote", "TestNewerInTheMiddle", ""},
	{"newerreason", "an unknown reason of a gap is taken for another", "TestSlotOfALaterVersion1", ""},
	{"slotexact", "a cursor with more in it than is known is taken for a bad one", "TestSlotOfALaterVersion1", ""},
	{"oneslotfirst", "a new cursor is saved to one slot", "TestFirstSave", ""},
	{"plannotindoubt", "a plan that can't be repeated is forgotten and not in doubt", "TestPlanThatIsDamagedIsInDoubt", ""},
	{"epochbegunbehind", "without any segment the numbers of the epoch before are those of the next one too", "TestAllSegmentsGone", ""},
	{"missinglookback", "of many segments that a disk forgot four are told", "TestManyZeroedSegments", ""},
	{"missinguntold", "what was stored and only the cursor knows of is not told", "TestZeroedSegments", ""},
	{"missingdelivered", "what was delivered is told as missing", "TestAllSegmentsGone", ""},
	{"missingofbefore", "numbers of the epoch before are told as missing of the cursor's", "TestForgottenEpochs", ""},
	{"missingnottorn", "what was not synced yet is told as if it had been durable", "TestGapIsToldAgain", ""},
	{"missinghurt", "what is lost in a damaged newest segment is told as missing", "TestZeroedSegments", ""},
	{"missingnewestonly", "of several segments that a disk forgot the newest one is told", "TestManyZeroedSegments", ""},
	{"sealvouches", "the cursor vouches for what is in memory only", "TestRingPartlyWritten", ""},
	{"headlessremoved", "a delivered segment without its own header is not put aside", "TestZeroedSegments", ""},
	{"joinedalways", "verify says that the writer left out what lay in a missing segment", "TestVerifyMissingSegment", ""},
	{"durableforgotten", "what the cursor says was durable does not count", "TestNeverIsTorn", ""},
	{"newerdropped", "a segment of a newer version is dropped to make room", "TestNewerIsNotDropped", ""},
	{"newerexpires", "Maintain tries again and again to let a segment of a newer version expire", "TestNewerDoesNotExpire", ""},
	{"newerfits", "a buffer grows behind a segment of a newer version", "TestNewerIsNotDropped", ""},
	{"damageinbytesonly", "damage in the place of a record that was durable is a write that was cut off", "TestZeroedSegments", ""},
	{"durableheader", "a segment's header says that what is before it is durable though it is not", "TestWhatWasDurable", ""},
	{"durablelazy", "the cursor says that what never left to the kernel is durable", "TestWhatWasDurable", ""},
	{"durableunsynced", "the cursor says that what interval has not synced is durable", "TestWhatWasDurable", ""},
	{"durableclosed", "after Close the cursor does not say that all is durable", "TestWhatWasDurable", ""},
	{"durablebyany", "any later header says that what is before it was durable", "TestNeverIsTorn", ""},
	{"durablegivenup", "what lies once more in the next segment was durable in the one that was given up", "TestGivenUpIsTorn", ""},
	{"durabledropped", "what was dropped was durable in the segment before it", "TestGivenUpIsTorn", ""},
	{"durablememory", "the cursor says that all is durable while records are in memory only", "TestMemoryIsNotVouchedFor", ""},
	{"goneisdurable", "what was written to a file that somebody removed is taken for durable", "TestUnsyncedOfARemovedFile", ""},
	{"voucherforgotten", "what vouches for an epoch is looked for again at each damaged segment", "TestJudgeIsLinear", ""},
	{"verifybyany", "verify takes any later header for one that says what is before it was durable", "TestVerifyTornOrDamaged", ""},
	{"unreadheadless", "a delivered segment that can't be read is put aside", "TestNotReadIsNotZeroed", ""},
	{"asideonfull", "damaged segments are put aside on a full disk too", "TestRoomNotInQuarantine", ""},
	{"emptyisnothing", "an empty segment that goes is taken for none that can go", "TestRoomEmptySegment", ""},
	{"movedisfree", "what was put aside is counted as free", "TestRoomNotInQuarantine", ""},
	{"quarantineblocks", "a segment that can't be put aside stays", "TestRoomNoQuarantine", ""},
	{"holeblocks", "a hole that nothing readable follows keeps what was delivered before it", "TestRoomBeforeAHole", ""},
	{"foreigntrimmed", "files in quarantine/ that are no segments are removed", "TestQuarantineForeign", ""},
	{"barredblocks", "where rejected/ can't be written nothing goes on behind what was rejected", "TestRejectBarred", ""},
	{"barredsynced", "a sub-directory that nothing was done to is synced", "TestDirectoriesInTheWay", ""},
	{"holehead", "a segment in which something is lost counts as delivered before that is told", "TestHoleIsToldFirst", ""},
	{"newestondisk", "the newest segment on the disk goes while newer ones are in memory", "TestRingNewestOnDisk", ""},
	{"holedropped", "a hole is told as dropped with the segment behind it", "TestHoleIsToldBeforeADrop", ""},
	{"givenupdropped", "what was given up at the end of an epoch is told as dropped", "TestDropWhatWasGivenUp", ""},
	{"verifyanycursor", "verify takes any cursor for one that says what was durable", "TestVerifyBelievesTheCursor", ""},
	{"newerunread", "a segment of a newer version is dropped where Next has not come to it", "TestNewerIsNotDropped", ""},
	{"badslotcostsboth", "a slot of the cursor that can't be read costs the other", "TestUnreadableSlot", ""},
	{"cursornotreadagain", "a cursor that could not be read is saved without a look at its newest slot", "TestCursorIsReadAgain", ""},
	{"expireduntold", "what expires is not told", "TestMaxAge", ""},
	{"expiredbyanyclock", "segments expire while the clock is not synchronised", "TestMaxAgeClocks", ""},
}

// TestMutantsTable holds the list, the patches and docs/reliability.md together.
func TestMutantsTable(t *testing.T) {
	files, err := filepath.Glob("testdata/mutants/*.patch")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	table := "| seeded bug | noticed by |\n|---|---|\n"
	for _, m := range mutants {
		want = append(want, filepath.Join("testdata/mutants", m.name+".patch"))
		table += fmt.Sprintf("| %s | %s |\n", m.does, strings.TrimPrefix(m.pkg+" ", " ")+m.test)
	}
	slices.Sort(want)
	if !slices.Equal(files, want) {
		t.Errorf("patches:\n%s\nlisted:\n%s", strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	const path = "../docs/reliability.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`(?m)^\| seeded bug \|.*\n(\|.*\n)*`).Find(page)
	if string(old) == table {
		return
	}
	if !*update || old == nil {
		t.Fatalf("%s has another table; -update writes it:\n%s", path, table)
	}
	if err := os.WriteFile(path, bytes.Replace(page, old, []byte(table), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMutants is the test of the tests: each mutant must fail the test that the list
// names. A patch that does not apply any more fails too: write it anew.
func TestMutants(t *testing.T) {
	overlay := seed(t)
	bins, tests := map[string]string{}, map[string][]string{}
	for _, m := range mutants {
		if bins[m.pkg] == "" {
			bins[m.pkg] = build(t, m.pkg, overlay)
		}
		if m.test != "" && !slices.Contains(tests[m.pkg], m.test) {
			tests[m.pkg] = append(tests[m.pkg], m.test)
		}
	}
	for pkg, names := range tests {
		t.Run(strings.TrimSpace("unpatched "+pkg), func(t *testing.T) {
			t.Parallel()
			if out, err := runTests(t, bins[pkg], pkg, "", "-test.run=^("+strings.Join(names, "|")+")$"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			var out []byte
			err := error(nil)
			if m.test != "" {
				out, err = runTests(t, bins[m.pkg], m.pkg, m.name, "-test.run=^"+m.test+"$")
			}
			if err == nil {
				out, err = runTests(t, bins[m.pkg], m.pkg, m.name, "-test.skip=^TestMutants")
			}
			found := regexp.MustCompile(`(?m)^--- FAIL: (\w+)`).FindSubmatch(out)
			switch {
			case err == nil:
				t.Error("no test notices it")
			case found == nil:
				t.Errorf("it did not fail by a test: %v\n%s", err, out)
			case string(found[1]) != m.test:
				t.Errorf("%s notices it, the list says %q:\n%s", found[1], m.test, out)
			default:
				t.Logf("%s: %s notices it", m.name, m.test)
			}
		})
	}
}

// seed returns the overlay with which the compiler builds all mutants at once: each function
// that a patch changes holds beside what it does what the patch makes of it.
//
//	func (b *Buffer) delivered() bool {
//		if seeded == "ringforgotten" {
//			return func() bool { what the patch makes of it }()
//		}
//		what it does
//	}
//
// seeded is what SPILLWAY_MUTANT says when the tests are run.
func seed(t *testing.T) (overlay string) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	added := map[string]map[int]string{} // by file and offset
	files := map[string]string{}         // that the compiler is to take
	for _, m := range mutants {
		patched, err := m.apply(t.TempDir(), root)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		for name, text := range patched {
			if added[name] == nil {
				added[name], files[name] = map[int]string{}, read(t, filepath.Join(root, name))
			}
			pkg, before, rest := functions(t, name, files[name])
			_, after, same := functions(t, m.name, text)
			if rest != same {
				t.Errorf("%s: it changes more of %s than what functions do", m.name, name)
			}
			files[filepath.Join(filepath.Dir(name), "seeded.go")] = "package " + pkg + "\n\nimport \"os\"\n\nvar seeded = os.Getenv(\"SPILLWAY_MUTANT\")\n"
			for head, f := range after {
				if was := before[head]; was.body != f.body {
					call := fmt.Sprintf("func() %s {\n//line %s/%s:%d\n%s}()", f.results, m.name, name, f.line, f.body)
					if f.results == "" {
						call += "; return"
					} else {
						call = "return " + call
					}
					added[name][was.off] += fmt.Sprintf("\nif seeded == %q { %s }\n//line %s:%d\n", m.name, call, filepath.Base(name), was.line)
				}
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	dir, replace := t.TempDir(), map[string]string{}
	for name, text := range files {
		for _, off := range slices.Backward(slices.Sorted(maps.Keys(added[name]))) {
			text = text[:off] + added[name][off] + text[off:]
		}
		replace[filepath.Join(root, name)] = write(t, filepath.Join(dir, name), text)
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(dir, "overlay.json"), string(data))
}

// function is one of a file.
type function struct {
	results, body string
	off, line     int // where the body begins
}

// functions are those of a file by what stands before their bodies; rest is the file
// without bodies.
func functions(t *testing.T, name, text string) (pkg string, all map[string]function, rest string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	at := func(p token.Pos) int { return set.Position(p).Offset }
	all = map[string]function{}
	end := 0
	for _, d := range file.Decls {
		if d, ok := d.(*ast.FuncDecl); ok {
			f := function{off: at(d.Body.Lbrace) + 1, line: set.Position(d.Body.Lbrace).Line}
			f.body = text[f.off:at(d.Body.Rbrace)]
			if r := d.Type.Results; r != nil {
				f.results = text[at(r.Pos()):at(r.End())]
			}
			all[text[at(d.Pos()):f.off]] = f
			rest += text[end:f.off]
			end = at(d.Body.Rbrace)
		}
	}
	return file.Name.Name, all, rest + text[end:]
}

// apply returns the files below root that the patch changes, as it makes them.
func (m *mutant) apply(dir, root string) (map[string]string, error) {
	patch := filepath.Join(root, "buffer/testdata/mutants", m.name+".patch")
	text, err := os.ReadFile(patch)
	if err != nil {
		return nil, err
	}
	git := exec.Command("git", "apply", "--whitespace=nowarn", patch)
	git.Dir = dir
	git.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir)) // no repository around it
	files := map[string]string{}
	for _, f := range regexp.MustCompile(`(?m)^\+\+\+ b/(\S+)`).FindAllSubmatch(text, -1) {
		name := string(f[1])
		files[name] = ""
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return nil, err
		}
	}
	if out, err := git.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("it does not apply: %w\n%s", err, out)
	}
	for name := range files {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = string(data)
	}
	return files, nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// write writes a file, with its directory, and returns its path.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// build compiles the tests of a package, with what makes the compiler fast.
func build(t *testing.T, pkg, overlay string) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-gcflags=-l -dwarf=false", "-ldflags=-s -w", "-overlay="+overlay, "-o", bin, ".")
	cmd.Dir = directory(pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// runTests runs tests of a package as a mutant does, or unpatched, up to the first failure.
func runTests(t *testing.T, bin, pkg, name, which string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, "-test.failfast", "-test.timeout=10m", which)
	cmd.Dir = directory(pkg)
	cmd.Env = append(os.Environ(), "SPILLWAY_CRASH_SEED=1", "SPILLWAY_CRASH_BUDGET=1", "SPILLWAY_MUTANT="+name)
	return cmd.CombinedOutput()
}

// directory is that of the package whose tests are run; "": buffer.
func directory(pkg string) string {
	if pkg == "" {
		return "."
	}
	return filepath.Join("..", pkg)
}
