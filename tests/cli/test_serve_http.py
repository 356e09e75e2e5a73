"""nibble serve below the API: what clients send that is no request, too large, or too slow."""

import json
import random
import socket
import unittest

from nibble_cli import MODELS
from serve_client import WAIT_S, Server, post_bytes, read_all

MODEL = MODELS / "dense_tied/bf16"
COMPLETIONS = "/v1/completions"
BODY = json.dumps({"prompt": [5, 6, 7], "max_tokens": 2, "temperature": 0}).encode()


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


def chunked(pieces, path=COMPLETIONS):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Http(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(MODEL, "--max-body-mb", 1, "--max-connections", 40)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def setUp(self):
        # Connections of the test before are gone.
        self.server.wait_for_metric("nibble_connections", lambda count: count <= 1)

    def open(self):
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT_S)

    def expect_healthy(self):
        self.assertEqual(self.server.request("GET", "/health")[0], 200)

    def exchange(self, data):
        """What comes back without the client closing first."""
        with self.open() as connection:
            connection.sendall(data)
            return read_all(connection)

    def test_malformed_requests_get_400(self):
        for data in (b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n"
                     b"\r\n", b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
                     b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
            answer = self.exchange(data)
            self.assertEqual(status_of(answer), 400, (data, answer))
            self.assertIn(b'"error"', answer)
        self.expect_healthy()

    def test_what_is_not_certain_to_be_a_body_is_not_the_next_request(self):
        smuggled = b"POST /pause HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        for header, status in ((b"Transfer-Encoding: gzip", 400), (b"Transfer-Encoding: chunked, gzip", 400),
                               (b"Content-Encoding: gzip", 415), (b"Expect: luck", 417)):
            answer = self.exchange(b"GET /health HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n" + smuggled)
            self.assertEqual(status_of(answer), status, (header, answer))
            self.assertEqual(answer.count(b"HTTP/1.1 "), 1, "one answer, then the end")
            self.assertIn("false", self.server.request("GET", "/is_paused")[2])
        self.expect_healthy()

    def test_truncated_requests_are_dropped(self):
        whole = post_bytes(COMPLETIONS, BODY)
        for length in range(0, len(whole), 7):
            answer = self.server.raw(whole[:length])
            self.assertNotEqual(status_of(answer), 200)
        self.expect_healthy()

    def test_heads_and_bodies_are_bounded(self):
        giant = b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 100000 + b"\r\n\r\n"
        self.assertEqual(status_of(self.exchange(giant)), 431)
        many = b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 20000 + b"\r\n"
        self.assertEqual(status_of(self.exchange(many)), 431)
        target = b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n"
        self.assertEqual(status_of(self.exchange(target)), 431)
        declared = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"
        self.assertEqual(status_of(self.exchange(declared)), 413)
        sent = post_bytes(COMPLETIONS, b" " * ((1 << 20) + 1))
        self.assertEqual(status_of(self.exchange(sent)), 413)
        pieces = [b" " * 65536] * 17
        self.assertEqual(status_of(self.exchange(chunked(pieces))), 413)
        huge = (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"FFFFFFFFFFFFFFF\r\nx")
        self.assertIn(status_of(self.exchange(huge)), (400, 413))
        self.expect_healthy()

    def test_a_chunked_request_is_one_like_others(self):
        pieces = [BODY[:5], BODY[5:6], BODY[6:]]
        with self.open() as connection:
            connection.sendall(chunked(pieces).replace(b"Host: x", b"Connection: close"))
            self.assertEqual(status_of(read_all(connection)), 200)

    def test_an_expected_continue_comes(self):
        with self.open() as connection:
            whole = post_bytes(COMPLETIONS, BODY, "Expect: 100-continue\r\nConnection: close\r\n")
            connection.sendall(whole[:-len(BODY)])
            self.assertEqual(connection.recv(1 << 16), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(BODY)
            self.assertEqual(status_of(read_all(connection)), 200)

    def test_requests_of_one_connection_are_answered_in_order(self):
        with self.open() as connection:
            connection.sendall(post_bytes(COMPLETIONS, BODY) + post_bytes("/nowhere", BODY) +
                               b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
            answer = read_all(connection)
        # The body of what is refused by its head is not read: the connection ends there.
        statuses = [int(part[:3]) for part in answer.decode().split("HTTP/1.1 ")[1:]]
        self.assertEqual(statuses, [200, 404])
        connection = self.server.open()
        for _ in range(3):
            connection.request("POST", COMPLETIONS, body=BODY)
            self.assertEqual(json.load(connection.getresponse())["usage"]["completion_tokens"], 2)
        connection.close()

    def test_an_old_client_gets_a_stream_without_chunks(self):
        body = json.dumps({"prompt": [5], "max_tokens": 2, "stream": True}).encode()
        answer = self.exchange(post_bytes(COMPLETIONS, body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, text = answer.partition(b"\r\n\r\n")
        self.assertNotIn(b"chunked", head)
        self.assertTrue(text.startswith(b"data: ") and text.endswith(b"data: [DONE]\n\n"))

    def test_a_slow_client_gets_408_and_others_are_served_meanwhile(self):
        with self.open() as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
            self.expect_healthy()
            self.assertEqual(status_of(read_all(slow)), 408)

    def test_too_many_connections_are_turned_away(self):
        held = [self.open() for _ in range(40)]
        try:
            self.assertEqual(status_of(self.exchange(b"")), 503)
        finally:
            for connection in held:
                connection.close()
        self.server.wait_for_metric("nibble_connections", lambda count: count <= 1)

    def test_random_bytes_and_mangled_requests_do_no_harm(self):
        dice = random.Random(7)
        seeds = [post_bytes(COMPLETIONS, BODY), chunked([BODY[:9], BODY[9:]]),
                 post_bytes("/v1/chat/completions", b'{"messages":[{"role":"user","content":"a"}]}'),
                 post_bytes("/generate", b'{"input_ids":[1,2],"sampling_params":{"n":2}}'),
                 b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"]
        for case in range(400):
            if case % 8 == 0:
                data = dice.randbytes(dice.randrange(1, 2000))
            else:
                data = bytearray(dice.choice(seeds))
                for _ in range(dice.randrange(1, 8)):
                    at = dice.randrange(len(data))
                    kind = dice.randrange(4)
                    if kind == 0:
                        data[at] = dice.randrange(256)
                    elif kind == 1:
                        del data[at:at + dice.randrange(1, 20)]
                    elif kind == 2:
                        data[at:at] = dice.randbytes(dice.randrange(1, 9))
                    else:
                        data[at:at] = data[:dice.randrange(1, 60)]
                    data = data or bytearray(b"x")
            answer = self.server.raw(bytes(data))
            if answer:
                self.assertIn(status_of(answer), (100, 200, 400, 404, 405, 413, 431), data)
        self.expect_healthy()
        self.server.post(COMPLETIONS, {"prompt": [5]})
        self.server.wait_for_metric("nibble_samples_open", lambda open_: open_ == 0)


if __name__ == "__main__":
    unittest.main()
