"""PPO: a critic that is trained beside the model learns, helps it learn, and is a part of checkpoints."""

import json
import struct
import sys
import unittest

from nibble_job import ROOT, TINY_MOE, JobTest, last_checkpoint, read_metrics, settings, state_sha256

sys.path.insert(0, str(ROOT / "tests/cli"))
from reward_server import RewardServer  # noqa: E402

PROMPTS = ("one", "two and", "a third one here", "so four 4")
FIGURES = {"value_loss", "value_clip_share", "value_mean", "explained_variance", "critic_grad_norm", "critic_lr",
           "critic_gathered_bytes", "critic_ms"}
GAE = dict(algorithm__advantage="gae", algorithm__kl_loss_coef=0, critic__lr=0.003)


def score(sample):
    """More for some prompts than for others, which a critic can know; and for letters, which the model can learn."""
    response = sample["response"]
    letters = sum(c.isascii() and c.isalpha() for c in response)
    return 0.5 * int(sample["label"]) + letters / max(1, len(response))


def mean(rows, key):
    return sum(row[key] for row in rows) / len(rows)


class Critic(JobTest):
    def setUp(self):
        super().setUp()
        self.data = self.folder / "prompts.jsonl"
        self.data.write_text("".join(json.dumps({"prompt": prompt, "label": str(i)}) + "\n"
                                     for i, prompt in enumerate(PROMPTS)))
        self.server = RewardServer(score)
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)

    def job(self, name, *flags, config=None, **values):
        directory = self.folder / name
        keys = dict(data__train=self.data, reward__type="remote", reward__url=self.server.url, eval__data='""', **values)
        result = self.train(directory, *settings(**keys), *flags, **({"config": config} if config else {}))
        return directory, read_metrics(directory)[0], result

    def test_the_critic_learns_first_and_then_the_model_does(self):
        directory, rows, _ = self.job("run", **GAE, algorithm__reference="never", optimizer__lr=0.003,
                                      critic__warmup_steps=12, run__steps=40, checkpoint__every=20)
        for row in rows:
            self.assertLessEqual(FIGURES, row.keys())
            self.assertEqual(row["lr"], 0 if row["step"] <= 12 else 0.003)
            self.assertEqual("codes_changed_share" in row, row["step"] > 12)
        self.assertEqual((rows[0]["value_mean"], rows[0]["explained_variance"]), (0, 0))
        self.assertLess(mean(rows[8:12], "value_loss"), 0.2 * rows[0]["value_loss"])
        self.assertGreater(mean(rows[-5:], "explained_variance"), 0.7)
        self.assertGreater(mean(rows[-5:], "reward_mean"), mean(rows[:12], "reward_mean") + 0.1)
        # What is exported is the model alone.
        out = self.folder / "exported"
        exported = self.run_nibble("export", "--to", "bf16", "--input-dir", last_checkpoint(directory), "--output-dir", out,
                                   "--side-files", ROOT / "tests/oracles/models/dense_untied/bf16")
        self.assertEqual(exported.code, 0, exported.err)
        blob = (out / "model.safetensors").read_bytes()
        header = json.loads(blob[8:8 + struct.unpack("<Q", blob[:8])[0]])
        self.assertIn("lm_head.weight", header)
        self.assertNotIn("score.weight", header)

    def test_a_resumed_run_is_the_uninterrupted_one_and_meshes_agree(self):
        several = dict(**GAE, algorithm__kl_reward_coef=0.05, algorithm__gamma=0.99, algorithm__lambda=0.9,
                       optimizer__steps_per_rollout=2, optimizer__global_batch=8, critic__clip_norm=0.5)
        whole, rows, _ = self.job("whole", **several, run__steps=6)
        self.job("resumed", **several, run__steps=4)
        resumed, _, _ = self.job("resumed", "--resume", **several, run__steps=6)
        self.expect_same_run(resumed, whole)
        self.assertTrue(any(row["value_clip_share"] > 0 for row in rows), "a second update is off the old values")
        alone, one, _ = self.job("alone", **several, run__steps=3, cluster__trainers=1)
        for row, want in zip(one, rows):
            for key in ("value_loss", "value_mean", "critic_grad_norm", "explained_variance", "loss", "grad_norm"):
                self.assertAlmostEqual(row[key], want[key], delta=1e-3 * abs(want[key]) + 1e-4,
                                       msg=f"{key} of step {row['step']}")
        # And goes on with what two ranks wrote.
        state = state_sha256(last_checkpoint(whole))
        other, _, _ = self.job("other", "--resume", whole, **several, run__steps=7, cluster__trainers=1)
        self.assertEqual(state_sha256(last_checkpoint(whole)), state)
        self.assertEqual(len(list(last_checkpoint(other).glob("critic-*-of-001.safetensors"))), 1)

    def test_a_mixture_of_experts_with_a_dense_critic_over_tensor_ranks(self):
        _, rows, _ = self.job("moe", **GAE, config=TINY_MOE, run__steps=3, parallel__tensor=2,
                              critic__model="tests/oracles/models/dense_untied/bf16")
        self.assertLess(rows[2]["value_loss"], rows[0]["value_loss"])

    def test_runs_without_a_critic_and_with_one_go_on_from_each_other(self):
        plain, before, _ = self.job("plain", run__steps=2)
        self.assertFalse(FIGURES & before[0].keys())
        _, rows, result = self.job("valued", "--resume", plain, **GAE, run__steps=4)
        self.assertIn("has no critic: it starts anew", result.err)
        self.assertEqual((rows[0]["step"], rows[0]["value_mean"]), (3, 0))
        self.assertNotEqual(rows[1]["value_mean"], 0)
        again, rows, result = self.job("again", "--resume", self.folder / "valued", run__steps=6)
        self.assertIn("is ignored: this run has none", result.err)
        self.assertFalse(FIGURES & rows[-1].keys())
        self.assertFalse(list(last_checkpoint(again).glob("critic-*")))


if __name__ == "__main__":
    unittest.main()
