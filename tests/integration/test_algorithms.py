"""Jobs of algorithms other than the shipped ones' GRPO: what each step measures."""

import json
import math
import unittest

from nibble_job import TINY_DENSE, TINY_MOE, JobTest, read_metrics, reproducible, settings

REINFORCE = dict(algorithm__advantage="reinforce_pp", algorithm__kl_loss_coef=0,
                 algorithm__kl_reward_coef=0.05, run__steps=3)


class Algorithms(JobTest):
    def rows(self, name, config=TINY_DENSE, **values):
        directory = self.folder / name
        self.train(directory, *settings(**values), config=config)
        rows = read_metrics(directory)[0]
        for row in rows:
            for key, value in row.items():
                if isinstance(value, float):
                    self.assertTrue(math.isfinite(value), f"{key} of step {row['step']}")
        return rows

    def test_token_rewards_with_kl_and_all_that_goes_with_them(self):
        rows = self.rows("run", **REINFORCE, algorithm__entropy_coef=0.01,
                         algorithm__correction="mis", algorithm__mis_mode="mask",
                         algorithm__correction_low=0.5, algorithm__mis_reject_level="geometric",
                         algorithm__overlong_buffer=4, algorithm__mask_truncated="true")
        self.assertEqual(len(rows), 3)
        for row in rows:
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual((row["rejected_share"], row["vetoed_share"]), (0, 0), row)
            self.assertEqual(row["kl_rollout"], 0, row)
            self.assertEqual(row["old_log_probs_ms"], 0, "the rollout's are the same bits")
            self.assertEqual(row["ratio_max"], 1 if row["train_response_tokens"] else 0, row)
            self.assertIn("kl_reference_k1", row)
            self.assertLess(row["train_response_tokens"], row["generated_tokens"],
                            "samples that were cut off are not trained on")

    def test_one_trainer_learns_what_two_do(self):
        two = self.rows("two", **REINFORCE)
        one = self.rows("one", **REINFORCE, cluster__trainers=1)
        for row, want in zip(one, two, strict=True):
            for key in ("loss", "grad_norm", "kl_reference", "kl_reference_k1", "entropy"):
                self.assertAlmostEqual(row[key], want[key], delta=1e-4 * abs(want[key]) + 1e-6,
                                       msg=f"{key} of step {row['step']}")

    def test_a_pass_gives_old_log_probs_that_the_rollout_has_not(self):
        several = dict(optimizer__steps_per_rollout=2, optimizer__global_batch=8, run__steps=2)
        for row in self.rows("apart", **several, qat__enabled="false"):
            self.assertGreater(row["logprob_abs_diff_max"], 0, "INT4 against BF16")
            self.assertGreater(row["old_log_probs_ms"], 0)
        exact = self.rows("exact", **several)
        for row in exact:
            self.assertEqual((row["logprob_abs_diff_max"], row["old_log_probs_ms"]), (0, 0))
        rollouts = self.rows("rollouts", **several, algorithm__use_rollout_logprobs="true")
        self.assertEqual(reproducible(rollouts), reproducible(exact))

    def test_that_pass_sends_tokens_to_the_experts_that_are_replayed(self):
        rows = self.rows("replayed", config=TINY_MOE, qat__enabled="false", optimizer__lr=0,
                         algorithm__routing_replay="true", optimizer__steps_per_rollout=2,
                         optimizer__global_batch=8, run__steps=2)
        for row in rows:
            self.assertGreater(row["old_log_probs_ms"], 0)
            # Nothing was learned, so that only other experts could make a difference.
            self.assertEqual(row["ratio_max"], 1, row)

    def test_a_pass_for_old_log_probabilities_gathers_what_is_planned(self):
        model = "tests/oracles/models/dense_tied"
        keys = settings(run__directory=self.folder / "old", run__steps=1, model__path=f"{model}/bf16",
                        model__int4=f"{model}/int4_sym7", parallel__max_tokens_per_device=4096,
                        optimizer__steps_per_rollout=2, optimizer__global_batch=8, eval__data='""',
                        rollout__schedule="one_step_off", algorithm__correction="tis")
        self.assertEqual(self.run_nibble("train", TINY_DENSE, *keys).code, 0)
        row = read_metrics(self.folder / "old")[0][0]
        plan = json.loads(self.run_nibble("plan", TINY_DENSE, *keys, "--device", "cpu", "--json").out)
        step = plan["trainers"][0]["gathered_per_step"]
        self.assertGreater(row["old_log_probs_ms"], 0)
        self.assertEqual((step["quantized_bytes"], step["rest_bytes"]),
                         (row["gathered_quantized_bytes"], row["gathered_plain_bytes"]))

    def test_a_teacher_of_another_architecture_is_approached(self):
        rows = self.rows("distilled", algorithm__advantage="opd", run__steps=25, eval__every=100,
                         model__teacher="tests/oracles/models/moe_norm/bf16",
                         optimizer__lr=0.003, algorithm__kl_loss_coef=0,
                         rollout__max_new_tokens=16)
        kl = [row["kl_teacher"] for row in rows]
        self.assertLess(sum(kl[-5:]), 0.8 * sum(kl[:5]))
        for row in rows:
            self.assertGreater(row["teacher_ms"], 0)
            self.assertEqual(row["logprob_abs_diff_max"], 0)


if __name__ == "__main__":
    unittest.main()
