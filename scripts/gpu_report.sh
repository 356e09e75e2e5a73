#!/usr/bin/env bash
# Reproduces the GPU tables of docs/performance.md, each part in eight minutes or less, from the folder that
# scripts/gpu_bundle.sh makes, on a machine with a GPU, its driver and python3 with torch 2.11.
#   scripts/gpu_report.sh PART [OUTPUT FOLDER]
#   tests     kernels, trainer and engine against the CPU and Transformers, exactness, NCCL failures
#   nccl      the CI jobs as 2 trainer ranks and 2 rollout workers: over NCCL, over Gloo, on the CPU; offloaded; and
#             with trainers that share heads (tensor) or experts
#   step      a whole GRPO step of the Qwen3-0.6B shape (SHAPES=qwen3-4b MODES=int4, then MODES=bf16: of 4B, offloaded) by
#             phase, and memory by part: INT4 with QAT, and BF16
#   shapes    decode, prompts, training pass and packing of Qwen3-0.6B, 4B and a 30B-A3B shape; what `exact` costs; deltas
# models/ and data/, where a part needs them: the INT4 and BF16 folders and the data that scripts/quickstart.sh makes, and
# data/chain_sum, data/gsm_symbolic of tools/make_reasoning_data.py, copied beside bin/.
#   learn     the main job, 200 steps, every seed of SEEDS at once: MODE=int4 | bf16 | noqat (needs models/ and data/)
#   long      answers of up to 256 tokens: chain_sum and gsm_symbolic, fast (needs models/ and data/)
#   noise     the gap in fast against that of two orders of accumulation in PyTorch (needs models/ and data/)
#   starts    what RL begins in: rounded to nearest, calibrated, BF16. KL to BF16 at the start and reward of SmolLM2's
#             main job (GROUP_SIZES="32 64"; JOB=smollm2) or of the models of `pretrain`, which must have run (JOB=tiny)
#   pretrain  a dense and a MoE model from random weights, then RL in BF16 and with INT4 QAT, g=32 and 128
set -euo pipefail

cd "$(dirname "$0")/.."
part=${1:-}
out=$(realpath -m "${2:-gpu-report}")
mkdir -p "$out"
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$torch/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)/usr/local/cuda/lib64
export NCCL_NVLS_ENABLE=0 NIBBLE_TEST_ROOT=$PWD
seconds_each=${LIMIT:-400}
read -ra seeds <<<"${SEEDS:-1 2 3}"
read -ra extra <<<"${EXTRA:-}" # more arguments of nibble train, for learn, long and the RL of pretrain
# What most jobs here are run with: one process, both roles, on the GPU.
gpu=(--set cluster.device=cuda --set cluster.placement=colocated --set cluster.threads_per_worker=1)

summarize() { python3 -B scripts/summarize_runs.py "$@"; }

