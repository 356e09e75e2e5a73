"""Runs the real `nibble` binary for the integration tests and watches over its processes.

The tests run from the repository root with the binary in NIBBLE_BIN (ctest sets both). This
process is a child subreaper: whatever a job leaves behind becomes our descendant, so that one look
at /proc finds it, whichever session or environment it has.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("NIBBLE_BIN", ROOT / "build/cpu/bin/nibble")).resolve()
TINY_DENSE = "configs/ci/tiny-dense.yaml"
TINY_MOE = "configs/ci/tiny-moe.yaml"
JOB_SECONDS = 120.0  # a tiny job takes about two on an idle machine
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")


def wait_until(condition, seconds, what):
    """Polls, because /proc and a growing log file cannot be waited on."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.003)


def parents():
    """Parent of each live process (zombies are dead)."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            found[int(entry)] = int(parent)
    return found


def descendants(root):
    tree = parents()
    found = set()
    grows = True
    while grows:
        new = {pid for pid, up in tree.items() if (up == root or up in found)} - found
        found |= new
        grows = bool(new)
    return found


def command_of(pid):
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def settings(**values):
    """--set arguments; two underscores stand for the dot of a key."""
    words = []
    for key, value in values.items():
        words += ["--set", f"{key.replace('__', '.')}={value}"]
    return words


class Result:
    def __init__(self, code, out, err, seconds):
        self.code = code
        self.out = out
        self.err = err
        self.seconds = seconds

    def errors(self):
        """Lines that are messages to the user, not log events."""
        return [line for line in self.err.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]


class Job:
    """One running `nibble` process with its output in files."""

    def __init__(self, folder, arguments, environment=None, wrapper=()):
        folder.mkdir(parents=True, exist_ok=True)
        self._number = len(list(folder.glob("err.*")))
        self.out_path = folder / f"out.{self._number}"
        self.err_path = folder / f"err.{self._number}"
        self._started = time.monotonic()
        variables = {key: value for key, value in os.environ.items()
                     if not key.startswith(("OPEN_TRAINING_", "NIBBLE_"))}
        variables.update(environment or {})
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [*wrapper, str(BINARY), *map(str, arguments)], cwd=ROOT, env=variables,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        self.seen = set()  # descendants noticed while it ran

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.err_path.read_text(errors="replace")

    def running(self):
        return self.process.poll() is None

    def wait_for_log(self, pattern, seconds=JOB_SECONDS):
        """Returns the match; fails if the job ends without it."""
        regex = re.compile(pattern)

        def found():
            ended = not self.running()
            match = regex.search(self.log())
            if match is None and ended:
                raise AssertionError(f"the job ended without '{pattern}':\n{self.log()[-3000:]}")
            return match

        return wait_until(found, seconds, f"'{pattern}' in the log")

    def workers(self):
        """pid of each worker by id, as the coordinator's debug log and the process tree say."""
        joined = {name: int(pid) for name, pid in
                  re.findall(r"joined worker=(\S+) pid=(\d+)", self.log())}
        children = {pid for pid, up in parents().items() if up == self.pid}
        self.seen |= descendants(self.pid)
        return {name: pid for name, pid in joined.items() if pid in children}

    def services(self):
        """Port of each worker's service by id."""
        return {name: int(port) for name, port in
                re.findall(r"joined worker=(\S+) pid=\d+ address=\S+:(\d+)", self.log())}

    def signal(self, number):
        self.seen |= descendants(self.pid)
        self.process.send_signal(number)

    def wait(self, seconds=JOB_SECONDS):
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            tree = "\n".join(f"{pid} {command_of(pid)}" for pid in descendants(self.pid))
            raise AssertionError(
                f"the job did not end within {seconds:g} s; alive:\n{tree}\n{self.log()[-3000:]}"
            ) from None
        return Result(code, self.out_path.read_text(errors="replace"), self.log(),
                      time.monotonic() - self._started)

    def kill(self):
        if self.running():
            self.process.kill()
            self.process.wait()


TIMES = ("_ms", "_per_s")
VARYING = ("weight_version", "published_version", "eval_weight_version", "sync_bytes",
           "serving_engines")


def reproducible(rows):
    """The figures that do not depend on the clock, on how often the job was started, or on how
    many workers are sent the weights."""
    return [{key: value for key, value in row.items()
             if not key.endswith(TIMES) and key not in VARYING} for row in rows]


