#!/usr/bin/env bash
# Everything a change has to pass. Prints the seconds of each phase at the end.
#   scripts/test.sh [--tier commit|full]
# commit (default): bootstrap, format, include arrows, build, headers, tests, clang-tidy on changes.
# Integration tests run apart. full: also Transformers loading what we write, compressed-tensors reading what an external
# engine receives, vLLM and SGLang reading our config.json where NIBBLE_ENGINE_PYTHON names a Python with them, and the
# tests under AddressSanitizer + UBSan and, torch-free ones, ThreadSanitizer.
set -euo pipefail

cd "$(dirname "$0")/.."
tier=commit
while [ $# -gt 0 ]; do
  case "$1" in
    --tier) tier=${2:-}; shift 2 || true ;;
    --tier=*) tier=${1#--tier=}; shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
case "$tier" in
  commit | full) ;;
  *) echo "test.sh: --tier is '$tier'; it must be commit or full" >&2; exit 2 ;;
esac

deps=${NIBBLE_DEPS_DIR:-$PWD/.deps}
jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
summary=""
current="start"

finish() {
  local status=$?
  printf '\ntest.sh, tier %s:\n%s' "$tier" "$summary"
  printf '  %-28s %5d s\n' total "$SECONDS"
  [ "$status" = 0 ] || echo "test.sh: FAILED in phase: $current"
}
trap finish EXIT

# phase NAME COMMAND...
phase() {
  local start=$SECONDS
  current=$1
  shift
  printf '\n== %s\n' "$current"
  "$@"
  summary+=$(printf '  %-28s %5d s' "$current" $((SECONDS - start)))$'\n'
}

build() { cmake --build --preset "$1" -j "$jobs" "${@:2}"; }

# python_environment NAME FILE...: a Python of its own with what the files pin, kept until they change. The
# build's has no more of torch than its libraries.
python_environment() {
  local folder=$deps/$1 wanted
  shift
  wanted=$(cat "$@")
  [ "$wanted" = "$(cat "$folder/installed.txt" 2>/dev/null)" ] && return
  rm -rf "$folder"
  python3 -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${@/#/-r}"
  printf '%s\n' "$wanted" >"$folder/installed.txt"
}

# engine_configs: their packages are many GB and pin each other's versions away, so nobody installs them unasked.
engine_configs() {
  if [ -z "${NIBBLE_ENGINE_PYTHON:-}" ]; then
    echo "left out: NIBBLE_ENGINE_PYTHON is not set; tests/oracles_live/check_engine_configs.py says what to install"
    return
  fi
  env OMP_NUM_THREADS=1 NIBBLE_BINARY="$PWD/build/cpu/bin/nibble" \
    "$NIBBLE_ENGINE_PYTHON" -B tests/oracles_live/check_engine_configs.py || [ $? = 77 ]
}

phase bootstrap scripts/bootstrap.sh
phase "Python of python/" python_environment client python/requirements.txt
phase format scripts/check_format.sh
phase "include arrows" python3 -B scripts/check_includes.py
phase configure cmake --preset cpu "-DNIBBLE_DEPS_DIR=$deps" "-DNIBBLE_CLIENT_PYTHON=$deps/client/bin/python"
phase build build cpu
phase "self-contained headers" build cpu --target check_headers
phase test ctest --preset cpu -LE integration
phase "integration tests" ctest --preset cpu -L integration
phase clang-tidy scripts/check_tidy.sh

if [ "$tier" = full ]; then
  phase "Python of tests/oracles_live/" python_environment oracles tests/oracles_live/requirements.txt python/requirements.txt
  phase "Transformers loads ours" env OMP_NUM_THREADS=1 NIBBLE_BINARY="$PWD/build/cpu/bin/nibble" \
    "$deps/oracles/bin/python" -B tests/oracles_live/check_transformers_load.py
  phase "Transformers loads all kinds" env OMP_NUM_THREADS=1 NIBBLE_BINARY="$PWD/build/cpu/bin/nibble" \
    "$deps/oracles/bin/python" -B tests/oracles_live/check_converted_variants.py
  phase "vLLM, SGLang read our config" engine_configs
  phase "compressed-tensors reads ours" env OMP_NUM_THREADS=1 NIBBLE_BIN="$PWD/build/cpu/bin/nibble" \
    "$deps/oracles/bin/python" -B tests/oracles_live/check_external_engine.py
  for preset in cpu-asan cpu-tsan; do
    phase "$preset configure" cmake --preset "$preset" "-DNIBBLE_DEPS_DIR=$deps"
    phase "$preset build" build "$preset"
    phase "$preset test" ctest --preset "$preset"
  done
fi
