"""The progress of long work: a bar on a terminal, plain lines elsewhere; the bars of libraries are silent."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm as _Bar

from tokenization.terminal.busy import note_if_busy

# Off a terminal: seconds between lines, and before the first one; shorter work prints none.
LINE_SECONDS, FIRST_LINE_SECONDS = 30, 10
LINE = "{desc}: {n_fmt} of {total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"


class tqdm(_Bar):
    """tqdm that writes to a log, a pipe or a notebook's file in lines, in place of a bar that is drawn again and again.

    The first bar of a process is where its long work begins: before it, `note_if_busy` looks at the machine.

    Args:
        logs: the work prints lines of its own (`write`), so that off a terminal none are added.
    """

    def __init__(self, *args, logs: bool = False, **kwargs):
        stream = kwargs.get("file") or sys.stderr
        if not kwargs.get("disable"):
            note_if_busy()
        if not kwargs.get("disable") and not stream.isatty():
            if logs:
                kwargs["disable"] = True
            else:
                kwargs |= {"mininterval": LINE_SECONDS, "delay": FIRST_LINE_SECONDS, "bar_format": LINE}
                kwargs |= {"file": _Lines(stream), "miniters": 1, "maxinterval": 0}
        super().__init__(*args, **kwargs)


class _Lines:
    """A stream on which tqdm's carriage returns are ends of lines."""

    def __init__(self, stream: TextIO):
        self.stream, self.encoding = stream, getattr(stream, "encoding", "utf-8")

    def write(self, text: str) -> None:
        if line := " ".join(text.split()):
            self.stream.write(f"{line.replace(': :', ':')}\n")

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False


def quiet_libraries() -> None:
    """No bars of transformers ("Loading weights", "Writing model shards") and datasets; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when datasets is imported
    logging.disable_progress_bar()
    if sys.stderr.isatty() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()  # the line above ends those too


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """A block in which transformers does not list the weights of a checkpoint that a new head is expected to lack."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def bars_of_models() -> Iterator[None]:
    """A block in which a model shows its own bar, on a terminal: that of drawn frames, which is transformers'.

    As before any bar, `note_if_busy` looks at the machine.
    """
    from transformers.utils import logging

    note_if_busy()
    before = logging.is_progress_bar_enabled()
    if sys.stderr.isatty():
        logging.enable_progress_bar()
    try:
        yield
    finally:
        if not before:
            logging.disable_progress_bar()
