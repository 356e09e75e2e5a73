"""One line a run: what the GPU report says of it."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts/summarize_runs.py"


class SummarizeRuns(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, rows):
        (self.folder / name).mkdir()
        (self.folder / name / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows))
        return self.folder / name

    def run_script(self, *runs):
        return subprocess.run([sys.executable, "-B", SCRIPT, *runs], capture_output=True, text=True,
                              check=False)

    def test_rl(self):
        rows = [{"step": 0, "eval_reward_mean": 0.25, "eval_samples": 8}]
        for step in range(1, 9):
            rows.append({"step": step, "step_ms": 10 * step, "loss": 1.0 / step,
                         "logprob_abs_diff_mean": float(step), "logprob_abs_diff_max": 2.0 * step,
                         "logprob_abs_diff_to_16": 1.0,
                         **({"logprob_abs_diff_to_128": 3.0 if step < 7 else 5.0}
                            if step > 4 else {})})
        result = self.run_script(self.write("rl", rows))
        self.assertEqual(result.returncode, 0, result.stderr)
        line = json.loads(result.stdout)
        self.assertEqual((line["steps"], line["median_step_ms"]), (8, 45))
        self.assertEqual(line["eval_reward"], [[0, 0.25]])
        self.assertEqual(line["gap"], {
            "mean": 4.5, "max": 16.0, "by_quarter": [1.5, 3.5, 5.5, 7.5],
            "by_place": {"16": 1.0, "128": 4.0},
            "by_place_last_quarter": {"16": 1.0, "128": 5.0}})

    def test_supervised(self):
        rows = [{"step": 1, "step_ms": 5, "loss": 2.0}, {"step": 1, "eval_loss": 1.5}]
        line = json.loads(self.run_script(self.write("sft", rows)).stdout)
        self.assertEqual(line["eval_loss"], [[1, 1.5]])
        self.assertNotIn("gap", line)

    def test_a_missing_run_is_named(self):
        result = self.run_script(self.folder / "none")
        self.assertEqual(result.returncode, 1)
        self.assertIn("none", result.stderr)


if __name__ == "__main__":
    unittest.main()
