"""Training is deterministic in the seed, and a killed job resumes to the very same bytes."""

import random
import re
import shutil
import signal
import subprocess
import unittest

from nibble_job import (JOB_SECONDS, TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, query,
                        rank_bytes, reached_step, read_metrics, settings, state_sha256, wait_until)

STEPS = 8
LENGTH = settings(run__steps=STEPS)
ENDLESS = settings(run__steps=1_000_000)


class Determinism(JobTest):
    def test_one_seed_gives_one_state_whatever_else_differs(self):
        first = self.folder / "first"
        self.train(first, *LENGTH)
        again = self.folder / "again"
        self.train(again, *LENGTH, *settings(checkpoint__every=5, cluster__threads_per_worker=2))
        self.expect_same_run(again, first)

    def test_another_seed_gives_another_state(self):
        states = set()
        for seed in (1, 2):
            directory = self.folder / str(seed)
            self.train(directory, *settings(run__seed=seed, run__steps=3))
            states.add(state_sha256(last_checkpoint(directory)))
        self.assertEqual(len(states), 2)

    def test_the_number_of_rollout_workers_does_not_change_the_state(self):
        two, three = self.folder / "two", self.folder / "three"
        self.train(two, *LENGTH)
        self.train(three, *LENGTH, *settings(cluster__rollout_workers=3))
        self.expect_same_run(three, two)


