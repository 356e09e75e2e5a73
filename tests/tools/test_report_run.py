"""Tests of tools/report_run.py."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import report_run  # noqa: E402


def training_row(step: int, **figures: float) -> dict:
    row = {"step": step, "reward_mean": 0.5, "kl_reference": 0.01, "logprob_abs_diff_mean": 0,
           "logprob_abs_diff_max": 0, "grad_norm": 1.0, "tokens_per_s": 100, "generate_ms": 1000,
           "reward_ms": 0, "reference_ms": 500, "forward_backward_ms": 2000, "optimizer_ms": 250,
           "pack_ms": 250, "train_ms": 3000, "sync_ms": 750, "sync_wire_ms": 700,
           "sync_bytes": 128000000, "step_ms": 5000}
    return {**row, **figures}


def evaluation_row(step: int, reward: float) -> dict:
    return {"step": step, "eval_reward_mean": reward, "eval_samples": 672, "eval_ms": 9.0}


class ReportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write_run(self, name: str, rows: list[dict], tail: str = "") -> pathlib.Path:
        run = self.root / name
        run.mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "metrics.jsonl").write_text(lines + tail)
        return run

    def report(self, *arguments) -> list[list[str]]:
        """The report's lines, cut into words."""
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            self.assertEqual(report_run.main([str(a) for a in arguments]), 0)
        return [line.split() for line in stdout.getvalue().splitlines()]

    def refusal(self, *arguments) -> str:
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertEqual(report_run.main([str(a) for a in arguments]), 2)
        return stderr.getvalue()

    def test_the_gain_is_of_the_last_three_evaluations_over_the_first(self):
        rows = [evaluation_row(s, r) for s, r in ((0, 0.1), (10, 0.9), (20, 0.4), (30, 0.5),
                                                  (40, 0.6))]
        lines = self.report(self.write_run("a", rows))
        self.assertIn(["a", "0.100", "0.900", "0.400", "0.500", "0.600", "0.500", "+0.400"], lines)

    def test_an_evaluation_does_not_hide_the_training_row_of_its_step(self):
        rows = [training_row(1, reward_mean=0.25), evaluation_row(1, 0.75)]
        lines = self.report(self.write_run("a", rows))
        self.assertIn(["a", "1", "0.250", "0.01000", "0.00e+00", "1.000", "100", "0.00e+00"], lines)

    def test_training_figures_are_of_the_last_ten_steps(self):
        rows = [training_row(step, reward_mean=float(step > 5)) for step in range(1, 16)]
        lines = self.report(self.write_run("a", rows))
        self.assertEqual([line[:3] for line in lines if line[:2] == ["a", "15"]],
                         [["a", "15", "1.000"]])

    def test_the_largest_gap_is_of_all_steps(self):
        rows = [training_row(step, logprob_abs_diff_max=0.5 * (step == 1)) for step in range(1, 13)]
        lines = self.report(self.write_run("a", rows))
        self.assertEqual([line[-1] for line in lines if line[:2] == ["a", "12"]], ["5.00e-01"])

    def test_phases_and_other_add_up_to_the_step(self):
        lines = self.report(self.write_run("a", [training_row(1), training_row(2, step_ms=6000)]))
        self.assertIn(["a", "1.000", "0.000", "0.500", "2.000", "0.250", "0.250", "0.750", "0.750",
                       "5.500"], lines)

    def test_a_figure_that_no_row_has_is_a_dash(self):
        row = training_row(1)
        del row["kl_reference"]
        lines = self.report(self.write_run("a", [row]))
        self.assertIn(["a", "1", "0.500", "-", "0.00e+00", "1.000", "100", "0.00e+00"], lines)

    def test_a_row_still_being_written_is_left_out(self):
        lines = self.report(self.write_run("a", [training_row(1)], tail='{"step": 2, "rew'))
        self.assertEqual([line[1] for line in lines if line[:1] == ["a"]][0], "1")

    def test_runs_stand_beside_each_other_under_their_labels(self):
        a = self.write_run("a", [evaluation_row(0, 0.1), training_row(1), evaluation_row(1, 0.2)])
        b = self.write_run("b", [evaluation_row(0, 0.3), training_row(1)])
        lines = self.report(a, b, "--labels", "int4,bf16")
        self.assertIn(["int4", "0.100", "0.200", "0.200", "+0.100"], lines)
        self.assertIn(["bf16", "0.300", "-", "-", "-"], lines)

    def test_sizes_of_weights_are_printed(self):
        run = self.write_run("a", [training_row(1)])
        (self.root / "model.safetensors").write_bytes(bytes(2_500_000))
        lines = self.report(run, "--weights", f"BF16={self.root}")
        self.assertIn(["a:", "sent", "a", "publication", "128.0"], lines)
        self.assertIn(["BF16:", "files", "in", str(self.root), "2.5"], lines)

    def test_a_folder_that_is_no_run_is_named(self):
        self.assertIn(str(self.root / "metrics.jsonl"), self.refusal(self.root))

    def test_a_line_that_is_no_row_is_named(self):
        run = self.write_run("a", [training_row(1)], tail="[1]\n")
        self.assertIn(f"{run / 'metrics.jsonl'}:2", self.refusal(run))

    def test_labels_must_match_the_runs(self):
        run = self.write_run("a", [training_row(1)])
        self.assertIn("--labels has 2 names for 1 runs", self.refusal(run, "--labels", "x,y"))


if __name__ == "__main__":
    unittest.main()
