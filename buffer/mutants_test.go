package buffer

import (
	"bytes"
	"encoding/json"
	"fmt"
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
	{"notsettled", "what an earlier life left unsynced is handed out", "TestPowerCuts", ""},
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
	{"badslotiscertain", "a bad slot of the cursor beside a good one is taken for nothing", "TestBadSlotBesideAClosedOne", ""},
	{"neweronlynewest", "only the newest file says whether a newer version wrote there", "TestNewerIsRefused", ""},
	{"newerisdamage", "what a newer version wrote is damage", "TestNewerInTheMiddle", ""},
	{"newercursor", "the cursor of a newer version is taken for a bad one", "TestCursorSlots", ""},
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

// TestMutants is the test of the tests: each mutant is built and must fail the test
// that the list names. A patch that does not apply any more fails too: write it anew.
func TestMutants(t *testing.T) {
	t.Run("unpatched", func(t *testing.T) {
		t.Parallel()
		tests := map[string][]string{}
		for _, m := range mutants {
			if m.test != "" && !slices.Contains(tests[m.pkg], m.test) {
				tests[m.pkg] = append(tests[m.pkg], m.test)
			}
		}
		for pkg, names := range tests {
			bin := (&mutant{pkg: pkg}).build(t, "")
			if out, err := runTests(t, bin, pkg, "-test.run=^("+strings.Join(names, "|")+")$"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	})
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			bin := m.build(t, m.overlay(t))
			var out []byte
			err := error(nil)
			if m.test != "" {
				out, err = runTests(t, bin, m.pkg, "-test.run=^"+m.test+"$")
			}
			if err == nil {
				out, err = runTests(t, bin, m.pkg, "-test.skip=^TestMutants")
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

// overlay patches copies of the files that the patch names, and returns the file that
// tells the compiler to take these instead.
func (m *mutant) overlay(t *testing.T) string {
	t.Helper()
	patch, err := filepath.Abs("testdata/mutants/" + m.name + ".patch")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(patch)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for _, f := range regexp.MustCompile(`(?m)^\+\+\+ b/(\S+)`).FindAllSubmatch(text, -1) {
		name := string(f[1])
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied, data, 0o644); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, name)] = copied
	}
	apply := exec.Command("git", "apply", "--whitespace=nowarn", patch)
	apply.Dir = dir
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir)) // no repository around it
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("it does not apply: %v\n%s", err, out)
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// dir is the directory of the package whose tests are run.
func (m *mutant) dir() string {
	if m.pkg == "" {
		return "."
	}
	return filepath.Join("..", m.pkg)
}

// build compiles the package's tests, with what makes the compiler fast.
func (m *mutant) build(t *testing.T, overlay string) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-gcflags=-l -dwarf=false", "-ldflags=-s -w", "-overlay="+overlay, "-o", bin, ".")
	cmd.Dir = m.dir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// runTests runs tests of a package, up to the first failure.
func runTests(t *testing.T, bin, pkg, which string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, "-test.failfast", "-test.timeout=10m", which)
	cmd.Dir = (&mutant{pkg: pkg}).dir()
	cmd.Env = append(os.Environ(), "SPILLWAY_CRASH_SEED=1", "SPILLWAY_CRASH_BUDGET=1")
	return cmd.CombinedOutput()
}
