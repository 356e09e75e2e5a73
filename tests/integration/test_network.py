"""Weight publication over links that are slow or cut, between the processes of a running job.

Each test looks at what the bad link passed and lost, so that it fails if its fault did not happen.
Where this machine gives no network of its own to shape, all of it is skipped (exit code 77).
"""

import json
import re
import signal
import sys
import unittest

from nibble_job import JobTest, query, read_metrics, settings, wait_until
from shaped_network import BadLink, enter_own_network

SKIPPED = 77
VICTIM = "rollout/1"
LIMIT_MS = 4000
ENDLESS = settings(run__steps=100000, eval__every=100000, checkpoint__every=100000)
WEIGHT_BYTES = 429568  # of the model, what one engine is sent


def from_victim(sender, receiver):
    return sender == VICTIM


def to_victim(sender, receiver):
    return receiver == VICTIM


def both_ways(sender, receiver):
    return VICTIM in (sender, receiver)


def to_and_from_trainers(sender, receiver):
    return both_ways(sender, receiver) and "trainer" in sender + receiver


class Network(JobTest):
    def start_job(self, **values):
        """A job that has made a few steps and makes more until it is interrupted."""
        directory = self.folder / "run"
        job = self.start_train(directory, *ENDLESS, *settings(
            **{"cluster__lease_ms": 120000, "weight_sync__timeout_ms": LIMIT_MS, **values}))
        job.wait_for_log(r"step=3/")
        return directory, job

    def cut_in_mid_transfer(self, link, directory, is_bad, slowed):
        """Slows links down to see bytes pass, and cuts them once a part has passed of a version
        that began later. Returns that version."""
        newest = "SELECT version, decision FROM versions ORDER BY rowid DESC LIMIT 1"
        link.slow_down(slowed, WEIGHT_BYTES // 2)
        earlier = query(directory, newest)[0][0]

        def begun():
            version, decision = query(directory, newest)[0]
            return version if version > earlier and decision == "prepared" else None

        version = wait_until(begun, 60, "a new version")
        before = link.counters()[0]
        wait_until(lambda: link.counters()[0] > before + WEIGHT_BYTES // 4, 60, "a part of it")
        link.cut(is_bad)
        self.assertEqual(query(directory, newest)[0], (version, "prepared"), "it was over already")
        return version

    def steps_made(self, job):
        return len(re.findall(r"step=\d+/", job.log()))

    def wait_for_steps(self, job, count):
        job.wait_for_log(rf"step={self.steps_made(job) + count}/", 60)

    def expect_back(self, job, directory):
        """After healing: the victim catches up and takes part in ten publications in a row."""
        healed = self.steps_made(job)

        def takes_part():
            lines = (directory / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
            rows = [row for row in map(json.loads, lines) if row.get("step", 0) > healed]
            return len(rows) >= 10 and all(row["serving_engines"] == 2 for row in rows[-10:])

        wait_until(takes_part, 90, f"{VICTIM} takes part again")

    def end(self, job, directory):
        """Returns the rows of a run that was whole."""
        job.signal(signal.SIGINT)
        self.expect_refusal(job.wait(), 1, "interrupted after step", "--resume")
        self.expect_nothing_left(job)
        rows = read_metrics(directory)[0]
        self.expect_whole_run(directory, len(rows))
        return rows

    def expect_left_and_back(self, directory, rows):
        served = [row["serving_engines"] for row in rows]
        self.assertEqual(sorted(set(served)), [1, 2])
        self.assertEqual((served[0], served[-1]), (2, 2))
        kinds = [kind for kind, in query(
            directory, f"SELECT kind FROM events WHERE source = '{VICTIM}' ORDER BY rowid")]
        self.assertEqual((kinds[0], kinds[-1]), ("engine_fenced", "engine_caught_up"))

    def expect_cut_is_outlived(self, is_bad, slowed=both_ways, **values):
        directory, job = self.start_job(**values)
        with BadLink(job) as link:
            version = self.cut_in_mid_transfer(link, directory, is_bad, slowed)
            job.wait_for_log(rf"version {version} goes on without {VICTIM}", 60)
            self.wait_for_steps(job, 10)
            passed, lost = link.counters()
            self.assertEqual(passed, 0)
            self.assertGreater(lost, 0, "the fault did not happen")
            if is_bad is not to_and_from_trainers:  # its peer may help it, again and again
                self.assertNotIn(f"{VICTIM} serves version", job.log())
        self.expect_back(job, directory)
        rows = self.end(job, directory)
        self.expect_left_and_back(directory, rows)
        waited = [row["sync_ms"] for row in rows if row["published_version"] == version]
        self.assertGreater(waited[0], 0.9 * LIMIT_MS)
        slowest = max(row["sync_ms"] for row in rows)
        self.assertLess(slowest, 2 * LIMIT_MS + 2000, "held past the deadlines")

    def test_a_link_below_the_least_rate_leaves_its_engine_behind_until_it_is_fast_again(self):
        directory, job = self.start_job(weight_sync__timeout_ms=1200000)
        with BadLink(job) as link:
            link.slow_down(both_ways, WEIGHT_BYTES // 25)
            job.wait_for_log(rf"goes on without {VICTIM}", 120)
            passed = link.counters()[0]
            self.assertGreater(passed, WEIGHT_BYTES // 25, "the fault did not happen")
            self.assertLess(passed, WEIGHT_BYTES, "all of it came")
            self.wait_for_steps(job, 10)
            self.assertNotIn(f"{VICTIM} serves version", job.log())
        self.expect_back(job, directory)
        rows = self.end(job, directory)
        self.expect_left_and_back(directory, rows)
        self.assertGreater(max(row["sync_ms"] for row in rows), 10_000, "the grace of a transfer")
        self.assertLess(max(row["sync_ms"] for row in rows), 600_000, "held to the deadline of all")

    def test_a_link_above_the_least_rate_costs_time_and_no_engine(self):
        bytes_per_s = 1_500_000
        directory, job = self.start_job(weight_sync__timeout_ms=60000, weight_sync__min_mb_per_s=1)
        with BadLink(job) as link:
            link.slow_down(both_ways, bytes_per_s)
            first = self.steps_made(job) + 2  # the first whose publication began on the slow link
            self.wait_for_steps(job, 6)
            last = self.steps_made(job)
            self.assertGreater(link.counters()[0], (last - first + 1) * WEIGHT_BYTES)
        self.wait_for_steps(job, 3)
        rows = self.end(job, directory)
        self.assertTrue(all(row["serving_engines"] == 2 for row in rows))
        least_ms = 1000 * (WEIGHT_BYTES - 2 * 16384) / bytes_per_s  # tbf lends a burst
        for row in rows[first - 1:last]:
            self.assertGreater(row["sync_ms"], least_ms, f"step {row['step']}")
        fenced = query(directory, "SELECT message FROM events WHERE kind = 'engine_fenced'")
        self.assertEqual(fenced, [])

    def test_a_worker_cut_off_in_mid_transfer_is_left_by_the_deadline_and_catches_up(self):
        for name, is_bad in (("both", both_ways), ("from", from_victim), ("to", to_victim)):
            with self.subTest(lost=name):
                self.fresh_folder()
                self.expect_cut_is_outlived(is_bad)

    def test_a_worker_that_is_overwritten_in_place_when_it_is_cut_off_catches_up(self):
        self.expect_cut_is_outlived(both_ways, weight_sync__in_place="true")

    def test_an_engine_that_only_the_trainers_cannot_reach_is_left_and_catches_up(self):
        self.expect_cut_is_outlived(to_and_from_trainers, to_and_from_trainers)

    def test_a_cut_longer_than_the_lease_ends_the_run_with_the_name_of_the_worker(self):
        directory, job = self.start_job(cluster__lease_ms=8000)
        with BadLink(job) as link:
            version = self.cut_in_mid_transfer(link, directory, both_ways, both_ways)
            result = job.wait(60)
            self.assertGreater(link.counters()[1], 0, "the fault did not happen")
        # The worker ends by itself after the same time, and may say so first.
        *earlier, last = result.errors()
        self.assertRegex(last, rf"^nibble: {VICTIM} .*--resume")
        for line in earlier:
            self.assertRegex(line, r"^nibble: the coordinator at \S+ has not answered for 8000 ms")
        self.assertEqual(result.code, 1)
        self.assertIn(f"version {version} goes on without {VICTIM}", result.err)
        self.expect_nothing_left(job)
        rows = read_metrics(directory)[0]
        self.expect_whole_run(directory, len(rows))


if __name__ == "__main__":
    reason = enter_own_network()
    if reason is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        sys.exit(SKIPPED)
    unittest.main()
