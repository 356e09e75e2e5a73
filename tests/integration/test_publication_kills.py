"""SIGKILL and SIGSTOP of every party of a publication at each of its named failpoints."""

import os
import re
import signal
import unittest

from nibble_job import JobTest, last_checkpoint, settings, state_sha256

STEPS = 6
FEW_STEPS = settings(run__steps=STEPS, eval__every=100, checkpoint__every=2,
                     weight_sync__timeout_ms=4000, weight_sync__retries=5)
ENGINE_STATES = ("reserve", "receive", "received", "prepare", "prepared", "commit", "committed")
SENDER_STATES = ("send", "sent")
FAULT_SECONDS = 40


class PublicationKills(JobTest):
    def setUp(self):
        super().setUp()
        self.reference = self.folder / "reference"
        self.train(self.reference, *FEW_STEPS)

    def start_faulty(self, failpoint, *arguments):
        self.fresh_folder()
        directory = self.folder / "run"
        return directory, self.start_train(directory, *FEW_STEPS, *arguments,
                                           environment={"NIBBLE_FAILPOINTS": failpoint})

    def expect_happened(self, log, failpoint):
        name, action = re.match(r"(.*)@\d+=(\w+)", failpoint).groups()
        self.assertRegex(log, rf"failpoint: {re.escape(name)}: {action}", "the fault did not happen")

    def expect_run_of_reference(self, directory):
        self.expect_whole_run(directory, STEPS)
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(self.reference)))

    def kill_and_resume(self, worker, states, *arguments):
        for state in states:
            with self.subTest(state=state):
                # The fifth call of a sender is the first of the third version: two engines.
                failpoint = f"{worker}.{state}@{5 if worker.startswith('trainer') else 3}=kill"
                directory, job = self.start_faulty(failpoint, *arguments)
                result = job.wait(FAULT_SECONDS)
                self.expect_refusal(result, 1, worker, "killed by signal 9", "--resume")
                self.expect_happened(result.err, failpoint)
                self.expect_nothing_left(job)
                self.train(directory, "--resume", *FEW_STEPS, *arguments)
                self.expect_run_of_reference(directory)

    def test_a_killed_engine_leaves_a_run_that_resumes(self):
        self.kill_and_resume("rollout/1", ENGINE_STATES)

    def test_an_engine_killed_while_poisoned_leaves_a_run_that_resumes(self):
        self.kill_and_resume("rollout/1", ("received", "prepared"),
                             *settings(weight_sync__in_place="true"))

    def test_a_killed_sender_leaves_a_run_that_resumes(self):
        self.kill_and_resume("trainer/1", SENDER_STATES)

    def test_a_stopped_sender_costs_tries_but_not_the_run(self):
        for state in SENDER_STATES:
            with self.subTest(state=state):
                failpoint = f"trainer/1.{state}@5=stop"
                directory, job = self.start_faulty(failpoint, *settings(cluster__lease_ms=120000))
                job.wait_for_log(r"publication 3 failed, trying again", FAULT_SECONDS)
                os.kill(job.workers()["trainer/1"], signal.SIGCONT)
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.expect_happened(result.err, failpoint)
                self.expect_run_of_reference(directory)

    def test_a_coordinator_stopped_around_its_decision_goes_on_where_it_was(self):
        for place in ("decide", "decided"):
            with self.subTest(place=place):
                failpoint = f"coordinator.{place}@4=stop"
                directory, job = self.start_faulty(failpoint)
                job.wait_for_log(rf"failpoint: coordinator\.{place}: stop", FAULT_SECONDS)
                os.kill(job.pid, signal.SIGCONT)
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.expect_run_of_reference(directory)


if __name__ == "__main__":
    unittest.main()
