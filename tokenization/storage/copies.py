"""Local copies of remote files and folders: made when they are first read, shared by all processes of a machine.

A copy is a folder of the cache that is renamed when it is complete; `blocks.py` has files that are read in parts. Its
name is the SHA-256 of the contents where a manifest has it, else a hash of the URL and of what the storage says about
the version. The copies that were not used for longest are deleted when there are more than `TOTO_CACHE_GB`; a process
that has one open goes on reading it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from tokenization.storage.remote import Remote, is_remote, version

# Of all copies together; files in use and those of the last minute are spared.
DEFAULT_GB = 100.0
SPARED_SECONDS = 60
# After an eviction, so that the next is not due at once.
FILLED = 0.9


def cache_folder() -> Path:
    """The folder of copies and of work for remote places: $TOTO_CACHE, by default ~/.cache/toto."""
    named = os.environ.get("TOTO_CACHE")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "toto")).expanduser().absolute()


def work_folder(url: str) -> Path:
    """Where a run or shards for this URL are made before and while they are uploaded; the same in every process."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url).strip("-")[-60:].lstrip("-")
    return cache_folder() / "work" / f"{readable}-{key_of(url.rstrip('/'))[:8]}"


def local_copy(file: str | Path, sha256: str | None = None) -> Path:
    """A file on this machine: `file` itself, or the copy of what is under this URL.

    Args:
        sha256: of its contents, if they are known; the copy is checked.
    Raises:
        FileNotFoundError, OSError: it cannot be read. ValueError: its contents are others.
    """
    if not is_remote(file):
        return Path(file)
    folder, _, name = file.rpartition("/")
    if sha256 is not None:
        return _copied(sha256, lambda: Remote(folder), [name], sha256) / name
    return _copied(key_of(f"{file} {version(known(file))}"), lambda: Remote(folder), [name]) / name


def known(file: str) -> dict:
    """What is known of a remote file. Raises FileNotFoundError if there is none, OSError if it cannot be read."""
    folder, _, name = file.rpartition("/")
    info = Remote(folder).info(name)
    if info is None:
        raise FileNotFoundError(f"There is no file {file}; check the address.")
    return info


def local_folder(folder: str | Path, names: Iterable[str] | None = None) -> Path:
    """A folder on this machine: `folder` itself, or a copy of what is under this URL.

    Args:
        names: of the files that are wanted; None takes all.
    Raises:
        FileNotFoundError: there is nothing. OSError: it cannot be read.
    """
    if not is_remote(folder):
        return Path(folder)
    remote = Remote(folder)
    files = remote.files()
    if names is not None:
        files = {name: files[name] for name in names}
    if not files:
        raise FileNotFoundError(f"There is nothing in {folder}; check the address.")
    listed = "\n".join(f"{name} {version(info)}" for name, info in files.items())
    return _copied(key_of(f"{folder}\n{listed}"), lambda: remote, list(files))


def key_of(text: str) -> str:
    """The name in the cache of what is identified by a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _copied(key: str, opened, names: list[str], sha256: str | None = None) -> Path:
    """The folder of the cache with this key, in which the files are. opened: makes the `Remote`."""
    from filelock import FileLock

    entry = cache_folder() / "copies" / key[:2] / key
    if not _used(entry):
        locks = cache_folder() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key[:2]}.lock"):
            if not _used(entry):  # another process made it meanwhile
                _fetch(entry, opened(), names, sha256)
    return entry


def _used(entry: Path) -> bool:
    """Whether the copy is there; its time of use is now."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def _fetch(entry: Path, remote: Remote, names: list[str], sha256: str | None) -> None:
    from tokenization import files

    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob("*.partial"):  # of a process that was killed, since this one has the lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = entry.with_name(f"{entry.name}.partial")
    try:
        for name in names:
            if ".." in name.split("/") or name.startswith("/"):
                raise ValueError(f"{remote.url} names a file {name}, which is outside the folder; it is not read.")
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            remote.fetch(name, file)
            if sha256 is not None and files.sha256(file) != sha256:
                raise ValueError(f"{remote.url}/{name} is damaged (its sha256 is another); write it again.")
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        make_room(_size(temporary))
        temporary.replace(entry)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# Bytes that may be fetched before the copies are counted again.
_unchecked = 0


def make_room(wanted: int) -> None:
    """Delete the copies that were not used for longest, if there is no room for `wanted` bytes more."""
    global _unchecked
    _unchecked -= wanted
    if _unchecked > 0:
        return
    limit = float(os.environ.get("TOTO_CACHE_GB", DEFAULT_GB)) * 1e9
    copies = []
    for entry in (cache_folder() / "copies").glob("*/*"):
        try:
            if entry.suffix != ".partial":
                copies.append((entry.stat().st_mtime, _size(entry), entry))
        except FileNotFoundError:  # deleted by another process
            continue
    total, too_young = wanted + sum(size for _, size, _ in copies), time.time() - SPARED_SECONDS
    if total > limit:
        for used, size, entry in sorted(copies, key=lambda copy: copy[:2]):
            if total <= FILLED * limit or used > too_young:
                break
            hidden = entry.with_name(f"{entry.name}.old.partial")
            with contextlib.suppress(OSError):  # another process was faster
                entry.rename(hidden)  # first, so that no process finds half of it
                shutil.rmtree(hidden)
            total -= size
    # Other processes fetch too, so only a part of the room is this one's.
    _unchecked = max(0, limit - total) / 16


def _size(entry: Path) -> int:
    """Bytes on the disk, which are fewer than those of the files where these have holes (`blocks`)."""
    stats = (os.stat(os.path.join(base, name)) for base, _, names in os.walk(entry) for name in names)
    return sum(min(stat.st_size, 512 * stat.st_blocks) for stat in stats)
