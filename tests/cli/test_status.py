"""`nibble status` of directories without a live job, in the real binary."""

import json
import re
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import unittest
from contextlib import closing
from pathlib import Path

from nibble_cli import BINARY, ROOT, CliTestCase

TRAIN_TIMEOUT_S = 100


def change(run, *statements):
    """What an unlucky run would have left, written into a finished one."""
    with closing(sqlite3.connect(run / "run.db")) as database:
        for statement in statements:
            database.execute(*statement)
        database.commit()


class Refusals(CliTestCase):
    def test_what_is_no_run_is_refused_by_name(self):
        empty = self.folder / "empty"
        empty.mkdir()
        self.refuse("status", self.folder / "none", says=["none", "does not exist"])
        self.refuse("status", empty, says=["empty", "run.db"])
        self.refuse("status", __file__, says=["test_status.py"])
        self.refuse("status", says=["run", "nibble status --help"])

    def test_a_run_db_that_is_none_is_refused(self):
        for content in (b"", b"not a database, whatever its name says" * 100,
                        b"SQLite format 3\0" + b"\xff" * 5000):
            with self.subTest(content[:20]):
                (self.folder / "run.db").write_bytes(content)
                self.refuse("status", self.folder, says=["run.db"])
        (self.folder / "run.db").unlink()
        with closing(sqlite3.connect(self.folder / "run.db")) as other:
            other.execute("CREATE TABLE mine (a)")
        self.refuse("status", self.folder, says=["run.db", "another program"])


