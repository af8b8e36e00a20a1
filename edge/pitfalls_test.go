package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestPitfallsPage holds docs/pitfalls.md to what is there: every number once, with a
// reason why it is impossible or the test that shows it, and only tests that exist.
func TestPitfallsPage(t *testing.T) {
	text, err := os.ReadFile("../docs/pitfalls.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	var code strings.Builder // of all tests
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin", "tmp", "dist"}, d.Name()) {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			text, err := os.ReadFile(path)
			code.Write(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := regexp.MustCompile(`\b((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)(?:/([a-z0-9-]+))?`)
	rows := map[int]int{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \|(.*) \|$`).FindAllStringSubmatch(page, -1) {
		n, _ := strconv.Atoi(m[1])
		rows[n]++
		cells := strings.Split(m[2], " |")
		if len(cells) != 4 || strings.TrimSpace(cells[0]) == "" || strings.TrimSpace(cells[1]) == "" || strings.TrimSpace(cells[2]) == "" {
			t.Errorf("row %d: want what goes wrong, who was bitten, what is here, and tests: %q", n, cells)
			continue
		}
		if !tests.MatchString(cells[3]) && !strings.HasPrefix(strings.TrimSpace(cells[2]), "impossible") {
			t.Errorf("row %d is neither impossible nor shown by a test", n)
		}
	}
	for n := 1; n <= 45; n++ {
		if rows[n] != 1 {
			t.Errorf("row %d is there %d times", n, rows[n])
		}
		delete(rows, n)
	}
	if len(rows) > 0 {
		t.Errorf("rows of other numbers: %v", rows)
	}
	for _, m := range tests.FindAllStringSubmatch(page, -1) {
		if !strings.Contains(code.String(), "\nfunc "+m[1]+"(") {
			t.Errorf("there is no %s", m[1])
		}
		var path string
		switch m[1] {
		case "TestMutants":
			path = "../buffer/testdata/mutants/" + m[2] + ".patch"
		case "TestScripts":
			path = "testdata/script/" + m[2] + ".txtar"
		}
		if _, err := os.Stat(path); path != "" && m[2] != "" && err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
}
