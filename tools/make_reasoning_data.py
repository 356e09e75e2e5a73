#!/usr/bin/env python3
"""Writes problems of the library reasoning-gym, to train on and to hold out.

    pip install reasoning-gym==0.1.25
    python3 tools/make_reasoning_data.py --task chain_sum --output data/chain_sum

Records {"prompt": [chat], "label": "214"} for reward `last_number`; with --items the label is the
whole item, for reward `reasoning_gym`. Held-out questions are distinct and never trained on. The
same files for a seed and a version of the library.
"""

import argparse
import importlib.metadata
import pathlib
import sys

from make_addition_data import write_sides

LIBRARY = "reasoning-gym"
VERSION = "0.1.25"  # whose scores the reward `reasoning_gym` follows


def import_library():
    try:
        version = importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != VERSION:
        raise ValueError(f"needs {LIBRARY} {VERSION}, found {version}: "
                         f"pip install {LIBRARY}=={VERSION}")
    import reasoning_gym  # pylint: disable=import-outside-toplevel

    return reasoning_gym


def record(task: str, item: dict, whole_items: bool) -> dict:
    label = item["answer"]
    if whole_items:
        label = {"task": task, "answer": item["answer"], "metadata": item["metadata"]}
    return {"prompt": [{"role": "user", "content": item["question"]}], "label": label}


def draw_sides(values: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    library = import_library()
    # Twice as many as wanted: questions may repeat. The first ones are held out.
    wanted = values.count + values.held_out
    dataset = library.create_dataset(values.task, size=2 * wanted, seed=values.seed)
    distinct: dict[str, dict] = {}
    for item in dataset:
        distinct.setdefault(item["question"], record(values.task, item, values.items))
        if len(distinct) == wanted:
            records = list(distinct.values())
            return records[values.held_out:], records[:values.held_out]
    raise ValueError(f"{values.task} has only {len(distinct)} distinct questions among "
                     f"{2 * wanted}; lower --count")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, help="name of a data set: chain_sum, gsm_symbolic, ..")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=2000, help="problems to train on (%(default)s)")
    parser.add_argument("--held-out", type=int, default=128, help="held-out problems (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--items", action="store_true", help="whole items as labels")
    values = parser.parse_args(arguments)
    for name in ("count", "held_out"):
        if getattr(values, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return values


def main(arguments: list[str] | None = None) -> int:
    values = parse(arguments)
    return write_sides(values.output, lambda: draw_sides(values), "problems")


if __name__ == "__main__":
    sys.exit(main())
