"""parallel.tensor, expert and context: however the trainers share the model, the job is the same."""

import os
import signal
import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, rank_bytes, read_metrics,
                        settings)

# Trainers, tensor, expert, context.
DENSE = ((2, 2, 1), (4, 2, 1), (2, 1, 1, 2), (4, 2, 1, 2))
MOE = ((2, 1, 2), (2, 2, 1), (2, 2, 2), (4, 2, 4), (4, 1, 2, 2))


def mesh(trainers, tensor, expert, context=1, **others):
    return settings(cluster__trainers=trainers, cluster__rollout_workers=1, parallel__tensor=tensor,
                    parallel__expert=expert, parallel__context=context, **others)


class Meshes(JobTest):
    def check(self, config, shapes):
        alone = self.folder / "alone"
        self.train(alone, *mesh(1, 1, 1), config=config)
        want = read_metrics(alone)[0]
        for shape in shapes:
            with self.subTest(shape):
                directory = self.folder / "-".join(map(str, shape))
                self.train(directory, *mesh(*shape), config=config)
                rows = read_metrics(directory)[0]
                self.assertEqual(len(rows), len(want))
                for row in rows:
                    self.assertEqual(row["logprob_abs_diff_max"], 0, row)
                    self.assertEqual(row["sync_bytes"], want[0]["sync_bytes"])
                # The first step has the same weights and samples, to the bit.
                first, other = rows[0], want[0]
                for figure in ("reward_mean", "train_response_tokens", "response_length_mean"):
                    self.assertEqual(first.get(figure), other.get(figure), figure)
                for figure in ("loss", "kl_reference", "entropy", "grad_norm"):
                    self.assertAlmostEqual(first[figure], other[figure],
                                           delta=1e-5 * abs(other[figure]) + 1e-9)
                self.assertEqual(len(rank_bytes(last_checkpoint(directory))), shape[0])

    def test_a_dense_model(self):
        self.check(TINY_DENSE, DENSE)

    def test_a_moe_model(self):
        self.check(TINY_MOE, MOE)

    def test_a_checkpoint_of_one_mesh_is_resumed_in_another(self):
        directory = self.folder / "run"
        self.train(directory, *mesh(2, 2, 2, run__steps=2), config=TINY_MOE)
        self.train(directory, *mesh(2, 1, 2, 2, run__steps=4), "--resume", config=TINY_MOE)
        self.train(directory, *mesh(1, 1, 1, run__steps=6), "--resume", config=TINY_MOE)
        rows = read_metrics(directory)[0]
        self.assertEqual([row["step"] for row in rows], list(range(1, 7)))
        for row in rows:
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)

    def test_a_killed_rank_ends_the_job_and_it_resumes(self):
        job = self.start_train(self.folder / "run", *mesh(2, 2, 2, run__steps=100000,
                                                          eval__every=100000), config=TINY_MOE)
        job.wait_for_log("step=2/")
        victim = job.workers()["trainer/1"]
        os.kill(victim, signal.SIGKILL)
        self.expect_refusal(job.wait(30), 1, "trainer/1", str(victim), "killed by signal 9")
        self.expect_nothing_left(job)
        done = read_metrics(self.folder / "run")[0][-1]["step"]
        self.train(self.folder / "run", *mesh(2, 2, 2, run__steps=done + 2), "--resume",
                   config=TINY_MOE)

    def test_a_stopped_rank_is_lost_when_its_lease_runs_out(self):
        job = self.start_train(self.folder / "run", *mesh(2, 1, 2, run__steps=100000,
                                                          eval__every=100000,
                                                          cluster__lease_ms=2000), config=TINY_MOE)
        job.wait_for_log("step=2/")
        os.kill(job.workers()["trainer/0"], signal.SIGSTOP)
        self.expect_refusal(job.wait(30), 1, "trainer/0", "silent", "--resume")
        self.expect_nothing_left(job)

    def test_shares_of_changed_codes_are_the_models(self):
        shares = set()
        for shape in ((1, 1, 1), (2, 1, 2)):
            directory = self.folder / f"changes{shape[0]}"
            self.train(directory, *mesh(*shape, run__steps=1), config=TINY_MOE)
            shares.add(round(read_metrics(directory)[0][0]["codes_changed_share"], 4))
        self.assertEqual(len(shares), 1, shares)

    def test_experts_that_one_rank_owns_whole_are_not_gathered(self):
        bytes_of = {}
        for shape in ((2, 1, 1), (2, 1, 2)):
            directory = self.folder / str(shape[2])
            self.train(directory, *mesh(*shape, run__steps=1), config=TINY_MOE)
            bytes_of[shape[2]] = read_metrics(directory)[0][0]["gathered_quantized_bytes"]
        self.assertGreater(bytes_of[1], 0)
        self.assertEqual(bytes_of[2], 0, "only experts are quantized here")

    def test_a_mesh_that_does_not_fit_is_refused_by_name(self):
        for shape, config, message in (
                ((2, 4, 1), TINY_DENSE, "parallel.tensor = 4 does not divide the number of "
                                        "trainers = 2"),
                ((4, 4, 1), TINY_DENSE, "parallel.tensor = 4 does not divide num_key_value_heads"),
                ((2, 1, 2), TINY_DENSE, "parallel.expert = 2, but the model has no experts"),
                ((16, 1, 16), TINY_MOE, "parallel.expert = 16 does not divide the number of "
                                        "experts = 8")):
            with self.subTest(message):
                result = self.run_nibble("config", config, *mesh(*shape))
                self.expect_refusal(result, 2, message)


if __name__ == "__main__":
    unittest.main()