# start RUN CONFIG ARGUMENT...: a job in the background; wait_all ends when all have.
pids=()
start() {
  local run=$1 config=$2
  rm -rf "$run"
  timeout "$seconds_each" bin/nibble train "$config" --set "run.directory=$run" "${@:3}" >"$run.log" 2>&1 &
  pids+=($!)
}
wait_all() {
  local failed=0
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  pids=()
  if [ "$failed" != 0 ]; then
    tail -qn 1 "$out"/*.log
    exit 1
  fi
}

case "$part" in
  tests)
    failed=0
    for name in kernels_cuda models_cuda engine_cuda ranks_cuda nccl_group process_transaction mesh; do
      "bin/${name}_test" --gtest_brief=1 >"$out/$name.log" 2>&1 || failed=1
      grep -E "trainer over|worker over|stopped peer" "$out/$name.log" || true
      tail -n 3 "$out/$name.log"
    done
    for model in dense_tied/bf16 dense_untied/int4_sym7 llama_smol/int4_sym7 moe_norm/bf16 moe_mixed/int4_sym7; do
      for path in trainer rollout; do
        seq 1 40 | paste -sd, | sed 's/.*/{"input_ids": [&]}/' |
          bin/nibble logprobs --model "tests/oracles/models/$model" --device cuda --path "$path" --chunk-tokens 7 \
            --routes >"$out/$path.jsonl" 2>>"$out/logprobs.log"
      done
      if cmp "$out/trainer.jsonl" "$out/rollout.jsonl"; then echo "$model: trainer and rollout agree to the bit"; else failed=1; fi
    done
    exit "$failed"
    ;;
  nccl)
    for job in tiny-dense tiny-moe; do
      shares=(tensor=2)
      [ "$job" = tiny-dense ] || shares+=(expert=2 "tensor=2 --set parallel.expert=2")
      ways=(nccl gloo cpu offload)
      for share in "${shares[@]}"; do ways+=("$share-nccl" "$share-gloo"); done
      for way in "${ways[@]}"; do
        run=$out/$job-${way// --set parallel./-}
        device=(--set cluster.device=cuda --set "weight_sync.transport=${way##*-}")
        read -ra share <<<"--set parallel.${way%-*}"
        [[ "$way" != *=* ]] || device+=("${share[@]}")
        [ "$way" != cpu ] || device=(--set cluster.device=cpu)
        [ "$way" != offload ] || device=(--set cluster.device=cuda --set optimizer.offload=true --set model.offload_reference=true)
        start "$run" "configs/ci/$job.yaml" "${device[@]}"
        wait_all
        summarize "$run"
        bin/nibble inspect "$run/checkpoints/step-000006" --json | grep -o '"[a-z]*_sha256":"[0-9a-f]*"'
      done
    done
    ;;
  step)
    python3 -B tools/make_arithmetic_data.py --output data/arithmetic
    for shape in ${SHAPES:-qwen3-0.6b}; do
      model=models/$shape
      rm -rf "$model" "$model-g128"
      python3 -B tools/make_random_model.py --shape "$shape" --weights --output "$model"
      bin/nibble convert --method rtn --targets linear --quant-group-size 128 --input-dir "$model" --output-dir "$model-g128" 2>/dev/null
      offload=()
      [ "$shape" != qwen3-4b ] || offload=(--set optimizer.offload=true --set model.offload_reference=true)
      for mode in ${MODES:-int4 bf16}; do
        run=$out/step-$shape-$mode
        quantize=()
        [ "$mode" != bf16 ] || quantize=(--set qat.enabled=false --set rollout.quantize=false)
        start "$run" configs/pretrain/tiny-qwen3-rl.yaml "${gpu[@]}" --set "model.path=$model" --set "model.int4=$model-g128" \
          --set "run.steps=${STEPS:-4}" --set run.numerics=fast --set rollout.prompts_per_step=16 \
          --set rollout.samples_per_prompt=8 --set optimizer.global_batch=128 --set rollout.max_new_tokens=256 \
          --set rollout.max_positions=512 --set rollout.max_running=128 --set rollout.kv_tokens=0 \
          --set rollout.max_step_tokens=4096 --set parallel.max_tokens_per_device=4096 --set 'eval.data=""' \
          --set checkpoint.every=1000 "${quantize[@]}" "${offload[@]}" "${extra[@]}"
        wait_all
        summarize "$run"
        grep -h "memory plan" "$run.log"
        rm -rf "$run/checkpoints"
      done
    done
    ;;
  shapes)
    bin/gpu_exact_bench 2>"$out/exact.err" | tee "$out/exact.jsonl"
    for model in qwen3-0.6b qwen3-4b 30b-a3b; do
      bin/gpu_model_bench --model "$model" 2>"$out/$model.err" | tee "$out/$model.jsonl"
    done
    for model in qwen3-4b 30b-a3b; do bin/gpu_delta_bench --model "$model" | tee "$out/delta-$model.jsonl"; done
    bin/gpu_model_bench --model qwen3-4b --weights bf16 2>/dev/null | tee "$out/qwen3-4b-bf16.jsonl"
    ;;
  learn)
    suffix=$(case "${MODE:-int4}" in int4) ;; bf16) echo -bf16 ;; noqat) echo -int4-noqat ;; esac)
    runs=()
    for seed in "${seeds[@]}"; do
      run=$out/learn$suffix-$seed
      start "$run" "configs/quickstart/smollm2-addition$suffix.yaml" "${gpu[@]}" --set "run.seed=$seed" \
        --set "run.steps=${STEPS:-200}" --set eval.every=20 --set eval.samples=16 --set checkpoint.every=1000 \
        --set rollout.max_running=256 --set rollout.kv_tokens=32768 --set rollout.max_step_tokens=2048 \
        "${extra[@]}"
      runs+=("$run")
    done
    wait_all
    summarize "${runs[@]}"
    ;;
  long)
    for task in chain_sum gsm_symbolic; do
      start "$out/long-$task" configs/gpu/smollm2-reasoning.yaml "${gpu[@]}" --set "run.steps=${STEPS:-60}" \
        --set "data.train=data/$task/train.jsonl" --set "eval.data=data/$task/heldout.jsonl" \
        --set "run.numerics=${NUMERICS:-fast}" "${extra[@]}"
    done
    wait_all
    summarize "$out"/long-{chain_sum,gsm_symbolic}
    ;;
  noise)
    int4=models/SmolLM2-135M-Instruct-INT4-g32
    rm -rf "$out/dequantized"
    bin/nibble export --to bf16 --input-dir "$int4" --output-dir "$out/dequantized"
    for task in chain_sum gsm_symbolic; do
      head -n "${PROMPTS:-16}" "data/$task/heldout.jsonl" | python3 -c 'import json, sys
