"""The folder in which `toto tokenize` works until its shards are complete: DIR.partial beside DIR."""

import json
import shutil
from pathlib import Path

from tokenization.files import write_whole
from tokenization.sampling import Sampling
from tokenization.shards.files import OLD_SUFFIX
from tokenization.shards.format import read_manifest

# Files and folders of it that a finished folder of shards does not have.
SETTINGS, PLAN = "settings.json", "plan.json"
PARTS, DEALT, BUCKETS = "parts", "dealt", "buckets"


def prepare(partial: Path, settings: dict, is_alone: bool) -> None:
    """Create the working folder, or check that an earlier run left it with the same settings.

    is_alone: no other task may be creating it at the same time.
    """
    file = partial / SETTINGS
    if file.is_file():
        before = {"resize": Sampling.resize, "decoder": "pyav"}  # earlier versions do not name them
        before |= json.loads(file.read_text())
        unlike = [name for name in settings if before.get(name) != settings[name]]
        if unlike:
            changes = ", ".join(f"{name} {before.get(name)} instead of {settings[name]}" for name in unlike)
            raise ValueError(
                f"{partial} was started with other flags ({changes}); pass the same flags, or delete the folder."
            )
        done = len(list(partial.glob(f"{PARTS}/*.json")))
        print(f"resuming {partial}: {done} parts are finished")
        return
    if is_alone:
        shutil.rmtree(partial, ignore_errors=True)  # a run that was killed before it did anything
    (partial / PARTS).mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))


def finish(partial: Path, output: Path) -> dict:
    """Delete what only a rerun needs and rename the folder; returns the manifest. Two tasks may do so at once."""
    try:
        if output.exists():
            output.rmdir()  # empty, as checked before the work
        for name in (PARTS, DEALT, BUCKETS):
            shutil.rmtree(partial / name, ignore_errors=True)
        for file in partial.glob(f"*{OLD_SUFFIX}"):  # of a run of an earlier version that was killed
            file.unlink(missing_ok=True)
        _remove_temporary(partial)
        partial.rename(output)
    except OSError as error:
        if partial.exists() and output.exists():
            raise OSError(f"{output} is no longer empty; empty it and run the same command again.") from error
        if not (output / "manifest.json").is_file():
            raise
    tidy(output)
    return read_manifest(output)


def tidy(output: Path) -> None:
    """Delete what a task that was at work, or killed, when the folder was renamed left in it."""
    _remove_temporary(output)
    for name in (SETTINGS, PLAN):
        (output / name).unlink(missing_ok=True)


def _remove_temporary(folder: Path) -> None:
    for path in folder.glob("*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
