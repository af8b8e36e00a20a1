#!/usr/bin/env bash
# Builds the packages of one architecture: build.sh ARCH BINARY OUT, with ARCH as
# GOARCH has it. The same commit gives the same bytes: every time is that of
# SOURCE_DATE_EPOCH, or of the commit.
#
#   NFPM        nfpm to use (nfpm)
#   MAINTAINER  of the packages, "Name <address>"
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

arch=$1 binary=$(realpath "$2") out=$(realpath "$3")
from=$(realpath "$(dirname "$0")")
root=$(realpath "$from/../..")
cd "$root"

: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH

# v1.2.3 gives 1.2.3, four commits later 1.2.3+4.gabcdef0; v1.2.3-rc1 gives
# 1.2.3~rc1, which is less than 1.2.3. Before the first tag: 0.0.0 and the number
# of commits.
version() {
	local v
	v=$(git describe --tags --long --match 'v[0-9]*' 2>/dev/null) || v=v0.0.0-$(git rev-list --count HEAD)-g$(git rev-parse --short HEAD)
	v=$(sed -E 's/^v(.*)-0-g[0-9a-f]+$/\1/; s/^v(.*)-([0-9]+)-(g[0-9a-f]+)$/\1+\2.\3/; s/-/~/g' <<<"$v")
	if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
		case $v in *+*) v=$v.dirty ;; *) v=$v+dirty ;; esac
	fi
	echo "$v"
}

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
doc=$tree/usr/share/doc/spillway
unit=$tree/usr/lib/systemd/system
mkdir -p "$tree/usr/bin" "$unit" "$doc/docs" "$tree/usr/share/man/man1" "$tree/etc/spillway"
install -m 755 "$binary" "$tree/usr/bin/spillway"
install -m 644 infra/systemd/*.service infra/systemd/*.socket "$unit"
install -m 640 "$from/spillway.env" "$tree/etc/spillway/spillway.env"
gzip -9n <"$from/spillway.1" >"$tree/usr/share/man/man1/spillway.1.gz"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
install -m 644 "$from/copyright" LICENSE README.md "$doc"
install -m 644 docs/*.md "$doc/docs"
"$from/licenses.sh" "$binary" | gzip -9n >"$doc/third-party-licenses.gz"

PKG_TIME=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
PKG_VERSION=${PKG_VERSION:-$(version)}
PKG_MAINTAINER=${MAINTAINER:-Spillway <spillway@localhost>}
case $arch in arm) PKG_ARCH=arm7 ;; *) PKG_ARCH=$arch ;; esac
PKG_TREE=$tree PKG_FROM=$from
export PKG_ARCH PKG_VERSION PKG_MAINTAINER PKG_TIME PKG_TREE PKG_FROM
gzip -9n >"$tree/changelog.Debian.gz" <<END
spillway ($PKG_VERSION-1) unstable; urgency=medium

  * See changelog.gz in this directory.

 -- $PKG_MAINTAINER  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
# nfpm expands no variable in the names of scripts, nor in a time.
sed -e "s|\${PKG_FROM}|$from|; s|\${PKG_TIME}|$PKG_TIME|" "$from/nfpm.yaml" >"$tree/nfpm.yaml"
for kind in deb rpm; do
	"${NFPM:-nfpm}" package -f "$tree/nfpm.yaml" --packager $kind --target "$out/"
done