for line in sys.stdin: print(json.dumps({"messages": json.loads(line)["prompt"]}))' >"$out/prompts.jsonl"
      bin/nibble tokenize --model "$int4" <<<"$(sed 's/}$/, "add_generation_prompt": true}/' "$out/prompts.jsonl")" >"$out/ids.jsonl"
      bin/nibble generate --model "$int4" --device cuda --numerics fast --max-new-tokens 256 --input "$out/prompts.jsonl" \
        --output "$out/generated.jsonl"
      python3 - "$out" <<'PYTHON'
import json, sys
out = sys.argv[1]
with open(out + "/whole.jsonl", "w") as whole:
    for prompt, answer in zip(open(out + "/ids.jsonl"), open(out + "/generated.jsonl")):
        ids = json.loads(prompt)["ids"] + json.loads(answer)["output_ids"]
        whole.write(json.dumps({"input_ids": ids}) + "\n")
PYTHON
      bin/nibble logprobs --model "$int4" --device cuda --numerics fast --path trainer --input "$out/whole.jsonl" \
        --output "$out/trainer.jsonl"
      python3 - "$out" <<'PYTHON'
import json, sys
out = sys.argv[1]
files = [open(f"{out}/{name}.jsonl") for name in ("whole", "ids", "generated", "trainer")]
with open(out + "/sequences.jsonl", "w") as sequences:
    for lines in zip(*files):
        whole, prompt, answer, trainer = map(json.loads, lines)
        first = len(prompt["ids"])
        sequences.write(json.dumps({"input_ids": whole["input_ids"], "prompt": first, "engine": answer["logprobs"],
                                    "trainer": trainer["logprobs"][first - 1:]}) + "\n")
