"""The incumbent's command lines reach `nibble convert`; the last test converts with the real binary."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/convert_hf_to_int4.py"
MODEL = ROOT / "tests/oracles/models/dense_untied"
REAL = os.environ.get("NIBBLE_BIN", str(ROOT / "build/cpu/bin/nibble"))

# Prints what it was called with and fails in a way of its own.
FAKE = """#!{python}
import json, sys
print(json.dumps(sys.argv))
sys.exit(7)
"""


class ConvertHfToInt4(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def fake(self, place):
        """A program in a folder of its own that records how it was called."""
        path = self.folder / place / "nibble"
        path.parent.mkdir(parents=True)
        path.write_text(FAKE.format(python=sys.executable))
        path.chmod(0o755)
        return path

    def run_tool(self, *arguments, tool=TOOL, **env):
        kept = {name: value for name, value in os.environ.items() if name != "NIBBLE_BIN"}
        return subprocess.run([sys.executable, "-B", tool, *map(str, arguments)],
                              capture_output=True, text=True, timeout=60, check=False,
                              env={**kept, **env})

    def test_every_flag_of_the_incumbent_goes_through_with_the_exit_code(self):
        line = ["--input-dir", "a b", "--output-dir", "out", "--data-dir", "data", "--quant-type",
                "W8A16", "--num-calibration-samples", "8", "--max-sequence-length", "64",
                "--dampening-frac", "0.02", "--trust-remote-code", "--quant-group-size", "128"]
        binary = str(self.fake("named"))
        run = self.run_tool(*line, NIBBLE_BIN=binary)
        self.assertEqual(json.loads(run.stdout), [binary, "convert", *line])
        self.assertEqual(run.returncode, 7)

    def test_named_comes_before_built_and_built_before_path(self):
        tool = self.folder / "checkout/tools/convert_hf_to_int4.py"
        tool.parent.mkdir(parents=True)
        shutil.copy(TOOL, tool)
        in_path = self.fake("elsewhere")
        built = {preset: self.fake(f"checkout/build/{preset}/bin") for preset in ("cuda", "cpu")}

        def found(**env):
            run = self.run_tool(tool=tool, PATH=str(in_path.parent), **env)
            return json.loads(run.stdout)[0]

        self.assertEqual(found(NIBBLE_BIN=str(built["cpu"])), str(built["cpu"]))
        self.assertEqual(found(), str(built["cuda"]))
        built["cuda"].chmod(0o644)  # as a build leaves it that was interrupted while linking
        self.assertEqual(found(), str(built["cpu"]))
        built["cpu"].unlink()
        self.assertEqual(found(), str(in_path))

    def test_without_a_binary_it_says_where_it_looked(self):
        tool = self.folder / "convert_hf_to_int4.py"
        shutil.copy(TOOL, tool)
        run = self.run_tool(tool=tool, PATH=str(self.folder))
        self.assertEqual(run.returncode, 127)
        self.assertIn("build/cpu/bin/nibble", run.stderr)
        run = self.run_tool(NIBBLE_BIN=str(self.folder / "gone"))
        self.assertEqual(run.returncode, 127)
        self.assertIn("gone", run.stderr)

    def test_help_says_what_differs_without_a_binary(self):
        run = self.run_tool("--help", PATH="")
        self.assertEqual(run.returncode, 0)
        for text in ("--quant-group-size", "share a scale", "--data-dir", "--trust-remote-code"):
            self.assertIn(text, run.stdout)

    def test_a_conversion_gives_the_bytes_of_the_fixture(self):
        out = self.folder / "out"
        run = self.run_tool("--input-dir", MODEL / "bf16", "--output-dir", out, "--method", "rtn",
                            NIBBLE_BIN=REAL)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(tensors(out / "model.safetensors"),
                         tensors(MODEL / "int4_sym7/model.safetensors"))

    def test_what_the_binary_refuses_is_refused(self):
        run = self.run_tool("--input-dir", self.folder / "gone", "--output-dir",
                            self.folder / "out", "--method", "rtn", NIBBLE_BIN=REAL)
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("gone", run.stderr)


def tensors(path):
    """name -> dtype, shape and bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: (info["dtype"], info["shape"],
                   data[start + info["data_offsets"][0]:start + info["data_offsets"][1]])
            for name, info in header.items()}


if __name__ == "__main__":
    unittest.main()
