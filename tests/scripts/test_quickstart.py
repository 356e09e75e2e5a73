"""scripts/quickstart.sh with stand-ins for what it calls: order, reuse, failure, Ctrl-C."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30

CMAKE = """#!/bin/sh
echo "cmake $*"
[ -z "$FAIL_CMAKE" ] || { echo "no compiler"; exit 3; }
"""

# Trains a step each time a line comes in through the pipe `ticks`; without a pipe, at once.
NIBBLE = """#!/usr/bin/env python3
import json, os, signal, sys
arguments = sys.argv[1:]
print("nibble", *arguments, flush=True)
if arguments[0] == "convert":
    output = arguments[arguments.index("--output-dir") + 1]
    os.makedirs(output)
    open(output + "/config.json", "w").write("{}")
if arguments[0] == "train":
    stop = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    run = "runs/" + os.path.basename(arguments[1])[: -len(".yaml")]
    steps = int(arguments[arguments.index("--set") + 1].split("=")[1])
    os.makedirs(run + "/checkpoints", exist_ok=True)
    found = sorted(name for name in os.listdir(run + "/checkpoints") if "." not in name)
    first = int(found[-1][5:]) if "--resume" in arguments and found else 0
    ticks = open("ticks") if os.path.exists("ticks") else None
    for step in range(first + 1, steps + 1):
        print(f"2026-01-01 00:00:00.000 I run: step={step}/{steps}", file=sys.stderr, flush=True)
        if ticks: ticks.readline()
        with open(run + "/metrics.jsonl", "a") as metrics:
            metrics.write(json.dumps({"step": step, "reward_mean": 0.5}) + "\\n")
        if stop or step == steps: break
    checkpoint = f"{run}/checkpoints/step-{step:06}"
    os.makedirs(checkpoint)
    open(checkpoint + "/meta.json", "w").write("{}")
    sys.exit(1 if stop else 0)
"""


class Quickstart(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="nibble_quickstart_"))
        self.addCleanup(shutil.rmtree, self.folder)
        for name in ("scripts/quickstart.sh", "tools/make_addition_data.py", "tools/report_run.py"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        self.write("scripts/bootstrap.sh", "#!/bin/sh\necho bootstrap $NIBBLE_DEPS_DIR\n")
        self.write("tools/fetch_smollm2.py", "import sys\nprint('fetch', *sys.argv[1:])\n")
        self.write("bin/cmake", CMAKE)
        self.write("build/cpu/bin/nibble", NIBBLE)
        python = self.folder / "elsewhere/venv/bin/python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        self.env = {**os.environ, "NIBBLE_DEPS_DIR": str(self.folder / "elsewhere"),
                    "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        self.command = [str(self.folder / "scripts/quickstart.sh")]

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run_script(self, *arguments, env=None):
        run = subprocess.run([*self.command, *arguments], env={**self.env, **(env or {})},
                             capture_output=True, text=True, timeout=TIMEOUT_S)
        return run.returncode, run.stdout, run.stderr

    def log(self):
        return (self.folder / "runs/quickstart.log").read_text()

    def test_goes_from_nothing_to_a_table_with_the_folder_of_dependencies_that_is_named(self):
        code, out, err = self.run_script("--steps", "3")
        self.assertEqual((code, err), (0, ""), out)
        log = self.log()
        places = [log.index(word) for word in ("bootstrap", "cmake --preset", "--target nibble",
                                               "fetch", "problems to train on", "nibble convert",
                                               "nibble train", "nibble plot")]
        self.assertEqual(places, sorted(places))
        self.assertIn(f"-DNIBBLE_DEPS_DIR={self.folder / 'elsewhere'}", log)
        self.assertIn(f"--cache {self.folder / 'elsewhere/cache'}", log)
        self.assertIn("--set run.steps=3", log)
        self.assertIn("int4-qat      3   0.500", out)
        self.assertIn("runs/smollm2-addition/plots/summary.png", out)

    def test_a_second_call_reuses_what_is_there_and_trains_on_only_for_more_steps(self):
        self.run_script("--steps", "3")
        code, out, _ = self.run_script("--steps=3")
        self.assertEqual(code, 0, out)
        for word in ("nibble convert", "nibble train"):
            self.assertNotIn(word, self.log())
        self.run_script("--steps", "5")
        self.assertIn("--set run.steps=5 --resume", self.log())

    def test_a_checkpoint_that_was_never_finished_does_not_count(self):
        self.run_script("--steps", "3")
        self.write("runs/smollm2-addition/checkpoints/step-000004.partial/meta.json", "{}")
        code, out, _ = self.run_script("--steps", "4")
        self.assertEqual(code, 0, out)
        self.assertIn("--set run.steps=4 --resume", self.log())

    def test_compare_trains_all_three_and_overlays_them(self):
        code, out, _ = self.run_script("--steps", "2", "--compare")
        self.assertEqual(code, 0, out)
        self.assertEqual(self.log().count("nibble train"), 3)
        self.assertIn("--labels int4-qat,bf16,int4-no-qat", self.log())
        for label in ("int4-qat", "bf16", "int4-no-qat"):
            self.assertIn(f"  {label} ", out)

    def test_a_failure_ends_it_with_the_log_and_the_exit_code(self):
        code, out, _ = self.run_script(env={"FAIL_CMAKE": "1"})
        self.assertEqual(code, 3)
        self.assertIn("no compiler", out)
        self.assertNotIn("--target nibble", self.log())
        self.assertNotIn("fetch", self.log())

    def test_bad_arguments_are_refused_before_anything_is_started(self):
        for arguments in (["--steps"], ["--steps", "0"], ["--steps", "x"], ["--fast"]):
            with self.subTest(arguments):
                code, _, err = self.run_script(*arguments)
                self.assertEqual(code, 2)
                self.assertEqual(err.count("\n"), 1, err)
        self.assertFalse((self.folder / "runs").exists())

    def test_ctrl_c_lets_the_step_end_and_the_next_call_resumes(self):
        os.mkfifo(self.folder / "ticks")
        try:
            pid, terminal = pty.fork()
        except OSError as error:
            self.skipTest(f"no pseudo-terminals here: {error}")
        if pid == 0:
            os.execve(self.command[0], [*self.command, "--steps", "4"], self.env)
        signal.alarm(TIMEOUT_S)  # a script that hangs must not hang the tests
        with open(self.folder / "ticks", "w") as ticks:
            self.read_until(terminal, "step=1/4")
            os.write(terminal, b"\x03")
            self.read_until(terminal, "^C")
            ticks.write("\n")
        shown = self.read_until(terminal, None)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 130)
        signal.alarm(0)
        self.assertIn("The same command goes on from here.", shown)
        self.assertTrue((self.folder / "runs/smollm2-addition/checkpoints").is_dir())
        (self.folder / "ticks").unlink()
        code, out, _ = self.run_script("--steps", "4")
        self.assertEqual(code, 0, out)
        self.assertIn("--resume", self.log())
        self.assertIn("step=2/4", self.log())
        self.assertNotIn("step=1/4", self.log())

    def read_until(self, terminal, word):
        """What the terminal shows up to `word`, or to the end."""
        shown = ""
        while word is None or word not in shown:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # how a terminal ends
                data = b""
            if not data:
                break
            shown += data.decode(errors="replace")
        return shown


if __name__ == "__main__":
    unittest.main()
