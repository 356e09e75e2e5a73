"""cmake --install: the bundle runs after it was moved, with torch found at run time only."""

import json
import os
import subprocess
import unittest
from pathlib import Path

from nibble_cli import BINARY, MODELS, CliTestCase

BUILD = Path(BINARY).parents[1]
FIXTURES = Path(__file__).parents[1] / "core/parquet/fixtures"


def torch_directory():
    run = subprocess.run([BINARY, "doctor", "--json"], capture_output=True, text=True, check=True,
                         timeout=60)
    return json.loads(run.stdout)["torch"]["directory"]


class Install(CliTestCase):
    def setUp(self):
        super().setUp()
        subprocess.run(["cmake", "--install", BUILD, "--prefix", self.folder / "here"], check=True,
                       stdout=subprocess.DEVNULL, timeout=120)
        self.moved = self.folder / "moved"
        (self.folder / "here").rename(self.moved)

    def run_moved(self, *arguments, **options):
        return subprocess.run([self.moved / "bin/nibble", *arguments], capture_output=True,
                              text=True, timeout=60, **options,
                              env={**os.environ, "LD_LIBRARY_PATH": torch_directory()})

    def test_it_uses_its_own_libraries(self):
        run = self.run_moved("doctor", "--json")
        self.assertEqual(run.returncode, 0, run.stderr)
        libraries = json.loads(run.stdout)["libraries"]
        for name in ("grpc", "openssl", "sqlite", "pcre2", "cairo"):
            self.assertTrue(Path(libraries[name]["file"]).resolve().is_relative_to(
                self.moved.resolve()), libraries[name])
        self.assertEqual(self.run_moved("inspect", MODELS / "moe_norm/int4_sym7").returncode, 0)

    def test_its_reward_process_finds_torch_too(self):
        run = self.run_moved("score", "--type", "last_number",
                             input='{"response": "it is 12", "label": "12"}\n')
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(json.loads(run.stdout)["score"], 1.0)

    def test_its_reader_of_parquet_brings_arrow(self):
        file = FIXTURES / "texts_zstd.parquet"
        request = {"file": str(file), "columns": ["text"], "rows": [0]}
        run = subprocess.run([self.moved / "bin/nibble-parquet"], input=json.dumps(request) + "\n",
                             capture_output=True, text=True, timeout=60, env={})
        self.assertEqual(run.returncode, 0, run.stderr)
        first = (FIXTURES / "texts.jsonl").read_text(encoding="utf-8").split("\n")[0]
        count, row = run.stdout.splitlines()
        self.assertEqual((count, json.loads(row)), ("300", json.loads(first)))
        size = sum(path.stat().st_size for path in (self.moved / "lib").iterdir()
                   if path.name.startswith(("libarrow", "libparquet")))
        self.assertLess(size, 55 << 20)

    def test_no_run_path_is_absolute_and_torch_and_libc_are_not_in_it(self):
        names = [path.name for path in (self.moved / "lib").iterdir()]
        self.assertGreater(len(names), 20)
        for name in names:
            self.assertFalse(name.startswith(("libtorch", "libc10", "libc.so", "libstdc++", "ld-")),
                             name)
        files = list((self.moved / "bin").iterdir())
        files += [path for path in (self.moved / "lib").iterdir() if not path.is_symlink()]
        for path in files:
            text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True,
                                  check=True, timeout=60).stdout
            for line in text.splitlines():
                if "RUNPATH" in line or "RPATH" in line:
                    for entry in line.split("[")[1].split("]")[0].split(":"):
                        self.assertTrue(entry.startswith("$ORIGIN"), f"{path}: {line}")


if __name__ == "__main__":
    unittest.main()
