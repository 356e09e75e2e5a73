"""`lora`: what makes no sense is refused naming both keys, and `nibble plan` knows what it saves."""

import json
import os
import unittest

from nibble_cli import MODELS, ROOT, CliTestCase, nibble

CONFIG = ROOT / "configs/ci/tiny-dense.yaml"
MOE = ROOT / "configs/ci/tiny-moe.yaml"


class LoraKeys(CliTestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(ROOT)  # the paths in CONFIG begin there

    def config(self, keys, file=CONFIG):
        sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        return nibble("config", file, *sets)

    def refused(self, keys, *named, file=CONFIG):
        with self.subTest(keys):
            code, _, error = self.config(keys, file)
            self.assertEqual(code, 2, error)
            for name in named:
                self.assertIn(name, error)

    def accepted(self, keys, file=CONFIG):
        with self.subTest(keys):
            code, shown, error = self.config(keys, file)
            self.assertEqual(code, 0, error)
            effective = self.folder / "effective.yaml"
            effective.write_text(shown)
            code, again, error = nibble("config", effective)
            self.assertEqual((code, again), (0, shown), error)

    def test_ranks_and_scales(self):
        self.accepted({"lora.rank": 32})
        self.accepted({"lora.rank": 64, "lora.alpha": 16.5, "lora.targets": "attention"})
        self.accepted({"lora.rank": 32, "qat.enabled": "false", "rollout.quantize": "false"})
        self.accepted({"lora.rank": 32, "qat.group_size": 64})
        self.accepted({"lora.rank": 32}, MOE)
        for rank in (8, 16, 48):
            self.refused({"lora.rank": rank}, "lora.rank", str(rank), "multiple of 32")
        self.refused({"lora.rank": -32}, "lora.rank")
        self.refused({"lora.rank": 32, "lora.alpha": 0}, "lora.alpha")
        self.refused({"lora.rank": 32, "lora.targets": "experts"}, "lora.targets", "attention")
        self.refused({"lora.alpha": 64}, "lora.alpha", "lora.rank is 0")

    def test_combinations_that_mean_nothing(self):
        self.refused({"lora.rank": 32, "qat.start": "calibrated"}, "lora.rank", "qat.start")
        self.refused({"lora.rank": 32, "qat.enabled": "false"}, "lora.rank", "qat.enabled",
                     "rollout.quantize")
        self.refused({"lora.rank": 32, "lora.targets": "mlp"}, "lora.targets", "experts", file=MOE)
        supervised = self.folder / "supervised.yaml"
        supervised.write_text("cluster: { trainers: 1, rollout_workers: 0 }\n"
                              f"model: {{ path: {MODELS}/dense_untied/bf16, init: random }}\n"
                              f"data: {{ train: {ROOT}/configs/ci/data/digits.jsonl }}\n"
                              "qat: { enabled: false }\nalgorithm: { loss: sft }\n")
        self.refused({"lora.rank": 32}, "lora.rank", "model.init", file=supervised)

    def plan(self, **keys):
        sets = [part for key, value in keys.items()
                for part in ("--set", f"{key.replace('__', '.')}={value}")]
        return json.loads(self.succeed("plan", CONFIG, "--device", "cpu", "--json", *sets))

    def test_the_plan_counts_what_is_trained_and_the_base_once(self):
        whole, lora = self.plan(), self.plan(lora__rank=32)
        adapters = 2 * 32 * sum(r + c for r, c in [(128, 128), (64, 128), (64, 128), (128, 128),
                                                    (256, 128), (256, 128), (128, 256)])
        of = lambda plan, key: sum(rank[f"{key}_bytes"] for rank in plan["trainers"])
        self.assertEqual(of(lora, "masters"), 4 * adapters)
        self.assertEqual(of(lora, "moments"), 8 * adapters)
        self.assertEqual(of(lora, "gradients"), 4 * adapters)
        self.assertEqual(of(lora, "packed"), of(whole, "packed") // 2 + 4 * adapters)
        for before, after in zip(whole["engine_ranks"], lora["engine_ranks"]):
            self.assertEqual(after["weights_bytes"],
                             before["weights_bytes"] // 2 + 4 * adapters)
            self.assertGreater(after["buffers_bytes"], before["buffers_bytes"])


if __name__ == "__main__":
    unittest.main()