class JobTest(unittest.TestCase):
    """A temporary folder per test; every test ends with a look for processes left behind."""

    @classmethod
    def setUpClass(cls):
        become_subreaper()
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY} does not exist; set NIBBLE_BIN")

    def setUp(self):
        self._jobs = []
        self._folders = []
        self.addCleanup(self._clean_up)
        self.fresh_folder()

    def fresh_folder(self):
        """For the next case of a test that has several."""
        self.folder = Path(tempfile.mkdtemp(prefix="nibble-integration-"))
        self._folders.append(self.folder)

    def _clean_up(self):
        for job in self._jobs:
            job.kill()
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, *arguments, environment=None, wrapper=()):
        job = Job(self.folder / "logs", arguments, environment, wrapper)
        self._jobs.append(job)
        return job

    def run_nibble(self, *arguments, environment=None, wrapper=(), seconds=JOB_SECONDS):
        result = self.start(*arguments, environment=environment, wrapper=wrapper).wait(seconds)
        self.expect_nothing_left()
        return result

    def start_train(self, directory, *arguments, config=TINY_DENSE, environment=None):
        return self.start("--log-level", "debug", "train", config,
                          *settings(run__directory=directory), *arguments, environment=environment)

    def expect_same_run(self, directory, reference):
        """The same bytes of training state, and the same figures but for the clock's."""
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))
        self.assertEqual(rank_bytes(last_checkpoint(directory)),
                         rank_bytes(last_checkpoint(reference)))
        for found, wanted in zip(read_metrics(directory), read_metrics(reference)):
            self.assertEqual(reproducible(found), reproducible(wanted))

    def train(self, directory, *arguments, config=TINY_DENSE, environment=None):
        """Runs a job that must end well."""
        result = self.start_train(directory, *arguments, config=config,
                                  environment=environment).wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.expect_nothing_left()
        return result

    def expect_whole_run(self, directory, steps):
        """Every step once, no gap between trainer and engines, versions that only rise."""
        rows = read_metrics(directory)[0]
        self.assertEqual([row["step"] for row in rows], list(range(1, steps + 1)))
        self.assertTrue(all(row["logprob_abs_diff_max"] == 0 for row in rows))
        versions = [row["published_version"] for row in rows]
        self.assertEqual(versions, sorted(set(versions)))
        committed = {version for version, in query(
            directory, "SELECT version FROM versions WHERE decision = 'committed'")}
        self.assertLessEqual(set(versions), committed, "served, but not in the log as committed")

    def expect_nothing_left(self, job=None):
        def gone():
            left = descendants(os.getpid())
            if job is not None:
                left |= job.seen & parents().keys()
            return not left

        try:
            wait_until(gone, 5, "the end of all processes")
        except AssertionError:
            left = {pid: command_of(pid) for pid in descendants(os.getpid())}
            self.fail(f"processes left behind: {left}")

    def expect_refusal(self, result, code, *parts):
        """One sentence on stderr that holds every part, and the exit code."""
        self.assertEqual(result.code, code, result.err[-3000:])
        lines = result.errors()
        self.assertEqual(len(lines), 1, f"want one line on stderr, got:\n{result.err[-3000:]}")
        self.assertTrue(lines[0].startswith("nibble: "), lines[0])
        for part in parts:
            self.assertIn(str(part), lines[0])


def read_metrics(directory):
    """Rows of training steps and of evaluations."""
    text = (Path(directory) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return ([row for row in rows if "reward_mean" in row],
            [row for row in rows if "eval_reward_mean" in row])


def reached_step(directory):
    """Of the newest finished checkpoint, 0 if there is none."""
    return max((int(path.name.removeprefix("step-"))
                for path in (directory / "checkpoints").glob("step-*[0-9]")), default=0)


def last_checkpoint(directory):
    found = sorted((path for path in (Path(directory) / "checkpoints").glob("step-*[0-9]")
                    if (path / "meta.json").exists()),
                   key=lambda path: int(path.name.removeprefix("step-")))
    if not found:
        raise AssertionError(f"{directory} has no checkpoint")
    return found[-1]


def state_sha256(checkpoint):
    """Of masters and optimizer, as `nibble inspect` says."""
    inspected = subprocess.run([str(BINARY), "inspect", str(checkpoint), "--json"], cwd=ROOT,
                               capture_output=True, text=True, check=True)
    return json.loads(inspected.stdout)["state_sha256"]


def rank_bytes(checkpoint):
    return {file.name: file.read_bytes()
            for file in sorted(Path(checkpoint).glob("rank-*.safetensors"))}


def query(directory, sql):
    database = sqlite3.connect(f"file:{Path(directory) / 'run.db'}?mode=ro", uri=True)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()
