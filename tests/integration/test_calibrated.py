"""qat.start: calibrated: a run starts in the very codes and scales of an INT4 checkpoint, holds the
scales, and resumes with them."""

import json
import re
import shutil
import struct
import unittest
from pathlib import Path

from nibble_job import (ROOT, TINY_DENSE, TINY_MOE, JobTest, last_checkpoint, read_metrics,
                        settings)

MODELS = ROOT / "tests/oracles/models"
BF16 = MODELS / "dense_untied/bf16"
# llm-compressor's grid: scales of absmax / 7.5 and codes down to -8, which no packing here derives.
INT4 = MODELS / "dense_untied/int4_llmcompressor"
INT4_MOE = MODELS / "moe_norm/int4_llmcompressor"
CALIBRATED = settings(model__int4=INT4, qat__start="calibrated")
CALIBRATED_MOE = settings(model__int4=INT4_MOE, qat__start="calibrated")
# Large enough to reach the ends of the range of many codes.
LARGE_STEPS = settings(optimizer__lr=0.01)


def tensors(directory):
    """name -> (dtype, shape, bytes) of a Hugging Face directory."""
    found = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = (8 + size + offset for offset in info["data_offsets"])
                found[name] = (info["dtype"], info["shape"], data[begin:end])
    return found


class Calibrated(JobTest):
    def inspected(self, path):
        result = self.run_nibble("inspect", path, "--json")
        self.assertEqual(result.code, 0, result.err)
        return json.loads(result.out)

    def exported(self, checkpoint, name):
        directory = self.folder / name
        result = self.run_nibble("export", "--to", "int4", "--input-dir", checkpoint,
                                 "--output-dir", directory, "--side-files", BF16)
        self.assertEqual(result.code, 0, result.err)
        return tensors(directory)

    def check_start(self, name, int4, config, *arguments):
        """Without learning, what is published and kept is the checkpoint, byte for byte."""
        directory = self.folder / name
        self.train(directory, *arguments, *settings(run__steps=1, optimizer__lr=0), config=config)
        row = read_metrics(directory)[0][0]
        self.assertEqual(row["logprob_abs_diff_max"], 0)
        self.assertEqual(row["bytes_changed_share"], 0)
        self.assertEqual(row["projected_masters"], 0)
        checkpoint = last_checkpoint(directory)
        self.assertEqual(self.inspected(checkpoint)["weights_sha256"],
                         self.inspected(int4)["weights_sha256"])
        got = self.exported(checkpoint, f"{name}-export")
        want = tensors(int4)
        self.assertEqual(got.keys(), want.keys())
        for tensor, (dtype, shape, data) in want.items():
            self.assertEqual(got[tensor][2], data, tensor)
            self.assertEqual(got[tensor][:2], (dtype, shape), tensor)

    def test_the_first_version_is_the_checkpoint_byte_for_byte(self):
        self.check_start("dense", INT4, TINY_DENSE, *CALIBRATED)
        self.check_start("moe", INT4_MOE, TINY_MOE, *CALIBRATED_MOE)
        self.check_start("colocated", INT4, TINY_DENSE, *CALIBRATED,
                         *settings(cluster__placement="colocated"))

    def test_scales_are_held_while_codes_learn(self):
        directory = self.folder / "run"
        self.train(directory, *CALIBRATED, *LARGE_STEPS)
        rows = read_metrics(directory)[0]
        for row in rows:
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual(row["scales_changed_share"], 0, row)
            self.assertGreater(row["codes_changed_share"], 0, row)
            self.assertNotIn("rescale_codes_changed_share", row)
        self.assertGreater(sum(row["projected_masters"] for row in rows), 0)
        got, want = self.exported(last_checkpoint(directory), "export"), tensors(INT4)
        for name in want:
            if name.endswith("weight_scale"):
                self.assertEqual(got[name], want[name], name)
            elif name.endswith("weight_packed"):
                self.assertNotEqual(got[name], want[name], name)

    def test_a_run_that_derives_scales_reports_nothing_of_held_ones(self):
        directory = self.folder / "run"
        self.train(directory, *settings(run__steps=1))
        row = read_metrics(directory)[0][0]
        self.assertNotIn("projected_masters", row)
        self.assertGreater(row["scales_changed_share"], 0)

    def test_scales_are_derived_anew_every_so_often(self):
        directory = self.folder / "run"
        result = self.train(directory, *CALIBRATED, *settings(qat__rescale_every=3))
        self.assertEqual(re.findall(r"scales derived anew update=(\d+) codes_changed_share=0\.\d+",
                                    result.err), ["3", "6"])
        for row in read_metrics(directory)[0]:
            due = row["step"] % 3 == 0
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual("rescale_codes_changed_share" in row, due, row)
            self.assertEqual(row["scales_changed_share"] > 0, due, row)
        jump = read_metrics(directory)[0][2]["rescale_codes_changed_share"]
        self.assertTrue(0.01 < jump < 1, jump)

    def test_a_stopped_run_resumes_to_the_same_bytes(self):
        for config, start, rescale in ((TINY_DENSE, CALIBRATED, 0), (TINY_MOE, CALIBRATED_MOE, 2)):
            with self.subTest(config=config):
                arguments = [*start, *LARGE_STEPS, *settings(qat__rescale_every=rescale)]
                whole = self.folder / f"whole-{rescale}"
                self.train(whole, *arguments, config=config)
                stopped = self.folder / f"stopped-{rescale}"
                self.train(stopped, *arguments, *settings(run__steps=3), config=config)
                self.train(stopped, "--resume", *arguments, *settings(run__steps=6), config=config)
                self.expect_same_run(stopped, whole)

    def test_a_run_resumes_in_another_layout(self):
        first = self.folder / "first"
        self.train(first, *CALIBRATED, *LARGE_STEPS, *settings(run__steps=2))
        before = self.inspected(last_checkpoint(first))
        for name, layout in (("three", settings(cluster__trainers=3)),
                             ("tensor", settings(cluster__trainers=2, parallel__tensor=2))):
            directory = self.folder / name
            shutil.copytree(first, directory)
            self.train(directory, "--resume", *CALIBRATED, *layout,
                       *settings(run__steps=3, optimizer__lr=0))
            row = read_metrics(directory)[0][-1]
            self.assertEqual(row["logprob_abs_diff_max"], 0)
            self.assertEqual(row["bytes_changed_share"], 0, name)
            self.assertEqual(self.inspected(last_checkpoint(directory))["weights_sha256"],
                             before["weights_sha256"])

    def test_experts_of_several_ranks_start_and_learn_with_held_scales(self):
        directory = self.folder / "run"
        self.train(directory, *CALIBRATED_MOE, *LARGE_STEPS,
                   *settings(run__steps=2, cluster__trainers=2, parallel__expert=2),
                   config=TINY_MOE)
        for row in read_metrics(directory)[0]:
            self.assertEqual(row["logprob_abs_diff_max"], 0, row)
            self.assertEqual(row["scales_changed_share"], 0, row)

    def test_a_checkpoint_does_not_resume_with_the_other_start(self):
        directory = self.folder / "run"
        self.train(directory, *CALIBRATED, *settings(run__steps=2))
        result = self.run_nibble("train", TINY_DENSE, "--resume", *settings(
            run__directory=directory, run__steps=3, model__int4=INT4))
        self.expect_refusal(result, 2, "qat.start was calibrated and is rtn", "step-000002")

    def refused(self, *parts, arguments=(), environment=None):
        result = self.run_nibble("train", TINY_DENSE, *settings(
            run__directory=self.folder / "run", qat__start="calibrated"), *arguments,
            environment=environment)
        self.expect_refusal(result, 2, "qat.start", *parts)
        self.assertFalse((self.folder / "run").exists(), "half-written")

    def test_what_makes_no_sense_is_refused_before_anything_starts(self):
        self.refused("model.int4 is empty", arguments=settings(model__int4='""'))
        self.refused("qat.enabled is false", arguments=settings(qat__enabled="false"))
        self.refused("model.path", "is quantized", arguments=settings(model__path=INT4))
        self.refused("qat.group_size is 64", "groups of 32", arguments=settings(
            model__int4=INT4, qat__group_size=64))
        self.refused("groups of 32", arguments=settings(model__int4=INT4),
                     environment={"OPEN_TRAINING_INT4_GROUP_SIZE": "64"})
        eight = self.folder / "int8"
        result = self.run_nibble("convert", "--method", "rtn", "--quant-type", "W8A16",
                                 "--input-dir", BF16, "--output-dir", eight)
        self.assertEqual(result.code, 0, result.err)
        for start in ("calibrated", "rtn"):
            result = self.run_nibble("train", TINY_DENSE, *settings(
                run__directory=self.folder / "run", qat__start=start, model__int4=eight))
            self.expect_refusal(result, 2, "model.int4", "8 bits")
        result = self.run_nibble("train", TINY_DENSE, *settings(
            run__directory=self.folder / "run", qat__rescale_every=2))
        self.expect_refusal(result, 2, "qat.rescale_every", "qat.start")
        result = self.run_nibble("train", TINY_DENSE, *settings(
            run__directory=self.folder / "run", qat__masters="nearest"))
        self.expect_refusal(result, 2, "qat.masters", "qat.start")

    def test_a_scale_that_cannot_be_held_is_refused_by_tensor_row_and_group(self):
        broken = shutil.copytree(INT4, self.folder / "int4")
        path = broken / "model.safetensors"
        data = bytearray(path.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        name = "model.layers.1.mlp.down_proj.weight_scale"
        info = json.loads(data[8:8 + size])[name]
        groups = info["shape"][1]
        at = 8 + size + info["data_offsets"][0] + 2 * (5 * groups + 1)
        data[at:at + 2] = b"\0\0"
        path.write_bytes(data)
        result = self.run_nibble("train", TINY_DENSE, *CALIBRATED, *settings(
            run__directory=self.folder / "run", model__int4=broken))
        self.assertEqual(result.code, 2, result.err[-3000:])
        self.assertIn(f"'{name}': row 5, group 1 is 0", result.errors()[-1])


if __name__ == "__main__":
    unittest.main()
