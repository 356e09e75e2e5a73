"""A dead or silent worker, Ctrl-C, two supervisors: the run stops cleanly, says why, and can go on."""

import os
import random
import re
import signal
import subprocess
import unittest
from pathlib import Path

from nibble_job import (JobTest, last_checkpoint, parents, query, rank_bytes, reached_step,
                        read_metrics, settings, wait_until)

# A job that does not end by itself before the fault.
ENDLESS = settings(run__steps=100000, eval__every=100000)
FAULT_SECONDS = 30


class Faults(JobTest):
    def start_endless(self, directory, *arguments, after=3):
        job = self.start_train(directory, *ENDLESS, *arguments)
        if after:
            job.wait_for_log(f"step={after}/")
        return job

    def expect_resumable(self, directory):
        """The run goes on, some steps further than it had come, without a gap or a double."""
        done = max((row["step"] for row in read_metrics(directory)[0]), default=0)
        self.train(directory, "--resume", *settings(run__steps=done + 3, eval__every=100000))
        rows = read_metrics(directory)[0]
        self.assertEqual([row["step"] for row in rows], list(range(1, done + 4)))
        self.assertTrue(all(row["logprob_abs_diff_max"] == 0 for row in rows))

    def kill_worker(self, name, after=3, delay_ms=0):
        directory = self.folder / "run"
        job = self.start_endless(directory, after=after)
        victim = wait_until(lambda: job.workers().get(name), 30, f"{name} to join")
        others = set(job.workers().values()) - {victim}
        with self.assertRaises(subprocess.TimeoutExpired, msg="it ended before the fault"):
            job.process.wait(delay_ms / 1000)
        os.kill(victim, signal.SIGKILL)
        result = job.wait(FAULT_SECONDS)
        self.expect_refusal(result, 1, name, str(victim), "killed by signal 9", "--resume")
        kind, message = query(directory, "SELECT kind, message FROM events ORDER BY rowid")[-1]
        self.assertEqual(kind, "worker_lost")  # after failed publications, if it was at one
        self.assertIn(name, message)
        self.assertFalse(others & parents().keys(), "workers outlived the job")
        self.expect_nothing_left(job)
        return directory

    def test_a_killed_trainer_ends_the_run_and_it_resumes(self):
        for name in ("trainer/0", "trainer/1"):
            with self.subTest(name=name):
                self.fresh_folder()
                self.expect_resumable(self.kill_worker(name))

    def test_a_killed_rollout_worker_ends_the_run_and_it_resumes(self):
        for name in ("rollout/0", "rollout/1"):
            with self.subTest(name=name):
                self.fresh_folder()
                self.expect_resumable(self.kill_worker(name))

    def test_a_worker_killed_in_any_phase_of_a_step_ends_the_run(self):
        draw = random.Random(31)
        for _ in range(5):
            name = draw.choice(("trainer/0", "trainer/1", "rollout/0", "rollout/1"))
            delay_ms = draw.uniform(0, 80)
            with self.subTest(name=name, delay_ms=delay_ms):
                self.fresh_folder()
                directory = self.kill_worker(name, delay_ms=delay_ms)
        self.expect_resumable(directory)

    def test_a_worker_killed_while_the_job_starts_ends_it(self):
        for name in ("trainer/0", "rollout/1"):
            with self.subTest(name=name):
                self.fresh_folder()
                directory = self.kill_worker(name, after=0)
                # On a busy machine the job may have come some steps far.
                steps = 2 + reached_step(directory)
                self.train(directory, "--resume", *settings(run__steps=steps))
                self.assertEqual([row["step"] for row in read_metrics(directory)[0]],
                                 list(range(1, steps + 1)))

    def test_a_stopped_worker_is_lost_when_its_lease_runs_out(self):
        for name in ("trainer/1", "rollout/0"):
            with self.subTest(name=name):
                self.fresh_folder()
                directory = self.folder / "run"
                job = self.start_endless(directory, *settings(cluster__lease_ms=2000))
                os.kill(job.workers()[name], signal.SIGSTOP)
                result = job.wait(FAULT_SECONDS)
                self.expect_refusal(result, 1, name, "silent", "--resume")
                self.expect_nothing_left(job)

    def test_a_killed_reward_process_is_replaced_and_the_run_goes_on(self):
        directory = self.folder / "run"
        job = self.start_endless(directory)
        workers = set(job.workers().values())

        def reward_processes():
            return {pid for pid, up in parents().items() if up in workers}

        victims = reward_processes()
        self.assertEqual(len(victims), 2, "one reward process for each rollout worker")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(reward_processes() - victims) == 2 and
                   not reward_processes() & victims, 20, "two other reward processes")
        step = len(job.log().split(" run: step=")) + 3
        job.wait_for_log(f" run: step={step}/")
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(FAULT_SECONDS), 1, "interrupted")
        rows = read_metrics(directory)[0]
        self.assertEqual(sum(row["samples_dropped"] for row in rows), 0)
        self.expect_nothing_left(job)

    def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number.name):
                self.fresh_folder()
                directory = self.folder / "run"
                # No checkpoint but the one that the signal asks for.
                job = self.start_endless(directory, *settings(checkpoint__every=100000))
                job.signal(number)
                result = job.wait(FAULT_SECONDS)
                done = read_metrics(directory)[0][-1]["step"]
                self.expect_refusal(result, 1, f"interrupted after step {done}", "--resume")
                self.assertEqual(last_checkpoint(directory).name, f"step-{done:06}")
                self.expect_nothing_left(job)
                self.expect_resumable(directory)

    def test_ctrl_c_while_the_job_starts_ends_it(self):
        directory = self.folder / "run"
        job = self.start_endless(directory, after=0)
        job.wait_for_log("coordinator address=")
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(FAULT_SECONDS), 1, "interrupted", "--resume")
        self.expect_nothing_left(job)
        self.train(directory, "--resume", *settings(run__steps=2))

    def test_a_second_ctrl_c_ends_the_job_at_once(self):
        directory = self.folder / "run"
        job = self.start_endless(directory)
        # The step in progress cannot end, so the first Ctrl-C alone would not end the job.
        os.kill(job.workers()["trainer/0"], signal.SIGSTOP)
        job.signal(signal.SIGINT)
        wait_until(lambda: not pending(job.pid, signal.SIGINT), 10, "delivery of the first Ctrl-C")
        job.signal(signal.SIGINT)
        self.assertEqual(job.wait(FAULT_SECONDS).code, -signal.SIGINT)
        self.expect_nothing_left(job)

    def test_a_second_supervisor_is_kept_out_of_the_run_directory(self):
        directory = self.folder / "run"
        job = self.start_endless(directory)
        second = self.start("train", "configs/ci/tiny-dense.yaml", "--resume",
                            *settings(run__directory=directory))
        self.expect_refusal(second.wait(FAULT_SECONDS), 1, directory, "another `nibble train`")
        self.assertTrue(job.running(), "the first one must not be disturbed")
        job.signal(signal.SIGINT)
        self.assertEqual(job.wait(FAULT_SECONDS).code, 1)
        self.expect_nothing_left(job)

    def test_a_used_run_directory_needs_resume(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=2))
        before = read_metrics(directory), rank_bytes(last_checkpoint(directory))
        config = (directory / "config.yaml").read_text()
        result = self.run_nibble("train", "configs/ci/tiny-dense.yaml",
                                 *settings(run__directory=directory, run__steps=3))
        self.expect_refusal(result, 2, directory, "--resume")
        self.assertEqual((read_metrics(directory), rank_bytes(last_checkpoint(directory))), before)
        self.assertEqual((directory / "config.yaml").read_text(), config)


def pending(pid, number):
    """Whether a signal waits for delivery to the process."""
    status = Path("/proc", str(pid), "status").read_text()
    masks = re.findall(r"^S(?:ig|hd)Pnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


if __name__ == "__main__":
    unittest.main()
