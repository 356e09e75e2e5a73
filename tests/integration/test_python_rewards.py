"""A user's Python function scores: python/nibble_reward.py over HTTP and gRPC, asked by the real scorer and a job."""

import json
import os
import subprocess
import sys
import unittest

from nibble_job import BINARY, ROOT, descendants, query, read_metrics, settings, wait_until
from proto_stubs import ProtocolTest

FUNCTION = '''
import time
from nibble_reward import CannotScore

failures = []

def score(response, label):
    if response == "refuse":
        raise CannotScore("no verdict")
    if response == "broken" or (response == "once" and not failures):
        failures.append(response)
        raise RuntimeError("the function broke")
    if response == "slow":
        time.sleep(30)
    if response == "nan":
        return float("nan")
    return len(response.encode()) + label["plus"]
'''


class PythonRewards(ProtocolTest):
    PROTOS = ("reward.proto",)

    def setUp(self):
        super().setUp()
        (self.folder / "my_scores.py").write_text(FUNCTION)
        path = os.pathsep.join([self.generated.name, str(ROOT / "python")])
        self.server = subprocess.Popen(
            [sys.executable, "-B", ROOT / "python/nibble_reward.py", "my_scores:score", "--http-port", "0",
             "--grpc-port", "0"], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": path})  # fmt: skip
        self.addCleanup(self.stop_server)
        self.urls = [self.server.stdout.readline().split()[-1] for _ in range(2)]

    def stop_server(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()

    def expect_nothing_left(self, job=None):  # but for the server, which is another's
        wait_until(lambda: descendants(os.getpid()) <= {self.server.pid}, 5, "the end of all other processes")

    def score(self, url, responses, *flags):
        lines = "".join(json.dumps({"response": text, "label": {"plus": 0.5}}) + "\n" for text in responses)
        done = subprocess.run([BINARY, "score", "--type", "remote", "--remote-url", url, *flags], input=lines,
                              capture_output=True, text=True, timeout=100)
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    def test_scores_refusals_and_failures(self):
        self.assertEqual([url.split("://")[0] for url in self.urls], ["http", "grpc"])
        for url in self.urls:
            with self.subTest(url):
                lines, err = self.score(url, ["abc", "refuse", "", "caf\u00e9"])
                self.assertEqual([line.get("score") for line in lines], [3.5, None, 0.5, 5.5], err)
                self.assertEqual(lines[1]["code"], "invalid_argument")
                self.assertIn("no verdict", lines[1]["error"])
                lines, _ = self.score(url, ["broken"])
                self.assertEqual(lines[0]["code"], "unavailable")
                self.assertIn("the function broke", lines[0]["error"])
                lines, _ = self.score(url, ["nan"], "--remote-attempts", "1")
                self.assertIn(lines[0]["code"], ("unavailable", "invalid_argument"))
                lines, _ = self.score(url, ["slow"], "--remote-attempts", "1", "--remote-timeout-ms", "300")
                self.assertEqual(lines[0]["code"], "deadline_exceeded")

    def test_what_fails_once_is_asked_again(self):
        lines, err = self.score(self.urls[1], ["once"])
        self.assertEqual(lines, [{"score": 4.5}], err)

    def test_more_than_a_batch_in_order(self):
        for url in self.urls:
            lines, err = self.score(url, ["x" * i for i in range(100)])
            self.assertEqual([line["score"] for line in lines], [i + 0.5 for i in range(100)], err)

    def test_nobody_there_is_said(self):
        self.stop_server()
        for url in self.urls:
            lines, _ = self.score(url, ["abc"], "--remote-attempts", "2")
            self.assertEqual(lines[0]["code"], "unavailable")

    def test_a_job_learns_from_it(self):
        data = self.folder / "data.jsonl"
        data.write_text("".join(json.dumps({"prompt": str(i), "label": {"plus": i}}) + "\n" for i in range(8)))
        directory = self.folder / "run"
        done = self.run_nibble("train", "configs/ci/tiny-dense.yaml", *settings(
            run__directory=directory, run__steps=2, reward__type="remote", reward__url=self.urls[1], data__train=data,
            eval__data='""'))
        self.assertEqual(done.code, 0, done.err)
        steps, _ = read_metrics(directory)
        self.assertEqual([row["samples_dropped"] for row in steps], [0, 0])
        samples = query(directory, "SELECT reward, response_text FROM samples WHERE reward IS NOT NULL")
        self.assertEqual(len(samples), 32)
        for reward, response in samples:
            plus = reward - len(response.encode())
            self.assertIn(plus, range(8))


if __name__ == "__main__":
    unittest.main()
