"""nibble eval against what generate and score say of the same samples."""

import itertools
import json
import unittest

from nibble_cli import MODELS, CliTestCase, nibble

MODEL = MODELS / "dense_untied/bf16"
SAMPLES = 5


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Eval(CliTestCase):
    def setUp(self):
        super().setUp()
        self.data = self.folder / "data.jsonl"
        self.flags = ["--samples", SAMPLES, "--max-new-tokens", 2, "--seed", 5,
                      "--temperature", 0.5]

    def responses(self, prompts):
        text = self.succeed("generate", "--model", MODEL, *self.flags,
                            stdin=jsonl([{"prompt": prompt} for prompt in prompts]))
        texts = [json.loads(line)["text"] for line in text.splitlines()]
        return [texts[i:i + SAMPLES] for i in range(0, len(texts), SAMPLES)]

    def test_marks_are_those_of_the_same_samples_by_definition(self):
        prompts = [f"value {i} plus" for i in range(12)]
        responses = self.responses(prompts)
        labels = [texts[i % SAMPLES] for i, texts in enumerate(responses)]
        self.data.write_text(jsonl([{"prompt": prompt, "label": label}
                                    for prompt, label in zip(prompts, labels, strict=True)]))
        text = self.succeed("eval", "--model", MODEL, "--data", self.data, "--reward", "exact",
                            *self.flags, "--json")
        got = json.loads(text)
        right = [[text.strip() == label.strip() for text in texts]
                 for texts, label in zip(responses, labels, strict=True)]
        self.assertGreater(len({sum(of_prompt) for of_prompt in right}), 1)
        self.assertEqual((got["prompts"], got["scored"], got["unscored"]), (12, 12 * SAMPLES, 0))
        means = [sum(of_prompt) / SAMPLES for of_prompt in right]
        average = sum(means) / 12
        self.assertAlmostEqual(got["avg"], average)
        variance = sum((mean - average) ** 2 for mean in means) / 11
        self.assertAlmostEqual(got["avg_standard_error"], (variance / 12) ** 0.5)
        self.assertEqual(list(got["pass"]), ["1", "2", "4", "5"])
        for k, value in got["pass"].items():
            # pass@k by its definition: over every choice of k samples.
            chances = [[any(choice) for choice in itertools.combinations(of_prompt, int(k))]
                       for of_prompt in right]
            want = sum(sum(chance) / len(chance) for chance in chances) / 12
            self.assertAlmostEqual(value, want)
        table = self.succeed("eval", "--model", MODEL, "--data", self.data, "--reward", "exact",
                             *self.flags)
        self.assertIn(f"avg@5     {average:.4f}", table)
        self.assertIn(f"pass@4    {got['pass']['4']:.4f}", table)

    def test_samples_that_cannot_be_scored_count_nowhere(self):
        self.data.write_text(jsonl([{"q": "value 1", "a": "x"}, {"q": "value 2", "a": [2]}]))
        code, out, err = nibble("eval", "--model", MODEL, "--data", self.data, "--reward", "exact",
                                "--prompt-key", "q", "--label-key", "a", *self.flags, "--json")
        self.assertEqual(code, 1)
        self.assertIn(f"{SAMPLES} of {2 * SAMPLES} samples", err)
        self.assertIn("prompt 2", err)
        got = json.loads(out)
        self.assertEqual((got["scored"], got["unscored"]), (SAMPLES, SAMPLES))

    def test_bad_input(self):
        self.data.write_text(jsonl([{"prompt": "a", "label": "b"}, {"prompt": "a"}]))
        self.refuse("eval", "--model", MODEL, "--data", self.data, "--reward", "exact",
                    says=["data.jsonl:2", "label"])
        self.data.write_text(jsonl([{"prompt": "a " * 2000, "label": "b"}]))
        self.refuse("eval", "--model", MODEL, "--data", self.data, "--reward", "exact",
                    says=["data.jsonl prompt 1", "1024"])
        self.refuse("eval", "--model", MODEL, "--data", self.data, "--reward", "vibes",
                    says=["vibes"])
        self.refuse("eval", "--model", MODEL, "--data", self.folder / "none", "--reward", "exact",
                    says=["none"])
        self.refuse("eval", "--model", MODELS / "dense_untied/int4_sym7", "--data", self.data,
                    "--reward", "exact", says=["tokenizer.json"])


if __name__ == "__main__":
    unittest.main()
