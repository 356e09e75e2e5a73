#!/usr/bin/env python3
"""Writes math_more.jsonl: answers beyond math.jsonl, with verdicts of math-verify 0.9.0.

Needs `pip install math-verify==0.9.0`. Usage: make_math_more.py [OUTPUT]. The same bytes each time.
A pair is the content of a \\boxed{} unless it stands in math_more_responses.txt. Every third case has
"split": "test": parser rules are not tuned on those.
"""

import json
import logging
import random
import sys
from pathlib import Path

from math_verify import parse, verify

SEED = 20261129

FOLDER = Path(__file__).parent
# gold | what is boxed, one pair a line, under the name of their category.
BOXED = (FOLDER / "math_more_boxed.txt").read_text("utf-8")
# gold | a whole response; \n is a line feed.
RESPONSES = (FOLDER / "math_more_responses.txt").read_text("utf-8")


def lines_of(text):
    category = ""
    for line in text.strip("\n").split("\n"):
        if line.startswith("== "):
            category = line[3:]
            continue
        gold, answer = line.split(" | ", 1)
        if gold == r"\{x":  # has a bar of its own
            gold, answer = line.rsplit(" | ", 1)
        yield category, gold, answer


def fraction(rng, top, bottom):
    form = rng.choice([r"\frac{%d}{%d}", "%d/%d", r"\dfrac{%d}{%d}", r"\left(\frac{%d}{%d}\right)"])
    return form % (top, bottom)


def random_cases(rng):
    """Right and wrong answers about as often, in forms that differ."""
    for _ in range(30):
        top, bottom, k = rng.randint(-99, 99), rng.randint(2, 60), rng.randint(1, 5)
        off = rng.choice([0, 0, 1])
        answer = fraction(rng, top * k + off, bottom * k)
        yield "rand_fraction", rf"\frac{{{top}}}{{{bottom}}}", answer
    for _ in range(25):
        a, b, c = rng.randint(2, 9), rng.randint(-9, 9), rng.randint(-9, 9)
        off = rng.choice([0, 0, 1])
        gold = f"{a}x^2{a * (b + c):+d}x{a * b * c:+d}"
        yield "rand_poly", gold, f"{a}(x{b:+d})(x{c + off:+d})"
    for _ in range(25):
        n, m, off = rng.randint(2, 30), rng.choice([2, 3, 5, 6, 7, 10]), rng.choice([0, 0, 1])
        yield "rand_root", rf"{n}\sqrt{{{m}}}", rf"\sqrt{{{n * n * m + off}}}"
    for _ in range(25):
        values = [rng.randint(-20, 20) for _ in range(rng.randint(2, 5))]
        other = values[:]
        rng.shuffle(other)
        if rng.random() < 0.3:
            other[0] += 1
        text = ",".join(map(str, values)), ", ".join(map(str, other))
        form = rng.choice([r"\{%s\}", "%s", "(%s)"])
        yield "rand_list", form % text[0], rng.choice([form, r"\{%s\}", "%s"]) % text[1]
    for _ in range(20):
        value = rng.randint(1, 99_999_999) / 10 ** rng.randint(0, 6)
        off = rng.choice([0, 0, 2e-6, 1e-2])
        yield "rand_decimal", repr(value), repr(value + off)
    for _ in range(20):
        a, b, off = rng.randint(1, 12), rng.randint(2, 12), rng.choice([0, 0, 1])
        gold = rf"\frac{{{a}\pi}}{{{b}}}"
        yield "rand_pi", gold, rng.choice([rf"\frac{{{a + off}}}{{{b}}}\pi", rf"{a + off}\pi/{b}"])
    for _ in range(20):
        a, b = sorted(rng.sample(range(-20, 20), 2))
        left, right = rng.choice("[("), rng.choice(")]")
        other = rng.choice([left, left, "[", "("]), rng.choice([right, right, ")", "]"])
        yield "rand_interval", f"{left}{a},{b}{right}", f"{other[0]}{a}, {b}{other[1]}"


def all_cases():
    for category, gold, answer in lines_of(BOXED):
        yield category, gold, rf"Hence it is \boxed{{{answer}}}."
    for _, gold, response in lines_of(RESPONSES):
        yield "extract", gold, response.replace("\\n", "\n")
    for category, gold, answer in random_cases(random.Random(SEED)):
        yield category, gold, rf"Hence it is \boxed{{{answer}}}."


def main():
    logging.disable(logging.CRITICAL)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "math_more.jsonl"
    rows = []
    for number, (category, gold, response) in enumerate(all_cases()):
        verdict = bool(verify(parse(rf"\boxed{{{gold}}}"), parse(response)))
        rows.append({"id": number, "split": "test" if number % 3 == 0 else "dev",
                     "category": category, "gold": gold, "response": response,
                     "math_verify": verdict})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    print(f"{len(rows)} cases, {sum(row['math_verify'] for row in rows)} true")


if __name__ == "__main__":
    main()
