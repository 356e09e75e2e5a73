"""What the tests of supervised jobs share: tiny models without weights, sums, one configuration."""

import json
import subprocess
import sys
from pathlib import Path

from nibble_job import ROOT, settings

CONFIG = """
run: {{ directory: {folder}/run, steps: 6, seed: 7 }}
cluster: {{ trainers: 1, rollout_workers: 0, threads_per_worker: 1 }}
model: {{ path: {folder}/dense, init: random }}
qat: {{ enabled: false }}
data: {{ train: {folder}/sums/train.jsonl }}
rollout: {{ max_positions: 64 }}
algorithm: {{ loss: sft }}
optimizer: {{ lr: 0.01, beta2: 0.95, global_batch: 16, warmup_steps: 3 }}
parallel: {{ max_tokens_per_device: 256 }}
eval: {{ data: {folder}/sums/heldout.jsonl, every: 3 }}
checkpoint: {{ every: 2, keep: 2 }}
"""
SIZES = ("--hidden", 64, "--layers", 2, "--heads", 2, "--kv-heads", 2, "--head-dim", 32,
         "--intermediate", 128, "--experts", 4, "--expert-intermediate", 64,
         "--initializer-range", 0.05)


def run_tool(name, *arguments):
    subprocess.run([sys.executable, "-B", ROOT / "tools" / name, *map(str, arguments)], check=True,
                   stdout=subprocess.DEVNULL)


def make_inputs(folder):
    """folder/dense, folder/moe, folder/sums and a configuration, which it returns."""
    run_tool("make_random_model.py", "--output", folder / "dense", *SIZES)
    run_tool("make_random_model.py", "--architecture", "qwen3_moe", "--output", folder / "moe",
             *SIZES)
    run_tool("make_arithmetic_data.py", "--output", folder / "sums", "--count", 400, "--held-out",
             24, "--largest", 9)
    config = folder / "sft.yaml"
    config.write_text(CONFIG.format(folder=folder))
    return config


def read_losses(directory):
    """Rows of training steps and of evaluations."""
    text = (Path(directory) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return ([row for row in rows if "loss" in row], [row for row in rows if "eval_loss" in row])


def model_of(folder, name):
    return settings(model__path=folder / name)
