"""nibble serve: answers against `nibble generate` and `nibble logprobs`, and the API's promises."""

import json
import signal
import threading
import unittest

from nibble_cli import MODELS, CliTestCase
from serve_client import Server, joined_text

MODEL = MODELS / "dense_tied/bf16"
COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"
PROMPT = [5, 6, 7]
HELLO = [{"role": "user", "content": "value 1 plus"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


class ServeTestCase(CliTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(MODEL, "--max-running", 16)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def generated(self, rows, *flags, model=MODEL):
        text = self.succeed("generate", "--model", model, *flags,
                            stdin="".join(json.dumps(row) + "\n" for row in rows))
        return [json.loads(line) for line in text.splitlines()]

    def plain_log_probs(self, ids, model=MODEL):
        text = self.succeed("logprobs", "--path", "rollout", "--model", model,
                            stdin=json.dumps({"input_ids": ids}) + "\n")
        return json.loads(text)["logprobs"]


class Answers(ServeTestCase):
    def test_greedy_completions_are_those_of_generate(self):
        rows = [{"prompt": "value 1 plus"}, {"input_ids": PROMPT}]
        want = self.generated(rows, "--temperature", 0, "--max-new-tokens", 12)
        for prompt, answer in zip(("value 1 plus", PROMPT), want):
            got = self.server.post(COMPLETIONS, {"prompt": prompt, "temperature": 0,
                                                 "max_tokens": 12})
            self.assertEqual(got["choices"][0]["text"], answer["text"])
            self.assertEqual(got["choices"][0]["finish_reason"], answer["finish_reason"])
            self.assertEqual(got["usage"]["completion_tokens"], len(answer["output_ids"]))

    def test_a_greedy_chat_is_that_of_generate(self):
        want = self.generated([{"messages": HELLO}], "--temperature", 0, "--max-new-tokens", 12)[0]
        fields = {"messages": HELLO, "temperature": 0, "max_completion_tokens": 12}
        got = self.server.post(CHAT, fields)
        self.assertEqual(got["choices"][0]["message"],
                         {"role": "assistant", "content": want["text"]})
        parts = [{"role": "user", "content": [{"type": "text", "text": "value 1"},
                                              {"type": "text", "text": " plus"}]}]
        again = self.server.post(CHAT, {**fields, "messages": parts})
        self.assertEqual(again["choices"][0]["message"], got["choices"][0]["message"])

    def test_seeded_samples_of_several_prompts_are_those_of_generate(self):
        prompts = [PROMPT, [300], [9] * 40]
        want = self.generated([{"input_ids": ids} for ids in prompts], "--samples", 2,
                              "--max-new-tokens", 9, "--seed", 11, "--temperature", 0.8,
                              "--top-k", 50, "--top-p", 0.9)
        fields = {"prompt": prompts, "n": 2, "max_tokens": 9, "seed": 11, "temperature": 0.8,
                  "top_k": 50, "top_p": 0.9}
        got = self.server.post(COMPLETIONS, fields)
        self.assertEqual([choice["index"] for choice in got["choices"]], list(range(6)))
        self.assertEqual([choice["text"] for choice in got["choices"]],
                         [answer["text"] for answer in want])
        self.assertEqual(got["usage"]["prompt_tokens"], sum(map(len, prompts)))
        self.assertEqual(got["choices"], self.server.post(COMPLETIONS, fields)["choices"])
        other = self.server.post(COMPLETIONS, {**fields, "seed": 12})
        self.assertNotEqual(got["choices"], other["choices"])

    def test_without_a_seed_answers_differ(self):
        fields = {"prompt": PROMPT, "max_tokens": 24}
        texts = {self.server.post(COMPLETIONS, fields)["choices"][0]["text"] for _ in range(4)}
        self.assertEqual(len(texts), 4)

    def test_a_stop_string_is_cut_from_the_text(self):
        base = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24}
        whole = self.server.post(COMPLETIONS, base)["choices"][0]["text"]
        for begin in range(1, 6):
            stop = whole[begin:begin + 2]
            want = whole[:whole.index(stop)]
            for form in (stop, ["never seen", stop]):
                got = self.server.post(COMPLETIONS, {**base, "stop": form})
                self.assertEqual(got["choices"][0]["text"], want)
                self.assertEqual(got["choices"][0]["finish_reason"], "stop")
                texts, reasons = joined_text(self.server.events(COMPLETIONS, {**base, "stop": form}))
                self.assertEqual((texts[0], reasons[0]), (want, "stop"))

    def test_a_stream_gives_what_an_answer_gives(self):
        for path, prompt in ((COMPLETIONS, {"prompt": ["value", "plus 1"]}),
                             (CHAT, {"messages": HELLO})):
            with self.subTest(path):
                fields = {**prompt, "n": 3, "seed": 4, "max_tokens": 30}
                whole = self.server.post(path, fields)
                events = self.server.events(
                    path, {**fields, "stream_options": {"include_usage": True}})
                texts, reasons = joined_text(events)
                for choice in whole["choices"]:
                    text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
                    self.assertEqual(texts[choice["index"]], text)
                    self.assertEqual(reasons[choice["index"]], choice["finish_reason"])
                self.assertEqual(events[-1]["choices"], [])
                self.assertEqual(events[-1]["usage"]["total_tokens"],
                                 whole["usage"]["total_tokens"])
                self.assertTrue(all(event["usage"] is None for event in events[:-1]))
                self.assertEqual(len({event["id"] for event in events}), 1)

    def test_a_chat_stream_begins_with_the_role(self):
        events = self.server.events(CHAT, {"messages": HELLO, "max_tokens": 3})
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertTrue(all("role" not in event["choices"][0]["delta"] for event in events[1:]))
        self.assertEqual(events[0]["object"], "chat.completion.chunk")

    def test_log_probabilities_are_those_of_logprobs(self):
        drawn = self.server.post(GENERATE, {"input_ids": PROMPT, "sampling_params": {
            "temperature": 0.7, "seed": 3, "max_new_tokens": 10}})["answers"][0]
        want = self.plain_log_probs(PROMPT + drawn["output_ids"])[len(PROMPT) - 1:]
        self.assertEqual(drawn["plain_logprobs"], want)
        self.assertNotEqual(drawn["logprobs"], want)
        fields = {"temperature": 0.7, "seed": 3, "max_tokens": 10}
        plain = self.server.post(COMPLETIONS, {**fields, "prompt": PROMPT, "logprobs": 2})
        log_probs = plain["choices"][0]["logprobs"]
        self.assertEqual(log_probs["token_logprobs"], want)
        for token, value, top in zip(log_probs["tokens"], want, log_probs["top_logprobs"]):
            self.assertEqual(top[token], value)
            self.assertIn(len(top), (2, 3))
        chat = {**fields, "messages": HELLO, "logprobs": True, "top_logprobs": 3}
        content = self.server.post(CHAT, chat)["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 10)
        for entry in content:
            self.assertEqual(len(entry["top_logprobs"]), 3)
            self.assertGreaterEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"])
        streamed = [entry for event in self.server.events(CHAT, chat)
                    if event["choices"][0]["logprobs"]
                    for entry in event["choices"][0]["logprobs"]["content"]]
        self.assertEqual(streamed, content)

    def test_echoed_prompts_have_their_own_log_probabilities(self):
        prompts = [PROMPT, list(range(20, 290)), [300]]
        got = self.server.post(COMPLETIONS, {"prompt": prompts, "echo": True, "max_tokens": 1,
                                             "temperature": 0, "logprobs": 1})
        for prompt, choice in zip(prompts, got["choices"]):
            log_probs = choice["logprobs"]
            self.assertEqual(len(log_probs["tokens"]), len(prompt) + 1)
            self.assertIsNone(log_probs["token_logprobs"][0])
            self.assertIsNone(log_probs["top_logprobs"][0])
            self.assertEqual(log_probs["token_logprobs"][1:len(prompt)],
                             self.plain_log_probs(prompt))
            self.assertEqual(log_probs["text_offset"], sorted(log_probs["text_offset"]))
        whole = self.server.post(COMPLETIONS, {"prompt": "value 1 plus", "echo": True,
                                               "max_tokens": 0, "logprobs": 0})
        self.assertEqual(whole["choices"][0]["text"], "value 1 plus")
        self.assertEqual(whole["usage"]["completion_tokens"], 0)
        bare = self.server.post(COMPLETIONS, {"prompt": "value", "echo": True, "max_tokens": 0})
        self.assertEqual(bare["choices"][0]["text"], "value")

    def test_generate_gives_ids_versions_and_routes(self):
        model = MODELS / "moe_mixed/bf16"
        with Server(model) as server:
            fields = {"input_ids": [PROMPT, [1, 2]], "return_routes": True, "top_logprobs": 1,
                      "sampling_params": {"n": 2, "seed": 5, "max_new_tokens": 6}}
            got = server.post(GENERATE, fields)
            want = self.generated([{"input_ids": PROMPT}, {"input_ids": [1, 2]}], "--samples", 2,
                                  "--seed", 5, "--max-new-tokens", 6, model=model)
            self.assertEqual([answer["output_ids"] for answer in got["answers"]],
                             [answer["output_ids"] for answer in want])
            self.assertEqual([answer["logprobs"] for answer in got["answers"]],
                             [answer["logprobs"] for answer in want])
            for i, answer in enumerate(got["answers"]):
                self.assertEqual(answer["versions"], [1] * 6)
                self.assertEqual(answer["routes"]["shape"][0], (3 if i < 2 else 2) + 6 - 1)
                self.assertEqual(len(answer["top_logprobs"]), 6)
            del fields["return_routes"]
            ids = {}
            for event in server.events(GENERATE, fields):
                ids.setdefault(event["index"], []).extend(event["output_ids"])
            self.assertEqual(list(dict(sorted(ids.items())).values()),
                             [answer["output_ids"] for answer in got["answers"]])

    def test_a_model_without_tokenizer_serves_token_ids(self):
        with Server(MODELS / "dense_tied/int4_sym7") as server:
            got = server.post(GENERATE, {"input_ids": PROMPT, "sampling_params": {
                "temperature": 0, "max_new_tokens": 5}})
            want = self.generated([{"input_ids": PROMPT}], "--temperature", 0, "--max-new-tokens",
                                  5, model=MODELS / "dense_tied/int4_sym7")
            self.assertEqual(got["answers"][0]["output_ids"], want[0]["output_ids"])
            status, error = server.refusal(COMPLETIONS, {"prompt": "hi"})
            self.assertEqual(status, 400)
            self.assertIn("/generate", error["message"])

    def test_tools_go_through_the_template(self):
        fields = {"messages": HELLO, "max_tokens": 2}
        plain = self.server.post(CHAT, fields)["usage"]["prompt_tokens"]
        tools = self.server.post(CHAT, {**fields, "tools": [TOOL]})["usage"]["prompt_tokens"]
        self.assertGreater(tools, plain)
        none = self.server.post(CHAT, {**fields, "tools": [TOOL], "tool_choice": "none"})
        self.assertEqual(none["usage"]["prompt_tokens"], plain)
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": "1", "content": "3"}]
        self.server.post(CHAT, {**fields, "messages": turns, "tools": [TOOL]})
        model = self.copy_model()
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        with Server(model) as server:
            status, error = server.refusal(CHAT, {**fields, "tools": [TOOL]})
            self.assertEqual((status, error["param"]), (400, "tools"))

    def test_guessed_tokens_change_no_answer(self):
        fields = {"prompt": [5, 6, 7] * 20, "n": 3, "seed": 1, "max_tokens": 60, "logprobs": 1}
        want = self.server.post(COMPLETIONS, fields)["choices"]
        with Server(MODEL, "--max-draft-tokens", 6) as server:
            self.assertEqual(server.post(COMPLETIONS, fields)["choices"], want)
            texts, _ = joined_text(server.events(COMPLETIONS, fields))
            self.assertEqual([texts[i] for i in range(3)], [choice["text"] for choice in want])
        with Server(MODEL, "--max-draft-tokens", 6, "--draft-model", MODEL) as server:
            self.assertEqual(server.post(COMPLETIONS, fields)["choices"], want)
            self.assertGreater(server.metrics()["nibble_draft_seconds_total"], 0)
        with Server(MODEL, "--max-draft-tokens", 3, "--draft-head", "random") as server:
            self.assertEqual(server.post(COMPLETIONS, fields)["choices"], want)

    def test_many_streams_at_once_do_not_disturb_each_other(self):
        fields = {"prompt": PROMPT, "max_tokens": 40}
        want = {seed: self.server.post(COMPLETIONS, {**fields, "seed": seed})["choices"][0]["text"]
                for seed in range(64)}
        got = {}

        def stream(seed):
            got[seed] = joined_text(self.server.events(COMPLETIONS, {**fields, "seed": seed}))[0][0]

        threads = [threading.Thread(target=stream, args=(seed,)) for seed in want]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(got, want)


class Refusals(ServeTestCase):
    def expect(self, path, fields, param, status=400):
        got, error = self.server.refusal(path, fields)
        self.assertEqual((got, error["param"]), (status, param), error)
        self.assertTrue(error["message"])
        self.assertEqual(error["type"], "invalid_request_error")

    def test_what_is_not_supported_is_named(self):
        for field, value in (("frequency_penalty", 0.5), ("presence_penalty", -1),
                             ("logit_bias", {"5": 1}), ("response_format", {"type": "json_object"}),
                             ("best_of", 3), ("suffix", "x"), ("min_p", 0.1),
                             ("guided_json", {"a": 1}), ("repetition_penalty", 1.1)):
            self.expect(COMPLETIONS, {"prompt": PROMPT, field: value}, field)
        for field, value in (("tool_choice", "required"), ("functions", [TOOL]),
                             ("response_format", {"type": "json_schema"}), ("echo", True),
                             ("modalities", ["audio"])):
            self.expect(CHAT, {"messages": HELLO, field: value}, field)

    def test_what_changes_nothing_is_ignored(self):
        self.server.post(COMPLETIONS, {
            "prompt": PROMPT, "max_tokens": 1, "user": "me", "frequency_penalty": 0, "suffix": None,
            "logit_bias": {}, "best_of": 1, "store": False, "anything": [1], "presence_penalty": 0.0,
            "response_format": {"type": "text"}, "stop": None, "model": "bf16"})

    def test_wrong_values_are_named(self):
        for field, value in (("temperature", -1), ("temperature", "hot"), ("temperature", 1e-5),
                             ("top_p", 0), ("top_p", 1.5), ("top_k", 1.5), ("n", 0),
                             ("n", 100000000000000000000), ("max_tokens", 0), ("max_tokens", "1"),
                             ("logprobs", 21), ("logprobs", True), ("seed", 0.5), ("stop", [1]),
                             ("stop", [""]), ("stop", ["x"] * 65), ("stream", "yes"),
                             ("priority", 2 ** 40), ("stream_options", {}),
                             ("stop_token_ids", [-1]), ("prompt", None), ("prompt", []),
                             ("prompt", ""), ("prompt", {}), ("prompt", [1, "a"]),
                             ("prompt", [[1], []]), ("prompt", [512]), ("prompt", [-1]),
                             ("prompt", [1.5]), ("prompt", [[[1]]]), ("prompt", True)):
            with self.subTest(field, value=value):
                self.expect(COMPLETIONS, {"prompt": PROMPT, field: value}, field)
        self.expect(COMPLETIONS, {"prompt": PROMPT, "model": "gpt"}, "model", status=404)
        for messages in (None, [], "hi", [1], [{"content": "x"}], [{"role": "user"}],
                         [{"role": "user", "content": 3}], [{"role": "bogus", "content": "x"}],
                         [{"role": "user", "content": [{"type": "image_url"}]}]):
            with self.subTest(messages=messages):
                status, error = self.server.refusal(CHAT, {"messages": messages})
                self.assertEqual(status, 400)
                self.assertTrue(error["param"].startswith("messages"), error)
        self.expect(GENERATE, {"input_ids": PROMPT, "sampling_params": {"max_tokens": 1}},
                    "sampling_params.max_tokens")
        self.expect(GENERATE, {"input_ids": PROMPT, "text": "x"}, "text")
        self.expect(GENERATE, {"input_ids": PROMPT, "sampling_params": 3}, "sampling_params")

    def test_what_does_not_fit_is_refused(self):
        self.expect(COMPLETIONS, {"prompt": [1] * 1025}, "prompt")
        self.expect(COMPLETIONS, {"prompt": [1] * 1000, "max_tokens": 26}, "prompt")
        self.server.post(COMPLETIONS, {"prompt": [1] * 1000, "max_tokens": 25})
        self.expect(COMPLETIONS, {"prompt": "x" * 1000000}, "prompt")
        self.expect(COMPLETIONS, {"prompt": PROMPT, "n": 1000}, "n")
        self.expect(COMPLETIONS, {"prompt": ["a"] * 1000}, "prompt")
        self.expect(COMPLETIONS, {"prompt": PROMPT, "n": 60, "max_tokens": 900, "logprobs": 20},
                    "logprobs")

    def test_bodies_that_are_no_json_object(self):
        for body in ("", "{", "[]", "3", "null", '{"a":1,"a":2}', "{\"prompt\": \"\xff\"}".encode(
                "latin-1"), "[" * 100000, '{"prompt":' + "[" * 200 + "]" * 200 + "}", "\0"):
            status, error = self.server.refusal(COMPLETIONS, body)
            self.assertEqual(status, 400, body[:40])
            self.assertEqual(error["type"], "invalid_request_error")

    def test_paths_and_methods(self):
        for method, path, want in (("GET", COMPLETIONS, 405), ("POST", "/health", 405),
                                   ("HEAD", "/health", 200), ("GET", "/", 404),
                                   ("HEAD", COMPLETIONS, 405),
                                   ("POST", "/v1/embeddings", 404), ("DELETE", "/v1/models", 405)):
            status, headers, _ = self.server.request(method, path)
            self.assertEqual(status, want, (method, path))
            self.assertEqual("Allow" in headers, want == 405)
        status, _, text = self.server.request("GET", "/v1/models?x=1")
        self.assertEqual((status, json.loads(text)["data"][0]["id"]), (200, "bf16"))
        status, _, text = self.server.request("GET", "/v1/models/bf16")
        self.assertEqual((status, json.loads(text)["id"]), (200, "bf16"))
        self.assertEqual(self.server.request("GET", "/v1/models/other")[0], 404)


class Operation(CliTestCase):
    def test_a_client_that_goes_away_aborts_its_requests(self):
        with Server(MODEL, "--max-running", 4) as server:
            gone = 'nibble_requests_total{path="/v1/completions",outcome="client_gone"}'
            for number, stream in enumerate((False, True), 1):
                connection = server.open()
                body = json.dumps({"prompt": PROMPT, "max_tokens": 1000, "n": 64, "stream": stream,
                                   "ignore_eos": True})
                connection.request("POST", COMPLETIONS, body=body)
                server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 64)
                connection.sock.close() if stream is False else connection.close()
                connection.close()
                server.wait_for_metric(gone, lambda count, want=number: count == want)
                server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 0)
                server.wait_for_metric("nibble_kv_slots_free", lambda free: free == 16384)
            self.assertLess(server.metrics()["nibble_generated_tokens_total"], 2 * 64 * 1000)

    def test_a_full_queue_says_when_to_come_again(self):
        with Server(MODEL, "--max-running", 1, "--max-queued", 1) as server:
            connection = server.open()
            long = {"prompt": PROMPT, "max_tokens": 1000, "n": 2, "ignore_eos": True, "stream": True}
            connection.request("POST", COMPLETIONS, body=json.dumps(long))
            answer = connection.getresponse()
            answer.readline()
            status, headers, text = server.request("POST", COMPLETIONS,
                                                   json.dumps({"prompt": PROMPT}))
            self.assertEqual(status, 429)
            self.assertEqual(headers["Retry-After"], "1")
            self.assertEqual(json.loads(text)["error"]["code"], "queue_full")
            connection.close()
            server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 0)
            server.post(COMPLETIONS, {"prompt": PROMPT})

    def test_a_request_that_takes_too_long_ends(self):
        with Server(MODEL, "--max-running", 64, "--request-timeout", 1) as server:
            fields = {"prompt": PROMPT, "max_tokens": 1000, "n": 256, "ignore_eos": True}
            status, error = server.refusal(COMPLETIONS, fields)
            self.assertEqual((status, error["type"]), (504, "server_error"))
            server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 0)

    def test_a_signal_lets_open_streams_end(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server(MODEL) as server:
                connection = server.open()
                fields = {"prompt": PROMPT, "max_tokens": 600, "stream": True, "ignore_eos": True}
                connection.request("POST", COMPLETIONS, body=json.dumps(fields))
                answer = connection.getresponse()
                answer.readline()
                self.assertEqual(server.stop(number), 0, server.log)
                self.assertTrue(answer.read().decode().endswith("data: [DONE]\n\n"))
                connection.close()

    def test_a_signal_waits_no_longer_than_it_is_told(self):
        with Server(MODEL, "--shutdown-timeout", 0) as server:
            connection = server.open()
            fields = {"prompt": PROMPT, "max_tokens": 1000, "n": 64, "stream": True,
                      "ignore_eos": True}
            connection.request("POST", COMPLETIONS, body=json.dumps(fields))
            answer = connection.getresponse()
            answer.readline()
            self.assertEqual(server.stop(), 0, server.log)
            text = answer.read().decode()
            self.assertIn('"error"', text.split("\n\n")[-2])
            self.assertNotIn("[DONE]", text)
            connection.close()

    def test_a_paused_server_stands_still_and_goes_on_with_the_same_tokens(self):
        fields = {"prompt": PROMPT, "max_tokens": 800, "seed": 2, "ignore_eos": True}
        with Server(MODEL) as server:
            want = server.post(COMPLETIONS, fields)["choices"][0]["text"]
            drawn = server.metrics()["nibble_generated_tokens_total"]
            connection = server.open()
            connection.request("POST", COMPLETIONS, body=json.dumps({**fields, "stream": True}))
            answer = connection.getresponse()
            begun = answer.readline()
            status, _, text = server.request("POST", "/pause?mode=keep")
            self.assertEqual((status, json.loads(text)), (200, {"status": "paused", "weight_version": 1}))
            self.assertEqual(server.request("POST", "/pause")[0], 200)
            status, _, text = server.request("GET", "/health")
            self.assertEqual((status, json.loads(text)["status"]), (200, "paused"))
            self.assertEqual(json.loads(server.request("GET", "/is_paused")[2]), {"is_paused": True})
            # A further request waits with the one under way.
            waiting = server.open()
            waiting.request("POST", COMPLETIONS, body=json.dumps({"prompt": PROMPT, "max_tokens": 1}))
            server.wait_for_metric("nibble_samples_waiting", lambda waiting: waiting == 1)
            before = server.metrics()
            self.assertEqual(before["nibble_engine_paused"], 1)
            self.assertEqual(before["nibble_samples_running"], 1)
            self.assertEqual(server.metrics()["nibble_kv_slots_free"], before["nibble_kv_slots_free"])
            self.assertEqual(before["nibble_generated_tokens_total"], drawn)
            status, _, text = server.request("POST", "/resume", "{}")
            self.assertEqual((status, json.loads(text)["status"]), (200, "resumed"))
            stream = (begun + answer.read()).decode()
            self.assertTrue(stream.endswith("data: [DONE]\n\n"))
            events = [json.loads(line[6:]) for line in stream.split("\n\n")[:-2]]
            self.assertEqual(joined_text(events)[0][0], want)
            self.assertEqual(waiting.getresponse().status, 200)
            waiting.close()
            connection.close()
            self.assertEqual(json.loads(server.request("GET", "/is_paused")[2]), {"is_paused": False})
            self.assertEqual(json.loads(server.request("GET", "/health")[2])["status"], "ok")

    def test_a_pause_of_another_kind_is_refused(self):
        with Server(MODEL, "--api-key-env", "SERVE_KEY", env={"SERVE_KEY": "secret"}) as server:
            key = {"Authorization": "Bearer secret"}
            for path, body in (("/pause?mode=abort", None), ("/pause?mode=keep&clear_cache=true", None),
                               ("/resume?mode=keep", None), ("/pause", '{"mode": "retract"}')):
                status, _, text = server.request("POST", path, body, key)
                self.assertEqual(status, 400, path)
                self.assertIn("mode=keep", json.loads(text)["error"]["message"])
            self.assertEqual(server.request("GET", "/pause", headers=key)[0], 405)
            for path in ("/pause", "/resume"):
                self.assertEqual(server.request("POST", path)[0], 401)
            self.assertEqual(json.loads(server.request("GET", "/health")[2])["status"], "ok")

    def test_a_signal_ends_a_pause_and_lets_open_requests_end(self):
        with Server(MODEL) as server:
            self.assertEqual(server.request("POST", "/pause")[0], 200)
            connection = server.open()
            connection.request("POST", COMPLETIONS, body=json.dumps({"prompt": PROMPT, "max_tokens": 9}))
            server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 1)
            self.assertEqual(server.stop(), 0, server.log)
            self.assertEqual(json.load(connection.getresponse())["usage"]["completion_tokens"], 9)
            connection.close()

    def test_a_key_is_asked_for(self):
        with Server(MODEL, "--api-key-env", "SERVE_KEY", env={"SERVE_KEY": "secret"}) as server:
            body = json.dumps({"prompt": PROMPT, "max_tokens": 1})
            for header, want in ((None, 401), ("Bearer wrong", 401), ("secret", 401),
                                 ("Bearer secret", 200)):
                headers = {"Authorization": header} if header else {}
                status, _, _ = server.request("POST", COMPLETIONS, body, headers)
                self.assertEqual(status, want, header)
            self.assertEqual(server.request("GET", "/metrics")[0], 401)
            self.assertEqual(server.request("GET", "/health")[0], 200)

    def test_bad_flags_and_models(self):
        for flags, says in ((["--port", 70000], "--port"), (["--max-queued", -1], "--max-queued"),
                            (["--host", "nowhere.example"], "nowhere.example"),
                            (["--api-key-env", "NIBBLE_NO_SUCH_KEY"], "NIBBLE_NO_SUCH_KEY"),
                            (["--device", "tpu"], "--device")):
            self.refuse("serve", "--model", MODEL, *flags, says=[says])
        self.refuse("serve", "--model", self.folder / "none", says=["none"])
        model = self.copy_model()
        (model / "model.safetensors").write_bytes(b"x" * 100)
        code, _, err = self.run_nibble("serve", "--model", model, "--port", 0)
        self.assertEqual(code, 2, err)
        self.assertIn("model.safetensors", err)

    def run_nibble(self, *arguments):
        from nibble_cli import nibble
        return nibble(*arguments)


if __name__ == "__main__":
    unittest.main()
