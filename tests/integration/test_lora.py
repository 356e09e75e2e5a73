"""Adapters beside a frozen INT4 base: a whole job learns, and a version costs what they take."""

import json
import math
import struct
import unittest
from pathlib import Path

from nibble_job import (ROOT, JobTest, last_checkpoint, query, read_metrics, settings, state_sha256)

MODELS = ROOT / "tests/oracles/models"
# llm-compressor's grid, which nothing here derives: the base must stay as it is.
INT4 = MODELS / "dense_untied/int4_llmcompressor"
RANK = 32
LORA = settings(lora__rank=RANK, model__int4=INT4, optimizer__lr=0.01)
# Rows and columns of the linear matrices of a layer, and how many layers.
MATRICES, LAYERS = [(128, 128), (64, 128), (64, 128), (128, 128), (256, 128), (256, 128), (128, 256)], 2
ADAPTER_BYTES = 2 * RANK * LAYERS * sum(rows + cols for rows, cols in MATRICES)


def tensors(file):
    data = Path(file).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return {name: (info["dtype"], info["shape"], data[8 + size + info["data_offsets"][0]:
                                                      8 + size + info["data_offsets"][1]])
            for name, info in json.loads(data[8:8 + size]).items() if name != "__metadata__"}


class Lora(JobTest):
    def versions_bytes(self, directory):
        return [row["sync_bytes"] for row in read_metrics(directory)[0]]

    def test_a_job_learns_and_publishes_adapters_alone(self):
        directory = self.folder / "run"
        steps = 25
        result = self.train(
            directory, *LORA, *settings(
                algorithm__advantage="opd", run__steps=steps, eval__every=100, checkpoint__every=100,
                model__teacher="tests/oracles/models/moe_norm/bf16", algorithm__kl_loss_coef=0,
                rollout__max_new_tokens=16))
        self.expect_whole_run(directory, steps)  # with a gap of 0 at every step
        rows = read_metrics(directory)[0]
        kl = [row["kl_teacher"] for row in rows]
        self.assertLess(sum(kl[-5:]), 0.9 * sum(kl[:5]), kl)
        # Two engines; the versions of steps are the second and later ones.
        for count in self.versions_bytes(directory):
            self.assertEqual(count, 2 * ADAPTER_BYTES)
        for row in rows:
            self.assertGreater(row["bytes_changed_share"], 0, row)
        self.assertNotIn("Traceback", result.err)

    def test_resume_is_the_uninterrupted_run_also_with_other_ranks(self):
        reference, directory = self.folder / "reference", self.folder / "run"
        self.train(reference, *LORA)
        self.train(directory, *LORA, *settings(run__steps=3))
        result = self.start("--log-level", "debug", "train", "configs/ci/tiny-dense.yaml", *LORA,
                            *settings(run__directory=directory), "--resume").wait()
        self.assertEqual(result.code, 0, result.err[-3000:])
        self.expect_same_run(directory, reference)
        more = self.start("train", "configs/ci/tiny-dense.yaml", *LORA,
                          *settings(run__directory=directory, run__steps=8, parallel__tensor=2),
                          "--resume").wait()
        self.assertEqual(more.code, 0, more.err[-3000:])
        self.expect_whole_run(directory, 8)
        for keys, said in ((settings(lora__rank=64), "lora.rank 64"),
                           (settings(lora__rank=0), "lora.rank 0")):
            refused = self.start("train", "configs/ci/tiny-dense.yaml", *LORA, *keys,
                                 *settings(run__directory=directory, run__steps=10),
                                 "--resume").wait()
            self.expect_refusal(refused, 2, said, "was trained with lora.rank 32")

    def test_every_way_of_publishing_gives_the_same_run(self):
        reference = self.folder / "reference"
        self.train(reference, *LORA)
        for name, keys in (("in_place", settings(weight_sync__in_place="true")),
                           ("delta", settings(weight_sync__delta="true", weight_sync__whole_every=2)),
                           ("colocated", settings(cluster__placement="colocated")),
                           ("engine_ranks", settings(rollout__tensor=2))):
            with self.subTest(name):
                directory = self.folder / name
                self.train(directory, *LORA, *keys)
                self.assertEqual(state_sha256(last_checkpoint(directory)),
                                 state_sha256(last_checkpoint(reference)))
                self.expect_whole_run(directory, 6)
                for count in self.versions_bytes(directory):
                    self.assertLessEqual(count, 2.1 * ADAPTER_BYTES)  # headers of deltas

    def test_an_engine_that_fell_behind_catches_up(self):
        reference, directory = self.folder / "reference", self.folder / "run"
        slow = settings(run__steps=12, eval__every=100, checkpoint__every=100,
                        weight_sync__timeout_ms=4000)
        self.train(reference, *LORA, *slow)
        result = self.train(directory, *LORA, *slow,
                            environment={"NIBBLE_FAILPOINTS": "rollout/1.received@3=error"})
        self.assertIn("goes on without rollout/1", result.err)
        self.assertIn("rollout/1 serves version", result.err)
        self.assertEqual(state_sha256(last_checkpoint(directory)),
                         state_sha256(last_checkpoint(reference)))
        self.assertEqual(read_metrics(directory)[0][-1]["serving_engines"], 2)

    def test_the_export_is_peft_s_and_the_merged_sum(self):
        directory = self.folder / "run"
        self.train(directory, *LORA, *settings(run__steps=3))
        checkpoint = last_checkpoint(directory)
        adapter, merged = self.folder / "adapter", self.folder / "merged"
        base = self.folder / "base"
        for out, *arguments in ((adapter, "--input-dir", checkpoint),
                                (merged, "--to", "bf16", "--input-dir", checkpoint,
                                 "--side-files", MODELS / "dense_untied/bf16"),
                                (base, "--to", "bf16", "--input-dir", INT4)):
            result = self.run_nibble("export", *arguments, "--output-dir", out)
            self.assertEqual(result.code, 0, result.err)
        config = json.loads((adapter / "adapter_config.json").read_text())
        self.assertEqual((config["peft_type"], config["r"], config["lora_alpha"]), ("LORA", 32, 64))
        self.assertEqual(config["target_modules"], sorted(
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        self.assertEqual(Path(config["base_model_name_or_path"]), INT4)
        found = tensors(adapter / "adapter_model.safetensors")
        want = {}
        for layer in range(LAYERS):
            for (rows, cols), name in zip(MATRICES, (
                    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")):
                module = f"base_model.model.model.layers.{layer}.{name}"
                want[f"{module}.lora_A.weight"] = [RANK, cols]
                want[f"{module}.lora_B.weight"] = [rows, RANK]
        self.assertEqual({name: shape for name, (_, shape, _) in found.items()}, want)
        self.check_merged(found, tensors(base / "model.safetensors"),
                          tensors(merged / "model.safetensors"))
        refused = self.run_nibble("export", "--to", "int4", "--input-dir", checkpoint,
                                  "--output-dir", self.folder / "no")
        self.expect_refusal(refused, 2, "adapters", "--to peft")
        self.assertEqual(json.loads((merged / "config.json").read_text()).get("nibble_lora"), None)

    def check_merged(self, adapter, base, merged):
        def values(tensor):
            count = len(tensor[2]) // 2
            return [struct.unpack("<f", struct.pack("<I", bits << 16))[0]
                    for bits in struct.unpack(f"<{count}H", tensor[2])]

        self.assertEqual(base.keys(), merged.keys())
        moved = 0
        for name, tensor in base.items():
            key = "base_model.model." + name.removesuffix(".weight")
            if key + ".lora_A.weight" not in adapter:
                self.assertEqual(merged[name], tensor, name)
                continue
            rows, cols = tensor[1]
            a, b = (values(adapter[f"{key}.lora_{x}.weight"]) for x in "AB")
            before, after = values(tensor), values(merged[name])
            for r in range(0, rows, 37):  # some rows: this is slow
                for c in range(cols):
                    added = 2 * sum(b[r * RANK + k] * a[k * cols + c] for k in range(RANK))
                    want = before[r * cols + c] + added
                    got = after[r * cols + c]
                    self.assertLessEqual(abs(got - want), abs(want) * 2.0**-8 + 1e-6, name)
                    moved += got != before[r * cols + c]
            self.assertTrue(all(math.isfinite(x) for x in after))
        self.assertGreater(moved, 100)


if __name__ == "__main__":
    unittest.main()
