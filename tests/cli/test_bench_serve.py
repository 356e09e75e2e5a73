"""`nibble bench serve`: what it counts, against servers that answer and servers that do not. No times are asserted."""

import http.server
import json
import math
import threading
import unittest

from nibble_cli import MODELS, CliTestCase, nibble
from serve_client import Server

MODEL = MODELS / "dense_tied/bf16"
FLAGS = ["--concurrency", 4, "--requests", 10, "--prompt-tokens", 5, "--new-tokens", 6,
         "--max-new-tokens", 20, "--seed", 3, "--json"]
TIMES = [f"{name}_p{q}" for name in ("ttft_ms", "tpot_ms", "latency_ms") for q in (50, 95, 99)]
MASK = (1 << 64) - 1


def lengths(count, median, sigma, longest, seed):
    """Log-normal lengths by their definition: SplitMix64, then Box and Muller."""
    state, out = seed, []

    def uniform():
        nonlocal state
        state = (state + 0x9e3779b97f4a7c15) & MASK
        x = state
        x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & MASK
        x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & MASK
        return ((x ^ (x >> 31)) >> 11) * 2.0 ** -53

    for _ in range(count):
        radius = math.sqrt(-2.0 * math.log(1.0 - uniform()))
        z = radius * math.cos(2.0 * math.pi * uniform())
        out.append(min(longest, max(1, math.floor(median * math.exp(sigma * z) + 0.5))))
    return out


