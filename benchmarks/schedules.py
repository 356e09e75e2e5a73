#!/usr/bin/env python3
"""What a rollout schedule is worth: the same job in sync, one_step_off and async, interleaved.

    benchmarks/schedules.py CONFIG [--steps 12] [--rounds 3] [--schedules sync,one_step_off] [--set KEY=VALUE ...]

Trainers and engines keep the resources that the configuration gives them, as on devices of their own:
set cluster.threads_per_worker so that they fit beside each other. Each run is checked first: in sync the
gap of log-probabilities is what numerics promise, in one_step_off every step but the first trains on
samples one step old, in async none is older than allowed. Prints one JSON line; ratios are of medians
over rounds, and the range over rounds is given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM_STEPS = 2


def run_job(binary, config, schedule, steps, overrides, folder):
    command = [binary, "train", config, "--set", f"run.directory={folder}", "--set", f"run.steps={steps}",
               "--set", f"rollout.schedule={schedule}", "--set", "eval.every=1000000",
               "--set", "checkpoint.every=1000000", "--set", "algorithm.correction=tis"]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{schedule}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "step_ms" in row]


def check(schedule, rows):
    for row in rows:
        late = row["staleness_max"]
        if schedule == "sync" and late != 0:
            sys.exit(f"sync: step {row['step']} has samples of older weights")
        if schedule == "one_step_off" and late != (0 if row["step"] == 1 else 1):
            sys.exit(f"one_step_off: step {row['step']} has samples {late} steps old")
        if not abs(row["loss"]) < 1e3:
            sys.exit(f"{schedule}: loss {row['loss']}")


def figures(rows):
    rows = rows[WARM_STEPS:]
    seconds = sum(row["step_ms"] for row in rows) / 1000
    mean = lambda name: sum(row[name] for row in rows) / len(rows)
    return {"samples_per_s": sum(row["samples_per_s"] * row["step_ms"] / 1000 for row in rows) / seconds,
            "tokens_per_s": sum(row["generated_tokens"] for row in rows) / seconds,
            "step_ms": mean("step_ms"), "generate_ms": mean("generate_ms"), "train_ms": mean("train_ms"),
            "rollout_wait_ms": mean("rollout_wait_ms"), "sync_ms": mean("sync_ms"),
            "staleness_mean": mean("staleness_mean"), "reward_mean": mean("reward_mean")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--schedules", default="sync,one_step_off,async")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    binary = os.environ.get("NIBBLE_BIN", str(ROOT / "build/cpu/bin/nibble"))
    schedules = options.schedules.split(",")
    runs = {schedule: [] for schedule in schedules}
    for _ in range(options.rounds):
        for schedule in schedules:
            with tempfile.TemporaryDirectory(prefix="nibble-schedules-") as folder:
                rows = run_job(binary, options.config, schedule, options.steps, options.overrides,
                               Path(folder) / "run")
            check(schedule, rows)
            runs[schedule].append(figures(rows))
    line = {"bench": "schedules", "config": options.config, "steps": options.steps, "rounds": options.rounds}
    base = [run["samples_per_s"] for run in runs[schedules[0]]]
    for schedule in schedules:
        middle = {name: round(statistics.median(run[name] for run in runs[schedule]), 4)
                  for name in runs[schedule][0]}
        ratios = [run["samples_per_s"] / was for run, was in zip(runs[schedule], base)]
        middle["ratio"] = round(statistics.median(ratios), 3)
        middle["ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        line[schedule] = middle
    print(json.dumps(line))


if __name__ == "__main__":
    main()
