"""Tests of tools/make_addition_data.py."""

import contextlib
import io
import json
import pathlib
import re
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import make_addition_data  # noqa: E402

QUESTION = re.compile(r"^What is (\d+) \+ (\d+)\? Answer with just the number\.$")


class AdditionDataTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.output = pathlib.Path(folder.name) / "deep" / "addition"

    def run_main(self) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return make_addition_data.main(["--output", str(self.output)])

    def terms(self, name: str) -> list[tuple[int, int]]:
        """(a, b) of every line, after a look at the line's form and sum."""
        found = []
        for line in (self.output / name).read_text("utf-8").splitlines():
            record = json.loads(line)
            self.assertEqual(record.keys(), {"prompt", "label"})
            (message,) = record["prompt"]
            self.assertEqual(message.keys(), {"role", "content"})
            self.assertEqual(message["role"], "user")
            match = QUESTION.match(message["content"])
            self.assertIsNotNone(match, message["content"])
            a, b = int(match[1]), int(match[2])
            self.assertEqual(record["label"], str(a + b))
            found.append((a, b))
        return found

    def test_every_ordered_pair_is_on_exactly_one_side(self):
        self.assertEqual(self.run_main(), 0)
        both = self.terms("train.jsonl") + self.terms("heldout.jsonl")
        self.assertEqual(len(both), 400)
        self.assertEqual(set(both), {(a, b) for a in range(1, 21) for b in range(1, 21)})

    def test_no_held_out_pair_is_trained_on_in_either_order(self):
        self.run_main()
        train = {frozenset(pair) for pair in self.terms("train.jsonl")}
        held_out = {frozenset(pair) for pair in self.terms("heldout.jsonl")}
        self.assertEqual(train & held_out, set())
        self.assertEqual((len(train), len(held_out)), (168, 42))

    def test_held_out_sums_range_from_small_to_large(self):
        self.run_main()
        sums = [a + b for a, b in self.terms("heldout.jsonl")]
        self.assertLess(min(sums), 10)
        self.assertGreater(max(sums), 30)

    def test_a_second_run_writes_the_same_bytes_and_leaves_nothing_else(self):
        self.run_main()
        first = {path.name: path.read_bytes() for path in self.output.iterdir()}
        self.run_main()
        self.assertEqual({path.name: path.read_bytes() for path in self.output.iterdir()}, first)
        self.assertEqual(first.keys(), {"train.jsonl", "heldout.jsonl"})

    def test_a_folder_that_cannot_be_written_is_named(self):
        self.output.parent.mkdir()
        self.output.write_text("a file")
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertEqual(self.run_main(), 1)
        self.assertIn(str(self.output), stderr.getvalue())


if __name__ == "__main__":
    unittest.main()
