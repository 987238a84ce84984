"""A training command that stands still after some rows of its metrics, so that a signal meets it there, not by luck.

  python tests/training/held_up.py MODULE ROWS GO [flags of the command]

It goes on when the file GO exists.
"""

import importlib
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
LIMIT = 300  # seconds: more than any start takes; afterwards a test fails instead of hanging


def start(module: str, rows: int, go: Path, flags: list[str], **options) -> subprocess.Popen:
    """The process of a command that stands still after `rows` rows. options: of Popen."""
    return subprocess.Popen([sys.executable, __file__, module, str(rows), str(go), *flags], **options)


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen, checkpoint: bool = False) -> None:
    """Wait until a run has written so many rows of metrics. checkpoint: and one of these, which a thread writes."""
    from training import find_model

    file, until = run / "metrics.jsonl", time.monotonic() + LIMIT
    while not file.is_file() or file.read_text().count("\n") < rows or (checkpoint and not find_model.steps(run)):
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < until, "it stands still elsewhere"
        time.sleep(0.01)


def main() -> None:
    from training.engine.progress import MetricsFile

    module, rows, go, *flags = sys.argv[1:]
    write, written = MetricsFile.write, []

    def hold(self, row: dict) -> None:
        write(self, row)
        written.append(row)
        until = time.monotonic() + LIMIT
        while len(written) == int(rows) and not Path(go).exists():
            if time.monotonic() > until:
                sys.exit("nobody lets it go on")
            time.sleep(0.01)

    MetricsFile.write = hold
    importlib.import_module(module).main(flags)


if __name__ == "__main__":
    from toto_cli import run

    run(lambda _: main())
