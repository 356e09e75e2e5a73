"""An HTTP server of rewards, as `reward.type: remote` asks it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def length(sample):
    return len(sample["response"]) if sample["response"] != "refuse" else {"error": "refused"}


class RewardServer:
    """Answers on a free port of the loopback while it is entered. `score` makes a number or
    {"error": why} of a sample; `samples` are those that were asked for."""

    def __init__(self, score=length):
        self.samples = []
        answer = self._answer(score)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = answer(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/score"

    def _answer(self, score):
        def answer(body):
            samples = json.loads(body)["samples"]
            self.samples += samples
            return json.dumps({"rewards": [score(sample) for sample in samples]}).encode()
        return answer

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
