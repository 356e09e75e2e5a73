"""Every job's YAML file under configs/ loads, and says what it is for, what it needs, what to expect.

Files of clusters are test_plan.py's.
"""

import os
import subprocess
import sys
import unittest

from nibble_cli import MODELS, ROOT, CliTestCase

# Small models with the same kind of content stand for those that the user fetches.
STAND_INS = {
    "models/SmolLM2-135M-Instruct": MODELS / "llama_smol/bf16",
    "models/SmolLM2-135M-Instruct-INT4-g32": MODELS / "llama_smol/int4_sym7",
    "models/tiny-qwen3-bf16": MODELS / "dense_untied/bf16",
    "models/tiny-qwen3-g32": MODELS / "dense_untied/int4_sym7",
}


def shipped():
    return sorted(path for path in (ROOT / "configs").rglob("*.yaml")
                  if path.parent.name != "clusters")


class ShippedConfigs(CliTestCase):
    def setUp(self):
        super().setUp()
        for path, stand_in in STAND_INS.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).symlink_to(stand_in)
        for name in ("configs", "tests"):
            (self.folder / name).symlink_to(ROOT / name)
        for tool, *arguments in (
                ("make_addition_data", "--output", "data/addition"),
                ("make_arithmetic_data", "--output", "data/arithmetic", "--count", 10,
                 "--held-out", 10),
                ("make_random_model", "--output", "models/tiny-qwen3"),
                ("make_random_model", "--architecture", "qwen3_moe", "--output",
                 "models/tiny-qwen3-moe")):
            subprocess.run([sys.executable, "-B", ROOT / f"tools/{tool}.py", *map(str, arguments)],
                           cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        # Its tool needs a library that nothing else does.
        (self.folder / "data/chain_sum").symlink_to("addition")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def effective(self, path):
        """The effective configuration, one "section.key" each."""
        values, section = {}, ""
        for line in self.succeed("config", path).splitlines():
            key, _, rest = line.partition(":")
            value = rest.split("  #")[0].strip()
            if line.startswith(" "):
                values[f"{section}.{key.strip()}"] = value
            else:
                section = key
        return values

    def test_each_loads_and_names_its_own_run_directory(self):
        self.assertGreaterEqual(len(shipped()), 9)
        for path in shipped():
            with self.subTest(path.name):
                self.assertEqual(self.effective(path)["run.directory"], f"runs/{path.stem}")

    def test_each_says_what_it_needs(self):
        for path in shipped():
            with self.subTest(path.name):
                text = path.read_text("utf-8")
                self.assertTrue(text.startswith("# "))
                self.assertIn("Needs", text.partition("run:")[0])

    def test_the_runs_of_a_comparison_differ_in_quantization_only(self):
        qat, bf16, no_qat = (
            self.effective(ROOT / f"configs/quickstart/smollm2-addition{suffix}.yaml")
            for suffix in ("", "-bf16", "-int4-noqat"))
        keys = ("qat.enabled", "rollout.quantize")
        self.assertEqual([qat[key] for key in keys], ["true", "true"])
        self.assertEqual([bf16[key] for key in keys], ["false", "false"])
        self.assertEqual([no_qat[key] for key in keys], ["false", "true"])
        for other in (bf16, no_qat):
            changed = {key for key in qat if qat[key] != other[key]}
            self.assertLessEqual(changed, {*keys, "run.directory"})


if __name__ == "__main__":
    unittest.main()
