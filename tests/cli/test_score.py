"""nibble score against reasoning-gym's own scores and by the rules of last_number and exact."""

import json
import subprocess
import unittest

from nibble_cli import BINARY, ROOT, TIMEOUT_S, CliTestCase, nibble, read_jsonl
from reward_server import RewardServer

REWARDS = ROOT / "tests/oracles/rewards"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Score(CliTestCase):
    def score(self, kind, rows):
        text = self.succeed("score", "--type", kind, stdin=jsonl(rows))
        return [json.loads(line)["score"] for line in text.splitlines()]

    def expect(self, kind, rows):
        got = self.score(kind, [{"response": text, "label": label} for text, label, _ in rows])
        self.assertEqual(got, [want for _, _, want in rows])

    def test_reasoning_gym_scores_are_the_librarys(self):
        items = {(item["task"], item["index"]): item
                 for item in read_jsonl(REWARDS / "gym_eval.jsonl")}
        cases = [case for case in read_jsonl(REWARDS / "gym_scores.jsonl") if "score" in case][::7]
        self.assertGreater(len(cases), 100)
        rows = [{"response": case["candidate"], "label": items[case["task"], case["index"]]}
                for case in cases]
        for got, case in zip(self.score("reasoning_gym", rows), cases, strict=True):
            self.assertAlmostEqual(got, case["score"], delta=1e-9, msg=case)

    def test_last_number_and_exact(self):
        rows = [("It is 4.", 4, 1), ("first 3, then 1,000.0", "#### 1000", 1), ("5", 4, 0),
                ("none", 4, 0), ("-0.5", -0.5, 1)]
        self.expect("last_number", rows)
        rows = [(" Paris\n", "Paris", 1), ("paris", "Paris", 0), ("é", "é", 1), ("", "", 1)]
        self.expect("exact", rows)

    def test_math_and_the_incumbents_rule_differ_as_their_own_code_does(self):
        cases = read_jsonl(REWARDS / "math.jsonl")
        cases = [case for case in cases if case["gold"] and case["math"]["path"] != "sympy"]
        rows = [{"response": case["response"], "label": case["gold"]} for case in cases]
        for kind, key in (("math", "math_verify"), ("math_miles", "math")):
            right = sum(got == case[key]["verdict"]
                        for got, case in zip(self.score(kind, rows), cases, strict=True))
            self.assertGreaterEqual(right, 0.97 * len(cases), kind)

    def test_several_with_weights(self):
        rows = [("5, 4", "4", 2 - 2 / 3), ("4", "4", 2 - 1), ("5", "4", 0)]
        self.expect("last_number=2,f1=-1", rows)
        self.expect("boxed_exact=0.5", [("4 \\boxed{5}", "5", 0.5), ("5", "5", 0)])

    def test_remote_scores_and_what_has_none(self):
        with RewardServer() as server:
            rows = [{"response": text, "label": 4} for text in ("4", "refuse", "55")]
            code, out, err = nibble("score", "--type", "remote,last_number=10", "--remote-url",
                                    server.url, stdin=jsonl(rows))
            lines = [json.loads(line) for line in out.splitlines()]
            self.assertEqual(code, 1, err)
            self.assertEqual([lines[0], lines[2]], [{"score": 11.0}, {"score": 2.0}])
            self.assertEqual(lines[1]["code"], "invalid_argument")
            self.assertIn("refused", lines[1]["error"])
        code, out, _ = nibble("score", "--type", "remote", "--remote-url", server.url,
                              stdin=jsonl(rows[:1]))
        self.assertEqual((code, json.loads(out)["code"]), (1, "unavailable"))

    def test_more_lines_than_a_batch_stay_in_order(self):
        rows = [{"response": str(i), "label": i - i % 3} for i in range(700)]
        self.assertEqual(self.score("last_number", rows), [float(i % 3 == 0) for i in range(700)])

    def test_a_line_that_cannot_be_scored_is_an_error_line_and_exit_code_1(self):
        rows = [{"response": "4", "label": 4}, {"response": "4", "label": [4]},
                {"response": "5", "label": "5"}]
        code, out, err = nibble("score", "--type", "last_number", stdin=jsonl(rows))
        self.assertEqual(code, 1)
        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([lines[0], lines[2]], [{"score": 1.0}, {"score": 1.0}])
        self.assertEqual(set(lines[1]), {"error", "code"})
        self.assertEqual(lines[1]["code"], "invalid_argument")
        self.assertIn("1 of 3 lines", err)
        self.assertIn("line 2", err)

    def test_a_line_is_answered_before_the_next_one_is_written(self):
        with subprocess.Popen([BINARY, "score", "--type", "exact"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as run:
            for response, want in (("a", 1.0), ("b", 0.0)):
                run.stdin.write(json.dumps({"response": response, "label": "a"}) + "\n")
                run.stdin.flush()
                self.assertEqual(json.loads(run.stdout.readline()), {"score": want})
            run.stdin.close()
            self.assertEqual(run.wait(TIMEOUT_S), 0)

    def test_bad_input(self):
        self.refuse("score", "--type", "vibes", says=["vibes", "last_number"])
        self.refuse("score", "--type", "exact", "--timeout-ms", 0, says=["--timeout-ms"])
        self.refuse("score", "--type", "exact", "--memory-mb", 1, says=["--memory-mb"])
        self.refuse("score", "--type", "exact=x", says=["exact=x", "weight"])
        self.refuse("score", "--type", "exact,exact", says=["exact", "twice"])
        self.refuse("score", "--type", "remote", says=["URL"])
        self.refuse("score", "--type", "exact", "--remote-url", "http://a:1", says=["http://a:1"])
        self.refuse("score", "--type", "remote", "--remote-url", "a:1", says=["a:1"])
        self.refuse("score", "--type", "remote", "--remote-url", "http://a:1", "--timeout-ms", 4000,
                    says=["4650", "4000"])
        for text, says in (('{"response": "a"}\n', ["line 1", "label"]),
                           ('{"label": "a"}\n', ["line 1", "response"]),
                           ('{"response": 1, "label": 1}\n', ["line 1", "response"]),
                           ('{"response": "a", "label": 1, "x": 1}\n', ["line 1", "'x'"]),
                           ('\n{"response"\n', ["line 2"])):
            with self.subTest(text):
                self.refuse("score", "--type", "exact", stdin=text, says=says)


if __name__ == "__main__":
    unittest.main()
