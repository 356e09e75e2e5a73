"""R3: trainers follow the experts that the rollout chose; on a CPU those are their own."""

import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, read_metrics, settings,
                        state_sha256)

REPLAY = settings(algorithm__routing_replay="true")


class RoutingReplay(JobTest):
    def test_on_a_cpu_a_run_with_replay_is_the_run_without(self):
        few = settings(run__steps=4)
        alone = settings(cluster__trainers=1, cluster__rollout_workers=1)
        reference = self.folder / "reference"
        self.train(reference, *few, *alone, config=TINY_MOE)
        wanted = state_sha256(last_checkpoint(reference))
        for name, others in (
                ("alone", alone),
                ("guesses", (*alone, *settings(rollout__max_draft_tokens=4))),
                ("little_cache", (*alone, *settings(rollout__kv_tokens=128,
                                                    rollout__max_step_tokens=32))),
                ("engine_ranks", settings(cluster__trainers=1, cluster__rollout_workers=2,
                                          rollout__tensor=2, rollout__expert=2))):
            with self.subTest(name):
                directory = self.folder / name
                self.train(directory, *few, *others, *REPLAY, config=TINY_MOE)
                for row in read_metrics(directory)[0]:
                    self.assertEqual(row["logprob_abs_diff_max"], 0, row)
                    self.assertGreaterEqual(row["expert_load_max"], 1.0)
                    self.assertTrue(0 <= row["expert_idle_share"] < 1)
                self.assertEqual(state_sha256(last_checkpoint(directory)), wanted)
        self.assertNotIn("expert_load_max", read_metrics(reference)[0][0])

    def test_trainers_that_share_the_experts_replay_too(self):
        loads = []
        for name, trainers, tensor, expert in (("one", 1, 1, 1), ("four", 4, 2, 2)):
            directory = self.folder / name
            self.train(directory, *REPLAY, *settings(
                run__steps=2, cluster__trainers=trainers, cluster__rollout_workers=1,
                parallel__tensor=tensor, parallel__expert=expert), config=TINY_MOE)
            row = read_metrics(directory)[0][0]
            self.assertEqual(row["logprob_abs_diff_max"], 0)
            loads.append((row["expert_load_max"], row["expert_idle_share"]))
        self.assertEqual(loads[0], loads[1])

    def test_a_model_without_experts_is_refused(self):
        result = self.run_nibble("config", TINY_DENSE, *REPLAY)
        self.expect_refusal(result, 2, "algorithm.routing_replay", "has no experts")


if __name__ == "__main__":
    unittest.main()