class FinishedRun(CliTestCase):
    @classmethod
    def setUpClass(cls):
        cls.runs = tempfile.TemporaryDirectory(prefix="nibble_status_")
        cls.addClassCleanup(cls.runs.cleanup)
        cls.finished = Path(cls.runs.name) / "tiny"
        subprocess.run([BINARY, "train", "configs/ci/tiny-dense.yaml", "--set",
                        f"run.directory={cls.finished}"], cwd=ROOT, check=True,
                       capture_output=True, timeout=TRAIN_TIMEOUT_S)

    def setUp(self):
        super().setUp()
        self.run_directory = self.folder / "run"
        subprocess.run(["cp", "-r", str(self.finished), str(self.run_directory)], check=True)

    def status(self):
        return json.loads(self.succeed("status", self.run_directory, "--json"))

    def test_figures_are_those_of_the_run_directory(self):
        status = self.status()
        rows = [json.loads(line) for line in
                (self.run_directory / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if "step_ms" in row][-1]
        self.assertEqual(status["run"], str(self.run_directory))
        self.assertEqual(status["state"], "not_running")
        self.assertEqual((status["coordinator"], status["workers"]), (None, []))
        step = status["step"]
        self.assertEqual([step[key] for key in ("last", "finished", "total", "status")],
                         [6, 6, 6, "done"])
        self.assertAlmostEqual(step["tokens_per_s"], last["tokens_per_s"])
        times = [row["step_ms"] for row in rows if "step_ms" in row]
        self.assertAlmostEqual(step["mean_ms"], sum(times) / len(times))
        self.assertGreaterEqual(step["seconds_since"], 0)
        committed = status["versions"]["committed"]
        self.assertEqual(committed["version"], last["published_version"])
        self.assertEqual((committed["step"], sorted(committed["members"])),
                         (6, ["rollout/0", "rollout/1"]))
        self.assertEqual((status["versions"]["undecided"], status["versions"]["aborted"]), ([], []))
        cost = status["publication"]
        for key, column in (("bytes", "sync_bytes"), ("ms", "sync_ms"), ("wire_ms", "sync_wire_ms"),
                            ("pause_ms", "pause_ms"), ("serving_engines", "serving_engines")):
            self.assertAlmostEqual(cost[key], last[column], msg=key)
        self.assertAlmostEqual(cost["gb_per_s"], last["sync_bytes"] / last["sync_wire_ms"] / 1e6)
        self.assertEqual((status["fencing"], status["last_failure"]), ([], None))

    def test_the_text_says_the_same_in_a_few_lines(self):
        text = self.succeed("status", self.run_directory)
        self.assertRegex(text, r"run: not running, finished\n")
        self.assertRegex(text, r"step +6 of 6, done .* ago; .* s a step")
        self.assertRegex(text, r"version +7, of step 6, epoch \d+, on rollout/0, rollout/1")
        self.assertRegex(text, r"publication .* GB/s\), pause .*; 2 engines serve it")

    def test_nothing_is_written(self):
        before = {path.name: path.read_bytes() for path in self.run_directory.glob("*") if
                  path.is_file()}
        self.status()
        after = {path.name: path.read_bytes() for path in self.run_directory.glob("*") if
                 path.is_file() and path.suffix not in (".db-shm", ".db-wal")}
        self.assertEqual({name: after.get(name) for name in before}, before)

    def test_a_run_that_broke_off_shows_its_versions_fences_and_last_failure(self):
        now_ms = int(time.time() * 1000)
        event = "INSERT INTO events (time_ms, severity, source, kind, message) VALUES (?, ?, ?, ?, ?)"
        version = "INSERT INTO versions VALUES (NULL, ?, 1, 7, ?, '[]', '', ?)"
        change(self.run_directory,
               ("INSERT INTO steps VALUES (7, ?, NULL, 'running')", (now_ms - 90_000,)),
               (version, (8, "prepared", now_ms)), (version, (8, "aborted", now_ms)),
               (version, (9, "prepared", now_ms)),
               (event, (now_ms - 5000, "warning", "rollout/1", "engine_fenced", "without it")),
               (event, (now_ms - 4000, "info", "rollout/1", "engine_caught_up", "again")),
               (event, (now_ms - 3000, "warning", "rollout/0", "engine_fenced", "too \u00e9 late")))
        status = self.status()
        self.assertEqual([status["step"][key] for key in ("last", "finished", "status")],
                         [7, 6, "running"])
        self.assertGreaterEqual(status["step"]["seconds_since"], 90)
        self.assertEqual(status["versions"]["undecided"], [9])
        self.assertEqual(status["versions"]["aborted"], [8])
        self.assertEqual(status["fencing"], [
            {"engine": "rollout/0", "fenced": True, "times_fenced": 1, "times_caught_up": 0},
            {"engine": "rollout/1", "fenced": False, "times_fenced": 1, "times_caught_up": 1}])
        failure = status["last_failure"]
        self.assertEqual([failure[key] for key in ("severity", "source", "kind", "message")],
                         ["warning", "rollout/0", "engine_fenced", "too \u00e9 late"])
        text = self.succeed("status", self.run_directory)
        self.assertRegex(text, r"step +7 of 6, begun and not finished, 1 min \d+ s ago")
        self.assertRegex(text, r"rollout/0 +fenced; fenced 1 times")
        self.assertRegex(text, r"last failure +\d\.\d s ago, rollout/0 engine_fenced: too \u00e9 late")

    def test_an_engine_that_a_later_version_was_published_to_is_not_fenced(self):
        event = "INSERT INTO events (time_ms, severity, source, kind, message) VALUES (?, ?, ?, ?, ?)"
        change(self.run_directory, (event, (1, "warning", "rollout/1", "engine_fenced", "long ago")))
        self.assertEqual([engine["fenced"] for engine in self.status()["fencing"]], [False])

    def test_a_config_of_another_build_costs_the_total_only(self):
        (self.run_directory / "config.yaml").write_text("run: { warp: 9 }\n")
        status = self.status()
        self.assertEqual((status["step"]["total"], status["step"]["finished"]), (None, 6))

    def test_a_torn_run_db_is_refused(self):
        path = self.run_directory / "run.db"
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
        self.refuse("status", self.run_directory, says=["run.db"])

    def test_a_port_that_others_took_is_not_the_run(self):
        meta = "INSERT OR REPLACE INTO meta VALUES ('coordinator_address', ?)"
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            port = server.getsockname()[1]
            change(self.run_directory, (meta, (f"127.0.0.1:{port}",)))
            stranger = threading.Thread(target=lambda: server.accept()[0].close())
            stranger.start()
            self.assertEqual(self.status()["state"], "not_running")
            stranger.join()
            # Nobody takes this connection off the backlog: a coordinator that is stopped.
            began = time.monotonic()
            text = self.succeed("status", self.run_directory)
            self.assertLess(time.monotonic() - began, 10)
            self.assertRegex(text, rf"coordinator at 127\.0\.0\.1:{port} does not answer")
        for address in ("nonsense", ""):
            change(self.run_directory, (meta, (address,)))
            self.assertEqual(self.status()["state"], "not_running")

    def test_help_names_every_key(self):
        text = self.succeed("status", "--help")
        for key in self.status():
            self.assertTrue(re.search(rf"\b{key}\b", text), key)


if __name__ == "__main__":
    unittest.main()
