"""An external engine for test_external_engine.py: python/nibble_client.py with faults to choose.

    following_engine.py ADDRESS NAME OUTPUT [--flip-pulls N...] [--announce-part N]

Keeps every version that it serves as OUTPUT/version-V and says on stdout what it does.
"""

import argparse
import sys
import time
from pathlib import Path

import grpc
from follow_job import save
from nibble_client import BadWeights, Follower

PATIENCE_SECONDS = 20.0


def say(text):
    print(text, flush=True)


class FaultyFollower(Follower):
    """Damages a byte of some pulls, or says that the first one is half way."""

    def __init__(self, address, name, flip_pulls, announce_part):
        super().__init__(address, name, pull_seconds=60.0)
        self._flip_pulls, self._announce_part = flip_pulls, announce_part
        self._num_pulls = 0

    def parts(self, source):
        self._num_pulls += 1
        version = None
        for number, part in enumerate(super().parts(source)):
            if number == 0:
                version = part.header.version
            if number == 1 and self._num_pulls in self._flip_pulls:
                data = bytearray(part.chunk.data)
                data[len(data) // 2] ^= 0x10
                part.chunk.data = bytes(data)
                say(f"flipped a byte of version {version}")
            if number == self._announce_part and self._num_pulls == 1:
                say(f"has part {number} of version {version}")
            yield part

    def pull(self, source):
        try:
            return super().pull(source)
        except BadWeights as error:
            say(f"still serves {self.version}: {error}")
            raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--flip-pulls", type=int, nargs="*", default=[])
    parser.add_argument("--announce-part", type=int, default=-1)
    options = parser.parse_args()
    follower = FaultyFollower(options.address, options.name, options.flip_pulls, options.announce_part)

    def serve(version):
        save(version, options.output / f"version-{version.version}")
        say(f"serves {version.version}")

    answered = time.monotonic()
    while time.monotonic() - answered < PATIENCE_SECONDS:
        try:
            if not follower.step(serve):
                return say("the job is over")
            answered = time.monotonic()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                sys.exit(f"{error.code().name}: {error.details()}")
        time.sleep(0.02)
    sys.exit("the coordinator does not answer")


if __name__ == "__main__":
    main()
