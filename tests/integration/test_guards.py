"""Limits on what a job learns from (key `guards`): what is said, what is left out, and where it goes back to."""

import unittest

from nibble_job import JobTest, query, read_metrics, settings

STEPS = 6
# The gap of samples that are one step old passes this at once; that of new ones is 0.
OLD_SAMPLES = dict(run__steps=STEPS, rollout__schedule="one_step_off", algorithm__correction="tis",
                   guards__max_gap=1e-6, eval__every=100)


class Guards(JobTest):
    def events(self, directory):
        return [message for (message,) in
                query(directory, "SELECT message FROM events WHERE kind = 'guard' ORDER BY time_ms")]

    def test_a_warning_changes_nothing(self):
        plain, warned = self.folder / "plain", self.folder / "warned"
        self.train(plain, *settings(**{**OLD_SAMPLES, "guards__max_gap": 0}))
        result = self.train(warned, *settings(**OLD_SAMPLES, guards__gap_action="warn"))
        self.expect_same_run(warned, plain)
        self.assertEqual(len(self.events(warned)), STEPS - 1)
        self.assertEqual(self.events(plain), [])
        self.assertRegex(result.err, r"guard step 2: warn: gap is [0-9.e-]+, above 1e-06; look at prompt \d+ sample \d ")

    def test_skipped_updates_leave_the_weights(self):
        directory = self.folder / "run"
        self.train(directory, *settings(**OLD_SAMPLES, guards__gap_action="skip"))
        rows = read_metrics(directory)[0]
        # The first step's samples are new. What follows is refused: the first weights are one step behind.
        self.assertEqual([row["skipped_updates"] for row in rows][:2], [0, 1])
        once = self.folder / "once"
        self.train(once, *settings(**{**OLD_SAMPLES, "run__steps": 1}))
        # A step after a refused one samples and trains with the same weights: it is not refused.
        self.assertEqual([row["skipped_updates"] for row in rows], [0, 1, 0, 1, 0, 1])
        for row in rows:
            self.assertEqual("codes_changed_share" in row, row["skipped_updates"] == 0, row)

    def test_stop_names_the_samples_and_keeps_the_last_checkpoint(self):
        directory = self.folder / "run"
        result = self.start_train(directory, *settings(run__steps=STEPS, guards__max_kl=1e-3)).wait()
        self.assertNotEqual(result.code, 0)
        self.assertRegex(result.errors()[-1], r"guard step 1: stop: kl is [0-9.]+, above 0.001; "
                                              r"look at prompt \d+ sample \d+ .*the update was not made")
        self.assertEqual(list((directory / "checkpoints").iterdir()), [])
        self.expect_nothing_left()

    def test_a_run_rolls_back_and_goes_on_with_further_prompts(self):
        directory = self.folder / "run"
        # Steps 1 and 2 are saved; step 3's KL is above the limit for good, so that the job ends at last.
        kl = [row["kl_reference"] for row in self.reference_rows()]
        limit = (max(kl[:2]) + max(kl[2:])) / 2
        self.assertLess(max(kl[:2]), limit)
        result = self.start_train(directory, *settings(
            run__steps=STEPS, checkpoint__every=2, guards__max_kl=limit, guards__kl_action="roll_back",
            guards__max_rollbacks=2)).wait()
        self.assertIn("rolled back to step", result.err)
        rows = read_metrics(directory)[0]
        steps = [row["step"] for row in rows]
        self.assertEqual(steps, list(range(1, len(steps) + 1)), "rows of steps that were taken back")
        for row in rows:
            self.assertLessEqual(row["kl_reference"], limit)
        prompts = [int(p) for (p,) in query(directory, "SELECT DISTINCT prompt_id FROM samples "
                                                       "WHERE step > 2")]
        if prompts:
            self.assertGreaterEqual(min(prompts), 12, "the prompts that were rolled back came again")
        rolled_back = result.err.count("rolled back to step")
        self.assertLessEqual(rolled_back, 2)
        if result.code != 0:
            self.assertEqual(rolled_back, 2)
            self.assertIn("guards.max_rollbacks = 2", result.errors()[-1])

    def reference_rows(self):
        reference = self.folder / "reference"
        self.train(reference, *settings(run__steps=STEPS, checkpoint__every=2))
        return read_metrics(reference)[0]

    def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(self):
        result = self.start_train(self.folder / "run", *settings(
            run__steps=2, guards__max_kl=1e-3, guards__kl_action="roll_back")).wait()
        self.assertNotEqual(result.code, 0)
        self.assertIn("there is no checkpoint to roll back to", result.errors()[-1])

    def test_guards_that_make_no_sense_are_refused(self):
        for values, part in ((dict(guards__nonfinite="warn"), "guards.nonfinite"),
                             (dict(guards__max_kl=1, algorithm__reference="never",
                                   algorithm__kl_loss_coef=0), "guards.max_kl"),
                             (dict(guards__max_gap=-1), "guards.max_gap")):
            result = self.start_train(self.folder / "refused", *settings(**values)).wait()
            self.assertNotEqual(result.code, 0)
            self.assertIn(part, result.errors()[-1])


if __name__ == "__main__":
    unittest.main()
