#!/usr/bin/env python3
"""Prints what one or several runs of `nibble train` did, from their metrics.jsonl.

    python3 tools/report_run.py runs/smollm2-addition
    python3 tools/report_run.py runs/a runs/b --labels a,b --weights BF16=models/M

Held-out reward before, during and after training, the last steps' figures, and where the time of a
step went. Needs Python only.
"""

import argparse
import json
import pathlib
import sys

LAST_STEPS = 10  # training figures are means over so many
LAST_EVALUATIONS = 3
# Parts of a step that do not overlap; what they leave of step_ms is "other".
PHASES = (
    ("generate", "generate_ms"),
    ("reward", "reward_ms"),
    ("reference", "reference_ms"),
    ("fwd+bwd", "forward_backward_ms"),
    ("optimizer", "optimizer_ms"),
    ("pack", "pack_ms"),
    ("sync", "sync_ms"),
)
TRAINING = (  # beside them: the largest gap of all steps
    ("reward", "reward_mean", "{:.3f}"),
    ("KL to BF16", "kl_reference", "{:.5f}"),
    ("gap mean", "logprob_abs_diff_mean", "{:.2e}"),
    ("grad norm", "grad_norm", "{:.3f}"),
    ("tokens/s", "tokens_per_s", "{:.0f}"),
)


class ReportError(Exception):
    """What went wrong and what to do, in one sentence."""


class Run:
    """The rows of one run: training rows and evaluation rows, each by step."""

    def __init__(self, label: str, directory: pathlib.Path):
        self.label = label
        self.training: dict[int, dict] = {}
        self.evaluations: dict[int, dict] = {}
        path = directory / "metrics.jsonl"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ReportError(f"cannot read {path} ({error.strerror}); is it a run?") from error
        # What follows the last line break is a row still being written.
        for number, line in enumerate(text.split("\n")[:-1], 1):
            self._add(line, f"{path}:{number}")
        if not self.training and not self.evaluations:
            raise ReportError(f"{path} has no rows yet")

    def _add(self, line: str, where: str) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise ReportError(f"{where}: want a JSON object with a step") from error
        rows = self.evaluations if "eval_reward_mean" in row else self.training
        rows[step] = row

    def mean(self, key: str, last: int | None = None) -> float | None:
        """Mean over the training steps that have this figure, or over the last few of them."""
        rows = [self.training[step] for step in sorted(self.training)]
        values = [row[key] for row in rows if row.get(key) is not None]
        values = values[-last:] if last else values
        return sum(values) / len(values) if values else None

    def maximum(self, key: str) -> float | None:
        values = [row[key] for row in self.training.values() if row.get(key) is not None]
        return max(values, default=None)


def text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as needed: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    out = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        out.append("  " + "  ".join(cells).rstrip())
    return "\n".join(out)


def evaluation_table(runs: list[Run]) -> str:
    steps = sorted({step for run in runs for step in run.evaluations})
    if not steps:
        return "  no evaluation yet"
    header = ["run", *(f"step {step}" for step in steps), f"last {LAST_EVALUATIONS}", "gain"]
    rows = []
    for run in runs:
        rewards = {step: row["eval_reward_mean"] for step, row in run.evaluations.items()}
        line = [run.label, *(text(rewards.get(step), "{:.3f}") for step in steps)]
        trained = [rewards[step] for step in sorted(rewards) if step > 0][-LAST_EVALUATIONS:]
        end = sum(trained) / len(trained) if trained else None
        gain = None if end is None or 0 not in rewards else end - rewards[0]
        rows.append([*line, text(end, "{:.3f}"), text(gain, "{:+.3f}")])
    return table(header, rows)


def training_table(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        cells = [text(run.mean(key, LAST_STEPS), form) for _, key, form in TRAINING]
        largest_gap = text(run.maximum("logprob_abs_diff_max"), "{:.2e}")
        rows.append([run.label, str(len(run.training)), *cells, largest_gap])
    return table(["run", "steps", *(name for name, _, _ in TRAINING), "gap max"], rows)


def phase_table(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        step = run.mean("step_ms")
        parts = [run.mean(key) for _, key in PHASES]
        other = None if step is None else max(0.0, step - sum(p or 0.0 for p in parts))
        cells = [text(None if ms is None else ms / 1e3, "{:.3f}") for ms in (*parts, other, step)]
        rows.append([run.label, *cells])
    return table(["run", *(name for name, _ in PHASES), "other", "step"], rows)


def weights_table(runs: list[Run], directories: list[tuple[str, pathlib.Path]]) -> str:
    rows = []
    for run in runs:
        sent = run.mean("sync_bytes")
        rows.append([f"{run.label}: sent a publication", text(sent and sent / 1e6, "{:.1f}")])
    for name, directory in directories:
        files = list(directory.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files) if files else None
        rows.append([f"{name}: files in {directory}", text(size and size / 1e6, "{:.1f}")])
    return table(["weights", "MB"], rows)


def report(runs: list[Run], directories: list[tuple[str, pathlib.Path]]) -> str:
    counts = {row.get("eval_samples") for run in runs for row in run.evaluations.values()}
    samples = "/".join(str(count) for count in sorted(c for c in counts if c is not None))
    return "\n".join(
        [
            f"Held-out reward (mean of {samples or 0} samples; last {LAST_EVALUATIONS}: mean of the"
            " last evaluations; gain: over step 0)",
            evaluation_table(runs),
            "",
            f"Training (means of the last {LAST_STEPS} steps; gap: |log p trainer - log p rollout|,"
            " its maximum over all steps)",
            training_table(runs),
            "",
            "Seconds of a step by phase (means of all steps)",
            phase_table(runs),
            "",
            weights_table(runs, directories),
        ]
    )


def parse_weights(argument: str) -> tuple[str, pathlib.Path]:
    name, separator, directory = argument.partition("=")
    if not separator or not name or not directory:
        raise argparse.ArgumentTypeError(f"'{argument}' is not NAME=DIR")
    return name, pathlib.Path(directory)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="run directory")
    parser.add_argument("--labels", help="names of the runs, separated by commas")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        type=parse_weights,
        metavar="NAME=DIR",
        help="also print the size of this model's safetensors files; may be repeated",
    )
    options = parser.parse_args(arguments)
    labels = [run.resolve().name for run in options.runs]
    if options.labels is not None:
        labels = options.labels.split(",")
    try:
        if len(labels) != len(options.runs):
            raise ReportError(f"--labels has {len(labels)} names for {len(options.runs)} runs")
        runs = [Run(label, path) for label, path in zip(labels, options.runs)]
        print(report(runs, options.weights))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
