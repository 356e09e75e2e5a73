"""A publication goes on without a worker that fails or is late; the worker catches up from another.

Faults come from named failpoints (core/base/failpoint.h); each test looks for the line that says the
fault happened.
"""

import os
import re
import signal
import unittest

from nibble_job import JobTest, last_checkpoint, query, read_metrics, settings, state_sha256

LIMIT_MS = 4000
FEW_STEPS = settings(run__steps=12, eval__every=100, checkpoint__every=100,
                     weight_sync__timeout_ms=LIMIT_MS, weight_sync__retries=3)
# Everything that an engine is told in a publication, and what its senders are.
ENGINE_STATES = ("join", "reserve", "receive", "received", "prepare", "prepared", "commit", "committed")
SENDER_STATES = ("join", "send", "sent")


class Fencing(JobTest):
    def start_faulty(self, failpoints, *arguments):
        directory = self.folder / "run"
        return directory, self.start_train(directory, *arguments,
                                           environment={"NIBBLE_FAILPOINTS": failpoints})

    def expect_happened(self, log, failpoint, action):
        self.assertRegex(log, rf"failpoint: {re.escape(failpoint)}: {action}", "the fault did not happen")

    def test_an_error_in_any_state_of_an_engine_costs_the_others_nothing(self):
        reference = self.folder / "reference"
        self.train(reference, *FEW_STEPS)
        for state in ENGINE_STATES:
            with self.subTest(state=state):
                self.fresh_folder()
                # An engine joins once; everything else it is told in every publication.
                when = 1 if state == "join" else 3
                directory, job = self.start_faulty(f"rollout/1.{state}@{when}=error", *FEW_STEPS)
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.expect_happened(result.err, f"rollout/1.{state}", "error")
                if state in ("commit", "committed"):  # decided: it is told again
                    self.assertNotIn("goes on without", result.err)
                else:
                    self.assertIn("goes on without rollout/1", result.err)
                    self.assertIn("rollout/1 serves version", result.err)
                self.expect_whole_run(directory, 12)
                rows = read_metrics(directory)[0]
                self.assertEqual(rows[-1]["serving_engines"], 2, "it did not come back")
                # Which engine makes a sample does not change it.
                for row, wanted in zip(rows, read_metrics(reference)[0]):
                    for key in ("reward_mean", "loss", "grad_norm"):
                        self.assertEqual(row[key], wanted[key], f"step {row['step']}: {key}")

    def test_a_lost_answer_to_a_commit_does_not_end_a_run_of_one_engine(self):
        for state in ("commit", "committed"):
            with self.subTest(state=state):
                self.fresh_folder()
                directory, job = self.start_faulty(f"rollout/0.{state}@3=error", *FEW_STEPS,
                                                   *settings(cluster__rollout_workers=1))
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.expect_happened(result.err, f"rollout/0.{state}", "error")
                self.expect_whole_run(directory, 12)

    def test_several_engines_that_were_left_behind_pull_one_after_another(self):
        directory, job = self.start_faulty(
            ";".join(f"rollout/{engine}.prepare@3=error" for engine in (1, 2)), *FEW_STEPS,
            *settings(cluster__rollout_workers=4))
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        for engine in (1, 2):
            self.expect_happened(result.err, f"rollout/{engine}.prepare", "error")
            self.assertRegex(result.err, rf"rollout/{engine} serves version \d+ again")
        self.assertNotIn("did not catch up", result.err)
        self.expect_whole_run(directory, 12)
        self.assertEqual(read_metrics(directory)[0][-1]["serving_engines"], 4)

    def test_an_error_of_a_sender_towards_one_engine_fences_that_engine_alone(self):
        for state in SENDER_STATES:
            with self.subTest(state=state):
                self.fresh_folder()
                when = 1 if state == "join" else 5
                directory, job = self.start_faulty(f"trainer/1.{state}@{when}=error", *FEW_STEPS)
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.expect_happened(result.err, f"trainer/1.{state}", "error")
                self.assertRegex(result.err, r"goes on without rollout/[01]")
                self.expect_whole_run(directory, 12)
                self.assertEqual(read_metrics(directory)[0][-1]["serving_engines"], 2)

    def test_deltas_end_in_the_same_state_also_when_an_engine_has_lost_its_base(self):
        slow = settings(optimizer__lr=0.000003)
        reference = self.folder / "reference"
        self.train(reference, *FEW_STEPS, *slow)
        directory = self.folder / "run"
        job = self.start_train(directory, *FEW_STEPS, *slow,
                               *settings(weight_sync__delta="true", weight_sync__whole_every=5),
                               environment={"NIBBLE_FAILPOINTS": "rollout/1.prepare@3=error"})
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.expect_happened(result.err, "rollout/1.prepare", "error")
        self.expect_whole_run(directory, 12)
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))
        whole = {row["published_version"]: row["sync_bytes"] for row in read_metrics(reference)[0]}
        sent = {row["published_version"]: row["sync_bytes"] for row in read_metrics(directory)[0]}
        for version, size in sent.items():
            if version % 5 == 0:
                self.assertEqual(size, whole[version], "every fifth version is whole")
            elif version > 6:
                self.assertLess(size, 0.03 * whole[version])

    def test_a_stopped_engine_is_not_waited_for_past_the_deadline_and_catches_up_from_its_peer(self):
        for state in ("reserve", "receive", "prepare", "commit"):
            with self.subTest(state=state):
                self.fresh_folder()
                directory, job = self.start_faulty(
                    f"rollout/1.{state}@3=stop", *FEW_STEPS,
                    *settings(run__steps=100000, cluster__lease_ms=120000))
                job.wait_for_log(r"goes on without rollout/1")
                self.expect_happened(job.log(), f"rollout/1.{state}", "stop")
                step = int(job.wait_for_log(r"step=(\d+)/").group(1))
                job.wait_for_log(rf"step={step + 20}/", 60)  # the other goes on
                os.kill(job.workers()["rollout/1"], signal.SIGCONT)
                job.wait_for_log(r"rollout/1 serves version \d+ again", 60)
                done = len(re.findall(r"step=\d+/", job.log()))
                job.wait_for_log(rf"step={done + 10}/", 60)
                job.signal(signal.SIGINT)
                result = job.wait()
                self.expect_refusal(result, 1, "interrupted after step", "--resume")
                rows = read_metrics(directory)[0]
                self.expect_whole_run(directory, len(rows))
                served = [row["serving_engines"] for row in rows]
                self.assertIn(1, served)
                self.assertEqual(served[-1], 2)
                slowest = max(row["sync_ms"] for row in rows)
                self.assertGreater(slowest, 0.9 * LIMIT_MS if state != "commit" else 0)
                self.assertLess(slowest, 2 * LIMIT_MS + 2000, "held past the deadlines")
                kinds = [kind for kind, in query(directory, "SELECT kind FROM events ORDER BY rowid")]
                self.assertLess(kinds.index("engine_fenced"), kinds.index("engine_caught_up"))

    def test_a_pull_that_stands_still_does_not_hold_up_the_engine_that_it_pulls_from(self):
        # The fourth time that it receives is the pull; steps are long beside the way to there.
        directory, job = self.start_faulty(
            "rollout/1.prepare@3=error;rollout/1.receive@4=stop", *FEW_STEPS,
            *settings(run__steps=100000, cluster__lease_ms=120000, weight_sync__timeout_ms=60000,
                      rollout__prompts_per_step=32, rollout__max_new_tokens=48,
                      optimizer__global_batch=128))
        job.wait_for_log(r"rollout/1 pulls version 3 from rollout/0")
        self.expect_happened(job.log(), "rollout/1.prepare", "error")
        job.wait_for_log(r"rollout/0: serves version=8 ", 50)  # two shadows later, and some
        self.expect_happened(job.log(), "rollout/1.receive", "stop")
        self.assertRegex(job.log(), r"rollout/1 did not catch up: SendWeights on rollout/0 .*aborted")
        os.kill(job.workers()["rollout/1"], signal.SIGCONT)
        job.wait_for_log(r"rollout/1 serves version \d+ again", 60)
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")
        rows = read_metrics(directory)[0]
        self.expect_whole_run(directory, len(rows))

    def test_an_engine_whose_bytes_stand_still_is_left_long_before_the_deadline_of_all(self):
        directory, job = self.start_faulty(
            "rollout/1.receive@3=stop", *FEW_STEPS,
            *settings(run__steps=100000, cluster__lease_ms=1200000, weight_sync__timeout_ms=1200000))
        job.wait_for_log(r"goes on without rollout/1", 120)
        self.expect_happened(job.log(), "rollout/1.receive", "stop")
        os.kill(job.workers()["rollout/1"], signal.SIGCONT)
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")

    def test_a_coordinator_killed_around_its_decision_leaves_a_log_that_decides(self):
        for place, decided in (("decide", False), ("decided", True)):
            with self.subTest(place=place):
                self.fresh_folder()
                directory, job = self.start_faulty(
                    f"coordinator.{place}@4=kill", *FEW_STEPS, *settings(checkpoint__every=2))
                result = job.wait()
                self.assertNotEqual(result.code, 0)
                self.expect_happened(result.err, f"coordinator.{place}", "kill")
                log = query(directory, "SELECT decision FROM versions WHERE version = 4 ORDER BY rowid")
                self.assertEqual([word for word, in log], ["prepared", "committed"][:1 + decided])
                self.train(directory, "--resume", *FEW_STEPS)
                self.expect_whole_run(directory, 12)
                log = query(directory, "SELECT decision FROM versions WHERE version = 4 ORDER BY rowid")
                self.assertEqual([word for word, in log],
                                 ["prepared", "committed" if decided else "aborted"])
                self.assertGreater(min(row["published_version"] for row in
                                       read_metrics(directory)[0] if row["step"] > 3), 4)


if __name__ == "__main__":
    unittest.main()
