"""A job whose rewards are a rule and a server: what the server refuses is dropped, never a 0."""

import sys
import unittest

from nibble_job import ROOT, JobTest, query, read_metrics, settings

sys.path.insert(0, str(ROOT / "tests/cli"))
from reward_server import RewardServer  # noqa: E402

STEPS = 3
TYPES = "math=1,remote=0.5"


def refuses(response):
    return len(response) % 4 == 0


def score(sample):
    return {"error": "refused"} if refuses(sample["response"]) else 2 + len(sample["response"])


class Rewards(JobTest):
    def test_rules_and_a_server_add_up_and_what_is_refused_is_dropped(self):
        directory = self.folder / "run"
        with RewardServer(score) as server:
            self.train(directory, *settings(run__steps=STEPS, reward__type=f'"{TYPES}"',
                                            reward__url=server.url, eval__data='""'))
        steps, _ = read_metrics(directory)
        self.assertEqual(len(steps), STEPS)
        dropped = sum(row["samples_dropped"] for row in steps)
        asked = [sample["response"] for sample in server.samples]
        self.assertEqual(len(asked), STEPS * 16)
        self.assertEqual(dropped, sum(map(refuses, asked)))
        self.assertGreater(dropped, 0, "the fault was never injected")
        samples = query(directory, "SELECT reward, response_text FROM samples "
                                   "WHERE reward IS NOT NULL")
        self.assertEqual(len(samples), STEPS * 16 - dropped)
        for reward, response in samples:
            self.assertIn(reward - 0.5 * (2 + len(response)), (0, 1), response)

    def test_rewards_that_make_no_sense_start_nothing(self):
        for keys, parts in (({"type": "remote"}, ("reward.type", "URL")),
                            ({"type": "math", "url": "http://a:1"}, ("reward.type", "http://a:1")),
                            ({"type": '"math=1,math=2"'}, ("reward.type", "twice")),
                            ({"type": "remote", "url": "http://a:1", "timeout_ms": 4000},
                             ("reward.type", "4650", "timeout_ms")),
                            ({"type": "math", "remote_attempts": 0}, ("reward.remote_attempts",))):
            with self.subTest(keys):
                values = {f"reward__{key}": value for key, value in keys.items()}
                directory = self.folder / "refused"
                result = self.run_nibble("train", "configs/ci/tiny-dense.yaml",
                                         *settings(run__directory=directory, **values))
                self.expect_refusal(result, 2, *parts)
                self.assertFalse(directory.exists(), "half-written")


if __name__ == "__main__":
    unittest.main()
