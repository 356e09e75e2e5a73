#!/usr/bin/env bash
# Reproduces the GPU tables of docs/performance.md, each part in eight minutes or less, from the folder that
# scripts/gpu_bundle.sh makes, on a machine with a GPU, its driver and python3 with torch 2.11.
#   scripts/gpu_report.sh PART [OUTPUT FOLDER]
#   tests    kernels, trainer and engine against the CPU and Transformers, exactness, NCCL failures
#   nccl     the CI jobs as 2 trainer ranks and 2 rollout workers: over NCCL, over Gloo, on the CPU
#   shapes   decode, prompts, training pass and packing of Qwen3-0.6B, 4B and a 30B-A3B shape
#   learn    the main job, three seeds at once, 200 steps: MODE=int4 | bf16 | noqat (needs models/ and data/)
set -euo pipefail

cd "$(dirname "$0")/.."
part=${1:-}
out=$(realpath -m "${2:-gpu-report}")
mkdir -p "$out"
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$torch/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)/usr/local/cuda/lib64
export NCCL_NVLS_ENABLE=0 NIBBLE_TEST_ROOT=$PWD
seconds_each=${LIMIT:-230}

report_runs() {  # report_runs RUN...: one JSON line a run
  python3 - "$@" <<'PYTHON'
import json, pathlib, statistics, sys

for run in sys.argv[1:]:
    rows = [json.loads(line) for line in open(pathlib.Path(run) / "metrics.jsonl")]
    steps = [row for row in rows if "step_ms" in row]
    line = {"run": run, "steps": len(steps),
            "eval": [[row["step"], round(row["eval_reward_mean"], 4)] for row in rows if "eval_reward_mean" in row]}
    for key in ("step_ms", "generate_ms", "reference_ms", "forward_backward_ms", "optimizer_ms", "pack_ms",
                "sync_wire_ms", "pause_ms"):
        line["median_" + key] = round(statistics.median(row[key] for row in steps if key in row), 2)
    line["gap_mean"] = statistics.fmean(row["logprob_abs_diff_mean"] for row in steps)
    line["gap_max"] = max(row["logprob_abs_diff_max"] for row in steps)
    line["loss"] = [row["loss"] for row in steps[:6]]
    print(json.dumps(line))
PYTHON
}

case "$part" in
  tests)
    failed=0
    for name in kernels_cuda models_cuda engine_cuda nccl_group; do
      "bin/${name}_test" --gtest_brief=1 >"$out/$name.log" 2>&1 || failed=1
      tail -n 3 "$out/$name.log"
    done
    exit "$failed"
    ;;
  nccl)
    for job in tiny-dense tiny-moe; do
      for way in nccl gloo cpu; do
        run=$out/$job-$way
        rm -rf "$run"
        device=(--set cluster.device=cuda --set "weight_sync.transport=$way")
        [ "$way" != cpu ] || device=(--set cluster.device=cpu)
        timeout 100 bin/nibble train "configs/ci/$job.yaml" "${device[@]}" --set "run.directory=$run" >"$run.log" 2>&1
        report_runs "$run"
        bin/nibble inspect "$run/checkpoints/step-000006" --json | grep -o '"[a-z]*_sha256":"[0-9a-f]*"'
      done
    done
    ;;
  shapes)
    for model in qwen3-0.6b qwen3-4b 30b-a3b; do
      bin/gpu_model_bench --model "$model" 2>"$out/$model.err" | tee "$out/$model.jsonl"
    done
    bin/gpu_model_bench --model qwen3-4b --weights bf16 2>/dev/null | tee "$out/qwen3-4b-bf16.jsonl"
    ;;
  learn)
    pids=()
    suffix=$(case "${MODE:-int4}" in int4) ;; bf16) echo -bf16 ;; noqat) echo -int4-noqat ;; esac)
    for seed in 1 2 3; do
      run=$out/learn$suffix-$seed
      timeout "$seconds_each" bin/nibble train "configs/quickstart/smollm2-addition$suffix.yaml" \
        --set "run.directory=$run" --set "run.seed=$seed" --set run.steps=200 --set cluster.device=cuda \
        --set cluster.threads_per_worker=2 --set eval.every=20 --set eval.samples=16 --set checkpoint.every=1000 \
        --set rollout.max_running=256 --set rollout.kv_tokens=32768 --set rollout.max_step_tokens=2048 \
        --set weight_sync.transport=gloo >"$run.log" 2>&1 &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    report_runs "$out/learn$suffix"-{1,2,3}
    ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
