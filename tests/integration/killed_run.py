"""A tiny job that is killed at random moments, and resumed each time, until it is done."""

import collections
import contextlib
import os
import signal
import subprocess

from nibble_job import (TINY_DENSE, Job, last_checkpoint, parents, query, read_metrics, settings,
                        state_sha256, wait_until)

VICTIMS = ("coordinator", "trainer", "rollout")
LONGEST_JOB_S = 120
MOST_STARTS = 12


def run_unbroken(folder, arguments):
    """Runs the job without faults; returns its state and how many seconds it took."""
    job = Job(folder / "logs", ["--log-level", "debug", "train", TINY_DENSE,
                                *settings(run__directory=folder / "run"), *arguments])
    result = job.wait()
    assert result.code == 0, result.err[-3000:]
    return state_sha256(last_checkpoint(folder / "run")), result.seconds


class KilledRun:
    def __init__(self, folder, rng, arguments, seconds):
        """`seconds`: how long the job takes; kills come within that time of a start."""
        self.folder = folder
        self.directory = folder / "run"
        self.rng = rng
        self.arguments = arguments
        self.seconds = seconds
        self.killed = collections.Counter()  # by victim
        self.torn = 0  # kills that left a checkpoint half written
        self.starts = 0

    def run(self, kills):
        """At most `kills` of them: a job may end before the moment that was drawn for it."""
        while not self.run_once(self.killed.total() < kills):
            assert self.starts < MOST_STARTS, f"it does not recover: {self.folder}"

    def run_once(self, kills):
        """Whether the job came to its end."""
        self.starts += 1
        job = Job(self.folder / "logs", ["--log-level", "debug", "train", TINY_DENSE, "--resume",
                                         *settings(run__directory=self.directory), *self.arguments])
        if kills:
            self.kill_sometime(job)
        try:
            code = job.process.wait(LONGEST_JOB_S)
        except subprocess.TimeoutExpired:
            job.kill()
            raise AssertionError(f"it does not end:\n{job.log()[-3000:]}") from None
        wait_until(lambda: not (job.seen & parents().keys()), 15, "the end of a job's processes")
        for pid in job.seen:  # what lost its parent is ours
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        assert code in (0, 1, -signal.SIGKILL), f"exit code {code}:\n{job.log()[-3000:]}"
        assert code == 0 or self.killed, f"it failed by itself:\n{job.log()[-3000:]}"
        self.torn += any(self.directory.glob("checkpoints/*.partial"))
        return code == 0

    def kill_sometime(self, job):
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(self.rng.uniform(0, self.seconds))
            return  # it ended before
        kind = self.rng.choice(VICTIMS)
        workers = job.workers()  # those that have joined; notes who belongs to the job
        pids = sorted(pid for name, pid in workers.items() if name.startswith(kind))
        kind, pid = (kind, self.rng.choice(pids)) if pids else ("coordinator", job.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed[kind] += 1

    def check(self, steps, want):
        """Every step once, versions that only rise, nothing half written, the state of a run without faults."""
        rows = read_metrics(self.directory)[0]
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), "steps are missing"
        assert all(row["logprob_abs_diff_max"] == 0 for row in rows), "mixed weights were served"
        versions = [row["published_version"] for row in rows]
        assert versions == sorted(set(versions)), f"versions {versions}"
        committed = {version for version, in query(
            self.directory, "SELECT version FROM versions WHERE decision = 'committed'")}
        assert set(versions) <= committed, "served, but not in the log as committed"
        left = [path.name for path in (self.directory / "checkpoints").iterdir()
                if path.name != last_checkpoint(self.directory).name and not (path / "meta.json").exists()]
        assert not left, f"left behind: {left}"
        assert state_sha256(last_checkpoint(self.directory)) == want, "another training state"
