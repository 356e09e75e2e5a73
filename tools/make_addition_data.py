#!/usr/bin/env python3
"""Writes the addition problems of the quickstart: what is trained on, and what is held out.

    python3 tools/make_addition_data.py --output data/addition

One prompt for every a and b in 1..20: "What is a + b? Answer with just the number." The 210
unordered pairs are split, and both orders of a pair stay on one side, so that no held-out sum is
ever trained on with its terms swapped. The same files on every machine.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys

LARGEST_TERM = 20
NUM_HELD_OUT_PAIRS = 42  # of 210: a fifth


def unordered_pairs() -> list[tuple[int, int]]:
    terms = range(1, LARGEST_TERM + 1)
    return [(a, b) for a in terms for b in terms if a <= b]


def held_out_pairs() -> set[tuple[int, int]]:
    """A fixed choice: the pairs whose SHA-256 is smallest. No random generator that may change."""

    def rank(pair: tuple[int, int]) -> str:
        return hashlib.sha256(f"addition {pair[0]} {pair[1]}".encode()).hexdigest()

    return set(sorted(unordered_pairs(), key=rank)[:NUM_HELD_OUT_PAIRS])


def problem(a: int, b: int) -> dict:
    question = f"What is {a} + {b}? Answer with just the number."
    return {"prompt": [{"role": "user", "content": question}], "label": str(a + b)}


def split_problems() -> tuple[list[dict], list[dict]]:
    """Problems to train on and held-out problems, each ordered by a, then b."""
    held_out = held_out_pairs()
    train, test = [], []
    for a in range(1, LARGEST_TERM + 1):
        for b in range(1, LARGEST_TERM + 1):
            side = test if (min(a, b), max(a, b)) in held_out else train
            side.append(problem(a, b))
    return train, test


def write_jsonl(path: pathlib.Path, records: list[dict]) -> None:
    """Writes to a temporary name and renames, so that no half-written file is ever read."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    os.replace(partial, path)


def write_sides(output: pathlib.Path, draw, noun: str) -> int:
    """Writes what draw() returns, records to train on and held-out ones; an exit code."""
    try:
        train, held_out = draw()
        output.mkdir(parents=True, exist_ok=True)
        write_jsonl(output / "train.jsonl", train)
        write_jsonl(output / "heldout.jsonl", held_out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to {output} ({error.strerror})", file=sys.stderr)
        return 1
    print(f"{output}: {len(train)} {noun} to train on, {len(held_out)} held out")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    output = parser.parse_args(arguments).output
    return write_sides(output, split_problems, "problems")


if __name__ == "__main__":
    sys.exit(main())
