#!/usr/bin/env bash
# Prints the licenses and notices of every module in a Go binary: licenses.sh BINARY.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
go=${GO:-go}

echo "Spillway contains these modules, under the licenses that follow."
"$go" version -m "$1" | awk '$1 == "dep" { print $2, $3 }' | while read -r module version; do
	dir=$("$go" list -m -f '{{.Dir}}' "$module")
	found=$(find "$dir" -maxdepth 1 -type f \( -iname 'licen[sc]e*' -o -iname 'copying*' -o -iname 'notice*' \) | sort)
	if [ -z "$found" ]; then
		echo "licenses: $module $version has no license file in $dir" >&2
		exit 1
	fi
	for file in $found; do
		printf '\n======== %s %s: %s\n\n' "$module" "$version" "$(basename "$file")"
		cat "$file"
	done
done
# The runtime and the standard library.
printf '\n======== Go: LICENSE\n\n'
cat "$("$go" env GOROOT)/LICENSE"
