"""Serves a Python function as rewards of type `remote`.

    python nibble_reward.py my_scores:score --http-port 8000 --grpc-port 8001

asks `score(response, label)` of my_scores.py for the number of each sample. `response` is a text, `label` what the data
says, any JSON. A job has `reward: { type: remote, url: "http://HOST:8000/" }` or `grpc://HOST:8001`. The function is
called from several threads at once. What it raises: CannotScore is the answer for that sample, which is dropped and
counted; anything else counts as a failure of the server, and the job asks again.
"""

import argparse
import importlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_REQUEST_BYTES = 256 << 20  # 32 responses of at most 4 MiB, and their labels
MAX_SAMPLES = 32


class CannotScore(Exception):
    """Why a sample has no score; asking again would not change it."""


class BadRequest(Exception):
    """Not what a job sends."""


def outcomes(score, samples):
    """[(reward, None) or (None, why)] of [(response, label)]."""
    found = []
    for response, label in samples:
        try:
            found.append((float(score(response, label)), None))
        except CannotScore as error:
            found.append((None, str(error) or "no reason given"))
    return found


def read_request(body):
    """[(response, label)] of a POST."""
    try:
        request = json.loads(body)
        samples = [(sample["response"], sample["label"]) for sample in request["samples"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRequest(f"not a request for scores: {error}") from error
    if len(samples) > MAX_SAMPLES or not all(isinstance(response, str) for response, _ in samples):
        raise BadRequest(f"want at most {MAX_SAMPLES} samples whose responses are texts")
    return samples


def answer_of(found):
    return {"rewards": [{"error": why} if why is not None else reward for reward, why in found]}


class HttpServer:
    """Answers POST of {"samples": [{"response", "label"}]} on any path. Port 0: any free one."""

    def __init__(self, score, host="127.0.0.1", port=0):
        class Handler(BaseHTTPRequestHandler):
            timeout = 60

            def do_POST(self):
                try:
                    size = int(self.headers.get("Content-Length", ""))
                    if not 0 <= size <= MAX_REQUEST_BYTES:
                        raise BadRequest(f"{size} bytes, at most {MAX_REQUEST_BYTES}")
                    found = outcomes(score, read_request(self.rfile.read(size)))
                    self.answer(200, json.dumps(answer_of(found), allow_nan=False))
                except (BadRequest, TypeError) as error:
                    self.answer(400, str(error))
                except Exception as error:  # the function's own: the job asks again
                    print(f"score: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    self.answer(500, f"{type(error).__name__}: {error}")

            def answer(self, status, text):
                body = text.encode(errors="replace")
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class GrpcServer:
    """Answers nibble.reward.Reward.Score (proto/reward.proto). Needs python/requirements.txt and the module that
    protoc makes of the file: python -m grpc_tools.protoc -Iproto --python_out=python --grpc_python_out=python
    reward.proto"""

    def __init__(self, score, host="127.0.0.1", port=0, threads=8):
        import grpc
        import reward_pb2
        import reward_pb2_grpc

        class Servicer(reward_pb2_grpc.RewardServicer):
            def Score(self, request, context):  # noqa: N802, the protocol's name
                try:
                    samples = [(sample.response, json.loads(sample.label_json)) for sample in request.samples]
                except (ValueError, RecursionError) as error:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a label is no JSON: {error}")
                try:
                    found = outcomes(score, samples)
                except Exception as error:  # the function's own: the job asks again
                    print(f"score: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
                return reward_pb2.ScoreResponse(scores=[
                    reward_pb2.SampleScore(error=why) if why is not None else reward_pb2.SampleScore(reward=reward)
                    for reward, why in found])

        options = [("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(threads), options=options)
        reward_pb2_grpc.add_RewardServicer_to_server(Servicer(), self._server)
        self.port = self._server.add_insecure_port(f"{host}:{port}")
        self._server.start()

    def stop(self):
        self._server.stop(grace=1).wait()


def load_function(name):
    """The function "module:function" of a module here, or on the path."""
    module, separator, function = name.partition(":")
    if not separator:
        raise SystemExit(f"'{name}' is not MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"{name}: {error}") from error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function", help="MODULE:FUNCTION, called as function(response, label)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others than loopback are open to all")
    parser.add_argument("--http-port", type=int, help="0: any free one")
    parser.add_argument("--grpc-port", type=int, help="0: any free one")
    args = parser.parse_args()
    if args.http_port is None and args.grpc_port is None:
        parser.error("want --http-port, --grpc-port or both")
    score = load_function(args.function)
    servers = []
    if args.http_port is not None:
        servers.append(HttpServer(score, args.host, args.http_port))
        print(f"rewards at http://{args.host}:{servers[-1].port}/", flush=True)
    if args.grpc_port is not None:
        servers.append(GrpcServer(score, args.host, args.grpc_port))
        print(f"rewards at grpc://{args.host}:{servers[-1].port}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    # Modules that import CannotScore mean this one.
    sys.modules["nibble_reward"] = sys.modules["__main__"]
    main()
