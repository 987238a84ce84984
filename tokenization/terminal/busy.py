"""The line that says, once, that other work keeps the machine busy, where long work begins on several threads."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

SLACK = 0.5  # cores: a desktop's own background work is no other job
RUNNING = Path("/proc/loadavg")  # of Linux, whose fourth field begins with the threads that run at this moment
_asked: list[bool] = []


def note_if_busy() -> None:
    """Say on stderr that threads are short of free cores, with the variable that helps; once in a process.

    Threads of one matmul wait for each other, so that one without a core of its own holds up all: on two busy cores,
    two threads did half as much as one (docs/log.md, 2026-11-29). Silent if the user has set OMP_NUM_THREADS, with one
    thread, on a GPU, and in all processes but the first. Later calls are silent too: the load is then our own.
    """
    if _asked or "torch" not in sys.modules:
        return
    _asked.append(True)
    import torch

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or os.environ.get("RANK", "0") != "0" or threads == 1:
        return
    if torch.cuda.is_available() or torch.backends.mps.is_available() or not hasattr(os, "getloadavg"):
        return
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if threads <= cores - load + SLACK or others_running() < SLACK:
        return
    free = max(1, min(threads - 1, int(cores - load + SLACK)))
    print(
        f"note: the machine is busy (load {load:.1f} on {cores} cores), and {threads} threads beside other work can be "
        f"slower than one; if this is slow, stop it and start it with OMP_NUM_THREADS={free} before the command.",
        file=sys.stderr,
        flush=True,
    )


def others_running(samples: int = 5, seconds: float = 0.02) -> float:
    """Threads of other processes that run now, on average; the load still counts a job that has just ended.

    Infinite where the system does not say it.
    """
    if not RUNNING.is_file():
        return float("inf")
    found = []
    for _ in range(samples):
        time.sleep(seconds)
        found.append(int(RUNNING.read_text().split()[3].partition("/")[0]) - 1)  # without the one that reads
    return sum(found) / samples
