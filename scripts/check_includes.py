#!/usr/bin/env python3
"""Refuses include arrows that the design does not draw. Prints FILE:LINE for each, then counts.

    cli -> components -> weight_sync -> core; trainer and rollout never include each other.
    Inside core: models -> ops -> kernels -> quant; everything may include base, base only itself.

Exit code 0 if nothing is wrong, 1 if something is. Usage: check_includes.py [ROOT]
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

COMPONENTS = ("coordinator", "trainer", "rollout", "convert")
PRODUCT = ("core", "weight_sync", *COMPONENTS, "cli")
SEARCHED = (*PRODUCT, "tests", "benchmarks")
SUFFIXES = (".h", ".cuh", ".cc", ".cu")
# Lowest first.
CORE_LADDER = ("core/quant", "core/kernels", "core/kernels_cuda", "core/ops", "core/ops_cuda",
               "core/models", "core/models_cuda")
HEAVY = re.compile(r"^(torch|ATen|c10|fmt|spdlog)/")
CUDA_RUNTIME = re.compile(r"^(cuda\w*|cub|cutlass|cute|thrust)(/|\.h)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
PROTO_USE = re.compile(r"\bnibble::v1\b|\bv1pb\b|\bnamespace\s+v1\b")
PROTO_FILE = re.compile(r"_(service|client|codec)\.(h|cc)$")
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(")


def strip_comments(text):
    """Blanks comments and the insides of strings, keeping line breaks and include lines."""
    out = []
    pattern = re.compile(
        r'^[ \t]*#[ \t]*include[^\n]*|//[^\n]*|/\*.*?\*/|R"([^\s()\\]{0,16})\(.*?\)\1"'
        r'|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
        re.DOTALL | re.MULTILINE)
    at = 0
    for match in pattern.finditer(text):
        out.append(text[at:match.start()])
        token = match.group()
        if token.lstrip().startswith("#"):
            out.append(token)
        else:
            out.append('""' if token[0] in 'R"' else " ")
            out.append("\n" * token.count("\n"))
        at = match.end()
    out.append(text[at:])
    return "".join(out)


class Source:
    """One file: where it stands, what it includes, and its text without comments."""

    def __init__(self, root, path):
        self.path = path.relative_to(root).as_posix()
        self.folder = path.relative_to(root).parent.as_posix()
        self.top = self.path.split("/")[0]
        self.lines = strip_comments(path.read_text(encoding="utf-8")).split("\n")
        self.includes = []  # (line number, name, is_quoted)
        for number, line in enumerate(self.lines, 1):
            match = INCLUDE.match(line)
            if match:
                self.includes.append((number, match.group(2), match.group(1) == '"'))


def core_folder(path):
    """core/<folder> of a path in core, otherwise None."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "core" and len(parts) > 2 else None


def arrow_problem(source, target):
    """Why a file of `source.path` may not include `target`, or None."""
    own, other = source.top, target.split("/")[0]
    if own not in PRODUCT:
        return None
    if other not in PRODUCT:
        return f"product code includes {other}/"
    if own == "core" and other != "core":
        return f"core includes {other}/; core names no component"
    if own == "weight_sync" and other not in ("weight_sync", "core"):
        return f"weight_sync includes {other}/; it may include core only"
    if other == "cli" and own != "cli":
        return f"{own} includes cli/; only cli may"
    if {own, other} == {"trainer", "rollout"}:
        return f"{own} includes {other}/; they meet in proto/, weight_sync/ and core/data"
    own_core, other_core = core_folder(source.path), core_folder(target)
    if own_core == "core/base" and other_core != "core/base":
        return f"core/base includes {other_core}; it may include nothing of ours"
    if own_core in CORE_LADDER and other_core in CORE_LADDER:
        if CORE_LADDER.index(own_core) < CORE_LADDER.index(other_core):
            return f"{own_core} includes {other_core}, which stands above it"
    if own_core == "core/quant" and other_core not in ("core/quant", "core/base"):
        return f"core/quant includes {other_core}; it may include core/base only"
    if own_core == "core/kernels" and other_core not in ("core/kernels", "core/quant", "core/base"):
        return f"core/kernels includes {other_core}; it may include quant and base only"
    if own_core == "core/kernels_cuda" and other_core not in (
            "core/kernels_cuda", "core/kernels", "core/quant", "core/cuda", "core/base"):
        return f"core/kernels_cuda includes {other_core}; it may include kernels, quant, cuda and base"
    return None


