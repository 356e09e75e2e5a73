"""Starts `nibble serve` as a process and talks to it, with Python's own library only."""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

from nibble_cli import BINARY

WAIT_S = 60


class Server:
    """A running server on a port of its own choice. Use as a context manager."""

    def __init__(self, model, *flags, env=None):
        command = [BINARY, "serve", "--model", str(model), "--port", "0", "--json", *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, encoding="utf-8",
                                        env={**os.environ, **(env or {})})
        self.log = []
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.reader.start()
        self.port = self._event("listening")["port"]
        self._event("ready")

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def _event(self, name):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(WAIT_S)
            raise AssertionError("the server ended: " + "".join(self.log))
        event = json.loads(line)
        assert event["event"] == name, event
        return event

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        self.reader.join(WAIT_S)
        self.process.stdout.close()
        self.process.stderr.close()

    def stop(self, number=signal.SIGTERM):
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def open(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body as text of one request on a new connection."""
        connection = self.open()
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode("utf-8")
        finally:
            connection.close()

    def post(self, path, fields):
        """The JSON of an answer that must be 200."""
        status, _, text = self.request("POST", path, json.dumps(fields))
        assert status == 200, (status, text)
        return json.loads(text)

    def refusal(self, path, fields):
        """Status and error object of a request that must be refused."""
        body = fields if isinstance(fields, (str, bytes)) else json.dumps(fields)
        status, _, text = self.request("POST", path, body)
        assert status >= 400, (status, text)
        return status, json.loads(text)["error"]

    def events(self, path, fields):
        """The JSON of every event of a stream, which must end with [DONE]."""
        status, headers, text = self.request("POST", path, json.dumps({**fields, "stream": True}))
        assert status == 200, (status, text)
        assert headers["Content-Type"].startswith("text/event-stream"), headers
        assert text.endswith("data: [DONE]\n\n"), text[-200:]
        lines = text.split("\n\n")[:-2]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines), text
        return [json.loads(line[len("data: "):]) for line in lines]

    def metrics(self):
        """name{labels} -> value; nothing while the server takes no more connections."""
        status, _, text = self.request("GET", "/metrics")
        if status != 200:
            return {}
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def wait_for_metric(self, name, is_right):
        """Waits until a metric is what it should become; fails if it does not."""
        deadline = time.monotonic() + WAIT_S
        while not (metrics := self.metrics()) or not is_right(metrics.get(name, 0)):
            assert time.monotonic() < deadline, f"{name} stayed {metrics.get(name)}"
            time.sleep(0.02)

    def raw(self, data, wait_s=WAIT_S):
        """What the server sends back to these bytes until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return read_all(connection)
            except (BrokenPipeError, ConnectionResetError):
                return b""


def read_all(connection):
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def post_bytes(path, body, extra=""):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def joined_text(events):
    """Texts of a stream's answers by index, and their reasons."""
    texts, reasons = {}, {}
    for event in events:
        for choice in event["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    return texts, reasons
