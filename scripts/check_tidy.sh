#!/usr/bin/env bash
# clang-tidy, warnings as errors, on the C++ files changed since BASE (default: origin/main, or the
# commit before HEAD where HEAD is origin/main). Needs a configured and built build/cpu.
#   scripts/check_tidy.sh [BASE]
set -euo pipefail

cd "$(dirname "$0")/.."
tidy=$(command -v clang-tidy-14 || command -v clang-tidy || true)
if [ -z "$tidy" ]; then
  echo "check_tidy: SKIPPED, clang-tidy is not installed"
  exit 0
fi
database=build/cpu/compile_commands.json
if [ ! -f "$database" ]; then
  echo "check_tidy: no $database; run cmake --preset cpu first" >&2
  exit 2
fi
# A misspelt check in .clang-tidy silently drops out of this number.
echo "check_tidy: $("$tidy" --list-checks | grep -c '^    ') checks on, $("$tidy" --version | grep -o 'version [0-9.]*')"

base=${1:-}
if [ -z "$base" ]; then
  base=$(git merge-base HEAD origin/main 2>/dev/null || true)
  if [ -z "$base" ] || [ "$base" = "$(git rev-parse HEAD)" ]; then
    base=$(git rev-parse --verify -q 'HEAD~1' || git hash-object -t tree /dev/null)
  fi
fi
# A header is checked through the unit that compiles it alone (cmake/nibble_headers.cmake).
units=$({
  git diff --name-only --diff-filter=d "$base" -- '*.cc' '*.h'
  git ls-files --others --exclude-standard -- '*.cc' '*.h'
} | python3 -c '
import json, os, sys
known = [os.path.relpath(entry["file"]) for entry in json.load(open(sys.argv[1]))]
changed = set(sys.stdin.read().split())
for unit in sorted(set(known)):
    _, mark, header = unit.partition("/header_checks/")
    source = header.partition("/")[2][: -len(".cc")] if mark else unit
    if source in changed:
        print(unit)
' "$database")
if [ -z "$units" ]; then
  echo "check_tidy: no C++ file changed since $base"
  exit 0
fi
echo "check_tidy: $(wc -l <<<"$units") files changed since $base"
# The build names warnings of GCC (isa_avx512.cc) that clang does not know.
xargs -r -n 1 -P "$(nproc)" "$tidy" -p build/cpu --quiet \
  --extra-arg=-Wno-unknown-warning-option <<<"$units" 2> >(
  grep -v -E '^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header-filter' >&2 || true)
