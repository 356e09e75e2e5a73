#!/usr/bin/env bash
# Installs what a build needs and this machine lacks: system packages (Debian 12, Ubuntu 24.04) and
# a Python environment in .deps/venv with the pinned LibTorch, Arrow and what tools/ imports. Run it again
# at any time: what is there already costs nothing.
#   NIBBLE_DEPS_DIR   where the pinned packages go (default: .deps beside this folder)
# pip's own configuration (mirrors, proxies) is honoured.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
deps=${NIBBLE_DEPS_DIR:-$root/.deps}
log=$deps/bootstrap.log
packages=(
  g++ cmake ninja-build ccache mold pkg-config git openssl python3 python3-venv
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libyaml-cpp-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libcli11-dev libsqlite3-dev
  libgtest-dev libgmock-dev libbenchmark-dev libpcre2-dev libutf8proc-dev libcairo2-dev
  libgloo-dev libboost-dev zlib1g-dev libzstd-dev libssl-dev patchelf
)
optional_packages=(clang-format-14 clang-tidy-14 iproute2)  # without them their checks are skipped
# The C++ libraries of torch; of its CUDA packages only what libtorch_cpu.so itself links.
pins=(torch==2.11.0 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*')

# Arrow's C++ libraries and headers: nibble-parquet reads calibration data with them.
arrow_pin=pyarrow==26.0.1

say() { printf 'bootstrap: %s\n' "$*"; }

# step NAME COMMAND...: runs it into the log; one line with the seconds it took.
step() {
  local name=$1 start=$SECONDS
  shift
  if "$@" >>"$log" 2>&1; then
    say "$(printf '%-44s %4d s' "$name" $((SECONDS - start)))"
  else
    say "FAILED: $name; the end of $log:"
    tail -n 20 "$log"
    exit 1
  fi
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo env DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

is_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'; }

warn_if_untested() {
  local id="" version=""
  if [ -r /etc/os-release ]; then
    id=$(. /etc/os-release && echo "${ID:-}")
    version=$(. /etc/os-release && echo "${VERSION_ID:-}")
  fi
  case "$id $version" in
    "debian 12" | "ubuntu 24.04") ;;
    *) say "${id:-this system} $version is untried; Debian 12 is known to work, Ubuntu 24.04 is meant to" ;;
  esac
}

apt_install() {
  as_root apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
    install -y --no-install-recommends "$@"
}

install_system_packages() {
  local missing=() wanted=() name
  if ! command -v dpkg-query >/dev/null; then
    say "no dpkg here: install the equivalents of: ${packages[*]}"
    return
  fi
  for name in "${packages[@]}"; do is_installed "$name" || missing+=("$name"); done
  for name in "${optional_packages[@]}"; do is_installed "$name" || wanted+=("$name"); done
  [ ${#missing[@]} -gt 0 ] || [ ${#wanted[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    [ ${#missing[@]} -gt 0 ] || return 0
    say "neither root nor sudo; ask for: apt-get install ${missing[*]}"
    exit 1
  fi
  step "package lists" as_root apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
  for name in "${wanted[@]}"; do
    if [ -n "$(apt-cache madison "$name")" ]; then
      missing+=("$name")
    else
      say "$name is not to be had here; its check will be skipped"
    fi
  done
  [ ${#missing[@]} -eq 0 ] || step "${#missing[@]} system packages" apt_install "${missing[@]}"
}

# has_packages PIN...: true if the environment holds every pin.
has_packages() {
  [ -x "$deps/venv/bin/python" ] && "$deps/venv/bin/python" - "$@" 2>/dev/null <<'PYTHON'
import fnmatch
import importlib.metadata
import sys

for pin in sys.argv[1:]:
    name, _, version = pin.partition("==")
    if not fnmatch.fnmatch(importlib.metadata.version(name), version):
        sys.exit(1)
PYTHON
}

pip_install() {
  "$deps/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

install_torch() {
  if has_packages "${pins[@]}"; then return; fi
  step "Python environment" python3 -m venv --clear "$deps/venv"
  step "LibTorch ${pins[0]#torch==}" pip_install --no-deps "${pins[@]}"
}

install_arrow() {
  if has_packages "$arrow_pin"; then return; fi
  step "Arrow ${arrow_pin#pyarrow==}" pip_install --no-deps "$arrow_pin"
}

install_tools_packages() {
  local requirements=$root/tools/requirements.txt wanted
  mapfile -t wanted < <(grep -v '^ *\(#\|$\)' "$requirements")
  if has_packages "${wanted[@]}"; then return; fi
  step "Python packages of tools/" pip_install -r "$requirements"
}

mkdir -p "$deps"
exec 9>"$deps/.lock"
flock 9  # two bootstraps of one folder take turns
: >"$log"
warn_if_untested
install_system_packages
install_torch
install_arrow
install_tools_packages
say "$(printf '%-44s %4d s' "ready" "$SECONDS")"
