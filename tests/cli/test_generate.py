"""nibble generate against Transformers' greedy texts and against nibble logprobs, to the bit."""

import json
import shutil
import subprocess
import unittest

from nibble_cli import BINARY, MODEL_NAMES, MODELS, TIMEOUT_S, CliTestCase, Safetensors

MODEL = MODELS / "dense_untied/bf16"
QUANTIZED = ("dense_tied", "moe_mixed", "llama_smol")  # one of each kind also in INT4


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Generate(CliTestCase):
    def generate(self, model, rows, *flags):
        text = self.succeed("generate", "--model", model, *flags, stdin=jsonl(rows))
        return [json.loads(line) for line in text.splitlines()]

    def expect_trainers_logprobs(self, model, prompts, answers, *flags):
        whole = [{"input_ids": prompt + answer["output_ids"]}
                 for prompt, answer in zip(prompts, answers, strict=True)]
        text = self.succeed("logprobs", "--path", "trainer", "--model", model, *flags,
                            stdin=jsonl(whole))
        for prompt, answer, line in zip(prompts, answers, text.splitlines(), strict=True):
            self.assertEqual(answer["logprobs"], json.loads(line)["logprobs"][len(prompt) - 1:])

    def test_greedy_text_is_that_of_transformers(self):
        for name in MODEL_NAMES:
            with self.subTest(name):
                io = Safetensors(MODELS / name / "io.safetensors")
                want = io.values("greedy.tokens")
                got = self.generate(MODELS / name / "bf16",
                                    [{"input_ids": io.values("greedy.prompt")}],
                                    "--temperature", 0, "--max-new-tokens", len(want))
                self.assertEqual([answer["output_ids"] for answer in got], [want])
                self.assertEqual(got[0]["finish_reason"], "length")

    def test_logprobs_are_the_trainers_to_the_bit(self):
        prompts = [[5, 6, 7], [300], list(range(20, 90)), [5, 6, 7]]
        rows = [{"input_ids": prompt} for prompt in prompts]
        for name in MODEL_NAMES:
            for variant in ("bf16", "int4_sym7") if name in QUANTIZED else ("bf16",):
                with self.subTest(name, variant=variant):
                    model = MODELS / name / variant
                    flags = ["--max-new-tokens", 12, "--seed", 3, "--max-running", 2]
                    answers = self.generate(model, rows, *flags)
                    self.expect_trainers_logprobs(model, prompts, answers)
                    self.assertNotEqual(answers[0]["output_ids"], answers[3]["output_ids"])

    def test_eight_bit_weights_are_served_as_what_they_stand_for(self):
        eight, plain = self.folder / "int8", self.folder / "plain"
        self.succeed("convert", "--method", "rtn", "--quant-type", "W8A16", "--input-dir", MODEL,
                     "--output-dir", eight)
        self.succeed("export", "--to", "bf16", "--input-dir", eight, "--output-dir", plain)
        rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [300]}]
        got = self.generate(eight, rows, "--max-new-tokens", 12, "--seed", 3)
        self.assertEqual(got, self.generate(plain, rows, "--max-new-tokens", 12, "--seed", 3))
        self.assertNotEqual(got, self.generate(MODEL, rows, "--max-new-tokens", 12, "--seed", 3))

    def test_logprobs_follow_temperature_dtype_and_fake_quantization(self):
        prompts = [[5, 6, 7], [8, 9]]
        rows = [{"input_ids": prompt} for prompt in prompts]
        for flags in (["--temperature", 0.7], ["--dtype", "bfloat16"],
                      ["--fake-quant", 32, "--targets", "mlp"]):
            with self.subTest(flags):
                answers = self.generate(MODEL, rows, "--max-new-tokens", 8, *flags)
                self.expect_trainers_logprobs(MODEL, prompts, answers, *flags)

    def test_fake_quantization_is_the_converted_checkpoint(self):
        rows = [{"input_ids": [5, 6, 7]}]
        fake = self.generate(MODEL, rows, "--fake-quant", 32, "--max-new-tokens", 16)
        real = self.generate(MODELS / "dense_untied/int4_sym7", rows, "--max-new-tokens", 16)
        self.assertEqual(fake[0]["output_ids"], real[0]["output_ids"])
        self.assertEqual(fake[0]["logprobs"], real[0]["logprobs"])
        self.assertIsNone(real[0]["text"])  # no tokenizer there

    def test_answers_are_in_order_and_do_not_depend_on_what_runs_beside_them(self):
        rows = [{"input_ids": [1 + i] * (1 + 7 * i % 40)} for i in range(30)]
        flags = ["--samples", 3, "--max-new-tokens", 9, "--seed", 11]
        want = self.generate(MODEL, rows, *flags)
        self.assertEqual(len(want), 90)
        self.assertEqual(len({tuple(answer["output_ids"]) for answer in want[:3]}), 3)
        for other in (["--max-running", 1], ["--threads", 2, "--max-running", 4], ["--max-draft-tokens", 8],
                      ["--max-draft-tokens", 4, "--draft-model", MODELS / "dense_untied/int4_sym7"],
                      ["--kv-tokens", 64, "--max-positions", 64]):
            self.assertEqual(self.generate(MODEL, rows, *flags, *other), want)
        self.assertEqual(self.generate(MODEL, rows[:1], *flags), want[:3])
        self.assertNotEqual(self.generate(MODEL, rows[:1], *flags[:-1], 12), want[:3])

    def test_a_draft_head_is_trained_meanwhile_and_changes_no_answer(self):
        rows = [{"input_ids": [3 + i, 7, i]} for i in range(12)]
        flags = ["--samples", 2, "--max-new-tokens", 40, "--seed", 2, "--temperature", 0.7]
        guesses = [*flags, "--max-draft-tokens", 3]
        want = self.generate(MODEL, rows, *flags)
        head = self.folder / "head"
        self.assertEqual(self.generate(MODEL, rows, *guesses, "--draft-head", "random"), want)
        self.assertEqual(self.generate(MODEL, rows, *guesses, "--draft-head", "random", "--train-draft-head", head), want)
        first = (head / "model.safetensors").read_bytes()
        self.assertEqual(json.loads((head / "config.json").read_text())["model_type"], "nibble_draft_head")
        # It goes on from what was written.
        self.assertEqual(self.generate(MODEL, rows, *guesses, "--draft-head", head, "--train-draft-head", head), want)
        self.assertNotEqual((head / "model.safetensors").read_bytes(), first)

    def test_a_draft_head_that_cannot_guess_is_refused(self):
        for flags, says in ((("--draft-head", "random"), "--max-draft-tokens"),
                            (("--draft-head", self.folder / "missing", "--max-draft-tokens", 2), "--draft-head"),
                            (("--draft-head", MODEL, "--max-draft-tokens", 2), "model_type"),
                            (("--draft-head", "random", "--draft-model", MODEL, "--max-draft-tokens", 2), "together"),
                            (("--train-draft-head", self.folder / "out"), "--draft-head")):
            with self.subTest(flags):
                self.refuse("generate", "--model", MODEL, *flags, says=says)

    def test_a_draft_model_that_cannot_guess_is_refused(self):
        for draft, says in ((MODELS / "missing", "--draft-model"),
                            (self.changed_draft("config.json", vocab_size=511), "vocab_size = 511"),
                            (self.changed_tokenizer(), "another tokenizer")):
            with self.subTest(says):
                self.refuse("generate", "--model", MODEL, "--draft-model", draft, "--max-draft-tokens", 2, says=says)
        self.refuse("generate", "--model", MODEL, "--draft-model", MODEL, says="--max-draft-tokens")

    def changed_draft(self, name, **fields):
        draft = self.folder / name
        shutil.copytree(MODEL, draft)
        config = json.loads((draft / name).read_text())
        (draft / name).write_text(json.dumps({**config, **fields}))
        return draft

    def changed_tokenizer(self):
        tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
        vocab = tokenizer["model"]["vocab"]
        a, b = list(vocab)[-2:]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        return self.changed_draft("tokenizer.json", model=tokenizer["model"])

    def test_prompts_and_chats_are_encoded_as_by_tokenize(self):
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        text = self.succeed("tokenize", "--model", MODEL, "--special", stdin=jsonl(
            [{"text": "value 1 plus"}]))
        text += self.succeed("tokenize", "--model", MODEL, stdin=jsonl(
            [{**chat, "add_generation_prompt": True}]))
        ids = [{"input_ids": json.loads(line)["ids"]} for line in text.splitlines()]
        got = self.generate(MODEL, [{"prompt": "value 1 plus"}, chat], "--max-new-tokens", 6)
        self.assertEqual(got, self.generate(MODEL, ids, "--max-new-tokens", 6))
        decoded = self.succeed("tokenize", "--model", MODEL, "--decode", "--skip-special",
                               stdin=jsonl([{"ids": answer["output_ids"]} for answer in got]))
        self.assertEqual([answer["text"] for answer in got],
                         [json.loads(line)["text"] for line in decoded.splitlines()])

    def test_stop_text_and_end_token_end_a_response(self):
        rows = [{"input_ids": [5, 6, 7]}]
        long = self.generate(MODEL, rows, "--temperature", 0, "--max-new-tokens", 20)[0]
        stop = long["text"][3:5]
        short = self.generate(MODEL, rows, "--temperature", 0, "--max-new-tokens", 20, "--stop",
                              stop)[0]
        self.assertEqual(short["finish_reason"], "stop")
        self.assertIn(stop, short["text"])
        self.assertLess(len(short["output_ids"]), 20)
        self.assertEqual(short["output_ids"], long["output_ids"][:len(short["output_ids"])])
        model = self.copy_model("dense_untied/bf16")
        config = json.loads((model / "config.json").read_text())
        config["eos_token_id"] = long["output_ids"][4]
        (model / "config.json").write_text(json.dumps(config))
        (model / "tokenizer.json").unlink()
        ended = self.generate(model, rows, "--temperature", 0, "--max-new-tokens", 20)[0]
        first = long["output_ids"].index(config["eos_token_id"])
        self.assertEqual(ended["output_ids"], long["output_ids"][:first + 1])
        self.assertEqual(ended["finish_reason"], "stop")

    def test_a_line_is_answered_before_the_next_one_is_written(self):
        command = [BINARY, "generate", "--model", str(MODEL), "--max-new-tokens", "4"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, encoding="utf-8") as run:
            for ids in ([1, 2], [3]):
                run.stdin.write(json.dumps({"input_ids": ids}) + "\n")
                run.stdin.flush()
                self.assertEqual(len(json.loads(run.stdout.readline())["output_ids"]), 4)
            run.stdin.close()
            self.assertEqual(run.wait(TIMEOUT_S), 0)

    def test_an_output_file_appears_whole_or_not_at_all(self):
        target = self.folder / "out.jsonl"
        flags = ["--model", MODEL, "--max-new-tokens", 3, "--output", target]
        self.refuse("generate", *flags, stdin='{"input_ids": [1]}\n{"input_ids": [9999]}\n',
                    says=["line 2", "9999"])
        self.assertEqual(list(self.folder.iterdir()), [])
        self.succeed("generate", *flags, stdin='{"input_ids": [1]}\n')
        self.assertEqual(len(target.read_text().splitlines()), 1)

    def test_bad_lines_are_named(self):
        cases = [('{"input_ids": [1]}\n{"prompt": 5}\n', ["line 2", "prompt"]),
                 ('{"prompt": "a", "input_ids": [1]}\n', ["line 1", "exactly one"]),
                 ('{"prompt": "a", "temperature": 1}\n', ["line 1", "temperature"]),
                 ('{"prompt": ""}\n', ["line 1", "no tokens"]),
                 ('{"messages": "hi"}\n', ["line 1", "messages"]),
                 ('{"input_ids": [1, 512]}\n', ["line 1", "512"]),
                 (json.dumps({"input_ids": [1] * 1020}), ["line 1", "1020", "1024"]),
                 ('{"input_ids": [1]}\n{"input_ids"', ["line 2"])]
        for text, says in cases:
            with self.subTest(text[:40]):
                self.refuse("generate", "--model", MODEL, "--max-new-tokens", 8, stdin=text,
                            says=says)
        self.refuse("generate", "--model", MODELS / "dense_untied/int4_sym7",
                    stdin='{"prompt": "a"}\n', says=["tokenizer.json", "--tokenizer"])

    def test_bad_flags_are_named(self):
        for flags in (["--temperature", "-1"], ["--temperature", "nan"], ["--top-p", "0"],
                      ["--top-k", "-1"], ["--max-new-tokens", "0"], ["--samples", "0"],
                      ["--max-running", "0"], ["--kv-tokens", "0"], ["--dtype", "float16"],
                      ["--fake-quant", "48"], ["--seed", "-1"], ["--threads", "-1"]):
            with self.subTest(flags):
                self.refuse("generate", "--model", MODEL, *flags, says=[flags[0]])
        for number in ("9223372036854775808", "18446744073709551616", "0x10", "010", "1e3", "3.0"):
            with self.subTest(number):
                self.refuse("generate", "--model", MODEL, "--seed", number, says=["--seed", number])
        self.refuse("generate", "--model", MODEL, "--stop", "", says=["stop"])
        self.refuse("generate", "--model", self.folder / "none", says=["none"])
        self.refuse("generate", "--model", MODEL, "--tokenizer", self.folder, says=["tokenizer"])


if __name__ == "__main__":
    unittest.main()
