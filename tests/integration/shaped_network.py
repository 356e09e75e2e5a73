"""A network of this process's own, in which packets between chosen workers are slowed or lost.

All of a job is on loopback. While a link is bad, an arriving packet goes its way only if it belongs
to a connection known to be between two processes with a good link; the rest passes an `ifb` device,
where it is shaped (tbf) or lost. So a new connection cannot slip through a cut; a new one between
others loses its first packet and goes on a second later.
"""

import ctypes
import json
import os
import re
import subprocess
import threading
from pathlib import Path

CLONE_NEWNET = 0x40000000
COORDINATOR = "coordinator"
LINK = "badlink"
CALLERS = (COORDINATOR, "trainer/")  # of a worker's service; an engine calls the coordinator alone
LISTENING = 10  # state in /proc/net/tcp
REFRESH_SECONDS = 0.03
# tbf passes no packet above its burst, so loopback gets the packets of an Ethernet.
SETUP = (
    "ip link set lo up mtu 1500",
    f"ip link add {LINK} type ifb",
    f"ip link set {LINK} up",
    "tc qdisc add dev lo ingress",
    f"tc qdisc replace dev {LINK} root tbf rate 1mbit burst 16kb limit 64kb",
)
LET_PASS = "filter add dev lo parent ffff: protocol ip prio 1 u32 flowid ffff:1 "
DIVERT_REST = ("filter add dev lo parent ffff: protocol all prio 2 u32 match u32 0 0 "
               f"action mirred egress redirect dev {LINK}")


def enter_own_network():
    """For this process, before it has threads, and what it starts. Returns why not, or None."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        return f"no network namespace ({os.strerror(ctypes.get_errno())}): it needs root"
    try:
        for command in SETUP:
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
        tc(DIVERT_REST, "filter del dev lo parent ffff: prio 2")
    except FileNotFoundError as error:
        return f"needs iproute2: there is no '{error.filename}'"
    except subprocess.CalledProcessError as error:
        return (f"'{' '.join(error.cmd)}' failed: {error.stderr.strip()}; the kernel needs ifb, "
                "sch_ingress, sch_tbf, cls_u32 and act_mirred")
    return None


def tc(*commands):
    subprocess.run(["tc", "-batch", "-"], input="\n".join(commands) + "\n", check=True,
                   capture_output=True, text=True)


def sockets():
    """(local port, remote port, state, inode) of every TCP socket in this network."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            local, remote = (int(words[i].rpartition(":")[2], 16) for i in (1, 2))
            yield local, remote, int(words[3], 16), int(words[9])


def inodes_of(pid):
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))
        except OSError:
            continue  # closed meanwhile
        if match:
            found.add(int(match.group(1)))
    return found


class BadLink:
    """Bad links between processes of a job. `is_bad(sender, receiver)`, by worker id or
    COORDINATOR, says which; a fault that follows another may only leave links out. A context that
    heals at its end."""

    def __init__(self, job):
        self._pids = {COORDINATOR: job.pid, **job.workers()}
        self._services = job.services()
        self._is_bad = None
        self._passing = set()
        self._stop = threading.Event()
        self._refresher = None
        self._lock = threading.Lock()  # guards _passing

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.heal()

    def slow_down(self, is_bad, bytes_per_s):
        """All bad links share the rate, headers included. At most a second's bytes wait."""
        self._begin(is_bad,
                    f"tbf rate {8 * bytes_per_s}bit burst 16kb limit {max(bytes_per_s, 16384)}")

    def cut(self, is_bad):
        """Loses what waits, too."""
        self._begin(is_bad, "pfifo limit 0")

    def heal(self):
        """The counters keep what they have."""
        if self._refresher is None:
            return
        tc("filter del dev lo parent ffff: prio 2")
        self._stop.set()
        self._refresher.join()
        self._refresher = None
        tc("filter del dev lo parent ffff: prio 1")
        self._passing.clear()

    def counters(self):
        """(bytes that passed, packets lost) since the last fault began."""
        shown = subprocess.run(["tc", "-s", "-j", "qdisc", "show", "dev", LINK], check=True,
                               capture_output=True, text=True)
        row = json.loads(shown.stdout)[0]
        return row["bytes"], row["drops"]

    def _begin(self, is_bad, queue):
        self._is_bad = is_bad
        self._let_pass_good_ones()
        tc(f"qdisc del dev {LINK} root", f"qdisc add dev {LINK} root {queue}")
        if self._refresher is not None:
            return
        tc(DIVERT_REST)
        self._stop.clear()
        self._refresher = threading.Thread(target=self._refresh)
        self._refresher.start()

    def _refresh(self):
        while not self._stop.wait(REFRESH_SECONDS):
            self._let_pass_good_ones()

    def _let_pass_good_ones(self):
        with self._lock:
            new = (self._good_services() | self._good_connections()) - self._passing
            if new:
                tc(*(LET_PASS + match for match in new))
                self._passing |= new

    def _is_good(self, sender, receiver):
        return sender == receiver or not self._is_bad(sender, receiver)

    def _good_services(self):
        """Services of workers all of whose callers have good links to them."""
        found = set()
        for who, port in self._services.items():
            callers = [caller for caller in self._pids if caller.startswith(CALLERS)]
            if all(self._is_good(who, c) and self._is_good(c, who) for c in callers):
                found |= {f"match ip sport {port} 0xffff", f"match ip dport {port} 0xffff"}
        return found

    def _good_connections(self):
        """Connections whose two processes are known and have a good link, by direction."""
        owners = {}
        for who, pid in self._pids.items():
            try:
                owners |= dict.fromkeys(inodes_of(pid), who)
            except FileNotFoundError:
                continue  # it ended
        ends, listeners = {}, {}
        for local, remote, state, inode in sockets():
            if inode in owners:
                if state == LISTENING:
                    listeners[local] = owners[inode]
                else:
                    ends[local, remote] = owners[inode]
        found = set()
        for (local, remote), who in ends.items():
            peer = ends.get((remote, local), listeners.get(remote))
            if peer is None:
                continue
            if self._is_good(who, peer):
                found.add(f"match ip sport {local} 0xffff match ip dport {remote} 0xffff")
            if self._is_good(peer, who):
                found.add(f"match ip sport {remote} 0xffff match ip dport {local} 0xffff")
        return found
