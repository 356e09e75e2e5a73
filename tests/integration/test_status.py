"""`nibble status` of jobs that run, one of them with an engine that is stopped in a publication."""

import json
import os
import signal
import time
import unittest

from nibble_job import JobTest, settings, wait_until

LIMIT_MS = 4000
ENDLESS = settings(run__steps=100000, eval__every=100000, checkpoint__every=100000,
                   weight_sync__timeout_ms=LIMIT_MS, weight_sync__retries=3,
                   cluster__lease_ms=120000)


class LiveStatus(JobTest):
    def ask(self, directory, *arguments):
        """The answer, which comes within its deadlines whoever hangs."""
        began = time.monotonic()
        result = self.start("status", directory, *arguments).wait(30)
        self.assertEqual(result.code, 0, result.err)
        self.assertLess(time.monotonic() - began, 15)
        return result.out

    def status(self, directory):
        return json.loads(self.ask(directory, "--json"))

    def engines(self, directory):
        return {worker["id"]: worker["engine"] for worker in self.status(directory)["workers"]
                if worker["engine"] is not None}

    def stop(self, job):
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")
        self.expect_nothing_left(job)

    def test_a_live_job_names_its_workers_and_what_they_serve(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS)
        job.wait_for_log(r"step=3/")
        status = self.status(directory)
        self.assertEqual(status["state"], "running")
        self.assertGreaterEqual(status["step"]["finished"], 3)
        self.assertEqual(status["step"]["total"], 100000)
        workers = {worker["id"]: worker for worker in status["workers"]}
        self.assertEqual({name: worker["pid"] for name, worker in workers.items()}, job.workers())
        for name, worker in workers.items():
            self.assertEqual(worker["role"], name.split("/")[0])
            self.assertTrue(worker["up"], name)
            self.assertLess(worker["heartbeat_seconds"], 60)
            self.assertEqual(worker["engine"] is not None, worker["role"] == "rollout", name)
        for engine in (workers["rollout/0"]["engine"], workers["rollout/1"]["engine"]):
            self.assertTrue(engine["answers"])
            self.assertEqual((engine["standing"], engine["error"]), ("serving", None))
            self.assertGreaterEqual(engine["served_version"],
                                    status["versions"]["committed"]["version"] - 1)
        text = self.ask(directory)
        self.assertRegex(text, r"running, coordinator at 127\.0\.0\.1:\d+")
        self.assertRegex(text, r"rollout/1 +127\.0\.0\.1:\d+ +\d+ .* serving +\d+ +\d+ ")
        self.stop(job)
        over = self.status(directory)
        self.assertEqual((over["state"], over["workers"]), ("not_running", []))

    def test_an_engine_that_hangs_is_fenced_and_silent_while_the_other_serves(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, environment={
            "NIBBLE_FAILPOINTS": "rollout/1.prepare@3=stop"})
        # Stopped, and the publication still waits for it: the edge is in flight.
        job.wait_for_log(r"failpoint: rollout/1\.prepare: stop")
        hanging = self.engines(directory)["rollout/1"]
        self.assertFalse(hanging["answers"])
        self.assertEqual((hanging["transfer"]["version"], hanging["transfer"]["source"]),
                         (3, "trainers"))
        job.wait_for_log(r"goes on without rollout/1")
        engines = self.engines(directory)
        self.assertEqual(engines["rollout/1"]["standing"], "fenced")
        self.assertFalse(engines["rollout/1"]["answers"])
        self.assertRegex(engines["rollout/1"]["error"], "no answer within 2000 ms|failed to connect")
        self.assertIsNone(engines["rollout/1"]["served_version"])
        self.assertEqual(engines["rollout/0"]["standing"], "serving")
        self.assertTrue(engines["rollout/0"]["answers"])
        status = self.status(directory)
        self.assertEqual([(engine["engine"], engine["fenced"]) for engine in status["fencing"]],
                         [("rollout/1", True)])
        self.assertEqual((status["last_failure"]["kind"], status["last_failure"]["source"]),
                         ("engine_fenced", "rollout/1"))
        self.assertRegex(self.ask(directory), r"rollout/1 .* fenced +\? +\?  does not answer")
        os.kill(job.workers()["rollout/1"], signal.SIGCONT)
        job.wait_for_log(r"rollout/1 serves version \d+ again", 60)

        def back():
            engine = self.engines(directory)["rollout/1"]
            return engine if engine["answers"] and engine["standing"] == "serving" else None

        self.assertGreater(wait_until(back, 60, "rollout/1 serving")["served_version"], 3)
        fencing = self.status(directory)["fencing"]
        self.assertEqual([(engine["fenced"], engine["times_caught_up"]) for engine in fencing],
                         [(False, 1)])
        self.stop(job)

    def test_a_stopped_coordinator_is_said_not_to_answer(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS)
        job.wait_for_log(r"step=2/")
        os.kill(job.pid, signal.SIGSTOP)
        try:
            status = self.status(directory)
        finally:
            os.kill(job.pid, signal.SIGCONT)
        self.assertEqual(status["state"], "not_answering")
        self.assertGreaterEqual(status["step"]["finished"], 2)
        self.assertEqual(status["workers"], [])
        self.stop(job)


if __name__ == "__main__":
    unittest.main()
