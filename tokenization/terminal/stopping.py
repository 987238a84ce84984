"""Ctrl-C and SIGTERM in long work: the first asks it to stop at a place from which it goes on, a second ends it."""

from __future__ import annotations

import signal
import sys
import threading

CTRL_C = "Ctrl-C"


class Stopping:
    """Notes signals while it is entered, in the main thread; `asked` is true from the first one on.

    Args:
        told: printed at the first Ctrl-C: what is finished before the work stops.
        signals: those that are noted. A second Ctrl-C raises KeyboardInterrupt, as it would elsewhere.
    """

    by: str | None = None  # name of the first signal

    def __init__(self, told: str, *signals: signal.Signals):
        self.told, self._signals = told, signals
        self._before: dict[signal.Signals, object] = {}

    @property
    def asked(self) -> bool:
        return self.by is not None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in self._signals}
        return self

    def __exit__(self, *_):
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, _frame) -> None:
        is_typed = number == signal.SIGINT
        if is_typed and self.asked:
            raise KeyboardInterrupt
        self.by = self.by or (CTRL_C if is_typed else signal.Signals(number).name)
        if is_typed:
            print(f"\n{self.told}; Ctrl-C again ends at once", file=sys.stderr, flush=True)
