"""Model directories without weights: sizes, tokenizers, refusals. That `nibble` trains them is for
tests/integration/test_supervised.py."""

import json
import pathlib
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

    def test_refusals(self):
        self.assertIn("tokenizer.json", self.run_tool("--tokenizer", self.folder, code=2).stderr)
        self.run_tool()
        self.assertIn("not empty", self.run_tool(code=2).stderr)


if __name__ == "__main__":
    unittest.main()