class Resume(JobTest):
    def check_history(self, directory, steps=STEPS):
        rows, evals = read_metrics(directory)
        self.assertEqual([row["step"] for row in rows], list(range(1, steps + 1)))
        self.assertEqual([row["step"] for row in evals],
                         sorted({step for step in range(steps) if step % 3 == 0} | {steps}))
        versions = [row["weight_version"] for row in rows]
        self.assertTrue(all(a < b for a, b in zip(versions, versions[1:])), versions)
        self.assertEqual(query(directory, "SELECT step, status FROM steps ORDER BY step"),
                         [(step, "done") for step in range(1, steps + 1)])
        self.assertEqual(query(directory, "SELECT count(*) FROM samples"), [(16 * steps,)])
        undecided = query(directory, "SELECT version FROM versions GROUP BY version "
                                     "HAVING sum(decision <> 'prepared') = 0")
        self.assertEqual(undecided, [])

    def kill_at(self, directory, step, delay_ms, config, *arguments):
        """SIGKILL of the supervisor `delay_ms` after the end of `step`, or of the first step after
        it if a resumed job begins later (0: after the start). The job has no end of its own, so
        that the fault always comes before it, however slow the machine is."""
        job = self.start_train(directory, *ENDLESS, *arguments, config=config)
        if step:
            wait_until(lambda: any(int(number) >= step for number in
                                   re.findall(r" step=(\d+)/", job.log())),
                       JOB_SECONDS, f"step {step}")
        else:
            job.wait_for_log("coordinator address=")
        with self.assertRaises(subprocess.TimeoutExpired, msg="it ended before the fault"):
            job.process.wait(delay_ms / 1000)
        job.signal(signal.SIGKILL)
        self.assertEqual(job.wait().code, -signal.SIGKILL)
        self.expect_nothing_left(job)

    def check_resumed(self, directory, config=TINY_DENSE):
        """The killed job, resumed to an end that it has not reached, against an unbroken run."""
        reached = reached_step(directory)
        steps = max(STEPS, reached + 1)
        result = self.train(directory, "--resume", *settings(run__steps=steps), config=config)
        self.assertIn(f"{steps} steps in", result.out)
        self.check_history(directory, steps)
        reference = self.folder / "reference"
        self.train(reference, *settings(run__steps=steps), config=config)
        self.expect_same_run(directory, reference)

    def check_kills(self, config, seed, moments):
        draw = random.Random(seed)
        directory = self.folder / "killed"
        arguments = []
        for low, high in moments:
            self.kill_at(directory, draw.randint(low, high), draw.uniform(0, 15), config,
                         *arguments)
            arguments = ["--resume"]
        self.check_resumed(directory, config)

    def test_a_killed_dense_job_resumes_to_the_state_of_an_uninterrupted_one(self):
        self.check_kills(TINY_DENSE, 11, [(0, 0), (1, 2), (3, 4), (5, 6)])

    def test_a_killed_moe_job_resumes_to_the_state_of_an_uninterrupted_one(self):
        self.check_kills(TINY_MOE, 23, [(1, 1), (2, 4), (6, 6)])

    def test_a_job_killed_before_its_first_step_resumes_from_nothing(self):
        directory = self.folder / "killed"
        draw = random.Random(5)
        for _ in range(2):
            self.kill_at(directory, 0, draw.uniform(0, 900), TINY_DENSE, "--resume")
        self.check_resumed(directory)

    def test_a_resumed_job_may_have_other_numbers_of_workers(self):
        for trainers, workers in ((1, 1), (2, 2), (1, 3), (3, 1)):
            with self.subTest(trainers=trainers, rollout_workers=workers):
                directory = self.folder / f"{trainers}x{workers}"
                self.train(directory, *settings(run__steps=4))
                before = read_metrics(directory)[0]
                self.train(directory, *LENGTH, "--resume", *settings(
                    cluster__trainers=trainers, cluster__rollout_workers=workers))
                rows = read_metrics(directory)[0]
                self.assertEqual(rows[:4], before)
                self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)))
                self.assertTrue(all(row["logprob_abs_diff_max"] == 0 for row in rows))
                self.assertEqual(len(rank_bytes(last_checkpoint(directory))), trainers)

    def test_what_changed_at_a_resume_is_said_and_kept(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=2))
        self.train(directory, *settings(run__steps=3), "--resume")
        result = self.run_nibble("train", TINY_DENSE, "--resume", *settings(
            run__directory=directory, run__steps=4, optimizer__lr=0.002, run__seed=9))
        self.assertEqual(result.code, 0, result.err)
        changed = "run.seed: 7 -> 9, optimizer.lr: 0.001 -> 0.002"
        self.assertIn(changed, result.err)
        events = query(directory, "SELECT kind, message FROM events ORDER BY rowid")
        self.assertEqual([kind for kind, _ in events], ["resumed", "resumed"])
        self.assertNotIn("run.", events[0][1])
        self.assertIn(changed, events[1][1])

    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self):
        reference = self.folder / "reference"
        self.train(reference, *LENGTH)
        broken = self.folder / "broken"
        self.train(broken, *settings(run__steps=6))
        newest = last_checkpoint(broken)
        self.assertEqual(newest.name, "step-000006")

        def flip(data):  # a byte of the weights, which only the rank that loads it notices
            return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]

        for name, change, said in (("meta.json", lambda data: data[:20], "is passed over"),
                                   ("rank-001-of-002.safetensors", flip, "hash differs")):
            with self.subTest(name=name):
                directory = self.folder / name
                shutil.copytree(broken, directory)
                path = directory / "checkpoints/step-000006" / name
                path.write_bytes(change(path.read_bytes()))
                result = self.train(directory, "--resume", *LENGTH)
                self.assertIn(said, result.err)
                self.assertIn("step-000004", result.err)
                self.check_history(directory)
                self.expect_same_run(directory, reference)

    def test_a_damaged_checkpoint_does_not_push_out_those_that_are_whole(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=4))
        path = directory / "checkpoints/step-000004/rank-000-of-002.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
        result = self.train(directory, "--resume", *settings(run__steps=4, checkpoint__keep=1, checkpoint__every=3))
        self.assertIn("hash differs", result.err)
        self.assertEqual([name.name for name in sorted((directory / "checkpoints").glob("step-*"))], ["step-000004"])
        events = query(directory, "SELECT message FROM events WHERE kind = 'resumed'")
        self.assertIn(("went on from step-000002: step-000004 is damaged",), events)
        # Step 3 came first, beside which the damaged one was older by number alone.
        self.train(directory, "--resume", *settings(run__steps=5))
        self.assertEqual([row["step"] for row in read_metrics(directory)[0]], [1, 2, 3, 4, 5])

    def test_a_finished_job_that_is_resumed_stays_as_it_is(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=4))
        rows, state = read_metrics(directory), rank_bytes(last_checkpoint(directory))
        self.train(directory, *settings(run__steps=4), "--resume")
        self.assertEqual(read_metrics(directory), rows)
        self.assertEqual(rank_bytes(last_checkpoint(directory)), state)


if __name__ == "__main__":
    unittest.main()
