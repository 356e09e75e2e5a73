"""Follows a Nibble job from somebody else's inference server.

Each published version arrives as NumPy arrays in compressed-tensors words, checked against the
hashes that the trainers reported. README.md says how to set it up;
docs/weight_sync_protocol.md, "External engines", is the protocol.
"""

import json
import os
import re
import socket
import time

import grpc
import nibble_pb2 as messages
import nibble_pb2_grpc as services
import numpy as np

TENSOR_LINE = re.compile(r"^tensor (\S+)=(u32|bf16 scale|bf16) \[(\d+), (\d+)\]$", re.MULTILINE)
LIMITS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]


class BadWeights(Exception):
    """What arrived is not what the trainers sent; the version before is still good."""


def mix64(x):
    """splitmix64's finalizer, on uint64 with wraparound."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def content_hash(values, first=0):
    """(low, high), uint64 [2], of unsigned `values` that begin at element `first` of their tensor."""
    position = np.arange(first, first + len(values), dtype=np.uint64)
    seed = mix64(position + np.uint64(0x9E3779B97F4A7C15)) ^ values.astype(np.uint64)
    halves = mix64(seed), mix64(seed + np.uint64(0x632BE59BD9B4E019))
    return np.array([half.sum(dtype=np.uint64) for half in halves])


def text_digest(text):
    """16 bytes that stand for a manifest's text: its length in two words, then its bytes."""
    data = text.encode()
    words = [len(data) & 0xFFFFFFFF, len(data) >> 32, *data]
    return content_hash(np.array(words, dtype=np.uint32)).astype("<u8").tobytes()


class Version:
    """One version: `tensors` by name (int32 words, int64 shapes, BF16 bits as uint16), `config`."""

    def __init__(self, header):
        self.version, self.job = header.version, header.job
        form = re.match(r"format=1\nbits=\d+\ngroup_size=(\d+)\n", header.manifest_text)
        try:
            self._group, self.config = int(form[1]), json.loads(header.config_json)
        except (TypeError, ValueError) as error:
            raise BadWeights(f"version {self.version}: a format of another time") from error
        self._layout = [(name, "<u4" if kind == "u32" else "<u2", int(rows), int(columns))
                        for name, kind, rows, columns in TENSOR_LINE.findall(header.manifest_text)]
        self._flat = [np.empty(rows * columns, kind) for _, kind, rows, columns in self._layout]
        self._filled = [0] * len(self._flat)  # bytes
        self._hashes = np.zeros((len(self._flat), 2), np.uint64)
        self._sent = np.array([[h.low, h.high] for h in header.tensor_hashes], np.uint64)
        if (text_digest(header.manifest_text) != header.manifest_digest
                or sum(flat.nbytes for flat in self._flat) != header.bytes
                or self._sent.shape != self._hashes.shape):
            raise BadWeights(f"version {self.version}: header and manifest contradict each other")

    def add(self, chunk):
        """Takes the next bytes of a tensor and adds to its hash."""
        t = chunk.tensor
        if (t not in range(len(self._flat)) or chunk.offset != self._filled[t]
                or chunk.offset + len(chunk.data) > self._flat[t].nbytes
                or len(chunk.data) % self._flat[t].itemsize != 0):
            raise BadWeights(f"version {self.version}: bytes that no tensor has, or out of order")
        flat = self._flat[t]
        values, first = np.frombuffer(chunk.data, flat.dtype), chunk.offset // flat.itemsize
        flat[first:first + len(values)] = values
        self._hashes[t] += content_hash(values, first)
        self._filled[t] += len(chunk.data)

    def finish(self):
        """Checks that every byte came and is the one that was sent, and gives the arrays shapes."""
        self.tensors = {}
        for t, (name, kind, rows, columns) in enumerate(self._layout):
            if self._filled[t] != self._flat[t].nbytes:
                raise BadWeights(f"version {self.version}: {name} has {self._filled[t]} bytes")
            if (self._hashes[t] != self._sent[t]).any():
                raise BadWeights(f"version {self.version}: {name} is not what was sent")
            shape = (rows, columns) if rows > 1 or kind == "<u4" else (columns,)  # norms: vectors
            self.tensors[name] = self._flat[t].view("<i4" if kind == "<u4" else kind).reshape(shape)
        for name in [name for name in self.tensors if name.endswith(".weight_scale")]:
            rows, groups = self.tensors[name].reshape(len(self.tensors[name]), -1).shape
            shape = np.array([rows, groups * self._group], np.int64)
            self.tensors[name.removesuffix("scale") + "shape"] = shape
        return self


class Follower:
    """Follows the job of the coordinator at `address` as engine `name`. One thread."""

    def __init__(self, address, name, pull_seconds=600.0):
        self._coordinator = services.CoordinatorStub(grpc.insecure_channel(address, LIMITS))
        self._name, self._pull_seconds, self._renew_at = name, pull_seconds, 0.0
        self.job, self.version = None, 0  # whose weights, and which, are served
        self.failure = ""  # why nothing newer is

    def follow(self):
        """Says what is served and hears what is committed; renews the lease."""
        answer = self._coordinator.Follow(messages.FollowRequest(
            name=self._name, host=socket.gethostname(), pid=os.getpid(),
            served_version=self.version, last_failure=self.failure), timeout=5.0)
        self._renew_at = time.monotonic() + answer.lease_ms / 4000.0
        self.job = self.job or answer.job
        if answer.job != self.job:
            raise BadWeights(f"job {answer.job} is there now, not {self.job}: start anew for it")
        return answer

    def parts(self, source):
        """What the engine at `source` sends of a version newer than ours; renews the lease meanwhile."""
        with grpc.insecure_channel(source, LIMITS) as channel:
            for part in services.RolloutStub(channel).ReadWeights(
                    messages.ReadWeightsRequest(newer_than=self.version),
                    timeout=self._pull_seconds):
                if time.monotonic() > self._renew_at:
                    self._renew()
                yield part

    def _renew(self):
        self._renew_at = time.monotonic() + 1.0  # if this fails
        try:
            self.follow()
        except grpc.RpcError:
            pass  # the engine goes on sending; the next step says what is wrong

    def pull(self, source):
        """A whole, checked version. Raises BadWeights or grpc.RpcError; nothing has changed then."""
        parts = self.parts(source)
        first = next(parts, messages.WeightPart())
        if not first.HasField("header") or first.header.job != self.job or (
                first.header.version <= self.version):
            raise BadWeights(f"the engine at {source} has no version of {self.job} for us")
        version = Version(first.header)
        for part in parts:
            version.add(part.chunk)
        return version.finish()

    def step(self, serve):
        """Asks once; passes a new version to `serve` if there is one. False: the job is over."""
        answer = self.follow()
        for source in answer.sources if answer.version > self.version else ():
            try:
                version = self.pull(source)
            except (BadWeights, grpc.RpcError) as error:
                self.failure = error.details() if isinstance(error, grpc.RpcError) else str(error)
                continue
            serve(version)  # from here on the old one may go
            self.version, self.failure = version.version, ""
            self.follow()
            break
        return not answer.stop
