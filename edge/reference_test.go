//go:build !no_jetstream && !no_s3

package main

import (
	"os"
	"testing"
)

// TestReference holds docs/reference.md to what this binary does. The reference
// has all kinds of outputs, so a build without some has no such test.
func TestReference(t *testing.T) {
	const path = "../docs/reference.md"
	if *update {
		if err := os.WriteFile(path, []byte(reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != reference() {
		t.Errorf("%s is not what `spillway env --markdown` prints: rewrite it with go test ./edge -run Reference -update", path)
	}
}

func TestOptionOfAnotherKind(t *testing.T) {
	_, err := load(t, "SPILLWAY_OUTPUTS=a", "SPILLWAY_OUTPUT_A_URL=file:///tmp/a", "SPILLWAY_OUTPUT_A_PATH_STYLE=true")
	want := `SPILLWAY_OUTPUT_A_PATH_STYLE: an option of s3 outputs, and a is none: see SPILLWAY_OUTPUT_A_URL`
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
