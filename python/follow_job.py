"""Follows a job and keeps each version as a compressed-tensors checkpoint: an example.

    python follow_job.py 127.0.0.1:7070 my-engine versions/

writes versions/version-000001 and on, each with config.json and model.safetensors; a tokenizer is the
model's own. Ends when the job is over, or nobody answers for a minute.
"""

import json
import sys
import time
from pathlib import Path

import grpc
from nibble_client import Follower

SAFETENSORS_TYPES = {"int32": "I32", "int64": "I64", "uint16": "BF16"}
PATIENCE_SECONDS = 60.0


def save(version, directory):
    """Writes config.json and model.safetensors of a nibble_client.Version; `directory` must be new."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, array in version.tensors.items():
        entries[name] = {"dtype": SAFETENSORS_TYPES[array.dtype.name], "shape": array.shape,
                         "data_offsets": (end, end + array.nbytes)}
        end += array.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    partial = Path(f"{directory}.partial")
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(version.config, indent=2) + "\n")
    with (partial / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in version.tensors.values():
            file.write(array.tobytes())
    partial.rename(directory)


def main(address, name, output):
    follower = Follower(address, name)
    answered = time.monotonic()

    def serve(version):
        save(version, Path(output, f"version-{version.version:06}"))
        print(f"serves version {version.version}", flush=True)

    while time.monotonic() - answered < PATIENCE_SECONDS:
        try:
            if not follower.step(serve):
                return
            answered = time.monotonic()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(0.2)
    sys.exit(f"no coordinator has answered at {address} for {PATIENCE_SECONDS:g} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
