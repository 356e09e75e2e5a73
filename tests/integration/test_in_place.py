"""Engines with one weight buffer: they serve nothing while a version overwrites the one before."""

import json
import os
import re
import signal
import unittest

from nibble_job import JobTest, last_checkpoint, query, read_metrics, settings, state_sha256

LIMIT_MS = 4000
FEW_STEPS = settings(run__steps=12, eval__every=100, checkpoint__every=100,
                     weight_sync__timeout_ms=LIMIT_MS, weight_sync__retries=3)
IN_PLACE = settings(weight_sync__in_place="true")


class InPlace(JobTest):
    def run_faulty(self, failpoints, *arguments):
        directory = self.folder / "run"
        job = self.start_train(directory, *FEW_STEPS, *IN_PLACE, *arguments,
                               environment={"NIBBLE_FAILPOINTS": failpoints})
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        for failpoint in failpoints.split(";"):
            name, action = failpoint.split("@")[0], failpoint.split("=")[1]
            self.assertRegex(result.err, rf"failpoint: {re.escape(name)}: {action}",
                             "the fault did not happen")
        return directory, result

    def expect_state_of(self, directory, reference):
        rows = read_metrics(directory)[0]
        self.assertEqual([row["step"] for row in rows], list(range(1, 13)))
        self.assertTrue(all(row["logprob_abs_diff_max"] == 0 for row in rows))
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))

    def reference(self, *arguments):
        directory = self.folder / "reference"
        self.train(directory, *FEW_STEPS, *arguments)
        return directory

    def test_the_run_is_the_one_with_two_buffers_but_for_the_pause(self):
        reference = self.reference()
        for extra in ((), settings(weight_sync__delta="true", weight_sync__whole_every=5)):
            self.fresh_folder()
            directory = self.folder / "run"
            self.train(directory, *FEW_STEPS, *IN_PLACE, *extra)
            self.expect_state_of(directory, reference)
        paused = [row["pause_ms"] for row in read_metrics(directory)[0]]
        swapped = [row["pause_ms"] for row in read_metrics(reference)[0]]
        # The pause is the whole transfer; with a shadow it is the swap alone.
        self.assertGreater(min(paused), max(swapped))

    def test_an_engine_that_fails_while_poisoned_catches_up_and_the_other_goes_on(self):
        reference = self.reference()
        for state in ("received", "prepare"):
            with self.subTest(state=state):
                self.fresh_folder()
                directory, result = self.run_faulty(f"rollout/1.{state}@3=error")
                self.assertIn("goes on without rollout/1", result.err)
                self.assertIn("rollout/1 serves version", result.err)
                self.expect_state_of(directory, reference)
                self.assertEqual(read_metrics(directory)[0][-1]["serving_engines"], 2)

    def test_all_engines_poisoned_at_once_take_the_next_try(self):
        reference = self.reference()
        self.fresh_folder()
        directory, result = self.run_faulty("rollout/0.received@3=error;rollout/1.received@3=error")
        self.assertRegex(result.err, r"publication 3 failed, trying again")
        self.expect_state_of(directory, reference)
        decisions = dict(query(directory, "SELECT version, decision FROM versions ORDER BY rowid"))
        self.assertEqual((decisions[3], decisions[4]), ("aborted", "committed"))

    def test_an_engine_stopped_in_mid_transfer_is_seen_to_serve_nothing_until_it_has_caught_up(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *FEW_STEPS, *IN_PLACE,
                               *settings(run__steps=100000, cluster__lease_ms=120000),
                               environment={"NIBBLE_FAILPOINTS": "rollout/1.received@3=stop"})
        job.wait_for_log(r"goes on without rollout/1")
        self.assertRegex(job.log(), r"failpoint: rollout/1\.received: stop", "the fault did not happen")
        os.kill(job.workers()["rollout/1"], signal.SIGCONT)
        job.wait_for_log(r"rollout/1 serves version \d+ again", 60)
        status = json.loads(self.start("status", directory, "--json").wait(30).out)
        engines = {worker["id"]: worker["engine"] for worker in status["workers"] if worker["engine"]}
        self.assertTrue(engines["rollout/1"]["answers"])
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")
        rows = read_metrics(directory)[0]
        self.assertIn(1, [row["serving_engines"] for row in rows])
        self.assertEqual(rows[-1]["serving_engines"], 2)
        self.assertTrue(all(row["logprob_abs_diff_max"] == 0 for row in rows))

    def test_status_says_that_an_engine_serves_nothing_while_its_weights_are_replaced(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *FEW_STEPS, *IN_PLACE,
                               *settings(weight_sync__timeout_ms=60000),
                               environment={"NIBBLE_FAILPOINTS": "rollout/1.received@3=sleep:8000"})
        job.wait_for_log(r"failpoint: rollout/1\.received: sleep")
        status = json.loads(self.start("status", directory, "--json").wait(30).out)
        engine = next(worker["engine"] for worker in status["workers"] if worker["id"] == "rollout/1")
        self.assertEqual((engine["state"], engine["served_version"]), ("moving", 0))
        self.assertEqual(engine["transfer"]["version"], 3)
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])

    def test_colocated_engines_replace_in_place(self):
        layout = settings(cluster__placement="colocated", cluster__trainers=2)
        reference = self.reference(*layout)
        self.fresh_folder()
        directory = self.folder / "run"
        self.train(directory, *FEW_STEPS, *IN_PLACE, *layout)
        self.expect_state_of(directory, reference)


if __name__ == "__main__":
    unittest.main()
