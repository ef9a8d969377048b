"""What one tiny video costs from the command to the prompt, and which process spends it.

    python -m tests.startup [--runs 3] [-- python -m jobs.NAME ...]

Prints when each line came, and the wall and CPU seconds of each process of the fastest run. The
machine may be shared: wall time says little there, CPU seconds say more.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROMPT = "a red circle moving left on a dark background"
PR_SET_CHILD_SUBREAPER = 36
EVERY_S = 0.1
WIDTH = 28
# Beginnings of kinds of processes, by what is in their command lines; the first that fits.
KINDS = {
    "gcs_server": "Ray: gcs_server",
    "raylet/raylet": "Ray: raylet",
    "default_worker.py": "Ray: a worker that starts",
    "ray::IDLE": "Ray: an idle worker",
    "ray::LeaderActor": "leader",
    "DashboardAgent": "Ray: agents",
    "dashboard": "Ray: dashboard and agents",
    "RuntimeEnvAgent": "Ray: agents",
    "runtime_env": "Ray: agents",
    "log_monitor": "Ray: log monitor",
    "monitor.py": "Ray: autoscaler",
    "cluster.fleet.forkserver": "forkserver, and ranks",
    "multiprocessing.forkserver": "forkserver, and ranks",
    "multiprocessing.resource_tracker": "resource tracker",
}


@dataclass
class Seen:
    """A process, as it was last seen."""

    kind: str
    first_s: float
    last_s: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Run:
    """What one run took."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    processes: dict[int, Seen] = field(default_factory=dict)
    wall_s: float = 0.0
    gone_s: float = 0.0
    """Until the last process was gone."""

    @property
    def cpu_s(self) -> float:
        """Of all processes."""
        return sum(one.cpu_s for one in self.processes.values())


def measure(command: list[str]) -> Run:
    """Runs a command, and looks at its processes ten times a second."""
    run, began = Run(), time.perf_counter()

    def passed() -> float:
        return time.perf_counter() - began

    def look() -> bool:
        alive = False
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if one.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = " ".join(one.cmdline())
                fits = (name for mark, name in KINDS.items() if mark in words)
                kind = "driver" if one.pid == process.pid else next(fits, words[:WIDTH])
                seen = run.processes.setdefault(one.pid, Seen(kind, passed()))
                times = one.cpu_times()
                seen.kind, seen.last_s, seen.cpu_s = kind, passed(), times.user + times.system
                alive = True
        return alive

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )

    def read() -> None:
        for line in process.stdout or ():
            run.lines.append((passed(), line.rstrip()))

    reader = threading.Thread(target=read)
    reader.start()
    while process.poll() is None:
        look()
        time.sleep(EVERY_S)
    run.wall_s = passed()
    while look() and passed() < run.wall_s + 60:
        time.sleep(EVERY_S)
    run.gone_s = passed() - run.wall_s
    reader.join()
    return run


def main() -> None:
    """Measures, and prints the table of the fastest run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    # Orphans stay among this process's children, and so in the table.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text(f"{PROMPT}\n")
        for number in range(options.runs):
            root = f"{folder}/{number}"
            tiny = ["-m", "jobs.render", "--model", "tiny", "--prompts", str(prompts)]
            command = [sys.executable, *tiny, "--budget", "10", "--output", root]
            runs.append(measure(options.command or command))
            last = runs[-1]
            print(f"run {number + 1}: {last.wall_s:.1f} s, {last.cpu_s:.1f} CPU-s", flush=True)
    best = min(runs, key=lambda run: run.wall_s)
    for when, line in best.lines:
        print(f"{when:6.1f} s  {line}")
    print(f"{best.wall_s:6.1f} s  the prompt; the last process was gone {best.gone_s:.1f} s later")
    for kind in sorted({one.kind for one in best.processes.values()}):
        some = [one for one in best.processes.values() if one.kind == kind]
        first, last = min(one.first_s for one in some), max(one.last_s for one in some)
        cpu = sum(one.cpu_s for one in some)
        print(f"{kind:{WIDTH}} {len(some):2}  {first:5.1f} to {last:5.1f} s  {cpu:5.1f} CPU-s")


if __name__ == "__main__":
    main()
