"""A run folder under a URL: worked on in a folder of this machine, and kept there as a local run folder would be.

Every file of the run is written locally as for any other run. A thread of the first process uploads each checkpoint
after it is whole, the list of its checksums last: a checkpoint without that list is none. What the run logs is uploaded
with it. Resuming takes the newest whole checkpoint, from either side.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from tokenization.files import sha256, write_json, write_whole
from tokenization.storage.copies import work_folder
from tokenization.storage.remote import Remote
from training.find_model import MARKER, STATE, STEP, step_of, steps, whole_steps

# Names the URL in the local folder, and the run in both, so that the work of another run of this URL is not taken for
# this one's.
IDENTITY = "remote.json"


class RemoteRun:
    """The run folder of a URL, and the local folder in which the work is done.

    Args:
        url: of the run. Several processes of a machine, or of machines with one file system, share the local folder.
    Raises:
        ValueError: the protocol is unknown, or its package is missing.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.remote, self.folder = Remote(self.url), work_folder(url)
        self._sent: dict[str, tuple[int, int]] = {}  # files of the run that are there -> (bytes, time) when sent
        self._thread: Thread | None = None
        self._error: OSError | None = None

    @classmethod
    def of(cls, folder: Path) -> RemoteRun | None:
        """The remote run whose local folder this is; None if it is an ordinary run folder."""
        file = folder / IDENTITY
        return cls(json.loads(file.read_text())["url"]) if file.is_file() else None

    def begin(self) -> None:
        """Check that a new run can be written, and make its local folder. Only the first process does.

        Raises:
            ValueError: there is a run already, or a local one that was never uploaded. OSError: it cannot be written.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        self.remote.require_writable()
        if set(self.remote.files()) - {IDENTITY}:
            raise ValueError(
                f"{self.url} is not empty; choose another --output_dir, or continue it with --resume {self.url}."
            )
        if steps(self.folder):
            raise ValueError(
                f"{self.folder} holds checkpoints of an earlier run for {self.url}, which is empty; upload them with "
                f"--resume {self.folder}, or delete that folder."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self.folder / IDENTITY, {"url": self.url, "id": uuid.uuid4().hex})

    def fetch(self) -> Path:
        """Bring what a resumed run needs to this machine; returns the local folder. Every process may call it.

        That is every file outside the checkpoints, the newest whole checkpoint unless the local folder has it or a
        newer one of the same run, and the best one of a fine-tuning.

        Raises:
            FileNotFoundError: there is no run. OSError: it cannot be read or written.
        """
        from filelock import FileLock

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f"{self.folder.name}.lock")):
            there = self.remote.files()
            if "recipe.yaml" not in there or IDENTITY not in there:
                raise FileNotFoundError(f"{self.url} is not a run folder: it holds no recipe.yaml.")
            if os.environ.get("RANK", "0") == "0":
                self.remote.require_writable()
            identity = self.remote.read(IDENTITY)
            here = self.folder / IDENTITY
            if not here.is_file() or json.loads(here.read_bytes()) != json.loads(identity):
                shutil.rmtree(self.folder, ignore_errors=True)
            whole = whole_steps(there)
            local = [int(STEP.search(path.name)[1]) for path in steps(self.folder)]
            newest = max(local, default=-1)
            is_behind = newest < max(whole, default=-1)
            for name in there:
                if not name.startswith("checkpoints/") and (is_behind or not (self.folder / name).is_file()):
                    self._fetch(name)
            for step in sorted((step for step in whole if step > newest), reverse=True):
                if self._fetch_checkpoint(step, there):
                    newest = step
                    break
            loop = self.folder / _name(newest) / STATE / "loop.json"
            best = (json.loads(loop.read_text()).get("best") or {}) if loop.is_file() else {}
            if best.get("step") in whole and best["step"] not in (*local, newest):
                self._fetch_checkpoint(best["step"], there)
        return self.folder

    def _fetch(self, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda path: self.remote.fetch(name, path))

    def _fetch_checkpoint(self, step: int, there: Iterable[str]) -> bool:
        """Fetch a checkpoint; False, and a line, if its files are not those of its list."""
        name = _name(step)
        final = self.folder / name
        temporary = final.with_name(f".{final.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        for file in (each for each in there if each.startswith(f"{name}/")):
            target = temporary / file[len(name) + 1 :]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.remote.fetch(file, target)
        listed = json.loads((temporary / MARKER).read_text())
        for file, (_, digest) in listed.items():
            if not (temporary / file).is_file() or sha256(temporary / file) != digest:
                print(f"{self.url}/{name} is skipped: the checksum of {file} is wrong.")
                shutil.rmtree(temporary)
                return False
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        return True

    def settle(self) -> None:
        """Wait for the upload that is under way. An upload that failed is reported, and made up for by the next."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            print(f"{self._error} The checkpoint is in {self.folder}; the next upload tries again.", flush=True)
            self._error = None

    def saved(self, keep: int | None, spared: Iterable[int] = ()) -> None:
        """Upload what is new, in a thread; see `upload`. Called after each checkpoint."""
        self.settle()
        self._thread = Thread(target=self._try_upload, args=(keep, frozenset(spared)), daemon=True)
        self._thread.start()

    def _try_upload(self, keep: int | None, spared: frozenset[int]) -> None:
        try:
            self.upload(keep, spared)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the last upload, and upload what was written since.

        Raises:
            OSError: it failed; the local folder holds everything.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = self._error = None
        try:
            self.upload()
        except OSError as error:
            raise OSError(
                f"{error} The run is whole in {self.folder}; --resume {self.url} on this machine uploads it."
            ) from error

    def discard(self) -> None:
        """Delete the local folder, of a run that is finished and uploaded."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def upload(self, keep: int | None = None, spared: frozenset[int] = frozenset()) -> None:
        """Upload the files of the run that have changed, then its whole checkpoints that are not there, oldest first.

        Then delete there the checkpoints that are not whole and, if `keep` is given, all but the newest `keep` and
        those of the steps `spared`.

        Raises:
            OSError: the storage cannot be written.
        """
        there = self.remote.files()
        for path in sorted(self.folder.rglob("*"), key=lambda path: (path.name != IDENTITY, path)):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or name.startswith("checkpoints/") or name.endswith(".partial"):
                continue
            facts = path.stat().st_size, path.stat().st_mtime_ns
            if self._sent.get(name) != facts:
                self.remote.write(name, path.read_bytes())  # not the path: metrics.jsonl may grow meanwhile
                self._sent[name] = facts
        here = steps(self.folder)
        for checkpoint in here:
            self._upload_checkpoint(checkpoint, there)
        if not here:
            return
        whole, newest = whole_steps(self.remote.files()), int(STEP.search(here[-1].name)[1])
        kept = set(whole if keep is None else whole[-keep:]) | set(spared) | {newest}
        gone = [name for name in there if (found := step_of(name)) is not None and found not in kept]
        self.remote.delete(sorted(gone, key=lambda name: not name.endswith(MARKER)))  # the list first

    def _upload_checkpoint(self, checkpoint: Path, there: dict[str, dict]) -> None:
        name = f"checkpoints/{checkpoint.name}"
        marker = (checkpoint / MARKER).read_bytes()
        if f"{name}/{MARKER}" in there:
            if self.remote.read(f"{name}/{MARKER}") == marker:
                return
            self.remote.delete([f"{name}/{MARKER}"])  # another checkpoint of this step, of before a resume
        for path in sorted(checkpoint.rglob("*")):
            inside = path.relative_to(checkpoint).as_posix()
            if path.is_file() and inside != MARKER:
                self.remote.write(f"{name}/{inside}", path)
        self.remote.write(f"{name}/{MARKER}", marker)


def _name(step: int) -> str:
    return f"checkpoints/step_{step:06d}"
