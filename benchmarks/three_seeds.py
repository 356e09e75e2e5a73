#!/usr/bin/env python3
"""Does INT4 training learn what BF16 training learns? A tiny Qwen3-MoE, several seeds, four processes.

    benchmarks/three_seeds.py --output DIR [--seeds 1,2,3] [--steps 400] [--pretrain-steps 1000]

Pretrains a mixture of experts on sums from random weights (supervised, BF16) by a teacher who is right in 4 of 10 cases
only, so that there is something to learn from rewards, rounds its experts to INT4, and trains the result by GRPO with
QAT, and the BF16 model by the same job: two trainer ranks that share the experts (parallel.expert: 2) and two rollout
workers. Every step of every run is checked: the gap between trainer and rollout must be 0. Writes DIR/curves.json
(held-out reward by step of every run, the rewards trained on in blocks of steps, means over seeds, the paired difference
at the end with its 95 % interval) and DIR/curves.png (`nibble plot`); prints one JSON line. What is in DIR already is
not made again, so that an interrupted call goes on.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("--hidden", 64, "--layers", 2, "--heads", 2, "--kv-heads", 2, "--head-dim", 32, "--intermediate", 128,
         "--experts", 8, "--expert-intermediate", 64, "--initializer-range", 0.05)
WRONG_SHARE = 0.6  # of the teacher's answers
LAST_POINTS = 3
BLOCK_STEPS = 20
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # two-sided, seeds - 1 degrees of freedom
PRETRAIN = """
run: {{ directory: {folder}/pretrain, steps: {steps}, seed: 1 }}
cluster: {{ trainers: 1, rollout_workers: 0, threads_per_worker: 1 }}
model: {{ path: {folder}/model, init: random }}
qat: {{ enabled: false }}
data: {{ train: {folder}/sums/noisy.jsonl }}
rollout: {{ max_positions: 64 }}
algorithm: {{ loss: sft }}
optimizer:
  {{ lr: 0.004, schedule: cosine, warmup_steps: 20, decay_steps: {steps}, min_lr: 0.0001, beta2: 0.95, global_batch: 128 }}
parallel: {{ max_tokens_per_device: 4096 }}
eval: {{ data: {folder}/sums/heldout.jsonl, every: 100 }}
checkpoint: {{ every: {steps}, keep: 1 }}
"""
LEARN = """
run: {{ directory: {folder}/run, steps: {steps}, seed: 1 }}
cluster: {{ trainers: 2, rollout_workers: 2, threads_per_worker: 1 }}
parallel: {{ expert: 2, max_tokens_per_device: 4096 }}
model: {{ path: {folder}/bf16, int4: {folder}/int4 }}
data: {{ train: {folder}/sums/train.jsonl }}
rollout:
  {{ prompts_per_step: 16, samples_per_prompt: 8, max_new_tokens: 6, max_running: 64, max_positions: 64, kv_tokens: 4096 }}
