#!/usr/bin/env bash
# From a bare machine to a trained model: installs what is missing, builds, fetches
# SmolLM2-135M-Instruct, converts it to INT4, trains it with GRPO and INT4 QAT on small additions,
# and ends with a table and a plot. Run it again at any time: it reuses what is there and resumes a
# run that was stopped.
#   scripts/quickstart.sh [--steps N] [--compare]
#   --steps N     rollout steps to train (default 40)
#   --compare     also trains in BF16, and in INT4 without QAT, and overlays the three curves
#   NIBBLE_DEPS_DIR   where the pinned packages are or go (default: .deps in this repository)
# Debian 12 (meant for Ubuntu 24.04 too, not tried there), root or sudo. Ctrl-C finishes the step and
# keeps a checkpoint.
set -euo pipefail

cd "$(dirname "$0")/.."
steps=40
compare=false
while [ $# -gt 0 ]; do
  case "$1" in
    --steps) steps=${2:-}; shift 2 || shift ;;
    --steps=*) steps=${1#--steps=}; shift ;;
    --compare) compare=true; shift ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
if ! [[ $steps =~ ^[1-9][0-9]{0,5}$ ]]; then
  echo "quickstart.sh: --steps is '$steps'; it must be a whole number of at least 1" >&2
  exit 2
fi

deps=$(realpath -m "${NIBBLE_DEPS_DIR:-.deps}")
export NIBBLE_DEPS_DIR=$deps
jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
python=$deps/venv/bin/python
nibble=build/cpu/bin/nibble
model=models/SmolLM2-135M-Instruct
int4=$model-INT4-g32
data=data/addition
log=runs/quickstart.log
current=""

on_terminal() { [ -t 1 ]; }

# Copies a phase's output into the log; on a terminal its last line is shown beside the phase's
# name. Ctrl-C is for the command whose output this is.
follow() {
  trap '' INT TERM
  local line width=$((${COLUMNS:-$(tput cols 2>/dev/null || echo 80)} - 36))
  [ "$width" -gt 10 ] || width=10
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line" >>"$log"
    if on_terminal && [ -n "$line" ]; then
      # The time and logger in front of a log line say nothing here.
      [[ $line =~ ^[0-9-]+\ [0-9:.]+\ [A-Z]\ (.*)$ ]] && line=${BASH_REMATCH[1]}
      printf '\r\033[K%-34s %s' "$current" "${line:0:width}"
    fi
  done
}

# phase NAME COMMAND...: one line with the seconds it took; on failure the end of the log.
phase() {
  local start=$SECONDS status=0
  current=$1
  shift
  printf '%-34s' "$current"
  printf '\n== %s: %s\n' "$current" "$*" >>"$log"
  "$@" 2>&1 </dev/null | follow || status=$?
  if [ "$status" != 0 ]; then
    on_terminal && printf '\r\033[K%-34s' "$current"
    printf ' FAILED; the end of %s:\n' "$log"
    tail -n 20 "$log"
    exit "$status"
  fi
  on_terminal && printf '\r\033[K%-34s' "$current"
  printf ' %5d s\n' $((SECONDS - start))
}

# Runs when the phase's command has ended: a training run has then written its checkpoint.
on_interrupt() {
  printf '\nquickstart.sh: stopped during: %s. The same command goes on from here.\n' "$current"
  exit 130
}
trap on_interrupt INT TERM

build() {
  cmake --preset cpu "-DNIBBLE_DEPS_DIR=$deps" &&
    cmake --build --preset cpu --target nibble -j "$jobs"
}

fetch_model() {
  "$python" -B tools/fetch_smollm2.py --output "$model" --cache "$deps/cache"
}

# The output directory appears only when complete; --resume clears what a stopped run left.
convert_model() {
  if [ -e "$int4/config.json" ]; then
    echo "$int4 is there"
    return
  fi
  "$nibble" convert --method rtn --quant-group-size 32 --targets linear --resume \
    --input-dir "$model" --output-dir "$int4"
}

# True if the run's newest checkpoint is of the last step or a later one.
is_trained() {
  local meta newest=""
  for meta in "$1"/checkpoints/step-??????/meta.json; do  # not step-000004.partial
    if [ -e "$meta" ]; then newest=$(basename "$(dirname "$meta")"); fi
  done
  [ -n "$newest" ] && [ $((10#${newest#step-})) -ge "$steps" ]
}

# train NAME: the job of configs/quickstart/NAME.yaml, whose run directory is runs/NAME.
train() {
  local resume=()
  if is_trained "runs/$1"; then
    echo "runs/$1 is trained"
    return
  fi
  if [ -e "runs/$1/metrics.jsonl" ]; then resume=(--resume); fi
  "$nibble" train "configs/quickstart/$1.yaml" --set "run.steps=$steps" "${resume[@]}"
}

mkdir -p runs
exec 8>runs/.quickstart.lock
if ! flock -n 8; then
  echo "quickstart.sh: another quickstart.sh runs in this folder; wait for it or stop it" >&2
  exit 1
fi
: >"$log"

phase "dependencies" scripts/bootstrap.sh
phase "build" build
phase "model" fetch_model
phase "data" "$python" -B tools/make_addition_data.py --output "$data"
phase "INT4 conversion" convert_model
phase "training, INT4 QAT" train smollm2-addition
runs=(runs/smollm2-addition)
labels="int4-qat"
if [ "$compare" = true ]; then
  phase "training, BF16" train smollm2-addition-bf16
  phase "training, INT4 without QAT" train smollm2-addition-int4-noqat
  runs+=(runs/smollm2-addition-bf16 runs/smollm2-addition-int4-noqat)
  labels="int4-qat,bf16,int4-no-qat"
fi
plot=runs/smollm2-addition/plots/summary.png
phase "plot" "$nibble" plot runs/smollm2-addition
if [ "$compare" = true ]; then
  plot=runs/smollm2-addition/plots/compare.png
  phase "plot of all runs" "$nibble" plot "${runs[@]}" --labels "$labels" --output "$plot"
fi
printf '\n'
"$python" -B tools/report_run.py "${runs[@]}" --labels "$labels" \
  --weights "BF16=$model" --weights "INT4=$int4"
printf '\nplot: %s\nlog:  %s\n' "$plot" "$log"
