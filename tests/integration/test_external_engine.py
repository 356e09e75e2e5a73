"""Somebody else's engine follows a job: python/nibble_client.py against real jobs, with faults.

Run by a Python that has python/requirements.txt. What the client received is compared, bit for bit,
with what `nibble export` makes of the checkpoint of the same version.
"""

import json
import os
import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
from nibble_job import (BINARY, ROOT, TINY_DENSE, TINY_MOE, query, read_metrics, settings,
                        wait_until)
from proto_stubs import ProtocolTest

HERE = Path(__file__).resolve().parent
NO_EVAL = settings(eval__data='""')
ENDLESS = settings(run__steps=100000, checkpoint__every=100000) + NO_EVAL
EVERY_STEP_KEPT = settings(run__steps=100000, checkpoint__every=1, checkpoint__keep=1000) + NO_EVAL
PERMITTED = settings(cluster__external_engines=1)
# Every engine's first reading waits before this part, so that a fault surely meets one under way.
WAITS = ";".join(f"rollout/{engine}.read_part@6=sleep:3000" for engine in (0, 1))
ARRIVED = 4  # the part that the engine has before it is stopped or killed


def read_safetensors(directory):
    """{name: (type, shape, bytes)}"""
    data = Path(directory, "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"],
                   data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items()}


def dequantized(words, scale, shape, _config):
    """BF16 bits of code * scale; codes lie in words lowest first, 8 above what they mean."""
    rows, columns = np.frombuffer(shape, "<i8")
    packed = np.frombuffer(words, "<u4").reshape(rows, -1, 1)
    code = ((packed >> np.arange(0, 32, 4, dtype=np.uint32)) & 15).astype(np.float32) - 8
    scale_f32 = (np.frombuffer(scale, "<u2").astype(np.uint32) << 16).view(np.float32)
    weight = code.reshape(rows, columns) * np.repeat(scale_f32.reshape(rows, -1),
                                                     columns * rows // len(scale_f32), axis=1)
    bits = weight.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()  # to nearest even


class FollowingEngine:
    """The process of an external engine, its output in a file."""

    def __init__(self, folder, address, *arguments, name="engine-x"):
        folder.mkdir(parents=True, exist_ok=True)
        self.versions_path = folder / "versions"
        self._log_path = folder / "follow.log"
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
            [str(ROOT / "python"), ExternalEngine.generated.name]))
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-B", str(HERE / "following_engine.py"), address, name,
                 str(self.versions_path), *map(str, arguments)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def log(self):
        return self._log_path.read_text()

    def wait_for_log(self, pattern, seconds=60):
        def found():
            match = re.search(pattern, self.log())
            if match is None and self.process.poll() is not None:
                raise AssertionError(f"the engine ended without '{pattern}':\n{self.log()}")
            return match

        return wait_until(found, seconds, f"'{pattern}' of the external engine")

    def served(self):
        return [int(version) for version in re.findall(r"^serves (\d+)$", self.log(), re.MULTILINE)]

    def wait_for_versions(self, count):
        wait_until(lambda: len(self.served()) >= count or self.process.poll() is not None, 60,
                   f"{count} versions:\n{self.log()}")
        if len(self.served()) < count:
            raise AssertionError(f"fewer than {count} versions:\n{self.log()}")

    def is_stopped(self):
        return Path("/proc", str(self.process.pid), "stat").read_text().rpartition(")")[2].split()[
            0] == "T"

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


