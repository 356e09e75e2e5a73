"""Sums to pretrain on: right answers, sides that never share a sum, the same files every time."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools/make_arithmetic_data.py"


def terms_of(record):
    prompt = record["prompt"]
    question = prompt if isinstance(prompt, str) else prompt[0]["content"]
    words = question.removeprefix("What is ").removesuffix("?").split()
    return [int(words[0])] + [int(sign + term) for sign, term in zip(words[1::2], words[2::2])]


class MakeArithmeticData(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_tool(self, name, *arguments, code=0):
        run = subprocess.run([sys.executable, "-B", TOOL, "--output", self.folder / name,
                              *map(str, arguments)], capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, code, run.stderr)
        return run

    def read(self, name, side):
        text = (self.folder / name / f"{side}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def test_answers_are_right_and_sides_disjoint(self):
        self.run_tool("a", "--count", 3000, "--held-out", 100, "--terms", 4)
        train, held_out = self.read("a", "train"), self.read("a", "heldout")
        self.assertEqual((len(train), len(held_out)), (3000, 100))
        for record in train + held_out:
            terms = terms_of(record)
            self.assertIn(len(terms), (2, 3, 4))
            self.assertEqual(int(record["response"]), sum(terms))
            self.assertEqual(record["label"], str(sum(terms)))
            self.assertTrue(all(1 <= abs(term) <= 20 for term in terms))
        sides = [{tuple(sorted(terms_of(record))) for record in side} for side in (train, held_out)]
        self.assertFalse(sides[0] & sides[1])
        self.assertEqual(len({record["prompt"] for record in held_out}), 100)

    def test_the_seed_says_which_sums(self):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            self.run_tool(name, "--count", 50, "--held-out", 5, "--seed", seed)
        self.assertEqual(self.read("a", "train"), self.read("b", "train"))
        self.assertNotEqual(self.read("a", "train"), self.read("c", "train"))

    def test_chats(self):
        self.run_tool("a", "--count", 5, "--held-out", 5, "--chat")
        record = self.read("a", "train")[0]
        self.assertEqual(record["prompt"][0]["role"], "user")
        self.assertEqual(record["response"], record["label"])

    def test_what_cannot_be_is_refused(self):
        run = self.run_tool("a", "--largest", 2, "--terms", 2, "--held-out", 100, "--count", 5, code=2)
        self.assertIn("--largest", run.stderr)
        self.run_tool("a", "--terms", 1, code=2)
        (self.folder / "file").write_text("")
        self.run_tool("file", "--count", 5, "--held-out", 5, code=1)


if __name__ == "__main__":
    unittest.main()