reward: {{ type: last_number }}
algorithm: {{ clip_low: 0.2, clip_high: 0.28, kl_estimator: k3, kl_loss_coef: 0.001 }}
optimizer: {{ lr: 0.0003, beta2: 0.98, weight_decay: 0.1, global_batch: 128 }}
eval: {{ data: {folder}/sums/heldout.jsonl, every: 20, samples: 8 }}
checkpoint: {{ every: 1000, keep: 1 }}
"""
SIDES = {"int4": ("qat.enabled=true",), "bf16": ("qat.enabled=false", "rollout.quantize=false")}


def call(*command):
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")


def write_noisy(source, target):
    """The same problems, most of them with a wrong answer; the same file everywhere."""
    rng = random.Random(1)
    lines = []
    for line in source.read_text().splitlines():
        record = json.loads(line)
        if rng.random() < WRONG_SHARE:
            record["response"] = f" {int(record['label']) + rng.choice((-3, -2, -1, 1, 2, 3))}"
        lines.append(json.dumps(record))
    target.write_text("\n".join(lines) + "\n")


def make_models(binary, folder, pretrain_steps):
    """folder/bf16 and folder/int4: one model, pretrained here, and its experts rounded to INT4."""
    if (folder / "int4").exists():
        return
    for name in ("model", "sums", "pretrain", "bf16"):
        shutil.rmtree(folder / name, ignore_errors=True)
    call(sys.executable, "-B", ROOT / "tools/make_random_model.py", "--architecture", "qwen3_moe", "--output",
         folder / "model", *SIZES)
    call(sys.executable, "-B", ROOT / "tools/make_arithmetic_data.py", "--output", folder / "sums", "--count", 4000,
         "--held-out", 96, "--largest", 9)
    write_noisy(folder / "sums/train.jsonl", folder / "sums/noisy.jsonl")
    job = folder / "pretrain.yaml"
    job.write_text(PRETRAIN.format(folder=folder, steps=pretrain_steps))
    call(binary, "train", job)
    call(binary, "export", "--to", "bf16", "--input-dir", folder / f"pretrain/checkpoints/step-{pretrain_steps:06}",
         "--side-files", folder / "model", "--output-dir", folder / "bf16")
    call(binary, "convert", "--method", "rtn", "--quant-group-size", 32, "--targets", "experts", "--input-dir",
         folder / "bf16", "--output-dir", folder / "int4")


def train(binary, folder, side, seed, steps):
    """The run's directory; one that has all its steps is kept."""
    run = folder / f"{side}-seed{seed}"
    if (run / "metrics.jsonl").exists() and len(training_rows(run)) >= steps:
        return run
    shutil.rmtree(run, ignore_errors=True)
    job = folder / "learn.yaml"
    job.write_text(LEARN.format(folder=folder, steps=steps))
    sets = [f"run.directory={run}", f"run.seed={seed}", *SIDES[side]]
    call(binary, "train", job, *[word for entry in sets for word in ("--set", entry)])
    return run


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training_rows(run):
    return [row for row in rows_of(run) if "reward_mean" in row]


def curves_of(run):
    """Held-out reward by step; mean reward of the samples of each block of steps, by its last one."""
    training = training_rows(run)
    if any(row["logprob_abs_diff_max"] != 0 for row in training):
        sys.exit(f"{run}: trainer and rollout differ; nothing is reported")
    held_out = {row["step"]: row["eval_reward_mean"] for row in rows_of(run) if "eval_reward_mean" in row}
    blocks = [training[i:i + BLOCK_STEPS] for i in range(0, len(training), BLOCK_STEPS)]
    return {"held_out": held_out,
            "training": {block[-1]["step"]: statistics.fmean(row["reward_mean"] for row in block)
                         for block in blocks}}


def paired(ends):
    """INT4 less BF16, seed by seed."""
    differences = [a - b for a, b in zip(ends["int4"], ends["bf16"])]
    bound = None
    if len(differences) in T_95:
        bound = T_95[len(differences)] * statistics.stdev(differences) / len(differences) ** 0.5
    return {"int4_less_bf16": statistics.fmean(differences), "half_width_95": bound}


def summary(curves, kind):
    """`curves` by side and seed; the end is the mean of the last points."""
    points = {side: [list(by_kind[kind].values()) for by_kind in by_seed.values()]
              for side, by_seed in curves.items()}
    ends = {side: [statistics.fmean(values[-LAST_POINTS:]) for values in runs] for side, runs in points.items()}
    steps = next(iter(curves["int4"].values()))[kind]
    return {"start": {side: statistics.fmean(values[0] for values in runs) for side, runs in points.items()},
            "end": {side: statistics.fmean(values) for side, values in ends.items()}, "end_by_seed": ends,
            **paired(ends),
            "mean_curve": {side: dict(zip(steps, map(statistics.fmean, zip(*runs)))) for side, runs in points.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--binary", default=os.environ.get("NIBBLE_BIN", ROOT / "build/cpu/bin/nibble"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    flags = parser.parse_args()
    folder = flags.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    binary = Path(flags.binary).resolve()
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    make_models(binary, folder, flags.pretrain_steps)
    runs = {side: {seed: train(binary, folder, side, seed, flags.steps) for seed in seeds} for side in SIDES}
    curves = {side: {seed: curves_of(run) for seed, run in runs[side].items()} for side in SIDES}
    result = {"bench": "three_seeds", "steps": flags.steps, "seeds": seeds,
              **{kind: summary(curves, kind) for kind in ("held_out", "training")}}
    (folder / "curves.json").write_text(json.dumps({**result, "curves": curves}, indent=1) + "\n")
    call(binary, "plot", *[run for side in SIDES for run in runs[side].values()], "--labels",
         ",".join(f"{side} seed {seed}" for side in SIDES for seed in seeds), "--output", folder / "curves.png")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
