"""Atomic writes of files, and their checksums."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def temporary(file: Path) -> Path:
    """A name beside `file` that no other process uses, on this machine or another that shares the disk."""
    return file.with_name(f"{file.name}.{secrets.token_hex(6)}.partial")


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, then rename it to `file`, so that `file` is complete whenever it exists."""
    hidden = temporary(file)
    write(hidden)
    with hidden.open("rb") as stream:
        os.fsync(stream.fileno())
    hidden.replace(file)


def write_json(file: str | Path, content: dict) -> None:
    """Write JSON with `write_whole`, one space per level, creating the file's folder."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