PYTHON
      python3 -B benchmarks/peers/bf16_noise.py --model "$out/dequantized" --sequences "$out/sequences.jsonl"
    done
    ;;
  pretrain)
    python3 -B tools/make_arithmetic_data.py --output data/arithmetic
    for kind in "" -moe; do
      python3 -B tools/make_random_model.py --architecture "qwen3${kind/-/_}" --output "models/tiny-qwen3$kind"
      start "$out/sft$kind" "configs/pretrain/tiny-qwen3$kind.yaml" --set cluster.device=cuda \
        --set "run.steps=${PRETRAIN_STEPS:-1000}"
    done
    wait_all
    summarize "$out"/sft "$out"/sft-moe
    for kind in "" -moe; do
      base=models/tiny-qwen3$kind
      rm -rf "$base"-{bf16,g32,g128}
      bin/nibble export --to bf16 --input-dir "$out/sft$kind/checkpoints/step-$(printf %06d "${PRETRAIN_STEPS:-1000}")" \
        --side-files "$base" --output-dir "$base-bf16"
      for group in 32 128; do
        bin/nibble convert --method rtn --quant-group-size "$group" --input-dir "$base-bf16" --output-dir "$base-g$group"
      done
    done
    runs=()
    for kind in "" -moe; do
      for seed in "${seeds[@]}"; do
        for mode in bf16 g32 g128; do
          quantize=(--set "model.int4=models/tiny-qwen3$kind-$mode")
          [ "$mode" != bf16 ] || quantize=(--set "model.int4=models/tiny-qwen3$kind-g32" --set qat.enabled=false --set rollout.quantize=false)
          run=$out/rl$kind-$mode-$seed
          start "$run" configs/pretrain/tiny-qwen3-rl.yaml "${gpu[@]}" --set "model.path=models/tiny-qwen3$kind-bf16" \
            "${quantize[@]}" --set "run.seed=$seed" --set "run.steps=${STEPS:-200}" "${extra[@]}"
          runs+=("$run")
        done
      done
      wait_all
    done
    summarize "${runs[@]}"
    ;;
  starts)
    runs=()
    # compare_starts NAME BF16_MODEL CONFIG ARGUMENT...: all seeds and starts of one model at once.
    compare_starts() {
      local name=$1 model=$2 config=$3 group method seed
      for group in ${GROUP_SIZES:-32 64}; do
        for method in rtn gptq; do
          calibrated=()
          [ "$method" = rtn ] || calibrated=(--data-dir "$out/$name.jsonl" --num-calibration-samples 128
            --max-sequence-length "${WINDOW:-512}" --grid sym7p5 --scale-search mse)
          rm -rf "$out/$name-$method-g$group"
          bin/nibble convert --method "$method" --quant-group-size "$group" --input-dir "$model" \
            --output-dir "$out/$name-$method-g$group" "${calibrated[@]}"
          for seed in "${seeds[@]}"; do
            start=rtn
            [ "$method" = rtn ] || start=calibrated
            start "$out/run-$name-$method-g$group-$seed" "$config" "${gpu[@]}" --set "model.path=$model" --set "qat.start=$start" \
              --set "model.int4=$out/$name-$method-g$group" --set "run.seed=$seed" "${@:4}" "${extra[@]}"
            runs+=("$out/run-$name-$method-g$group-$seed")
          done
        done
      done
      for seed in "${seeds[@]}"; do
        start "$out/run-$name-bf16-$seed" "$config" "${gpu[@]}" --set "model.path=$model" --set "model.int4=$out/$name-rtn-g$group" \
          --set qat.enabled=false --set rollout.quantize=false --set "run.seed=$seed" "${@:4}" "${extra[@]}"
        runs+=("$out/run-$name-bf16-$seed")
      done
      wait_all
    }
    # Calibration text: the task's own problems with their answers, as the model would read them.
    texts() {
      python3 - "$@" <<'PYTHON'
import json, sys
for path in sys.argv[1:]:
    for line in open(path):
        record = json.loads(line)
        if "response" in record:
            print(json.dumps({"text": record["prompt"] + record["response"]}))
        elif isinstance(record["prompt"], list):
            print(json.dumps({"messages": record["prompt"] + [{"role": "assistant", "content": record["label"]}]}))
PYTHON
    }
    if [ "${JOB:-smollm2}" = smollm2 ]; then
      texts data/{addition,chain_sum,gsm_symbolic}/train.jsonl >"$out/smollm2.jsonl"
      compare_starts smollm2 models/SmolLM2-135M-Instruct configs/quickstart/smollm2-addition.yaml \
        --set "run.steps=${STEPS:-40}" --set eval.samples=16 --set checkpoint.every=1000 \
        --set rollout.max_running=256 --set rollout.kv_tokens=32768 --set rollout.max_step_tokens=2048
    else
      for kind in "" -moe; do
        texts data/arithmetic/train.jsonl >"$out/tiny$kind.jsonl"
        WINDOW=128 compare_starts "tiny$kind" "models/tiny-qwen3$kind-bf16" configs/pretrain/tiny-qwen3-rl.yaml \
          --set "run.steps=${STEPS:-200}"
      done
    fi
    summarize "${runs[@]}"
    ;;
  *)
    sed -n '2,19s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
