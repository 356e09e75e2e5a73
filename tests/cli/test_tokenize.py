"""nibble tokenize against lines of the tokenizer oracles (all of them are in core's own tests)."""

import gzip
import json
import shutil
import unittest

from nibble_cli import TOKENIZERS, CliTestCase, read_jsonl

NUM_LINES = 60


class Tokenize(CliTestCase):
    def setUp(self):
        super().setUp()
        self.qwen = self.folder / "qwen"
        self.qwen.mkdir()
        (self.qwen / "tokenizer.json").write_bytes(
            gzip.decompress((TOKENIZERS / "tokenizer.json.gz").read_bytes()))
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(TOKENIZERS / name, self.qwen)

    def answers(self, model, lines, *flags):
        stdin = "".join(json.dumps(line) + "\n" for line in lines)
        out = self.succeed("tokenize", "--model", model, *flags, stdin=stdin)
        return [json.loads(line) for line in out.split("\n") if line]

    def test_texts_become_the_ids_of_transformers(self):
        cases = read_jsonl(TOKENIZERS / "encode.jsonl")[:NUM_LINES]
        got = self.answers(self.qwen, [{"text": case["text"]} for case in cases])
        self.assertEqual(got, [{"ids": case["ids"]} for case in cases])

    def test_ids_become_texts(self):
        cases = read_jsonl(TOKENIZERS / "encode.jsonl")[:NUM_LINES]
        lines = [{"ids": case["ids"]} for case in cases]
        self.assertEqual(self.answers(self.qwen, lines, "--decode"),
                         [{"text": case["decoded"]} for case in cases])
        self.assertEqual(self.answers(self.qwen, lines, "--skip-special"),
                         [{"text": case["decoded_skip_special"]} for case in cases])

    def test_chats_become_ids_and_texts(self):
        cases = [case for case in read_jsonl(TOKENIZERS / "chat_template.jsonl")
                 if "error" not in case]
        lines = []
        for case in cases:
            line = {"messages": case["messages"], **case.get("kwargs", {})}
            for key in ("tools", "add_generation_prompt"):
                if key in case:
                    line[key] = case[key]
            lines.append(line)
        self.assertGreater(len(cases), 10)
        self.assertEqual(self.answers(self.qwen, lines), [{"ids": case["ids"]} for case in cases])
        self.assertEqual(self.answers(self.qwen, lines, "--decode"),
                         [{"text": case["text"]} for case in cases])

    def test_an_id_that_is_no_token_is_named(self):
        self.refuse("tokenize", "--model", self.qwen, "--decode",
                    stdin='{"ids": [0, 1, 99999999]}\n', says=["ids[2] = 99999999", "line 1"])

    def test_special_adds_what_the_post_processor_adds(self):
        model = TOKENIZERS / "llama3_style"
        cases = read_jsonl(model / "encode.jsonl")
        lines = [{"text": case["text"]} for case in cases]
        self.assertEqual(self.answers(model, lines, "--special"),
                         [{"ids": case["ids_with_special"]} for case in cases])
        self.assertEqual(self.answers(model / "tokenizer.json", lines),
                         [{"ids": case["ids"]} for case in cases])


if __name__ == "__main__":
    unittest.main()
