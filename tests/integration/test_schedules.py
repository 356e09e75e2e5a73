"""Samples of older weights: jobs whose engines draw while the trainers train (rollout.schedule), that
do not wait for every sample (oversample, partial_rollout), or that pass groups over (dynamic_filter)."""

import shutil
import signal
import unittest

from nibble_job import (JobTest, last_checkpoint, query, rank_bytes, read_metrics, settings,
                        state_sha256)

STEPS = 8
CORRECTED = dict(algorithm__correction="tis", run__steps=STEPS, eval__every=100)
ONE_STEP_OFF = dict(CORRECTED, rollout__schedule="one_step_off")
# Long answers on a narrow engine: weights change in the middle of samples.
LONG = dict(rollout__max_new_tokens=48, rollout__max_running=4, optimizer__global_batch=16,
            reward__type="last_number")
ASYNC = dict(CORRECTED, **LONG, rollout__schedule="async")
PARTIAL = dict(CORRECTED, **LONG, rollout__oversample=6, rollout__partial_rollout="true")


class Schedules(JobTest):
    def rows(self, directory):
        return read_metrics(directory)[0]

    def prompts_by_step(self, directory):
        """Which prompts each step trained on, with all samples of each."""
        taken = {}
        for step, prompt, count in query(
                directory, "SELECT step, prompt_id, count(*) FROM samples GROUP BY step, prompt_id"):
            self.assertEqual(count, 4, f"prompt {prompt} of step {step} is not whole")
            taken.setdefault(step, []).append(int(prompt))
        self.assertEqual(sorted(taken), list(range(1, STEPS + 1)))
        for step, prompts in taken.items():
            self.assertEqual(len(prompts), 4, f"step {step}")
        every = sum(taken.values(), [])
        self.assertEqual(len(every), len(set(every)), "a prompt was trained on twice")
        return {step: sorted(prompts) for step, prompts in sorted(taken.items())}

    def test_one_step_off_draws_with_the_weights_before_and_repeats_to_the_bit(self):
        first = self.folder / "first"
        self.train(first, *settings(**ONE_STEP_OFF, checkpoint__every=4))
        rows = self.rows(first)
        fresh = [1]  # there is no step before it
        for row in rows:
            is_fresh = row["step"] in fresh
            self.assertEqual(row["staleness_max"], 0 if is_fresh else 1, row)
            self.assertEqual(row["logprob_abs_diff_max"] == 0, is_fresh, row)
            self.assertEqual(row["stale_groups"], 0)
        versions = query(first, "SELECT step, min(weight_version), max(weight_version) FROM samples "
                                "GROUP BY step ORDER BY step")
        for step, oldest, newest in versions:
            self.assertEqual(oldest, newest, "a group of two versions")
            self.assertEqual(rows[step - 1]["weight_version"] - oldest, 0 if step in fresh else 1)
        taken = self.prompts_by_step(first)
        self.assertEqual(sum(taken.values(), []), list(range(4 * STEPS)), "in the stream's order")
        three = self.folder / "three"
        self.train(three, *settings(**ONE_STEP_OFF, checkpoint__every=4, cluster__rollout_workers=3))
        self.expect_same_run(three, first)

    def stop(self, directory, values, step, number):
        """Ends a job without end some time after a step; returns the step that it saved last."""
        job = self.start_train(directory, *settings(**{**values, "run__steps": 1_000_000}))
        job.wait_for_log(rf" step={step}/")
        job.signal(number)
        job.wait()
        self.expect_nothing_left(job)
        return int(last_checkpoint(directory).name.removeprefix("step-"))

    def test_one_step_off_resumes_to_the_same_bytes_with_the_samples_of_the_checkpoint(self):
        values = dict(ONE_STEP_OFF, checkpoint__every=2, rollout__dynamic_filter="nonzero_std")
        for number in (signal.SIGKILL, signal.SIGINT):
            self.fresh_folder()
            directory = self.folder / "stopped"
            saved = self.stop(directory, values, 3, number)
            groups = directory / "checkpoints" / f"groups-{saved:06}.bin"
            self.assertGreater(groups.stat().st_size, 0)
            steps = saved + 3
            resumed = settings(**{**values, "run__steps": steps})
            broken = self.folder / "broken"
            shutil.copytree(directory, broken)
            self.train(directory, "--resume", *resumed)
            reference = self.folder / "reference"
            self.train(reference, *resumed)
            self.assertEqual(state_sha256(last_checkpoint(directory)),
                             state_sha256(last_checkpoint(reference)))
            for found, wanted in zip(self.rows(directory), self.rows(reference), strict=True):
                for key in ("loss", "reward_mean", "staleness_max", "filtered_groups"):
                    self.assertEqual(found[key], wanted[key], f"{key} of step {found['step']}")
            kept = sorted(path.name for path in (directory / "checkpoints").glob("groups-*"))
            steps_kept = [path.name[-6:] for path in (directory / "checkpoints").glob("step-*")]
            self.assertTrue(all(name[7:13] in steps_kept for name in kept), (kept, steps_kept))
        # Samples that are damaged are drawn again, and not silently.
        damaged = broken / "checkpoints" / groups.name
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        result = self.train(broken, "--resume", *resumed)
        self.assertRegex(result.err, r"4 groups are drawn again: .*groups-0+\d+.bin.* is not what")
        self.assertNotEqual(state_sha256(last_checkpoint(broken)),
                            state_sha256(last_checkpoint(reference)))

    def test_groups_without_an_advantage_are_replaced_and_the_run_repeats(self):
        filtered = settings(run__steps=STEPS, eval__every=100, checkpoint__every=3,
                            rollout__dynamic_filter="nonzero_std")
        first = self.folder / "first"
        self.train(first, *filtered)
        rows = self.rows(first)
        self.assertGreater(sum(row["filtered_groups"] for row in rows), 0, "nothing was filtered")
        for row in rows:
            self.assertEqual(row["zero_std_groups"], 0, row)
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual((row["dropped_groups"], row["carried_groups"]), (0, 0), row)
            self.assertGreater(row["grad_norm"], 0)
        begun = max(max(prompts) for prompts in self.prompts_by_step(first).values()) + 1
        self.assertEqual(begun, 4 * STEPS + sum(row["filtered_groups"] for row in rows),
                         "prompts that were begun, and neither taken nor filtered out")
        # The place in the stream is in the checkpoint.
        directory = self.folder / "stopped"
        job = self.start_train(directory, *filtered)
        job.wait_for_log(r" step=4/")
        job.signal(signal.SIGKILL)
        job.wait()
        self.expect_nothing_left(job)
        self.train(directory, "--resume", *filtered)
        self.assertEqual(state_sha256(last_checkpoint(directory)), state_sha256(last_checkpoint(first)))
        self.assertEqual(rank_bytes(last_checkpoint(directory)), rank_bytes(last_checkpoint(first)))
        self.assertEqual(self.prompts_by_step(directory), self.prompts_by_step(first))

    def check_older_samples(self, directory, most):
        rows = self.rows(directory)
        for row in rows:
            self.assertLessEqual(row["staleness_max"], most, row)
            self.assertEqual(row["staleness_max"] > 0, row["logprob_abs_diff_max"] > 0, row)
            self.assertGreaterEqual(row["stale_groups"], 0)
            for key in ("loss", "grad_norm", "correction_mean"):
                self.assertTrue(abs(row[key]) < 1e6, row)
        self.assertGreater(max(row["staleness_max"] for row in rows), 0, "all samples were new")
        self.assertGreater(max(row["carried_groups"] for row in rows), 0, "nothing went on")
        self.prompts_by_step(directory)
        return rows

    def test_async_samples_grow_across_versions_within_the_staleness(self):
        for policy in ("keep", "recompute"):
            self.fresh_folder()
            directory = self.folder / policy
            self.train(directory, *settings(**ASYNC, rollout__max_staleness=2,
                                            rollout__kv_policy=policy))
            self.check_older_samples(directory, 2)

    def test_async_resumes_without_losing_a_prompt(self):
        directory = self.folder / "run"
        # The step in progress is finished and saved.
        steps = self.stop(directory, dict(ASYNC, checkpoint__every=2), 4, signal.SIGINT) + 4
        self.train(directory, "--resume", *settings(**{**ASYNC, "run__steps": steps}))
        rows = self.rows(directory)
        self.assertEqual([row["step"] for row in rows], list(range(1, steps + 1)))
        trained = [int(prompt) for (prompt,) in
                   query(directory, "SELECT DISTINCT prompt_id FROM samples")]
        stale = sum(row["stale_groups"] for row in rows)
        missing = set(range(max(trained) + 1)) - set(trained)
        # What is not trained on yet was dropped for its age, or is under way at the end.
        self.assertLessEqual(len(missing), stale + rows[-1]["carried_groups"])

    def test_partial_rollouts_go_on_in_the_next_step(self):
        directory = self.folder / "run"
        self.train(directory, *settings(**PARTIAL))
        rows = self.check_older_samples(directory, 1)
        self.assertEqual(sum(row["dropped_groups"] for row in rows), 0)

    def test_oversampling_ends_what_a_step_does_not_wait_for(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=STEPS, eval__every=100, **LONG,
                                        rollout__oversample=6))
        rows = self.rows(directory)
        self.prompts_by_step(directory)
        for row in rows:
            self.assertEqual(row["dropped_groups"], 2, row)
            self.assertEqual((row["staleness_max"], row["logprob_abs_diff_max"]), (0, 0), row)

    def test_groups_of_an_engine_that_is_left_behind_begin_anew_on_another(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *settings(**ASYNC, rollout__max_staleness=32, eval__data='""',
                                                    weight_sync__timeout_ms=8000),
                               environment={"NIBBLE_FAILPOINTS": "rollout/1.collect@2=sleep:2000;"
                                                                 "rollout/1.prepare@2=error"})
        result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.assertRegex(result.err, r"failpoint: rollout/1.collect: sleep")
        self.assertRegex(result.err, r"failpoint: rollout/1.prepare: error")
        self.assertRegex(result.err, r"\d+ groups begin anew: their engine was left behind")
        self.check_older_samples(directory, 32)

    def test_an_engine_that_hangs_costs_its_groups_and_not_the_job(self):
        for values in (ONE_STEP_OFF, ASYNC):
            with self.subTest(schedule=values["rollout__schedule"]):
                self.fresh_folder()
                directory = self.folder / "run"
                job = self.start_train(
                    directory, *settings(**values, weight_sync__timeout_ms=3000, weight_sync__retries=3,
                                         cluster__lease_ms=120000, checkpoint__every=2),
                    environment={"NIBBLE_FAILPOINTS": "rollout/1.prepare@3=stop"})
                result = job.wait()
                self.assertEqual(result.code, 0, result.err[-3000:])
                self.assertRegex(result.err, r"goes on without rollout/1")
                self.assertRegex(result.err, r"\d+ whole groups are drawn again: their engine does not answer")
                self.prompts_by_step(directory)

    def test_what_one_step_off_does_not_wait_for_is_counted(self):
        directory = self.folder / "run"
        self.train(directory, *settings(**ONE_STEP_OFF, rollout__oversample=6))
        rows = self.rows(directory)
        self.prompts_by_step(directory)
        self.assertEqual([row["dropped_groups"] for row in rows], [2] * STEPS)

    def test_schedules_that_make_no_sense_are_refused(self):
        for keys, parts in (
                (dict(rollout__schedule="one_step_off"), ("rollout.schedule", "algorithm.correction")),
                (dict(ONE_STEP_OFF, rollout__max_staleness=0), ("rollout.max_staleness",)),
                (dict(rollout__max_staleness=1), ("rollout.max_staleness", "partial_rollout")),
                (dict(rollout__oversample=3), ("rollout.oversample", "prompts_per_step")),
                (dict(CORRECTED, rollout__partial_rollout="true"), ("oversample",)),
                (dict(PARTIAL, rollout__oversample=9), ("rollout.oversample", "max_staleness")),
                (dict(ASYNC, rollout__oversample=13), ("rollout.oversample", "max_staleness")),
                (dict(ASYNC, rollout__partial_rollout="true"), ("partial_rollout", "schedule")),
                (dict(ASYNC, rollout__kv_policy="abort"), ("rollout.kv_policy",)),
                (dict(ASYNC, cluster__placement="colocated"), ("schedule", "placement")),
                (dict(rollout__dynamic_filter="nonzero_std", rollout__samples_per_prompt=1,
                      optimizer__global_batch=4, algorithm__advantage="reinforce_pp",
                      algorithm__kl_loss_coef=0), ("dynamic_filter", "samples_per_prompt"))):
            with self.subTest(keys=keys):
                result = self.start_train(self.folder / "refused", *settings(**keys)).wait()
                self.assertNotEqual(result.code, 0)
                for part in parts:
                    self.assertIn(part, result.errors()[-1])


if __name__ == "__main__":
    unittest.main()
