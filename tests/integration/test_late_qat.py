"""A run that began in BF16 goes on with QAT, in its own directory or another, and the two are compared."""

import json
import shutil
import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, query, rank_bytes, read_metrics,
                        settings, state_sha256)

BF16 = settings(qat__enabled="false", rollout__quantize="false")
INT4_ROLLOUT = settings(qat__enabled="false", rollout__quantize="true")
QAT = settings(qat__enabled="true", rollout__quantize="true")
STILL = settings(optimizer__lr=0)  # weight decay is a part of the rate: masters stay as they are


def tensors(checkpoint, kind):
    """Raw bytes of a kind of tensors (master, m, v) of every rank file."""
    found = {}
    for name, data in rank_bytes(checkpoint).items():
        size = int.from_bytes(data[:8], "little")
        for key, entry in json.loads(data[8:8 + size]).items():
            if key.startswith(kind + "/"):
                begin, end = entry["data_offsets"]
                found[name, key] = data[8 + size + begin:8 + size + end]
    return found


def is_int4(checkpoint):
    return "quantization_config" in json.loads((checkpoint / "config.json").read_text())


class LateQat(JobTest):
    def begin(self, config=TINY_DENSE, how=BF16, steps=4):
        directory = self.folder / "before"
        self.train(directory, *how, *settings(run__steps=steps), config=config)
        return directory

    def test_masters_and_moments_go_on_and_the_weights_become_int4_at_once(self):
        for config, how in ((TINY_DENSE, BF16), (TINY_MOE, BF16), (TINY_DENSE, INT4_ROLLOUT)):
            with self.subTest(config=config, how=how):
                self.fresh_folder()
                before = self.begin(config, how)
                after = self.folder / "after"
                result = self.train(after, "--resume", before, *QAT, *STILL, *settings(run__steps=5),
                                    config=config)
                self.assertIn("qat.enabled: false -> true", result.err)
                self.assertIn(f"step-000004 of run '{before}'", result.err)
                old, new = last_checkpoint(before), last_checkpoint(after)
                self.assertEqual((old.name, new.name), ("step-000004", "step-000005"))
                self.assertEqual(tensors(old, "master"), tensors(new, "master"))
                self.assertNotEqual(tensors(old, "m"), tensors(new, "m"))
                updates = [json.loads((path / "meta.json").read_text())["updates"] for path in (old, new)]
                self.assertEqual(updates, [4, 5])
                self.assertEqual((is_int4(old), is_int4(new)), (how is INT4_ROLLOUT, True))
                (first,), evals = read_metrics(after)
                self.assertEqual((first["step"], first["logprob_abs_diff_max"]), (5, 0))
                self.assertEqual([row["step"] for row in evals], [4, 5])  # what the switch costs, at once
                if how is BF16:
                    self.assertLess(first["sync_bytes"], read_metrics(before)[0][-1]["sync_bytes"])
                self.assertEqual([kind for kind, in query(after, "SELECT kind FROM events")], ["resumed"])

    def test_the_other_directory_is_only_read_and_the_state_does_not_depend_on_it(self):
        before = self.begin()
        kept = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
        elsewhere = self.folder / "elsewhere"
        self.train(elsewhere, "--resume", before, *QAT, *settings(run__steps=7))
        self.assertEqual({path: path.read_bytes() for path in before.rglob("*") if path.is_file()}, kept)
        result = self.train(before, "--resume", *QAT, *settings(run__steps=7))
        self.assertIn("qat.enabled: false -> true", result.err)
        self.assertEqual(state_sha256(last_checkpoint(before)), state_sha256(last_checkpoint(elsewhere)))
        self.assertTrue(is_int4(last_checkpoint(before)))
        # The new run goes on like any other, and does not begin at the old one again.
        again = self.run_nibble("train", TINY_DENSE, "--resume", before, *QAT,
                                *settings(run__directory=elsewhere, run__steps=9))
        self.expect_refusal(again, 2, elsewhere, before, "checkpoints of its own")
        result = self.train(elsewhere, "--resume", *QAT, *settings(run__steps=8))
        self.assertNotIn("other values", result.err)
        self.assertEqual([row["step"] for row in read_metrics(elsewhere)[0]], [5, 6, 7, 8])

    def test_a_run_without_a_checkpoint_of_its_own_goes_on_where_it_began(self):
        before = self.begin()
        elsewhere = self.folder / "elsewhere"
        self.train(elsewhere, "--resume", before, *QAT, *settings(run__steps=7))
        whole = state_sha256(last_checkpoint(elsewhere))
        for checkpoint in (elsewhere / "checkpoints").glob("step-*"):  # as if it had been killed before the first
            shutil.rmtree(checkpoint)
        self.train(elsewhere, "--resume", *QAT, *settings(run__steps=7))
        self.assertEqual([row["step"] for row in read_metrics(elsewhere)[0]], [5, 6, 7])
        self.assertEqual(state_sha256(last_checkpoint(elsewhere)), whole)

    def test_what_changed_is_what_changed_since_the_checkpoint(self):
        """A run that was killed before it wrote a checkpoint leaves its config.yaml behind."""
        before = self.begin()
        (before / "config.yaml").write_text((before / "config.yaml").read_text().replace(
            "enabled: false", "enabled: true"))
        self.assertIn("qat.enabled: false -> true",
                      self.train(before, "--resume", *QAT, *settings(run__steps=5)).err)

    def test_a_job_that_the_checkpoint_cannot_become_is_refused_with_both_values(self):
        before = self.begin()
        after = self.folder / "after"

        def refused(*parts, arguments=(), config=TINY_DENSE, steps=6, code=2):
            result = self.run_nibble("train", config, "--resume", before,
                                     *settings(run__directory=after, run__steps=steps), *arguments)
            self.expect_refusal(result, code, *parts)

        refused("run.steps is 3", "step 4", steps=3)
        refused("run.steps is 4", "step 4", steps=4)
        refused("model.path", "dense_untied/bf16", "moe_norm/bf16", config=TINY_MOE)
        refused("qat.start was rtn and is calibrated", arguments=settings(qat__start="calibrated"))
        before = self.folder / "nothing"
        refused(before, "no run directory")
        self.assertFalse((after / "checkpoints").exists())

    def test_two_runs_stand_side_by_side(self):
        bf16, int4 = self.folder / "bf16", self.folder / "int4"
        self.train(bf16, *BF16, *settings(run__steps=5))
        self.train(int4, *QAT, *settings(run__steps=3))
        said = self.run_nibble("status", int4, "--baseline", bf16, "--json")
        self.assertEqual(said.code, 0, said.err)
        compared = json.loads(said.out)["baseline"]
        self.assertEqual(compared["run"], str(bf16))
        ours, theirs = read_metrics(int4)[0], read_metrics(bf16)[0][:3]
        for name in ("reward_mean", "kl_reference", "logprob_abs_diff_max", "grad_norm", "step_ms",
                     "sync_bytes"):
            metric = compared["metrics"][name]
            self.assertEqual((metric["first_step"], metric["last_step"], metric["common_steps"],
                              metric["tail_steps"]), (1, 3, 3, 3), name)
            for part, want in (("last", [rows[-1][name] for rows in (ours, theirs)]),
                               ("tail_mean", [sum(row[name] for row in rows) / 3
                                              for rows in (ours, theirs)])):
                self.assertAlmostEqual(metric[part]["run"], want[0], 6, name)
                self.assertAlmostEqual(metric[part]["baseline"], want[1], 6, name)
                self.assertAlmostEqual(metric[part]["difference"], want[0] - want[1], 6, name)
        self.assertEqual(compared["metrics"]["eval_reward_mean"]["common_steps"], 2)
        text = self.run_nibble("status", int4, "--baseline", bf16).out
        self.assertRegex(text, rf"beside {bf16}")
        self.assertRegex(text, r"sync_bytes +3 +\d+ +\d+ +-\d")
        self.assertIsNone(json.loads(self.run_nibble("status", int4, "--json").out)["baseline"])
        self.expect_refusal(self.run_nibble("status", int4, "--baseline", self.folder / "no"), 2,
                            "does not exist")


if __name__ == "__main__":
    unittest.main()
