"""Checkpoints are written beside the steps: the same bytes, one at a time, whole or not at all."""

import random
import re
import signal
import unittest

from killed_run import KilledRun, run_unbroken
from nibble_job import JobTest, last_checkpoint, settings
from supervised_job import make_inputs, read_losses

STEPS = 8
EVERY_TWO = settings(run__steps=STEPS, checkpoint__every=2, eval__every=100)
SLOW_MS = 3000


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


class Checkpoints(JobTest):
    def reference(self):
        directory = self.folder / "reference"
        self.train(directory, *EVERY_TWO)
        return directory

    def events(self, log, *patterns):
        """Positions in the log, all of which must be there."""
        found = [re.search(pattern, log) for pattern in patterns]
        for pattern, match in zip(patterns, found):
            self.assertIsNotNone(match, f"'{pattern}' is not in\n{log[-3000:]}")
        return [match.start() for match in found]

    def fails_and_resumes(self, failpoint, code, *parts):
        """With a fault in the second checkpoint: the first stays the newest, and the run goes on."""
        reference = self.reference()
        directory = self.folder / "run"
        job = self.start_train(directory, *EVERY_TWO, environment={"NIBBLE_FAILPOINTS": failpoint})
        result = job.wait()
        self.expect_nothing_left(job)
        self.assertEqual(result.code, code, result.err[-3000:])
        self.assertIn("failpoint", result.err)
        for part in parts:
            self.assertIn(part, result.errors()[-1])
        self.assertEqual(last_checkpoint(directory).name, "step-000002")
        self.train(directory, "--resume", *EVERY_TWO)
        self.assertEqual(names(directory), ["step-000006", "step-000008"])
        self.expect_same_run(directory, reference)

    def test_steps_go_on_while_a_checkpoint_is_written_and_the_next_one_waits(self):
        reference = self.reference()
        directory = self.folder / "run"
        result = self.train(directory, *EVERY_TWO, environment={
            "NIBBLE_FAILPOINTS": f"trainer/0.write_snapshot@1=sleep:{SLOW_MS}"})
        two, three, four, five = self.events(result.err, r"checkpoint step=2 ", r"step=3/", r"step=4/", r"step=5/")
        self.assertLess(three, two)
        self.assertLess(four, two)
        self.assertLess(two, five)
        blocked = {int(step): float(ms) for step, ms in
                   re.findall(r"checkpoint step=(\d+) .*blocked_ms=(\d+)", result.err)}
        self.assertEqual(sorted(blocked), [2, 4, 6, 8])
        self.assertLess(blocked[2], SLOW_MS / 2)
        self.assertGreater(blocked[4], SLOW_MS / 3)
        self.expect_same_run(directory, reference)

    def test_ctrl_c_waits_for_the_last_checkpoint(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *settings(run__steps=1000, checkpoint__every=1000, eval__every=1000),
                               environment={"NIBBLE_FAILPOINTS": "trainer/0.write_snapshot@1=sleep:1000"})
        job.wait_for_log(r"step=3/")
        job.signal(signal.SIGINT)
        result = job.wait()
        self.expect_refusal(result, 1, "interrupted after step", "--resume")
        step = int(re.search(r"interrupted after step (\d+)", result.err).group(1))
        self.assertEqual(names(directory), [f"step-{step:06}"])

    def test_a_rank_that_cannot_write_ends_the_run(self):
        self.fails_and_resumes("trainer/1.write_snapshot@2=error", 1, "WriteSnapshot", "trainer/1")

    def test_a_rank_that_cannot_publish_ends_the_run(self):
        self.fails_and_resumes("trainer/0.finish_snapshot@2=error", 1, "FinishSnapshot", "trainer/0")

    def test_a_coordinator_killed_before_meta_json_leaves_the_checkpoint_before(self):
        self.fails_and_resumes("coordinator.publish_checkpoint@2=kill", -signal.SIGKILL)

    def test_a_rank_killed_while_it_writes_leaves_the_checkpoint_before(self):
        self.fails_and_resumes("trainer/1.snapshot_written@2=kill", 1, "killed by signal 9")

    def test_a_supervised_run_writes_its_checkpoints_the_same_way(self):
        config = make_inputs(self.folder)
        result = self.run_nibble("train", config, environment={
            "NIBBLE_FAILPOINTS": f"trainer/0.write_snapshot@1=sleep:{SLOW_MS}"})
        self.assertEqual(result.code, 0, result.err)
        two, three, four = self.events(result.err, r"checkpoint step=2 ", r"step=3/", r"step=4/")
        self.assertLess(max(three, four), two)
        self.assertEqual(names(self.folder / "run"), ["step-000004", "step-000006"])
        self.assertEqual(len(read_losses(self.folder / "run")[0]), 6)


class RandomKills(JobTest):
    def test_a_run_that_is_killed_at_random_moments_comes_to_the_same_state(self):
        """A few of what tools/random_kills.py --moments any does."""
        steps = 12
        arguments = settings(run__steps=steps, eval__data='""', checkpoint__every=1)
        want, seconds = run_unbroken(self.folder, arguments)
        for seed in (3, 5, 8):
            self.fresh_folder()
            run = KilledRun(self.folder, random.Random(seed), arguments, seconds)
            run.run(kills=2)
            run.check(steps, want)


if __name__ == "__main__":
    unittest.main()
