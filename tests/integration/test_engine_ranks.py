"""rollout.tensor and rollout.expert: engines of several ranks in a job make the samples of one."""

import os
import re
import signal
import unittest

from nibble_job import (TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, read_metrics, settings,
                        state_sha256)

FEW_STEPS = settings(run__steps=6, eval__every=100, checkpoint__every=100,
                     weight_sync__timeout_ms=8000, weight_sync__retries=3)
ALONE = settings(cluster__rollout_workers=1)


def ranks(engines, tensor, expert=1):
    return settings(cluster__rollout_workers=engines * tensor, rollout__tensor=tensor,
                    rollout__expert=expert)


class EngineRanks(JobTest):
    def reference(self, config, *arguments):
        directory = self.folder / f"reference-{config.rpartition('/')[2]}"
        self.train(directory, *FEW_STEPS, *ALONE, *arguments, config=config)
        return directory

    def expect_run_of(self, directory, reference, engines=1):
        rows, want = read_metrics(directory)[0], read_metrics(reference)[0]
        self.assertEqual([row["step"] for row in rows], [row["step"] for row in want])
        for row, wanted in zip(rows, want):
            for key in ("reward_mean", "loss", "grad_norm", "generated_tokens"):
                self.assertEqual(row[key], wanted[key], f"step {row['step']}: {key}")
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
        self.assertEqual(rows[-1]["serving_engines"], engines)
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))
        return rows, want

    def test_jobs_end_in_the_same_state_as_with_one_rank(self):
        for config, shapes in ((TINY_DENSE, ((1, 2), (2, 2))),
                               (TINY_MOE, ((1, 2, 1), (1, 2, 2), (2, 2, 2)))):
            reference = self.reference(config)
            for shape in shapes:
                with self.subTest(config, shape=shape):
                    directory = self.folder / f"{config[-9:-5]}-{'-'.join(map(str, shape))}"
                    self.train(directory, *FEW_STEPS, *ranks(*shape), config=config)
                    rows, want = self.expect_run_of(directory, reference, shape[0])
                    # Each rank receives its own rows; what none parts goes to all of them.
                    per_engine = rows[0]["sync_bytes"] / shape[0] / want[0]["sync_bytes"]
                    self.assertGreater(per_engine, 1.0)
                    self.assertLess(per_engine, shape[1])

    def test_trainers_that_share_the_model_otherwise_send_each_rank_its_part(self):
        trainers = settings(cluster__trainers=2, parallel__expert=2)
        reference = self.reference(TINY_MOE, *trainers)
        directory = self.folder / "run"
        self.train(directory, *FEW_STEPS, *trainers, *ranks(1, 2, 2), config=TINY_MOE)
        self.expect_run_of(directory, reference)

    def test_deltas_in_place_and_guesses_change_nothing(self):
        reference = self.reference(TINY_DENSE)
        for name, extra in (("delta", settings(weight_sync__delta="true",
                                               weight_sync__whole_every=4)),
                            ("in_place", settings(weight_sync__in_place="true")),
                            ("guesses", settings(rollout__max_draft_tokens=4)),
                            ("head", settings(rollout__max_draft_tokens=3,
                                              rollout__draft_head="random",
                                              rollout__train_draft_head="true"))):
            with self.subTest(name):
                directory = self.folder / name
                self.train(directory, *FEW_STEPS, *ranks(1, 2), *extra)
                self.expect_run_of(directory, reference)

    def test_colocated_workers_are_ranks_of_an_engine_too(self):
        placed = settings(cluster__placement="colocated", cluster__trainers=2)
        reference = self.folder / "reference"
        self.train(reference, *FEW_STEPS, *placed, *settings(cluster__rollout_workers=2))
        directory = self.folder / "run"
        self.train(directory, *FEW_STEPS, *placed, *ranks(1, 2))
        self.expect_run_of(directory, reference)

    def test_a_rank_that_fails_fences_its_engine_alone_and_both_come_back(self):
        reference = self.reference(TINY_DENSE)
        for rank in (2, 3):
            for state in ("receive", "prepare", "commit"):
                with self.subTest(rank=rank, state=state):
                    self.fresh_folder()
                    directory = self.folder / "run"
                    job = self.start_train(
                        directory, *FEW_STEPS, *ranks(2, 2), environment={
                            "NIBBLE_FAILPOINTS": f"rollout/{rank}.{state}@3=error"})
                    result = job.wait()
                    self.assertEqual(result.code, 0, result.err[-3000:])
                    self.assertRegex(result.err, rf"failpoint: rollout/{rank}\.{state}: error",
                                     "the fault did not happen")
                    if state != "commit":  # decided: it is told again
                        for number in (2, 3):
                            self.assertIn(f"goes on without rollout/{number}", result.err)
                            self.assertRegex(result.err, rf"rollout/{number} serves version \d+ again")
                        self.assertNotRegex(result.err, r"goes on without rollout/[01]")
                    self.expect_run_of(directory, reference, 2)

    def test_a_killed_rank_ends_the_job_and_it_resumes(self):
        directory = self.folder / "run"
        endless = settings(run__steps=100000, eval__every=100000)
        job = self.start_train(directory, *endless, *ranks(1, 2))
        job.wait_for_log("step=2/")
        victim = job.workers()["rollout/1"]
        os.kill(victim, signal.SIGKILL)
        self.expect_refusal(job.wait(30), 1, "rollout/1", str(victim), "killed by signal 9")
        self.expect_nothing_left(job)
        done = read_metrics(directory)[0][-1]["step"]
        self.train(directory, *settings(run__steps=done + 2), *ranks(1, 2), "--resume")

    def test_a_job_ends_without_a_word_of_ranks_that_are_gone(self):
        job = self.start_train(self.folder / "run", *FEW_STEPS, *ranks(1, 2))
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.assertNotRegex(result.err, r"did not hear|stops following")
        self.expect_nothing_left(job)

    def test_what_ranks_cannot_share_is_refused_by_name(self):
        for arguments, words in (
                (settings(rollout__tensor=2, cluster__rollout_workers=3),
                 "rollout.tensor = 2 (--set rollout.tensor) does not divide "
                 "cluster.rollout_workers = 3"),
                (ranks(1, 2, 2), "no experts"),
                (ranks(1, 4, 2), "rollout.expert is 2"),
                (ranks(1, 3), "does not divide num_attention_heads"),
                ((*ranks(1, 2), *settings(cluster__external_engines=1)),
                 "cluster.external_engines")):
            with self.subTest(words):
                result = self.run_nibble("config", TINY_DENSE, *arguments)
                self.assertNotEqual(result.code, 0)
                self.assertIn(re.sub(r" \(--set.*?\)", "", words),
                              re.sub(r" \(--set.*?\)", "", result.err))


if __name__ == "__main__":
    unittest.main()