class ExternalEngine(ProtocolTest):
    def follow(self, job, *arguments, name="engine-x"):
        address = job.wait_for_log(r"coordinator address=(\S+)").group(1)
        engine = FollowingEngine(self.folder / name, address, *arguments, name=name)
        self.addCleanup(engine.end)
        return engine

    def status(self, directory, *arguments):
        result = self.start("status", directory, *arguments).wait(30)
        self.assertEqual(result.code, 0, result.err)
        return result.out

    def export(self, checkpoint, to):
        out = self.folder / "exported" / f"{checkpoint.name}-{to}"
        subprocess.run([str(BINARY), "export", "--to", to, "--input-dir", str(checkpoint),
                        "--side-files", "tests/oracles/models/dense_untied/bf16",
                        "--output-dir", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return out

    def expect_equal_to_checkpoints(self, engine, directory, at_least):
        """The received versions are those of the checkpoints; at least some that have one."""
        checkpoints = {json.loads((path / "meta.json").read_text())["weight_version"]: path
                       for path in (directory / "checkpoints").glob("step-*[0-9]")}
        versions = [version for version in engine.served() if version in checkpoints]
        self.assertGreaterEqual(len(versions), at_least, engine.log())
        for version in (versions[0], versions[len(versions) // 2], versions[-1]):
            received = read_safetensors(engine.versions_path / f"version-{version}")
            int4 = self.export(checkpoints[version], "int4")
            self.assertEqual(received, read_safetensors(int4), f"version {version}")
            config = json.loads((int4 / "config.json").read_text())
            self.assertEqual(config, json.loads(
                (engine.versions_path / f"version-{version}/config.json").read_text()))
            plain = read_safetensors(self.export(checkpoints[version], "bf16"))
            modules = [name.removesuffix("_packed") for name in received
                       if name.endswith(".weight_packed")]
            self.assertGreater(len(modules), 0)
            for module in modules:
                parts = [received[f"{module}_{part}"][2] for part in ("packed", "scale", "shape")]
                self.assertEqual(dequantized(*parts, config), plain[module][2],
                                 f"{module} of {version}")

    def expect_undisturbed(self, directory):
        """No worker was ever left behind, and no publication tried again."""
        rows = read_metrics(directory)[0]
        self.assertEqual([row["step"] for row in rows], list(range(1, len(rows) + 1)))
        self.assertEqual({row["serving_engines"] for row in rows}, {2})
        self.assertEqual(query(directory, "SELECT message FROM events WHERE kind IN "
                                          "('engine_fenced', 'publication_failed')"), [])

    def stop(self, job):
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")

    def test_a_late_engine_receives_versions_and_the_run_ends_in_the_same_state(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *EVERY_STEP_KEPT, *PERMITTED)
        job.wait_for_log(r"step=3/")
        engine = self.follow(job)
        engine.wait_for_versions(4)
        self.assertGreater(engine.served()[0], 3, "it was not late")
        self.stop(job)
        self.assertIn("external engine 'engine-x' serves version", job.log())
        engine.end()
        self.expect_undisturbed(directory)
        self.expect_equal_to_checkpoints(engine, directory, 3)
        reference = self.folder / "reference"
        steps = len(read_metrics(directory)[0])
        self.train(reference, *settings(run__steps=steps, checkpoint__every=steps), *NO_EVAL)
        self.expect_same_run(directory, reference)

    def test_versions_arrive_from_deltas_and_from_workers_that_are_trainers_too(self):
        colocated = ("cluster__placement", "colocated")
        for config, case in (
                (TINY_DENSE, {"weight_sync__delta": "true", "optimizer__lr": 0.000003}),
                (TINY_DENSE, {"rollout__draft_model": "tests/oracles/models/dense_untied/int4_sym7",
                              "rollout__max_draft_tokens": 2}),
                (TINY_MOE, dict([colocated], cluster__rollout_workers=2)),
                (TINY_DENSE, dict([colocated], cluster__trainers=1, cluster__rollout_workers=1))):
            with self.subTest(config=config, case=case):
                self.fresh_folder()
                directory = self.folder / "run"
                job = self.start_train(directory, *EVERY_STEP_KEPT, *PERMITTED,
                                       *settings(**case), config=config)
                engine = self.follow(job)
                engine.wait_for_versions(4)
                self.stop(job)
                engine.end()
                self.expect_equal_to_checkpoints(engine, directory, 3)

    def test_a_job_that_does_not_permit_it_refuses_and_goes_on(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS)
        engine = self.follow(job)
        self.assertEqual(engine.process.wait(60), 1)
        self.assertIn("FAILED_PRECONDITION", engine.log())
        self.assertIn("cluster.external_engines is 0", engine.log())
        job.wait_for_log(r"step=1/")
        step = int(re.findall(r"step=(\d+)/", job.log())[-1])
        job.wait_for_log(rf"step={step + 5}/")
        self.stop(job)

    def test_one_more_than_permitted_is_refused_and_the_other_keeps_its_place(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, *PERMITTED)
        first = self.follow(job)
        first.wait_for_versions(1)
        second = self.follow(job, name="engine-y")
        self.assertEqual(second.process.wait(60), 1)
        self.assertIn("cluster.external_engines is 1", second.log())
        first.wait_for_versions(len(first.served()) + 1)
        first.end()
        self.stop(job)

    def test_a_damaged_version_is_not_served_and_the_next_one_is(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, *PERMITTED)
        engine = self.follow(job, "--flip-pulls", 3, 4)  # from both engines
        engine.wait_for_versions(4)
        lines = engine.log().splitlines()
        third = [line.startswith("serves") for line in lines].index(True) + 2
        self.assertRegex(lines[third], r"^flipped a byte of version (\d+)$")
        damaged = lines[third].split()[-1]
        self.assertRegex(lines[third + 1], rf"^still serves {engine.served()[1]}: version {damaged}: "
                                           r"\S+ is not what was sent$")
        self.assertIn("flipped a byte of version", lines[third + 2], "the other engine was not asked")
        self.assertRegex(lines[third + 3], rf"^still serves {engine.served()[1]}: version ")
        job.wait_for_log(r"external engine 'engine-x': version \d+: \S+ is not what was sent")
        engine.end()
        self.stop(job)
        self.expect_undisturbed(directory)

    def test_status_names_it_with_its_version_and_forgets_it_after_its_lease(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, *PERMITTED, *settings(cluster__lease_ms=2000))
        job.wait_for_log(r"step=1/")
        self.assertEqual(json.loads(self.status(directory, "--json"))["external_engines"], [])
        engine = self.follow(job)
        engine.wait_for_versions(2)
        shown, = json.loads(self.status(directory, "--json"))["external_engines"]
        self.assertEqual((shown["name"], shown["pid"], shown["last_failure"]),
                         ("engine-x", engine.process.pid, ""))
        self.assertIn(shown["served_version"], engine.served())
        text = self.status(directory)
        self.assertRegex(text, rf"engine-x +\S+ +{engine.process.pid} +\d\.\d s ago +\d+ ")
        engine.end()
        wait_until(lambda: not json.loads(self.status(directory, "--json"))["external_engines"], 30,
                   "that it is forgotten")
        self.assertIn("external engine 'engine-x' has been silent", job.log())
        self.stop(job)
        self.expect_undisturbed(directory)

    def fault_in_a_pull(self, number):
        """A job goes on while its external engine gets the signal in the middle of its first pull."""
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, *PERMITTED, *settings(cluster__lease_ms=2000),
                               environment={"NIBBLE_FAILPOINTS": WAITS})
        engine = self.follow(job, "--announce-part", ARRIVED)
        engine.wait_for_log(rf"has part {ARRIVED} of version")
        engine.process.send_signal(number)
        job.wait_for_log(r"failpoint: rollout/[01]\.read_part: sleep")
        self.assertEqual(engine.served(), [], "the pull was over before the fault")
        self.assertNotIn("was read by", job.log())
        job.wait_for_log(r"step=1/")
        step = int(re.findall(r"step=(\d+)/", job.log())[-1])
        job.wait_for_log(rf"step={step + 20}/")
        # The version that it read has given way to the ones after it, which needed its buffer.
        job.wait_for_log(r"reading by \S+ ended: (version \d+ gave way|who read)", 30)
        wait_until(lambda: not json.loads(self.status(directory, "--json"))["external_engines"], 30,
                   "that it is forgotten")
        return directory, job, engine

    def test_an_engine_that_is_killed_in_a_pull_disturbs_nothing(self):
        directory, job, engine = self.fault_in_a_pull(signal.SIGKILL)
        self.assertEqual(engine.process.wait(10), -signal.SIGKILL)
        again = self.follow(job, name="engine-y")
        again.wait_for_versions(2)
        again.end()
        self.stop(job)
        self.expect_undisturbed(directory)

    def test_an_engine_that_is_stopped_in_a_pull_disturbs_nothing_and_follows_on(self):
        directory, job, engine = self.fault_in_a_pull(signal.SIGSTOP)
        self.assertTrue(engine.is_stopped())
        engine.process.send_signal(signal.SIGCONT)
        engine.wait_for_versions(2)
        engine.end()
        self.stop(job)
        self.expect_undisturbed(directory)


if __name__ == "__main__":
    unittest.main()
