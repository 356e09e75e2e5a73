"""Model directories without weights: sizes, tokenizers, refusals. That `nibble` trains them is for
tests/integration/test_supervised.py."""

import importlib.util
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/make_random_model.py"
OTHER = ROOT / "tests/oracles/models/dense_untied/bf16"


class MakeRandomModel(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_tool(self, *arguments, code=0):
        run = subprocess.run([sys.executable, "-B", TOOL, "--output", self.folder / "model",
                              *map(str, arguments)], capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, code, run.stderr)
        return run

    def read(self, name):
        return json.loads((self.folder / "model" / name).read_text())

    def test_bytes_are_the_tokens_by_default(self):
        self.run_tool()
        tokenizer = self.read("tokenizer.json")
        self.assertEqual(sorted(tokenizer["model"]["vocab"].values()), list(range(256)))
        self.assertEqual(tokenizer["model"]["vocab"]["A"], ord("A"))
        self.assertEqual(tokenizer["model"]["vocab"]["\u0120"], ord(" "))
        config = self.read("config.json")
        self.assertEqual((config["model_type"], config["vocab_size"]), ("qwen3", 320))
        self.assertEqual(config["eos_token_id"], 258)
        self.assertEqual(self.read("generation_config.json"), {"eos_token_id": 258})
        self.assertFalse(list((self.folder / "model").glob("*.safetensors")))

    def test_a_tokenizer_is_copied_and_its_vocabulary_fits(self):
        self.run_tool("--tokenizer", OTHER, "--architecture", "qwen3_moe", "--experts", 6)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            self.assertEqual((self.folder / "model" / name).read_bytes(), (OTHER / name).read_bytes())
        config = self.read("config.json")
        self.assertEqual((config["vocab_size"], config["eos_token_id"]), (512, 486))
        self.assertEqual((config["model_type"], config["num_experts"]), ("qwen3_moe", 6))

    def test_a_known_shape(self):
        self.run_tool("--shape", "qwen3-4b")
        config = self.read("config.json")
        self.assertEqual((config["hidden_size"], config["num_hidden_layers"],
                          config["num_key_value_heads"], config["vocab_size"]),
                         (2560, 36, 8, 151936))

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "numpy is not installed")
    def test_weights_are_normal_and_of_every_tensor(self):
        self.run_tool("--architecture", "qwen3_moe", "--layers", 2, "--experts", 3, "--weights",
                      "--initializer-range", 0.5)
        data = (self.folder / "model/model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        self.assertEqual(len(header), 2 + 2 * (8 + 1 + 3 * 3))
        begin, end = header["model.layers.1.mlp.experts.2.down_proj.weight"]["data_offsets"]
        values = [struct.unpack("<f", b"\0\0" + pair)[0] for (pair,) in
                  struct.iter_unpack("2s", data[8 + size + begin:8 + size + end])]
        self.assertEqual(len(values), 128 * 128)
        self.assertAlmostEqual(sum(values) / len(values), 0, delta=0.02)
        self.assertAlmostEqual(sum(v * v for v in values) / len(values), 0.25, delta=0.02)
        begin, end = header["model.norm.weight"]["data_offsets"]
        self.assertEqual(data[8 + size + begin:8 + size + end], b"\x80\x3f" * 128)

    def test_refusals(self):
        self.assertIn("tokenizer.json", self.run_tool("--tokenizer", self.folder, code=2).stderr)
        self.run_tool()
        self.assertIn("not empty", self.run_tool(code=2).stderr)


if __name__ == "__main__":
    unittest.main()
