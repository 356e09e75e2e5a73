#!/usr/bin/env python3
"""Jobs whose processes are killed or stopped at random moments, again and again.

--moments publications: every trial runs the tiny dense job with one or two faults at named failpoints (core/base/failpoint.h)
of a random worker or of the coordinator, and resumes it if it ended. A trial fails if no fault happened, if
a process ended by another signal than the one that was sent, or if what is left is not right: the state
must be that of a run without faults, every version that an engine said to serve must be in the log as
committed, and no sample may have been made by other weights than the trainer's: their log-probabilities
agree to the bit, so one that does not is counted as a mixed version.
--moments any: every trial kills the coordinator, a trainer rank or an engine up to three times at a moment drawn from the
job's whole time, start and end included, while checkpoints are written beside every step or every second one, and resumes it
until it is done: nothing half written may be left, and again the state must be that of a run without faults.
One JSON line at the end; exit code 1 at the first trial that fails, whose seed it prints.

  tools/random_kills.py --binary build/cpu/bin/nibble [--moments any] [--trials 1000] [--seed 1] [--jobs 1]
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
ANY_STEPS = 20
ENGINE_STATES = ("reserve", "receive", "received", "prepare", "prepared", "commit", "committed")
SENDER_STATES = ("send", "sent")
COORDINATOR_STATES = ("decide", "decided")
LONGEST_TRIAL_S = 120


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--moments", choices=("publications", "any"), default="publications")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side")
    return parser.parse_args()


def draw_fault(rng):
    kind = rng.choice(("engine", "engine", "sender", "coordinator"))
    if kind == "engine":
        place = f"rollout/{rng.randrange(2)}.{rng.choice(ENGINE_STATES)}"
    elif kind == "sender":
        place = f"trainer/{rng.randrange(2)}.{rng.choice(SENDER_STATES)}"
    else:
        place = f"coordinator.{rng.choice(COORDINATOR_STATES)}"
    # A sender passes its failpoints once for each engine. The first publication comes before the first step.
    return place, rng.randint(1, STEPS * (2 if kind == "sender" else 1)), rng.choice(("kill", "stop"))


class Trial:
    def __init__(self, number, seed):
        self.rng = random.Random(f"{seed}/{number}")
        self.name = f"trial {number} of seed {seed}"
        self.folder = Path(tempfile.mkdtemp(prefix="nibble-kills-"))
        self.directory = self.folder / "run"
        self.extra = self.rng.choice(([], settings(weight_sync__in_place="true"),
                                      settings(weight_sync__delta="true", weight_sync__whole_every=4)))
        self.happened = collections.Counter()
        self.restarts = 0
        self.served = set()  # versions that engines said to serve
        self.mixed_versions = 0

    def start(self, faults, resume):
        spec = ";".join(f"{place}@{nth}={action}" for place, nth, action in faults)
        return Job(self.folder / "logs",
                   ["--log-level", "debug", "train", TINY_DENSE, *settings(run__directory=self.directory),
                    *(["--resume"] if resume else []), *COMMON, *self.extra],
                   {"NIBBLE_FAILPOINTS": spec} if faults else {})

    def wait(self, job):
        """Wakes stopped processes after a random time."""
        end = time.monotonic() + LONGEST_TRIAL_S
        stopped_since = {}
        patience = self.rng.choice((0.05, 0.5, 3.0, 8.0))
        while job.running():
            if time.monotonic() > end:
                raise AssertionError(f"it does not end:\n{job.log()[-3000:]}")
            for pid in {job.pid, *job.workers().values()}:
                try:
                    state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if state != "T":
                    stopped_since.pop(pid, None)
                elif time.monotonic() - stopped_since.setdefault(pid, time.monotonic()) > patience:
                    os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        return job.process.returncode

    @staticmethod
    def reap(pids):
        """What lost its parent is ours: without this a thousand trials leave thousands of zombies."""
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def run(self, want):
        faults = [draw_fault(self.rng) for _ in range(self.rng.randint(1, 2))]
        for attempt in range(6):
            job = self.start(faults if attempt < 2 else [], resume=attempt > 0 and self.has_run())
            code = self.wait(job)
            log = job.log()
            for place, action in re.findall(r"failpoint: (\S+): (kill|stop)", log):
                self.happened[f"{place.split('/')[0].split('.')[0]} {action}"] += 1
            self.served |= {int(version) for version in re.findall(r"rollout/\d+: serves version=(\d+)", log)}
            signals = set(re.findall(r"killed by signal (\d+)", log))
            assert signals <= {str(int(signal.SIGKILL))}, f"a process died of {signals}:\n{log[-3000:]}"
            self.reap(job.seen)
            if code == 0:
                break
            assert code in (1, -signal.SIGKILL), f"exit code {code}:\n{log[-3000:]}"
            wait_until(lambda: not (job.seen & parents().keys()), 15, "the end of a job's processes")
            self.reap(job.seen)
            self.restarts += 1
        else:
            raise AssertionError(f"it does not recover:\n{job.log()[-3000:]}")
        assert self.happened, f"none of {faults} happened"
        self.check(want)

    def has_run(self):
        return (self.directory / "run.db").exists()

    def check(self, want):
        rows = read_metrics(self.directory)[0]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "steps are missing"
        self.mixed_versions = sum(row["logprob_abs_diff_max"] != 0 for row in rows)
        assert self.mixed_versions == 0, "mixed weights were served"
        versions = [row["published_version"] for row in rows]
        assert versions == sorted(set(versions)), f"versions {versions}"
        committed = {version for version, in query(
            self.directory, "SELECT version FROM versions WHERE decision = 'committed'")}
        assert self.served and self.served | set(versions) <= committed, \
            f"served, but not in the log as committed: {self.served - committed}"
        assert state_sha256(last_checkpoint(self.directory)) == want, "another training state"


def run_trial(number, seed, want):
    trial = Trial(number, seed)
    try:
        trial.run(want)
    except Exception as error:
        print(f"{trial.name} in {trial.folder}: {error}", file=sys.stderr)
        raise
    shutil.rmtree(trial.folder, ignore_errors=True)
    return trial


def run_killed(number, seed, references):
    """A trial of --moments any."""
    from killed_run import KilledRun
    rng = random.Random(f"{seed}/{number}")
    every = rng.choice(sorted(references))
    want, seconds = references[every]
    for attempt in range(5):
        folder = Path(tempfile.mkdtemp(prefix="nibble-kills-"))
        run = KilledRun(folder, rng, any_settings(every), seconds * 0.7**attempt)
        try:
            run.run(kills=rng.randint(1, 3))
            run.check(ANY_STEPS, want)
        except Exception as error:
            print(f"trial {number} of seed {seed} in {folder}: {error}", file=sys.stderr)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        if run.killed:
            return run
    raise AssertionError(f"trial {number} of seed {seed}: the job always ended before it was to be killed")


def any_settings(every):
    return settings(run__steps=ANY_STEPS, eval__data='""', checkpoint__every=every, cluster__lease_ms=30000)


def kill_at_any_moment(flags):
    from killed_run import run_unbroken
    began = time.monotonic()
    references = {}
    for every in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            references[every] = run_unbroken(Path(folder), any_settings(every))
    killed, starts, torn, done = collections.Counter(), 0, 0, 0
    with ThreadPoolExecutor(flags.jobs) as pool:
        for run in pool.map(lambda n: run_killed(n, flags.seed, references), range(flags.trials)):
            killed += run.killed
            starts += run.starts
            torn += run.torn
            done += 1
            if done % 10 == 0:
                print(f"{done} trials, {killed.total()} kills, {torn} in the middle of a checkpoint, "
                      f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps({"bench": "random_kills", "moments": "any", "trials": done, "seed": flags.seed,
                      "steps": ANY_STEPS, "kills": killed.total(), "by_victim": dict(sorted(killed.items())),
                      "checkpoints_torn": torn, "resumed_jobs": starts - done,
                      "same_state_sha256": done, "s": round(time.monotonic() - began)}))


def main():
    flags = arguments()
    os.environ["NIBBLE_BIN"] = str(Path(flags.binary).resolve())
    sys.path.insert(0, str(ROOT / "tests/integration"))
    global Job, settings, read_metrics, query, state_sha256, last_checkpoint, parents, wait_until, TINY_DENSE, COMMON
    from nibble_job import (TINY_DENSE, Job, become_subreaper, last_checkpoint, parents, query, read_metrics,
                            settings, state_sha256, wait_until)
    become_subreaper()
    if flags.moments == "any":
        kill_at_any_moment(flags)
        return
    COMMON = settings(run__steps=STEPS, eval__data='""', checkpoint__every=1, weight_sync__timeout_ms=4000,
                      weight_sync__retries=5, cluster__lease_ms=30000)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder, "run")
        job = Job(Path(folder, "logs"), ["train", TINY_DENSE, *settings(run__directory=reference), *COMMON])
        assert job.wait().code == 0, job.log()[-3000:]
        want = state_sha256(last_checkpoint(reference))
    happened, restarts, mixed, done = collections.Counter(), 0, 0, 0
    with ThreadPoolExecutor(flags.jobs) as pool:
        for trial in pool.map(lambda n: run_trial(n, flags.seed, want), range(flags.trials)):
            happened += trial.happened
            restarts += trial.restarts
            mixed += trial.mixed_versions
            done += 1
            if done % 50 == 0:
                print(f"{done} trials, {sum(happened.values())} faults, {time.monotonic() - began:.0f} s",
                      file=sys.stderr, flush=True)
    print(json.dumps({"bench": "random_kills", "trials": done, "seed": flags.seed,
                      "faults": sum(happened.values()), "by_kind": dict(sorted(happened.items())),
                      "resumed_jobs": restarts, "mixed_versions": mixed, "s": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
