"""What is kept of a run whose processes wait for one that does not come.

In the run folder: `stacks_rank_00003.txt`, the Python stacks of a process (a step took longer than the time limit of a
collective), and `flight_recorder_rank_3`, what NCCL was doing (CUDA only).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

# Names of torch 2.13, each after its older spelling. If one of a pair is set, it was set by the user.
RECORDER = (
    ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE", "2000"),  # collectives that are remembered
    ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE", "{run}/flight_recorder_rank_"),
)


def set_flight_recorder(run: Path) -> None:
    """Let NCCL write its last collectives to RUN/flight_recorder_rank_N when one exceeds its time limit.

    It reads the environment when the group of processes is made, so this comes before. What the user set stays.
    """
    for older, name, value in RECORDER:
        if older not in os.environ:
            os.environ.setdefault(name, value.format(run=run.absolute()))


class Stacks:
    """Writes the Python stacks of this process to RUN/stacks_rank_NNNNN.txt if it is not called again in time.

    A thread in C does it, even while Python's lock is held. It is called again before each step and each wait with
    their time limits, so the stacks are written just before a collective that waits as long ends the process.
    """

    def __init__(self, run: Path, rank: int):
        self._path = run / f"stacks_rank_{rank:05d}.txt"
        self._file = self._path.open("w")

    def expect(self, limit: timedelta) -> None:
        """The next call comes within `limit`."""
        faulthandler.dump_traceback_later(limit.total_seconds(), file=self._file)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()


@contextlib.contextmanager
def stacks(run: Path, rank: int, world: int) -> Iterator[Stacks | None]:
    """The `Stacks` of a process among others; None if it is alone."""
    if world == 1:
        yield None
        return
    found = Stacks(run, rank)
    try:
        yield found
    finally:
        found.close()
