"""The shipped tiny jobs run end to end and leave what the run directory's contract says."""

import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, query, rank_bytes,
                        read_metrics, reproducible, settings)

STEPS = 6
FIGURES = {"step", "reward_mean", "kl_reference", "logprob_abs_diff_mean", "logprob_abs_diff_max",
           "weight_version", "sync_bytes", "sync_wire_ms", "pause_ms", "step_ms", "tokens_per_s"}
PHASES = {"generate_ms", "reward_ms", "reference_ms", "forward_backward_ms", "optimizer_ms",
          "pack_ms", "sync_ms"}


class TinyJobs(JobTest):
    def check_metrics(self, directory):
        steps, evals = read_metrics(directory)
        self.assertEqual([row["step"] for row in steps], list(range(1, STEPS + 1)))
        for row in steps:
            self.assertLessEqual(FIGURES | PHASES, row.keys())
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual(row["logprob_abs_diff_mean"], 0, row)
            self.assertGreater(row["sync_bytes"], 0)
            self.assertGreater(row["tokens_per_s"], 0)
            self.assertLessEqual(row["train_ms"] + row["sync_ms"], row["step_ms"])
        versions = [row["weight_version"] for row in steps]
        self.assertTrue(all(a < b for a, b in zip(versions, versions[1:])), versions)
        self.assertEqual([row["step"] for row in evals], [0, 3, 6])
        for row in evals:
            self.assertGreaterEqual(row.keys(), {"eval_reward_mean", "eval_samples"})
            self.assertEqual(row["eval_samples"], 24 * 2)
            self.assertTrue(0 <= row["eval_reward_mean"] <= 1)
        return steps

    def check_run_store(self, directory, steps):
        self.assertEqual(query(directory, "SELECT step, status FROM steps ORDER BY step"),
                         [(step, "done") for step in range(1, STEPS + 1)])
        committed = query(directory, "SELECT version, step FROM versions "
                                     "WHERE decision = 'committed' ORDER BY version")
        self.assertEqual(committed, [(step + 1, step) for step in range(STEPS + 1)])
        self.assertEqual(query(directory, "SELECT count(*) FROM versions "
                                          "WHERE decision = 'aborted'"), [(0,)])
        rewards = query(directory, "SELECT step, count(*), avg(reward), min(length) FROM samples "
                                   "GROUP BY step ORDER BY step")
        self.assertEqual([row[:2] for row in rewards], [(s, 16) for s in range(1, STEPS + 1)])
        for (_, _, mean, shortest), row in zip(rewards, steps):
            self.assertAlmostEqual(mean, row["reward_mean"])
            self.assertGreaterEqual(shortest, 1)
        series = query(directory, "SELECT step, value FROM metrics WHERE name = 'grad_norm' "
                                  "ORDER BY step")
        self.assertEqual(series, [(row["step"], row["grad_norm"]) for row in steps])
        # A sample was drawn from the version that the metrics of its step name.
        drawn = query(directory, "SELECT DISTINCT step, weight_version FROM samples ORDER BY step")
        self.assertEqual(drawn, [(row["step"], row["weight_version"]) for row in steps])

    def check_directory(self, directory):
        names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
        self.assertEqual(names, {"config.yaml", "metrics.jsonl", "run.db", "checkpoints", "plots"})
        kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
        self.assertEqual(kept, ["step-000004", "step-000006"])
        self.assertEqual(sorted(rank_bytes(last_checkpoint(directory))),
                         ["rank-000-of-002.safetensors", "rank-001-of-002.safetensors"])
        # The effective configuration is a configuration: it loads and gives itself.
        shown = self.run_nibble("config", directory / "config.yaml")
        self.assertEqual(shown.code, 0, shown.err)
        self.assertEqual(shown.out, (directory / "config.yaml").read_text())

    def check_job(self, config):
        directory = self.folder / "run"
        result = self.train(directory, config=config)
        self.assertEqual(result.errors(), [])
        self.assertIn(f"{STEPS} steps in {directory}", result.out)
        self.assertEqual(len(result.out.splitlines()), 1)
        self.check_directory(directory)
        steps = self.check_metrics(directory)
        self.assertGreater(steps[0]["kl_reference"], 0)
        self.check_run_store(directory, steps)

    def test_tiny_dense_runs_end_to_end(self):
        self.check_job(TINY_DENSE)

    def test_tiny_moe_runs_end_to_end(self):
        self.check_job(TINY_MOE)

    def test_several_held_out_sets_are_evaluated_each_in_its_way(self):
        one = self.folder / "one"
        self.train(one, *settings(run__steps=2))
        several = self.folder / "several"
        data = "configs/ci/data/digits.jsonl"
        sets = (f"[{{name: same, data: {data}}}, {{name: greedy, data: {data}, samples: 1, "
                f"temperature: 0, max_new_tokens: 3}}]")
        self.train(several, *settings(run__steps=2, eval__data='""', eval__sets=sets))
        steps, evals = read_metrics(several)
        want_steps, want_evals = read_metrics(one)
        self.assertEqual(reproducible(steps), reproducible(want_steps))
        self.assertEqual([row["step"] for row in evals], [0, 2])
        for row, want in zip(evals, want_evals, strict=True):
            # The first set is sampled as the only one is.
            self.assertEqual(row["eval_same_reward_mean"], want["eval_reward_mean"])
            self.assertEqual((row["eval_same_samples"], row["eval_greedy_samples"]), (48, 24))
            self.assertEqual(row["eval_samples"], 72)
            self.assertAlmostEqual(row["eval_reward_mean"], (row["eval_same_reward_mean"] +
                                                             row["eval_greedy_reward_mean"]) / 2)
        series = query(several, "SELECT step, value FROM metrics WHERE name = "
                                "'eval_greedy_reward_mean' ORDER BY step")
        self.assertEqual(series, [(row["step"], row["eval_greedy_reward_mean"]) for row in evals])
        shown = self.run_nibble("config", several / "config.yaml")
        self.assertEqual(shown.out, (several / "config.yaml").read_text())

    def test_without_quantization_and_learning_the_kl_is_exactly_zero(self):
        directory = self.folder / "run"
        self.train(directory, *settings(qat__enabled="false", rollout__quantize="false",
                                        optimizer__lr=0, run__steps=3))
        for row in read_metrics(directory)[0]:
            self.assertEqual(row["kl_reference"], 0, row)
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)

    def test_with_learning_the_kl_starts_at_zero_and_leaves_it(self):
        directory = self.folder / "run"
        self.train(directory, *settings(qat__enabled="false", rollout__quantize="false",
                                        run__steps=3))
        kl = [row["kl_reference"] for row in read_metrics(directory)[0]]
        self.assertEqual(kl[0], 0)
        self.assertGreater(kl[-1], 0)

    def test_serving_int4_without_qat_shows_the_gap_that_qat_closes(self):
        directory = self.folder / "run"
        self.train(directory, *settings(qat__enabled="false", run__steps=2))
        for row in read_metrics(directory)[0]:
            self.assertGreater(row["logprob_abs_diff_max"], 0, row)
            places = [value for key, value in row.items()
                      if key.startswith("logprob_abs_diff_to_")]
            self.assertIn("logprob_abs_diff_to_16", row)
            self.assertLessEqual(min(places), row["logprob_abs_diff_mean"] * (1 + 1e-12))
            self.assertGreaterEqual(max(places), row["logprob_abs_diff_mean"] * (1 - 1e-12))

    def test_draft_heads_that_are_trained_meanwhile_change_no_step(self):
        heads = settings(rollout__max_draft_tokens=3, rollout__draft_head="random", rollout__train_draft_head="true")
        figures = []
        for name, more in (("plain", []), ("head", heads)):
            directory = self.folder / name
            self.train(directory, *settings(run__steps=4), *more, config=TINY_MOE)
            steps = read_metrics(directory)[0]
            figures.append([(row["reward_mean"], row["grad_norm"], row["logprob_abs_diff_max"]) for row in steps])
            drawn = query(directory, "SELECT step, length, reward FROM samples ORDER BY step, length, reward")
            figures[-1].append(drawn)
        self.assertEqual(figures[0], figures[1])
        self.assertGreater(sum(row["draft_ms"] for row in steps), 0)


if __name__ == "__main__":
    unittest.main()
