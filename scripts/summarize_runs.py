#!/usr/bin/env python3
"""One JSON line a run: what its metrics.jsonl says, medians of phases, the gap by step and by place.

    python3 scripts/summarize_runs.py RUN...

Standard library only: it also runs where scripts/gpu_report.sh does.
"""

import json
import pathlib
import statistics
import sys

PHASES = ("step_ms", "generate_ms", "reference_ms", "forward_backward_ms", "optimizer_ms",
          "pack_ms", "sync_wire_ms", "pause_ms")
PLACE = "logprob_abs_diff_to_"


def mean(rows: list[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.fmean(values) if values else None


def gap(steps: list[dict]) -> dict:
    """Means of the first, .., last quarter of the steps, over all tokens and by place."""
    places = sorted({key for row in steps for key in row if key.startswith(PLACE)},
                    key=lambda key: int(key.removeprefix(PLACE)))
    size = max(1, len(steps) // 4)
    quarters = [steps[i * size:(i + 1) * size if i < 3 else None] for i in range(4)]
    return {"mean": mean(steps, "logprob_abs_diff_mean"),
            "max": max(row["logprob_abs_diff_max"] for row in steps),
            "by_quarter": [mean(rows, "logprob_abs_diff_mean") for rows in quarters if rows],
            "by_place": {key.removeprefix(PLACE): mean(steps, key) for key in places},
            "by_place_last_quarter": {key.removeprefix(PLACE): mean(quarters[-1] or steps, key)
                                      for key in places}}


def summarize(run: pathlib.Path) -> dict:
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    steps = [row for row in rows if "step_ms" in row]
    line = {"run": str(run), "steps": len(steps)}
    for key in ("eval_reward_mean", "eval_loss"):
        values = [[row["step"], round(row[key], 4)] for row in rows if key in row]
        if values:
            line[key.removesuffix("_mean")] = values
    for key in PHASES:
        values = [row[key] for row in steps if key in row]
        if values:
            line["median_" + key] = round(statistics.median(values), 2)
    starts = [row["kl_reference"] for row in steps[:1] if row.get("kl_reference") is not None]
    if starts:
        line["kl_reference_at_start"] = starts[0]  # before the first update
    line["loss"] = [row["loss"] for row in steps[:6]]
    if steps and "logprob_abs_diff_mean" in steps[0]:
        line["gap"] = gap(steps)
        line["response_tokens_mean"] = mean(steps, "response_tokens_mean")
    return line


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    for run in sys.argv[1:]:
        try:
            print(json.dumps(summarize(pathlib.Path(run))), flush=True)
        except (OSError, ValueError, KeyError) as error:
            print(f"summarize_runs: {run}: {error!r}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
