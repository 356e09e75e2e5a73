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

    def evaluate(self, *flags):
        return json.loads(self.succeed("eval", "--model", MODEL, *self.flags, *flags, "--json"))

    def write_sets(self):
        """Two data sets, in files of their own, whose labels some samples meet."""
        paths = []
        for name, first, count in (("one", 0, 5), ("two", 20, 8)):
            prompts = [f"value {i} plus" for i in range(first, first + count)]
            labels = [texts[i % SAMPLES] for i, texts in enumerate(self.responses(prompts))]
            paths.append(self.folder / f"{name}.jsonl")
            paths[-1].write_text(jsonl([{"prompt": prompt, "label": label}
                                        for prompt, label in zip(prompts, labels, strict=True)]))
        return paths

    def test_several_sets_have_the_marks_that_each_has_alone(self):
        one, two = self.write_sets()
        alone = [self.evaluate("--data", path, "--reward", "exact") for path in (one, two)]
        self.assertNotEqual(alone[0]["avg"], alone[1]["avg"])
        got = self.evaluate("--data", f"first={one}", "--data", two, "--reward", "exact")
        self.assertEqual([part["name"] for part in got["sets"]], ["first", "two"])
        for part, want in zip(got["sets"], alone, strict=True):
            model = want.pop("model")
            self.assertEqual(model, got["model"])
            self.assertEqual({**part, "name": want["name"]}, want)
        macro = got["macro"]
        self.assertAlmostEqual(macro["avg"], (alone[0]["avg"] + alone[1]["avg"]) / 2)
        self.assertAlmostEqual(macro["avg_standard_error"],
                               sum(one["avg_standard_error"] ** 2 for one in alone) ** 0.5 / 2)
        for k in ("1", "2", "4", "5"):
            self.assertAlmostEqual(macro["pass"][k],
                                   (alone[0]["pass"][k] + alone[1]["pass"][k]) / 2)
        table = self.succeed("eval", "--model", MODEL, *self.flags, "--data", one, "--data", two,
                             "--reward", "exact")
        self.assertIn(f"mean of 2 sets\n  avg       {macro['avg']:.4f}", table)

    def test_a_set_may_be_sampled_and_scored_in_its_own_way(self):
        one, two = self.write_sets()
        two.write_text(jsonl([{"prompt": f"value {i} plus", "label": i} for i in range(8)]))
        own = ["--samples", 3, "--temperature", 0.9, "--top-p", 0.8, "--top-k", 40,
               "--max-new-tokens", 3, "--seed", 6, "--stop", "1"]
        want = [self.evaluate("--data", one, "--reward", "exact"),
                json.loads(self.succeed("eval", "--model", MODEL, "--data", two, "--reward",
                                        "last_number", *own, "--json"))]
        sets = self.folder / "sets.yaml"
        sets.write_text(f"""
sets:
  - {{ data: {one} }}
  - {{ name: b, data: {two}, reward: last_number, samples: 3, temperature: 0.9, top_p: 0.8, top_k: 40,
      max_new_tokens: 3, seed: 6, stop: ["1"] }}
""")
        got = self.evaluate("--sets", sets, "--reward", "exact")
        self.assertEqual([part["name"] for part in got["sets"]], ["one", "b"])
        for part, alone in zip(got["sets"], want, strict=True):
            del alone["model"]
            self.assertEqual({**part, "name": alone["name"]}, alone)
        # pass@k for every k that all sets have.
        self.assertEqual(list(got["macro"]["pass"]), ["1", "2"])

    def test_the_output_keeps_every_reward_and_grows(self):
        one, two = self.write_sets()
        two.write_text(two.read_text() + jsonl([{"prompt": "value 1", "label": [2]}]))
        output = self.folder / "results.jsonl"
        for _ in range(2):
            code, _, err = nibble("eval", "--model", MODEL, "--data", one, "--data", two,
                                  "--reward", "exact", *self.flags, "--output", output)
            self.assertEqual(code, 1)
            self.assertIn(f"two: {SAMPLES} of {9 * SAMPLES} samples", err)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        self.assertEqual([line["name"] for line in lines], ["one", "two", "one", "two"])
        self.assertEqual(lines[0]["rewards"], lines[2]["rewards"])
        self.assertEqual([len(row) for row in lines[0]["rewards"]], [SAMPLES] * 5)
        means = [sum(row) / SAMPLES for row in lines[0]["rewards"]]
        self.assertAlmostEqual(lines[0]["avg"], sum(means) / 5)
        self.assertEqual(lines[1]["rewards"][8], [None] * SAMPLES)
        self.assertEqual((lines[1]["scored"], lines[1]["unscored"]), (8 * SAMPLES, SAMPLES))
        self.assertTrue(all(line["model"] == str(MODEL) for line in lines))

    def test_sets_that_make_no_sense_are_named(self):
        self.data.write_text(jsonl([{"prompt": "a", "label": "b"}]))
        both = ["--data", self.data, "--data", f"other={self.data}"]
        self.refuse("eval", "--model", MODEL, "--reward", "exact", says=["--data"])
        self.refuse("eval", "--model", MODEL, "--data", self.data, says=["'data'", "--reward"])
        self.refuse("eval", "--model", MODEL, "--data", self.data, *both, "--reward", "exact",
                    says=["called 'data'"])
        self.refuse("eval", "--model", MODEL, *both, "--reward", "exact", "--output",
                    self.folder / "no/such", says=["--output"])
        self.refuse("eval", "--model", MODEL, "--data", "x=none.jsonl", "--reward", "exact",
                    says=["none.jsonl"])
        sets = self.folder / "sets.yaml"
        for text, says in (("- { data: a, sample: 3 }", ["sets.yaml:2", "sample", "samples"]),
                           ("- { data: a, top_p: 2 }", ["sets.yaml:2", "top_p"]),
                           ("- { name: a }", ["set 'a'", "data"]),
                           ("- { name: a, data: b, reward: vibes }", ["set 'a'", "vibes"]),
                           ("- { name: a, data: b, temperature: 0.00001 }", ["set 'a'", "temperature"]),
                           ("[]", ["0 data sets"])):
            sets.write_text(f"sets:\n  {text}\n")
            self.refuse("eval", "--model", MODEL, "--sets", sets, "--reward", "exact", says=says)

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
