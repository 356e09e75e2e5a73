#!/usr/bin/env bash
# Figures of several GPUs of one machine, in eight minutes or less altogether, from the folder that
# scripts/gpu_bundle.sh makes, on a machine with their driver and python3 with torch 2.11.
#   [PARTS="sync train faults exact"] scripts/gpu_report_multi.sh 2 [OUTPUT FOLDER] [ARGUMENT OF gpu_pair_bench]...
# Each part leaves PART.jsonl and PART.log; the exit code is 1 if one failed or took longer than its limit. LIMIT: seconds
# for all of them.
#   sync    publications from a trainer's GPU to an engine's: wire, hashes, swap, while it generates
#   train   supervised steps of one rank and of two: data, tensor, expert; INT4 and BF16
#   faults  sender and receiver killed or stopped in the middle of a publication
#   exact   log-probabilities in exact numerics of one rank and of two, to the bit
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "${1:-}" != 2 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit 2
fi
out=$(realpath -m "${2:-gpu-report-multi}")
arguments=("${@:3}")
read -ra parts <<<"${PARTS:-sync train faults exact}"
declare -A limit_s=([sync]=270 [train]=200 [faults]=150 [exact]=90)
mkdir -p "$out"
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$torch/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)/usr/local/cuda/lib64
export NCCL_NVLS_ENABLE=0

failed=0
end=$((SECONDS + ${LIMIT:-480}))
for part in "${parts[@]}"; do
  begin=$SECONDS
  left=$((end - begin > 0 ? end - begin : 1))
  if ! timeout "$((left < limit_s[$part] ? left : limit_s[$part]))" bin/gpu_pair_bench --part "$part" "${arguments[@]}" \
    2> >(tee "$out/$part.log" >&2) | tee "$out/$part.jsonl"; then
    echo "$part: FAILED, see $out/$part.log" >&2
    failed=1
  fi
  echo "$part: $((SECONDS - begin)) s" >&2
done
exit "$failed"
