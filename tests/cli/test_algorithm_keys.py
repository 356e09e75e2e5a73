"""Algorithms that make no sense are refused before anything starts, naming both keys."""

import json
import os
import shutil
import unittest

from nibble_cli import ROOT, CliTestCase, nibble

CONFIG = ROOT / "configs/ci/tiny-dense.yaml"
PLAIN = {"kl_loss_coef": 0}


class AlgorithmKeys(CliTestCase):
    def config(self, keys):
        sets = []
        for key, value in {**PLAIN, **keys}.items():
            path = key if "." in key else f"algorithm.{key}"
            sets += ["--set", f"{path}={value}"]
        return nibble("config", CONFIG, *sets)

    def refused(self, keys, *named):
        with self.subTest(keys):
            code, _, error = self.config(keys)
            self.assertEqual(code, 2, error)
            for name in (f"algorithm.{next(iter(keys))}", *named):
                self.assertIn(name, error)

    def refused_key(self, key, value, *named, **others):
        with self.subTest(key):
            code, _, error = self.config({key: value, **others})
            self.assertEqual(code, 2, error)
            for name in (key, *named):
                self.assertIn(name, error)

    def accepted(self, keys):
        with self.subTest(keys):
            code, shown, error = self.config(keys)
            self.assertEqual(code, 0, error)
            effective = self.folder / "effective.yaml"
            effective.write_text(shown)
            code, again, error = nibble("config", effective)
            self.assertEqual((code, again), (0, shown), error)

    def test_a_learning_rate_that_cannot_be_followed_is_refused(self):
        decays = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 3}
        self.refused_key("optimizer.decay_steps", 0, "optimizer.warmup_steps", **decays)
        self.refused_key("optimizer.decay_steps", 3, "optimizer.warmup_steps", **decays)
        self.refused_key("optimizer.min_lr", 0.5, "optimizer.lr", **decays, **{"optimizer.decay_steps": 9})
        self.refused_key("optimizer.decay_steps", 9, "optimizer.schedule")
        self.refused_key("optimizer.min_lr", 0.0001, "optimizer.schedule")
        self.refused_key("optimizer.beta1", 1)
        self.refused_key("optimizer.beta2", 1)
        self.refused_key("critic.decay_steps", 2, "critic.lr_warmup_steps",
                         **{"advantage": "gae", "critic.schedule": "linear", "critic.lr_warmup_steps": 2})
        self.refused_key("optimizer.mapped_in", "/tmp", "optimizer.offload", **{"optimizer.offload": "true"})
        self.refused_key("optimizer.mapped_in", "/tmp", "cluster.device", **{"cluster.device": "cuda"})

    def test_a_critic_belongs_to_gae_and_to_nothing_else(self):
        gae = {"advantage": "gae"}
        keys = {"critic.model": "tests/oracles/models/moe_norm/bf16", "critic.lr": 0.001, "critic.schedule": "linear",
                "critic.lr_warmup_steps": 2, "critic.decay_steps": 9, "critic.min_lr": 0.0001,
                "critic.clip_norm": 0.5, "critic.value_clip": 0.1, "critic.warmup_steps": 3}
        self.accepted(gae)
        self.accepted({**gae, **keys, "lambda": 0.95, "gamma": 0.99, "kl_reward_coef": 0.01})
        self.accepted({**gae, "rollout.samples_per_prompt": 1, "optimizer.global_batch": 4})
        for key, value in keys.items():
            self.refused_key(key, value, "algorithm.advantage: gae")
        for advantage in ("grpo", "reinforce_pp"):
            self.refused({"lambda": 0.95, "advantage": advantage}, "algorithm.advantage: gae")
        self.refused({"normalize_std": "false", **gae}, "algorithm.advantage: grpo")
        for key, value in (("critic.value_clip", 0), ("critic.warmup_steps", -1), ("critic.lr", -1)):
            self.refused_key(key, value, **gae)
        self.refused({"lambda": 1.5, **gae})

    def test_distillation_needs_a_teacher_and_learns_nothing_from_rewards(self):
        teacher = {"model.teacher": "tests/oracles/models/dense_untied/bf16"}
        self.refused({"advantage": "opd"}, "opd", "model.teacher")
        self.refused({"advantage": "grpo", **teacher}, "model.teacher", "algorithm.advantage: opd")
        opd = {"advantage": "opd", **teacher}
        self.accepted(opd)
        self.accepted({**opd, "rollout.samples_per_prompt": 1, "optimizer.global_batch": 4})
        self.refused({**opd, "rollout.dynamic_filter": "nonzero_std"}, "rollout.dynamic_filter")
        self.refused({**opd, "overlong_buffer": 2}, "overlong_buffer", "rewards")

    def test_groups_of_one_have_nothing_to_compare(self):
        for advantage in ("grpo", "rloo", "reinforce_pp_baseline"):
            alone = {"advantage": advantage, "rollout.samples_per_prompt": 1,
                     "optimizer.global_batch": 4}
            self.refused(alone, advantage, "rollout.samples_per_prompt")
        for advantage in ("reinforce_pp", "gae"):
            self.accepted({**alone, "advantage": advantage})

    def test_the_kl_counts_once_and_needs_a_reference(self):
        both = {"kl_reward_coef": 0.01, "kl_loss_coef": 0.001, "advantage": "reinforce_pp"}
        self.refused(both, "algorithm.kl_loss_coef")
        for advantage in ("grpo", "rloo"):
            self.refused({"kl_reward_coef": 0.01, "advantage": advantage}, "algorithm.advantage",
                         advantage, "algorithm.kl_loss_coef")
        for key in ("kl_reward_coef", "kl_loss_coef"):
            self.refused({key: 0.01, "advantage": "reinforce_pp", "reference": "never"},
                         "algorithm.reference")
        self.refused({"kl_unbiased": "true", "kl_reward_coef": 0.01, "advantage": "reinforce_pp"},
                     "algorithm.kl_reward_coef", "algorithm.kl_loss_coef")
        for advantage in ("reinforce_pp", "reinforce_pp_baseline", "gae"):
            self.accepted({"kl_reward_coef": 0.01, "advantage": advantage})

    def test_a_correction_that_is_one_by_definition(self):
        for kind in ("tis", "icepop", "mis"):
            self.refused({"correction": kind, "use_rollout_logprobs": "true"},
                         "algorithm.use_rollout_logprobs")
            self.accepted({"correction": kind})
        self.accepted({"use_rollout_logprobs": "true"})

    def test_values_that_nothing_reads(self):
        self.refused({"normalize_std": "false", "advantage": "rloo"}, "algorithm.advantage: grpo")
        self.refused({"gamma": 0.9}, "algorithm.advantage: reinforce_pp or gae")
        self.refused({"gamma": 0.9, "advantage": "reinforce_pp_baseline"},
                     "algorithm.advantage: reinforce_pp")
        self.refused({"dual_clip": 3, "loss": "cispo"}, "algorithm.loss")
        self.refused({"sum_norm": 8}, "algorithm.aggregation: seq-mean-token-sum-norm")
        for key, value in (("correction_low", 0.5), ("correction_high", 3)):
            self.refused({key: value}, "algorithm.correction")
        for key, value in (("mis_mode", "mask"), ("mis_level", "sequence"), ("mis_veto", 0.001),
                           ("mis_reject_level", "token"), ("mis_reject_low", 0.5),
                           ("mis_reject_high", 3)):
            self.refused({key: value, "correction": "tis"}, "algorithm.correction: mis")
        self.refused({"mis_reject_low": 0.5, "correction": "mis"}, "algorithm.mis_reject_level")
        self.refused({"correction_low": 0.5, "correction": "mis"}, "algorithm.mis_mode", "truncate")
        self.accepted({"correction_low": 0.5, "correction": "mis", "mis_mode": "clip"})
        self.accepted({"correction_low": 0.5, "correction": "mis", "mis_reject_level": "geometric"})
        self.accepted({"correction": "mis", "mis_reject_level": "token", "mis_reject_low": 0.5})

    def test_bounds_that_cross(self):
        code, _, error = self.config({"correction": "mis", "mis_reject_level": "token",
                                      "mis_reject_low": 3})
        self.assertEqual(code, 2)
        self.assertIn("mis_reject_high", error)

    def test_an_overlong_penalty_fits_the_response(self):
        self.refused({"overlong_buffer": 9}, "rollout.max_new_tokens")
        self.refused({"overlong_penalty": 0.5}, "algorithm.overlong_buffer")
        self.accepted({"overlong_buffer": 4, "overlong_penalty": 0.5, "mask_truncated": "true"})

    def test_several_updates_of_a_rollout_without_qat(self):
        self.accepted({"optimizer.steps_per_rollout": 2, "optimizer.global_batch": 8,
                       "qat.enabled": "false"})


