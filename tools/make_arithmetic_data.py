#!/usr/bin/env python3
"""Writes sums with their answers, to pretrain a small model on and to hold out.

    python3 tools/make_arithmetic_data.py --output data/arithmetic

Records {"prompt": "What is 4 + 7 - 2?", "response": " 9", "label": "9"}: supervised training
(algorithm.loss: sft) learns the response, and RL on the same file is rewarded by the label. A sum
has 2 to --terms terms of 1 to --largest. Which side a sum is on depends on its terms only, whatever
their order, so nothing held out is ever trained on. The same files on every machine.
"""

import argparse
import hashlib
import json
import pathlib
import sys

from make_addition_data import write_sides

HELD_OUT_ONE_IN = 16
MASK = (1 << 64) - 1


class Draws:
    """splitmix64: the same numbers in every Python."""

    def __init__(self, seed: int):
        self._state = seed & MASK

    def below(self, limit: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK
        x = self._state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return (x ^ (x >> 31)) % limit


def is_held_out(terms: list[int]) -> bool:
    """`terms` with their signs; the order of a sum does not matter."""
    text = "sum " + " ".join(str(term) for term in sorted(terms))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def draw_terms(draws: Draws, most_terms: int, largest: int) -> list[int]:
    terms = [1 + draws.below(largest)]
    for _ in range(1 + draws.below(most_terms - 1)):
        term = 1 + draws.below(largest)
        terms.append(-term if draws.below(2) else term)
    return terms


def record(terms: list[int], chat: bool) -> dict:
    text = str(terms[0]) + "".join(f" {'-' if t < 0 else '+'} {abs(t)}" for t in terms[1:])
    question = f"What is {text}?"
    answer = str(sum(terms))
    if chat:
        return {"prompt": [{"role": "user", "content": question}], "response": answer,
                "label": answer}
    return {"prompt": question, "response": " " + answer, "label": answer}


def draw_sides(arguments: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Records to train on, in the order they were drawn, and distinct held-out ones."""
    draws = Draws(arguments.seed)
    train: list[dict] = []
    held_out: dict[str, dict] = {}
    for _ in range(1000 * (arguments.count + arguments.held_out)):
        if len(train) == arguments.count and len(held_out) == arguments.held_out:
            return train, list(held_out.values())
        terms = draw_terms(draws, arguments.terms, arguments.largest)
        if not is_held_out(terms):
            if len(train) < arguments.count:
                train.append(record(terms, arguments.chat))
        elif len(held_out) < arguments.held_out:
            held_out.setdefault(str(terms), record(terms, arguments.chat))
    raise ValueError(f"there are no {arguments.held_out} held-out sums of so few and small terms; "
                     "raise --terms or --largest, or lower --held-out")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=50_000, help="records to train on (%(default)s)")
    parser.add_argument("--held-out", type=int, default=512, help="held-out records (%(default)s)")
    parser.add_argument("--terms", type=int, default=3, help="most terms of a sum (%(default)s)")
    parser.add_argument("--largest", type=int, default=20, help="largest term (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chat", action="store_true", help="prompts as chat messages")
    values = parser.parse_args(arguments)
    for name, least in (("count", 1), ("held_out", 1), ("terms", 2), ("largest", 1)):
        if getattr(values, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return values


def main(arguments: list[str] | None = None) -> int:
    values = parse(arguments)
    return write_sides(values.output, lambda: draw_sides(values), "sums")


if __name__ == "__main__":
    sys.exit(main())
