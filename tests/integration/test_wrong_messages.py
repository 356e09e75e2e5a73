"""Messages that a real coordinator does not send, or no longer: real workers refuse them, typed and
with a reason, and the run ends as if nothing had been said."""

import os
import shutil
import signal
import sys
import time
import unittest
from contextlib import contextmanager
from pathlib import Path

import grpc
from nibble_job import ROOT, settings, wait_until
from proto_stubs import ProtocolTest

STEPS = 30
TRAINERS = ("trainer/0", "trainer/1")
ENGINE = "rollout/1"
PATIENT = settings(run__steps=STEPS, eval__every=100, checkpoint__every=STEPS, cluster__lease_ms=120000,
                   weight_sync__timeout_ms=8000)
SECONDS = 20


class WrongMessages(ProtocolTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        sys.path.insert(0, cls.generated.name)
        import nibble_pb2
        import nibble_pb2_grpc
        cls.pb, cls.rpc = nibble_pb2, nibble_pb2_grpc

    @contextmanager
    def channel(self, job, worker):
        with grpc.insecure_channel(f"127.0.0.1:{job.services()[worker]}") as channel:
            yield channel

    def stop_between_publications(self, job, engine):
        """Stops the coordinator while no transaction is in flight; returns the engine's status."""
        for _ in range(50):
            os.kill(job.pid, signal.SIGSTOP)
            status = engine.Status(self.pb.Empty(), timeout=SECONDS)
            # What the coordinator sent last may not have arrived when it stopped.
            time.sleep(0.2)
            if status == engine.Status(self.pb.Empty(), timeout=SECONDS) and status.state == "idle":
                return status
            os.kill(job.pid, signal.SIGCONT)
            time.sleep(0.05)
        self.fail("a publication is always in flight")

    def expect_failed_precondition(self, call, request, *parts):
        with self.assertRaises(grpc.RpcError) as caught:
            call(request, timeout=SECONDS)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        for part in parts:
            self.assertIn(part, caught.exception.details())

    def test_an_older_epoch_a_second_commit_another_layout_or_job_change_nothing(self):
        reference = self.folder / "reference"
        self.train(reference, *PATIENT)
        directory = self.folder / "run"
        # The engine is left behind once: epochs then differ from the first one.
        job = self.start_train(directory, *PATIENT,
                               environment={"NIBBLE_FAILPOINTS": f"{ENGINE}.prepare@3=error"})
        job.wait_for_log(rf"{ENGINE} serves version \d+ again")
        step = int(job.wait_for_log(r"step=(\d+)/").group(1))
        job.wait_for_log(rf"step={step + 6}/")
        with self.channel(job, ENGINE) as to_engine, self.channel(job, "trainer/1") as to_trainer:
            engine, trainer = self.rpc.RolloutStub(to_engine), self.rpc.TrainerStub(to_trainer)
            before = self.stop_between_publications(job, engine)
            self.assertGreater(before.epoch, 1, "no engine was left behind")
            members = [*TRAINERS, ENGINE]

            def transaction(**other):
                epoch = other.get("epoch", before.epoch)
                plan = engine.Plan(self.pb.PlanRequest(epoch=epoch, membership=members),
                                   timeout=SECONDS)
                fields = {"job": directory.name, "epoch": epoch,
                          "version": before.served_version + 1, "plan_digest": plan.plan_digest}
                return self.pb.Transaction(**{**fields, **other})

            def reserve(membership=members, **other):
                return self.pb.ReserveRequest(transaction=transaction(**other), membership=membership)

            # A commit that is told twice is answered twice, with the same version.
            served = transaction(version=before.served_version)
            for _ in range(2):
                engine.Commit(self.pb.CommitRequest(transaction=served), timeout=SECONDS)
            self.expect_failed_precondition(
                engine.Commit, self.pb.CommitRequest(transaction=transaction()), "no transaction is in flight")
            self.expect_failed_precondition(
                engine.Prepare, self.pb.PrepareRequest(transaction=transaction()), "no transaction is in flight")
            stale = before.epoch - 1
            self.expect_failed_precondition(engine.Reserve, reserve(epoch=stale),
                                            f"epoch {stale} is stale")
            self.expect_failed_precondition(engine.Reserve, reserve(job="another"),
                                            "serves job", "another")
            self.expect_failed_precondition(engine.Reserve, reserve(version=before.served_version),
                                            "versions only rise")
            self.expect_failed_precondition(engine.Reserve, reserve(base_version=1),
                                            "the change since version 1 is offered")
            # The plan of other members, and of a layout of other ranks.
            self.expect_failed_precondition(
                engine.Reserve, reserve([TRAINERS[1], TRAINERS[0], ENGINE]), "compare the manifests")
            self.expect_failed_precondition(engine.Reserve, reserve(plan_digest=bytes(16)),
                                            "compare the manifests")
            self.expect_failed_precondition(
                trainer.SendWeights,
                self.pb.SendWeightsRequest(transaction=transaction(epoch=stale, version=before.served_version),
                                           engine=1, membership=members, deadline_ms=1000,
                                           committed_version=before.served_version),
                f"epoch {stale} is stale")
            self.assertEqual(engine.Status(self.pb.Empty(), timeout=SECONDS), before)
            os.kill(job.pid, signal.SIGCONT)
            result = job.wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.expect_whole_run(directory, STEPS)
        self.expect_same_run(directory, reference)

    def test_a_checkpoint_of_another_group_on_one_machine_ends_the_run_before_its_first_step(self):
        # As on a cluster where one machine has another copy of the checkpoint.
        copy = self.folder / "int4"
        shutil.copytree(ROOT / "tests/oracles/models/dense_untied/int4_sym7", copy)
        job = self.start_train(self.folder / "run", *PATIENT, *settings(model__int4=copy),
                               environment={"NIBBLE_FAILPOINTS": f"{ENGINE}.configure@1=sleep:4000"})
        job.wait_for_log(rf"failpoint: {ENGINE}.configure: sleep")
        wait_until(lambda: {*TRAINERS, "rollout/0"} <= job.services().keys(), 60,
                   "the services of the others")
        config = Path(copy, "config.json")
        text = config.read_text()
        self.assertEqual(text.count('"group_size": 32'), 1)
        config.write_text(text.replace('"group_size": 32', '"group_size": 64'))
        result = job.wait()
        self.expect_refusal(result, 2, "disagree about the weights", "group_size=32", "group_size=64",
                            "the same checkpoints")
        self.assertNotIn("step=1/", result.err)
        self.expect_nothing_left(job)


if __name__ == "__main__":
    unittest.main()
