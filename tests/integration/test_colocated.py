"""cluster.placement: colocated: one process is trainer rank and rollout engine, training is the same
as in separate processes, and the job fails, stops and resumes in the same way."""

import os
import re
import signal
import unittest

from nibble_job import (ROOT, TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, parents, query,
                        read_metrics, settings, state_sha256, wait_until)

FAULT_SECONDS = 30
COLOCATED = settings(cluster__placement="colocated")


def layout(ranks):
    return settings(cluster__trainers=ranks, cluster__rollout_workers=ranks)


class SameTraining(JobTest):
    def compare(self, ranks, *arguments, config=TINY_DENSE, gap=False):
        self.fresh_folder()
        separate, colocated = self.folder / "separate", self.folder / "colocated"
        apart = self.train(separate, *layout(ranks), *arguments, config=config)
        together = self.train(colocated, *layout(ranks), *COLOCATED, *arguments, config=config)
        joined = re.compile(r"joined worker=(\S+) ")
        self.assertEqual(sorted(joined.findall(together.err)),
                         [f"worker/{rank}" for rank in range(ranks)])
        self.assertEqual(len(joined.findall(apart.err)), 2 * ranks)
        self.expect_same_run(colocated, separate)
        rows, wanted = read_metrics(colocated)[0], read_metrics(separate)[0]
        for row, other in zip(rows, wanted):
            # Of every row, one engine in `ranks` is where it was packed; nothing else is sent.
            self.assertEqual(row["sync_bytes"] * ranks, other["sync_bytes"] * (ranks - 1))
            self.assertGreater(row["sync_ms"], 0)
            self.assertGreater(row["sync_wire_ms"], 0)
            self.assertGreaterEqual(row["pause_ms"], 0)
            self.assertEqual(row["logprob_abs_diff_max"] > 0, gap, row)
        decided = query(colocated, "SELECT version, decision FROM versions ORDER BY version")
        self.assertEqual(decided, query(separate, "SELECT version, decision FROM versions "
                                                  "ORDER BY version"))

    def test_a_dense_model_with_one_and_two_ranks(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                self.compare(ranks)

    def test_a_moe_model_with_one_and_two_ranks(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                self.compare(ranks, config=TINY_MOE)

    def test_ranks_that_share_experts_or_heads(self):
        for key in ("parallel__expert", "parallel__tensor"):
            with self.subTest(key):
                self.compare(2, *settings(**{key: 2}), config=TINY_MOE)

    def test_several_optimizer_steps_for_a_publication(self):
        self.compare(1, *settings(optimizer__steps_per_rollout=2, optimizer__global_batch=8,
                                  run__steps=4))

    def test_weights_that_are_served_in_another_format_than_trained(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                self.compare(ranks, *settings(qat__enabled="false", run__steps=3), gap=True)

    def test_bf16_weights(self):
        self.compare(1, *settings(qat__enabled="false", rollout__quantize="false", run__steps=3))


class Faults(JobTest):
    MANY_STEPS = settings(run__steps=50)  # it must not end before it is killed
    ENDLESS = settings(run__steps=100000, eval__every=100000)

    def test_a_killed_worker_ends_the_job_and_it_resumes_to_the_same_state(self):
        for ranks, name in ((1, "worker/0"), (2, "worker/1")):
            with self.subTest(ranks=ranks):
                self.fresh_folder()
                reference, directory = self.folder / "reference", self.folder / "run"
                self.train(reference, *self.MANY_STEPS, *layout(ranks), *COLOCATED)
                job = self.start_train(directory, *self.MANY_STEPS, *layout(ranks), *COLOCATED)
                job.wait_for_log("step=2/")
                victim = wait_until(lambda: job.workers().get(name), 30, f"{name} to join")
                others = set(job.workers().values()) - {victim}
                self.assertEqual(len(others), ranks - 1)
                os.kill(victim, signal.SIGKILL)
                result = job.wait(FAULT_SECONDS)
                self.expect_refusal(result, 1, name, str(victim), "killed by signal 9",
                                    "--resume")
                self.assertFalse(others & parents().keys(), "workers outlived the job")
                self.expect_nothing_left(job)
                self.train(directory, *self.MANY_STEPS, *layout(ranks), *COLOCATED, "--resume")
                self.expect_same_run(directory, reference)

    def test_a_stopped_worker_is_lost_when_its_lease_runs_out(self):
        job = self.start_train(self.folder / "run", *self.ENDLESS, *layout(2), *COLOCATED,
                               *settings(cluster__lease_ms=2000))
        job.wait_for_log("step=2/")
        os.kill(job.workers()["worker/1"], signal.SIGSTOP)
        self.expect_refusal(job.wait(FAULT_SECONDS), 1, "worker/1", "silent", "--resume")
        self.expect_nothing_left(job)

    def test_ctrl_c_finishes_the_step_and_the_run_may_go_on_in_separate_processes(self):
        directory = self.folder / "run"
        job = self.start_train(directory, *self.ENDLESS, *layout(1), *COLOCATED,
                               *settings(checkpoint__every=100000))
        job.wait_for_log("step=2/")
        job.signal(signal.SIGINT)
        result = job.wait(FAULT_SECONDS)
        done = read_metrics(directory)[0][-1]["step"]
        self.expect_refusal(result, 1, f"interrupted after step {done}", "--resume")
        self.expect_nothing_left(job)
        end = settings(run__steps=done + 2)
        self.train(directory, *layout(1), *end, "--resume")
        reference = self.folder / "reference"
        self.train(reference, *layout(1), *end)
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))


class Workers(JobTest):
    def test_workers_that_a_cluster_starts_get_both_roles(self):
        directory = self.folder / "run"
        coordinator = self.start("--log-level", "debug", "coordinator", TINY_DENSE, *COLOCATED,
                                 *layout(2), *settings(run__directory=directory, run__steps=2,
                                                       cluster__lease_ms=2000))
        address = coordinator.wait_for_log(r"coordinator address=(\S+) ")[1]
        workers = [self.start("worker", "--join", address) for _ in range(2)]
        self.assertEqual(coordinator.wait().code, 0, coordinator.log()[-3000:])
        for worker in workers:
            self.assertEqual(worker.wait(FAULT_SECONDS).code, 0, worker.log()[-3000:])
        self.expect_nothing_left()
        self.assertEqual([row["step"] for row in read_metrics(directory)[0]], [1, 2])
        late = self.run_nibble("worker", "--join", address)
        self.expect_refusal(late, 1, address)


class Config(JobTest):
    def effective(self, *arguments):
        result = self.run_nibble("config", *arguments)
        self.assertEqual(result.code, 0, result.err)
        return result.out

    def config_without(self, text):
        """A copy of the tiny job; its cluster line says `text`."""
        content = (ROOT / TINY_DENSE).read_text()
        changed = re.sub(r"^cluster: .*$", f"cluster: {{ {text} }}", content, flags=re.MULTILINE)
        self.assertNotEqual(changed, content)
        path = self.folder / "job.yaml"
        path.write_text(changed)
        return path

    def test_the_number_of_engines_follows_the_trainers(self):
        shown = self.effective(self.config_without("trainers: 3, placement: colocated"))
        self.assertRegex(shown, r"(?m)^  rollout_workers: 3\b")
        self.assertRegex(shown, r"(?m)^  placement: colocated\b")
        (self.folder / "effective.yaml").write_text(shown)
        self.assertEqual(self.effective(self.folder / "effective.yaml"), shown)

    def test_deltas_are_refused_before_anything_starts(self):
        job = self.start_train(self.folder / "run", *COLOCATED, *layout(2),
                               *settings(weight_sync__delta="true"))
        self.expect_refusal(job.wait(FAULT_SECONDS), 2, "weight_sync.delta", "placement: separate")

    def test_numbers_that_contradict_are_refused_by_key_and_line(self):
        path = self.config_without("trainers: 2, rollout_workers: 3, placement: colocated")
        result = self.run_nibble("train", path)
        self.expect_refusal(result, 2, "cluster.rollout_workers is 3", f"{path}:4",
                            "cluster.trainers 2", "cluster.placement: colocated")

    def test_an_unknown_placement_is_refused(self):
        result = self.run_nibble("train", TINY_DENSE, *settings(cluster__placement="apart"))
        self.expect_refusal(result, 2, "cluster.placement", "apart", "colocated")

    def test_supervised_training_has_no_engine_to_place(self):
        result = self.run_nibble("train", "configs/pretrain/tiny-qwen3.yaml", *COLOCATED)
        self.expect_refusal(result, 2, "cluster.placement", "sft")


if __name__ == "__main__":
    unittest.main()
