"""How many cores each process used while something ran, from /proc.

    with Meter({"order": 4711, "postgres": 4700}) as meter: ...
    meter.cores       # {"order": 0.41, "postgres order": 0.12, ...}; children are counted by what they call themselves
    meter.total, meter.other, meter.steal
"""

import collections
import os
import pathlib
import re
import threading
import time

HERTZ = os.sysconf("SC_CLK_TCK")


def _stat(pid):
    """(parent, ticks used) of a process, or None when it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[11]) + int(fields[12])


def _machine():
    """Ticks of the whole machine: busy, stolen."""
    fields = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return fields[0] + fields[1] + fields[2] + fields[5] + fields[6], fields[7]


def _title(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _postgres_name(title):
    """ "postgres: postgres t12_order 127.0.0.1(4711) idle" is a backend of the order context; the rest is its own business."""
    found = re.match(r"postgres: \S+ (\S+) \S+\(\d+\)", title)
    if not found:
        return "postgres " + (re.match(r"postgres: ([a-z ]+?)(?: \d.*)?$", title) or [None, "itself"])[1].strip()
    return "postgres " + found.group(1).rsplit("_", 1)[-1]


class Meter:
    def __init__(self, pids):
        """`pids`: name -> pid. Children are counted too: PostgreSQL's by database, others under the same name."""
        self._roots = {pid: name for name, pid in pids.items()}
        self._ticks = collections.Counter()
        self._last = {}
        self._stop = threading.Event()
        self.cores = {}
        self.total = self.other = self.steal = self.seconds = 0.0

    def _sample(self, count):
        stats = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                stat = _stat(int(entry))
                if stat:
                    stats[int(entry)] = stat
        for pid, (parent, ticks) in stats.items():
            if pid in self._roots:
                name = self._roots[pid]
            elif parent in self._roots:
                name = self._roots[parent]
                if name == "postgres":
                    name = _postgres_name(_title(pid))
            else:
                continue
            if count:
                self._ticks[name] += ticks - self._last.get(pid, 0)
            self._last[pid] = ticks

    def _run(self):
        while not self._stop.wait(0.25):
            self._sample(True)

    def __enter__(self):
        self._sample(False)
        self._started, self._before = time.monotonic(), _machine()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._sample(True)
        seconds = self.seconds = time.monotonic() - self._started
        after = _machine()
        self.cores = {name: ticks / HERTZ / seconds for name, ticks in self._ticks.most_common()}
        self.total = (after[0] - self._before[0]) / HERTZ / seconds
        self.steal = (after[1] - self._before[1]) / HERTZ / seconds
        self.other = max(0.0, self.total - sum(self.cores.values()))

    def __str__(self):
        parts = [f"{name} {cores:.2f}" for name, cores in self.cores.items() if cores >= 0.01]
        return f"{self.total:.2f} cores ({self.other:.2f} of others): " + ", ".join(parts)


def busy_cores(seconds=1.0):
    """What the machine does when we do nothing."""
    before = _machine()
    time.sleep(seconds)
    return (_machine()[0] - before[0]) / HERTZ / seconds
