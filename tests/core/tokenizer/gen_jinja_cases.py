"""Writes tests/oracles/jinja/cases.jsonl: what jinja2, set up as Transformers does, makes of awkward templates.

    pip install jinja2==3.1.6
    python3 tests/core/tokenizer/gen_jinja_cases.py

A case has `text`, or `error` (the exception's name) where jinja2 raises. `tests/core/tokenizer/jinja_cases.txt` holds the
templates: blocks that start with a line "### group" or "--- variables as JSON", one template each (a final newline is not part
of it, "\\r" is written <CR>).
"""
import datetime
import json
import pathlib

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parents[1] / "oracles/jinja/cases.jsonl"
NOW = datetime.datetime(2026, 3, 4, 15, 6, 7)


class Generation(Extension):
    """{% generation %}: as Transformers' AssistantTracker renders it."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(lineno)

    def _support(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def read_cases(path):
    group, variables, lines, cases = "", {}, None, []

    def close():
        if lines is not None:
            cases.append((group, variables, "\n".join(lines).replace("<CR>", "\r")))

    for line in path.read_text().split("\n")[:-1]:
        if line.startswith("### "):
            close()
            group, lines = line[4:], None
        elif line.startswith("---"):
            close()
            variables, lines = json.loads(line[3:].strip() or "{}"), []
        elif lines is not None:
            lines.append(line)
    close()
    return cases


def main():
    env = environment()
    rows, errors = [], 0
    for group, variables, template in read_cases(HERE / "jinja_cases.txt"):
        row = {"group": group, "template": template, "variables": variables}
        try:
            row["text"] = env.from_string(template).render(**variables)
        except Exception as error:  # the oracle's verdict, whatever it is
            row["error"] = type(error).__name__
            errors += 1
        rows.append(row)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} cases, {errors} of them errors")


if __name__ == "__main__":
    main()