class CriticModels(CliTestCase):
    """What only the models' files tell."""

    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(ROOT)  # the paths in CONFIG begin there

    def test_trainer_ranks_share_the_critic_as_they_share_the_model(self):
        # Two experts' ranks, and a critic without experts.
        moe = [word for key in ("path=bf16", "int4=int4_sym7") for word in
               ("--set", "model." + key.replace("=", "=tests/oracles/models/moe_norm/"))]
        code, _, error = nibble("config", CONFIG, *moe, "--set", "algorithm.advantage=gae", "--set",
                                "algorithm.kl_loss_coef=0", "--set", "parallel.expert=2", "--set",
                                "critic.model=tests/oracles/models/dense_untied/bf16")
        self.assertEqual(code, 2)
        self.assertIn("no experts", error)

    def test_a_critic_that_is_missing_or_of_another_vocabulary_is_refused_before_the_start(self):
        critic = self.folder / "critic"
        shutil.copytree(ROOT / "tests/oracles/models/dense_untied/bf16", critic)
        config = json.loads((critic / "config.json").read_text())
        (critic / "config.json").write_text(json.dumps({**config, "vocab_size": 480}))
        for model, said in ((critic, "vocab_size = 480"), (self.folder / "none", "does not exist")):
            code, _, error = nibble("train", CONFIG, "--set", f"run.directory={self.folder / 'run'}", "--set",
                                    "algorithm.advantage=gae", "--set", "algorithm.kl_loss_coef=0", "--set",
                                    f"critic.model={model}")
            self.assertEqual(code, 2, error)
            self.assertIn("critic.model", error)
            self.assertIn(said, error)


if __name__ == "__main__":
    unittest.main()