class FakeServer:
    """Answers completions with as many tokens as `answer` says; None: with 429."""

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status, body, kind="application/json"):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                models = {"data": [{"id": "fake"}]}
                is_models = self.path == "/v1/models"
                self.reply(200 if is_models else 404, json.dumps(models).encode())

            def do_POST(self):
                fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                tokens = answer(fields)
                if tokens is None:
                    return self.reply(429, b"too busy")
                choice = {"index": 0, "text": "a", "finish_reason": "length"}
                usage = {"completion_tokens": tokens}
                if not fields.get("stream"):
                    return self.reply(200, json.dumps({"choices": [choice], "usage": usage}).encode())
                events = [{"choices": [choice]}, {"choices": [], "usage": usage}]
                body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
                self.reply(200, (body + "data: [DONE]\n\n").encode(), "text/event-stream")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class BenchServe(CliTestCase):
    def expect_sound(self, line):
        self.assertEqual((line["bench"], line["concurrency"], line["requests"]), ("serve", 4, 10))
        self.assertEqual(line["failed"], 0)
        self.assertEqual(line["generated_tokens"], sum(lengths(10, 6, 1.0, 20, 3)))
        self.assertGreater(line["tokens_per_s"], 0)
        for name in TIMES:
            self.assertGreaterEqual(line[name], 0)
        for name in ("ttft_ms", "tpot_ms", "latency_ms"):
            self.assertLessEqual(line[f"{name}_p50"], line[f"{name}_p95"])
            self.assertLessEqual(line[f"{name}_p95"], line[f"{name}_p99"])
        self.assertGreaterEqual(line["latency_ms_p99"], line["ttft_ms_p50"])

    def test_its_own_server_answers_all_with_the_asked_for_lengths(self):
        out = self.succeed("bench", "serve", "--model", MODEL, *FLAGS)
        self.assertEqual(out.count("\n"), 1)
        line = json.loads(out)
        self.expect_sound(line)
        self.assertEqual((line["greedy_check"], line["device"], line["kv_slots"]),
                         ("engine", "cpu", 16384))
        self.assertEqual(line["preemptions"], 0)
        self.assertGreater(line["peak_rss_mib"], 0)
        self.assertLess(line["rss_growth_mib"], line["peak_rss_mib"])
        self.assertIn("rss_growth_late_mib", line)
        text = self.succeed("bench", "serve", "--model", MODEL, *FLAGS[:-1])
        for part in ("10 requests over 4 connections, 0 failed", "ms to first token", "memory"):
            self.assertIn(part, text)

    def test_answers_are_whole_when_the_cache_is_too_small_for_all(self):
        line = json.loads(self.succeed(
            "bench", "serve", "--model", MODEL, "--kv-tokens", 64, "--concurrency", 8, "--requests", 40,
            "--prompt-tokens", 5, "--new-tokens", 30, "--max-new-tokens", 50, "--json"))
        self.assertEqual((line["failed"], line["kv_slots"]), (0, 64))
        self.assertEqual(line["generated_tokens"], sum(lengths(40, 30, 1.0, 50, 1)))
        # Four blocks of 16 tokens, of which a sequence may want four.
        self.assertGreater(line["preemptions"], 0)

    def test_a_server_at_a_url_is_measured_as_it_runs(self):
        with Server(MODEL, "--api-key-env", "NIBBLE_TEST_KEY", env={"NIBBLE_TEST_KEY": "s"}) as server:
            url = f"http://127.0.0.1:{server.port}"
            flags = ["--url", url, "--api-key-env", "NIBBLE_TEST_KEY", *FLAGS]
            out = self.succeed("bench", "serve", *flags, env={"NIBBLE_TEST_KEY": "s"})
            line = json.loads(out)
            self.expect_sound(line)
            self.assertEqual((line["greedy_check"], line["url"], line["model"], line["device"]),
                             ("whole_answer", url, "bf16", None))
            self.assertEqual((line["peak_rss_mib"], line["kv_slots"]), (None, 16384))
            self.assertEqual(line["preemptions"], 0)
            again = self.succeed("bench", "serve", "--model", MODEL, *flags,
                                 env={"NIBBLE_TEST_KEY": "s"})
            self.assertEqual(json.loads(again)["greedy_check"], "engine")
            _, _, text = server.request("GET", "/metrics", headers={"Authorization": "Bearer s"})
            # Twice the load and its warm-up, three greedy answers, one of them in one piece.
            self.assertIn('{path="/v1/completions",outcome="ok"} 31', text)

    def test_an_answer_that_is_not_the_engines_ends_the_run(self):
        with Server(MODELS / "dense_untied/bf16") as server:
            code, out, err = nibble("bench", "serve", "--url", f"http://127.0.0.1:{server.port}",
                                    "--model", MODEL, *FLAGS)
        self.assertEqual((code, out), (1, ""), err)
        self.assertIn("the engine says", err)

    def test_a_wrong_number_of_tokens_ends_the_run(self):
        for is_wrong, says in ((lambda fields: True, "the greedy answer has"),
                               (lambda fields: fields["seed"] == 7, "answer 6 has")):
            def answer(fields, is_wrong=is_wrong):
                return fields["max_tokens"] - (1 if is_wrong(fields) else 0)
            with FakeServer(answer) as fake:
                code, out, err = nibble("bench", "serve", "--url", fake.url, *FLAGS)
            self.assertEqual((code, out), (1, ""), err)
            self.assertIn(says, err)

    def test_requests_that_fail_are_counted_and_the_first_is_named(self):
        with FakeServer(lambda fields: None if 3 <= fields["seed"] <= 5 else fields["max_tokens"]) as fake:
            code, out, err = nibble("bench", "serve", "--url", fake.url, *FLAGS)
        self.assertEqual(code, 1)
        line = json.loads(out)
        self.assertEqual(line["failed"], 3)
        kept = lengths(10, 6, 1.0, 20, 3)
        self.assertEqual(line["generated_tokens"], sum(kept[:2] + kept[5:]))
        self.assertEqual((line["kv_slots"], line["preemptions"]), (None, None))
        self.assertIn("3 of 10 requests failed; the first one: status 429: too busy", err)

    def test_what_makes_no_sense_is_refused(self):
        for flags, says in ((("--concurrency", 0), "--concurrency"), (("--requests", 0), "--requests"),
                            (("--new-tokens", 600), "--new-tokens"),
                            (("--length-sigma", -1), "--length-sigma"),
                            (("--max-new-tokens", 1 << 19), "--max-new-tokens"),
                            (("--tokenizer", self.folder), "tokenizer.json")):
            with self.subTest(flags):
                self.refuse("bench", "serve", "--model", MODEL, *flags, says=[says])
        self.refuse("bench", "serve", says=["--model", "--url"])
        for url in ("localhost:8000", "http://", "http://a:b", "http://a:70000", "https://a:1"):
            self.refuse("bench", "serve", "--url", url, says=["--url", "http://HOST:PORT"])
        self.refuse("bench", "serve", "--url", "http://127.0.0.1:1", "--kv-tokens", 9,
                    says=["--kv-tokens"])
        self.refuse("bench", "serve", "--model", MODELS / "dense_tied/int4_sym7",
                    says=["tokenizer.json"])
        self.refuse("bench", "serve", "--url", "http://127.0.0.1:1", says=["127.0.0.1:1"], code=1)


if __name__ == "__main__":
    unittest.main()