def find_cycles(graph):
    """Strongly connected sets of more than one node (Tarjan, without recursion)."""
    index, low, on_stack, stack, cycles = {}, {}, set(), [], []
    for start in sorted(graph):
        if start in index:
            continue
        work = [(start, iter(sorted(graph[start])))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, targets = work[-1]
            pushed = False
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(sorted(graph[target]))))
                    pushed = True
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            if pushed:
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                members = []
                while True:
                    member = stack.pop()
                    on_stack.discard(member)
                    members.append(member)
                    if member == node:
                        break
                if len(members) > 1:
                    cycles.append(sorted(members))
    return cycles


class Checker:
    def __init__(self, root):
        self.sources = {}
        self.problems = []
        for top in SEARCHED:
            for path in sorted((root / top).rglob("*")):
                if path.suffix in SUFFIXES and path.is_file():
                    source = Source(root, path)
                    self.sources[source.path] = source

    def report(self, source, line, message):
        self.problems.append((source.path, line, message))

    def check_each_include(self):
        for source in self.sources.values():
            for line, name, is_quoted in source.includes:
                is_generated = name.endswith(".pb.h")
                if is_quoted and not is_generated and name not in self.sources:
                    self.report(source, line, f'"{name}" is no file under the root; write paths '
                                "from the root, and third-party headers in <>")
                elif is_quoted and not is_generated:
                    problem = arrow_problem(source, name)
                    if problem:
                        self.report(source, line, problem)
                if (is_generated and source.top in PRODUCT and not PROTO_FILE.search(source.path)):
                    self.report(source, line, f"{name} outside *_service, *_client, *_codec")
                if core_folder(source.path) == "core/quant" and CUDA_RUNTIME.match(name):
                    self.report(source, line, f"core/quant includes {name}; it builds without CUDA")

    def check_light_headers(self):
        """What a .cu or a header of quant and kernels reaches is free of torch, fmt and spdlog."""
        for source in self.sources.values():
            is_cuda = source.path.endswith((".cu", ".cuh"))
            is_light = (core_folder(source.path) in ("core/quant", "core/kernels", "core/kernels_cuda")
                        and source.path.endswith(".h"))
            if not (is_cuda or is_light) or source.top not in PRODUCT:
                continue
            for line, name, _ in source.includes:
                chain = self.path_to_heavy(name)
                if chain:
                    self.report(source, line, "reaches " + " -> ".join(chain)
                                + "; keep torch, fmt and spdlog out of device code")

    def path_to_heavy(self, name):
        """The shortest chain of includes from `name` to a heavy header, or None."""
        chains, seen = [[name]], {name}
        while chains:
            chain = chains.pop(0)
            if HEAVY.match(chain[-1]):
                return chain
            for _, target, _ in self.sources[chain[-1]].includes if chain[-1] in self.sources else ():
                if target not in seen:
                    seen.add(target)
                    chains.append(chain + [target])
        return None

    def check_words(self):
        for source in self.sources.values():
            for number, line in enumerate(source.lines, 1):
                if (GETENV.search(line) and source.top in PRODUCT
                        and not source.path.startswith("core/base/env.")):
                    self.report(source, number, "getenv outside core/base/env")
                if (PROTO_USE.search(line) and source.top in PRODUCT
                        and not PROTO_FILE.search(source.path)):
                    self.report(source, number, "proto types outside *_service, *_client, *_codec")

    def check_cycles(self):
        files = {path: {name for _, name, _ in source.includes if name in self.sources}
                 for path, source in self.sources.items()}
        for cycle in find_cycles(files):
            self.report(self.sources[cycle[0]], 1, "file cycle: " + ", ".join(cycle))
        folders = defaultdict(set)
        for path, targets in files.items():
            own = self.sources[path].folder
            folders[own].update(self.sources[t].folder for t in targets
                                if self.sources[t].folder != own)
        for cycle in find_cycles({f: set(t) for f, t in folders.items()}):
            inside = set(cycle)
            for path, source in self.sources.items():
                if source.folder not in inside:
                    continue
                for line, name, _ in source.includes:
                    target = self.sources.get(name)
                    if target and target.folder in inside and target.folder != source.folder:
                        self.report(source, line, f"folder cycle of {', '.join(cycle)}: "
                                    f"includes {target.folder}")

    def run(self):
        self.check_each_include()
        self.check_light_headers()
        self.check_words()
        self.check_cycles()
        return sorted(set(self.problems))


def main(arguments):
    root = Path(arguments[0] if arguments else Path(__file__).parent.parent).resolve()
    checker = Checker(root)
    problems = checker.run()
    for path, line, message in problems:
        print(f"{path}:{line}: {message}")
    num_includes = sum(len(source.includes) for source in checker.sources.values())
    print(f"check_includes: {len(checker.sources)} files, {num_includes} includes, "
          f"{len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
