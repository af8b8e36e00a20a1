package buffer

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestQuarantineLimit: quarantine/ holds the newest damaged segments, as many as
// QuarantineBytes lets it; what does not fit, or none may, is removed.
func TestQuarantineLimit(t *testing.T) {
	const each = segmentHeaderSize + 136 + 500 + footerSize
	for _, tt := range []struct {
		name  string
		limit int64
		want  int // files
	}{
		{"default", 0, 6},
		{"all", 6 * each, 6},
		{"two", 3*each - 1, 2},
		{"one", each, 1},
		{"too little", each - 1, 0},
		{"none", -1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, d := simulated(t, Options{SegmentBytes: 1, KeepAcked: -1, QuarantineBytes: tt.limit})
			w := newWriter(b.Begin())
			for i := range 12 {
				put(t, b, w.seal(1, text(500, byte(i))))
			}
			names := d.segments()
			var damaged []string
			for i := 0; i < 12; i += 2 {
				d.flip(names[i], 8*(segmentHeaderSize+136+100))
				damaged = append(damaged, names[i])
			}
			drain(t, b, 6)
			for range 12 {
				b.Maintain(b.o.Now())
			}
			files, err := d.List(quarantine)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range files {
				got = append(got, f.Name)
			}
			if want := damaged[6-tt.want:]; !slices.Equal(got, want) {
				t.Errorf("%d files are kept, want the newest %d", len(got), tt.want)
			}
			if n := len(d.segments()); n != 1 {
				t.Errorf("%d segments are left", n)
			}
			if s := b.Stats(); s.Lost[ReasonDamaged] != 6 || s.PendingRecords != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// setType sets the field Type, whose size depends on the architecture.
func setType[T ~int32 | ~uint32 | ~int64](field *T, magic int64) { *field = T(magic) }

// TestNetworkFS: every file system on which locks or syncs mean less is refused by its name,
// with the setting that allows it; local ones are not.
func TestNetworkFS(t *testing.T) {
	for magic, name := range map[int64]string{0x6969: "nfs", 0x517B: "smb", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x01021997: "9p",
		0x5346414F: "afs", 0x73757245: "coda", 0x00C36400: "ceph", 0x7461636F: "ocfs2"} {
		var s unix.Statfs_t
		setType(&s.Type, magic)
		err := refuseRemote("/state", &s, false)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "on "+name+" ") || !strings.Contains(err.Error(), "SPILLWAY_BUFFER_NETWORK_FS=true") {
			t.Errorf("%s: %v", name, err)
		}
		if err := refuseRemote("/state", &s, true); err != nil {
			t.Errorf("%s, allowed: %v", name, err)
		}
	}
	if len(remote) != 9 {
		t.Errorf("%d file systems are refused, and 9 are tested", len(remote))
	}
	for magic, name := range map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.F2FS_SUPER_MAGIC: "f2fs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay"} {
		var s unix.Statfs_t
		setType(&s.Type, magic)
		if err := refuseRemote("/state", &s, false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNetworkFSOpen: a directory on one is opened only if that is allowed. The file system of
// this test counts as one for a moment.
func TestNetworkFSOpen(t *testing.T) {
	dir := t.TempDir()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	here := uint32(s.Type)
	remote[here] = "farfs"
	defer delete(remote, here)
	if b, err := Open(dir+"/a", Options{Agent: "gw-1"}); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "on farfs neither") {
		t.Errorf("%v, %v", b, err)
	}
	if err := Check(dir+"/b", false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Check: %v", err)
	}
	b, err := Open(dir+"/a", Options{Agent: "gw-1", NetworkFS: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := Check(dir+"/a", true); err != nil {
		t.Errorf("Check: %v", err)
	}
}
