"""Engines of several ranks, processes that compute together: the bits of one alone, and clear ends."""

import json
import os
import signal
import unittest
from pathlib import Path

from nibble_cli import MODELS, TIMEOUT_S, CliTestCase
from serve_client import Server

DENSE = MODELS / "dense_untied/int4_sym7"
EXPERTS = MODELS / "moe_norm/int4_sym7"
ROWS = "".join(json.dumps({"input_ids": ids}) + "\n"
               for ids in ([5, 6, 7], [300], list(range(20, 90))))
TWO, TWO_SPLIT = ("--tensor", 2), ("--tensor", 2, "--expert", 2)


def children_of(process):
    return [int(child) for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()]


class Ranks(CliTestCase):
    def test_samples_have_the_bits_of_one_rank(self):
        for model, flags in ((DENSE, TWO), (EXPERTS, TWO), (EXPERTS, TWO_SPLIT)):
            with self.subTest(model.parent.name, flags=flags):
                command = ["generate", "--model", model, "--max-new-tokens", 12, "--seed", 3,
                           "--samples", 2, "--max-draft-tokens", 4]
                want = self.succeed(*command, stdin=ROWS)
                self.assertEqual(self.succeed(*command, *flags, stdin=ROWS), want)

    def test_log_probs_and_routes_have_the_bits_of_the_trainer(self):
        command = ["logprobs", "--model", EXPERTS, "--routes"]
        want = self.succeed(*command, "--path", "trainer", stdin=ROWS)
        got = self.succeed(*command, "--path", "rollout", "--chunk-tokens", 13, *TWO_SPLIT,
                           stdin=ROWS)
        self.assertEqual(got, want)

    def test_a_server_of_two_ranks_answers_like_one_and_stops_when_told(self):
        fields = {"input_ids": [5, 6, 7], "return_routes": True, "top_logprobs": 2,
                  "sampling_params": {"n": 2, "seed": 5, "max_new_tokens": 12}}
        with Server(EXPERTS) as server:
            want = server.post("/generate", fields)["answers"]
        with Server(EXPERTS, *TWO_SPLIT) as server:
            self.assertEqual(server.post("/generate", fields)["answers"], want)
            ranks = children_of(server.process.pid)
            self.assertEqual(len(ranks), 2)
            self.assertEqual(server.stop(), 0)
            self.assertFalse([rank for rank in ranks if Path(f"/proc/{rank}").exists()])

    def test_a_rank_that_dies_ends_the_others(self):
        with Server(DENSE, *TWO) as server:
            leader, follower = children_of(server.process.pid)
            os.kill(follower, signal.SIGKILL)
            self.assertEqual(server.process.wait(TIMEOUT_S), 1)
            self.assertFalse(Path(f"/proc/{leader}").exists())
            self.assertIn("rank 1 was killed by signal 9", "".join(server.log))

    def test_what_ranks_cannot_share_is_refused(self):
        for flags, words in ((("--tensor", 3), "does not divide num_attention_heads"),
                             (("--tensor", 0), "--tensor is 0"),
                             (("--tensor", 4, "--expert", 2), "--expert is 2; it must be 1 or"),
                             (("--tensor", 2, "--expert", 2), "no experts")):
            with self.subTest(flags):
                self.refuse("generate", "--model", DENSE, *flags, says=[words], stdin=ROWS)
        self.refuse("logprobs", "--model", DENSE, *TWO, says=["goes with --path rollout"], stdin=ROWS)


if __name__ == "__main__":
    unittest.main()
